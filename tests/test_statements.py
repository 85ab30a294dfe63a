"""Statements that SQLite is told directly say what SQLAlchemy would have said."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge.database import SQLite
from bridge.statements import Prepared

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("found", sa.Boolean, nullable=False),
)
AMONG = things.c.number.in_(sa.bindparam("some", expanding=True))
NOT_AMONG = things.c.number.not_in(sa.bindparam("others", expanding=True))
CHOSEN = sa.select(things).where(AMONG, NOT_AMONG).order_by(things.c.number)
CHANGED = things.update().where(things.c.number == sa.bindparam("key")).values(found=True)


@pytest.fixture
def database(tmp_path: Path) -> SQLite:
    database = SQLite(f"sqlite:///{tmp_path}/things.db", [things.create], durable=False)
    rows = [{"number": n, "tags": ["é", n], "found": False} for n in range(0, 6000, 2)]
    with database.write() as connection:
        connection.execute(things.insert(), rows)
    return database


@pytest.mark.parametrize("length", [0, 1, 2, 3, 64, 65, 1023, 1024, 1025, 5000])
def test_lists_may_have_any_length(database: SQLite, length: int) -> None:
    given = {"some": list(range(length)), "others": list(range(0, length, 3))}
    with database.read() as connection:
        told = [tuple(row) for row in Prepared(CHOSEN).rows(connection, **given)]
        assert told == [tuple(row) for row in connection.execute(CHOSEN, given)]
    assert len(told) == len(set(range(0, length, 2)) - set(range(0, length, 3)))


def test_many_changes_are_made_in_one_go(database: SQLite) -> None:
    with database.write() as connection:
        Prepared(CHANGED).many(connection, [{"key": number} for number in (0, 4, 1)])
    with database.read() as connection:
        found = sa.select(things.c.number).where(things.c.found)
        assert connection.execute(found).scalars().all() == [0, 4]
