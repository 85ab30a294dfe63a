"""Answers to lookups in memory, which the event loop sends again. Each request is authorised."""

from collections.abc import Mapping

from cachetools import LRUCache

from bridge import clock
from bridge.lookups.customer import Validity

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
    """An answer of Flask's that the event loop may send again.

    Args:
        validity: until when it may be sent.
        parts: the body before and after the age; one part if the body has no age.
        kind, route: as in `AnsweredRequest`.

    Attributes:
        etag: identifies the content without its age.
        body: set by `update`.
        cache_status: the header Cache-Status, set by `update`.
    """

    __slots__ = (
        *("_age", "_constant", "_detail", "_headers", "_made_at", "_parts", "_validity"),
        *("body", "cache_status", "etag", "kind", "route"),
    )

    def __init__(self, validity: Validity, parts: tuple[bytes, ...], kind: str, route: str) -> None:
        self._validity = validity
        self._parts = parts
        self.kind = kind
        self.route = route
        # If the clock is set back to before this time, the answer is invalid.
        self._made_at = clock.now()
        self._age: tuple[int, int] | None = None
        self._headers: Headers = []
        self.cache_status = ""
        self.body = b""

    def keep_headers(self, headers: Headers) -> None:
        """Keep those of the answer's *headers* that are the same for all requests."""
        named = {name.lower(): value.decode("latin-1") for name, value in headers}
        self.etag = named.get(b"etag", "")
        # Such as "; detail=not_found"; None without a header Cache-Status.
        status = named.get(b"cache-status")
        self._detail = None if status is None else "".join(status.partition("; detail=")[1:])
        self._constant = [header for header in headers if header[0].lower() not in _VARIABLE]

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return 2 * sum(map(len, self._parts)) + _OVERHEAD

    def is_valid(self, now: float) -> bool:
        """Return whether the answer may be sent at *now*, in seconds since the epoch."""
        return self._made_at <= now < self._validity.until and self._validity.unchanged()

    def update(self, now: float) -> Headers:
        """Set `body` and `cache_status` for the age at *now*, and return the headers."""
        validity = self._validity
        age = int(now - validity.fetched_at), int(validity.fresh_until - now)
        if age != self._age:
            self._age = age
            self.body = (b"%d" % age[0]).join(self._parts)
            variable = {}
            if len(self._parts) > 1:
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

    def put(self, target: bytes, answer: ReadyAnswer, headers: Headers) -> None:
        """Keep an answer of Flask's with its *headers*."""
        answer.keep_headers(headers)
        if answer.size <= MEMORY_BYTES:
            self._answers[target] = answer
            while len(self._answers) > self._entries:
                self._answers.popitem()
