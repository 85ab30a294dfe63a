"""Counting and logging of requests at the edge."""

import logging
import re
import time
from functools import lru_cache
from typing import NamedTuple

from flask import Flask, Response, current_app, g, request

from bridge.parts import Parts, parts_of
from bridge.telemetry import BRAZE_COUNTS, Telemetry
from bridge.web.auth import scope_of

log = logging.getLogger(__name__)

# What Braze waits for a lookup.
IN_TIME = 2.0
_NOT_LET_IN = {401, 403}


class Answered(NamedTuple):
    """One answer, as all figures are made of it.

    Attributes:
        kind: ``webhooks`` or ``content`` where Braze called, on whichever path; else the
            blueprint that answered, "" if none did.
        route: the route, not the path: a path may hold a customer's identifier.
        cache_status: the header Cache-Status, "" where there is none.
        seconds: from the request to the answer.
        waited: the caller had asked to be answered late.
    """

    kind: str
    method: str
    route: str
    status: int
    cache_status: str
    seconds: float
    request_id: str = ""
    key_name: str = ""
    waited: bool = False


def install(app: Flask) -> None:
    """Count every answer of *app* as Braze counts it, and log it without identifiers."""

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()

    @app.after_request
    def end(response: Response) -> Response:
        answered = Answered(
            kind=kind(),
            method=request.method,
            route=str(request.url_rule or "-"),
            status=response.status_code,
            cache_status=response.headers.get("Cache-Status", ""),
            seconds=time.monotonic() - g.began,
            request_id=g.get("request_id", ""),
            key_name=g.get("key_name", ""),
            waited=g.get("waited", False),
        )
        count(parts_of(current_app), answered)
        return response


def kind() -> str:
    """The present request's, as in `Answered`."""
    called = {"webhook": "webhooks", "content": "content"}
    scope = scope_of(request.endpoint) if request.endpoint else ""
    return called.get(scope, request.blueprint or "")


def count(parts: Parts, answered: Answered) -> None:
    """Count and log an answer, whichever way it was made."""
    if answered.kind == "webhooks":
        _count_webhook(parts.telemetry, answered)
    elif answered.kind == "content":
        _count_lookup(parts.telemetry, answered)
    if answered.status in _NOT_LET_IN:
        parts.telemetry.count("auth_failures")
    _log(answered)


def _count_webhook(telemetry: Telemetry, answered: Answered) -> None:
    counted = []
    if answered.status >= 500:
        counted.append("webhooks_failed")
    if answered.status in BRAZE_COUNTS:
        counted.append("braze_webhook_failures")
    # Refusals for the key are quick, or slowed on purpose, and anybody can cause them: they tell
    # nothing of how long Braze waits.
    if answered.waited or answered.status in _NOT_LET_IN:
        telemetry.count(*counted)
    else:
        telemetry.took("webhook", answered.seconds, *counted)


def _count_lookup(telemetry: Telemetry, answered: Answered) -> None:
    counted = _lookup_counts(answered.cache_status, answered.status)
    if not answered.cache_status:
        telemetry.count(*counted)
    elif answered.seconds > IN_TIME:
        telemetry.took("lookup", answered.seconds, *counted, "lookups_late")
    else:
        telemetry.took("lookup", answered.seconds, *counted)


@lru_cache(maxsize=1024)
def _lookup_counts(cache_status: str, status: int) -> tuple[str, ...]:
    """What is counted for an answer to a content call; a refused one was no lookup."""
    counted = ["braze_content_calls"]
    if cache_status:
        counted.append(f"lookups_{lookup_outcome(cache_status)}")
    if status in BRAZE_COUNTS:
        counted.append("braze_content_failures")
    return tuple(counted)


_DETAIL = re.compile("detail=([a-z_]+)")


def lookup_outcome(cache_status: str) -> str:
    """``hit``, ``stale``, ``miss``, ``not_found`` or ``unavailable`` by the header Cache-Status."""
    if found := _DETAIL.search(cache_status):
        return found[1]
    if "; hit" in cache_status:
        return "stale" if "ttl=-" in cache_status else "hit"
    return "miss"


def _log(answered: Answered) -> None:
    if answered.status >= 500:
        level = logging.WARNING
    else:
        # Of every request there is a line at debug; refused ones are told without asking.
        level = logging.INFO if answered.status >= 400 else logging.DEBUG
    if log.isEnabledFor(level):
        log.log(
            level,
            "request",
            extra={
                "action": "request",
                "request": answered.request_id,
                "key": answered.key_name,
                "method": answered.method,
                "path": answered.route,
                "status": answered.status,
                "milliseconds": round(answered.seconds * 1000, 1),
            },
        )
