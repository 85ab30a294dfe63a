"""Error answers of all endpoints: JSON in SessionM's own shape, or a page for a browser."""

import json
import logging
import re

from flask import Flask, Response, g, render_template, request
from werkzeug.exceptions import HTTPException

from bridge.fields import FieldError
from bridge.intake.payload import RefusedError
from bridge.lookups.query import LOOKUPS
from bridge.outbox.accept import QueueFullError
from bridge.storage.database import StoreUnavailableError

log = logging.getLogger(__name__)

JSON, HTML = "application/json", "text/html"
# Seconds until Braze retries: after the store was unavailable, and after the queue was full.
STORE_RETRY_AFTER = 10
FULL_RETRY_AFTER = 60
# Status -> title, for the errors that a browser gets as a page.
_TITLES = {
    401: "Sign in",
    403: "This is not allowed",
    404: "This page does not exist",
    503: "The bridge cannot do this now",
}
# What a message quotes came from the caller, and may be about a customer. It may hold quotes too.
_QUOTED = re.compile('".*"')


def error(status: int, code: str, message: str, **headers: str) -> Response:
    """Return the answer for an error: ``{"status":"error","errors":{"code":…,"message":…}}``.

    A browser (``Accept: text/html``) gets 401, 403, 404 and 503 as a page.

    Args:
        status: the HTTP status.
        code: the kind of error, for programs.
        message: a sentence for people.
        headers: further headers of the answer.
    """
    g.problem = _QUOTED.sub('"…"', message)
    if status in _TITLES and request.accept_mimetypes.best_match([JSON, HTML]) == HTML:
        title = _TITLES[status]
        html = render_template("problem.html", status=status, title=title, message=message)
        response = Response(html, status, mimetype=HTML)
    else:
        body = {"status": "error", "errors": {"code": code, "message": message}}
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        response = Response(text.encode(errors="replace"), status, mimetype=JSON)
    if status in _TITLES:
        response.vary.add("Accept")
    response.headers.update(headers)
    return response


def install(app: Flask) -> None:
    """Register handlers in *app* for all exceptions of views."""
    app.register_error_handler(RefusedError, _refused)
    app.register_error_handler(FieldError, _bad_parameter)
    app.register_error_handler(QueueFullError, _full)
    app.register_error_handler(StoreUnavailableError, _unavailable)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _fault)


def _refused(refusal: RefusedError) -> Response:
    return error(refusal.status, refusal.code, str(refusal))


def _bad_parameter(bad: FieldError) -> Response:
    return error(400, "invalid_parameter", f"{bad}.")


_AGAIN = "Braze retries a webhook automatically; SessionM must send a message again."


def _full(full: QueueFullError) -> Response:
    log.warning("queue full: %s", full, extra={"action": "queue_full"})
    return error(
        503,
        "queue_full",
        f"The backlog is full; nothing was stored. {_AGAIN}",
        **{"Retry-After": str(FULL_RETRY_AFTER)},
    )


def _unavailable(_unavailable: StoreUnavailableError) -> Response:
    return error(
        503,
        "store_unavailable",
        f"The bridge cannot reach its database; nothing was stored. {_AGAIN}",
        **{"Retry-After": str(STORE_RETRY_AFTER)},
    )


def _http(exception: HTTPException) -> Response:
    status = exception.code or 500
    name = exception.name.lower().replace(" ", "_")
    allowed = sorted(getattr(exception, "valid_methods", None) or ())
    message = _MESSAGES.get(status, exception.description or exception.name)
    if allowed:
        message = f"{request.method} is not allowed for this path: use {' or '.join(allowed)}."
    response = error(status, name, message)
    if allowed:
        response.headers["Allow"] = ", ".join(allowed)
    return response


*_OTHERS, _LAST = (f"/connected-content/{lookup}" for lookup in LOOKUPS)
_MESSAGES = {
    404: "There is nothing at this path. Webhooks go to /webhooks/braze, Connected Content to "
    f"{', '.join(_OTHERS)} or {_LAST}.",
}


def _fault(exception: Exception) -> Response:
    log.error("request failed", exc_info=exception, extra={"action": "fault"})
    return error(500, "internal_error", "A fault of the bridge: see its log for this request id.")
