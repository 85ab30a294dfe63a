"""Opening a database: transactions, schema versions, one error.

What differs between databases stands in two places: `SQLite` here, for one machine, and
`bridge.postgres` for a fleet. A transaction that cannot be had or kept is one error,
`StoreUnavailableError`, whatever the driver called it.

Migrations are numbered, never changed once released, and run under a lock by whichever process
comes first. They only *add* (a table, an index, a column that has a default): while a fleet is
upgraded, old processes go on writing beside new ones. So a process that runs already goes on when
a newer one has migrated the database under it; only a process that starts refuses a schema newer
than it knows, since what else has changed by then it cannot tell.
"""

import logging
import math
import os
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from bridge.locks import DelivererLock, FileLock, FileLocks
from bridge.statements import driver_of

log = logging.getLogger(__name__)

# Longer than any of our own transactions; only a foreign process makes a writer wait so long.
BUSY_TIMEOUT = 2.0
# Less free space than this is none: a commit needs some to be made at all.
LEAST_SPACE = 256 * 1024

Migration = Callable[[sa.Connection], None]


class StoreUnavailableError(Exception):
    """The database cannot be read or written now; the cause is chained.

    Attributes:
        level: how loudly to log it where the service goes on without.
    """

    level = logging.WARNING


class StillAwayError(StoreUnavailableError):
    """It was away a moment ago, which has been told, and was not asked again."""

    level = logging.DEBUG


class TooLateError(StillAwayError):
    """Whoever asks could wait no longer, see `in_time`; it was not asked."""


_local = threading.local()


@contextmanager
def in_time(until: float) -> Iterator[None]:
    """Have nothing that this thread asks a fleet's database last beyond *until*.

    By ``time.monotonic()``. Neither statements nor connecting nor the wait for a connection do;
    what cannot is a `StoreUnavailableError`. A file is asked in no time.
    """
    before = getattr(_local, "until", math.inf)
    _local.until = min(before, until)
    try:
        yield
    finally:
        _local.until = before


def time_left() -> float:
    """Seconds that this thread may wait for a database; infinite but within `in_time`."""
    left: float = getattr(_local, "until", math.inf) - time.monotonic()
    return left


class NewerSchemaError(Exception):
    """The database was made by a newer version of the bridge than this one."""


