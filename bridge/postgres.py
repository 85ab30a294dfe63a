"""PostgreSQL, which makes one bridge of several: transactions, and one session per process.

Every wait has an end here, whatever the server, the network or a proxy between does: a statement
has `patience` seconds, connecting has, and a database that was found away is not asked again for a
moment, so that nobody else waits to find it out. Who has to answer by some moment waits no longer
than until then (`bridge.database.in_time`), which tells nothing about the database.

**The session.** Beside its pools each process holds one connection for two things that PostgreSQL
ties to a connection: hearing notifications, and the deliverer's lock. A thread of its own asks the
server something on it every `BEAT` seconds. What was heard is complete, and may be trusted, as long
as an answer to a question of the last `TRUST` seconds has come.

**No two deliverers.** The lock is an advisory lock of the session. The server frees it when the
session ends: at once when the holder is killed, when somebody ends the session, or when the
database restarts; after `LEASE` seconds without a question when the holder is frozen or cut off
(``idle_session_timeout``, which no proxy in between can hide, as it can hide a dead peer from
keepalives). The holder in turn counts from the moment when it *asked* its last answered question,
which is before the server heard it, and holds the lock for lost `LEASE` - `MARGIN` seconds later,
by a clock that runs on while a machine is suspended. So a holder that is frozen or cut off has
stopped before the server can free the lock. Where the session ends while its holder lives and
cannot be told, the lock is free before the holder has stopped; so whoever acquires it after a
holder that did not sign off first waits `LEASE` seconds (`SessionLock.grace`): the holder's last
answered question came before the session's end, and so it has stopped by then.

Sending means writing a call's first byte: the lock is looked at right before that
(`bridge.sessionm.deadline`), so a process that was frozen in the middle of a call and thaws sends
nothing. A call whose bytes are out may still be at work in SessionM when another deliverer starts,
just as after a kill -9; what becomes of it is settled in the same way (`bridge.outbox.delivery`).
And what a holder of yesterday would record of calls that it did not finish is refused: each
transaction of the loop compares the name that the present holder has left in the database.

PgBouncer: in session mode only; the session finds out when it is not so.
"""

import copy
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from select import POLLIN, poll
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.exc import DisconnectionError

from bridge.database import (
    Database,
    Migration,
    StillAwayError,
    StoreUnavailableError,
    TooLateError,
    time_left,
)

log = logging.getLogger(__name__)

BEAT = 0.5
TRUST = 2.0
LEASE = 5.0
MARGIN = 1.0
RECONNECT = 1.0
# Of each pool; a process has two, and its session.
POOL_SIZE = 5
POOL_PATIENCE = 2.0
# A database that was away is not asked again for so long.
AWAY = 1.0
# Building an index over a long history.
MIGRATION_PATIENCE = 3600.0
OLDEST_SERVER = 14
# Advisory locks; of the database, so any numbers that nobody else there uses.
_DELIVERER = 0x6272_6964_6765_0001
_MIGRATION = 0x6272_6964_6765_0002
_CHANGES = 0x6272_6964_6765_0003
_NUMBERED = 0x6272_6964_6765_0100

_END_CUT_OFF = sa.text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
        AND application_name LIKE 'bridge %'
        AND xact_start IS NOT NULL AND wait_event_type = 'Client'
        AND state_change < clock_timestamp() - make_interval(secs => :seconds)
