"""The send planner: how fast Braze may send, and what becomes of it. Pure arithmetic.

Braze makes two to three Connected Content calls per recipient, does not limit their rate, and
does not spread a send evenly (Braze documentation); its one control is a campaign's delivery
speed in messages a minute.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

# Braze's own, in a moving minute; half of it is where the bridge becomes degraded.
FAILURE_BUDGET = 3000
# The backlog may hold so much that the last write waits this long before health says so.
LATE = 300.0
# Of what is possible, so much is planned with where Braze's unevenness hits SessionM or us.
HEADROOM = 0.8


@dataclass(frozen=True)
class Kind:
    """A kind of message: what one recipient costs.

    Attributes:
        writes: whether its webhook writes tags.
        core: calls to SessionM Core for a lookup that is not cached.
        connect: likewise to Connect.
    """

    label: str
    writes: bool = False
    core: int = 0
    connect: int = 0

    @property
    def looks_up(self) -> bool:
        return self.core + self.connect > 0


KINDS = {
    "webhook": Kind("Webhook: writes tags", writes=True),
    "tags": Kind("Message with one lookup: tags", core=1),
    "offers": Kind("Message with one lookup: offers", connect=1),
    "customer": Kind("Message with one lookup: tags and offers", core=1, connect=1),
    "offers_webhook": Kind("Message with offers, and a webhook after it", writes=True, connect=1),
}


@dataclass(frozen=True)
class Send:
    """What is to be sent.

    Attributes:
        recipients: how many.
        kind: what each costs.
        calls: Connected Content calls that Braze makes per recipient.
        counters: whether the webhook counts tags, too, which takes a call of its own.
        retries: share of calls that Braze makes again.
        warm: share of recipients whose lookup is cached already.
        speed: messages a minute that somebody has in mind; 0 for none.
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
class Pace:
    """What this bridge and SessionM take, a second.

    Attributes:
        core: calls to SessionM Core.
        connect: calls to SessionM Connect.
        requests: calls by Braze that the bridge answers.
        queue_limit: waiting writes at which webhooks are refused.
        bulk_threshold: waiting writes above which tags leave as batch jobs; 0: never.
    """

    core: float
    connect: float
    requests: float
    queue_limit: int
    bulk_threshold: int = 0


@dataclass(frozen=True)
class Bound:
    """One limit of the speed, in messages a minute, and the sum that led to it."""

    name: str
    sum: str
    speed: float


@dataclass(frozen=True)
class Outcome:
    """What becomes of a send at *speed* messages a minute.

    Times are seconds. *backlog* is the most writes that wait at once, *written* when the last
    of them is in SessionM, counted from the start of the send.
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
    """*bounds* has the tightest first; *advised* is at the speed to set, *wished* at one's own."""

    bounds: tuple[Bound, ...]
    advised: Outcome
    wished: Outcome | None
    warnings: tuple[str, ...]


def plan(send: Send, pace: Pace) -> Plan:
    """The plan for *send*."""
    bounds = tuple(sorted(_bounds(send, pace), key=lambda bound: bound.speed))
    advised = _outcome(send, pace, _round_down(bounds[0].speed))
    wished = _outcome(send, pace, send.speed) if send.speed else None
    return Plan(bounds, advised, wished, tuple(_warnings(send, pace, wished or advised)))


def _bounds(send: Send, pace: Pace) -> Iterator[Bound]:
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
    if send.retries:
        failing = send.requests * send.retries / (1 + send.retries)
        yield Bound(
            "Braze's patience",
            f"half of {FAILURE_BUDGET:,} failures a minute ÷ {_n(failing)} per recipient",
            FAILURE_BUDGET / 2 / failing,
        )


def _outcome(send: Send, pace: Pace, speed: int) -> Outcome:
    seconds = send.recipients / speed * 60
    reads = speed / 60 * (send.core - send.writes)
    # Lookups go first; what Core has left is for writes.
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
        failures_a_minute=speed * send.requests * send.retries / (1 + send.retries),
    )


def _warnings(send: Send, pace: Pace, outcome: Outcome) -> Iterator[str]:
    cold_core = outcome.core_rate - outcome.speed / 60 * send.writes
    if outcome.backlog and send.writes:
        yield (
            f"Tags come faster than SessionM takes them: {outcome.speed / 60 * send.writes:,.0f} "
            f"writes a second against {pace.core:,.0f}. Nothing is lost, but up to "
            f"{outcome.backlog:,} writes wait."
        )
        if not send.counters:
            yield from _in_bulk(pace, outcome)
    if outcome.written - outcome.seconds > LATE:
        yield (
            "Tags will be over five minutes late, and health will say degraded: do not branch on "
            "them in Braze before the backlog is gone."
        )
    if outcome.backlog > pace.queue_limit:
        yield (
            f"The backlog would pass BRIDGE_QUEUE_LIMIT ({pace.queue_limit:,}): webhooks would be "
            "answered 503, which Braze retries for half an hour only."
        )
    for name, rate, most in (
        ("Core", cold_core, pace.core),
        ("Connect", outcome.connect_rate, pace.connect),
    ):
        if rate > most:
            yield (
                f"Lookups would ask SessionM {name} {rate:,.0f} times a second against "
                f"{most:,.0f}: some recipients would get a message without their data. Send "
                "more slowly, or fetch them before the send: bridge warm."
            )
    if send.counters and send.kind.writes:
        yield (
            "Counters need a dispatch_id in the webhook: without one, a retry by Braze counts "
            "twice."
        )
    if outcome.failures_a_minute > FAILURE_BUDGET / 2:
        yield (
            f"About {outcome.failures_a_minute:,.0f} failed calls a minute: at "
            f"{FAILURE_BUDGET:,} Braze stops calling this host for a minute."
        )


def _in_bulk(pace: Pace, outcome: Outcome) -> Iterator[str]:
    if not pace.bulk_threshold:
        yield (
            "With BRIDGE_BULK_THRESHOLD set, tags with a TTL of whole days that wait would leave "
            "as batch jobs, a handful of calls for all of them."
        )
    elif outcome.backlog > pace.bulk_threshold:
        yield (
            f"More than {pace.bulk_threshold:,} waiting tags with a TTL of whole days leave as "
            "batch jobs (BRIDGE_BULK_THRESHOLD): they will be in SessionM sooner than the table "
            "says."
        )


def _round_down(speed: float) -> int:
    """*speed* to two digits, so that it can be typed and remembered."""
    whole = max(1, int(speed))
    step = int(10 ** max(0, len(str(whole)) - 2))
    return whole // step * step


def _n(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")
