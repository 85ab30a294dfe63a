"""A process's session with a fleet's database: notifications and locks.

Beside its pools, each process keeps one connection for the two things that PostgreSQL ties to a
connection: notifications and advisory locks. A thread pings the server on it every `PING_INTERVAL`
seconds, and at once if locks are to be acquired or released: one statement does so for all threads
that wait. The notifications received are complete if the last answered ping was sent less than
`FRESH_FOR` seconds ago.

The server frees the locks when the session ends: at once if the holder is killed, an administrator
ends the session, or the database restarts; `LEASE` seconds after the last ping if the holder is
frozen or cut off (``idle_session_timeout``, which works through proxies, unlike keepalives).

**At most one deliverer sends in a direction.** The holder counts its lock as lost `LEASE` -
`MARGIN` seconds after it *sent* its last answered ping, by a clock that includes suspension. So a
frozen or cut-off holder stops before the server frees the lock. If the session ends while a cut-off
holder is alive, the lock is free earlier: the next holder first waits `LEASE` seconds
(`Session.grace`), unless the last one has signed off.

A call counts as sent with its first byte, and the lock is checked right before it
(`bridge.network.timed`). SessionM may still be processing such a call when the next deliverer
starts, as after SIGKILL: `bridge.outbox.delivery` handles both alike. An old holder cannot record
results: each transaction of the loop checks the present holder's name in the database.

PgBouncer works in session mode only; the session detects other modes.
"""

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import psycopg

from bridge.clock import DatabaseClock, steady
from bridge.storage.database import StillUnavailableError, StoreUnavailableError
from bridge.storage.server import DatabaseServer, TimedConnection
from bridge.storage.wakeup import Wakeup, wait

log = logging.getLogger(__name__)

# Seconds between pings.
PING_INTERVAL = 0.5
# Seconds after the last answered ping for which the received notifications count as complete.
FRESH_FOR = 2.0
# Seconds without a ping after which the server ends a session and frees the lock.
LEASE = 5.0
# Seconds by which the holder gives the lock up before the server frees it.
MARGIN = 1.0
# Seconds, at most, between two attempts to connect.
RECONNECT = 1.0
# Seconds to wait for the server's answer to an attempt to acquire a lock.
LOCK_TIMEOUT = 0.5
# Key of the advisory lock with number 0: arbitrary, but all of them are unique in the database.
LOCKS = 0x6272_6964_6765_0000

# Seconds since the epoch, by the server's clock.
SERVER_TIME = "extract(epoch FROM clock_timestamp())::float8"


class _LockChange(NamedTuple):
    """The acquisition or release of lock *number*; *done* gets whether the server did so."""

    number: int
    acquires: bool
    done: Future[bool]

    @property
    def sql(self) -> str:
        function = "pg_try_advisory_lock" if self.acquires else "pg_advisory_unlock"
        return f"{function}({LOCKS + self.number})"


