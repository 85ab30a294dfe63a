"""PostgreSQL, the database of a fleet: transactions over a pool of connections.

Every wait is bounded, whatever the server, the network or a proxy does. A statement takes at most
`timeout` seconds, and so does connecting. After a failure, further calls fail at once for
`RETRY_INTERVAL` seconds. No call waits beyond the deadline of its thread
(`bridge.storage.database.in_time`); such a failure does not count as one of the database.
"""

import copy
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from select import POLLIN, poll
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DisconnectionError

from bridge.clock import steady
from bridge.storage.database import (
    Database,
    DeadlinePassedError,
    Migration,
    StillUnavailableError,
    StoreUnavailableError,
    UnsuitableDatabaseError,
    time_left,
)
from bridge.storage.server import DatabaseServer, NoTimeLeftError, TimedConnection, no_answer
from bridge.storage.session import LEASE, LOCKS, SERVER_TIME, Session
from bridge.storage.statements import RawStatement, defer, discard_deferred, has_deferred, send

# Connections of a pool. A process has two pools and one session.
POOL_SIZE = 5
POOL_TIMEOUT = 2.0
# Seconds for all database calls of one request.
REQUEST_TIMEOUT = 3.0
# Seconds for one statement. Below REQUEST_TIMEOUT, so that the server has freed the statement's
# locks by the time the caller gives up.
STATEMENT_TIMEOUT = 2.5
# Seconds for the server's cancellation of a statement to reach this process.
GRACE = 0.3
# Seconds without calls after the database failed.
RETRY_INTERVAL = 1.0
# Seconds: a migration may build an index over a long history.
MIGRATION_TIMEOUT = 3600.0
OLDEST_SERVER = 14
# Keys of advisory locks, beside those of `bridge.storage.locks`.
_MIGRATION, _CHANGES = LOCKS + 2, LOCKS + 3

_END_ORPHANED = sa.text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
        AND application_name LIKE 'bridge %'
        AND xact_start IS NOT NULL AND wait_event_type = 'Client'
        AND state_change < clock_timestamp() - make_interval(secs => :seconds)
