"""Events, for people: search, one event's whole story, and what can be ordered."""

from collections.abc import Mapping
from dataclasses import replace
from time import time
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, redirect, request
from werkzeug.exceptions import NotFound

from bridge.fields import FieldError, iso
from bridge.outbox.events import REPLAYABLE, Page
from bridge.outbox.operator import Done
from bridge.outbox.schema import State
from bridge.outbox.search import Filter, read_filter
from bridge.parts import parts_of
from bridge.web.auth import scope
from bridge.web.pages import guard, page

bp = Blueprint("events", __name__)
guard(bp)

_FILTERS = tuple(Filter.__dataclass_fields__)
# By how much they need a person.
_STATES = (
    State.DEAD,
    State.REJECTED,
    State.QUEUED,
    State.DELIVERED,
    State.EXPIRED,
    State.DISCARDED,
)
_DISCARDABLE = (State.DEAD, State.REJECTED, State.QUEUED)


@bp.route("/events", methods=["GET", "POST"])
@scope("admin")
def search() -> Response:
    """The events that a search finds; a search for a customer comes by POST, never in a URL."""
    given = _given()
    if request.method == "POST" and "customer" not in given and "before" not in request.form:
        return _see_other(f"/events?{urlencode(given)}" if given else "/events")
    before = request.values.get("before", "")[:32]
    problem, found = "", Page([], "")
    try:
        wanted = read_filter(given, time())
        found = parts_of(current_app).events.find(wanted, before=before)
    except FieldError as bad:
        problem, wanted = f"{bad}.", Filter()
    return page(
        "events.html",
        400 if problem else 200,
        given=given,
        wanted=wanted,
        events=found.events,
        next=found.next,
        before=before,
        problem=problem,
        states=_STATES,
        orders=_orders(wanted),
        rules=parts_of(current_app).rules,
        tries=parts_of(current_app).settings.bridge_max_attempts,
        query=urlencode({**given, "before": found.next}),
    )


@bp.get("/events/<event_id>")
@scope("admin")
def show(event_id: str) -> Response:
    parts = parts_of(current_app)
    story = parts.events.story(event_id)
    if story is None:
        raise NotFound
    return page(
        "event.html",
        event=story,
        rules=parts.rules,
        can_replay=story["state"] in REPLAYABLE,
        can_discard=story["state"] in _DISCARDABLE,
        told=_TOLD.get(request.args.get("told", ""), ""),
    )


_TOLD = {
    "replayed": "Replayed: it goes out with the next delivery.",
    "discarded": "Discarded: it will not be delivered unless it is replayed.",
    "unchanged": "Nothing was changed.",
}


@bp.route("/events/<event_id>/replay", methods=["GET", "POST"], defaults={"order": "replay"})
@bp.route("/events/<event_id>/discard", methods=["GET", "POST"], defaults={"order": "discard"})
@scope("admin")
def order_one(event_id: str, order: str) -> Response:
    """Ask whether it is meant; when it comes back by POST, do it."""
    parts = parts_of(current_app)
    story = parts.events.story(event_id)
    if story is None:
        raise NotFound
    if request.method == "GET":
        return page("order_one.html", event=story, order=order)
    operator = parts.operator
    done = operator.replay_one(event_id) if order == "replay" else operator.discard_one(event_id)
    if done is None:
        raise NotFound
    if not done.changed:
        return page("order_one.html", 409, event=story, order=order, refused=done.refused)
    told = "replayed" if order == "replay" else "discarded"
    return _see_other(f"/events/{event_id}?told={told}")


@bp.post("/events/replay-all", defaults={"order": "replay"})
@bp.post("/events/discard-all", defaults={"order": "discard"})
@scope("admin")
def order_all(order: str) -> Response:
    """Count what an order by filter would do; with ``sure``, do it."""
    given = _given()
    wanted = read_filter(given, time())
    if wanted.since:
        # What was counted is done, however long the question stood there.
        given["since"] = iso(wanted.since)
    sure = "sure" in request.form
    return page(
        "order_all.html",
        order=order,
        given=given,
        state=wanted.state or State.DEAD,
        done=_carry_out(order, wanted, dry_run=not sure),
        sure=sure,
        query=urlencode({name: value for name, value in given.items() if name != "customer"}),
    )


def _carry_out(order: str, wanted: Filter, *, dry_run: bool) -> Done:
    operator = parts_of(current_app).operator
    wanted = replace(wanted, state=wanted.state or State.DEAD)
    chosen = operator.replay if order == "replay" else operator.discard
    return chosen(wanted, dry_run=dry_run)


def _given() -> dict[str, str]:
    """The filters of this request that say something."""
    values: Mapping[str, Any] = request.form if request.method == "POST" else request.args
    return {name: values[name].strip() for name in _FILTERS if values.get(name, "").strip()}


def _orders(wanted: Filter) -> list[str]:
    """What can be ordered for all that *wanted* matches."""
    state = wanted.state
    return [
        order
        for order, states in (("replay", REPLAYABLE), ("discard", _DISCARDABLE))
        if state in states
    ]


def _see_other(place: str) -> Response:
    answer = redirect(place, 303)
    assert isinstance(answer, Response)  # noqa: S101 - the type that Flask is set up with
    return answer
