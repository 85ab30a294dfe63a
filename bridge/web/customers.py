"""One customer: what lookups show, what waits, and what became of the events."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, g, jsonify, request

from bridge import clock
from bridge.customer import (
    CUSTOMER_KINDS,
    DEMO_USER_ID,
    Customer,
    CustomerKind,
    read_identifier,
)
from bridge.fields import counted, instant, iso
from bridge.lookups.query import Query
from bridge.ops.telemetry import LOOKUP_OUTCOMES
from bridge.outbox.model import Direction, State, id_prefix
from bridge.outbox.search import NOBODY, Filter
from bridge.parts import Parts, parts_of
from bridge.web.advice import advice
from bridge.web.auth import scope
from bridge.web.operation import PAGE, Example, Operation
from bridge.web.pages import guard, name_campaigns, page
from bridge.web.shapes import CustomerErased, OneCustomer

# Programs and people, each with errors of their own: JSON and pages.
api = Blueprint("customer_api", __name__, url_prefix="/api/customers")
bp = Blueprint("customers", __name__)
guard(bp)

# Events that are shown, the newest.
MOST_EVENTS = 20
_EXAMPLE = Example({"customer_id": {"user_id": DEMO_USER_ID, "external_id": "loyal-1001"}})


@api.get("/user_id/<customer_id>", defaults={"kind": "user_id"})
@api.get("/external_id/<customer_id>", defaults={"kind": "external_id"})
@scope("viewer")
@Operation({200: (OneCustomer,)}, (400, 503), example=_EXAMPLE)
def show_customer(kind: CustomerKind, customer_id: str) -> Response:
    """Show a customer's lookups, waiting writes and last events.

    `findings` say in sentences why a message may lack something.
    """
    customer = read_identifier(kind, customer_id, "customer_id")
    found = about(parts_of(current_app), customer)
    return jsonify(status="ok", **{**found, "findings": [one.text for one in found["findings"]]})


@api.delete("/user_id/<customer_id>", defaults={"kind": "user_id"})
@api.delete("/external_id/<customer_id>", defaults={"kind": "external_id"})
@scope("admin")
@Operation({200: (CustomerErased,)}, (400, 503), example=_EXAMPLE)
def erase_customer(kind: CustomerKind, customer_id: str) -> Response:
    """Forget a customer everywhere: events, writes and cached lookups.

    The customer's other identifier is erased too if a lookup or an event has named it, unless
    other customers may have it too: see `shared`.
    """
    customer = read_identifier(kind, customer_id, "customer_id", in_quotes=True)
    erased = parts_of(current_app).erase(customer, g.key_name)
    names = [name.kind for name in erased.names]
    shared = [name.ids for name in erased.shared]
    return jsonify(status="ok", events=erased.events, identifiers=names, shared=shared)


@bp.route("/customers", methods=["GET", "POST"])
@scope("viewer")
@PAGE
def customers() -> Response:
    """Show one customer.

    A search uses POST, so that no identifier is in a URL.
    """
    customer = _chosen() if request.method == "POST" else None
    found = about(parts_of(current_app), customer) if customer else None
    if found:
        name_campaigns(found["events"])
    days = fallbacks(parts_of(current_app)) if found else []
    return page(
        "customer.html", customer=customer, found=found, kinds=CUSTOMER_KINDS, fallbacks=days
    )


@bp.post("/customers/erase")
@scope("admin")
def erase() -> Response:
    """Ask whether it is meant; with ``sure``, erase the customer."""
    customer = _chosen()
    erased = None
    if "sure" in request.form:
        erased = parts_of(current_app).erase(customer, g.key_name)
    return page("erase.html", customer=customer, erased=erased)


def _chosen() -> Customer:
    form = request.form
    return read_identifier(form.get("kind", "user_id"), form.get("id"), "The customer's ID")


def about(parts: Parts, customer: Customer) -> dict[str, Any]:
    """Return what is known about *customer*: as JSON, except `findings` (`CustomerFinding`).

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    # The same text may be another customer's identifier of another kind.
    wanted = Filter(customer=customer.id, kind=customer.kind)
    theirs = parts.events.find(wanted, MOST_EVENTS).events
    waiting = parts.store.queue_of(customer.key)
    # In the order in which messages get them.
    answer = parts.lookups.customer(Query(customer), time.monotonic())
    lookup = json.loads(answer.body)
    other = customer.of_other_kind
    known_as = other.kind if lookup["status"] == "not_found" and _is_known(parts, other) else None
    found = [
        *about_lookup(lookup, known_as),
        *_about_events(parts, theirs),
        *_missed(parts, theirs[0] if theirs else None),
        *about_queue(len(waiting), lookup["status"], parts.chronicle.delivery_reasons()),
    ]
    return {
        "customer": customer.ids,
        "findings": found or [CustomerFinding(_ALL_WELL)],
        "lookup": lookup,
        "pending": [
            {
                "tags": list(write.tags),
                "ttl": write.ttl,
                "accepted_at": iso(write.accepted_at),
                "attempts": write.attempts,
                "event_id": write.event_id,
            }
            for write in waiting
        ],
        "events": theirs,
    }


