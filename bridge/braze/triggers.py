"""Braze's triggered campaigns and Canvases as a destination of the outbox.

`TriggerPlan`, `judge_accepted` and `judge_failure` are pure; `TriggerDestination` makes the calls.

Braze's endpoints have no idempotency key. So the intent of a call is stored before the call: after
a crash, a message with an intent may have been sent or not.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bridge import clock
from bridge.braze.answers import BrazeError, BrazeReceipt, Quota
from bridge.braze.client import PATHS, Braze
from bridge.calls import CallError, Meaning
from bridge.customer import Customer
from bridge.intake.message import EVENT_PROPERTY, MOST_RECIPIENTS, Send
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
from bridge.outbox.model import CallResult, QueuedWrite, State
from bridge.outbox.store import Store
from bridge.outbox.verdict import FIRST_WAIT, LONGEST_WAIT, Random, judge

# Bytes of one call (Braze documentation, "API limits": 4 MB).
MOST_BYTES = 4 * 1000 * 1000 - 64 * 1024
# Bytes of a recipient beside its properties: identifier, field names, the event's ID.
_OVERHEAD = 1024
# Messages of one campaign or Canvas to one customer within `LOOP_SPAN`; more are a loop.
MOST_IN_A_LOOP = 5
# Seconds.
LOOP_SPAN = 3600.0
# Broadcasts of one campaign or Canvas within `LOOP_SPAN`.
MOST_BROADCASTS = 1

# Makes the lookups of customers outdated.
Outdate = Callable[[Sequence[Customer]], None]
# Finds the other identifier of a SessionM customer, within a number of seconds.
Translate = Callable[[Customer, float], str]

_UNCERTAIN = (
    "the bridge ended while this message was being sent: Braze may have sent it or not; look there "
    "before you replay it"
)


@dataclass(frozen=True)
class TriggerCall(DeliveryCall):
    """Messages of one campaign or Canvas, one to each customer."""

    kind: Literal["campaign", "canvas"]
    braze_id: str


@dataclass(frozen=True)
class TriggerPlan:
    """Decides the next step. Pure.

    Attributes:
        max_age: seconds after acceptance, after which a message expires.
        resends: whether a message that may have been sent is sent again.
    """

    max_age: float
    resends: bool

    def next_step(self, planned: Mapping[str, Planned], now: float) -> TriggerCall | Wait | End:
        """As `Destination.plan`; a mark counts the customer's deliveries within `LOOP_SPAN`."""
        queues = iter(planned.values())
        first = next(queues)
        head = first.queue[0]
        if head.next_at > now:
            return Wait(head.next_at)
        if ended := self._end(head, first.mark, now):
            return ended
        chosen, size = [head], _size(head)
        for queue, mark in queues:
            write = queue[0]
            if len(chosen) == MOST_RECIPIENTS:
                break
            if _fit(head, write) and write.next_at <= now and not self._end(write, mark, now):
                size += _size(write)
                if size > MOST_BYTES:
                    break
                chosen.append(write)
        kind, _, braze_id = head.target.partition(":")
        return TriggerCall(tuple(chosen), "canvas" if kind == "canvas" else "campaign", braze_id)

    def _end(self, write: QueuedWrite, sent: Counter[str], now: float) -> End | None:
        """Return the end of *write* without a call, if it must not be sent."""
        may_have_been_sent = write.intent is not None and "sent" in write.intent
        if may_have_been_sent and not self.resends:
            return End((write,), State.DEAD, _UNCERTAIN, uncertain=True)
        if now - write.accepted_at > self.max_age:
            return End((write,), State.EXPIRED, f"it waited for over {self.max_age:g} seconds")
        if _content(write)["recipient"] is None:
            if sent[write.target] >= MOST_BROADCASTS:
                reason = "a broadcast of the same campaign or Canvas was sent within an hour"
                return End((write,), State.DEAD, reason)
        elif sent[write.target] >= MOST_IN_A_LOOP:
            reason = (
                f"loop: this customer got {MOST_IN_A_LOOP} messages of this campaign or Canvas "
                "within an hour"
            )
            return End((write,), State.DEAD, reason)
        return None


