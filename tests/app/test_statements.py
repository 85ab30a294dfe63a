"""Statements that SQLite gets directly are equal to those of SQLAlchemy."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge.lookups import cache
from bridge.outbox import store
from bridge.shared import MIGRATIONS, MIGRATIONS_BESIDE
from bridge.storage.expressions import among
from bridge.storage.sqlite import SQLite
from bridge.storage.statements import Prepared, driver_of

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("found", sa.Boolean, nullable=False),
)
AMONG = among(things.c.number, "some")
NOT_AMONG = sa.not_(among(things.c.number, "others"))
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
        answer = [tuple(row) for row in Prepared(CHOSEN).rows(connection, **given)]
        assert answer == [tuple(row) for row in connection.execute(CHOSEN, given)]
    assert len(answer) == len(set(range(0, length, 2)) - set(range(0, length, 3)))


def test_many_changes_are_made_in_one_go(database: SQLite) -> None:
    with database.write() as connection:
        Prepared(CHANGED).many(connection, [{"key": number} for number in (0, 4, 1)])
    with database.read() as connection:
        found = sa.select(things.c.number).where(things.c.found)
        assert connection.execute(found).scalars().all() == [0, 4]


PREPARED = {
    name: one
    for module in (store, cache)
    for name, one in vars(module).items()
    if isinstance(one, Prepared) and not name.startswith(("_ADD", "_UPSERT"))
}


@pytest.mark.parametrize("name", PREPARED)
def test_no_statement_that_is_carried_out_often_reads_a_whole_table(
    tmp_path: Path, name: str
) -> None:
    """Nor does any with a list, which SQLite looks up in an index only if it is written so."""
    everything = [*MIGRATIONS, *MIGRATIONS_BESIDE]
    database = SQLite(f"sqlite:///{tmp_path}/bridge.db", everything, durable=False)
    with database.read() as connection:
        sql = PREPARED[name].compiled(connection).sql
        explained = driver_of(connection).execute(
            f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?")
        )
        steps = [step for *_, step in explained]
    database.close()
    assert steps
    assert not [step for step in steps if step.startswith(("SCAN writes", "SCAN events"))]
    assert not [step for step in steps if step.startswith("SCAN lookups")]
    # All that waits has one direction.
    assert not [step for step in steps if step.endswith("(direction=?)")]
