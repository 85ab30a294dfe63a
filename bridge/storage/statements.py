"""SQL statements: dialect differences, and statements prepared for frequent use.

A prepared statement is compiled once and passed to the driver directly. On SQLite, SQLAlchemy's own
work for a statement takes longer than SQLite's, and another thread may take the GIL meanwhile. On
PostgreSQL the round trip counts: a statement without a result to read is deferred, and sent with
the next one that has a result, or with the commit (psycopg's pipeline mode).
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

# Also for SQLite, whose ON CONFLICT is the same.
insert = postgresql.insert

_SQLITE = sqlite_dialect.dialect()
# Key of `Connection.info` for the deferred statements.
_DEFERRED = "bridge.deferred"


class RawStatement(NamedTuple):
    """A statement for PostgreSQL's driver: SQL text and named values."""

    sql: str
    values: Mapping[str, Any] = {}


class Prepared:
    """A statement that is compiled once per dialect; its values are passed by name.

    Outside of `Database.write`, each execution is a transaction of its own on SQLite.

    Args:
        statement: the statement; use `among` for lists of values.
        columns: for an insert: the names of the columns that get values.
    """

    def __init__(
        self, statement: sa.Select[Any] | sa.Update | sa.Insert, columns: Sequence[str] = ()
    ) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def rows(self, connection: sa.Connection, **values: Any) -> Sequence[Any]:
        """Execute the statement and return its rows, each a sequence of the selected values."""
        [found] = read_together(connection, (self, values))
        return found

    def column(self, connection: sa.Connection, **values: Any) -> list[Any]:
        """Execute the statement and return the first value of each row."""
        return [row[0] for row in self.rows(connection, **values)]

    def many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute the statement once for each of *rows*, which map names to values."""
        compiled = self.for_(connection)
        if connection.dialect.name == "sqlite":
            driver_of(connection).executemany(
                compiled.sql, [compiled.positional(values) for values in rows]
            )
        else:
            defer(connection, *(compiled.raw(values) for values in rows))

    def for_(self, connection: sa.Connection) -> "_Compiled":
        """Return the statement compiled for the dialect of *connection*."""
        name = connection.dialect.name
        if name not in self._compiled:
            self._compiled[name] = _Compiled(self._statement, connection.dialect, self._columns)
        return self._compiled[name]


class _Compiled:
    """A statement in one dialect."""

    def __init__(
        self,
        statement: sa.Select[Any] | sa.Update | sa.Insert,
        dialect: sa.Dialect,
        columns: Sequence[str],
    ) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=list(columns) or None)
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._process = {
            name: process
            for name, bound in compiled.binds.items()
            if (process := bound.type.dialect_impl(dialect).bind_processor(dialect))
        }
        own = {n: value for n, value in compiled.params.items() if not compiled.binds[n].required}
        self._own = self._processed(own)
        # PostgreSQL's driver converts types by itself.
        decodes = dialect.name == "sqlite"
        selected = (
            statement.selected_columns if decodes and isinstance(statement, sa.Select) else ()
        )
        self._decoders = [
            (place, decode)
            for place, column in enumerate(selected)
            if (decode := column.type.dialect_impl(dialect).result_processor(dialect, None))
        ]

    def positional(self, values: Mapping[str, Any]) -> list[Any]:
        bound = {**self._own, **self._processed(values)}
        return [bound[name] for name in self._names]

    def raw(self, values: Mapping[str, Any]) -> RawStatement:
        return RawStatement(self.sql, {**self._own, **self._processed(values)})

    def decoded(self, rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        return [self._decoded(row) for row in rows] if self._decoders else rows

    def _processed(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        process = self._process
        return {
            name: process[name](value) if name in process else value
            for name, value in values.items()
        }

    def _decoded(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for place, decode in self._decoders:
            values[place] = decode(values[place])
        return values


def read_together(
    connection: sa.Connection, *asked: tuple[Prepared, Mapping[str, Any]]
) -> list[Sequence[Any]]:
    """Execute several statements, on PostgreSQL in one round trip.

    Args:
        connection: where to execute them.
        *asked: statements with their values by name.

    Returns:
        The rows of each statement, in the order of *asked*.
    """
    compiled = [statement.for_(connection) for statement, _ in asked]
    if connection.dialect.name == "sqlite":
        driver = driver_of(connection)
        cursors: list[Any] = [
            driver.execute(one.sql, one.positional(values))
            for one, (_, values) in zip(compiled, asked, strict=True)
        ]
    else:
        cursors = send(
            connection,
            *(one.raw(values) for one, (_, values) in zip(compiled, asked, strict=True)),
        )
    return [one.decoded(cursor.fetchall()) for one, cursor in zip(compiled, cursors, strict=True)]


def defer(connection: sa.Connection, *statements: RawStatement) -> None:
    """Defer *statements* on PostgreSQL until the next `send`, at the latest the commit."""
    connection.info.setdefault(_DEFERRED, []).extend(statements)


def send(connection: sa.Connection, *statements: RawStatement) -> list[Any]:
    """Execute the deferred statements and then *statements* on PostgreSQL, in one round trip.

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


