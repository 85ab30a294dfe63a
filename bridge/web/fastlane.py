"""The fast lane: a lookup that is repeated is answered from memory, before Flask.

It knows no rule. Flask's first answer says by an `Offer` whether and how long it may be repeated,
and to whom: to callers who were given an answer of the same realm before, by the same credential
and from the same address.
"""

import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from cachetools import LRUCache
from flask import Flask, g, request

from bridge.lookups.customer import Repeatable
from bridge.parts import parts_of
from bridge.web.auth import request_id, scope_of
from bridge.web.figures import Answered, count, kind

# Under this name a request's environment holds a list, for the view to leave an offer in.
LANE = "bridge.lane"
MEMORY_BYTES = 64 * 1024 * 1024
MOST_CALLERS = 10_000
# Measured: what an answer takes beside its body.
_OVERHEAD = 4000

Headers = list[tuple[bytes, bytes]]
SERVER = (b"Server", b"gunicorn/asgi")


@dataclass(frozen=True, slots=True)
class Offer:
    """That an answer may be repeated.

    Attributes:
        repeat: how long.
        body: what stands before and after its age; the whole body if it tells none.
        made_at: when it was made; it is void for a clock that was set back behind that.
        realm: whoever was given one answer of a realm may have all of them.
        kind: as in `Answered`.
        route: as in `Answered`.
        key_name: as in `Answered`.
    """

    repeat: Repeatable
    body: tuple[bytes, ...]
    made_at: float
    realm: str
    kind: str
    route: str
    key_name: str


def offer(repeat: Repeatable, body: tuple[bytes, ...]) -> None:
    """Let the answer to the current request be repeated, if it came on a way that can."""
    offers: list[Offer] | None = request.environ.get(LANE)
    if offers is not None:
        offers.append(
            Offer(
                repeat,
                body,
                made_at=time.time(),
                realm=scope_of(request.endpoint or ""),
                kind=kind(),
                route=str(request.url_rule),
                key_name=g.key_name,
            )
        )


class FastLane:
    """What *app* has answered and may be repeated. For one thread, the event loop's."""

    def __init__(self, app: Flask, entries: int) -> None:
        self._app = app
        self._entries = entries
        self._repeats: LRUCache[bytes, _Repeat] = LRUCache(
            MEMORY_BYTES, getsizeof=lambda repeat: repeat.size
        )
        # Whom Flask has let into which realm, and the names of their keys.
        self._callers: LRUCache[Hashable, str] = LRUCache(MOST_CALLERS)

    def repeat(self, target: bytes, headers: Headers, address: str) -> bytes | None:
        """The answer to a GET of *target* by HTTP/1.1, if it is a repetition.

        *headers* have names in small letters; *address* is who sends them.
        """
        repeat = self._repeats.get(target)
        if repeat is None:
            return None
        asked = _read(headers, address)
        if asked is None or (asked.etag and asked.etag != repeat.etag):
            return None
        offer = repeat.offer
        key_name = self._callers.get((offer.realm, asked.caller))
        if key_name is None:
            return None
        now = time.time()
        if not repeat.holds(now):
            del self._repeats[target]
            return None
        repeat.ripen(now)
        given = request_id(asked.request_id)
        status, head, body = (
            (304, repeat.head_alone, b"") if asked.etag else (200, repeat.head, repeat.body)
        )
        seconds = time.time() - now
        answered = Answered(
            offer.kind, "GET", offer.route, status, repeat.cache_status, seconds, given, key_name
        )
        count(parts_of(self._app), answered)
        return b"".join((head, given.encode(), dated(now), body))

    def keep(
        self, target: bytes, headers: Headers, address: str, offer: Offer, answer: Headers
    ) -> None:
        """From now on repeat what was *offered* in answer to a GET, with the headers *answer*."""
        asked = _read(headers, address)
        if asked is None:
            return
        repeat = _Repeat(offer, answer)
        if repeat.size <= MEMORY_BYTES:
            self._callers[offer.realm, asked.caller] = offer.key_name
            self._repeats[target] = repeat
            while len(self._repeats) > self._entries:
                self._repeats.popitem()


