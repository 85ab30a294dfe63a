"""A process's session with a fleet's database: notifications and the deliverer's lock.

Beside its pools, each process keeps one connection for two things that PostgreSQL ties to a
connection: notifications and the deliverer's lock. A thread pings the server on this connection
every `PING_INTERVAL` seconds. The notifications received are complete as long as the last answered
ping was sent less than `FRESH_FOR` seconds ago.

**At most one deliverer sends in a direction.** Its lock is an advisory lock of the session. The
server frees the lock when the session ends. That happens at once if the holder is killed, an
administrator ends the session, or the database restarts. It happens after `LEASE` seconds without a
ping if the holder is frozen or cut off (``idle_session_timeout``; unlike keepalives, it works
through proxies).

The holder gives the lock up `LEASE` - `MARGIN` seconds after it *sent* its last answered ping, by a
clock that includes suspension. The server received that ping later, so a frozen or cut-off holder
stops before the server frees the lock. But if the session ends while a cut-off holder is alive, the
lock is free before the holder stops. So after a holder that did not sign off, the next one waits
`LEASE` seconds (`SessionLock.grace`): the last answered ping of the old holder is older than the
session's end, so the old holder has stopped by then.

A call counts as sent with its first byte. The lock is checked right before that byte
(`bridge.network.timed`), so a process that was frozen in the middle of a call sends nothing
afterwards. A call that was sent may still be processed by SessionM when the next deliverer starts,
as after SIGKILL; `bridge.outbox.delivery` handles both cases alike. An old holder cannot record the
results of its last calls: each transaction of the loop checks the name of the present holder in the
database.

PgBouncer works in session mode only; the session detects other modes.
"""

import logging
import os
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from bridge.clock import DatabaseClock, steady
from bridge.storage.database import StoreUnavailableError
from bridge.storage.server import DatabaseServer, TimedConnection

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
# Keys of advisory locks, by the names of the directions of delivery: arbitrary, but unique in the
# database.
DELIVERERS = {"to_sessionm": 0x6272_6964_6765_0001, "to_braze": 0x6272_6964_6765_0004}

# Seconds since the epoch, by the server's clock.
SERVER_TIME = "extract(epoch FROM clock_timestamp())::float8"


class Session:
    """One permanent connection of a process, and the thread that keeps it (see the module)."""

    def __init__(self, server: DatabaseServer) -> None:
        self.server = server
        self._on_connect: list[Callable[[psycopg.Connection[Any]], None]] = []
        self._handlers: dict[str, Callable[[str], None]] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._connected = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        # When the last answered ping was sent (`steady`).
        self._pinged_at = float("-inf")
        self._complete = False
        # Directions whose deliverer's lock is ours, and those for which it is wanted.
        self._holds: set[str] = set()
        self.wants: set[str] = set()
        self.backend = 0
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

    def start(self, wait: float = 0.0) -> None:
        """Start the thread once; return when it is connected, or after *wait* seconds."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="session", daemon=True)
                self._thread.start()
        self._connected.wait(wait)

    def is_complete(self) -> bool:
        """Return whether all notifications up to `FRESH_FOR` seconds ago were received."""
        return self._complete and steady() < self._pinged_at + FRESH_FOR

    def holds_lock(self, direction: str) -> bool:
        """Return whether this session certainly holds the deliverer's lock of *direction*."""
        ours = direction in self._holds and direction in self.wants
        return ours and steady() < self._pinged_at + LEASE - MARGIN

    def close(self) -> None:
        self._ended.set()
        connection = self._connection
        if connection is not None:
            # Ends the thread's wait for notifications.
            with (
                suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(connection.fileno())) as s,
            ):
                s.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                settings = {"idle_session_timeout": f"{LEASE:g}s"}
                with self.server.connect(FRESH_FOR, **settings) as connection:
                    self._connection = connection
                    self._serve(connection)
            except (psycopg.Error, StoreUnavailableError) as error:
                if not self._ended.is_set():
                    reason = self.server.first_line(error)
                    extra = {"action": "session_lost"}
                    log.warning("no session with the database: %s", reason, extra=extra)
            except Exception:
                # The thread must survive: without a session nothing is delivered.
                log.exception("the session failed", extra={"action": "session_failed"})
            finally:
                self._connection = None
                self._complete = False
                self._holds.clear()
                self.backend = 0
                self._connected.clear()
            # Jitter: the fleet's processes must not all reconnect at the same moment.
            self._ended.wait(RECONNECT * random.uniform(0.5, 1))  # noqa: S311 - no secret

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
        self._receive(connection, 0)
        self.backend = backend
        self._complete = True
        self._connected.set()
        log.info("session with the database", extra={"action": "session_begun"})
        while not self._ended.is_set():
            self._receive(connection, PING_INTERVAL)
            self._ping(connection, backend)

    def _receive(self, connection: TimedConnection, seconds: float) -> None:
        for notification in connection.notifies(timeout=seconds):
            self._handlers[notification.channel](notification.payload)

    def _check_pooler(self, backend: int) -> None:
        """Check that a pooler in between does not lend our idle connection to other clients."""
        with self.server.connect(FRESH_FOR) as other:
            if _backend(other) == backend:
                raise psycopg.OperationalError(_NOT_A_SESSION)

    def _ping(self, connection: psycopg.Connection[Any], backend: int) -> None:
        """Ping the server; take or release locks, and read the server's clock, on the way."""
        wanted, held = set(self.wants), set(self._holds)
        # One column for each lock to take or release.
        changing = sorted(wanted ^ held)
        orders = [
            f"pg_try_advisory_lock({DELIVERERS[name]})"
            if name in wanted
            else f"NOT pg_advisory_unlock({DELIVERERS[name]})"
            for name in changing
        ]
        columns = ", ".join(["pg_backend_pid()", SERVER_TIME, *orders])
        pinged_at = steady()
        row = connection.execute(f"SELECT {columns}".encode()).fetchone()
        if row is None or row[0] != backend:
            raise psycopg.OperationalError(_NOT_A_SESSION)
        for name, is_ours in zip(changing, row[2:], strict=True):
            (self._holds.add if is_ours else self._holds.discard)(name)
        self.clock.measure(pinged_at, row[1], steady())
        self._pinged_at = pinged_at


def _backend(connection: psycopg.Connection[Any]) -> int:
    """Return the process id of the server's backend that answers."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0


_NOT_A_SESSION = "another connection answers: PgBouncer must be in session mode"


class SessionLock:
    """A deliverer's lock of the fleet (see the module)."""

    grace = LEASE

    def __init__(self, session: Session, direction: str) -> None:
        self._session = session
        self._direction = direction

    def try_acquire(self) -> bool:
        self._session.wants.add(self._direction)
        self._session.start()
        return self.is_held()

    def is_held(self) -> bool:
        return self._session.holds_lock(self._direction)

    def release(self) -> None:
        # The session's next ping releases it.
        self._session.wants.discard(self._direction)
