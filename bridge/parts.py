"""The parts of the service; `bridge.application` builds them."""

import atexit
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from bridge.braze.client import Braze
from bridge.braze.triggers import trigger_bodies
from bridge.breaker import Breaker
from bridge.bulk.driver import JobDriver
from bridge.bulk.store import BatchStore
from bridge.bulk.upload import Uploads
from bridge.customer import Customer
from bridge.intake.message import MessagePath, MessageRules, read_message
from bridge.intake.rules import Rules
from bridge.lookups.cache import Cache
from bridge.lookups.customer import Lookups
from bridge.ops.chronicle import Chronicle
from bridge.ops.operator import Operator
from bridge.ops.probe import LastKnown, Probe
from bridge.ops.telemetry import Telemetry
from bridge.ops.throttle import Throttle
from bridge.ops.watch import Watch
from bridge.outbox.accept import Acceptor
from bridge.outbox.delivery import Delivery
from bridge.outbox.events import Events
from bridge.outbox.extent import Extents
from bridge.outbox.store import Store
from bridge.sessionm.client import SessionM
from bridge.settings import Settings


@dataclass(frozen=True)
class Forgotten:
    """The number of erased events of a customer, and the customer's identifiers.

    Attributes:
        shared: further identifiers, which are not erased since other customers may have them too.
    """

    events: int
    names: tuple[Customer, ...]
    shared: tuple[Customer, ...]


@dataclass(frozen=True)
class Parts:
    """All parts of one application in one process."""

    settings: Settings
    rules: Rules
    store: Store
    probe: Probe
    events: Events
    acceptor: Acceptor
    operator: Operator
    batches: BatchStore
    uploads: Uploads
    jobs: JobDriver
    delivery: Delivery
    braze: Braze | None
    # The queue of messages to Braze, and the loop that sends them.
    messages: Store
    braze_delivery: Delivery | None
    sessionm: SessionM
    cache: Cache
    lookups: Lookups
    breakers: Mapping[str, Breaker]
    telemetry: Telemetry
    extents: Extents
    message_extents: Extents
    chronicle: Chronicle
    watch: Watch
    auth_failures: Throttle
    last_known: LastKnown = field(default_factory=LastKnown)
    is_closed: threading.Event = field(default_factory=threading.Event)

    def erase(self, customer: Customer, by: str = "") -> Forgotten:
        """Erase *customer* from events, batches and cached lookups.

        The rules:
        - An event is erased if its path or body names the customer, even beside an identifier that
          takes precedence. Tags, properties and parts of other identifiers name nobody.
        - A message to several recipients loses this one, and is erased with the last one. A
          broadcast loses only the customer's identifier.
        - An event that cannot be read, or that names nobody, is erased if the identifier stands in
          its body as a word of its own.
        - The customer's other identifiers are erased too: those that lookups have found, and the
          one that events name beside *customer*. If there are several, or if another identifier
          leads to further customers, it may be shared, such as a default value in a template, or
          was given to another customer: it is only reported, and erased when it is given itself.

        Raises:
            StoreUnavailableError: the erasure is incomplete; call this again.
        """
        _, *others = self.lookups.identifiers([customer])[customer]
        beside = self.operator.named_beside(customer)
        users = {one for one in {*others, *beside} if one.kind == "user_id"}
        if customer.kind == "external_id" and len(users) > 1:
            beside.update(others)
            others = []
        else:
            beside.difference_update(others)
            others += [one for one in beside if len(beside) == 1 and one.kind != customer.kind]
        shared = beside.difference(others)
        known = {customer, *others}
        for other in others:
            named = self.lookups.identifiers([other])[other]
            if not self.operator.named_beside(other).union(named) <= known:
                shared.add(other)
        names = [customer, *(one for one in others if one not in shared)]
        # The given one last: until then, another attempt finds the others by it.
        erased = sum(self.operator.erase(name, by) for name in reversed(names))
        for name in names:
            self.cache.erase(name)
        return Forgotten(erased, tuple(names), tuple(sorted(shared)))

    def calls_for(self, body: bytes) -> list[tuple[str, dict[str, Any]]]:
        """Return the paths and bodies of the calls to Braze for a message, without making them.

        Raises:
            RefusedError: the body is no valid message.
        """
        rules = MessageRules(self.settings.braze_external_id, self.rules.may_broadcast)
        message = read_message(body, "application/json", MessagePath.MESSAGE, rules)
        return trigger_bodies(message.sends, self.settings.braze_canvas_properties)

    def campaign_names(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the known names of campaigns and Canvases by ID: rules.toml's before Braze's.

        Raises:
            StoreUnavailableError: the store cannot be read.
        """
        known = set(ids) - {""}
        listed = {one: name for one in known if (name := self.rules.name_of(one))}
        return {**self.events.campaign_names(known), **listed}

    def start(self, *, deliver: bool) -> None:
        """Start to receive changes by other processes and, with *deliver*, the delivery loops."""
        self.cache.start()
        self.watch.start()
        if deliver:
            for delivery in self.deliveries:
                delivery.start()

    @property
    def deliveries(self) -> list[Delivery]:
        """The delivery loops of all configured directions."""
        return [self.delivery, *([self.braze_delivery] if self.braze_delivery else [])]

    def begin_shutdown(self) -> None:
        """Start no more calls. Returns at once, so that a signal handler may call it."""
        for delivery in self.deliveries:
            delivery.begin_shutdown()

    def close(self) -> None:
        """Wait for calls in flight, and close all parts. Further calls do nothing."""
        if self.is_closed.is_set():
            return
        self.is_closed.set()
        self.begin_shutdown()
        for delivery in self.deliveries:
            delivery.stop()
        self.watch.stop()
        self.telemetry.close()
        self.cache.close()
        self.sessionm.close()
        if self.braze:
            self.braze.close()
        self.store.database.close()
        # Otherwise atexit would keep this object until the process ends.
        atexit.unregister(self.close)


def parts_of(app: Flask) -> Parts:
    parts: Parts = app.extensions["bridge"]
    return parts


def start(app: Flask) -> None:
    """Start the background threads of *app*, unless this process has started them."""
    app.extensions["bridge.start"]()
