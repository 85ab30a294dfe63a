"""Opening a database: engine, transactions, schema versions.

SQLite here; what differs between databases stays in this module. A transaction that cannot be
had or kept is one error, `StoreUnavailableError`, whatever the driver called it.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from bridge.locks import FileLocks

log = logging.getLogger(__name__)

# Longer than any of our own transactions; only a foreign process makes a writer wait so long.
BUSY_TIMEOUT = 2.0
# Less free space than this is none: a commit needs some to be made at all.
LEAST_SPACE = 256 * 1024

Migration = Callable[[sa.Connection], None]
_versions = sa.Table(
    "schema_version", sa.MetaData(), sa.Column("version", sa.Integer, nullable=False)
)


class StoreUnavailableError(Exception):
    """The database cannot be read or written now; the cause is chained."""


class NewerSchemaError(Exception):
    """The database was made by a newer version of the bridge than this one."""


class Database:
    """One database: ``read()`` and ``write()`` give a connection within a transaction.

    Args:
        url: ``sqlite:///path``; the folder is made if it is missing.
        migrations: what brings the schema from version n to n + 1, in order.
        durable: whether a commit is on disk (fsync) before it returns.
    """

    def __init__(self, url: str, migrations: Sequence[Migration], *, durable: bool) -> None:
        self.path = sqlite_path(url)
        self._migrations = migrations
        self._durable = durable
        self._migrated = False
        self._file = 0
        self.locks = FileLocks(self.path.with_name(self.path.name + ".locks"))
        self._engine = sa.create_engine(
            f"sqlite:///{self.path}",
            connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False},
            # Every thread that is at work may hold one; SQLite connections are cheap.
            pool_size=16,
            max_overflow=-1,
        )
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one consistent state and changes nothing."""
        self.migrate()
        with self._one_error(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A connection whose changes are all kept when the block ends, or none of them.

        Writers of all processes stand in line at a file lock rather than in SQLite's busy
        handler, whose sleeps cost half a second at the 99th percentile.
        """
        self.migrate()
        with self._writing() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._one_error(), self.locks.writing(), self._engine.connect() as connection:
            writing = connection.execution_options(bridge_write=True)
            with writing.begin():
                yield writing

    def migrate(self) -> None:
        """Bring the schema to this version's, once; processes that come together take turns.

        Every transaction begins with this, so that a database that is away when the service
        starts is taken into use as soon as it is back.

        Raises:
            NewerSchemaError: the database is newer than this code.
            StoreUnavailableError: it cannot be written, or is not a database.
        """
        if self._migrated and self._file == _inode(self.path):
            return
        # The file is new to us, or was taken away or replaced: what is open is another one.
        self._engine.dispose()
        with self._one_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing() as connection:
            _versions.create(connection, checkfirst=True)
            version = connection.execute(sa.select(_versions.c.version)).scalar()
            if version is None:
                connection.execute(_versions.insert().values(version=0))
            if (version or 0) > len(self._migrations):
                raise NewerSchemaError(
                    f"{self.path} has schema {version}, made by a newer bridge; this one knows "
                    f"up to {len(self._migrations)}: upgrade the bridge, or restore a backup"
                )
            for migration in self._migrations[version or 0 :]:
                migration(connection)
            if version != len(self._migrations):
                connection.execute(_versions.update().values(version=len(self._migrations)))
        self._migrated = True
        self._file = _inode(self.path)

    def scrub(self) -> None:
        """Leave nothing of what was deleted in the files, as far as readers under way allow."""
        with self._one_error(), self.locks.writing(), self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]

    def check_space(self) -> None:
        """Look whether the disk has room for more.

        Raises:
            StoreUnavailableError: it is full, or as good as.
        """
        with self._one_error():
            disk = os.statvfs(self.path.parent)
        if disk.f_bavail * disk.f_frsize < LEAST_SPACE:
            raise StoreUnavailableError("the database's disk is full")

    def close(self) -> None:
        self._engine.dispose()
        self.locks.close()

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # A connection may have kept what broke (a file since mended): begin afresh.
            self._engine.dispose()
            self._migrated = False
            cause = getattr(error, "orig", None) or error
            raise StoreUnavailableError(f"the database answers: {cause}") from error
        except OSError as error:
            raise StoreUnavailableError(f"the database's files: {error.strerror}") from error

    def _on_connect(self, connection: Any, _record: object) -> None:
        # The driver's own BEGIN is deferred and too late; ours is sent in _on_begin.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
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
    writing = connection.get_execution_options().get("bridge_write", False)
    # A write takes its lock at once, so that it cannot fail half way for want of it.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _inode(path: Path) -> int:
    """Which file stands at *path*; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
