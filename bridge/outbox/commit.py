"""Many requests, one fsync.

Request threads and the event loop hand their events to one thread per process. It stores all
pending events in one transaction, and then reports the outcome to each sender.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future

from bridge import clock
from bridge.outbox.model import Direction, NewEvent
from bridge.outbox.store import Store
from bridge.storage.database import StoreUnavailableError, in_time, time_left

log = logging.getLogger(__name__)

# Events. One transaction stores at most about this number.
MOST_EVENTS = 256

OnStored = Callable[[Collection[Direction]], None]

# ``None``: stored. Text: a duplicate of the event with that id. An error: not stored.
Outcome = str | StoreUnavailableError | None


class PendingEvent:
    """An event to be stored.

    Args:
        event: the event.
        report: called once with the outcome.
        until: the sender's deadline, by `time.monotonic`.
        loop: the event loop that must call *report*; ``None``: the committer's thread.
    """

    __slots__ = ("_claim", "event", "loop", "report", "until")

    def __init__(
        self,
        event: NewEvent,
        report: Callable[[Outcome], None],
        until: float,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.event = event
        self.until = until
        self.report = report
        self.loop = loop
        self._claim = threading.Lock()

    def take(self) -> bool:
        """Claim the event; return false if another thread has claimed it."""
        return self._claim.acquire(blocking=False)


class Committer:
    """Stores events durably: `store` returns when the event is on disk.

    Args:
        store: where to store them.
        on_stored: called after each transaction with the directions of its events.
    """

    def __init__(self, store: Store, on_stored: OnStored) -> None:
        self._store = store
        self._on_stored = on_stored
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pending: queue.SimpleQueue[list[PendingEvent]] = queue.SimpleQueue()
        # Events of one round of the event loop.
        self._gathered: list[PendingEvent] = []

    def store(self, event: NewEvent) -> str | None:
        """Store *event*.

        Returns:
            ``None``, or the id of the same event if it was stored before.

        Raises:
            StoreUnavailableError: the event is not stored.
        """
        future: Future[Outcome] = Future()
        timeout = min(self._store.database.request_timeout, time_left())
        pending = PendingEvent(event, future.set_result, time.monotonic() + timeout)
        self._hand_over([pending])
        try:
            outcome = future.result(max(0.0, timeout))
        except TimeoutError:
            if pending.take():
                raise StoreUnavailableError("the database is too slow") from None
            # The transaction has begun: wait for its outcome.
            outcome = future.result()
        if isinstance(outcome, StoreUnavailableError):
            raise outcome
        return outcome

    async def store_async(self, event: NewEvent) -> str | None:
        """As `store`, on the running event loop.

        Raises:
            StoreUnavailableError: the event is not stored.
        """
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[Outcome] = loop.create_future()
        timeout = self._store.database.request_timeout
        pending = PendingEvent(event, stored.set_result, time.monotonic() + timeout, loop)
        if not self._gathered:
            # Hand over the events of a whole round at once: each hand-over wakes a thread.
            loop.call_soon(self._hand_over_gathered)
        self._gathered.append(pending)

        def give_up() -> None:
            # If it is claimed, the transaction has begun: wait for its outcome.
            if pending.take():
                stored.set_result(StoreUnavailableError("the database is too slow"))

        end = loop.call_later(timeout, give_up)
        try:
            outcome = await stored
        finally:
            end.cancel()
        if isinstance(outcome, StoreUnavailableError):
            raise outcome
        return outcome

    def _hand_over_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._hand_over(gathered)

    def _hand_over(self, pending: list[PendingEvent]) -> None:
        if self._thread is None:
            self._start()
        self._pending.put(pending)

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._commit([], self._pending.get(), self._others)

    def _others(self) -> Iterator[PendingEvent]:
        """Claim the events that are pending now."""
        taken = 0
        while taken < MOST_EVENTS and not self._pending.empty():
            for one in self._pending.get():
                if one.take():
                    taken += 1
                    yield one

    def _commit(
        self,
        batch: list[PendingEvent],
        waiting: Sequence[PendingEvent] = (),
        others: Callable[[], Iterable[PendingEvent]] = tuple,
    ) -> None:
        """Store *batch*, which is claimed, those *waiting*, and *others*.

        The others are claimed when the transaction has begun: until then, their senders can give
        up, for example while another program holds a lock.
        """
        # A deadline that has passed does not count: its sender no longer waits.
        ends, now = [one.until for one in (*batch, *waiting)], time.monotonic()
        until = min((end for end in ends if end > now), default=max(ends))
        try:
            with in_time(until), self._store.adding() as add:
                batch += [one for one in waiting if one.take()]
                batch.extend(others())
                repeats = add([_dated(one.event) for one in batch]) if batch else {}
        except StoreUnavailableError as error:
            batch += [one for one in waiting if one.take()]
            log.error("not stored: %s", error, extra={"action": "store_failed"})
            _report([(one, error) for one in batch])
        except Exception as error:
            batch += [one for one in waiting if one.take()]
            log.exception("not stored", extra={"action": "store_failed"})
            # One event that cannot be stored must not prevent the others.
            if len(batch) == 1:
                _report([(batch[0], StoreUnavailableError(type(error).__name__))])
            else:
                for one in batch:
                    self._commit([one])
        else:
            _report([(one, repeats.get(one.event.id)) for one in batch])
            self._on_stored({one.event.direction for one in batch})


def _dated(event: NewEvent) -> NewEvent:
    """Return *event*, with the present time if the store's clock has jumped since it was received.

    The clock does not jump during the transaction.
    """
    now = clock.now()
    age = abs(now - event.received_at)
    return event if age < clock.JUMP / 2 else event._replace(received_at=now)


def _report(ended: Sequence[tuple[PendingEvent, Outcome]]) -> None:
    """Report outcomes; an event loop gets all of its outcomes at once, by one system call."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[PendingEvent, Outcome]]] = {}
    for one, outcome in ended:
        if one.loop is None:
            one.report(outcome)
        else:
            loops.setdefault(one.loop, []).append((one, outcome))
    for loop, some in loops.items():
        try:
            loop.call_soon_threadsafe(_report_here, some)
        except RuntimeError:
            # The process is ending, and its connections are closed.
            log.warning("the event loop is closed", extra={"action": "loop_closed"})


def _report_here(some: Sequence[tuple[PendingEvent, Outcome]]) -> None:
    for one, outcome in some:
        try:
            one.report(outcome)
        except Exception:
            log.exception("an answer failed", extra={"action": "answer_failed"})
