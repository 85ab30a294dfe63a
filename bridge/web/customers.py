"""One customer: what lookups show, what waits, and what became of the events."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request

from bridge.customer import (
    CUSTOMER_KINDS,
    DEMO_USER_ID,
    Customer,
    CustomerKind,
    read_identifier,
)
from bridge.fields import iso
from bridge.lookups.query import Query
from bridge.outbox.search import Filter
from bridge.parts import Parts, parts_of
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
    return jsonify(status="ok", **about(parts_of(current_app), customer))


@api.delete("/user_id/<customer_id>", defaults={"kind": "user_id"})
@api.delete("/external_id/<customer_id>", defaults={"kind": "external_id"})
@scope("admin")
@Operation({200: (CustomerErased,)}, (400, 503), example=_EXAMPLE)
def erase_customer(kind: CustomerKind, customer_id: str) -> Response:
    """Forget a customer everywhere: events, writes and cached lookups.

    The customer's other identifier is erased too if a lookup or an event has named it, unless
    other customers may have it too: see `shared`.
    """
    customer = read_identifier(kind, customer_id, "customer_id")
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
    return page("customer.html", customer=customer, found=found, kinds=CUSTOMER_KINDS)


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
    """Everything that is known of *customer*, as JSON.

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    events = parts.events.find(Filter(customer=customer.id), MOST_EVENTS).events
    # One of the two identifiers may be another customer's.
    theirs = [event for event in events if event["customer"] == customer.ids]
    waiting = parts.store.queue_of(customer.key)
    # In the order in which messages get them.
    answer = parts.lookups.customer(Query(customer), time.monotonic())
    lookup = json.loads(answer.body)
    other = customer.of_other_kind
    known_as = other.kind if lookup["status"] == "not_found" and _is_known(parts, other) else None
    held = parts.chronicle.delivery_reasons()
    return {
        "customer": customer.ids,
        "findings": findings(lookup, theirs, len(waiting), held, known_as),
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


def _is_known(parts: Parts, customer: Customer) -> bool:
    answer = parts.lookups.tags(Query(customer), time.monotonic())
    return bool(json.loads(answer.body)["status"] == "ok")


def findings(
    lookup: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    waiting: int,
    held: Sequence[str],
    known_as: CustomerKind | None = None,
) -> list[str]:
    """Say why a message to this customer may lack something. Pure.

    Args:
        lookup: the answer of ``/connected-content/customer``.
        events: the customer's events, newest first.
        waiting: the number of writes that wait.
        held: sentences about what holds delivery up.
        known_as: the other kind of identifier, if SessionM knows the ID as one.
    """
    said = []
    if known_as:
        named = "a user ID" if known_as == "user_id" else "an external ID"
        said.append(f"SessionM knows this ID as {named}: choose that ID type.")
    elif lookup["status"] == "not_found":
        said.append("SessionM does not know this customer: lookups are empty.")
    elif lookup["status"] == "unavailable":
        said.append(f"Lookups are empty now. {lookup['reason']}")
    elif not lookup["offers"]:
        said.append("SessionM has no current offer for this customer.")
    if not events:
        said.append(
            "No send has named this customer for as long as events are kept: Braze did not call, "
            "or with another ID."
        )
    for state, words in _STATES.items():
        of_state = [event for event in events if event["state"] == state]
        if of_state:
            reason = of_state[0]["reason"]
            number = len(of_state)
            said.append(
                f"{number} of this customer's last {len(events)} events {words}" + _because(reason)
            )
    if waiting:
        delayed = " ".join(held) or "It goes out with the next delivery."
        if lookup["status"] == "not_found":
            delayed = "SessionM must know the customer first; the bridge keeps trying."
        said.append(f"{waiting} {'write waits' if waiting == 1 else 'writes wait'}. {delayed}")
    return said or ["Nothing is wrong: the events were delivered, and lookups are answered."]


def _because(reason: str) -> str:
    return f". The newest: {reason.rstrip('.')}." if reason else "."


_STATES = {
    "dead": "are dead",
    "rejected": "were rejected",
    "expired": "expired before SessionM could be reached",
    "discarded": "were discarded by a person",
}
