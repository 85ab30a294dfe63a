"""Records of the outbox: events, their writes, and results of calls. Pure.

Times are seconds since the epoch.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from bridge.fields import counted
from bridge.intake.message import Send
from bridge.intake.rules import TagWrite

# The `next_at` of a write that waits for the end of a batch job. The job delivers this write, or an
# earlier one of the same customer.
AFTER_BATCH = 1e12


class Direction(StrEnum):
    """The destination of an event's writes. Each direction has its own delivery loop."""

    TO_SESSIONM = "to_sessionm"
    TO_BRAZE = "to_braze"


class State(StrEnum):
    """The state of an event or a write. Only events can be rejected."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    DEAD = "dead"
    REJECTED = "rejected"
    DISCARDED = "discarded"
    EXPIRED = "expired"


class NewEvent(NamedTuple):
    """An event to be stored, with its writes; a rejected event has a *reason* and no writes.

    Attributes:
        in_body: whether the body names the customer; otherwise the path does.
        path: the `MessagePath` of a message; "" for a webhook.
        sends: messages to Braze.
        dedupe_for: seconds for which *dedupe* is valid; ``None``: as long as the event is stored.
    """

    id: str
    received_at: float
    body: bytes
    content_type: str
    key_name: str
    request_id: str
    customer: str | None = None
    in_body: bool = True
    campaign_id: str | None = None
    canvas_id: str | None = None
    test: bool = False
    dedupe: str | None = None
    state: State = State.QUEUED
    reason: str = ""
    writes: tuple[TagWrite, ...] = ()
    ignored: tuple[str, ...] = ()
    idempotency_key: str | None = None
    campaign_name: str | None = None
    canvas_name: str | None = None
    direction: Direction = Direction.TO_SESSIONM
    path: str = ""
    sends: tuple[Send, ...] = ()
    dedupe_for: float | None = None


@dataclass(frozen=True)
class QueuedWrite:
    """A queued write.

    Attributes:
        ttl: seconds until the tags expire; ``None`` for counters.
        intent: the record that its last call stored before it was sent, see `Store.intend`.
        target: ``campaign:ID`` or ``canvas:ID`` for a message to Braze; "" for tags.
        content: a message to Braze, see `Send`; ``None`` for tags.
    """

    seq: int
    event_id: str
    customer: str
    tags: tuple[str, ...]
    ttl: int | None
    accepted_at: float
    next_at: float
    attempts: int
    intent: Mapping[str, Any] | None = None
    target: str = ""
    content: Mapping[str, Any] | None = None

    @property
    def expires_at(self) -> float:
        """When the tags expire; infinite for counters."""
        return float("inf") if self.ttl is None else self.accepted_at + self.ttl


@dataclass(frozen=True)
class CallResult:
    """The result of one call for *writes*.

    Attributes:
        state: the new state; ``queued`` is a retry at *next_at*.
        counts_attempt: whether the call counts towards the limit of attempts.
        intent: stored on the writes if the call may have worked, otherwise ``None``.
        keep_intent: whether the stored intent stays; *intent* is then ignored.
        uncertain: whether the call may have worked although it failed.
        unknown: whether the customer does not exist in SessionM yet.
        receipt: the destination's id of what it accepted (Braze's dispatch ID), or "".
    """

    writes: tuple[QueuedWrite, ...]
    state: State
    at: float
    outcome: str
    status: int = 0
    milliseconds: int = 0
    error: str = ""
    next_at: float = 0.0
    counts_attempt: bool = True
    intent: Mapping[str, Any] | None = None
    keep_intent: bool = False
    uncertain: bool = False
    unknown: bool = False
    receipt: str = ""


@dataclass(frozen=True)
class QueueDepth:
    """Numbers of queued and of dead writes, and when the oldest queued write was accepted.

    A write whose customer does not exist in SessionM yet is not late: *oldest_at* leaves such
    writes out, and *unknown_at* is when the oldest of them was accepted.
    """

    queued: int
    oldest_at: float | None
    dead: int
    unknown_at: float | None = None

    def waits(self, now: float) -> float:
        """Return the age of the oldest queued write in seconds."""
        return max(0.0, now - self.oldest_at) if self.oldest_at else 0.0

    @property
    def waits_for_customers(self) -> bool:
        """Whether every queued write is waiting for its customer to be created."""
        return self.unknown_at is not None and self.oldest_at is None


@dataclass(frozen=True)
class Extent:
    """Numbers of writes, and of their events, customers and campaigns; and of failed calls.

    Attributes:
        campaigns: IDs of campaigns and Canvases, those with most writes first.
        is_minimum: only some writes were read: there may be more customers and campaigns.
        events: of the writes that were read.
        webhooks: answered 503, messages of SessionM's among them.
        lookups: answered too late or not at all.
        stale: lookups that were answered with older data.
    """

    writes: int = 0
    customers: int = 0
    campaigns: tuple[str, ...] = ()
    is_minimum: bool = False
    events: int = 0
    webhooks: int = 0
    lookups: int = 0
    stale: int = 0

    def at_least(self, other: "Extent") -> "Extent":
        """Return the larger of each number, with the campaigns of both."""
        return Extent(
            max(self.writes, other.writes),
            max(self.customers, other.customers),
            tuple(dict.fromkeys((*other.campaigns, *self.campaigns)))[:MOST_CAMPAIGNS],
            self.is_minimum or other.is_minimum,
            max(self.events, other.events),
            max(self.webhooks, other.webhooks),
            max(self.lookups, other.lookups),
            max(self.stale, other.stale),
        )

    def amount(self, unit: str = "write") -> str:
        """Return the number of writes, in *unit*, and that of events where it differs."""
        writes = counted(self.writes, unit)
        if self.is_minimum or self.events in {0, self.writes}:
            return writes
        return f"{counted(self.events, 'event')} ({writes})"


# Campaigns. Most IDs in an extent.
MOST_CAMPAIGNS = 20


@dataclass(frozen=True)
class DeadGroup:
    """Dead writes with the same reason.

    Attributes:
        reason: without the parts that differ between the writes (identifiers, quoted words).
        text: the longest part of the reason that all of the writes share.
        since: when the first of them became dead.
        until: when the last of them became dead.
        passing: whether SessionM was unreachable or too busy in all of them.
        mended: whether a later event of their main campaign was delivered.
        uncertain: whether the destination may have got one of them.
    """

    reason: str
    text: str
    since: float
    until: float
    extent: Extent
    passing: bool = False
    mended: bool = False
    uncertain: bool = False


def new_event_id(now: float) -> str:
    """Return 32 hex digits that sort by time: milliseconds, then random digits."""
    # Not os.urandom, which releases the GIL. Ids are no secrets.
    return f"{id_prefix(now)}{random.getrandbits(80):020x}"


def id_prefix(at: float) -> str:
    """Return the first digits of the ids of events of that time."""
    return f"{int(at * 1000):012x}"