def _fit(head: QueuedWrite, other: QueuedWrite) -> bool:
    """Return whether two messages may go in one call."""
    one, two = _content(head), _content(other)
    together = (head.intent or {}).get("with")
    return (
        head.target == other.target
        and one["recipient"] is not None
        and two["recipient"] is not None
        and one["call"] == two["call"]
        # The two halves of a refused call stay separate.
        and together == (other.intent or {}).get("with")
    )


def _content(write: QueuedWrite) -> Mapping[str, Any]:
    assert write.content is not None  # noqa: S101 - every write to Braze has one
    return write.content


def _size(write: QueuedWrite) -> int:
    return len(json.dumps(_content(write), ensure_ascii=False).encode()) + _OVERHEAD


@dataclass(frozen=True)
class AttemptLimits:
    """Inputs of `judge_failure` that do not depend on the failure.

    Attributes:
        most: attempts after which a message is dead.
        resends: as in `TriggerPlan`.
        outage: whether the breaker is open because Braze is unreachable.
        random: returns a number from 0 to 1.
    """

    most: int
    resends: bool
    outage: bool
    random: Random


Record = Callable[..., CallResult]


def judge_accepted(
    writes: Sequence[QueuedWrite], receipt: BrazeReceipt, record: Record
) -> Iterator[CallResult]:
    """Yield the results of an accepted call: one for each different warning."""
    by_warning: dict[str, list[QueuedWrite]] = {}
    for index, write in enumerate(writes):
        texts = filter(None, (receipt.warnings.get(-1), receipt.warnings.get(index)))
        by_warning.setdefault("; ".join(texts), []).append(write)
    for warning, theirs in by_warning.items():
        error = f"Braze warned: {warning}" if warning else ""
        yield record(
            theirs,
            State.DELIVERED,
            "delivered",
            status=201,
            receipt=receipt.dispatch_id,
            error=error,
        )


def judge_failure(
    writes: Sequence[QueuedWrite],
    error: CallError,
    limits: AttemptLimits,
    record: Record,
    now: float,
) -> Iterator[CallResult]:
    """Yield the results of a failed call."""
    details = {"status": error.status, "error": str(error)}
    divisible = isinstance(error, BrazeError) and error.is_divisible
    if divisible and len(writes) > 1:
        # One invalid recipient must not prevent the others.
        middle = (len(writes) + 1) // 2
        for half in (writes[:middle], writes[middle:]):
            intent = {"with": [write.seq for write in half]}
            yield record(
                half,
                State.QUEUED,
                "halved",
                next_at=now,
                counts_attempt=False,
                intent=intent,
                **details,
            )
        return
    if error.meaning in {Meaning.UNANSWERED, Meaning.GARBLED} and not limits.resends:
        reason = f"Braze may have sent it or not: {error}"
        details["error"] = reason
        yield record(writes, State.DEAD, "unknown", uncertain=True, **details)
        return
    for write in writes:
        verdict = judge(error, write.attempts, limits.most, limits.random, outage=limits.outage)
        yield record(
            [write],
            State.DEAD if verdict.is_dead else State.QUEUED,
            error.meaning.value,
            next_at=now + verdict.seconds,
            # The rate limit is for the whole workspace: it does not count against this message.
            counts_attempt=verdict.counts_attempt and error.status != 429,
            unknown=error.meaning is Meaning.UNKNOWN_CUSTOMER,
            uncertain=error.meaning in {Meaning.UNANSWERED, Meaning.GARBLED},
            **details,
        )