""")

T = TypeVar("T")

# What libpq is told unless the URL says otherwise.
_DEFAULTS = {
    "connect_timeout": "3",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
    # After a failover the old primary, if it still answers, is not the database any more.
    "target_session_attrs": "read-write",
}


def conninfo(url: str) -> str:
    """What libpq understands, out of ``postgresql://…`` (also ``postgres://``) and our defaults.

    Raises:
        ValueError: it cannot be read, or not in one way only.
    """
    scheme, _, rest = url.partition("://")
    # libpq ends the password at the first @ or /, people and other programs elsewhere.
    if not {*"@/?#"}.isdisjoint(rest.rpartition("@")[0]):
        raise ValueError(
            "must have each @ / ? # in user and password percent-encoded, as %40 %2F %3F %23"
        )
    try:
        given = conninfo_to_dict(f"{scheme.partition('+')[0]}://{rest}")
    except psycopg.ProgrammingError:
        # Its text would repeat the URL, and with it the password.
        raise ValueError("must be postgresql://user:password@host:5432/database") from None
    return make_conninfo("", **{**_DEFAULTS, **given})


def shown(conninfo: str) -> str:
    """Which database *conninfo* means, as people may see it: without user and password."""
    given = {name: str(value or "") for name, value in conninfo_to_dict(conninfo).items()}
    hosts = [f"[{one}]" if ":" in one else one for one in given.get("host", "").split(",")]
    ports = given.get("port", "").split(",")
    if len(ports) == 1:
        # One for all of them.
        ports *= len(hosts)
    places = [f"{host}:{port}" if port else host for host, port in zip_longest(hosts, ports)]
    return f"postgresql://{','.join(places)}/{given.get('dbname', '')}"


def _secrets(conninfo: str) -> list[str]:
    given = conninfo_to_dict(conninfo)
    return [str(given[name]) for name in ("password", "sslpassword") if given.get(name)]


class _NoTimeLeftError(psycopg.OperationalError):
    """There was less time than the database may take, and it took all of that."""


def _no_answer(patience: float, left: float, told: str) -> psycopg.OperationalError:
    return (_NoTimeLeftError if left < patience else psycopg.OperationalError)(told)


class _Connection(psycopg.Connection[Any]):
    """A connection on which no wait is longer than `patience` seconds, or than the thread has."""

    patience = 5.0

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        left = time_left()
        try:
            return super().wait(gen, interval, min(self.patience, left))
        except psycopg.OperationalError:
            if self.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                # It waits still: there is no telling what comes, or when.
                self.pgconn.finish()
                raise _no_answer(self.patience, left, "no answer in time") from None
            raise


def connect(conninfo: str, patience: float, **settings: str) -> _Connection:
    """A new connection, in autocommit mode, whose server settings are *settings*.

    Raises:
        psycopg.Error: it cannot be had.
    """
    me = f"bridge {socket.gethostname()} {os.getpid()}"
    # By its name a bridge that was cut off is told from others, whatever the URL says.
    connection = _Connection.connect(conninfo, autocommit=True, application_name=me)
    try:
        connection.patience = patience
        chosen = ", ".join(f"set_config('{name}', %s, false)" for name in settings)
        connection.execute(f"SELECT {chosen}".encode(), [*settings.values()], prepare=False)
    except BaseException:
        connection.close()
        raise
    return connection


class Session:
    """A process's one lasting connection, with the thread that keeps it (see the module)."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._secrets = _secrets(conninfo)
        self._renewers: list[Callable[[psycopg.Connection[Any]], None]] = []
        self._hearers: dict[str, Callable[[str], None]] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._connected = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        # When the last question was asked that was answered.
        self._asked_at = float("-inf")
        self._complete = False
        self._holds = False
        self.wants_lock = False
        self.backend = 0

    def listen(
        self,
        channel: str,
        renew: Callable[[psycopg.Connection[Any]], None],
        heard: Callable[[str], None],
    ) -> None:
        """Before it starts: what to hear.

        Args:
            channel: where notifications come from.
            renew: called on the connection when it begins to hear, to learn what was missed.
            heard: called with each notification from then on.
        """
        self._hearers[channel] = heard
        self._renewers.append(renew)

    def start(self, wait: float = 0.0) -> None:
        """Begin, if it has not begun; returns when it hears, or after *wait* seconds."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="session", daemon=True)
                self._thread.start()
        self._connected.wait(wait)

    def is_complete(self) -> bool:
        """Whether everything that was notified has been heard, up to `TRUST` seconds ago."""
        return self._complete and _now() < self._asked_at + TRUST

    def holds_lock(self) -> bool:
        """Whether the deliverer's lock is this session's, for certain."""
        return self._holds and self.wants_lock and _now() < self._asked_at + LEASE - MARGIN

    def close(self) -> None:
        self._ended.set()
        connection = self._connection
        if connection is not None:
            # The thread waits in it, and wakes up.
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
                with connect(
                    self._conninfo, TRUST, idle_session_timeout=f"{LEASE:g}s"
                ) as connection:
                    self._connection = connection
                    self._keep(connection)
            except (psycopg.Error, StoreUnavailableError) as error:
                if not self._ended.is_set():
                    told = first_line(error, self._secrets)
                    extra = {"action": "session_lost"}
                    log.warning("no session with the database: %s", told, extra=extra)
            except Exception:
                # Without a session nothing is delivered and nothing trusted, so go on.
                log.exception("the session failed", extra={"action": "session_failed"})
            finally:
                self._connection = None
                self._complete = self._holds = False
                self.backend = 0
                self._connected.clear()
            # Not all processes of the fleet at the same moment.
            self._ended.wait(RECONNECT * random.uniform(0.5, 1))  # noqa: S311 - no secret

    def _keep(self, connection: _Connection) -> None:
        # Not as the connection tells it: PgBouncer makes that up.
        backend = _backend(connection)
        if backend != connection.info.backend_pid:
            self._check_pooler(backend)
        for channel in self._hearers:
            connection.execute(f"LISTEN {channel}".encode())
        for renew in self._renewers:
            renew(connection)
        self._ask(connection, backend)
        self._hear(connection, 0)
        self.backend = backend
        self._complete = True
        self._connected.set()
        log.info("session with the database", extra={"action": "session_begun"})
        while not self._ended.is_set():
            self._hear(connection, BEAT)
            self._ask(connection, backend)

    def _hear(self, connection: _Connection, seconds: float) -> None:
        for notification in connection.notifies(timeout=seconds):
            self._hearers[notification.channel](notification.payload)

    def _check_pooler(self, backend: int) -> None:
        """See that what stands in between keeps our connection ours while it is idle."""
        with connect(self._conninfo, TRUST) as other:
            if _backend(other) == backend:
                raise psycopg.OperationalError(_NOT_A_SESSION)

    def _ask(self, connection: psycopg.Connection[Any], backend: int) -> None:
        """Show the server that this session lives, and see that the server does."""
        order = "NULL"
        if self.wants_lock and not self._holds:
            order = f"pg_try_advisory_lock({_DELIVERER})"
        elif self._holds and not self.wants_lock:
            order = f"NOT pg_advisory_unlock({_DELIVERER})"
        asked_at = _now()
        row = connection.execute(f"SELECT pg_backend_pid(), {order}".encode()).fetchone()
        if row is None or row[0] != backend:
            raise psycopg.OperationalError(_NOT_A_SESSION)
        if row[1] is not None:
            self._holds = row[1]
        self._asked_at = asked_at


def _backend(connection: psycopg.Connection[Any]) -> int:
    """The number of the server's process that answers."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0


