"""Many requests, one fsync.

Request threads and the event loop hand their events to one thread per process, which stores
everything that waits in one transaction and then tells them all.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from bridge.database import StoreUnavailableError
from bridge.outbox.store import NewEvent, Store

log = logging.getLogger(__name__)

ENOUGH = 256
PATIENCE = 20.0

# What became of an event: stored (``None``), stored before under that id, or not stored.
Outcome = str | StoreUnavailableError | None


class Waiting:
    """An event that waits to be stored. *tell* hears once what became of it."""

    __slots__ = ("_free", "event", "loop", "tell")

    def __init__(
        self,
        event: NewEvent,
        tell: Callable[[Outcome], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.event = event
        self.tell = tell
        self.loop = loop
        self._free = [None]

    def take(self) -> bool:
        """Take it away from whoever else would: false if it is being stored, or given up."""
        try:
            # One thread alone can do this.
            self._free.pop()
        except IndexError:
            return False
        return True


class Committer:
    """Stores events durably; `store` returns when they are on disk.

    *on_stored* is told of each transaction that stored some.
    """

    def __init__(self, store: Store, on_stored: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_stored = on_stored
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting: queue.SimpleQueue[list[Waiting]] = queue.SimpleQueue()
        # The event loop's, until it has seen to everything that came at once.
        self._gathered: list[Waiting] = []

    def store(self, event: NewEvent) -> str | None:
        """Store *event*; the id of the same event if it was stored before, else ``None``.

        Raises:
            StoreUnavailableError: it is not stored.
        """
        future: Future[Outcome] = Future()
        waiting = Waiting(event, future.set_result)
        self._hand_over([waiting])
        try:
            outcome = future.result(PATIENCE)
        except TimeoutError:
            if waiting.take():
                raise StoreUnavailableError("the database is too slow") from None
            # It is being written at this moment: the answer is near.
            outcome = future.result()
        if isinstance(outcome, StoreUnavailableError):
            raise outcome
        return outcome

    def store_soon(self, event: NewEvent, tell: Callable[[Outcome], None]) -> Waiting:
        """Store *event* and *tell* the running event loop what became of it.

        Who waits no longer takes it back.
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(event, tell, loop)
        if not self._gathered:
            # One by one they would make two threads of this one's work.
            loop.call_soon(self._hand_over_gathered)
        self._gathered.append(waiting)
        return waiting

    def _hand_over_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._hand_over(gathered)

    def _hand_over(self, waiting: list[Waiting]) -> None:
        if self._thread is None:
            self._start()
        self._waiting.put(waiting)

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            first = [one for one in self._waiting.get() if one.take()]
            if first:
                self._commit(first, self._others)

    def _others(self) -> Iterator[Waiting]:
        """Who else waits at this moment."""
        taken = 0
        while taken < ENOUGH and not self._waiting.empty():
            for one in self._waiting.get():
                if one.take():
                    taken += 1
                    yield one

    def _commit(
        self, batch: list[Waiting], others: Callable[[], Iterable[Waiting]] = tuple
    ) -> None:
        """Store *batch*, and the *others* that are there when it is its turn."""
        try:
            with self._store.adding() as add:
                batch.extend(others())
                repeats = add([one.event for one in batch])
        except StoreUnavailableError as error:
            log.error("not stored: %s", error, extra={"action": "store_failed"})
            _tell([(one, error) for one in batch])
        except Exception as error:
            log.exception("not stored", extra={"action": "store_failed"})
            # One event that cannot be stored must not take the others with it.
            if len(batch) == 1:
                _tell([(batch[0], StoreUnavailableError(type(error).__name__))])
            else:
                for one in batch:
                    self._commit([one])
        else:
            _tell([(one, repeats.get(one.event.id)) for one in batch])
            self._on_stored()


def _tell(ended: Sequence[tuple[Waiting, Outcome]]) -> None:
    """Tell those who wait; an event loop all at once, since to wake it costs a system call."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Outcome]]] = {}
    for one, outcome in ended:
        if one.loop is None:
            one.tell(outcome)
        else:
            loops.setdefault(one.loop, []).append((one, outcome))
    for loop, some in loops.items():
        try:
            loop.call_soon_threadsafe(_tell_here, some)
        except RuntimeError:
            # Its process ends, and its clients are gone.
            log.warning("nobody waits any more", extra={"action": "loop_closed"})


def _tell_here(some: Sequence[tuple[Waiting, Outcome]]) -> None:
    for one, outcome in some:
        try:
            one.tell(outcome)
        except Exception:
            log.exception("an answer failed", extra={"action": "answer_failed"})
