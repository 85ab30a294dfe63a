"""Counting and logging of requests at the edge."""

import logging
import time

from flask import Flask, Response, current_app, g, request

from bridge.parts import parts_of

log = logging.getLogger(__name__)


def install(app: Flask) -> None:
    """Count every answer of *app* as Braze counts it, and log it without identifiers."""

    @app.before_request
    def begin() -> None:
        g.began = time.monotonic()

    @app.after_request
    def end(response: Response) -> Response:
        parts = parts_of(current_app)
        blueprint = request.blueprint
        if blueprint == "webhooks":
            parts.braze_budget.saw("webhook", response.status_code)
        elif blueprint == "content":
            parts.braze_budget.saw("content", response.status_code)
            if status := response.headers.get("Cache-Status"):
                parts.lookup_figures.saw(hit="; hit" in status)
        log.log(
            logging.WARNING if response.status_code >= 500 else logging.DEBUG,
            "request",
            extra={
                "action": "request",
                "request": g.get("request_id"),
                "key": g.get("key_name"),
                "method": request.method,
                # The route, not the path: a path may hold a customer's identifier.
                "path": str(request.url_rule or "-"),
                "status": response.status_code,
                "milliseconds": round((time.monotonic() - g.get("began", 0)) * 1000),
            },
        )
        return response
