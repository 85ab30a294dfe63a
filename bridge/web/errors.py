"""Every error of every endpoint, as a JSON object in SessionM's own shape."""

import json
import logging

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from bridge.database import StoreUnavailableError
from bridge.fields import FieldError
from bridge.intake.payload import RefusedError
from bridge.outbox.accept import QueueFullError

log = logging.getLogger(__name__)

# When Braze shall come again after we could not store.
STORE_RETRY_AFTER = 10
FULL_RETRY_AFTER = 60


def error(status: int, code: str, message: str, **headers: str) -> Response:
    """An error answer: ``{"status":"error","errors":{"code","message"}}``."""
    response = Response(error_body(code, message), status, mimetype="application/json")
    response.headers.update(headers)
    return response


def error_body(code: str, message: str) -> bytes:
    """The body of an error answer."""
    told = {"status": "error", "errors": {"code": code, "message": message}}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def install(app: Flask) -> None:
    """Answer all of the application's errors this way."""
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


def _full(full: QueueFullError) -> Response:
    log.warning("queue full: %s", full, extra={"action": "queue_full"})
    return error(
        503,
        "queue_full",
        "Too much waits for SessionM; nothing was stored. Braze tries again by itself.",
        **{"Retry-After": str(FULL_RETRY_AFTER)},
    )


def _unavailable(_unavailable: StoreUnavailableError) -> Response:
    return error(
        503,
        "store_unavailable",
        "The bridge cannot reach its database; nothing was stored. Braze tries again by itself.",
        **{"Retry-After": str(STORE_RETRY_AFTER)},
    )


def _http(exception: HTTPException) -> Response:
    status = exception.code or 500
    name = exception.name.lower().replace(" ", "_")
    allowed = sorted(getattr(exception, "valid_methods", None) or ())
    message = _MESSAGES.get(status, exception.description or exception.name)
    if allowed:
        message = f"{request.method} is not for this path: choose {' or '.join(allowed)}."
    response = error(status, name, message)
    if allowed:
        response.headers["Allow"] = ", ".join(allowed)
    return response


_MESSAGES = {
    404: "There is nothing at this path. Webhooks go to /webhooks/braze, Connected Content to "
    "/connected-content/tags, /offers or /customer.",
}


def _fault(exception: Exception) -> Response:
    log.error("request failed", exc_info=exception, extra={"action": "fault"})
    return error(
        500, "internal_error", "A fault of the bridge; its log says more under the request id."
    )
