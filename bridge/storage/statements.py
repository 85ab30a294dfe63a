"""Statements that are executed often: compiled once, and passed to the driver directly.

On SQLite, SQLAlchemy's own work for a statement takes longer than SQLite's, and another thread may
take the GIL meanwhile. All other statements go through SQLAlchemy.

On PostgreSQL the round trips count: a statement without a result to read is deferred, and sent with
the next one that has a result, or with the commit (psycopg's pipeline mode).
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from bridge.storage.expressions import ListOf

Values = Mapping[str, Any]

# Rows of one insert. SQLite allows 32,766 values in a statement, and caches one statement per
# number of rows.
_MOST_ROWS = 64
# Key of `Connection.info` for the deferred statements.
_DEFERRED = "bridge.deferred"


class RawStatement(NamedTuple):
    """A statement for the driver: SQL text and named values."""

    sql: str
    values: Mapping[str, Any] = {}


def defer(connection: sa.Connection, *statements: RawStatement) -> None:
    """Defer *statements* until the next `send`, at the latest the commit."""
    connection.info.setdefault(_DEFERRED, []).extend(statements)


def send(connection: sa.Connection, *statements: RawStatement) -> list[Any]:
    """Execute the deferred statements and then *statements*, in one round trip.

    Returns:
        The driver's cursors of *statements*.
    """
    deferred = connection.info.pop(_DEFERRED, [])
    driver: Any = connection.connection.driver_connection
    if not deferred and len(statements) == 1:
        return [driver.execute(*statements[0])]
    with driver.pipeline():
        cursors = [driver.execute(*one) for one in (*deferred, *statements)]
    return cursors[len(deferred) :]


def has_deferred(connection: sa.Connection) -> bool:
    """Return whether *connection* has deferred statements."""
    return _DEFERRED in connection.info


def discard_deferred(connection: sa.Connection) -> None:
    """Discard the deferred statements of a transaction that is rolled back."""
    connection.info.pop(_DEFERRED, None)


class Prepared:
    """A statement that is compiled once per dialect. Lists of values are passed by `among`.

    Example::

        _QUEUE = Prepared(sa.select(writes.c.seq).where(writes.c.customer == sa.bindparam("of")))
        _DELETE = Prepared(writes.delete().where(writes.c.seq == sa.bindparam("key")))
        _ADD = Prepared(writes.insert())

        rows = _QUEUE.rows(connection, of="user_id:1")
        _DELETE.many(connection, [{"key": seq} for (seq,) in rows])
        _ADD.many(connection, [{"customer": "user_id:1", "tags": ("a", "b")}])

    Outside of `Database.write`, each execution is a transaction of its own on SQLite.
    """

    def __init__(self, statement: sa.Select[Any] | sa.Update | sa.Delete | sa.Insert) -> None:
        self._statement = statement
        self._compiled: dict[str, _OnSQLite | _OnPostgres] = {}

    def rows(self, connection: sa.Connection, **values: Any) -> Sequence[Any]:
        """Execute a query, and return its rows, each a sequence of the selected values."""
        return self.compiled(connection).rows(connection, values)

    def many(self, connection: sa.Connection, rows: Sequence[Values]) -> None:
        """Execute a change once for each of *rows*; on PostgreSQL it is deferred.

        Args:
            connection: of a `Database.write`.
            rows: at least one. For an insert all have the same columns, and values of JSON columns
                are hashable: tuples, not lists.
        """
        self.compiled(connection, rows[0]).many(connection, rows)

    def insert(self, connection: sa.Connection, rows: Sequence[Values]) -> int:
        """Insert *rows* as `many`, but now; return the number of rows inserted or updated."""
        return self.compiled(connection, rows[0]).insert(connection, rows)

    def compiled(
        self, connection: sa.Connection, columns: Iterable[str] = ()
    ) -> "_OnSQLite | _OnPostgres":
        """Return the statement for the dialect of *connection*; an insert sets *columns*."""
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            kind = _OnSQLite if dialect.name == "sqlite" else _OnPostgres
            self._compiled[dialect.name] = kind(self._statement, dialect, list(columns))
        return self._compiled[dialect.name]


def read_together(
    connection: sa.Connection, *asked: tuple[Prepared, Values]
) -> list[Sequence[Any]]:
    """Execute queries with their values, on PostgreSQL in one round trip; return their rows."""
    if connection.dialect.name == "sqlite":
        return [query.rows(connection, **values) for query, values in asked]
    queries = [query.compiled(connection).named(values) for query, values in asked]
    return [cursor.fetchall() for cursor in send(connection, *queries)]


class _Compiled:
    """A statement in one dialect."""

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        # Inline: the new primary key of an insert is not read back.
        is_insert = isinstance(statement, sa.Insert)
        compiled = (statement.inline() if is_insert else statement).compile(
            dialect=dialect, column_keys=columns if is_insert else None
        )
        self.sql = str(compiled)
        self._places: Sequence[str] = compiled.positiontup or ()
        self._types = {name: bound.type for name, bound in compiled.binds.items()}
        self._converters = {
            name: convert
            for name, kind in self._types.items()
            if (convert := kind.dialect_impl(dialect).bind_processor(dialect))
        }
        own = {n: value for n, value in compiled.params.items() if not compiled.binds[n].required}
        self._own = self._converted(own)

    def named(self, values: Values) -> RawStatement:
        """Return the statement with all of its values by name, as the driver takes them."""
        return RawStatement(self.sql, {**self._own, **self._converted(values)})

    def _converted(self, values: Values) -> Values:
        converters = self._converters
        return {
            name: converters[name](value) if name in converters else value
            for name, value in values.items()
        }


class _OnPostgres(_Compiled):
    """A statement for psycopg, which decodes what it reads."""

    def rows(self, connection: sa.Connection, values: Values) -> Sequence[Any]:
        [cursor] = send(connection, self.named(values))
        found: Sequence[Any] = cursor.fetchall()
        return found

    def many(self, connection: sa.Connection, rows: Sequence[Values]) -> None:
        defer(connection, *map(self.named, rows))

    def insert(self, connection: sa.Connection, rows: Sequence[Values]) -> int:
        return sum(cursor.rowcount for cursor in send(connection, *map(self.named, rows)))


class _OnSQLite(_Compiled):
    """A statement for sqlite3."""

    def __init__(self, statement: Any, dialect: sa.Dialect, columns: list[str]) -> None:
        self._is_insert = isinstance(statement, sa.Insert)
        if self._is_insert:
            # With the default, OR ABORT, SQLite copies each page to undo a failed statement, and
            # takes twice as long. Here the whole transaction is rolled back anyway.
            statement = statement.prefix_with("OR FAIL")
        super().__init__(statement, dialect, columns)
        self._converters = {
            # Cached, since most rows that are inserted hold equal values.
            name: lru_cache(convert) if self._is_insert else convert
            for name, convert in self._converters.items()
            # sqlite3 itself converts all other types.
            if isinstance(self._types[name], sa.JSON | ListOf)
        }
        selected = statement.selected_columns if isinstance(statement, sa.Select) else ()
        self._decoders = [
            (place, decode)
            for place, column in enumerate(selected)
            if (decode := column.type.dialect_impl(dialect).result_processor(dialect, None))
        ]

    def rows(self, connection: sa.Connection, values: Values) -> Sequence[Any]:
        found = driver_of(connection).execute(self.sql, self._in_order(values)).fetchall()
        return [self._decoded(row) for row in found] if self._decoders else found

    def many(self, connection: sa.Connection, rows: Sequence[Values]) -> None:
        if self._is_insert:
            self.insert(connection, rows)
        else:
            driver_of(connection).executemany(self.sql, map(self._in_order, rows))

    def insert(self, connection: sa.Connection, rows: Sequence[Values]) -> int:
        # One statement for many rows: between two statements another thread may take the GIL, and
        # every other writer waits for this one.
        driver = driver_of(connection)
        one = f"({', '.join('?' * len(self._places))})"
        done = 0
        for first in range(0, len(rows), _MOST_ROWS):
            some = rows[first : first + _MOST_ROWS]
            sql = self.sql.replace(one, ", ".join([one] * len(some)), 1)
            values = [value for row in some for value in self._in_order(row)]
            done += driver.execute(sql, values).rowcount
        return done

    def _in_order(self, values: Values) -> list[Any]:
        bound = self.named(values).values
        return [bound[name] for name in self._places]

    def _decoded(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for place, decode in self._decoders:
            values[place] = decode(values[place])
        return values


def driver_of(connection: sa.Connection) -> sqlite3.Connection:
    """Return the driver's connection (sqlite3) below *connection*."""
    driver: Any = connection.connection.driver_connection
    return driver  # type: ignore[no-any-return]
