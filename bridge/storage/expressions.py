"""SQL expressions that SQLite and PostgreSQL write differently, for statements of SQLAlchemy.

Example::

    among(writes.c.customer, "customers")
    # SQLite:     writes.customer IN (SELECT value FROM json_each(?))
    # PostgreSQL: writes.customer = ANY (%(customers)s)
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

# An insert that may have ON CONFLICT. Also for SQLite, where it is written the same.
insert = postgresql.insert


def _expression(*, sqlite: str, postgres: str) -> Callable[..., FunctionElement[Any]]:
    """Return a function of expressions, from the SQL text of its result in both dialects."""

    class Expression(FunctionElement[Any]):
        inherit_cache = True
        # Not Boolean: SQLAlchemy would write "… = 1", for which SQLite uses no index.
        type = sa.types.NullType()

    @compiles(Expression)
    def write(element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> str:
        text = postgres if compiler.dialect.name == "postgresql" else sqlite
        return text.format(*(compiler.process(clause, **options) for clause in element.clauses))

    return Expression


_among = _expression(
    sqlite="({} IN (SELECT value FROM json_each({})))",
    postgres="({} = ANY ({}))",
)
_among_selected = _expression(
    sqlite="({} IN {})",
    postgres="({} = ANY (ARRAY{}))",
)
_contains = _expression(
    sqlite="(instr({}, {}) > 0)",
    postgres="(position({1} in {0}) > 0)",
)


def among(column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[Any]:
    """Return the condition that *column* is in the list that is passed as *name*."""
    # Without the column's length: the cast would truncate a longer text, which may then match.
    item = sa.Text() if isinstance(column.type, sa.String) else sa.BigInteger()
    return _among(column, sa.bindparam(name, type_=ListOf(item)))


def among_selected(column: sa.ColumnElement[Any], chosen: sa.Select[Any]) -> sa.ColumnElement[Any]:
    """Return the condition that *column* is one of the values that *chosen* selects.

    PostgreSQL executes *chosen* once. With IN, it plans a join, and without statistics of a table
    that has just grown it executes *chosen* for each row: 30 s for 100,000 rows.
    """
    return _among_selected(column, chosen.scalar_subquery())


def contains(column: sa.ColumnElement[bytes], part: bytes) -> sa.ColumnElement[Any]:
    """Return the condition that *column* contains the bytes *part*."""
    return _contains(column, part)


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