""")


def open_session(url: str) -> Session:
    """Return a session, not started yet, with the server at *url*.

    Raises:
        ValueError: the URL is not valid.
    """
    return Session(DatabaseServer(url))


@dataclass
class _Outage:
    """The last failure of a database, and until when (`steady`) it is not asked again."""

    until: float = float("-inf")
    cause: str = ""


class Postgres(Database):
    """The database of a fleet.

    Args:
        migrations: functions that migrate the schema from version n to n + 1, in order.
        session: the process's session.
        versions: the table that holds the schema version; several schemas share one database.
        durable: whether a commit returns only after it is on disk, on synchronous standbys too.
        timeout: seconds that a statement may take.
        fail_fast: whether callers prefer an error to a wait of more than *timeout*. Such a
            database does not migrate.
    """

    def __init__(
        self,
        migrations: Sequence[Migration],
        session: Session,
        *,
        versions: str = "schema_version",
        durable: bool,
        timeout: float = STATEMENT_TIMEOUT,
        fail_fast: bool = False,
    ) -> None:
        self._timeout = timeout
        self._fail_fast = fail_fast
        self._durable = durable
        self._connecting: ThreadPoolExecutor | None = None
        # Connections that opened after their caller's deadline; the next caller uses them.
        self._late: list[Future[TimedConnection]] = []
        self._late_lock = threading.Lock()
        # Shared by all schemas over this pool, see `with_schema`.
        self._outage = _Outage()
        self._session = session
        self._server = session.server
        self.request_timeout = REQUEST_TIMEOUT
        self.name = self._server.name
        self.locks = session
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=POOL_SIZE,
            max_overflow=0,
            use_native_hstore=False,
            hide_parameters=True,
        )
        # In front of SQLAlchemy's pool, whose time-out is the same for every caller.
        self._pool_slots = threading.Semaphore(POOL_SIZE)
        self._pool_timeout = timeout if fail_fast else POOL_TIMEOUT
        sa.event.listen(engine, "checkout", _check_alive)
        sa.event.listen(engine, "before_cursor_execute", _send_deferred)
        super().__init__(engine, migrations, versions)

    def _upgrade(self, version: int) -> None:
        if self._fail_fast and version < len(self._migrations):
            raise StoreUnavailableError("the database is not migrated yet")
        super()._upgrade(version)

    def with_schema(
        self, migrations: Sequence[Migration], versions: str = "schema_version"
    ) -> "Postgres":
        """Return another schema in this database, over the same pool of connections."""
        other = copy.copy(self)
        Database.__init__(other, self._engine, migrations, versions)
        return other

    def close(self) -> None:
        self._outage.until, self._outage.cause = math.inf, "it is closed"
        # Threads in the background return their connections first, or these would stay open.
        until = steady() + self._timeout + GRACE
        for _ in range(POOL_SIZE):
            self._pool_slots.acquire(timeout=max(0.0, until - steady()))
        super().close()
        self._session.close()
        if self._connecting is not None:
            self._connecting.shutdown(wait=False)
        for late in self._late:
            late.add_done_callback(_close)

    def end_orphaned_transactions(self) -> None:
        """End transactions whose client was cut off while it sent a pipeline of statements.

        The server waits for the rest of the pipeline and does not count the transaction as idle,
        so no time-out of the server ends it before PostgreSQL 17 (transaction_timeout).
        """
        with self.read() as connection:
            connection.execute(_END_ORPHANED, {"seconds": LEASE})

    def read_clock(self) -> None:
        with self.read() as connection:
            asked_at = steady()
            answer = connection.exec_driver_sql(f"SELECT {SERVER_TIME}").scalar_one()
            self._session.clock.measure(asked_at, answer, steady())

    @contextmanager
    def autocommit(self) -> Iterator[sa.Connection]:
        with self.read() as connection:
            yield connection

    @contextmanager
    def _reading(self, *, timeout: float | None) -> Iterator[sa.Connection]:
        if timeout is not None:
            with self._writing(exclusive=False, timeout=timeout) as connection:
                yield connection
            return
        with self._pool_slot(), self._engine.connect() as connection:
            try:
                yield connection
            except Exception as error:
                if _is_lost(error):
                    connection.invalidate()
                raise

    @contextmanager
    def _writing(self, *, exclusive: bool, timeout: float | None) -> Iterator[sa.Connection]:
        with self._pool_slot(), self._engine.connect() as connection:
            driver = _driver_of(connection)
            defer(connection, RawStatement("BEGIN"))
            if exclusive:
                # Two transactions that change the same rows in another order would deadlock.
                defer(connection, RawStatement(f"SELECT pg_advisory_xact_lock({_CHANGES})"))
            try:
                with self._with_timeout(connection, timeout):
                    yield connection
                    send(connection, RawStatement("COMMIT"))
            except BaseException as error:
                # SQLAlchemy may have invalidated it already.
                if driver.closed or _is_lost(error):
                    connection.invalidate()
                else:
                    discard_deferred(connection)
                    driver.rollback()
                raise

    @contextmanager
    def _pool_slot(self) -> Iterator[None]:
        """Hold one of the pool's connections."""
        self._refuse_during_outage()
        if not self._pool_slots.acquire(timeout=max(0.0, min(self._pool_timeout, time_left()))):
            raise StoreUnavailableError("all connections with the database are in use")
        try:
            yield
        finally:
            self._pool_slots.release()

    @contextmanager
    def _with_timeout(self, connection: sa.Connection, timeout: float | None) -> Iterator[None]:
        """Allow each statement of a transaction *timeout* seconds; ``None``: as usual."""
        if timeout is None:
            yield
            return
        defer(connection, RawStatement(f"SET LOCAL statement_timeout = {timeout * 1000:.0f}"))
        driver = _driver_of(connection)
        usual, driver.time_limit = driver.time_limit, timeout + GRACE
        try:
            yield
        finally:
            driver.time_limit = usual

    @contextmanager
    def _migrating(self) -> Iterator[sa.Connection]:
        with self._writing(exclusive=False, timeout=None) as connection:
            server = int((connection.dialect.server_version_info or (0,))[0])
            if server < OLDEST_SERVER:
                raise UnsuitableDatabaseError(
                    f"{self.name} is PostgreSQL {server}; {OLDEST_SERVER} or later is needed"
                )
            # Another migrating process waits here, but only for the usual time-out of a statement:
            # it reports the database as unavailable until the migration is done.
            defer(connection, RawStatement(f"SELECT pg_advisory_xact_lock({_MIGRATION})"))
            with self._with_timeout(connection, MIGRATION_TIMEOUT):
                yield connection

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            with super()._one_error():
                yield
        except psycopg.Error as error:
            raise self._unavailable(error) from error

    def _failed(self, error: Exception) -> str:
        # The database may have been replaced: check its schema in the next transaction.
        self._migrated = False
        cause = getattr(error, "orig", None) or error
        timed_out = isinstance(cause, psycopg.errors.QueryCanceled)
        broken = getattr(error, "connection_invalidated", False) or isinstance(
            cause, psycopg.OperationalError
        )
        broken = broken and not isinstance(cause, NoTimeLeftError)
        reason = self._server.first_line(cause)
        if (broken and not timed_out) or (timed_out and self._fail_fast):
            self._outage.until = steady() + RETRY_INTERVAL
            self._outage.cause = reason
        return reason

    def _refuse_during_outage(self) -> None:
        if time_left() <= 0:
            raise DeadlinePassedError("no time is left to ask the database")
        if steady() < self._outage.until:
            raise StillUnavailableError(f"the database cannot be used: {self._outage.cause}")

    def _connect(self) -> TimedConnection:
        if steady() < self._outage.until:
            # It failed while this thread waited for a pool slot.
            raise psycopg.OperationalError("it failed a moment ago")
        # In a thread, since the name look-up in libpq has no time-out.
        with self._late_lock:
            if self._connecting is None:
                self._connecting = ThreadPoolExecutor(POOL_SIZE, "connecting")
            late = self._late.pop() if self._late else self._connecting.submit(self._connect_now)
        timeout, left = self._timeout + GRACE, time_left()
        try:
            return late.result(max(0.0, min(timeout, left)))
        except TimeoutError:
            # Keep it for the next caller, so that there are never more than POOL_SIZE connections.
            with self._late_lock:
                self._late.append(late)
            raise no_answer(timeout, left, "connecting takes too long") from None

    def _connect_now(self) -> TimedConnection:
        return self._server.connect(
            # Longer than statement_timeout: a live server cancels first and frees its locks.
            self._timeout + GRACE,
            statement_timeout=f"{self._timeout * 1000:.0f}",
            synchronous_commit="on" if self._durable else "off",
            # If this machine is cut off, the server frees its locks and connections.
            idle_in_transaction_session_timeout="5s",
            idle_session_timeout="10min",
        )


def _is_lost(error: BaseException) -> bool:
    """Return whether *error* ends the connection.

    The driver may notice that only at its next use, such as the roll-back. 57P: the server shuts
    down (PostgreSQL documentation, "Error Codes").
    """
    cause = getattr(error, "orig", None) or error
    if not isinstance(cause, psycopg.OperationalError):
        return False
    return cause.sqlstate is None or cause.sqlstate.startswith("57P")


def _driver_of(connection: sa.Connection) -> TimedConnection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, TimedConnection)  # noqa: S101 - for the type checker
    return driver


def _send_deferred(connection: sa.Connection, *_more: object) -> None:
    """Execute the deferred statements before a statement of SQLAlchemy's own."""
    if has_deferred(connection):
        send(connection)


def _check_alive(connection: Any, _record: object, _proxy: object) -> None:
    """Refuse a pooled connection that the server has ended.

    An idle connection that has something to read has been ended: the server has sent a notice.
    """
    if connection.closed:
        raise DisconnectionError
    readable = poll()
    readable.register(connection.fileno(), POLLIN)
    if readable.poll(0):
        raise DisconnectionError


def _close(future: "Future[TimedConnection]") -> None:
    if future.exception() is None:
        future.result().close()
