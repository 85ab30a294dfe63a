"""Many requests, one fsync.

Request threads hand their events to one thread per process, which stores everything that waits
in one transaction and then wakes them all.
"""

import asyncio
import logging
import queue
import threading
from concurrent.futures import Future

from bridge.database import StoreUnavailableError
from bridge.outbox.store import NewEvent, Store

log = logging.getLogger(__name__)

MAX_BATCH = 256
PATIENCE = 20.0


class Committer:
    """Stores events durably; `store` returns when they are on disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting: queue.SimpleQueue[tuple[NewEvent, Future[str | None]]] = queue.SimpleQueue()

    def store(self, event: NewEvent) -> str | None:
        """Store *event*; the id of the same event if it was stored before, else ``None``.

        Raises:
            StoreUnavailableError: it is not stored.
        """
        future = self._hand_over(event)
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.cancel():
                raise StoreUnavailableError("the database is too slow") from None
            # It is being written at this moment: the answer is near.
            return future.result()

    async def store_soon(self, event: NewEvent) -> str | None:
        """As `store`, on an event loop."""
        future = self._hand_over(event)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)
        except TimeoutError:
            if future.cancelled():
                raise StoreUnavailableError("the database is too slow") from None
            return await asyncio.wrap_future(future)

    def _hand_over(self, event: NewEvent) -> "Future[str | None]":
        self._ensure_thread()
        future: Future[str | None] = Future()
        self._waiting.put((event, future))
        return future

    def _ensure_thread(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            claimed = [(e, f) for e, f in batch if f.set_running_or_notify_cancel()]
            if claimed:
                self._commit(claimed)

    def _commit(self, batch: list[tuple[NewEvent, "Future[str | None]"]]) -> None:
        try:
            repeats = self._store.add([event for event, _ in batch])
        except StoreUnavailableError as error:
            log.error("not stored: %s", error, extra={"action": "store_failed"})
            for _, future in batch:
                future.set_exception(error)
        except Exception as error:
            log.exception("not stored", extra={"action": "store_failed"})
            # One event that cannot be stored must not take the others with it.
            if len(batch) == 1:
                batch[0][1].set_exception(StoreUnavailableError(type(error).__name__))
            else:
                for one in batch:
                    self._commit([one])
        else:
            for event, future in batch:
                future.set_result(repeats.get(event.id))