def judge_unresolved(
    write: QueuedWrite, error: CallError, limits: AttemptLimits, record: Record, now: float
) -> Iterator[CallResult]:
    """Yield the result of a message whose customer's external ID was not found in SessionM."""
    if error.meaning is Meaning.UNKNOWN_CUSTOMER:
        yield from judge_failure([write], error, limits, record, now)
        return
    # No call was made to Braze: the message waits for SessionM until the message expires. Its
    # attempts do not grow, so the waits grow with its age.
    wait = min(LONGEST_WAIT, max(FIRST_WAIT, now - write.accepted_at)) * limits.random()
    yield record(
        [write],
        State.QUEUED,
        error.meaning.value,
        error=str(error),
        next_at=now + wait,
        counts_attempt=False,
    )


class TriggerDestination(Destination):
    """Braze as a destination of the outbox.

    Args:
        braze: the client.
        store: the queue of messages.
        plan: decides the next step.
        max_attempts: attempts after which a message is dead.
        canvas_properties: the name of the field for the properties of a Canvas.
        outdate: called before each call with its customers, so that the lookups of the message
            return what SessionM has just changed.
        translate: finds the external ID in Braze of a SessionM customer.
    """

    name = "Braze"
    width = MOST_RECIPIENTS

    def __init__(
        self,
        braze: Braze,
        store: Store,
        plan: TriggerPlan,
        *,
        max_attempts: int,
        canvas_properties: str,
        outdate: Outdate,
        translate: Translate,
    ) -> None:
        self._braze = braze
        self._store = store
        self._plan = plan
        self._max_attempts = max_attempts
        self._properties = _property_fields(canvas_properties)
        self._outdate = outdate
        self._translate = translate

    def begin(self, customers: Sequence[str]) -> Sequence[Counter[str]]:
        """Return the deliveries of each customer within `LOOP_SPAN`, by target."""
        sent = self._store.sent_since(customers, clock.now() - LOOP_SPAN)
        return [sent[customer] for customer in customers]

    def plan(self, planned: Mapping[str, Planned], now: float) -> TriggerCall | Wait | End:
        return self._plan.next_step(planned, now)

    def calls_left(self) -> int | None:
        quota = self._braze.calls_left()
        if quota is not None:
            return quota.left
        # The first call shows the limit.
        return 1 if self._braze.has_quota else None

    def forget_limit(self) -> None:
        self._braze.quota = None

    def end(self, ended: Sequence[tuple[DeliveryCall, Mapping[str, Any], Reply]]) -> None:
        """Do nothing: lookups were outdated before the call."""

    def report(self) -> Mapping[str, Any]:
        quota = self._braze.calls_left()
        known = quota and {
            "limit": quota.limit,
            "left": quota.left,
            "resets_at": clock.now() + quota.seconds,
        }
        return {"overdue": self._braze.overdue(), "quota": known}

    def send(self, call: TriggerCall, gate: Gate) -> Reply:
        started = clock.steady()
        limits = AttemptLimits(self._max_attempts, self._plan.resends, gate.outage, random.random)

        def record(
            writes: Sequence[QueuedWrite], state: State, outcome: str, **more: Any
        ) -> CallResult:
            return call_result(writes, state, outcome, started, **more)

        resolved, unsent = self._resolve_recipients(call, limits, record)
        if not resolved:
            return Reply(tuple(unsent))
        self._outdate(_outdated_customers(call))
        writes = [write for write, _ in resolved]
        intent = {"sent": clock.now()}
        self._store.intend([write.seq for write in writes], intent, gate.deliverer)
        body = self._body(call, resolved)
        names = ["" if one is None else _identifier_of(one) for _, one in resolved]
        try:
            receipt = self._braze.trigger(call.kind, body, names, CALL_TIMEOUT, gate.may_send)
        except BrazeError as error:
            failed = judge_failure(writes, error, limits, record, clock.now())
            pace = _pace(self._braze.calls_left())
            return Reply((*unsent, *failed), called=True, error=error, pace=pace)
        quota = self._braze.calls_left()
        return Reply(
            (*unsent, *judge_accepted(writes, receipt, record)),
            called=True,
            pace=_pace(quota),
            hold=_hold(quota),
        )

    def _resolve_recipients(
        self, call: TriggerCall, limits: AttemptLimits, record: Record
    ) -> tuple[list[tuple[QueuedWrite, dict[str, Any] | None]], list[CallResult]]:
        """Return the messages with their recipients in Braze, and results of those not to send."""
        resolved: dict[str, tuple[QueuedWrite, dict[str, Any] | None]] = {}
        unsent: list[CallResult] = []
        for write in call.writes:
            content = _content(write)
            recipient = content["recipient"]
            if recipient is not None and (unknown := content.get("translate")):
                try:
                    found = self._translate(Customer.from_key(unknown), CALL_TIMEOUT)
                except CallError as error:
                    unsent += judge_unresolved(write, error, limits, record, clock.now())
                    continue
                recipient = {**recipient, "external_user_id": found}
            name = "" if recipient is None else _identifier_of(recipient)
            if name in resolved:
                # The same customer by another identifier: Braze would send only one message.
                unsent.append(
                    record(
                        [write], State.QUEUED, "parted", next_at=clock.now(), counts_attempt=False
                    )
                )
            else:
                resolved[name] = write, recipient
        return [*resolved.values()], unsent

    def _body(
        self,
        call: TriggerCall,
        resolved: Sequence[tuple[QueuedWrite, dict[str, Any] | None]],
    ) -> dict[str, Any]:
        recipients = [(one, _properties_of(write)) for write, one in resolved]
        field = self._properties[call.kind]
        return _call_body(call.kind, call.braze_id, _content(resolved[0][0]), recipients, field)