class Session:
    """One permanent connection of a process, and the thread that keeps it (see the module).

    Implements `bridge.storage.locks.Locks`.
    """

    grace = LEASE
    poll_interval = 0.03

    def __init__(self, server: DatabaseServer) -> None:
        self.server = server
        self._on_connect: list[Callable[[psycopg.Connection[Any]], None]] = []
        self._handlers: dict[str, Callable[[str], None]] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._wakeup = Wakeup()
        # Whether the first attempt to connect has ended.
        self._tried = threading.Event()
        # Why there is no session.
        self._cause = "no session with the database"
        # When the last answered ping was sent (`steady`).
        self._pinged_at = float("-inf")
        self._complete = False
        self._locking = threading.Lock()
        # Locks of this process, and whether the server has confirmed them.
        self._locks: dict[int, bool] = {}
        self._changes: list[_LockChange] = []
        self.clock = DatabaseClock()

    def listen(
        self,
        channel: str,
        on_connect: Callable[[psycopg.Connection[Any]], None],
        on_notification: Callable[[str], None],
    ) -> None:
        """Subscribe to notifications. Call this before `start`.

        Args:
            channel: the name of the channel.
            on_connect: called after each (re)connection has subscribed, to read what was missed.
            on_notification: called with the payload of each later notification.
        """
        self._handlers[channel] = on_notification
        self._on_connect.append(on_connect)

    def start(self, timeout: float = 0.0) -> None:
        """Start the thread once; wait up to *timeout* seconds for its first attempt to connect."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="session", daemon=True)
                self._thread.start()
        self._tried.wait(timeout)

    def is_complete(self) -> bool:
        """Return whether all notifications up to `FRESH_FOR` seconds ago were received."""
        return self._complete and steady() < self._pinged_at + FRESH_FOR

    def try_acquire(self, number: int) -> bool:
        """As `Locks.try_acquire`.

        Raises:
            StillUnavailableError: there is no session, which the log says, or no answer in time.
        """
        self.start(LOCK_TIMEOUT)
        with self._locking:
            if not self.is_complete():
                raise StillUnavailableError(self._cause)
            if number in self._locks:
                return False
            self._locks[number] = False
            acquired = self._change(number, acquires=True)
        try:
            return acquired.result(LOCK_TIMEOUT)
        except TimeoutError:
            self.release(number)
            raise StillUnavailableError("the database does not answer in time") from None

    def is_held(self, number: int) -> bool:
        return self._locks.get(number, False) and steady() < self._pinged_at + LEASE - MARGIN

    def release(self, *numbers: int) -> None:
        """Release the locks *numbers*; do not wait for the server."""
        with self._locking:
            for number in numbers:
                if number in self._locks:
                    del self._locks[number]
                    self._change(number, acquires=False)

    def _change(self, number: int, *, acquires: bool) -> Future[bool]:
        change = _LockChange(number, acquires, Future())
        self._changes.append(change)
        self._wakeup.set()
        return change.done

    def close(self) -> None:
        self._ended.set()
        self._wakeup.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                settings = {"idle_session_timeout": f"{LEASE:g}s"}
                with self.server.connect(FRESH_FOR, **settings) as connection:
                    self._serve(connection)
            except (psycopg.Error, StoreUnavailableError) as error:
                self._cause = f"no session with the database: {self.server.first_line(error)}"
                if not self._ended.is_set():
                    log.warning(self._cause, extra={"action": "session_lost"})
            except Exception:
                # The thread must survive: without a session nothing is delivered.
                log.exception("the session failed", extra={"action": "session_failed"})
            finally:
                self._lose_locks()
                self._tried.set()
            # Jitter: the fleet's processes must not all reconnect at the same moment.
            self._ended.wait(RECONNECT * random.uniform(0.5, 1))  # noqa: S311 - no secret

    def _lose_locks(self) -> None:
        with self._locking:
            self._complete = False
            self._locks.clear()
            changes, self._changes = self._changes, []
        for change in changes:
            change.done.set_exception(StillUnavailableError(self._cause))

    def _serve(self, connection: TimedConnection) -> None:
        # Asked by SQL: PgBouncer invents the backend_pid of the connection.
        backend = _backend(connection)
        if backend != connection.info.backend_pid:
            self._check_pooler(backend)
        for channel in self._handlers:
            connection.execute(f"LISTEN {channel}".encode())
        for on_connect in self._on_connect:
            on_connect(connection)
        self._ping(connection, backend)
        self._receive(connection)
        self._complete = True
        self._tried.set()
        log.info("session with the database", extra={"action": "session_begun"})
        while not self._ended.is_set():
            wait(self._pinged_at + PING_INTERVAL - steady(), [connection, self._wakeup])
            self._wakeup.clear()
            self._receive(connection)
            if self._changes or steady() >= self._pinged_at + PING_INTERVAL:
                self._ping(connection, backend)
                # Notifications that came with the answer.
                self._receive(connection)

    def _receive(self, connection: TimedConnection) -> None:
        for notification in connection.notifies(timeout=0):
            self._handlers[notification.channel](notification.payload)

    def _check_pooler(self, backend: int) -> None:
        """Check that a pooler in between does not lend our idle connection to other clients."""
        with self.server.connect(FRESH_FOR) as other:
            if _backend(other) == backend:
                raise psycopg.OperationalError(_NOT_A_SESSION)

    def _ping(self, connection: psycopg.Connection[Any], backend: int) -> None:
        """Ping the server; change locks, and read the server's clock, on the way."""
        with self._locking:
            changes = list(self._changes)
        columns = ", ".join(["pg_backend_pid()", SERVER_TIME, *(change.sql for change in changes)])
        pinged_at = steady()
        row = connection.execute(f"SELECT {columns}".encode()).fetchone()
        if row is None or row[0] != backend:
            raise psycopg.OperationalError(_NOT_A_SESSION)
        self.clock.measure(pinged_at, row[1], steady())
        self._pinged_at = pinged_at
        with self._locking:
            del self._changes[: len(changes)]
            for change, done in zip(changes, row[2:], strict=True):
                if change.acquires and done and change.number in self._locks:
                    self._locks[change.number] = True
                elif change.acquires:
                    self._locks.pop(change.number, None)
                change.done.set_result(done)


def _backend(connection: psycopg.Connection[Any]) -> int:
    """Return the process id of the server's backend that answers."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0


_NOT_A_SESSION = "another connection answers: PgBouncer must be in session mode"
