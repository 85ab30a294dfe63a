"""SessionM's tags as a destination of the outbox. Counters are never counted twice.

`next_step` is pure; `TagDestination` makes the calls. A counter's call stores its intent first: the
counts before the call. After a failure, the counts show whether the call has worked.
"""

import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bridge import clock
from bridge.calls import Meaning
from bridge.customer import Customer
from bridge.outbox.destination import (
    CALL_TIMEOUT,
    DeliveryCall,
    Destination,
    End,
    Gate,
    Planned,
    Reply,
    Wait,
    call_result,
)
from bridge.outbox.model import AFTER_BATCH, CallResult, QueuedWrite, State
from bridge.outbox.store import Store
from bridge.outbox.verdict import judge
from bridge.sessionm.answers import SessionMError
from bridge.sessionm.client import SessionM

# Tags in one call.
MOST_TAGS = 100
# Seconds after acceptance in which a write carries its original TTL.
FULL_TTL_AGE = 60.0
# Seconds after its first byte for which SessionM may process a request, however the call ended
# (assumed).
PROCESSING_TIME = 10.0
# Seconds after that until SessionM's counts include the request (assumed).
COUNT_DELAY = 5.0
# Seconds. If the end of an intent is further ahead, the clock was set back: do not wait for it.
LONGEST_INTENT = 30.0


_TTL_ENDED = "its TTL ended before the write could be sent"


@dataclass(frozen=True)
class TagCall(DeliveryCall):
    """Tags of one customer: expiring with a *ttl* in seconds, counters with ``None``."""

    tags: tuple[str, ...]
    ttl: int | None

    @property
    def customer(self) -> str:
        return self.writes[0].customer

    @property
    def takes_token_late(self) -> bool:
        """Counters take it after their counts are read."""
        return self.ttl is None


def next_step(queue: Sequence[QueuedWrite], now: float) -> TagCall | Wait | End:
    """Return the next step for a customer.

    Args:
        queue: the customer's queued writes, oldest first; at least one.
        now: seconds since the epoch, by the store's clock.
    """
    head = queue[0]
    # A call with an intent comes first: other calls would change the counts that decide about it.
    unknown = next((write for write in queue if write.intent), None)
    if (unknown or head).next_at > now:
        return Wait((unknown or head).next_at)
    if unknown and unknown.intent:
        counted_at = unknown.intent.get("at", 0.0) + COUNT_DELAY
        if now < counted_at <= now + LONGEST_INTENT:
            return Wait(counted_at)
        # Exactly the writes of that call.
        again = [write for write in queue if write.intent == unknown.intent]
        return _call(again, now)
    expired = tuple(write for write in queue if write.expires_at <= now)
    if expired:
        return End(expired, State.EXPIRED, _TTL_ENDED)
    return _call(_merged(queue), now)


def _merged(queue: Sequence[QueuedWrite]) -> list[QueuedWrite]:
    """Return the head and the writes that can be merged with it.

    A later write may overtake others only if it has no tag in common with them: then the outcome
    is the same. A counter that is queued twice must count twice, so it needs two calls.
    """
    head = queue[0]
    chosen = [head]
    tags = set(head.tags)
    passed: set[str] = set()
    for write in queue[1:]:
        fits = (
            write.ttl == head.ttl
            and _same_expiry(write, head)
            and not passed.intersection(write.tags)
            and not write.intent
            and write.next_at < AFTER_BATCH
            and len(tags.union(write.tags)) <= MOST_TAGS
            and (write.ttl is not None or tags.isdisjoint(write.tags))
        )
        if fits:
            chosen.append(write)
            tags.update(write.tags)
        else:
            passed.update(write.tags)
    return chosen


def _same_expiry(one: QueuedWrite, other: QueuedWrite) -> bool:
    return one.ttl is None or abs(one.accepted_at - other.accepted_at) <= FULL_TTL_AGE


def _call(chosen: Sequence[QueuedWrite], now: float) -> TagCall:
    tags = tuple(dict.fromkeys(tag for write in chosen for tag in write.tags))
    newest = max(chosen, key=lambda write: write.accepted_at)
    oldest_at = min(write.accepted_at for write in chosen)
    if newest.ttl is None or now - oldest_at <= FULL_TTL_AGE:
        return TagCall(tuple(chosen), tags, newest.ttl)
    # A late write carries the rest of its TTL, so that the tag expires at the intended time.
    return TagCall(tuple(chosen), tags, max(1, math.floor(newest.expires_at - now)))