def trigger_bodies(
    sends: Sequence[Send], canvas_properties: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return the path and body of a call for each of *sends*, for a preview. Pure."""
    fields = _property_fields(canvas_properties)
    found = []
    for send in sends:
        recipient = send.content["recipient"]
        if send.content.get("translate"):
            recipient = {"external_user_id": f"(found by {send.customer})"}
        properties = {**send.content["properties"], EVENT_PROPERTY: "(ID of the event)"}
        recipients = [(recipient, properties)]
        field = fields[send.kind]
        body = _call_body(send.kind, send.braze_id, send.content, recipients, field)
        found.append((PATHS[send.kind], body))
    return found


def _property_fields(canvas_properties: str) -> dict[str, str]:
    """Return the name of the field for properties, by the kind of the call."""
    return {"campaign": "trigger_properties", "canvas": canvas_properties}


def _call_body(
    kind: str,
    braze_id: str,
    content: Mapping[str, Any],
    recipients: Sequence[tuple[dict[str, Any] | None, dict[str, Any]]],
    field: str,
) -> dict[str, Any]:
    """Return the body of a call for pairs of recipient (``None``: broadcast) and properties."""
    body: dict[str, Any] = {**content["call"], f"{kind}_id": braze_id}
    first, properties = recipients[0]
    if first is None:
        return {**body, "broadcast": True, field: properties}
    return {
        **body,
        "recipients": [
            {**(one or {}), field: theirs, "send_to_existing_only": True}
            for one, theirs in recipients
        ],
    }


def _properties_of(write: QueuedWrite) -> dict[str, Any]:
    return {**_content(write)["properties"], EVENT_PROPERTY: write.event_id}


def _outdated_customers(call: TriggerCall) -> list[Customer]:
    keys = dict.fromkeys(_content(write).get("outdate") for write in call.writes)
    return [Customer.from_key(key) for key in keys if key]


def _identifier_of(recipient: Mapping[str, Any]) -> str:
    for field in ("external_user_id", "braze_id", "email"):
        if field in recipient:
            return str(recipient[field])
    alias = recipient.get("user_alias") or {}
    return f"{alias.get('alias_label')}:{alias.get('alias_name')}"


def _pace(quota: Quota | None) -> float | None:
    return quota.pace if quota else None


def _hold(quota: Quota | None) -> float:
    """Return the seconds until the reset if no call is left; otherwise 0."""
    return quota.seconds if quota and quota.left <= 0 else 0.0
