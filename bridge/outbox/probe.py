"""Whether events can be stored, told in time also by a store that is slow to say no."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from bridge.database import StoreUnavailableError

# Load balancers and Prometheus do not wait much longer.
PATIENCE = 2.5


class Probe:
    """Asks by *ping*, which raises `StoreUnavailableError`; one question at a time."""

    def __init__(self, ping: Callable[[], None], patience: float = PATIENCE) -> None:
        self._ping = ping
        self._patience = patience
        self._lock = threading.Lock()
        self._asked: Future[None] | None = None

    def check(self) -> None:
        """Return if the store can be written.

        Raises:
            StoreUnavailableError: it cannot, or has not said so in time.
        """
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                # A daemon: a store that hangs must not keep the process from ending.
                threading.Thread(target=self._ask, args=(self._asked,), daemon=True).start()
            asked = self._asked
        try:
            asked.result(self._patience)
        except TimeoutError:
            raise StoreUnavailableError("the database is locked, or too slow") from None

    def _ask(self, asked: "Future[None]") -> None:
        try:
            self._ping()
        except Exception as error:  # noqa: BLE001 - it is raised again where it was asked
            asked.set_exception(error)
        else:
            asked.set_result(None)
