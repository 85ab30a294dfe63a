"""Accept webhooks and messages: read the body, apply the rules, store the event."""

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from bridge import clock
from bridge.customer import Customer
from bridge.fields import MAX_TEXT, FieldError, shown, text
from bridge.intake.message import (
    BODY_DEDUPE_TIME,
    MessagePath,
    MessageRules,
    Remainder,
    customers_in_message,
    dedupe_of,
    read_message,
    read_partial_message,
    without_customer,
)
from bridge.intake.payload import (
    MAX_BODY,
    PartialEvent,
    RefusedError,
    customers_in_event,
    ignored_warning,
    read_event,
    read_partial,
)
from bridge.intake.rules import Rules
from bridge.outbox.commit import Committer, OnStored
from bridge.outbox.events import StoredEvent
from bridge.outbox.model import Direction, NewEvent, State, new_event_id
from bridge.outbox.store import Store
from bridge.storage.database import StoreUnavailableError, in_time

log = logging.getLogger(__name__)

# Bytes that are stored of a rejected body that is too large.
STORED_OF_TOO_LARGE = 4096
# Seconds for which the number of queued writes is cached: reading it for each webhook costs much.
COUNT_CACHED_FOR = 1.0


class QueueFullError(StoreUnavailableError):
    """The queue has reached BRIDGE_QUEUE_LIMIT: nothing more is accepted."""


class ReceivedRequest(NamedTuple):
    """A webhook of Braze or a message of SessionM, before it is read.

    Attributes:
        body: at most `MAX_BODY` + 1 bytes.
        key_name: the name of the key that the sender used.
        path_customer: the customer in the URL, on the paths of SessionM's own API.
        message: the format of a message of SessionM; ``None`` for a webhook.
    """

    body: bytes
    content_type: str
    idempotency_key: str | None = None
    key_name: str = ""
    request_id: str = ""
    path_customer: Customer | None = None
    message: MessagePath | None = None

    def event(self, event_id: str, now: float) -> NewEvent:
        """Return an event with the fields that do not depend on the body's content."""
        return NewEvent(
            id=event_id,
            received_at=now,
            body=self.body,
            content_type=self.content_type,
            key_name=self.key_name,
            request_id=self.request_id,
            idempotency_key=self.idempotency_key,
            in_body=self.path_customer is None,
            direction=Direction.TO_BRAZE if self.message else Direction.TO_SESSIONM,
            path=self.message.value if self.message else "",
        )

    def read_partial(self) -> PartialEvent:
        """Return what can be read of a refused body."""
        if self.message is not None:
            return read_partial_message(self.body, self.content_type, self.message)
        if self.path_customer is None:
            return read_partial(self.body, self.content_type)
        return PartialEvent(self.path_customer)


class Acceptance(NamedTuple):
    """The result of accepting *event*.

    *earlier*: the id of the event that it duplicates, or ``None``.
    """

    event: NewEvent
    earlier: str | None

    @property
    def id(self) -> str:
        """The id of the stored event."""
        return self.earlier or self.event.id