class Database(ABC):
    """One database: ``read()`` and ``write()`` give a connection within a transaction.

    Attributes:
        name: what people are told it is; without credentials.
        deliverer: who holds it delivers.
    """

    name: str
    deliverer: DelivererLock

    def __init__(self, engine: sa.Engine, migrations: Sequence[Migration], versions: str) -> None:
        self._engine = engine
        self._migrations = migrations
        self._versions = sa.Table(
            versions, sa.MetaData(), sa.Column("version", sa.Integer, nullable=False)
        )
        self._migrated = False
        self._was_migrated = False

    @contextmanager
    def read(self, *, patience: float | None = None) -> Iterator[sa.Connection]:
        """A connection that changes nothing.

        Args:
            patience: seconds that one statement may take, if that is more than usual.
        """
        self.migrate()
        with self._one_error(), self._reading(patience=patience) as connection:
            yield connection

    @contextmanager
    def write(
        self, *, alone: bool = False, patience: float | None = None
    ) -> Iterator[sa.Connection]:
        """A connection whose changes are all kept when the block ends, or none of them.

        Args:
            alone: it changes rows that others change too, and so must come after them; adding
                rows needs no turn.
            patience: seconds that one statement may take, if that is more than usual.
        """
        self.migrate()
        with self._one_error(), self._writing(alone=alone, patience=patience) as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[sa.Connection]:
        """A connection each of whose statements is kept by itself."""
        with self.write() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema to this version's, once; processes that come together take turns.

        Every transaction begins with this, so that a database that is away when the service
        starts is taken into use as soon as it is back.

        Raises:
            NewerSchemaError: the database is newer than this code, and this process is new.
            StoreUnavailableError: it cannot be written, or is not a database.
        """
        if self._migrated:
            return
        with self._one_error(), self._migrating() as connection:
            # Not create(checkfirst): that looks, and then another process may be first.
            connection.execute(sa.schema.CreateTable(self._versions, if_not_exists=True))
            version = connection.execute(sa.select(self._versions.c.version)).scalar()
            self._go_on_from(connection, version)
        self._migrated = self._was_migrated = True

    def _go_on_from(self, connection: sa.Connection, version: int | None) -> None:
        if version is None:
            connection.execute(self._versions.insert().values(version=0))
        newest = len(self._migrations)
        if (version or 0) > newest:
            if self._was_migrated:
                return
            raise NewerSchemaError(
                f"{self.name} has schema {version}, made by a newer bridge; this one knows "
                f"up to {newest}: upgrade the bridge, or restore a backup"
            )
        for migration in self._migrations[version or 0 :]:
            migration(connection)
        if version != newest:
            connection.execute(self._versions.update().values(version=newest))

    def schema_version(self) -> int:
        """How many migrations the database has seen."""
        with self.read() as connection:
            return int(connection.execute(sa.select(self._versions.c.version)).scalar_one())

    def scrub(self) -> None:  # noqa: B027 - only some keep anything
        """Leave nothing of what was deleted in files that are ours."""

    def check_space(self) -> None:  # noqa: B027 - only some can tell
        """Look whether there is room for more.

        Raises:
            StoreUnavailableError: there is none, or as good as.
        """

    def close(self) -> None:
        self._engine.dispose()

    @abstractmethod
    def end_cut_off(self) -> None:
        """End transactions whose process cannot be heard any more, if the database keeps such."""

    @abstractmethod
    def alone(self, number: int) -> AbstractContextManager[bool]:
        """Whether lock *number* is ours until the block ends; nobody waits for it.

        Raises:
            StoreUnavailableError: the database cannot be asked.
        """

    @abstractmethod
    def _reading(self, *, patience: float | None) -> AbstractContextManager[sa.Connection]: ...

    @abstractmethod
    def _writing(
        self, *, alone: bool, patience: float | None
    ) -> AbstractContextManager[sa.Connection]: ...

    @abstractmethod
    def _migrating(self) -> AbstractContextManager[sa.Connection]:
        """A connection to migrate with, while no other process does."""

    @abstractmethod
    def _failed(self, error: Exception) -> str:
        """Take note of *error*; what people are told of it."""

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        # What stood there may have been replaced: look again at the next transaction.
        self._migrated = False
        return StoreUnavailableError(f"the database cannot be used: {self._failed(error)}")


class SQLite(Database):
    """The database of one machine.

    Args:
        url: ``sqlite:///path``; the folder is made if it is missing.
        migrations: what brings the schema from version n to n + 1, in order.
        durable: whether a commit is on disk (fsync) before it returns.
    """

    def __init__(self, url: str, migrations: Sequence[Migration], *, durable: bool) -> None:
        self.path = sqlite_path(url)
        engine = sa.create_engine(
            f"sqlite:///{self.path}",
            connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False},
            # Every thread that is at work may hold one; SQLite connections are cheap.
            pool_size=16,
            max_overflow=-1,
            hide_parameters=True,
        )
        super().__init__(engine, migrations, "schema_version")
        self.name = str(self.path)
        self._durable = durable
        self._file = 0
        self._wal = _Log(self.path)
        # One for all threads, who take turns; and since how many new beginnings.
        self._writer: sa.Connection | None = None
        self._writer_since = self._begun_afresh = 0
        self.locks = FileLocks(self.path.with_name(self.path.name + ".locks"))
        self.deliverer = FileLock(self.locks)
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)

    def end_cut_off(self) -> None:
        """A transaction ends with its process."""

    @contextmanager
    def alone(self, number: int) -> Iterator[bool]:
        mine = self.locks.try_acquire(number)
        try:
            yield mine
        finally:
            if mine:
                self.locks.release(number)

    def migrate(self) -> None:
        if self._migrated and self._file == _inode(self.path):
            return
        # The file is new to us, or was taken away or replaced: what is open is another one.
        self._migrated = False
        self._begin_afresh()
        with self._one_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        super().migrate()
        self._file = _inode(self.path)
        self._wal.find()

    def scrub(self) -> None:
        """Leave nothing of what was deleted in the files, as far as readers under way allow."""
        with self._one_error(), self.locks.writing(), self._engine.connect() as connection:
            driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check_space(self) -> None:
        with self._one_error():
            disk = os.statvfs(self.path.parent)
        if disk.f_bavail * disk.f_frsize < LEAST_SPACE:
            raise StoreUnavailableError("the database's disk is full")

    def close(self) -> None:
        if self._writer is not None:
            with self.locks.writing():
                self._drop_writer()
        super().close()
        self.locks.close()
        self._wal.close()

    def _reading(self, **_wishes: object) -> AbstractContextManager[sa.Connection]:
        return self._engine.connect()

    @contextmanager
    def _writing(self, **_wishes: object) -> Iterator[sa.Connection]:
        """Writers of all processes stand in line at a file lock.

        In SQLite's own busy handler they would sleep: half a second at the 99th percentile. Others
        write already while a commit is brought to the disk: what they have read of it is on the
        disk as soon as their own commit is, since the log is synced from its beginning.
        """
        with self._changing() as connection:
            if self._durable:
                # Before anything is stored: that it cannot be opened must not show afterwards.
                self._wal.open()
            yield connection
        if self._durable and not self._wal.sync():
            self._bring_home()

    def _migrating(self) -> AbstractContextManager[sa.Connection]:
        # It is not synced: whoever finds it missing after a power cut makes it again.
        return self._changing()

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        """A transaction that begins when it is this process's turn, and is there when it ends."""
        # The turn first: to open a new file alone changes it.
        with self.locks.writing():
            try:
                connection = self._connect_writer()
                driver = driver_of(connection)
                # It takes its lock at once, so that it cannot fail half way for want of it.
                driver.execute("BEGIN IMMEDIATE")
                yield connection
                driver.commit()
                if connection.in_transaction():
                    # SQLAlchemy knows of no commit but its own.
                    connection.rollback()
            except BaseException:
                self._drop_writer()
                raise

    def _connect_writer(self) -> sa.Connection:
        """The connection of who has the turn to write."""
        if self._writer_since != self._begun_afresh:
            self._drop_writer()
        if self._writer is None:
            self._writer_since = self._begun_afresh
            self._writer = self._engine.connect()
            self._writer.execution_options(bridge_write=True)
        return self._writer

    def _drop_writer(self) -> None:
        """Undo what it has begun; for who has the turn to write."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.invalidate()
            writer.close()

    def _begin_afresh(self) -> None:
        """Use no connection any more that is open now."""
        self._engine.dispose()
        self._begun_afresh += 1

    def _bring_home(self) -> None:
        """Write what is in the log to the database's file, and that to the disk.

        Raises:
            StoreUnavailableError: what was committed may not be on the disk.
        """
        with self.locks.writing(), self._engine.connect() as connection:
            try:
                busy, logged, home = _checkpoint(driver_of(connection))
            except sqlite3.Error as error:
                raise StoreUnavailableError(f"the disk fails: {error}") from error
            if busy or logged != home:
                raise StoreUnavailableError("the disk fails")
            self._wal.trust()

    def _failed(self, error: Exception) -> str:
        # A connection may have kept what broke (a file since mended).
        self._begin_afresh()
        return str(getattr(error, "orig", None) or error)

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            with super()._one_error():
                yield
        except OSError as error:
            raise StoreUnavailableError(f"the database's files: {error.strerror}") from error
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _on_connect(self, connection: Any, _record: object) -> None:
        # The driver's own BEGIN is deferred and too late; ours is sent in _on_begin.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # Commits are brought to the disk by `_writing`.
        cursor.execute("PRAGMA synchronous=NORMAL")
        # In pages. Each event dirties ten, most of which are dirtied again by the next: to bring
        # them home four times less often took a tenth off what a webhook costs.
        cursor.execute("PRAGMA wal_autocheckpoint=4000")
        cursor.execute("PRAGMA foreign_keys=ON")
        # What is deleted is overwritten: a customer who is erased is in no free page.
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()


def sqlite_path(url: str) -> Path:
    """The file behind ``sqlite:///…``.

    Raises:
        ValueError: it names no file (an in-memory database would lose what is accepted).
    """
    database = make_url(url).database
    if not database or database == ":memory:":
        raise ValueError("must name a file, as in sqlite:///var/bridge.db")
    return Path(database)


def _on_begin(connection: sa.Connection) -> None:
    # A writer has begun before: SQLAlchemy takes longer for that than intake has.
    if not connection.get_execution_options().get("bridge_write", False):
        driver_of(connection).execute("BEGIN")


def _checkpoint(driver: sqlite3.Connection) -> tuple[int, int, int]:
    """Whether others kept some of it away, how much is in the log, and how much of it at home."""
    statement = "PRAGMA wal_checkpoint(FULL)"
    try:
        found: tuple[int, int, int] = driver.execute(statement).fetchone()
    except sqlite3.Error:
        # SQLite is told of what failed before, too: once.
        found = driver.execute(statement).fetchone()
    return found


# macOS has one of them only.
_sync = getattr(os, "fdatasync", os.fsync)


class _Log:
    """SQLite's log of commits (WAL) of the database at *path*, to be synced.

    It stays open: the kernel tells a failed write once to each who had the file open, and to
    nobody who opens it later.
    """

    def __init__(self, path: Path) -> None:
        self._database = path
        self._guard = threading.Lock()
        self._fd = -1
        self._is: tuple[int, int] | None = None
        # Whether something failed that a later sync would not tell any more.
        self._doubtful = False
        self.find()

    def find(self) -> None:
        """Look where it is: beside the file that a link leads to."""
        self._path = f"{os.path.realpath(self._database)}-wal"

    def open(self) -> None:
        """Have it open; for one thread at a time. Raises `OSError`: it cannot be opened."""
        # A forked process needs its own, to be told of what fails.
        present = os.getpid(), os.stat(self._path).st_ino  # noqa: PTH116 - for every webhook
        if present != self._is:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            with self._guard:
                self.close()
                self._fd, self._is = fd, present

    def sync(self) -> bool:
        """Bring to the disk what was written; false: it may not be there, nor what was before."""
        with self._guard:
            if not self._doubtful:
                try:
                    _sync(self._fd)
                except OSError as error:
                    log.error("not synced: %s", error, extra={"action": "sync_failed"})
                    self._doubtful = True
            return not self._doubtful

    def trust(self) -> None:
        """Nothing of it is needed any more that may not be on the disk."""
        with self._guard:
            self._doubtful = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._is = -1, None


def _inode(path: Path) -> int:
    """Which file stands at *path*; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
