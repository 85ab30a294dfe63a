"""Customers to try a message on: those of recent sends, and the sandbox's in a demo."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from bridge.customer import CUSTOMER_KINDS, Customer
from bridge.network.proxy import LOOPBACK_DIRECT
from bridge.outbox.search import Filter
from bridge.parts import Parts
from bridge.storage.database import StoreUnavailableError

log = logging.getLogger(__name__)

MOST = 6
# Events that are looked at: several may be of one customer.
LOOKED_AT = 60
# Seconds; the sandbox runs on this machine.
PATIENCE = 1.0
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True)
class Candidate:
    """A customer to try a message on.

    Attributes:
        about: which one it is.
        is_known: whether SessionM has taken tags for this customer.
    """

    customer: Customer
    about: str
    is_known: bool


def candidates(parts: Parts) -> list[Candidate]:
    """Return up to `MOST` customers: those of the newest sends first."""
    known = {one.customer: one for one in _of_sandbox(parts)}
    found: dict[Customer, Candidate] = {}
    for one in _of_events(parts):
        if one.is_known or one.customer not in found:
            found[one.customer] = one
    return [known.get(customer, one) for customer, one in (found | known).items()][:MOST]


def _of_events(parts: Parts) -> Iterator[Candidate]:
    try:
        page = parts.events.find(Filter(), LOOKED_AT)
    except StoreUnavailableError as error:
        log.warning("no recent customers: %s", error, extra={"action": "candidates_unreadable"})
        return
    for event in page.events:
        if event["state"] == "rejected":
            continue
        for kind in CUSTOMER_KINDS:
            # The customer of a message may be unknown to SessionM.
            if customer_id := event["customer"].get(kind):
                is_known = event["state"] == "delivered" and event["direction"] == "to_sessionm"
                yield Candidate(Customer(kind, customer_id), "in a recent send", is_known)


def _of_sandbox(parts: Parts) -> Iterator[Candidate]:
    """The sandbox's customers; none if SessionM is not the sandbox of this machine."""
    core = parts.settings.sessionm_core_url
    if urlsplit(core).hostname not in _LOOPBACK:
        return
    try:
        url = f"{core}/sandbox/customers"
        answer = requests.get(url, timeout=PATIENCE, proxies=LOOPBACK_DIRECT)
        listed = answer.json()["customers"] if answer.ok else []
    except (requests.RequestException, ValueError, LookupError) as error:
        log.info("no sandbox: %s", type(error).__name__, extra={"action": "no_sandbox"})
        return
    for one in listed[:MOST]:
        about = f"{one['available_points']:,} points"
        yield Candidate(Customer("user_id", one["user_id"]), about, is_known=True)