class _Repeat:
    """One answer, ready to be sent.

    Attributes:
        head: the beginning of it, up to the request's name.
        head_alone: the same for 304.
    """

    __slots__ = (
        *("_age", "_detail", "_lasting", "body", "cache_status", "etag"),
        *("head", "head_alone", "offer", "size"),
    )

    def __init__(self, offer: Offer, answer: Headers) -> None:
        self.offer = offer
        self.etag = next((value for name, value in answer if name.lower() == b"etag"), b"")
        self.size = 2 * sum(map(len, offer.body)) + _OVERHEAD
        lasting = [header for header in answer if header[0].lower() not in _PASSING]
        self._lasting = lines([*lasting, SERVER])
        self._age: tuple[int, int] | None = None
        first = next((value for name, value in answer if name.lower() == b"cache-status"), b"")
        # Such as "; detail=not_found"; None: it tells nothing of the cache.
        self._detail = "".join(first.decode().partition("; detail=")[1:]) if first else None
        self.cache_status = ""
        self.body = self.head = self.head_alone = b""

    def holds(self, now: float) -> bool:
        """Whether it may be repeated."""
        repeat = self.offer.repeat
        return self.offer.made_at <= now < repeat.until and repeat.unchanged()

    def ripen(self, now: float) -> None:
        """Let it tell its age as it is now."""
        body, repeat = self.offer.body, self.offer.repeat
        age = int(now - repeat.fetched_at), int(repeat.fresh_until - now)
        if age == self._age:
            return
        self._age = age
        told: Headers = []
        if len(body) > 1:
            told.append((b"Age", b"%d" % age[0]))
        if self._detail is not None:
            self.cache_status = f"bridge; hit; ttl={age[1]}{self._detail}"
            told.append((b"Cache-Status", self.cache_status.encode()))
        self.body = (b"%d" % age[0]).join(body)
        content = [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(self.body)),
        ]
        common = self._lasting + lines(told)
        self.head_alone = b"HTTP/1.1 304 Not Modified\r\n" + common + _NAME
        self.head = b"HTTP/1.1 200 OK\r\n" + lines(content) + common + _NAME


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """*headers* as they are sent."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def dated(now: float) -> bytes:
    """The end of the last header but Date, that one, and the end of the head."""
    return _dated(int(now))


@lru_cache(maxsize=4)
def _dated(second: int) -> bytes:
    return f"\r\nDate: {formatdate(second, usegmt=True)}\r\n\r\n".encode()


_NAME = b"X-Request-Id: "
# What each answer has for itself.
_PASSING = {
    *(b"age", b"cache-status", b"content-length", b"content-type", b"date", b"server"),
    b"x-request-id",
}


class _Asked(NamedTuple):
    """What of a request's headers counts: who asks, and by *etag* what they know already."""

    caller: Hashable
    request_id: str
    etag: bytes


def _read(headers: Headers, address: str) -> _Asked | None:
    """What a request asks; ``None`` if that is more than a plain lookup."""
    authorization = etag = name = b""
    forwarded: tuple[bytes, ...] = ()
    for header, value in headers:
        if header in _MATTERS:
            if header == b"authorization" and not authorization:
                authorization = value
            elif header == b"x-forwarded-for":
                forwarded = (*forwarded, value)
            elif header == b"if-none-match" and not etag:
                etag = value
            elif header == b"x-request-id" and not name:
                name = value
            else:
                return None
    return _Asked((authorization, address, forwarded), name.decode("latin-1"), etag)


_MATTERS = {
    b"authorization",
    b"x-forwarded-for",
    b"x-request-id",
    b"if-none-match",
    # What these ask is for Flask to answer.
    *(b"if-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range"),
    *(b"content-length", b"transfer-encoding", b"expect", b"upgrade"),
}