class Acceptor:
    """Accepts webhooks by *rules*, and messages by *message_rules*.

    Args:
        queue_limit: queued writes at which nothing more is accepted.
        on_accepted: called with the customer (a key) of each accepted webhook.
        on_stored: as for `Committer`.
        count: called with the name of a counter to increase: ``webhooks_accepted``,
            ``messages_rejected`` and so on.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        queue_limit: int,
        message_rules: MessageRules = MessageRules(),  # noqa: B008 - it is frozen
        on_accepted: Callable[[str], None] = lambda _customer: None,
        on_stored: OnStored = lambda _directions: None,
        count: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._store = store
        self._committer = Committer(store, on_stored)
        self._rules = rules
        self._message_rules = message_rules
        self._limit = queue_limit
        self._on_accepted = on_accepted
        self._count = count
        self._queued = 0
        # Time of the last count, by `clock.steady`.
        self._queued_at = -math.inf

    def accept(self, received: ReceivedRequest) -> Acceptance:
        """Read *received*, a webhook or a message, and store it.

        Raises:
            RefusedError: the body is no valid event; it is stored as rejected.
            StoreUnavailableError: it is not stored; the sender must retry.
        """
        now = clock.now()
        try:
            new = self._read(received, new_event_id(now), now)
        except RefusedError as refusal:
            self.keep_rejected(received, refusal)
            raise
        with in_time(time.monotonic() + self._store.database.request_timeout):
            self._refuse_when_full()
            return self._receipt(new, self._committer.store(new))

    async def accept_async(self, received: ReceivedRequest) -> Acceptance:
        """As `accept`, on an event loop. Call it only while `has_room`.

        Raises:
            RefusedError: the body is no valid event; nothing is stored.
            StoreUnavailableError: it is not stored; the sender must retry.
        """
        now = clock.now()
        new = self._read(received, new_event_id(now), now)
        self._queued += 1
        return self._receipt(new, await self._committer.store_async(new))

    def has_room(self) -> bool:
        """Return whether the queue has room; false also if the count must be read again."""
        return clock.steady() - self._queued_at <= COUNT_CACHED_FOR and self._queued < self._limit

    def _receipt(self, new: NewEvent, earlier: str | None) -> Acceptance:
        acceptance = Acceptance(new, earlier)
        self._log("duplicate" if earlier else "accepted", new, acceptance.id)
        if not earlier and new.writes and new.customer:
            self._on_accepted(new.customer)
        return acceptance

    def read_again(self, stored: StoredEvent) -> NewEvent:
        """Read a rejected event again, by the present rules and with the present time.

        Raises:
            RefusedError: it is still no valid event.
        """
        in_path = None if stored.in_body else stored.customer
        received = ReceivedRequest(
            stored.body,
            stored.content_type,
            idempotency_key=stored.idempotency_key,
            path_customer=Customer.from_key(in_path) if in_path else None,
            message=MessagePath(stored.path) if stored.path else None,
        )
        return self._read(received, stored.id, clock.now())

    def customers_in(self, stored: StoredEvent) -> tuple[Customer, ...] | None:
        """Return all SessionM customers of an event, also those that another identifier overrides.

        ``None``: the body cannot be read, or names nobody.
        """
        in_path = None if stored.in_body else Customer.of_sessionm(stored.customer)
        if in_path:
            return (in_path,)
        if stored.path:
            path, kind = MessagePath(stored.path), self._message_rules.external_id_is
            return customers_in_message(stored.body, stored.content_type, path, kind)
        return customers_in_event(stored.body, stored.content_type) or None

    def without(self, customer: Customer, stored: StoredEvent) -> Remainder:
        """Return a shared message without *customer*, which is one of `customers_in`."""
        path, rules = MessagePath(stored.path), self._message_rules
        return without_customer(stored.body, stored.content_type, path, customer, rules)

    def _read(self, received: ReceivedRequest, event_id: str, now: float) -> NewEvent:
        if received.message is not None:
            return self._read_message(received, received.message, event_id, now)
        event = read_event(received.body, received.content_type, received.path_customer)
        return received.event(event_id, now)._replace(
            customer=event.customer.key,
            campaign_id=event.campaign_id,
            canvas_id=event.canvas_id,
            test=event.is_test,
            dedupe=event.dedupe_key(_idempotency_key(received)),
            writes=self._rules.writes(event),
            ignored=event.ignored,
            campaign_name=event.campaign_name,
            canvas_name=event.canvas_name,
        )

    def _read_message(
        self, received: ReceivedRequest, path: MessagePath, event_id: str, now: float
    ) -> NewEvent:
        message = read_message(received.body, received.content_type, path, self._message_rules)
        key = _idempotency_key(received)
        dedupe, by_body = dedupe_of(message, key, received.body)
        return received.event(event_id, now)._replace(
            customer=message.customer,
            campaign_id=message.campaign_id,
            canvas_id=message.canvas_id,
            dedupe=dedupe,
            dedupe_for=BODY_DEDUPE_TIME if by_body else None,
            sends=message.sends,
        )

    def keep_rejected(self, received: ReceivedRequest, refusal: RefusedError) -> None:
        """Store a refused request as a rejected event, which can be replayed.

        Raises:
            StoreUnavailableError: it is not stored.
        """
        now = clock.now()
        event_id = new_event_id(now)
        too_large = len(received.body) > MAX_BODY
        partial = received.read_partial()
        rejected = received.event(event_id, now)._replace(
            body=received.body[:STORED_OF_TOO_LARGE] if too_large else received.body,
            customer=partial.customer.key if partial.customer else None,
            campaign_id=partial.campaign_id,
            canvas_id=partial.canvas_id,
            state=State.REJECTED,
            reason=str(refusal),
            # Without characters that a database refuses: the original has been refused above.
            idempotency_key=_storable(received.idempotency_key),
        )
        self._committer.store(rejected)
        self._log("rejected", rejected, event_id, reason=refusal.code)

    def recount(self) -> None:
        """Read the number of queued writes, unless the last one is still cached.

        Raises:
            StoreUnavailableError: the store cannot be read.
        """
        if clock.steady() - self._queued_at > COUNT_CACHED_FOR:
            self._queued = self._store.total_queued()
            self._queued_at = clock.steady()

    def _refuse_when_full(self) -> None:
        self.recount()
        if self._queued >= self._limit:
            raise QueueFullError(f"the queue is full: {self._queued} writes")
        self._queued += 1

    def _log(self, action: str, new: NewEvent, event_id: str, **fields: str) -> None:
        is_message = new.direction is Direction.TO_BRAZE
        self._count(f"{'messages' if is_message else 'webhooks'}_{action}")
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "%s %s",
            "message" if is_message else "webhook",
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


def _idempotency_key(received: ReceivedRequest) -> str | None:
    try:
        return text(received.idempotency_key, "Idempotency-Key")
    except FieldError as error:
        raise RefusedError(422, "invalid_field", f"{error}.") from None


def _storable(value: str | None) -> str | None:
    return None if value is None else shown(value, MAX_TEXT)


def warnings_of(new: NewEvent) -> tuple[str, ...]:
    """Return warnings for the sender of an accepted event."""
    found = []
    counts = any(write.ttl is None for write in new.writes)
    if counts and not new.test and not new.dedupe:
        found.append(
            "Counters came without a dispatch_id: if Braze retries this call, they count twice."
        )
    if new.ignored:
        found.append(ignored_warning(new.ignored))
    if new.dedupe_for:
        found.append(
            "It has no dedupe_id, event_id or user_offer_id: an equal body within "
            f"{BODY_DEDUPE_TIME / 60:g} minutes counts as the same message."
        )
    return tuple(found)
