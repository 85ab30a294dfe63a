"""Customers to try a message on: those of recent sends, and the sandbox's in a demo."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from bridge.customer import CUSTOMER_KINDS, Customer, CustomerKind
from bridge.network.proxy import is_loopback
from bridge.outbox.model import Direction, State
from bridge.outbox.search import Filter
from bridge.parts import Parts
from bridge.storage.database import StoreUnavailableError

log = logging.getLogger(__name__)

MOST = 6
# Newest events that are read: several may be of one customer.
LOOKED_AT = 60
# Seconds; the sandbox runs on this machine.
PATIENCE = 1.0


@dataclass(frozen=True)
class Candidate:
    """A customer to try a message on.

    Attributes:
        about: which one it is.
    """

    customer: Customer
    about: str


def candidates(parts: Parts, kind: CustomerKind) -> list[Candidate]:
    """Return up to `MOST` customers that SessionM knows: those of the newest sends first.

    Each is named by the identifier of *kind*, if that is known.
    """
    of_sandbox = {one.customer: one for one in _of_sandbox(parts)}
    found = dict.fromkeys([*_of_events(parts), *of_sandbox])
    names = parts.lookups.names(found)
    chosen: dict[str, Candidate] = {}
    for customer in found:
        named = next((name for name in names[customer] if name.kind == kind), customer)
        candidate = of_sandbox.get(named) or Candidate(named, "in a recent send")
        chosen.setdefault(named.id, candidate)
    return [*chosen.values()][:MOST]


def _of_events(parts: Parts) -> Iterator[Customer]:
    """Yield the customers whose tags SessionM has accepted: others may be mistyped."""
    delivered = Filter(state=State.DELIVERED, direction=Direction.TO_SESSIONM)
    try:
        page = parts.events.find(delivered, LOOKED_AT)
    except StoreUnavailableError as error:
        log.warning("no recent customers: %s", error, extra={"action": "candidates_unreadable"})
        return
    for event in page.events:
        for kind in CUSTOMER_KINDS:
            if customer_id := event["customer"].get(kind):
                yield Customer(kind, customer_id)


def _of_sandbox(parts: Parts) -> Iterator[Candidate]:
    """Yield the sandbox's customers; none if SessionM is not the sandbox of this machine."""
    core = parts.settings.sessionm_core_url
    if not is_loopback(urlsplit(core).hostname or ""):
        return
    try:
        url = f"{core}/sandbox/customers"
        answer = requests.get(url, timeout=PATIENCE, proxies={"http": "", "https": ""})
        listed = answer.json()["customers"] if answer.ok else []
    except (requests.RequestException, ValueError, LookupError) as error:
        log.info("no sandbox: %s", type(error).__name__, extra={"action": "no_sandbox"})
        return
    for one in listed[:MOST]:
        about = f"{one['available_points']:,} points"
        yield Candidate(Customer("user_id", one["user_id"]), about)
