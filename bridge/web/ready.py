"""Answers to lookups in memory, which the event loop sends again.

Flask decides by a `ReusableAnswer` how long its answer may be sent again. Each request is
authorised again.
"""

from collections.abc import Mapping

from cachetools import LRUCache

from bridge.web.exchange import ReusableAnswer

Headers = list[tuple[bytes, bytes]]

MEMORY_BYTES = 64 * 1024 * 1024
# Bytes of memory for an answer besides its body, as measured.
_OVERHEAD = 4000
# Headers of Flask's answer that belong to one request or change with the age.
_VARIABLE = {b"age", b"cache-status", b"content-length", b"content-type", b"x-request-id"}
# Request headers that only Flask handles.
_FOR_FLASK = {
    *("if-match", "if-modified-since", "if-unmodified-since", "if-range", "range"),
    *("content-length", "transfer-encoding", "expect", "upgrade"),
}


class ReadyAnswer:
    """One answer.

    Attributes:
        reusable: its body, and how long it may be sent.
        etag: identifies the content without its age.
        body: set by `update`.
        cache_status: the header Cache-Status, set by `update`.
    """

    __slots__ = (
        *("_age", "_constant", "_detail", "_headers"),
        *("body", "cache_status", "etag", "reusable"),
    )

    def __init__(self, reusable: ReusableAnswer, headers: Headers) -> None:
        self.reusable = reusable
        named = {name.lower(): value.decode("latin-1") for name, value in headers}
        self.etag = named.get(b"etag", "")
        # Such as "; detail=not_found"; None without a header Cache-Status.
        status = named.get(b"cache-status")
        self._detail = None if status is None else "".join(status.partition("; detail=")[1:])
        self._constant = [header for header in headers if header[0].lower() not in _VARIABLE]
        self._age: tuple[int, int] | None = None
        self._headers: Headers = []
        self.cache_status = ""
        self.body = b""

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return 2 * sum(map(len, self.reusable.body)) + _OVERHEAD

    def is_valid(self, now: float) -> bool:
        """Return whether the answer may be sent at *now*, in seconds since the epoch."""
        repeat = self.reusable.repeat
        return self.reusable.made_at <= now < repeat.until and repeat.unchanged()

    def update(self, now: float) -> Headers:
        """Set `body` and `cache_status` for the age at *now*, and return the headers."""
        repeat = self.reusable.repeat
        age = int(now - repeat.fetched_at), int(repeat.fresh_until - now)
        if age != self._age:
            self._age = age
            self.body = (b"%d" % age[0]).join(self.reusable.body)
            variable = {}
            if len(self.reusable.body) > 1:
                variable[b"age"] = b"%d" % age[0]
            if self._detail is not None:
                self.cache_status = f"bridge; hit; ttl={age[1]}{self._detail}"
                variable[b"cache-status"] = self.cache_status.encode()
            self._headers = [*self._constant, *variable.items()]
        return self._headers


class ReadyAnswers:
    """The most recently used answers by their target. Not thread-safe."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: LRUCache[bytes, ReadyAnswer] = LRUCache(
            MEMORY_BYTES, getsizeof=lambda answer: answer.size
        )

    def get(self, target: bytes, headers: Mapping[str, str], now: float) -> ReadyAnswer | None:
        """Return the answer to a GET; ``None``: Flask must answer.

        Args:
            target: path and query.
            headers: values by name in lower case.
            now: seconds since the epoch.
        """
        found = self._answers.get(target)
        if found is None or not _FOR_FLASK.isdisjoint(headers):
            return None
        if headers.get("if-none-match", found.etag) != found.etag:
            return None
        if not found.is_valid(now):
            del self._answers[target]
            return None
        return found

    def put(self, target: bytes, reusable: ReusableAnswer, headers: Headers) -> None:
        """Keep an answer of Flask's with its *headers*."""
        answer = ReadyAnswer(reusable, headers)
        if answer.size <= MEMORY_BYTES:
            self._answers[target] = answer
            while len(self._answers) > self._entries:
                self._answers.popitem()