class ListOf(sa.types.TypeDecorator[Sequence[Any]]):
    """A list bound as one value, so that the SQL text does not depend on its length."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, item: sa.types.TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        kind = sa.Text() if dialect.name == "sqlite" else postgresql.ARRAY(self.item)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: Sequence[Any] | None, dialect: sa.Dialect) -> Any:
        return json.dumps(list(value or ())) if dialect.name == "sqlite" else list(value or ())


class Among(GenericFunction[Any]):
    """The SQL function behind `among`."""

    inherit_cache = True
    name = "bridge_among"
    # Not Boolean: SQLAlchemy would write "… = 1", for which SQLite uses no index.
    type = sa.types.NullType()


def among(column: sa.ColumnElement[Any], name: str) -> Among:
    """Return the SQL condition that *column* is in the list that is passed as *name*."""
    # Without the column's length: the cast would truncate a longer text, which may then match.
    item = sa.Text() if isinstance(column.type, sa.String) else sa.BigInteger()
    return Among(column, sa.bindparam(name, type_=ListOf(item)))


@compiles(Among)
def _among(element: Among, compiler: SQLCompiler, **options: Any) -> str:
    one, some = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({one} IN (SELECT value FROM json_each({some})))"  # noqa: S608 - of ours


@compiles(Among, "postgresql")
def _among_postgresql(element: Among, compiler: SQLCompiler, **options: Any) -> str:
    one, some = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({one} = ANY ({some}))"


class AmongSelected(GenericFunction[Any]):
    """The SQL function behind `among_selected`."""

    inherit_cache = True
    name = "bridge_among_selected"
    type = sa.types.NullType()


def among_selected(column: sa.ColumnElement[Any], chosen: sa.Select[Any]) -> AmongSelected:
    """Return the SQL condition that *column* is one of the values that *chosen* selects.

    PostgreSQL executes *chosen* once. With IN, it plans a join, and without statistics of a table
    that has just grown it executes *chosen* for each row: 30 s for 100,000 rows.
    """
    return AmongSelected(column, chosen.scalar_subquery())


@compiles(AmongSelected)
def _among_selected(element: AmongSelected, compiler: SQLCompiler, **options: Any) -> str:
    one, chosen = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({one} IN {chosen})"


@compiles(AmongSelected, "postgresql")
def _among_selected_postgresql(
    element: AmongSelected, compiler: SQLCompiler, **options: Any
) -> str:
    one, chosen = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({one} = ANY (ARRAY{chosen}))"


class Contains(GenericFunction[bool]):
    """The SQL condition that a column contains some bytes: ``Contains(column, bytes)``."""

    inherit_cache = True
    name = "bridge_contains"
    type = sa.Boolean()


@compiles(Contains)
def _contains(element: Contains, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)}) > 0"


@compiles(Contains, "postgresql")
def _contains_postgresql(element: Contains, compiler: SQLCompiler, **options: Any) -> str:
    whole, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"position({part} in {whole}) > 0"


# Rows. SQLite allows 32,766 values in a statement, and caches one statement per number of rows.
_MOST_ROWS = 64


def insert_many(
    connection: sa.Connection, statement: sa.Insert, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert *rows*; on PostgreSQL, deferred until the next `send` or the commit.

    Args:
        connection: of a `Database.write`.
        statement: the insert.
        rows: at least one; all have the same columns, at least two. Values of JSON columns must be
            hashable: tuples, not lists.
    """
    if connection.dialect.name == "sqlite":
        insert_new(connection, statement, rows)
    else:
        defer(connection, *_raw_statements(connection, statement, rows))


