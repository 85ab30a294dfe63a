"""What an operator can order, on the command line or through the admin API.

Replay, discard, erase, pause: one piece of code for both.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.customer import Customer
from bridge.fields import FieldError
from bridge.intake.payload import RefusedError
from bridge.outbox.accept import Acceptor
from bridge.outbox.delivery import PAUSE_FACT
from bridge.outbox.events import REPLAYABLE, Events, Filter, Stored
from bridge.outbox.schema import State
from bridge.outbox.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """How many events an order matched, how many it changed, and why the others stayed."""

    matched: int
    changed: int
    refused: tuple[str, ...] = ()


class Operator:
    """Carries out orders on stored events; *changed* is told the customers (keys) of those."""

    def __init__(
        self, store: Store, events: Events, acceptor: Acceptor, changed: Callable[[str], None]
    ) -> None:
        self._store = store
        self._events = events
        self._acceptor = acceptor
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
        matched = changed = 0
        refused: list[str] = []
        for batch in self._events.matching(wanted, (state,)):
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
        matched = changed = 0
        for batch in self._events.matching(wanted, (state,)):
            matched += len(batch)
            if not dry_run:
                changed += self._events.discard([event.id for event in batch], time.time())
                self._tell(batch)
        return Done(matched, changed)

    def discard_one(self, event_id: str) -> Done | None:
        """Give up one event; ``None`` if there is none of that id."""
        event = self._events.one(event_id)
        if event is None:
            return None
        changed = self._events.discard([event_id], time.time())
        self._tell([event])
        return Done(1, changed, () if changed else (f"it is {event.state}",))

    def pause(self) -> None:
        """Let no write go out until `resume`, restarts included."""
        self._store.set_fact(PAUSE_FACT, {"paused": True, "at": time.time()})
        log.warning("delivery paused by hand", extra={"action": "paused"})

    def resume(self) -> None:
        """Let writes go out at once, also where SessionM asked to wait."""
        self._store.set_fact(PAUSE_FACT, {"paused": False, "at": time.time()})
        log.warning("delivery resumed by hand", extra={"action": "resumed"})

    @property
    def is_paused(self) -> bool:
        """Whether delivery is paused by hand."""
        return bool((self._store.fact(PAUSE_FACT) or {}).get("paused"))

    def erase(self, customer: Customer) -> int:
        """Forget *customer* in the outbox; returns how many events there were."""
        erased = self._events.erase(customer)
        self._changed(customer.key)
        log.warning("customer erased", extra={"action": "erased", "customer": customer.key})
        return erased

    def _tell(self, changed: list[Stored]) -> None:
        for event in changed:
            if event.customer:
                self._changed(event.customer)

    def _replay(self, batch: list[Stored], *, dry_run: bool = False) -> Done:
        rejected = [event for event in batch if event.state is State.REJECTED]
        others = [event.id for event in batch if event.state is not State.REJECTED]
        changed = 0
        if others and not dry_run:
            changed = self._events.queue_again(others, time.time())
            self._tell(batch)
        refused = []
        for event in rejected:
            try:
                accepted = self._acceptor.read_again(event)
            except RefusedError as refusal:
                refused.append(f"{event.id}: {refusal}")
                continue
            if not dry_run:
                changed += self._events.take_in(accepted)
                self._changed(accepted.customer or "")
        if changed:
            log.info("%s events replayed", changed, extra={"action": "replayed"})
        return Done(len(batch), changed, tuple(refused))
