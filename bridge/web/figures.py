"""Counting and logging of requests at the edge."""

import logging
import time
from typing import NamedTuple

from flask import Flask, Response, current_app, g, request

from bridge.parts import Parts, parts_of

log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """One answer, as all figures are made of it.

    Attributes:
        kind: the blueprint that answered: ``webhooks``, ``content``, …; "" if none did.
        route: the route, not the path: a path may hold a customer's identifier.
        cache_status: the header Cache-Status, "" where there is none.
        seconds: from the request to the answer.
    """

    kind: str
    method: str
    route: str
    status: int
    cache_status: str
    seconds: float
    request_id: str = ""
    key_name: str = ""


def install(app: Flask) -> None:
    """Count every answer of *app* as Braze counts it, and log it without identifiers."""

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()

    @app.after_request
    def end(response: Response) -> Response:
        answered = Answered(
            kind=request.blueprint or "",
            method=request.method,
            route=str(request.url_rule or "-"),
            status=response.status_code,
            cache_status=response.headers.get("Cache-Status", ""),
            seconds=time.monotonic() - g.get("began", 0),
            request_id=g.get("request_id", ""),
            key_name=g.get("key_name", ""),
        )
        count(parts_of(current_app), answered)
        return response


def count(parts: Parts, answered: Answered) -> None:
    """Count and log an answer, whichever way it was made."""
    if answered.kind == "webhooks":
        parts.braze_budget.saw("webhook", answered.status)
    elif answered.kind == "content":
        parts.braze_budget.saw("content", answered.status)
        if answered.cache_status:
            parts.lookup_figures.saw(hit="; hit" in answered.cache_status)
    level = logging.WARNING if answered.status >= 500 else logging.DEBUG
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
                "milliseconds": round(answered.seconds * 1000),
            },
        )
