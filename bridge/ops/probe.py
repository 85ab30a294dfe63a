"""A check whether events can be stored, and the store's last answers for pages."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from bridge import clock
from bridge.storage.database import StoreUnavailableError

T = TypeVar("T")

# Seconds for which one check waits, and after which the store counts as unavailable.
CHECK_TIMEOUT, PING_TIMEOUT = 1.0, 2.5
# Seconds for all queries of one page.
PAGE_PATIENCE = 2.0


class Probe:
    """Checks by one *ping* at a time, shared by concurrent checks. Thread-safe.

    Args:
        ping: writes to the store; raises `StoreUnavailableError`.
    """

    def __init__(self, ping: Callable[[], None]) -> None:
        self._ping = ping
        self._lock = threading.Lock()
        self._result: Future[None] | None = None
        self._started_at = 0.0
        self._was_ok = False

    def check(self) -> None:
        """Return if the store can be written.

        While a ping is in progress for less than `PING_TIMEOUT`, the last result counts.

        Raises:
            StoreUnavailableError: the store cannot be written, or does not answer in time.
        """
        with self._lock:
            if self._result is None or self._result.done():
                self._result = Future()
                self._started_at = time.monotonic()
                # A daemon, since a store that hangs must not keep the process from ending.
                threading.Thread(target=self._run, args=(self._result,), daemon=True).start()
            result = self._result
        until = self._started_at + PING_TIMEOUT
        try:
            result.result(max(0.0, min(CHECK_TIMEOUT, until - time.monotonic())))
        except TimeoutError:
            if not self._was_ok or time.monotonic() >= until:
                raise StoreUnavailableError("the database is locked, or too slow") from None

    def _run(self, result: "Future[None]") -> None:
        try:
            self._ping()
        except Exception as error:  # noqa: BLE001 - raised again in the waiting checks
            self._was_ok = False
            result.set_exception(error)
        else:
            self._was_ok = True
            result.set_result(None)


class Known(NamedTuple, Generic[T]):
    """A result of the store.

    *as_of* is its time in seconds since the epoch; ``None`` for a new result.
    """

    value: T
    as_of: float | None


class LastKnown:
    """The last results of queries, which pages show while the store is unavailable."""

    def __init__(self) -> None:
        self._results: dict[str, Known[Any]] = {}

    def ask(self, name: str, query: Callable[[], list[T]]) -> Known[list[T]]:
        """Return the result of *query*, or the last one with the same *name*.

        Args:
            name: of the query.
            query: reads the store; may raise `StoreUnavailableError`.
        """
        try:
            result = query()
        except StoreUnavailableError:
            return self._results.get(name, Known([], None))
        self._results[name] = Known(result, clock.now())
        return Known(result, None)
