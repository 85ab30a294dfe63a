"""Databases: transactions, schema versions, one error.

`bridge.storage.sqlite` implements this for one machine, `bridge.storage.postgres` for a fleet. If a
transaction cannot begin or commit, both raise `StoreUnavailableError`.

Migrations are numbered and never change after a release. The first process runs them under a lock.
They only *add* a table, an index, or a column with a default: while a fleet is upgraded, old
processes write beside new ones. A running process therefore continues after a newer one has
migrated the database. A starting process refuses a schema newer than its own.
"""

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from bridge.storage.locks import Locks

Migration = Callable[[sa.Connection], None]


class StoreUnavailableError(Exception):
    """The database cannot be read or written now; the cause is chained.

    Attributes:
        level: the log level to use if the service continues without the database.
    """

    level = logging.WARNING


class StillUnavailableError(StoreUnavailableError):
    """The database failed a moment ago, which is logged already, and was not asked again."""

    level = logging.DEBUG


class DeadlinePassedError(StillUnavailableError):
    """The thread's deadline has passed (see `in_time`), so the database was not asked."""


_local = threading.local()


@contextmanager
def in_time(until: float) -> Iterator[None]:
    """Bound all calls of this thread to a fleet's database by the deadline *until*.

    The deadline is by ``time.monotonic()``. It holds for statements, for connecting and for the
    wait for a pooled connection. SQLite ignores it.

    Raises:
        StoreUnavailableError: inside the block, by a call that cannot end in time.
    """
    before = getattr(_local, "until", math.inf)
    _local.until = min(before, until)
    try:
        yield
    finally:
        _local.until = before


def time_left() -> float:
    """Return the seconds until this thread's deadline (`in_time`); infinite without one."""
    left: float = getattr(_local, "until", math.inf) - time.monotonic()
    return left


class UnsuitableDatabaseError(StoreUnavailableError):
    """The bridge cannot use this database, for example for its encoding; the start fails."""


class NoDatabaseError(StoreUnavailableError):
    """There is no database of the bridge, and this command creates none."""


class NewerSchemaError(Exception):
    """A newer version of the bridge has created or migrated the database."""


