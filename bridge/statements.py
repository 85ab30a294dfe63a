"""Statements: those that databases take differently, and those that are carried out often.

SQLite is told the latter directly. SQLAlchemy's passes for one statement take longer than SQLite
does, and between any two of them another thread may keep this one waiting.
"""

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

# Its ON CONFLICT is SQLite's as well, whose compiler takes it as it is.
insert = postgresql.insert

_SQLITE = sqlite_dialect.dialect()
# How SQLAlchemy writes the place of a list of any length.
_LIST = re.compile(r"__\[POSTCOMPILE_(\w+)\]")


class Prepared:
    """*statement*, which is carried out often.

    What it binds is given by name, lists for ``bindparam(…, expanding=True)``. Outside of `write`
    each has a transaction of its own on SQLite.
    """

    def __init__(self, statement: sa.Select[Any] | sa.Update) -> None:
        self._statement = statement
        compiled = statement.compile(dialect=_SQLITE)
        self._names = compiled.positiontup or []
        self._own = {name: value for name, value in compiled.params.items() if value is not None}
        # Between the pieces stand the lists.
        self._pieces = _LIST.split(str(compiled))
        self._lists = self._pieces[1::2]
        self._sql: dict[tuple[int, ...], str] = {}
        columns = statement.selected_columns if isinstance(statement, sa.Select) else ()
        self._decoders = [
            (place, decode)
            for place, column in enumerate(columns)
            if (decode := column.type.dialect_impl(_SQLITE).result_processor(_SQLITE, None))
        ]

    def rows(self, connection: sa.Connection, **values: Any) -> Sequence[Any]:
        """What it finds, each a sequence of what was selected."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, values).all()
        found = driver_of(connection).execute(*self._for_sqlite(values)).fetchall()
        return [self._decoded(row) for row in found] if self._decoders else found

    def column(self, connection: sa.Connection, **values: Any) -> list[Any]:
        """The first of what each row holds."""
        return [row[0] for row in self.rows(connection, **values)]

    def many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Carry it out once for each of *rows*, which hold no lists."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, rows)
        else:
            told = [self._for_sqlite(row) for row in rows]
            driver_of(connection).executemany(told[0][0], [values for _, values in told])

    def _for_sqlite(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        bound = {**self._own, **values}
        lengths = []
        for name in self._lists:
            bound[name] = _padded(bound[name])
            lengths.append(len(bound[name]))
        sql = self._sql.get(tuple(lengths)) or self._spelled(lengths)
        if not lengths:
            return sql, [bound[name] for name in self._names]
        parts = (bound[name] if name in self._lists else (bound[name],) for name in self._names)
        return sql, list(chain.from_iterable(parts))

    def _spelled(self, lengths: Sequence[int]) -> str:
        places = [", ".join("?" * length) for length in lengths]
        sql = "".join(chain(*zip(self._pieces[::2], [*places, ""], strict=True)))
        if max(lengths, default=0) <= _MOST_PADDED:
            self._sql[tuple(lengths)] = sql
        return sql

    def _decoded(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for place, decode in self._decoders:
            values[place] = decode(values[place])
        return values


# Longer lists are so seldom that each may be a statement of its own.
_MOST_PADDED = 1024


def _padded(some: Sequence[Any]) -> Sequence[Any]:
    """*some*, the last one repeated, so that there are few lengths, and thereby statements."""
    if not 1 < len(some) < _MOST_PADDED:
        return some
    return [*some, *[some[-1]] * ((1 << (len(some) - 1).bit_length()) - len(some))]


class Holds(GenericFunction[bool]):
    """Whether bytes hold other bytes: ``Holds(column, bytes)``."""

    inherit_cache = True
    name = "bridge_holds"
    type = sa.Boolean()


@compiles(Holds)
def _holds(element: Holds, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)}) > 0"


@compiles(Holds, "postgresql")
def _holds_postgresql(element: Holds, compiler: SQLCompiler, **options: Any) -> str:
    whole, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"position({part} in {whole}) > 0"


# SQLite takes 32,766 values in a statement; and each number of rows is a statement of its own.
_MOST_ROWS = 64


def insert_many(
    connection: sa.Connection, statement: sa.Insert, rows: Sequence[Mapping[str, Any]]
) -> int:
    """Insert *rows*, at least one, which all name the same columns, two at least.

    What they hold for columns of JSON is hashable: tuples, not lists.

    Returns:
        How many were inserted; the others were in conflict.
    """
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, rows).rowcount
    # One statement for many rows: between any two of them another thread may keep this one
    # waiting, and with it every other writer.
    insert = _insert_of_many(statement, tuple(rows[0]))
    driver = driver_of(connection)
    done = 0
    for first in range(0, len(rows), _MOST_ROWS):
        some = rows[first : first + _MOST_ROWS]
        done += driver.execute(insert.sql(len(some)), insert.values(some)).rowcount
    return done


class _InsertOfMany:
    """What *statement* says to SQLite when it has many rows."""

    def __init__(self, statement: sa.Insert, columns: Sequence[str]) -> None:
        # Not "or abort": SQLite would keep a copy of each page for the case that a row fails, and
        # take twice as long. Here the whole transaction goes then.
        statement = statement.prefix_with("OR FAIL")
        compiled = statement.compile(dialect=_SQLITE, column_keys=columns)
        names = compiled.positiontup or ()
        row = f"({', '.join('?' * len(names))})"
        self._before, self._after = str(compiled).split(row)
        self._row = row
        self._sql: dict[int, str] = {}
        self._values_of = itemgetter(*names)
        # As for what else there is, the driver knows what to do. Most rows say the same.
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
    """SQLite's own connection below *connection*."""
    driver: Any = connection.connection.driver_connection
    return driver  # type: ignore[no-any-return]
