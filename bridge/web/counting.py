"""Count and log the answers to requests."""

import logging
import re
import time
from functools import lru_cache
from typing import NamedTuple

from flask import Flask, Response, current_app, g, request

from bridge.lookups.customer import Validity
from bridge.ops.telemetry import BRAZE_COUNTS, Telemetry
from bridge.parts import Parts, parts_of
from bridge.settings import BRAZE_WAITS
from bridge.web.auth import scope_of
from bridge.web.ready import ReadyAnswer
from bridge.web.threads import exchange_of

log = logging.getLogger(__name__)

_UNAUTHORISED = {401, 403}


class AnsweredRequest(NamedTuple):
    """One answered request.

    Attributes:
        kind: ``webhooks`` or ``content`` for every call of Braze's; otherwise the name of the
            blueprint, or "" without one.
        route: the route, since a path may hold a customer's identifier.
        cache_status: the header Cache-Status, or "".
        seconds: from the arrival of the request to its answer.
        waited: whether the caller asked for an answer after delivery.
        problem: why the call was rejected, without values of its sender; "" if it was not.
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
    problem: str = ""


def install(app: Flask) -> None:
    """Count and log every answer of *app*."""

    @app.before_request
    def begin() -> None:
        # Under plain WSGI, without an event loop, the request arrives now.
        exchange_of(request.environ)

    @app.after_request
    def end(response: Response) -> Response:
        answered = AnsweredRequest(
            kind=kind(),
            method=request.method,
            route=_route(),
            status=response.status_code,
            cache_status=response.headers.get("Cache-Status", ""),
            seconds=time.monotonic() - exchange_of(request.environ).arrived,
            request_id=g.get("request_id", ""),
            key_name=g.get("key_name", ""),
            waited=g.get("waited", False),
            problem=g.get("problem", ""),
        )
        count(parts_of(current_app), answered)
        return response


def allow_reuse(validity: Validity, parts: tuple[bytes, ...]) -> None:
    """Let the event loop send the answer to the current request again.

    Args:
        validity: until when it may be sent again.
        parts: as in `ReadyAnswer`.
    """
    exchange_of(request.environ).ready = ReadyAnswer(validity, parts, kind(), _route())


def _route() -> str:
    """Return the pattern of the current request's path; "-" if there is none."""
    rule = request.url_rule
    return (rule.rule.rstrip("/") or "/") if rule else "-"


def kind() -> str:
    """Return the kind of the current request, as in `AnsweredRequest`."""
    called = {"webhook": "webhooks", "content": "content"}
    scope = scope_of(request.endpoint) if request.endpoint else ""
    return called.get(scope, request.blueprint or "")


def count(parts: Parts, answered: AnsweredRequest) -> None:
    """Count and log an answer."""
    if answered.kind == "webhooks":
        _count_webhook(parts.telemetry, answered)
    elif answered.kind == "messages":
        _count_message(parts.telemetry, answered)
    elif answered.kind == "content":
        _count_lookup(parts.telemetry, answered)
    if answered.status in _UNAUTHORISED:
        parts.telemetry.count("auth_failures")
    _log(answered)


def _count_webhook(telemetry: Telemetry, answered: AnsweredRequest) -> None:
    counted = []
    if answered.status >= 500:
        counted.append("webhooks_failed")
        telemetry.keep_error("failed_webhooks", f"HTTP {answered.status}")
    if answered.status in BRAZE_COUNTS:
        counted.append("braze_webhook_failures")
    # Times of unauthorised requests would distort the latency: they are quick, or delayed on
    # purpose.
    if answered.status in _UNAUTHORISED:
        telemetry.keep_error("webhooks", answered.problem)
        telemetry.count(*counted, "webhooks_not_let_in")
    elif answered.waited:
        telemetry.count(*counted)
    else:
        telemetry.observe("webhook", answered.seconds, *counted)


def _count_message(telemetry: Telemetry, answered: AnsweredRequest) -> None:
    """Count a message of SessionM's, which does not use Braze's failure budget."""
    counted = []
    if answered.status >= 500:
        counted.append("messages_failed")
        telemetry.keep_error("failed_messages", f"HTTP {answered.status}")
    if answered.status in _UNAUTHORISED:
        telemetry.keep_error("messages", answered.problem)
        telemetry.count("messages_not_let_in")
    elif answered.waited:
        telemetry.count(*counted)
    else:
        telemetry.observe("message", answered.seconds, *counted)


def _count_lookup(telemetry: Telemetry, answered: AnsweredRequest) -> None:
    counted = _lookup_counts(answered.cache_status, answered.status)
    is_late = bool(answered.cache_status) and answered.seconds > BRAZE_WAITS
    if is_late or "lookups_unavailable" in counted:
        telemetry.keep_error("failed_lookups", "late" if is_late else "unavailable")
    if not answered.cache_status:
        if answered.problem:
            telemetry.keep_error("content", answered.problem)
        telemetry.count(*counted)
    elif is_late:
        telemetry.observe("lookup", answered.seconds, *counted, "lookups_late")
    else:
        telemetry.observe("lookup", answered.seconds, *counted)


@lru_cache(maxsize=1024)
def _lookup_counts(cache_status: str, status: int) -> tuple[str, ...]:
    """Return the counters of an answer; a rejected request is not a lookup."""
    counted = ["braze_content_calls"]
    if cache_status:
        counted.append(f"lookups_{lookup_outcome(cache_status)}")
    if status in BRAZE_COUNTS:
        counted.append("braze_content_failures")
    return tuple(counted)


_DETAIL = re.compile("detail=([a-z_]+)")


def lookup_outcome(cache_status: str) -> str:
    """Return ``hit``, ``stale``, ``miss``, ``not_found`` or ``unavailable``.

    Args:
        cache_status: the header Cache-Status.
    """
    if found := _DETAIL.search(cache_status):
        return found[1]
    if "; hit" in cache_status:
        return "stale" if "ttl=-" in cache_status else "hit"
    return "miss"


def _log(answered: AnsweredRequest) -> None:
    if answered.status >= 500:
        level = logging.WARNING
    else:
        # Level info for a rejected request, debug for the others.
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
