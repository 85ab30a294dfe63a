"""Taking a webhook in: read it, apply the rules, store it; only then is it accepted."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from bridge.customer import Customer
from bridge.database import StoreUnavailableError
from bridge.fields import MAX_TEXT, FieldError, shown, text
from bridge.intake.payload import (
    MAX_BODY,
    Event,
    Named,
    RefusedError,
    read_event,
    read_named,
    read_tag_event,
    told_ignored,
)
from bridge.intake.rules import Rules, TagWrite
from bridge.outbox.commit import Committer, Outcome, Waiting
from bridge.outbox.events import Stored
from bridge.outbox.schema import State
from bridge.outbox.store import NewEvent, Store, new_event_id

log = logging.getLogger(__name__)

# Of a body that is too large to be accepted, so much is kept to tell what it was.
KEPT_OF_TOO_LARGE = 4096
# Seconds: counting the queue costs more than the error of a second is worth.
COUNT_HOLDS = 1.0


class QueueFullError(StoreUnavailableError):
    """So much waits for SessionM that nothing more is taken in."""


class Arrival(NamedTuple):
    """A webhook as it came: at most `MAX_BODY` + 1 bytes of body, and how it was sent.

    On SessionM's own paths the customer stands in the path.
    """

    body: bytes
    content_type: str
    idempotency_key: str | None = None
    key_name: str = ""
    request_id: str = ""
    path_customer: Customer | None = None

    def read(self) -> Event:
        """The event that it says; raises `RefusedError`."""
        if self.path_customer is None:
            return read_event(self.body, self.content_type)
        customer = self.path_customer
        return read_tag_event(self.body, self.content_type, customer.kind, customer.id)

    def read_named(self) -> Named:
        """What can be read of one that is refused."""
        if self.path_customer is None:
            return read_named(self.body, self.content_type)
        return Named(self.path_customer)


class Receipt(NamedTuple):
    """What is answered. *duplicate*: the same event is already stored under *id*."""

    id: str
    customer: Customer
    writes: tuple[TagWrite, ...] = ()
    warnings: tuple[str, ...] = ()
    test: bool = False
    duplicate: bool = False


class Acceptor:
    """Accepts webhooks under *rules*.

    *on_accepted* is told the customer of each, *on_stored* that some are stored, *count* the name
    of what became of each.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        queue_limit: int,
        on_accepted: Callable[[Customer], None] = lambda _customer: None,
        on_stored: Callable[[], None] = lambda: None,
        count: Callable[[str], None] = lambda _name: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._committer = Committer(store, on_stored)
        self._rules = rules
        self._limit = queue_limit
        self._on_accepted = on_accepted
        self._count = count
        self._now = now
        self._queued = 0
        self._queued_at = 0.0

    def accept(self, arrival: Arrival) -> Receipt:
        """Read *arrival* as a webhook and store it.

        Raises:
            RefusedError: it cannot become an event; it is kept as rejected.
            StoreUnavailableError: it could not be stored; the sender must come again.
        """
        now = self._now()
        name = new_event_id(now)
        try:
            new = self._understand(arrival, name, now)
        except RefusedError as refusal:
            self._keep_rejected(arrival, name, now, refusal)
            raise
        self._refuse_when_full()
        return self._receipt(new, self._committer.store(new))

    def accept_soon(self, arrival: Arrival, tell: Callable[[Receipt | None], None]) -> Waiting:
        """As `accept` on an event loop: *tell* hears the receipt, or that it could not be stored.

        To be called while there is known to be room: `has_room`. Nothing is kept of what is
        refused.

        Raises:
            RefusedError: it cannot become an event; nobody is told.
        """
        now = self._now()
        new = self._understand(arrival, new_event_id(now), now)
        self._queued += 1

        def end(outcome: Outcome) -> None:
            if isinstance(outcome, StoreUnavailableError):
                tell(None)
            else:
                tell(self._receipt(new, outcome))

        return self._committer.store_soon(new, end)

    def has_room(self) -> bool:
        """Whether the queue was counted lately, and is not full."""
        return self._now() - self._queued_at <= COUNT_HOLDS and self._queued < self._limit

    def _receipt(self, new: NewEvent, earlier: str | None) -> Receipt:
        customer = Customer.from_key(new.customer or "")
        if earlier is not None:
            self._tell("duplicate", new, earlier)
            return Receipt(earlier, customer, test=new.test, duplicate=True)
        self._tell("accepted", new, new.id)
        self._on_accepted(customer)
        return Receipt(new.id, customer, new.writes, _warnings(new), new.test)

    def read_again(self, stored: Stored) -> NewEvent:
        """Read an event that was rejected under the present rules, as if it came now.

        Raises:
            RefusedError: it still cannot be understood.
        """
        in_path = None if stored.in_body else stored.customer
        arrival = Arrival(
            stored.body,
            stored.content_type,
            idempotency_key=stored.idempotency_key,
            path_customer=Customer.from_key(in_path) if in_path else None,
        )
        return self._understand(arrival, stored.id, self._now())

    def _understand(self, arrival: Arrival, name: str, now: float) -> NewEvent:
        event = arrival.read()
        return NewEvent(
            id=name,
            received_at=now,
            body=arrival.body,
            content_type=arrival.content_type,
            key_name=arrival.key_name,
            request_id=arrival.request_id,
            customer=event.customer.key,
            in_body=arrival.path_customer is None,
            campaign_id=event.campaign_id,
            canvas_id=event.canvas_id,
            test=event.is_test,
            dedupe=event.dedupe_key(_idempotency_key(arrival)),
            writes=self._rules.writes(event),
            ignored=event.ignored,
            idempotency_key=arrival.idempotency_key,
        )

    def _keep_rejected(
        self, arrival: Arrival, name: str, now: float, refusal: RefusedError
    ) -> None:
        too_large = len(arrival.body) > MAX_BODY
        named = arrival.read_named()
        rejected = NewEvent(
            id=name,
            received_at=now,
            body=arrival.body[:KEPT_OF_TOO_LARGE] if too_large else arrival.body,
            content_type=arrival.content_type,
            key_name=arrival.key_name,
            request_id=arrival.request_id,
            customer=named.customer.key if named.customer else None,
            in_body=arrival.path_customer is None,
            campaign_id=named.campaign_id,
            canvas_id=named.canvas_id,
            state=State.REJECTED,
            reason=str(refusal),
            # What no database stores was refused above, and is not needed again.
            idempotency_key=_storable(arrival.idempotency_key),
        )
        self._committer.store(rejected)
        self._tell("rejected", rejected, name, reason=refusal.code)

    def _refuse_when_full(self) -> None:
        if self._now() - self._queued_at > COUNT_HOLDS:
            self._queued = self._store.backlog().queued
            self._queued_at = self._now()
        if self._queued >= self._limit:
            raise QueueFullError(f"{self._queued} writes wait for SessionM")
        self._queued += 1

    def _tell(self, action: str, new: NewEvent, event_id: str, **fields: str) -> None:
        self._count(f"webhooks_{action}")
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "webhook %s",
            action,
            extra={
                "action": action,
                "event": event_id,
                "request": new.request_id,
                "key": new.key_name,
                "customer": new.customer,
                "campaign": new.campaign_id,
                "canvas": new.canvas_id,
                **fields,
            },
        )


def _idempotency_key(arrival: Arrival) -> str | None:
    try:
        return text(arrival.idempotency_key, "Idempotency-Key")
    except FieldError as error:
        raise RefusedError(422, "invalid_field", f"{error}.") from None


def _storable(value: str | None) -> str | None:
    return None if value is None else shown(value, MAX_TEXT)


def _warnings(new: NewEvent) -> tuple[str, ...]:
    found = []
    counts = any(write.ttl is None for write in new.writes)
    if counts and not new.test and not new.dedupe:
        found.append(
            "Counters came without a dispatch_id: if Braze retries this call, they count twice."
        )
    if new.ignored:
        found.append(told_ignored(new.ignored))
    return tuple(found)