class TagLookups(Protocol):
    """The lookups of tags, which must return no older tags after a write."""

    def begin_writes(self, customers: Sequence[Customer]) -> Sequence[Any]:
        """Return a mark for each of *customers* before their writes."""

    def identify(self, customers: Sequence[Customer]) -> None:
        """Find the other identifiers of *customers*; this may take the time of a lookup."""

    def end_writes(self, ended: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
        """Make older tags outdated before the results are recorded.

        Args:
            ended: marks of `begin_writes` with SessionM's answers.

        Raises:
            StoreUnavailableError: other processes cannot be notified.
        """


class TagDestination(Destination):
    """SessionM's tags as a destination of the outbox.

    Args:
        sessionm: the client.
        store: the queue.
        max_attempts: attempts after which a write is dead.
        lookups: lookups of the same tags.
    """

    name = "SessionM"
    width = 1

    def __init__(
        self,
        sessionm: SessionM,
        store: Store,
        max_attempts: int,
        lookups: TagLookups,
    ) -> None:
        self._sessionm = sessionm
        self._store = store
        self._max_tries = max_attempts
        self._lookups = lookups

    def begin(self, customers: Sequence[str]) -> Sequence[Any]:
        return self._lookups.begin_writes([Customer.from_key(customer) for customer in customers])

    def plan(self, planned: Mapping[str, Planned], now: float) -> TagCall | Wait | End:
        return next_step(next(iter(planned.values())).queue, now)

    def report(self) -> Mapping[str, Any]:
        return {"overdue": self._sessionm.overdue()}

    def send(self, call: TagCall, gate: Gate) -> Reply:
        started = clock.steady()
        seqs = [write.seq for write in call.writes]
        intent: Mapping[str, Any] | None = call.writes[0].intent
        sent = False
        try:
            if call.takes_token_late:
                answer, counts = self._counts(call)
                if intent and (found := self._already_counted(call, intent, counts)):
                    return self._answered(call, _read_back(call, found, started), answer)
                if not gate.take_token():
                    return Reply()
                intent = _intent(counts)
                self._store.intend(seqs, intent, gate.deliverer)
            customer = Customer.from_key(call.customer)
            sent = True
            answer = self._sessionm.write_tags(
                customer, call.tags, call.ttl, CALL_TIMEOUT, gate.may_send
            )
        except SessionMError as error:
            if sent:
                intent = _intent_after(intent, error)
            failed = self._failed(call, error, started, intent, outage=gate.outage)
            return Reply((failed,), called=True, error=error)
        done = call_result(call.writes, State.DELIVERED, "delivered", started, status=200)
        return self._answered(call, done, answer)

    def _answered(self, call: TagCall, result: CallResult, answer: Mapping[str, Any]) -> Reply:
        # Here, since `end` runs in the thread of the delivery loop and must not wait for SessionM.
        self._lookups.identify([Customer.from_key(call.customer)])
        return Reply((result,), called=True, answer=answer)

    def _counts(self, call: TagCall) -> tuple[Mapping[str, Any], dict[str, int]]:
        """Read the tags of the customer of *call*.

        Returns:
            SessionM's answer, and the counts of the tags in *call*.

        Raises:
            SessionMError: the call failed, or the answer holds no counts.
        """
        answer = self._sessionm.read_tags(Customer.from_key(call.customer), CALL_TIMEOUT)
        tags = answer.get("tags") or {}
        try:
            return answer, {tag: int(tags.get(tag) or 0) for tag in call.tags}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise SessionMError(Meaning.GARBLED, "the answer holds no counts", status=200) from None

    def _already_counted(
        self, call: TagCall, intent: Mapping[str, Any], now: Mapping[str, int]
    ) -> str:
        """Compare counts before a call with those of *now*, to see whether the call has worked.

        Returns:
            "counted": it has worked; "": it has not; "uncertain": the counts do not show it. Then
            it is not repeated: counting twice would be worse than not counting.
        """
        before = intent.get("before", {})
        ours = Counter(self._store.counters_sent_since(call.customer, intent.get("sent", 0.0)))
        increases = {now[tag] - before.get(tag, 0) - ours[tag] for tag in call.tags}
        if increases == {1}:
            return "counted"
        return "uncertain" if max(increases) > 0 else ""

    def _failed(
        self,
        call: TagCall,
        error: SessionMError,
        started: float,
        intent: Mapping[str, Any] | None,
        *,
        outage: bool,
    ) -> CallResult:
        tries = max(write.attempts for write in call.writes)
        verdict = judge(error, tries, self._max_tries, random.random, outage=outage)
        return call_result(
            call.writes,
            State.DEAD if verdict.is_dead else State.QUEUED,
            error.meaning.value,
            started,
            status=error.status,
            error=str(error),
            next_at=clock.now() + verdict.seconds,
            counts_attempt=verdict.counts_attempt,
            intent=intent,
            unknown=error.meaning is Meaning.UNKNOWN_CUSTOMER,
        )

    def end(self, ended: Sequence[tuple[DeliveryCall, Mapping[str, Any], Reply]]) -> None:
        """From now on, no lookup returns tags that are older than these answers."""
        answered = [
            (call, marks[call.customers[0]], reply.answer)
            for call, marks, reply in ended
            if reply.answer is not None
        ]
        if not answered:
            return
        existing = self._store.existing([w.seq for call, _, _ in answered for w in call.writes])
        # Without customers who were erased during the call.
        current = [
            (mark, answer)
            for call, mark, answer in answered
            if any(write.seq in existing for write in call.writes)
        ]
        if current:
            self._lookups.end_writes(current)


def _intent(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the intent of a counter's call, from which its outcome can be found after a crash.

    ``at`` is the latest time at which SessionM may process the request, whose first byte leaves
    within `CALL_TIMEOUT`. ``before`` is SessionM's counts.
    """
    now = clock.now()
    at = now + CALL_TIMEOUT + PROCESSING_TIME
    return {"id": uuid.uuid4().hex, "sent": now, "at": at, "before": dict(counts)}


def _intent_after(
    intent: Mapping[str, Any] | None, error: SessionMError
) -> Mapping[str, Any] | None:
    """Return the intent to store after a failure; ``None`` if the call has certainly not worked."""
    if intent is None or error.sent_at is None or not error.may_have_worked:
        return None
    ago = time.monotonic() - error.sent_at
    return {**intent, "at": clock.now() - ago + PROCESSING_TIME}


def _read_back(call: TagCall, found: str, started: float) -> CallResult:
    return call_result(
        call.writes,
        State.DELIVERED,
        "read_back" if found == "counted" else "uncertain",
        started,
        status=200,
        uncertain=found == "uncertain",
    )
