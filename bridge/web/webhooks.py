"""`POST /webhooks/braze`: a webhook is stored, then answered."""

import threading
import time

from flask import Blueprint, Response, current_app, g, jsonify, request
from pydantic_core import to_json

from bridge.customer import Customer
from bridge.fields import FieldError
from bridge.outbox.accept import Arrival, Receipt
from bridge.outbox.schema import State
from bridge.parts import Parts, parts_of
from bridge.web.auth import scope
from bridge.web.body import read_body

bp = Blueprint("webhooks", __name__)

PATH = "/webhooks/braze"
LONGEST_WAIT = 60
PEEK = 0.05
# Under this name the environment tells whose webhook was taken in: the name of the key.
TAKEN = "bridge.taken"
# More than so many at once would leave too few threads for everything else.
_waiters = threading.BoundedSemaphore(16)


@bp.post(PATH)
@scope("webhook")
def braze() -> Response:
    parts = parts_of(current_app)
    wait = _wait()
    g.waited = wait > 0
    receipt = parts.acceptor.accept(arrival())
    request.environ[TAKEN] = g.key_name
    if wait and not receipt.duplicate and _waited(parts, receipt, wait):
        tags = parts.lookups.last_tags(receipt.customer)
        return jsonify(status="delivered", id=receipt.id, tags=tags)
    body, status = told(receipt)
    return Response(body, status, mimetype="application/json")


def told(receipt: Receipt) -> tuple[bytes, int]:
    """The body and the status of the answer to a webhook that nobody waits for."""
    if receipt.duplicate:
        return to_json({"status": "duplicate", "id": receipt.id}), 200
    accepted = {
        "status": "accepted",
        "id": receipt.id,
        "customer": receipt.customer.ids,
        "writes": [{"tags": write.tags, "ttl": write.ttl} for write in receipt.writes],
        "warnings": receipt.warnings,
        "test": receipt.test,
    }
    return to_json(accepted), 202


def arrival(path_customer: Customer | None = None) -> Arrival:
    """The current request as the outbox takes it."""
    return Arrival(
        body=read_body(),
        content_type=request.headers.get("Content-Type", ""),
        idempotency_key=request.headers.get("Idempotency-Key"),
        key_name=g.key_name,
        request_id=g.request_id,
        path_customer=path_customer,
    )


def _wait() -> int:
    """Seconds to wait for delivery, by ``?wait=N`` or ``Prefer: wait=N`` (RFC 7240)."""
    preferred = [
        value.strip()
        for name, _, value in (part.partition("=") for part in _preferences())
        if name.strip().lower() == "wait" and value.strip().isdecimal()
    ]
    asked = request.args.get("wait", preferred[0] if preferred else "0")
    if not (asked.isascii() and asked.isdecimal()):
        raise FieldError("wait", "must be a whole number of seconds")
    return min(LONGEST_WAIT, int(asked[:4]))


def _preferences() -> list[str]:
    return request.headers.get("Prefer", "").replace(";", ",").split(",")


def _waited(parts: Parts, receipt: Receipt, seconds: int) -> bool:
    if not _waiters.acquire(blocking=False):
        return False
    try:
        return _delivered(parts, receipt, seconds)
    finally:
        _waiters.release()


def _delivered(parts: Parts, receipt: Receipt, seconds: int) -> bool:
    until = time.monotonic() + seconds
    while (state := parts.store.state_of(receipt.id)) is State.QUEUED:
        if time.monotonic() >= until or parts.delivery.is_ending:
            return False
        time.sleep(PEEK)
    return state is State.DELIVERED