class Database(ABC):
    """One database: ``read()`` and ``write()`` give a connection within a transaction.

    Attributes:
        name: the path or URL, without credentials, for messages and logs.
        locks: between the processes that use the database.
        request_timeout: seconds that one request may wait for the database in all.
    """

    name: str
    locks: Locks
    request_timeout = 20.0

    def __init__(self, engine: sa.Engine, migrations: Sequence[Migration], versions: str) -> None:
        self._engine = engine
        self._migrations = migrations
        self._versions = sa.Table(
            versions, sa.MetaData(), sa.Column("version", sa.Integer, nullable=False)
        )
        self._migrated = False
        self._was_migrated = False

    @contextmanager
    def read(self, *, timeout: float | None = None) -> Iterator[sa.Connection]:
        """Open a connection for reading.

        Args:
            timeout: seconds that one statement may take, if that is more than usual.

        Raises:
            StoreUnavailableError: the database cannot be read.
        """
        self.migrate()
        with self._one_error(), self._reading(timeout=timeout) as connection:
            yield connection

    @contextmanager
    def write(
        self, *, exclusive: bool = False, timeout: float | None = None
    ) -> Iterator[sa.Connection]:
        """Open a transaction; commit it at the end of the block, roll it back on an exception.

        Args:
            exclusive: whether to wait for other exclusive transactions. Needed to change rows that
                other transactions change too; not needed to insert rows.
            timeout: seconds that one statement may take, if that is more than usual.

        Raises:
            StoreUnavailableError: the transaction failed. If it failed during the commit, its
                changes may be stored nevertheless.
        """
        self.migrate()
        with self._one_error(), self._writing(exclusive=exclusive, timeout=timeout) as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[sa.Connection]:
        """Open a connection for one statement: autocommit on PostgreSQL, a transaction on SQLite.

        Raises:
            StoreUnavailableError: the database cannot be written.
        """
        with self.write() as connection:
            yield connection

    def migrate(self) -> None:
        """Migrate the schema to this version, once in a process and under a lock.

        `read` and `write` call this first, so that a database that is unavailable at the start is
        used as soon as it is back.

        Raises:
            NewerSchemaError: the schema is newer than this code, and this process has just started.
            StoreUnavailableError: the database cannot be written, or is not a database.
        """
        if self._migrated:
            return
        # Lock only if the schema has to change: lookups must not wait for a lock.
        with self._one_error():
            version = self._stored_version()
        newest = len(self._migrations)
        if version != newest and not (version > newest and self._was_migrated):
            self._upgrade(version)
        self._migrated = self._was_migrated = True

    def _upgrade(self, _version: int) -> None:
        """Migrate from the stored version, read again under the lock."""
        with self._one_error(), self._migrating() as connection:
            # IF NOT EXISTS, not create(checkfirst): another process may create the table between
            # the check and the creation.
            connection.execute(sa.schema.CreateTable(self._versions, if_not_exists=True))
            version = connection.execute(sa.select(self._versions.c.version)).scalar()
            if version is None:
                connection.execute(self._versions.insert().values(version=0))
            newest = len(self._migrations)
            if (version or 0) > newest:
                raise NewerSchemaError(
                    f"{self.name} has schema {version}, made by a newer bridge; this one knows "
                    f"up to {newest}: upgrade the bridge, or restore a backup"
                )
            for migration in self._migrations[version or 0 :]:
                migration(connection)
            if version != newest:
                connection.execute(self._versions.update().values(version=newest))

    def _stored_version(self) -> int:
        """Return the number of migrations that have run; 0 for a new database."""
        with self._reading(timeout=None) as connection:
            if not sa.inspect(connection).has_table(self._versions.name):
                return 0
            return connection.execute(sa.select(self._versions.c.version)).scalar() or 0

    def check_exists(self) -> None:
        """Check that the database has the bridge's tables; create nothing.

        Raises:
            NoDatabaseError: the tables are missing.
            StoreUnavailableError: the database cannot be read.
        """
        with self._one_error():
            if not self._stored_version():
                raise NoDatabaseError(f"there is no database at {self.name}")

    def check_creatable(self) -> None:
        """Check that the tables can be created, in a transaction that is rolled back.

        Raises:
            StoreUnavailableError: they cannot be created.
        """
        with suppress(_UndoneError), self._one_error(), self._migrating() as connection:
            for migration in self._migrations:
                migration(connection)
            raise _UndoneError

    def schema_version(self) -> int:
        """Return the number of migrations that have run.

        Raises:
            StoreUnavailableError: the database cannot be read.
        """
        with self.read() as connection:
            return int(connection.execute(sa.select(self._versions.c.version)).scalar_one())

    def read_clock(self) -> None:  # noqa: B027 - SQLite has no clock of its own
        """Read the database server's clock, if there is one.

        Raises:
            StoreUnavailableError: the server cannot be asked.
        """

    def scrub(self) -> None:  # noqa: B027 - PostgreSQL's files are its own
        """Overwrite deleted data in the database's files.

        Raises:
            StoreUnavailableError: the files cannot be written.
        """

    def check_space(self) -> None:  # noqa: B027 - only SQLite knows its disk
        """Check that the disk has room for more commits.

        Raises:
            StoreUnavailableError: the disk is full.
        """

    def close(self) -> None:
        self._engine.dispose()

    @abstractmethod
    def end_orphaned_transactions(self) -> None:
        """End transactions of processes that were cut off from the server, if there are any.

        Raises:
            StoreUnavailableError: the server cannot be asked.
        """

    @abstractmethod
    def _reading(self, *, timeout: float | None) -> AbstractContextManager[sa.Connection]: ...

    @abstractmethod
    def _writing(
        self, *, exclusive: bool, timeout: float | None
    ) -> AbstractContextManager[sa.Connection]: ...

    @abstractmethod
    def _migrating(self) -> AbstractContextManager[sa.Connection]:
        """Open a transaction that excludes migrations by other processes."""

    @abstractmethod
    def _failed(self, error: Exception) -> str:
        """Record *error* for later transactions, and return its text for messages."""

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"the database cannot be used: {self._failed(error)}")


class _UndoneError(Exception):
    """Rolls a transaction back."""


def add_column(connection: sa.Connection, column: "sa.Column[Any]") -> None:
    """Add *column* to its table, for a migration; a new database has been created with it.

    Use ``create(connection, checkfirst=True)`` for a new table or index.
    """
    table = column.table
    if column.name in {one["name"] for one in sa.inspect(connection).get_columns(table.name)}:
        return
    name = connection.dialect.identifier_preparer.format_table(table)
    definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {definition}")
