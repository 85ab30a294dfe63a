"""Actions of an operator, for the command line and the admin API: replay, discard, erase, pause."""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from bridge import clock
from bridge.breaker import Breaker
from bridge.bulk.store import BatchStore
from bridge.customer import Customer
from bridge.fields import FieldError
from bridge.intake.payload import RefusedError
from bridge.outbox.accept import Acceptor
from bridge.outbox.clocks import HEARTBEAT_FACTS
from bridge.outbox.delivery import HEARTBEAT, PAUSE_FACT, is_alive
from bridge.outbox.events import DISCARDABLE, REPLAYABLE, Events, StoredEvent
from bridge.outbox.model import Direction, State
from bridge.outbox.search import Filter
from bridge.outbox.store import DELIVERER_FACT, Store

log = logging.getLogger(__name__)

# Seconds in which the deliverer must confirm a pause, and between two reads of its heartbeat.
PAUSE_TIMEOUT = 2 * HEARTBEAT
PAUSE_POLL = 0.05


@dataclass(frozen=True)
class Done:
    """The number of matching events, of changed ones, and why others were not changed."""

    matched: int
    changed: int
    refused: tuple[str, ...] = ()


class Operator:
    """Carries out actions on stored events.

    *by* of each action is the name of the operator's key, for the log and the history of the
    events. Each action raises `StoreUnavailableError` if the store is unavailable.

    Args:
        store: the writes, and the facts about delivery.
        events: the events.
        acceptor: reads rejected events again.
        batches: the batches, in which customers are erased too.
        changed: called with the key of a customer whose events were changed.
        breakers: those of the lookups, which also show the state of the systems.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        acceptor: Acceptor,
        batches: BatchStore,
        changed: Callable[[str], None],
        breakers: Iterable[Breaker],
    ) -> None:
        self._store = store
        self._events = events
        self._acceptor = acceptor
        self._batches = batches
        self._changed = changed
        self._breakers = tuple(breakers)

    def replay(self, chosen: Filter, *, by: str, dry_run: bool) -> Done:
        """Send every event again that *chosen* matches, by default the dead ones.

        A rejected event is read again with the present rules, and accepted if it is valid now.

        Raises:
            FieldError: events in the chosen state cannot be replayed.
        """
        state = chosen.state or State.DEAD
        if state not in REPLAYABLE:
            raise FieldError("state", f"must be {_any_of(REPLAYABLE)} to be replayed")
        chosen = replace(chosen, state=state)
        if dry_run and state is not State.REJECTED:
            return Done(self._events.count(chosen), 0)
        matched = changed = 0
        refused: list[str] = []
        for batch in self._events.matching(chosen):
            matched += len(batch)
            done = self._replay(batch, by, dry_run=dry_run)
            changed += done.changed
            refused.extend(done.refused)
        return Done(matched, changed, tuple(refused))

    def count_uncertain(self, chosen: Filter) -> int:
        """Count the events, of those that `replay` would send, that Braze may have sent before."""
        return self._events.count(replace(chosen, state=chosen.state or State.DEAD, uncertain=True))

    def replay_one(self, event_id: str, by: str) -> Done | None:
        """Send one event again; ``None`` if no event has the id."""
        event = self._events.one(event_id)
        if event is None:
            return None
        if event.state not in REPLAYABLE:
            return Done(1, 0, (f"it is {event.state}, not {_any_of(REPLAYABLE)}",))
        return self._replay([event], by)

    def discard(self, chosen: Filter, *, by: str = "", dry_run: bool = False) -> Done:
        """Discard every event that *chosen* matches, by default the dead ones.

        Raises:
            FieldError: events in the chosen state cannot be discarded.
        """
        state = chosen.state or State.DEAD
        if state not in DISCARDABLE:
            raise FieldError("state", f"must be {_any_of(DISCARDABLE)} to be discarded")
        chosen = replace(chosen, state=state)
        if dry_run:
            return Done(self._events.count(chosen), 0)
        matched = changed = 0
        for batch in self._events.matching(chosen):
            matched += len(batch)
            changed += self._discard([event.id for event in batch], by)
            self._report_changed(batch)
        return Done(matched, changed)

    def discard_one(self, event_id: str, by: str = "") -> Done | None:
        """Discard one event; ``None`` if no event has the id."""
        event = self._events.one(event_id)
        if event is None:
            return None
        changed = self._discard([event_id], by)
        self._report_changed([event])
        why = f"it is {event.state}, not {_any_of(DISCARDABLE)}"
        return Done(1, changed, () if changed else (why,))

    def pause(self, by: str = "") -> bool:
        """Send no write until `resume`, also after restarts.

        Returns:
            Whether the deliverer has confirmed the pause within `PAUSE_TIMEOUT`, so that no call
            begins any more; also true without a deliverer.
        """
        order = uuid.uuid4().hex
        self._store.set_fact(PAUSE_FACT, {"paused": True, "id": order, "at": clock.now(), "by": by})
        log.warning("delivery paused by hand", extra={"action": "paused", "by": by})
        until = time.monotonic() + PAUSE_TIMEOUT
        while any(self._is_unconfirmed(direction, order) for direction in Direction):
            if time.monotonic() > until:
                return False
            time.sleep(PAUSE_POLL)
        return True

    def _is_unconfirmed(self, direction: Direction, order: str) -> bool:
        beat = self._store.fact(HEARTBEAT_FACTS[direction]) or {}
        deliverer = self._store.fact(DELIVERER_FACT[direction]) or {"ended": True}
        return not deliverer["ended"] and is_alive(beat) and beat.get("order") != order

    def resume(self, by: str = "") -> None:
        """Send writes again at once, also if SessionM or Braze asked the bridge to wait."""
        order = {"paused": False, "id": uuid.uuid4().hex, "at": clock.now(), "by": by}
        for breaker in self._breakers:
            breaker.hold(0.0)
        # Those that were asked to wait have their own time.
        self._store.make_due(clock.now(), unknown=False)
        self._store.set_fact(PAUSE_FACT, order)
        log.warning("delivery resumed by hand", extra={"action": "resumed", "by": by})

    def named_beside(self, customer: Customer) -> set[Customer]:
        """Return the identifiers that events of *customer* alone name beside it."""
        alone = (named for event, named in self._events_of(customer) if not event.is_shared)
        return {one for named in alone for one in named} - {customer}

    def erase(self, customer: Customer, by: str = "") -> int:
        """Erase *customer* from events and batches by the rules of `Parts.erase`.

        Returns:
            The number of events that were deleted or changed.
        """
        chosen, cut = [], 0
        for event, named in self._events_of(customer):
            if named and event.is_shared:
                cut += self._events.cut(event.id, partial(self._acceptor.without, customer))
            else:
                chosen.append(event.id)
        self._batches.erase(customer)
        erased = self._events.erase(customer, chosen)
        self._changed(customer.key)
        extra = {"action": "erased", "customer": customer.key, "by": by}
        log.warning("customer erased", extra=extra)
        return erased + cut

    def _events_of(self, customer: Customer) -> Iterator[tuple[StoredEvent, tuple[Customer, ...]]]:
        """Yield the events of *customer*, each with all customers that it names."""
        for event in self._events.mentioning(customer):
            named = self._acceptor.customers_in(event)
            if (
                customer in (named or ())
                or event.customer == customer.key
                or (named is None and event.has_word(customer.id))
            ):
                yield event, named or ()

    def _report_changed(self, changed: list[StoredEvent]) -> None:
        for event in changed:
            if event.customer:
                self._changed(event.customer)

    def _replay(self, batch: list[StoredEvent], by: str, *, dry_run: bool = False) -> Done:
        rejected = [event for event in batch if event.state is State.REJECTED]
        others = [event.id for event in batch if event.state is not State.REJECTED]
        replayed: list[str] = []
        refused = []
        if others and not dry_run:
            requeued = self._events.requeue(others, clock.now(), by)
            replayed += sorted(requeued)
            refused += [
                f"{one}: nothing of it can be sent again" for one in others if one not in requeued
            ]
            self._report_changed(batch)
        for event in rejected:
            try:
                accepted = self._acceptor.read_again(event)
            except RefusedError as refusal:
                refused.append(f"{event.id}: {refusal}")
                continue
            if dry_run:
                continue
            if reason := self._events.accept_rejected(accepted, by):
                refused.append(f"{event.id}: {reason}")
                continue
            replayed.append(event.id)
            self._changed(accepted.customer or "")
        _log("replayed", replayed, by)
        return Done(len(batch), len(replayed), tuple(refused))

    def _discard(self, event_ids: list[str], by: str) -> int:
        discarded = self._events.discard(event_ids, clock.now(), by)
        _log("discarded", sorted(discarded), by)
        return len(discarded)


def _any_of(states: tuple[State, ...]) -> str:
    return f"{', '.join(states[:-1])} or {states[-1]}"


def _log(action: str, event_ids: list[str], by: str) -> None:
    for event_id in event_ids:
        log.info("event %s", action, extra={"action": action, "event": event_id, "by": by})
