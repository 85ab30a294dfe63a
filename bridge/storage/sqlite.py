"""SQLite, the database of one machine: a queue of writers, and commits synced to the disk."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from bridge.storage.database import Database, Migration, StoreUnavailableError
from bridge.storage.locks import FileLocks
from bridge.storage.private import make_file, make_folder
from bridge.storage.statements import driver_of
from bridge.storage.wal import WalFile, checkpoint

# Seconds that a writer waits for a process other than a bridge. Bridges use a lock of their own.
BUSY_TIMEOUT = 2.0
# Pages in SQLite's log (WAL) that start a checkpoint, and bytes of a page.
LOG_PAGES, PAGE = 4000, 4096
# Bytes. With less free space, the disk counts as full: a commit needs some.
LEAST_SPACE = 256 * 1024


class SQLite(Database):
    """The database of one machine.

    Args:
        url: ``sqlite:///path``; the folder is created if it is missing.
        migrations: functions that migrate the schema from version n to n + 1, in order.
        durable: whether a commit returns only after it is on disk (fdatasync).
        busy_timeout: seconds that a writer waits for a process other than a bridge.

    Raises:
        ValueError: *url* names no file.
    """

    locks: FileLocks

    def __init__(
        self,
        url: str,
        migrations: Sequence[Migration],
        *,
        durable: bool,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        self.path = sqlite_path(url)
        engine = sa.create_engine(
            f"sqlite:///{self.path}",
            connect_args={"timeout": busy_timeout, "check_same_thread": False},
            # One for each working thread; SQLite connections are cheap.
            pool_size=16,
            max_overflow=-1,
            hide_parameters=True,
        )
        super().__init__(engine, migrations, "schema_version")
        self.name = str(self.path.absolute())
        self._durable = durable
        self._file = 0
        self._wal = WalFile(self.path)
        # One connection for all writing threads, used under the writers' lock; and its generation.
        self._writer: sa.Connection | None = None
        self._writer_generation = self._generation = 0
        self.locks = FileLocks(self.path.with_name(self.path.name + ".locks"))
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)

    def end_orphaned_transactions(self) -> None:
        """Do nothing: SQLite's transactions end with their process."""

    def migrate(self) -> None:
        if self._migrated and self._file == _inode(self.path):
            return
        # The file is new, or was removed or replaced: open connections belong to another file.
        self._migrated = False
        self._discard_connections()
        with self._one_error():
            make_folder(self.path.parent)
            if not self.path.exists():
                # Under the lock: closing the file frees all POSIX locks of this process on it.
                with self.locks.writing():
                    # SQLite creates its log with the permissions of the database file.
                    make_file(self.path)
        super().migrate()
        self._file = _inode(self.path)
        self._wal.locate()

    def check_creatable(self) -> None:
        folder = next(one for one in self.path.absolute().parents if one.exists())
        with self._one_error(), tempfile.TemporaryFile(dir=folder):
            pass

    def scrub(self) -> None:
        """Overwrite deleted data in the files and empty the log, unless a reader still needs it."""
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

    def _reading(self, **_options: object) -> AbstractContextManager[sa.Connection]:
        return self._engine.connect()

    @contextmanager
    def _writing(self, **_options: object) -> Iterator[sa.Connection]:
        """Write under a file lock that all processes share, then sync the log without the lock.

        SQLite's own busy handler sleeps between its attempts: p99 0.5 s. The next writer starts
        during the sync and may read a commit that is not on disk yet. That is safe: the sync of its
        own commit covers all of the log before it.
        """
        with self._transaction() as connection:
            if self._durable:
                # Open before the first change: a failure must not come after the commit.
                self._wal.open()
            yield connection
        if self._durable and not self._wal.sync():
            self._checkpoint_log()

    def _migrating(self) -> AbstractContextManager[sa.Connection]:
        # Not synced: after a power failure, the next process migrates again.
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Commit a transaction under the writers' lock."""
        # Lock before connecting: opening a new file writes to it.
        with self.locks.writing():
            try:
                connection = self._connect_writer()
                driver = driver_of(connection)
                # IMMEDIATE takes SQLite's lock now: a later statement cannot fail for want of it.
                driver.execute("BEGIN IMMEDIATE")
                yield connection
                driver.commit()
                if connection.in_transaction():
                    # SQLAlchemy does not notice the driver's commit.
                    connection.rollback()
            except BaseException:
                self._drop_writer()
                raise

    def _connect_writer(self) -> sa.Connection:
        """Return the writers' connection. Call this under the writers' lock."""
        if self._writer_generation != self._generation:
            self._drop_writer()
        if self._writer is None:
            self._writer_generation = self._generation
            self._writer = self._engine.connect()
            self._writer.execution_options(bridge_write=True)
        return self._writer

    def _drop_writer(self) -> None:
        """Close the writers' connection, undoing its transaction. Call this under the lock."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.invalidate()
            writer.close()

    def _discard_connections(self) -> None:
        """Replace all connections that are open now before their next use."""
        self._engine.dispose()
        self._generation += 1

    def _checkpoint_log(self) -> None:
        """Copy the log to the database file and sync the file, after a sync of the log failed.

        Raises:
            StoreUnavailableError: commits may be missing on the disk.
        """
        with self.locks.writing(), self._engine.connect() as connection:
            try:
                busy, logged, copied = checkpoint(driver_of(connection))
            except sqlite3.Error as error:
                raise StoreUnavailableError(f"the disk fails: {error}") from error
            if busy or logged != copied:
                raise StoreUnavailableError("the disk fails")
            self._wal.mark_synced()

    def _stored_version(self) -> int:
        # Opening a new (empty) file would write to it, which needs the lock.
        return super()._stored_version() if _size(self.path) else 0

    def _failed(self, error: Exception) -> str:
        cause = getattr(error, "orig", None) or error
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return "another process has locked it"
        # The file may have been replaced, and an open connection may be broken.
        self._migrated = False
        self._discard_connections()
        return str(cause)

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            with super()._one_error():
                yield
        except OSError as error:
            raise StoreUnavailableError(
                f"the database's files in {self.path.absolute().parent}: {error.strerror}"
            ) from error
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _on_connect(self, connection: Any, _record: object) -> None:
        # Turns off the driver's own BEGIN, which comes too late; _on_begin sends ours.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # `_writing` syncs commits.
        cursor.execute("PRAGMA synchronous=NORMAL")
        # Four times SQLite's default. An event changes ten pages, and the next event changes most
        # of them again: -10 % cost of a webhook.
        cursor.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
        # The log grows while a reader holds an old snapshot; truncate it afterwards.
        cursor.execute(f"PRAGMA journal_size_limit={LOG_PAGES * PAGE}")
        cursor.execute("PRAGMA foreign_keys=ON")
        # Overwrite deleted rows: no free page may hold data of an erased customer.
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()


def sqlite_path(url: str) -> Path:
    """Return the path of the file of ``sqlite:///…``.

    Raises:
        ValueError: *url* names no file. (An in-memory database would lose accepted webhooks.)
    """
    database = make_url(url).database
    if not database or database == ":memory:":
        raise ValueError("must name a file, as in sqlite:///var/bridge.db")
    return Path(database)


def _on_begin(connection: sa.Connection) -> None:
    # `_transaction` has begun writers itself: too slow through SQLAlchemy for webhooks.
    if not connection.get_execution_options().get("bridge_write", False):
        driver_of(connection).execute("BEGIN")


def _inode(path: Path) -> int:
    """Return the inode number of the file at *path*; 0 if there is no file."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _size(path: Path) -> int:
    """Return the size in bytes of the file at *path*; 0 if there is no file.

    Raises:
        OSError: the folder cannot be searched.
    """
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
