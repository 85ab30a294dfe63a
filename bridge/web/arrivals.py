"""Webhooks that are taken in on the event loop, without a thread for each.

Only what goes well: where Flask has taken one in from the same caller before, and where this one
can be understood and stored. Everything else is left to Flask, which refuses it and keeps it.
"""

import time
from collections.abc import Hashable, Mapping
from typing import Any

from cachetools import LRUCache
from flask import Flask

from bridge.database import StoreUnavailableError
from bridge.intake.payload import MAX_BODY, RefusedError
from bridge.outbox.accept import Arrival
from bridge.parts import parts_of
from bridge.web.auth import request_id
from bridge.web.figures import Answered, count
from bridge.web.webhooks import PATH, told

MOST_CALLERS = 10_000

Headers = list[tuple[bytes, bytes]]


class Arrivals:
    """Takes webhooks in for *app*."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        # Whom Flask has let in: the name of the key, and what the headers of all answers share.
        self._callers: LRUCache[Hashable, tuple[str, Headers]] = LRUCache(MOST_CALLERS)

    def admit(self, scope: Mapping[str, Any], key_name: str, answer: Headers) -> None:
        """Flask has taken *scope* in, and answered with these headers."""
        if (asked := _read(scope)) is not None:
            common = [header for header in answer if header[0].lower() not in _OWN]
            self._callers[_caller(scope, asked)] = key_name, common

    async def take(
        self, scope: Mapping[str, Any], body: bytes
    ) -> tuple[int, Headers, bytes] | None:
        """Store a webhook: status, headers and body of the answer; ``None`` leaves it to Flask."""
        asked = _read(scope)
        if asked is None:
            return None
        known = self._callers.get(_caller(scope, asked))
        parts = parts_of(self._app)
        if known is None or len(body) > MAX_BODY or not parts.acceptor.has_room():
            return None
        began = time.monotonic()
        key_name, common = known
        name = request_id(asked.get(b"x-request-id", ""))
        arrival = Arrival(
            body,
            asked.get(b"content-type", ""),
            asked.get(b"idempotency-key"),
            key_name,
            name,
        )
        try:
            receipt = await parts.acceptor.accept_soon(arrival)
        except (RefusedError, StoreUnavailableError):
            # Flask says why, and keeps what it refuses.
            return None
        answer, status = told(receipt)
        seconds = time.monotonic() - began
        count(parts, Answered("webhooks", "POST", PATH, status, "", seconds, name, key_name))
        own = [(b"Content-Length", b"%d" % len(answer)), (b"X-Request-Id", name.encode())]
        return status, common + own, answer


_OWN = {b"content-length", b"x-request-id", b"date"}
# What a webhook may say in its headers, apart from what means nothing.
_HEADERS = {b"authorization", b"content-type", b"idempotency-key", b"x-request-id"}
# For Flask: who wants to wait for the delivery, and what browsers send.
_NOT_HERE = {b"prefer", b"origin", b"sec-fetch-site"}


def _read(scope: Mapping[str, Any]) -> dict[bytes, str] | None:
    """The headers that matter; ``None`` if *scope* is no plain webhook."""
    if scope["method"] != "POST" or scope["raw_path"] != _TARGET or scope["query_string"]:
        return None
    found: dict[bytes, str] = {}
    forwarded = ""
    for name, value in scope["headers"]:
        if name in _NOT_HERE or name in found:
            return None
        if name in _HEADERS:
            found[name] = value.decode("latin-1")
        elif name == b"x-forwarded-for":
            forwarded += f"{value.decode('latin-1')},"
    return {**found, b"x-forwarded-for": forwarded} if forwarded else found


def _caller(scope: Mapping[str, Any], asked: Mapping[bytes, str]) -> Hashable:
    address = (scope.get("client") or ("",))[0]
    return address, asked.get(b"authorization"), asked.get(b"x-forwarded-for")


_TARGET = PATH.encode()
