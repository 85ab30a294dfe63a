"""Deferred statements for PostgreSQL: several statements in one round trip.

A statement without a result to read is deferred, and sent with the next one that has a result, or
with the commit (psycopg's pipeline mode).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

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
