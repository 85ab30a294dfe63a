"""What an operator can order, on the command line or through the admin API.

Replay, discard, erase, pause: one piece of code for both.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from bridge.customer import Customer
from bridge.fields import FieldError
from bridge.intake.payload import RefusedError, named_customers
from bridge.outbox.accept import Acceptor
from bridge.outbox.delivery import HEARTBEAT, HEARTBEAT_FACT, PAUSE_FACT, SILENCE
from bridge.outbox.events import REPLAYABLE, Events, Stored
from bridge.outbox.jobs import Jobs
from bridge.outbox.schema import State
from bridge.outbox.search import Filter
from bridge.outbox.store import DELIVERER_FACT, Store

log = logging.getLogger(__name__)

# Seconds that the deliverer has to hear of a pause, and between two looks whether it has.
HEARS = 2 * HEARTBEAT
PEEK = 0.05


@dataclass(frozen=True)
class Done:
    """How many events an order matched, how many it changed, and why the others stayed."""

    matched: int
    changed: int
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Erased:
    """How many events are gone, and by which other identifiers they knew the customer."""

    events: int
    others: tuple[Customer, ...] = ()


class Operator:
    """Carries out orders on stored events; *changed* is told the customers (keys) of those."""

    def __init__(
        self,
        store: Store,
        events: Events,
        acceptor: Acceptor,
        jobs: Jobs,
        changed: Callable[[str], None],
    ) -> None:
        self._store = store
        self._events = events
        self._acceptor = acceptor
        self._jobs = jobs
        self._changed = changed

    def replay(self, wanted: Filter, *, dry_run: bool = False) -> Done:
        """Send every dead event that *wanted* matches once more.

        With ``state`` set to rejected or discarded, those: a rejected one is read again under
        the present rules and, if it can be understood now, goes the normal way.

        Raises:
            FieldError: events of the wanted state cannot be replayed.
        """
        state = wanted.state or State.DEAD
        if state not in REPLAYABLE:
            raise FieldError("state", f"must be one of {', '.join(REPLAYABLE)} to be replayed")
        wanted = replace(wanted, state=state)
        if dry_run and state is not State.REJECTED:
            return Done(self._events.count(wanted), 0)
        matched = changed = 0
        refused: list[str] = []
        for batch in self._events.matching(wanted):
            matched += len(batch)
            done = self._replay(batch, dry_run=dry_run)
            changed += done.changed
            refused.extend(done.refused)
        return Done(matched, changed, tuple(refused))

    def replay_one(self, event_id: str) -> Done | None:
        """Send one event once more; ``None`` if there is none of that id."""
        event = self._events.one(event_id)
        if event is None:
            return None
        if event.state not in REPLAYABLE:
            return Done(1, 0, (f"it is {event.state}",))
        return self._replay([event])

    def discard(self, wanted: Filter, *, dry_run: bool = False) -> Done:
        """Give up every event that *wanted* matches and that is not ended; by default the dead.

        Raises:
            FieldError: events of the wanted state have ended.
        """
        state = wanted.state or State.DEAD
        if state not in {State.DEAD, State.REJECTED, State.QUEUED}:
            raise FieldError("state", "must be dead, rejected or queued to be discarded")
        wanted = replace(wanted, state=state)
        if dry_run:
            return Done(self._events.count(wanted), 0)
        matched = changed = 0
        for batch in self._events.matching(wanted):
            matched += len(batch)
            changed += self._discard([event.id for event in batch])
            self._tell(batch)
        return Done(matched, changed)

    def discard_one(self, event_id: str) -> Done | None:
        """Give up one event; ``None`` if there is none of that id."""
        event = self._events.one(event_id)
        if event is None:
            return None
        changed = self._discard([event_id])
        self._tell([event])
        return Done(1, changed, () if changed else (f"it is {event.state}",))

    def pause(self) -> bool:
        """Let no write go out until `resume`, restarts included.

        Returns:
            Whether the deliverer has heard of it, or there is none: no call begins any more. It
            has `HEARS` seconds for that.
        """
        ordered_at = time.time()
        self._store.set_fact(PAUSE_FACT, {"paused": True, "at": ordered_at})
        log.warning("delivery paused by hand", extra={"action": "paused"})
        until = time.monotonic() + HEARS
        while self._delivers_unaware_of(ordered_at):
            if time.monotonic() > until:
                return False
            time.sleep(PEEK)
        return True

    def _delivers_unaware_of(self, ordered_at: float) -> bool:
        beat = self._store.fact(HEARTBEAT_FACT) or {}
        deliverer = self._store.fact(DELIVERER_FACT) or {"ended": True}
        alive = not deliverer["ended"] and time.time() - beat.get("at", 0.0) < SILENCE
        return alive and beat.get("ordered_at", 0.0) < ordered_at

    def resume(self) -> None:
        """Let writes go out at once, also where SessionM asked to wait."""
        self._store.set_fact(PAUSE_FACT, {"paused": False, "at": time.time()})
        log.warning("delivery resumed by hand", extra={"action": "resumed"})

    @property
    def is_paused(self) -> bool:
        """Whether delivery is paused by hand."""
        return bool((self._store.fact(PAUSE_FACT) or {}).get("paused"))

    def erase(self, customer: Customer) -> Erased:
        """Forget *customer* in the outbox.

        An event that came with both identifiers goes whichever is given, and tells the other one.
        One that is rejected, or whose customer cannot be read, goes if the id stands anywhere in
        its body.
        """
        chosen, others = [], {}
        for event in self._events.mentioning(customer):
            named = named_customers(event.body, event.content_type)
            if customer in named:
                others.update(dict.fromkeys(one for one in named if one != customer))
            elif event.state is not State.REJECTED and event.customer not in {None, customer.key}:
                # The same text, as a tag or as part of somebody else's id.
                continue
            chosen.append(event.id)
        self._jobs.erase(customer)
        erased = self._events.erase(customer, chosen)
        self._changed(customer.key)
        log.warning("customer erased", extra={"action": "erased", "customer": customer.key})
        return Erased(erased, tuple(others))

    def _tell(self, changed: list[Stored]) -> None:
        for event in changed:
            if event.customer:
                self._changed(event.customer)

    def _replay(self, batch: list[Stored], *, dry_run: bool = False) -> Done:
        rejected = [event for event in batch if event.state is State.REJECTED]
        others = [event.id for event in batch if event.state is not State.REJECTED]
        replayed: list[str] = []
        if others and not dry_run:
            replayed += sorted(self._events.queue_again(others, time.time()))
            self._tell(batch)
        refused = []
        for event in rejected:
            try:
                accepted = self._acceptor.read_again(event)
            except RefusedError as refusal:
                refused.append(f"{event.id}: {refusal}")
                continue
            if not dry_run and self._events.take_in(accepted):
                replayed.append(event.id)
                self._changed(accepted.customer or "")
        _log("replayed", replayed)
        return Done(len(batch), len(replayed), tuple(refused))

    def _discard(self, event_ids: list[str]) -> int:
        discarded = self._events.discard(event_ids, time.time())
        _log("discarded", sorted(discarded))
        return len(discarded)


def _log(action: str, event_ids: list[str]) -> None:
    for event_id in event_ids:
        log.info("event %s", action, extra={"action": action, "event": event_id})