@bp.app_template_filter()
def alike(offers: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """Return one of each group of equal-looking offers, with the size of the group."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for offer in offers:
        shown = (offer.get(name) for name in ("title", "name", "days_left"))
        found.setdefault(tuple(shown), []).append(offer)
    return [(same[0], len(same)) for same in found.values()]


def _is_known(parts: Parts, customer: Customer) -> bool:
    answer = parts.lookups.tags(Query(customer), time.monotonic())
    return bool(json.loads(answer.body)["status"] == "ok")


class CustomerFinding(NamedTuple):
    """A sentence about why a message may lack something, and where to read more: *link*."""

    text: str
    link: str = ""
    label: str = ""


_ALL_WELL = "Nothing is wrong: the events were delivered, and lookups are answered."


def about_lookup(
    lookup: Mapping[str, Any], known_as: CustomerKind | None
) -> Iterator[CustomerFinding]:
    """Yield what is wrong with what messages get. Pure.

    Args:
        lookup: the answer of ``/connected-content/customer``.
        known_as: the other kind of identifier, if SessionM knows the ID as one.
    """
    if known_as:
        named = "a user ID" if known_as == "user_id" else "an external ID"
        yield CustomerFinding(f"SessionM knows this ID as {named}: choose that ID type.")
    elif lookup["status"] == "not_found":
        yield CustomerFinding("SessionM does not know this customer: lookups are empty.")
    elif lookup["status"] == "unavailable":
        yield CustomerFinding(f"Lookups are empty now. {lookup['reason']}")
    elif lookup["parts"]["offers"] == "ok" and not lookup["offers"]:
        yield CustomerFinding("SessionM has no current offer for this customer.")


def _about_events(parts: Parts, theirs: Sequence[Mapping[str, Any]]) -> Iterator[CustomerFinding]:
    """Yield what became of the customer's events, which are the newest first."""
    if not theirs:
        yield CustomerFinding(
            "No send that the bridge could read has named this customer for as long as events are "
            "kept: Braze did not call, or with another ID."
        )
    for state, words in _STATES.items():
        of_state = [event for event in theirs if event["state"] == state]
        if not of_state:
            continue
        newest = of_state[0]
        are, was = ("is", "was") if len(of_state) == 1 else ("are", "were")
        number = f"{len(of_state)} of this customer's last {counted(len(theirs), 'event')}"
        reason = f" The newest: {newest['reason'].rstrip('.')}." if newest["reason"] else ""
        details = (parts.events.details(newest["id"]) or {}) if state == State.DEAD else {}
        # A counter comes first: its tags are the webhook's own, which a marketer can correct.
        ordered = sorted(details.get("writes", ()), key=lambda write: write["ttl"] is not None)
        do = next(filter(None, (advice(details, write) for write in ordered)), "")
        yield CustomerFinding(
            f"{number} {words.format(are=are, was=was)}.{reason} {do}".rstrip(),
            f"/events/{newest['id']}",
            "Open the newest",
        )


_STATES = {
    State.DEAD: "{are} dead",
    State.REJECTED: "{was} rejected",
    State.EXPIRED: "{was} too late and not sent",
    State.DISCARDED: "{was} discarded by a person",
}


def _missed(parts: Parts, newest: Mapping[str, Any] | None) -> Iterator[CustomerFinding]:
    """Yield findings about sends since *newest* without a readable customer or a right key."""
    after, since = (newest["id"], newest["received_at"]) if newest else ("", "")
    wanted = Filter(
        State.REJECTED, NOBODY, since=instant(since) or 0.0, direction=Direction.TO_SESSIONM
    )
    unread = parts.events.find(wanted, MOST_EVENTS)
    number = sum(event["id"] > after for event in unread.events)
    if number or unread.next:
        filters = {"state": wanted.state, "customer": NOBODY, "direction": wanted.direction}
        yield CustomerFinding(
            f"{counted(number, 'rejected send')}{' or more' * bool(unread.next)} "
            f"{'names' if number == 1 else 'name'} no customer that can be read: one may be for "
            "this customer.",
            f"/events?{urlencode({**filters, **({'since': since} if since else {})})}",
            "Show them",
        )
    minutes = parts.telemetry.minutes(clock.now() - _DAY)
    number = sum(one.count("webhooks_not_let_in") for one in minutes)
    last = parts.telemetry.last_error("webhooks")
    if number and last and id_prefix(last.at) > after:
        yield CustomerFinding(
            f"{counted(number, 'send')} of the last 24 hours had a wrong key, or none. Nothing of "
            "them is kept: one may be for this customer. The last one, at "
            f"{iso(last.at)}: {last.text}",
            "/setup#webhook",
            "Set the key",
        )


# Seconds.
_DAY = 86400


def about_queue(waiting: int, status: str, held: Sequence[str]) -> Iterator[CustomerFinding]:
    """Yield why writes wait. Pure.

    Args:
        waiting: the number of writes that wait.
        status: of the customer's lookup.
        held: sentences about what holds delivery up.
    """
    if waiting:
        delayed = " ".join(held) or "It goes out with the next delivery."
        if status == "not_found":
            delayed = "SessionM must know the customer first; the bridge keeps trying."
        yield CustomerFinding(
            f"{waiting} {'write waits' if waiting == 1 else 'writes wait'}. {delayed}"
        )


def fallbacks(parts: Parts) -> list[dict[str, int]]:
    """Return numbers of lookups for the last 24 hours and for the 24 hours before.

    Each has ``all``, ``unavailable`` and ``unknown``.
    """
    now = clock.now()
    quarters = parts.telemetry.quarters(now - 2 * _DAY)
    days = [
        [one for one in quarters if now - (day + 1) * _DAY <= one.at < now - day * _DAY]
        for day in (0, 1)
    ]
    names = {"all": LOOKUP_OUTCOMES, "unavailable": ("unavailable",), "unknown": ("not_found",)}
    return [
        {
            name: sum(one.count(f"lookups_{outcome}") for one in day for outcome in outcomes)
            for name, outcomes in names.items()
        }
        for day in days
    ]
