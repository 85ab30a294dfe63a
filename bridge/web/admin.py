"""The admin API for events, delivery and the cache."""

from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request

from bridge import clock
from bridge.customer import CUSTOMER_KINDS, DEMO_USER_ID, named_customers
from bridge.fields import FieldError, shown, whole_number
from bridge.intake.payload import FIELDS, read_fields
from bridge.ops.operator import Done
from bridge.outbox.events import MOST_A_PAGE, PAGE, REPLAYABLE
from bridge.outbox.search import FILTERS, read_filter
from bridge.parts import parts_of
from bridge.web.auth import record_change, scope
from bridge.web.body import read_body, url_fields
from bridge.web.errors import error
from bridge.web.operation import BODY_ERRORS, Example, Operation
from bridge.web.shapes import (
    AllReplayed,
    DeliveryState,
    Discarded,
    EventList,
    Ok,
    OneEvent,
    Replayed,
)

bp = Blueprint("admin", __name__, url_prefix="/api")

# The query parameters of a paged list -> JSON schema.
PAGING: dict[str, dict[str, Any]] = {
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_A_PAGE,
        "default": PAGE,
        "description": "Number of entries on a page.",
    },
    "before": {"type": "string", "description": "`next` of the previous page."},
}
_EVENT = Example({"event_id": "019f3b1c2a4d0c6e8f9a1b2c3d4e5f60"})


@bp.get("/events")
@scope("viewer")
@Operation(
    {200: (EventList,)},
    (400, 503),
    query={**FILTERS, **PAGING},
    example=Example(query={"state": "delivered", "campaign": "summer-sale", "limit": "1"}),
)
def list_events() -> Response:
    """List events, newest first.

    An event is an accepted or rejected webhook, with its writes to SessionM.
    """
    given = url_fields()
    limit, before = read_limit(given.pop("limit", None)), given.pop("before", "")
    found = parts_of(current_app).events.find(read_filter(given, clock.now()), limit, before)
    return jsonify(status="ok", events=found.events, next=found.next)


@bp.get("/events/<event_id>")
@scope("viewer")
@Operation({200: (OneEvent,)}, (404, 503), example=_EVENT)
def show_event(event_id: str) -> Response:
    """Show one event with its body, its writes and every call to SessionM."""
    event = parts_of(current_app).events.details(event_id)
    return _unknown(event_id) if event is None else jsonify(status="ok", event=event)


@bp.post("/events/<event_id>/replay")
@scope("admin")
@Operation({200: (Replayed,)}, (404, 409, 503), example=_EVENT)
def replay_event(event_id: str) -> Response:
    """Send a dead, rejected or discarded event again.

    A rejected event is read again with the present rules.
    """
    done = parts_of(current_app).operator.replay_one(event_id, g.key_name)
    return _changed(event_id, done, "replayed")


@bp.delete("/events/<event_id>")
@scope("admin")
@Operation({200: (Discarded,)}, (404, 409, 503), example=_EVENT)
def discard_event(event_id: str) -> Response:
    """Discard an event.

    Its writes are not sent. The event stays in the list, and can be replayed.
    """
    done = parts_of(current_app).operator.discard_one(event_id, g.key_name)
    return _changed(event_id, done, "discarded")


@bp.post("/events/replay")
@scope("admin")
@Operation(
    {200: (AllReplayed,)},
    (*BODY_ERRORS, 422, 503),
    body={
        **FILTERS,
        "state": {
            "enum": [*REPLAYABLE, "", None],
            "description": "`dead` by default.",
        },
        "dry_run": {"type": "boolean", "default": False, "description": "Only count."},
    },
    body_needed=False,
    example=Example(json={"campaign": "summer-sale", "since": "2h", "dry_run": True}),
)
def replay_events() -> Response:
    """Send all events again that match a filter.

    Without a body: all dead events.
    """
    if request.args:
        # Without a body, this replays all dead events: a filter at the wrong place must not.
        raise FieldError(next(iter(request.args)), "belongs into the JSON body, not into the URL")
    given = _body()
    dry_run = _flag(given, "dry_run")
    wanted = read_filter(given, clock.now())
    done = parts_of(current_app).operator.replay(wanted, by=g.key_name, dry_run=dry_run)
    return jsonify(
        status="ok",
        matched=done.matched,
        replayed=done.changed,
        dry_run=dry_run,
        refused=done.refused[:10],
    )


@bp.post("/delivery/pause")
@scope("admin")
@Operation({200: (DeliveryState,)}, (503,))
def pause() -> Response:
    """Pause delivery.

    Webhooks are accepted and queued until delivery is resumed, also after a restart. `pausing`:
    the deliverer has not stopped yet, and may still send writes.
    """
    has_stopped = parts_of(current_app).operator.pause(g.key_name)
    return jsonify(status="ok", state="paused" if has_stopped else "pausing")


@bp.post("/delivery/resume")
@scope("admin")
@Operation({200: (DeliveryState,)}, (503,))
def resume() -> Response:
    """Resume delivery at once, also if SessionM asked the bridge to wait."""
    parts_of(current_app).operator.resume(g.key_name)
    return jsonify(status="ok", state="running")


@bp.delete("/cache")
@scope("admin")
@Operation(
    {200: (Ok,)},
    (400, 503),
    query={name: FIELDS[name] for name in CUSTOMER_KINDS},
    example=Example(query={"user_id": DEMO_USER_ID}),
)
def forget_lookups() -> Response:
    """Drop a customer's cached lookups, in every worker."""
    given = url_fields()
    if unknown := given.keys() - {*CUSTOMER_KINDS}:
        raise FieldError(f'"{shown(min(unknown))}"', "is not a parameter here")
    customers = named_customers(given)
    if not customers:
        raise FieldError("user_id", "is missing or blank: name a customer (user_id or external_id)")
    for customer in customers:
        parts_of(current_app).lookups.forget(customer)
    record_change("lookups_dropped", customer=customers[0].key)
    return jsonify(status="ok")


def _body() -> dict[str, Any]:
    body = read_body()
    return read_fields(body, "application/json") if body else {}


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.pop(name, False)
    if not isinstance(value, bool):
        raise FieldError(name, "must be true or false")
    return value


def read_limit(value: str | None, default: int = PAGE) -> int:
    """Read the parameter ``limit``: the most entries of a page.

    Raises:
        FieldError: it is not a whole number, or over `MOST_A_PAGE`.
    """
    return whole_number(value, "limit", MOST_A_PAGE) or default


def _changed(event_id: str, done: Done | None, word: str) -> Response:
    if done is None:
        return _unknown(event_id)
    if not done.changed:
        return error(409, f"not_{word}", f"The event was not {word}: {'; '.join(done.refused)}.")
    return jsonify(status="ok", matched=done.matched, **{word: done.changed})


def _unknown(event_id: str) -> Response:
    return error(404, "no_such_event", f"There is no event {event_id[:64]}.")
