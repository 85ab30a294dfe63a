"""Store webhooks and messages, and answer when they are stored or delivered."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

from flask import Blueprint, Flask, Response, current_app, g, request
from pydantic_core import to_json

from bridge.customer import DEMO_USER_ID, Customer, ids_of_key
from bridge.fields import FieldError
from bridge.intake.message import MessagePath
from bridge.intake.payload import FIELDS, RefusedError
from bridge.outbox.accept import Acceptance, ReceivedRequest, warnings_of
from bridge.outbox.model import State
from bridge.parts import Parts, parts_of
from bridge.storage.database import StoreUnavailableError
from bridge.web.auth import scope
from bridge.web.body import read_body
from bridge.web.operation import BODY_ERRORS, Example, Operation
from bridge.web.shapes import Accepted, Delivered, Duplicate
from bridge.web.threads import exchange_of

log = logging.getLogger(__name__)

bp = Blueprint("webhooks", __name__)

# Seconds: the longest wait for delivery that a sender can request.
LONGEST_WAIT = 60
# Seconds between two reads of the states of the events whose senders wait.
WAIT_POLL = 0.1
# Under plain WSGI a wait holds a thread, and a worker may have as few as two.
_waiting_threads = threading.BoundedSemaphore(1)

# The JSON schema of the query parameter `wait`.
WAIT = {
    "type": "integer",
    "minimum": 0,
    "description": f"Seconds to wait for delivery; more than {LONGEST_WAIT} count as "
    f"{LONGEST_WAIT}. `Prefer: wait=10` as a header does the same.",
}


@dataclass(frozen=True, slots=True)
class IntakePath:
    """A path whose requests are stored as events, on the event loop or in Flask.

    Attributes:
        path: the path of the URL.
        scope: the scope whose keys may call it.
        kind: as in `AnsweredRequest`.
        message: as in `ReceivedRequest`.
        accepted: makes body and status of the answer when the event is stored.
        delivered: makes the body of the answer when the event is delivered.
    """

    path: str
    scope: Literal["webhook", "trigger"]
    kind: str
    message: MessagePath | None
    accepted: Callable[[Acceptance], tuple[bytes, int]]
    delivered: Callable[[Parts, Acceptance], bytes]

    def delivered_answer(self, parts: Parts, acceptance: Acceptance) -> tuple[bytes, int]:
        """Return body and status for a delivered event, as accepted if the store cannot be read."""
        try:
            return self.delivered(parts, acceptance), 200
        except StoreUnavailableError as error:
            _log_unreadable(error)
            return self.accepted(acceptance)


def _accepted(acceptance: Acceptance) -> tuple[bytes, int]:
    event = acceptance.event
    if acceptance.earlier:
        return to_json({"status": "duplicate", "id": acceptance.id}), 200
    accepted = {
        "status": "accepted",
        "id": acceptance.id,
        "customer": ids_of_key(event.customer),
        "writes": [{"tags": write.tags, "ttl": write.ttl} for write in event.writes],
        "warnings": warnings_of(event),
        "test": event.test,
    }
    return to_json(accepted), 202


def _delivered(parts: Parts, acceptance: Acceptance) -> bytes:
    customer = Customer.of_sessionm(acceptance.event.customer)
    tags = parts.lookups.last_tags(customer) if customer else {}
    return to_json({"status": "delivered", "id": acceptance.id, "tags": tags})


WEBHOOK = IntakePath("/webhooks/braze", "webhook", "webhooks", None, _accepted, _delivered)


@bp.post(WEBHOOK.path)
@scope("webhook")
@Operation(
    {202: (Accepted,), 200: (Duplicate, Delivered)},
    (*BODY_ERRORS, 422, 503),
    query={"wait": WAIT},
    body=FIELDS,
    headers=("Idempotency-Key", "Prefer"),
    takes_form=True,
    example=Example(
        json={
            "braze_campaign_id": "summer-sale",
            "user_id": DEMO_USER_ID,
            "dispatch_id": "send-1",
        },
        status=202,
    ),
)
def braze() -> Response:
    """Turn a Braze webhook into SessionM tags.

    The event is on disk before it is acknowledged, and the bridge retries until SessionM has
    confirmed it. At least one of `braze_campaign_id`, `braze_canvas_id` and `tags` is needed, and
    one of `user_id` and `external_id`. A webhook with the same `dispatch_id` (or
    `Idempotency-Key` header), customer, IDs and tags as an earlier one is a duplicate. A rejected
    webhook is kept with the reason and can be replayed.
    """
    return accept_request(WEBHOOK)


def accept_request(path: IntakePath) -> Response:
    """Store the current request in Flask, and answer it as `Asgi` does.

    Raises:
        FieldError, RefusedError: the request is refused; it is kept as rejected.
        QueueFullError, StoreUnavailableError: nothing is stored.
    """
    if failure := exchange_of(request.environ).failure:
        raise failure
    parts = parts_of(current_app)
    received = received_request(message=path.message)
    try:
        wait = read_wait(request.query_string.decode("latin-1"), request.headers.get("Prefer", ""))
    except FieldError as error:
        parts.acceptor.keep_rejected(received, RefusedError(400, "invalid_parameter", f"{error}."))
        raise
    g.waited = wait > 0
    acceptance = parts.acceptor.accept(received)
    if wait and not acceptance.earlier and _is_delivered(parts, acceptance, wait):
        body, status = path.delivered_answer(parts, acceptance)
    else:
        body, status = path.accepted(acceptance)
    return Response(body, status, mimetype="application/json")


def received_request(
    path_customer: Customer | None = None, message: MessagePath | None = None
) -> ReceivedRequest:
    """Return the current request in the form that the acceptor stores."""
    return ReceivedRequest(
        body=read_body(),
        content_type=request.headers.get("Content-Type", ""),
        idempotency_key=request.headers.get("Idempotency-Key"),
        key_name=g.key_name,
        request_id=g.request_id,
        path_customer=path_customer,
        message=message,
    )


def read_wait(query: str, prefer: str) -> int:
    """Return the seconds to wait for delivery.

    Args:
        query: the query of the URL, which may have ``wait=N``.
        prefer: the header Prefer, which may have ``wait=N`` (RFC 7240).

    Raises:
        FieldError: the wait in the query is not a number.
    """
    if not (query or prefer):
        return 0
    given = next((value for name, value in parse_qsl(query, True) if name == "wait"), None)
    if given is None:
        given = next(_preferred_waits(prefer), "0")
    elif not (given.isascii() and given.isdecimal()):
        raise FieldError("wait", "must be a whole number of seconds")
    return min(LONGEST_WAIT, int(given[:4]))


def _preferred_waits(prefer: str) -> Iterator[str]:
    for part in prefer.replace(";", ",").split(","):
        name, _, value = part.partition("=")
        seconds = value.strip()
        if name.strip().lower() == "wait" and seconds.isascii() and seconds.isdecimal():
            yield seconds


def _is_delivered(parts: Parts, acceptance: Acceptance, seconds: int) -> bool:
    """Wait for a delivery in this thread; return false at once if another thread waits."""
    if not _waiting_threads.acquire(blocking=False):
        return False
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not parts.delivery.is_stopping:
            state = _states_of(parts, [acceptance.id]).get(acceptance.id)
            if state not in {None, State.QUEUED}:
                return state is State.DELIVERED
            time.sleep(WAIT_POLL)
        return False
    finally:
        _waiting_threads.release()


class Deliveries:
    """Wait for deliveries on the event loop, with one query for all waiting events."""

    def __init__(self, app: Flask, threads: Executor) -> None:
        self._app = app
        self._threads = threads
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._polling: asyncio.Task[None] | None = None

    async def wait_for(self, event_id: str, seconds: float) -> bool:
        """Return whether the event is delivered within *seconds*."""
        outcome = asyncio.get_running_loop().create_future()
        self._waiting[event_id] = outcome
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())
        await asyncio.wait([outcome], timeout=seconds)
        self._waiting.pop(event_id, None)
        return outcome.done() and outcome.result()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await asyncio.sleep(WAIT_POLL)
                parts = parts_of(self._app)
                states = await loop.run_in_executor(
                    self._threads, _states_of, parts, list(self._waiting)
                )
                for event_id, outcome in list(self._waiting.items()):
                    state = states.get(event_id, State.QUEUED)
                    is_over = state is not State.QUEUED or parts.delivery.is_stopping
                    if is_over and not outcome.done():
                        outcome.set_result(state is State.DELIVERED)
        finally:
            self._polling = None


def _states_of(parts: Parts, event_ids: list[str]) -> dict[str, State]:
    """Return the states of events; {} if the store cannot be read.

    The events are stored, so their senders must get no error.
    """
    try:
        return parts.store.states_of(event_ids)
    except StoreUnavailableError as error:
        _log_unreadable(error)
        return {}


def _log_unreadable(error: StoreUnavailableError) -> None:
    log.log(error.level, "states not read: %s", error, extra={"action": "states_unreadable"})
