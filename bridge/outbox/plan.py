"""One customer's waiting writes -> the next call. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bridge.outbox.schema import HELD
from bridge.outbox.store import QueuedWrite

MOST_TAGS = 100
# Within a minute of its acceptance a write carries its TTL as it was given.
PUNCTUAL = 60.0
# A call whose outcome is unknown may still be at work in SessionM, also if the process that made
# it is dead. Only after so long do SessionM's counts tell what it did (assumed).
SETTLED = 5.0


@dataclass(frozen=True)
class Call:
    """Writes that go out together."""

    writes: tuple[QueuedWrite, ...]
    tags: tuple[str, ...]
    ttl: int | None

    @property
    def customer(self) -> str:
        return self.writes[0].customer

    @property
    def counts(self) -> bool:
        """Whether the tags are counters, so that a repeat would count twice."""
        return self.ttl is None


@dataclass(frozen=True)
class Wait:
    """Nothing to do for this customer before *until*."""

    until: float


@dataclass(frozen=True)
class Expire:
    """Writes whose TTL has run out before they could be sent."""

    writes: tuple[QueuedWrite, ...]


def next_step(queue: Sequence[QueuedWrite], now: float) -> Call | Wait | Expire:
    """What is next for a customer whose waiting writes, oldest first, are *queue*."""
    head = queue[0]
    # What is in doubt comes first, also if it was replayed: else its counts would be mixed up.
    doubtful = next((write for write in queue if write.intent), None)
    if (doubtful or head).next_at > now:
        return Wait((doubtful or head).next_at)
    if doubtful and doubtful.intent:
        settled = doubtful.intent.get("at", 0.0) + SETTLED
        if now < settled:
            return Wait(settled)
        # Settled with exactly the writes that were sent.
        again = [write for write in queue if write.intent == doubtful.intent]
        return _call(again, now)
    run_out = tuple(write for write in queue if write.expires_at <= now)
    if run_out:
        return Expire(run_out)
    return _call(_together(queue), now)


def _together(queue: Sequence[QueuedWrite]) -> list[QueuedWrite]:
    """The head and what may go with it.

    A later write may overtake others only if it shares no tag with them: then the outcome is
    the same. A counter that waits twice must count twice, so its second comes in a later call.
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
            and write.next_at < HELD
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
    return one.ttl is None or abs(one.accepted_at - other.accepted_at) <= PUNCTUAL


def _call(chosen: Sequence[QueuedWrite], now: float) -> Call:
    tags = tuple(dict.fromkeys(tag for write in chosen for tag in write.tags))
    newest = max(chosen, key=lambda write: write.accepted_at)
    oldest_at = min(write.accepted_at for write in chosen)
    if newest.ttl is None or now - oldest_at <= PUNCTUAL:
        return Call(tuple(chosen), tags, newest.ttl)
    # A late write carries what is left, so that the tag ends when it should.
    return Call(tuple(chosen), tags, max(1, math.floor(newest.expires_at - now)))