_NOT_A_SESSION = "another connection answers: PgBouncer must be in session mode"


class SessionLock:
    """The deliverer's lock of the fleet (see the module)."""

    grace = LEASE

    def __init__(self, session: Session) -> None:
        self._session = session

    def try_acquire(self) -> bool:
        self._session.wants_lock = True
        self._session.start()
        return self._session.holds_lock()

    def is_held(self) -> bool:
        return self._session.holds_lock()

    def release(self) -> None:
        # Given back at the session's next question.
        self._session.wants_lock = False


@dataclass
class _Away:
    """Until when a database is not asked again, and what it was found away by."""

    until: float = float("-inf")
    cause: str = ""


class Postgres(Database):
    """The database of a fleet.

    Args:
        url: ``postgresql://…``.
        migrations: what brings the schema from version n to n + 1, in order.
        session: the process's session.
        versions: the table that tells how far the migrations have come; several sets of tables
            share one database.
        durable: whether a commit is on disk, on the standbys too where there are synchronous
            ones, before it returns.
        patience: seconds a statement may take.
        hasty: whoever asks would rather go without than wait for longer than *patience*, so
            nothing is migrated on the way.
    """

    def __init__(
        self,
        url: str,
        migrations: Sequence[Migration],
        session: Session,
        *,
        versions: str = "schema_version",
        durable: bool,
        patience: float = 3.0,
        hasty: bool = False,
    ) -> None:
        self._conninfo = conninfo(url)
        self._secrets = _secrets(self._conninfo)
        self._patience = patience
        self._hasty = hasty
        self._durable = durable
        self._connecting: ThreadPoolExecutor | None = None
        self._late: list[Future[_Connection]] = []
        self._late_lock = threading.Lock()
        # Of all sets of tables that share the pool, see `also`.
        self._away = _Away()
        self._session = session
        self.name = shown(self._conninfo)
        self.deliverer = SessionLock(session)
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=POOL_SIZE,
            max_overflow=0,
            use_native_hstore=False,
            hide_parameters=True,
        )
        # In front of the pool, whose own turns all wait for the same time.
        self._turns = threading.Semaphore(POOL_SIZE)
        self._turn_patience = patience if hasty else POOL_PATIENCE
        sa.event.listen(engine, "checkout", _refuse_if_ended)
        super().__init__(engine, migrations, versions)
        # One statement needs no transaction, and so no two further round trips.
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT")

    def migrate(self) -> None:
        if self._migrated:
            return
        with self._one_error(), self._reading(patience=None) as connection:
            known = sa.inspect(connection).has_table(self._versions.name)
            version = (
                connection.execute(sa.select(self._versions.c.version)).scalar() if known else 0
            )
        if known and version == len(self._migrations):
            self._migrated = self._was_migrated = True
        elif self._hasty and (version or 0) < len(self._migrations):
            raise StoreUnavailableError("the database is not migrated yet")
        else:
            super().migrate()

    def also(self, migrations: Sequence[Migration], versions: str = "schema_version") -> "Postgres":
        """Another set of tables in this database, over the same connections."""
        other = copy.copy(self)
        Database.__init__(other, self._engine, migrations, versions)
        return other

    def close(self) -> None:
        super().close()
        self._session.close()
        if self._connecting is not None:
            self._connecting.shutdown(wait=False)
        for late in self._late:
            late.add_done_callback(_close)

    def end_cut_off(self) -> None:
        """End transactions whose client was cut off in the midst of sending.

        While the server waits for the rest of several statements that come together, it does not
        hold the transaction to be idle, and no time-out of its own ends it (before its version 17).
        """
        with self.read() as connection:
            connection.execute(_END_CUT_OFF, {"seconds": LEASE})

    @contextmanager
    def alone(self, number: int) -> Iterator[bool]:
        try:
            connection = connect(self._conninfo, self._patience, idle_session_timeout="0")
        except psycopg.Error as error:
            told = first_line(error, self._secrets)
            raise StoreUnavailableError(f"the database cannot be used: {told}") from error
        try:
            asked = connection.execute("SELECT pg_try_advisory_lock(%s)", [_NUMBERED + number])
            yield bool((asked.fetchone() or [False])[0])
        finally:
            connection.close()

    @contextmanager
    def autocommit(self) -> Iterator[sa.Connection]:
        with self.read() as connection:
            yield connection

    @contextmanager
    def _reading(self, *, patience: float | None) -> Iterator[sa.Connection]:
        if patience is not None:
            with self._writing(alone=False, patience=patience) as connection:
                yield connection
            return
        with self._turn(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self, *, alone: bool, patience: float | None) -> Iterator[sa.Connection]:
        with (
            self._turn(),
            self._engine.begin() as connection,
            self._waiting(connection, patience),
        ):
            if alone:
                # Else two that change the same rows in another order would wait for each other.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CHANGES})")
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The right to one of the pool's connections."""
        self._refuse_if_away()
        if not self._turns.acquire(timeout=max(0.0, min(self._turn_patience, time_left()))):
            raise StoreUnavailableError("all connections with the database are in use")
        try:
            yield
        finally:
            self._turns.release()

    @contextmanager
    def _waiting(self, connection: sa.Connection, patience: float | None) -> Iterator[None]:
        """Let the statements of a transaction take up to *patience* seconds each."""
        if patience is None:
            yield
            return
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {patience * 1000:.0f}")
        driver = connection.connection.driver_connection
        assert isinstance(driver, _Connection)  # noqa: S101 - for the type checker
        usual, driver.patience = driver.patience, patience + 0.5
        try:
            yield
        finally:
            driver.patience = usual

    @contextmanager
    def _migrating(self) -> Iterator[sa.Connection]:
        with self._writing(alone=False, patience=None) as connection:
            server = int((connection.dialect.server_version_info or (0,))[0])
            if server < OLDEST_SERVER:
                raise StoreUnavailableError(
                    f"{self.name} is PostgreSQL {server}; {OLDEST_SERVER} or later is needed"
                )
            # Who comes second does not wait for long: it is unavailable until it is done.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION})")
            with self._waiting(connection, MIGRATION_PATIENCE):
                yield connection

    def _failed(self, error: Exception) -> str:
        cause = getattr(error, "orig", None) or error
        timed_out = isinstance(cause, psycopg.errors.QueryCanceled)
        gone = getattr(error, "connection_invalidated", False) or isinstance(
            cause, psycopg.OperationalError
        )
        gone = gone and not isinstance(cause, _NoTimeLeftError)
        told = first_line(cause, self._secrets)
        if (gone and not timed_out) or (timed_out and self._hasty):
            self._away.until = _now() + AWAY
            self._away.cause = told
        return told

    def _refuse_if_away(self) -> None:
        if time_left() <= 0:
            raise TooLateError("no time is left to ask the database")
        if _now() < self._away.until:
            raise StillAwayError(f"the database cannot be used: {self._away.cause}")

    def _connect(self) -> _Connection:
        if not self._hasty:
            return self._connect_now()
        if _now() < self._away.until:
            # Found out while this one waited for its turn.
            raise psycopg.OperationalError("it was away a moment ago")
        # Looking up a host's name and connecting have an end too, but a later one.
        with self._late_lock:
            if self._connecting is None:
                self._connecting = ThreadPoolExecutor(POOL_SIZE, "connecting")
            late = self._late.pop() if self._late else self._connecting.submit(self._connect_now)
        left = time_left()
        try:
            return late.result(min(self._patience, left))
        except TimeoutError:
            # For the next who asks, so that there are never more than the pool may hold.
            with self._late_lock:
                self._late.append(late)
            raise _no_answer(self._patience, left, "connecting takes too long") from None

    def _connect_now(self) -> _Connection:
        connection = connect(
            self._conninfo,
            # The server's own limit comes first where the server is alive: it frees its locks.
            self._patience + (0 if self._hasty else 0.5),
            statement_timeout=f"{self._patience * 1000:.0f}",
            synchronous_commit="on" if self._durable else "off",
            # Of a machine that is cut off, nothing stays: neither locks nor connections.
            idle_in_transaction_session_timeout="5s",
            idle_session_timeout="10min",
        )
        connection.autocommit = False
        return connection


def first_line(error: BaseException, secrets: Sequence[str]) -> str:
    """What *error* says, but for *secrets*; the further lines of PostgreSQL's repeat rows."""
    diagnosis = getattr(error, "diag", None)
    told = (diagnosis.message_primary if diagnosis else "") or str(error)
    for secret in secrets:
        told = told.replace(secret, "…")
    return (told.strip() or type(error).__name__).splitlines()[0]


def _now() -> float:
    """Seconds on a clock that runs on while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _refuse_if_ended(connection: Any, _record: object, _proxy: object) -> None:
    """Take no connection out of the pool that the server has ended meanwhile.

    It then has something to say, unasked.
    """
    if connection.closed:
        raise DisconnectionError
    heard = poll()
    heard.register(connection.fileno(), POLLIN)
    if heard.poll(0):
        raise DisconnectionError


def _close(future: "Future[_Connection]") -> None:
    if future.exception() is None:
        future.result().close()
