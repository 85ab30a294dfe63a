"""Webhooks that are taken in on the event loop, without Flask and without a thread for each.

Only what goes well: where Flask has taken one in from the same caller before, and where this one
can be understood and stored. Everything else is left to Flask, which refuses it and keeps it.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

from cachetools import LRUCache
from flask import Flask

from bridge.intake.payload import MAX_BODY, RefusedError
from bridge.outbox.accept import Arrival, Receipt
from bridge.outbox.commit import PATIENCE, Waiting
from bridge.parts import parts_of
from bridge.web.auth import request_id
from bridge.web.fastlane import SERVER, Headers, dated, lines
from bridge.web.figures import Answered, count
from bridge.web.webhooks import PATH, told

MOST_CALLERS = 10_000
MOST_HEADS = 1000
LONGEST_HEAD = 4096


class _Caller(NamedTuple):
    """Whom Flask has let in: the name of the key, and the beginning of an answer by its status."""

    key_name: str
    heads: Mapping[int, bytes]


class _Head(NamedTuple):
    """What the head of a webhook has said."""

    caller: _Caller
    asked: Mapping[bytes, str]


Answer = Callable[[bytes | None], None]


@dataclass(slots=True)
class Visit:
    """One webhook on its way in: who sends it, and its *body* so far.

    *answer* is told the whole answer, or ``None``: then it is left to Flask. *unparsed*: all of
    it, if the parser has seen nothing of it.
    """

    caller: _Caller
    asked: Mapping[bytes, str]
    answer: Answer
    began: float = field(default_factory=time.monotonic)
    body: bytes = b""
    unparsed: bytes = b""
    waiting: Waiting | None = None

    @property
    def is_stored(self) -> bool:
        """Whether its body is whole, and handed over to be stored."""
        return self.waiting is not None

    def take_back(self, now: float) -> bool:
        """Whether it has waited for too long, and will not be stored."""
        late = self.waiting is not None and now > self.began + PATIENCE
        return late and self.waiting is not None and self.waiting.take()


class Arrivals:
    """Takes webhooks in for *app*. For one thread, the event loop's."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._callers: LRUCache[Hashable, _Caller] = LRUCache(MOST_CALLERS)
        self._heads: LRUCache[Hashable, _Head] = LRUCache(MOST_HEADS)

    def admit(self, scope: Mapping[str, Any], key_name: str, answer: Headers) -> None:
        """Flask has taken the webhook of an ASGI *scope* in, and answered with these headers."""
        target = scope["raw_path"] + (b"?" if scope["query_string"] else b"")
        asked = _read(target, scope["headers"]) if scope["method"] == "POST" else None
        if asked is None:
            return
        common = lines([*(one for one in answer if one[0].lower() not in _OWN), SERVER])
        address = (scope.get("client") or ("",))[0]
        self._callers[_name(address, asked)] = _Caller(
            key_name, {status: _status_line(status) + common for status in (200, 202)}
        )

    def expect(
        self,
        target: bytes,
        headers: Headers,
        address: str,
        answer: Answer,
        came: bytes = b"",
    ) -> Visit | None:
        """A POST to *target* by HTTP/1.1 begins, if it is a webhook that may be taken in here.

        Args:
            target: the path, and the query if there is one.
            headers: with names in small letters.
            address: who sends them.
            answer: as in `Visit`.
            came: what it began with as it came; then the like of it may be `recognise`d.
        """
        asked = _read(target, headers)
        if asked is None:
            return None
        caller = self._callers.get(_name(address, asked))
        if caller is None or not parts_of(self._app).acceptor.has_room():
            return None
        head, end, _ = came.partition(_END)
        # All of it: an empty line may stand before it, and a part of it may name no key.
        if end and head.startswith(b"POST ") and len(head) <= LONGEST_HEAD:
            self._heads[address, head] = _Head(caller, asked)
        return Visit(caller, asked, answer)

    def recognise(self, came: bytes, address: str, answer: Answer) -> Visit | None:
        """The webhook that *came*, with all of its body, if one with the same head came before.

        Braze sends all webhooks of a campaign with the same headers, and to parse them takes
        longer than to understand the body.
        """
        first, _, body = came.partition(_END)
        head = self._heads.get((address, first))
        if head is None or len(body) != int(head.asked[b"content-length"]):
            return None
        if not parts_of(self._app).acceptor.has_room():
            return None
        return Visit(head.caller, head.asked, answer, body=body, unparsed=came)

    def take(self, visit: Visit) -> bool:
        """Store *visit*, whose body is whole; false leaves it to Flask."""
        parts = parts_of(self._app)
        asked = visit.asked
        arrival = Arrival(
            visit.body,
            asked.get(b"content-type", ""),
            asked.get(b"idempotency-key"),
            visit.caller.key_name,
            request_id(asked.get(b"x-request-id", "")),
        )

        def tell(receipt: Receipt | None) -> None:
            # Where it is not stored Flask says why.
            visit.answer(self._answer(visit, arrival.request_id, receipt) if receipt else None)

        try:
            visit.waiting = parts.acceptor.accept_soon(arrival, tell)
        except RefusedError:
            return False
        return True

    def _answer(self, visit: Visit, name: str, receipt: Receipt) -> bytes:
        body, status = told(receipt)
        seconds = time.monotonic() - visit.began
        key_name, heads = visit.caller
        answered = Answered("webhooks", "POST", PATH, status, "", seconds, name, key_name)
        count(parts_of(self._app), answered)
        own = b"Content-Length: %d\r\nX-Request-Id: %b" % (len(body), name.encode())
        return b"".join((heads[status], own, dated(time.time()), body))


_END = b"\r\n\r\n"


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()


_OWN = {b"content-length", b"x-request-id", b"date", b"server"}
# What a webhook may say in its headers, apart from what means nothing.
_HEADERS = {
    *(b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key"),
    b"x-request-id",
}
# For Flask: who wants to wait for the delivery, what browsers send, and bodies in pieces.
_NOT_HERE = {b"prefer", b"origin", b"sec-fetch-site", b"transfer-encoding", b"expect", b"upgrade"}


def _read(target: bytes, headers: Headers) -> dict[bytes, str] | None:
    """The headers that matter; ``None`` if it is no plain webhook."""
    if target != _TARGET:
        return None
    found: dict[bytes, str] = {}
    forwarded = ""
    for name, value in headers:
        if name in _NOT_HERE or name in found:
            return None
        if name in _HEADERS:
            found[name] = value.decode("latin-1")
        elif name == b"x-forwarded-for":
            forwarded += f"{value.decode('latin-1')},"
    if not 0 < int(found.get(b"content-length", 0)) <= MAX_BODY:
        return None
    return {**found, b"x-forwarded-for": forwarded} if forwarded else found


def _name(address: str, asked: Mapping[bytes, str]) -> Hashable:
    return address, asked.get(b"authorization"), asked.get(b"x-forwarded-for")


_TARGET = PATH.encode()
