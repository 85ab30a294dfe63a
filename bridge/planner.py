"""The send planner: the fastest safe delivery speed of a campaign, and its effects. Pure.

Braze makes two to three Connected Content calls per recipient, does not limit their rate, and does
not spread a send evenly (Braze documentation). Its only control is a campaign's delivery speed in
messages a minute.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

# Failed webhooks in a moving minute at which Braze marks a host as unhealthy (Braze documentation).
# At half of it the bridge's health is degraded. Failed Connected Content calls count only if they
# are over 90 % of all: no plan has as many.
FAILURE_BUDGET = 3000
# Calls an hour to Braze's trigger endpoints, for the whole workspace (Braze documentation, "API
# rate limits"). A call may carry up to 50 waiting recipients.
TRIGGERS_AN_HOUR = 250_000
# Seconds for a lookup that is answered from the cache.
CACHED = 0.002
# Seconds that the oldest write may wait before health is degraded.
LATE = 300.0
# Share of the capacity to plan with, since Braze does not send evenly.
HEADROOM = 0.8


@dataclass(frozen=True)
class Kind:
    """A kind of message, and its calls per recipient.

    Attributes:
        label: for people.
        writes: whether its webhook writes tags.
        core: calls to SessionM Core for a lookup that is not cached.
        connect: calls to SessionM Connect for a lookup that is not cached.
        triggered: whether SessionM triggers it, by a call of the bridge to Braze.
        serial: whether Braze makes its calls for one customer after the other.
        calls: the usual number of Connected Content calls per recipient.
    """

    label: str
    writes: bool = False
    core: int = 0
    connect: int = 0
    triggered: bool = False
    serial: bool = False
    calls: int = 3

    @property
    def looks_up(self) -> bool:
        return self.core + self.connect > 0


KINDS = {
    "webhook": Kind("Webhook: writes tags", writes=True),
    "tags": Kind("Message with tags", core=1),
    "offers": Kind("Message with offers", connect=1),
    "customer": Kind("Message with tags and offers", core=1, connect=1),
    "triggered": Kind("Message that SessionM triggers", connect=1, triggered=True),
    "context": Kind("Canvas Context step", connect=1, serial=True, calls=1),
    "offers_webhook": Kind("Message with offers, and webhook", writes=True, connect=1),
}


@dataclass(frozen=True)
class PlannedSend:
    """A planned send.

    Attributes:
        recipients: number of recipients.
        kind: kind of message.
        calls: Connected Content calls that Braze makes per recipient.
        counters: whether the webhook also writes counters, which takes a second call.
        retries: share of calls that Braze repeats, 0 to 1.
        warm: share of recipients whose lookup is cached already, 0 to 1.
        speed: a desired speed in messages a minute; 0 for none.
    """

    recipients: int
    kind: Kind
    calls: int = 3
    counters: bool = False
    retries: float = 0.01
    warm: float = 0.0
    speed: int = 0

    @property
    def writes(self) -> int:
        """Calls to SessionM that one recipient's webhook makes."""
        return 1 + self.counters if self.kind.writes else 0

    @property
    def lookups(self) -> float:
        """Connected Content calls per recipient."""
        return self.calls * (1 + self.retries) if self.kind.looks_up else 0.0

    @property
    def requests(self) -> float:
        """All calls that Braze makes per recipient."""
        return self.lookups + (1 + self.retries if self.kind.writes else 0.0)

    @property
    def failures(self) -> float:
        """Failed webhooks per recipient."""
        return self.retries if self.kind.writes else 0.0

    @property
    def core(self) -> float:
        """Calls to SessionM Core per recipient."""
        return self.writes + self.kind.core * (1 - self.warm)

    @property
    def connect(self) -> float:
        return self.kind.connect * (1 - self.warm)

    @property
    def hit_ratio(self) -> float:
        """Share of lookups answered from the cache: all but the first of a cold recipient."""
        return 1 - (1 - self.warm) / self.lookups if self.lookups else 0.0


@dataclass(frozen=True)
class SendPace:
    """The capacity of this bridge and of SessionM.

    Attributes:
        core: calls a second to SessionM Core.
        connect: calls a second to SessionM Connect.
        requests: calls a second by Braze that the bridge can answer.
        queue_limit: waiting writes at which webhooks are refused.
        bulk_threshold: waiting writes above which tags are delivered by batch jobs; 0: never.
        triggers: calls a second of the bridge to Braze.
        cold: seconds that SessionM takes for a lookup.
    """

    core: float
    connect: float
    requests: float
    queue_limit: int
    bulk_threshold: int = 0
    triggers: float = 20.0
    cold: float = 0.15


@dataclass(frozen=True)
class Bound:
    """A limit of the speed, in messages a minute, and its calculation as text."""

    name: str
    sum: str
    speed: float


@dataclass(frozen=True)
class Outcome:
    """The effects of a send at *speed* messages a minute.

    Attributes:
        seconds: duration of the send.
        backlog: the largest number of waiting writes.
        written: seconds from the start of the send until the last write is in SessionM.
        core_rate, connect_rate: calls a second.
        failures_a_minute: failed webhooks.
    """

    speed: int
    seconds: float
    backlog: int
    written: float
    core_rate: float
    connect_rate: float
    failures_a_minute: float


@dataclass(frozen=True)
class Plan:
    """The result for a send.

    Attributes:
        bounds: limits of the speed, the lowest first.
        advised: the effects at the advised speed.
        wished: the effects at the desired speed, if any.
        warnings: sentences about the desired speed, or about the advised one; they name it.
    """

    bounds: tuple[Bound, ...]
    advised: Outcome
    wished: Outcome | None
    warnings: tuple[str, ...]


