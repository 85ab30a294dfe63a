"""Pages of events: search, one event in full, replay and discard."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, g, request
from werkzeug.exceptions import NotFound

from bridge import clock
from bridge.fields import FieldError, iso, ttl
from bridge.intake.payload import RefusedError, read_fields
from bridge.outbox.events import DISCARDABLE, REPLAYABLE, SHOWN_TEXTS, Page
from bridge.outbox.model import State
from bridge.outbox.search import FILTERS, Filter, read_filter
from bridge.parts import parts_of
from bridge.storage.database import StoreUnavailableError
from bridge.web.advice import advice
from bridge.web.auth import scope
from bridge.web.operation import PAGE
from bridge.web.pages import guard, name_campaigns, page, see_other
from bridge.web.preview import pretty

bp = Blueprint("events", __name__)
guard(bp)

# Campaigns and Canvases among which a search offers a choice.
MOST_NAMED = 20
# In the order of the page: the most urgent first.
_STATES = (
    State.DEAD,
    State.REJECTED,
    State.QUEUED,
    State.DELIVERED,
    State.EXPIRED,
    State.DISCARDED,
)


@bp.route("/events", methods=["GET", "POST"])
@scope("viewer")
@PAGE
def search() -> Response:
    """Show the events that match the filters.

    A search for a customer uses POST, so that its identifier is not in a URL.
    """
    given = _given()
    if request.method == "POST" and "customer" not in given and "before" not in request.form:
        return see_other(f"/events?{urlencode(given)}" if given else "/events")
    before = request.values.get("before", "")[:32]
    problem, found, named = None, Page([], ""), {}
    try:
        chosen = read_filter(given, clock.now())
        events = parts_of(current_app).events
        found = events.find(chosen, before=before)
        if chosen.campaign and not found.events and not found.next:
            named = _named(chosen.campaign)
            if len(named) == 1 and chosen.campaign not in named:
                [given["campaign"]] = named
                chosen = read_filter(given, clock.now())
                found = events.find(chosen, before=before)
    except FieldError as error:
        problem, chosen = error, Filter()
    name_campaigns(found.events)
    return page(
        "events.html",
        400 if problem else 200,
        given=given,
        events=found.events,
        named=named,
        next=found.next,
        before=before,
        problem=problem,
        unstored="" if given or found.events else _unstored(),
        states=_STATES,
        orders=_orders(chosen),
        rules=parts_of(current_app).rules,
        tries=parts_of(current_app).settings.bridge_max_attempts,
        query=urlencode({**given, "before": found.next}),
        filters=urlencode(given),
    )


def _unstored() -> str:
    """Return why no event can be stored; "" if events can be stored."""
    try:
        parts_of(current_app).probe.check()
    except StoreUnavailableError as error:
        return str(error)
    return ""


def _named(words: str) -> dict[str, str]:
    """Return campaigns and Canvases whose name or ID contains *words*, as ``{ID: name}``."""
    parts = parts_of(current_app)
    found = {one.id: one.name for one in parts.events.campaigns(MOST_NAMED, words)}
    for braze_id in (*parts.rules.canvases, *parts.rules.campaigns):
        name = parts.rules.name_of(braze_id)
        if name and (braze_id in found or words.casefold() in name.casefold()):
            found[braze_id] = name
    return found


@bp.get("/events/<event_id>")
@scope("viewer")
def show(event_id: str) -> Response:
    parts = parts_of(current_app)
    event = parts.events.details(event_id)
    if event is None:
        raise NotFound
    name_campaigns([event])
    return page(
        "event.html",
        event=event,
        indented=pretty(event["body"]),
        texts=SHOWN_TEXTS,
        rules=parts.rules,
        own_ttl=_own_ttl(event),
        advice=advice,
        can_replay=event["state"] in REPLAYABLE,
        can_discard=event["state"] in DISCARDABLE,
        notice=_NOTICES.get(request.args.get("notice", ""), ""),
    )


def _own_ttl(event: Mapping[str, Any]) -> int | None:
    """Return the `ttl` in the body of a webhook; ``None`` if it has none that can be read."""
    with suppress(RefusedError, FieldError):
        fields = read_fields(event["body"].encode(errors="replace"), event["content_type"])
        return ttl(fields.get("ttl"), "ttl")
    return None


_NOTICES = {
    "replayed": "Replayed: it is sent with the next delivery.",
    "discarded": "Discarded: it will not be delivered unless it is replayed.",
}


@bp.route("/events/<event_id>/replay", methods=["GET", "POST"], defaults={"order": "replay"})
@bp.route("/events/<event_id>/discard", methods=["GET", "POST"], defaults={"order": "discard"})
@scope("admin")
def order_one(event_id: str, order: str) -> Response:
    """Ask for confirmation (GET), then replay or discard one event (POST)."""
    parts = parts_of(current_app)
    event = parts.events.details(event_id)
    if event is None:
        raise NotFound
    if request.method == "GET":
        return page("order_one.html", event=event, order=order)
    operator = parts.operator
    carry_out = operator.replay_one if order == "replay" else operator.discard_one
    done = carry_out(event_id, g.key_name)
    if done is None:
        raise NotFound
    if not done.changed:
        return page("order_one.html", 409, event=event, order=order, refused=done.refused)
    notice = "replayed" if order == "replay" else "discarded"
    return see_other(f"/events/{event_id}?notice={notice}")


@bp.post("/events/replay-all", defaults={"order": "replay"})
@bp.post("/events/discard-all", defaults={"order": "discard"})
@scope("admin")
def order_all(order: str) -> Response:
    """Count the events that match the filters; with ``sure``, replay or discard them."""
    given = _given()
    chosen = read_filter(given, clock.now())
    if chosen.since:
        # An absolute time, so that the confirmation changes the counted events and no others.
        given["since"] = iso(chosen.since)
    sure = "sure" in request.form
    operator = parts_of(current_app).operator
    carry_out = operator.replay if order == "replay" else operator.discard
    return page(
        "order_all.html",
        order=order,
        given=given,
        state=chosen.state or State.DEAD,
        done=carry_out(chosen, by=g.key_name, dry_run=not sure),
        sure=sure,
        uncertain=0 if sure or order == "discard" else operator.count_uncertain(chosen),
        origin=request.form.get("origin", ""),
        query=urlencode({name: value for name, value in given.items() if name != "customer"}),
    )


def _given() -> dict[str, str]:
    """Return the filters of this request that are not blank."""
    values: Mapping[str, Any] = request.form if request.method == "POST" else request.args
    return {name: values[name].strip() for name in FILTERS if values.get(name, "").strip()}


def _orders(chosen: Filter) -> list[str]:
    """Return the actions that are possible for the events in the chosen state."""
    return [
        order
        for order, states in (("replay", REPLAYABLE), ("discard", DISCARDABLE))
        if chosen.state in states
    ]