def insert_new(
    connection: sa.Connection, statement: sa.Insert, rows: Sequence[Mapping[str, Any]]
) -> int:
    """Execute *statement* for *rows* now; return the number of rows inserted or updated.

    The arguments are those of `insert_many`.
    """
    if connection.dialect.name != "sqlite":
        cursors = send(connection, *_raw_statements(connection, statement, rows))
        return sum(cursor.rowcount for cursor in cursors)
    # One statement for many rows: between two statements another thread may take the GIL, and
    # every other writer waits for this one.
    insert = _insert_of_many(statement, tuple(rows[0]))
    driver = driver_of(connection)
    done = 0
    for first in range(0, len(rows), _MOST_ROWS):
        some = rows[first : first + _MOST_ROWS]
        done += driver.execute(insert.sql(len(some)), insert.values(some)).rowcount
    return done


def _raw_statements(
    connection: sa.Connection, statement: sa.Insert, rows: Sequence[Mapping[str, Any]]
) -> list[RawStatement]:
    compiled = _insert_of_one(statement, tuple(rows[0])).for_(connection)
    return [compiled.raw(row) for row in rows]


@lru_cache
def _insert_of_one(statement: sa.Insert, columns: tuple[str, ...]) -> Prepared:
    # Inline: the new primary key is not read back.
    return Prepared(statement.inline(), columns)


class _InsertOfMany:
    """An insert of many rows for SQLite."""

    def __init__(self, statement: sa.Insert, columns: Sequence[str]) -> None:
        # With the default, OR ABORT, SQLite copies each page to undo a failed statement, and takes
        # twice as long. Here the whole transaction is rolled back anyway.
        statement = statement.prefix_with("OR FAIL")
        compiled = statement.compile(dialect=_SQLITE, column_keys=columns)
        names = compiled.positiontup or ()
        row = f"({', '.join('?' * len(names))})"
        self._before, self._after = str(compiled).split(row)
        self._row = row
        self._sql: dict[int, str] = {}
        self._values_of = itemgetter(*names)
        # Only JSON needs conversion, cached because most rows hold equal values.
        types = [statement.table.c[name].type for name in names]
        self._json = {
            place: lru_cache(process)
            for place, kind in enumerate(types)
            if isinstance(kind, sa.JSON)
            and (process := kind.dialect_impl(_SQLITE).bind_processor(_SQLITE))
        }

    def sql(self, rows: int) -> str:
        if rows not in self._sql:
            self._sql[rows] = f"{self._before}{', '.join([self._row] * rows)}{self._after}"
        return self._sql[rows]

    def values(self, rows: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
        return tuple(chain.from_iterable(map(self._in_order, rows)))

    def _in_order(self, row: Mapping[str, Any]) -> Sequence[Any]:
        values: Sequence[Any] = self._values_of(row)
        if self._json:
            values = list(values)
            for place, process in self._json.items():
                values[place] = process(values[place])
        return values


@lru_cache
def _insert_of_many(statement: sa.Insert, columns: tuple[str, ...]) -> _InsertOfMany:
    return _InsertOfMany(statement, columns)


def driver_of(connection: sa.Connection) -> sqlite3.Connection:
    """Return the driver's connection (sqlite3) below *connection*."""
    driver: Any = connection.connection.driver_connection
    return driver  # type: ignore[no-any-return]