def plan(send: PlannedSend, pace: SendPace) -> Plan:
    bounds = tuple(sorted(_bounds(send, pace), key=lambda bound: bound.speed))
    advised = _outcome(send, pace, _round_down(bounds[0].speed))
    wished = _outcome(send, pace, send.speed) if send.speed else None
    return Plan(bounds, advised, wished, tuple(_warnings(send, pace, wished or advised)))


def _bounds(send: PlannedSend, pace: SendPace) -> Iterator[Bound]:
    planned = f"{HEADROOM * 100:.0f} % of "
    yield Bound(
        "this bridge",
        f"{planned}{pace.requests:,.0f} calls/s × 60 ÷ {_n(send.requests)} calls per recipient",
        HEADROOM * pace.requests * 60 / send.requests,
    )
    for name, rate, cost in (
        ("SessionM Core", pace.core, send.core),
        ("SessionM Connect", pace.connect, send.connect),
    ):
        if cost:
            yield Bound(
                name,
                f"{planned}{_n(rate)} calls/s × 60 ÷ {_n(cost)} calls per recipient",
                HEADROOM * rate * 60 / cost,
            )
    if send.kind.triggered:
        yield Bound(
            "Braze's hourly limit",
            f"{planned}{TRIGGERS_AN_HOUR:,} calls an hour ÷ 60, one for each recipient at worst",
            HEADROOM * TRIGGERS_AN_HOUR / 60,
        )
        yield Bound(
            "BRAZE_RPS",
            f"{_n(pace.triggers)} calls/s × 60, one for each recipient at worst",
            pace.triggers * 60,
        )
    if send.kind.serial:
        cold = 1 - send.warm
        each = cold * pace.cold + (send.calls - cold) * CACHED
        yield Bound(
            "one customer after the other",
            f"60 s ÷ {_n(each * 1000)} ms for each customer",
            60 / each,
        )
    if send.failures:
        yield Bound(
            "Braze's failure limit",
            f"half of {FAILURE_BUDGET:,} failures a minute ÷ {_n(send.failures)} per recipient",
            FAILURE_BUDGET / 2 / send.failures,
        )


def _outcome(send: PlannedSend, pace: SendPace, speed: int) -> Outcome:
    seconds = send.recipients / speed * 60
    reads = speed / 60 * (send.core - send.writes)
    # Lookups have priority; writes get the rest of Core's capacity.
    left = max(pace.core - reads, 0.1)
    coming = speed / 60 * send.writes
    backlog = max(0.0, coming - left) * seconds
    return Outcome(
        speed=speed,
        seconds=seconds,
        backlog=math.ceil(backlog),
        written=seconds + backlog / pace.core,
        core_rate=speed / 60 * send.core,
        connect_rate=speed / 60 * send.connect,
        failures_a_minute=speed * send.failures,
    )


def _warnings(send: PlannedSend, pace: SendPace, outcome: Outcome) -> Iterator[str]:
    at = f"At {'your ' if send.speed else ''}{outcome.speed:,} a minute"
    cold_core = outcome.core_rate - outcome.speed / 60 * send.writes
    if outcome.backlog and send.writes:
        yield (
            f"{at}, tags come faster than SessionM takes them: "
            f"{outcome.speed / 60 * send.writes:,.0f} writes a second against {pace.core:,.0f}. "
            f"Nothing is lost, but up to {outcome.backlog:,} writes will wait."
        )
        if not send.counters:
            yield from _in_bulk(at, pace, outcome)
    if outcome.written - outcome.seconds > LATE:
        yield (
            f"{at}, tags will be over five minutes late, and health will say degraded: do not "
            "branch on them in Braze before the backlog is gone."
        )
    if outcome.backlog > pace.queue_limit:
        yield (
            f"{at}, the backlog would pass this bridge's limit ({pace.queue_limit:,} writes): "
            "webhooks would be answered 503, which Braze retries for half an hour only."
        )
    for name, rate, most in (
        ("Core", cold_core, pace.core),
        ("Connect", outcome.connect_rate, pace.connect),
    ):
        if rate > most:
            yield (
                f"{at}, lookups would ask SessionM {name} {rate:,.0f} times a second against "
                f"{most:,.0f}: some recipients would get a message without their data. Send "
                "more slowly, or fetch them before the send: bridge warm."
            )
    if send.kind.serial and send.warm < 1:
        yield (
            "A Context step calls for one customer after the other, and a customer leaves the "
            "Canvas if the call fails: run bridge warm before the send, and use on_error=empty."
        )
    if send.counters and send.kind.writes:
        yield (
            "Counters need a dispatch_id in the webhook: without one, a retry by Braze counts "
            "twice."
        )
    if outcome.failures_a_minute > FAILURE_BUDGET / 2:
        yield (
            f"{at}, about {outcome.failures_a_minute:,.0f} webhooks fail each minute: from "
            f"{FAILURE_BUDGET:,} on, Braze stops calling this host for a minute."
        )


def _in_bulk(at: str, pace: SendPace, outcome: Outcome) -> Iterator[str]:
    if not pace.bulk_threshold:
        yield (
            f"{at}, bulk delivery, which is off, would deliver the backlog of tags with a TTL of "
            "whole days by batch jobs, with a handful of calls."
        )
    elif outcome.backlog > pace.bulk_threshold:
        yield (
            f"{at}, more than {pace.bulk_threshold:,} tags with a TTL of whole days wait and are "
            "delivered by batch jobs: they will be in SessionM sooner than the table says."
        )


def _round_down(speed: float) -> int:
    """Round *speed* down to two significant digits."""
    whole = max(1, int(speed))
    step = int(10 ** max(0, len(str(whole)) - 2))
    return whole // step * step


def _n(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")
