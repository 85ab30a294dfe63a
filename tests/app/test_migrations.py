"""Schemas are migrated once, by the first process; old processes go on beside new ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bridge import shared
from bridge.outbox.schema import events
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from bridge.shared import open_outbox
from bridge.storage.database import Database, NewerSchemaError, add_column
from tests.commands import run_bridge
from tests.conftest import MakeApp, environment, rows, send

pytestmark = pytest.mark.both_databases


def add_a_column(connection: sa.Connection) -> None:
    """What a later version might do: only add."""
    connection.exec_driver_sql("ALTER TABLE events ADD COLUMN colour TEXT DEFAULT 'blue'")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, what opens a database is a version later."""

    def upgrade() -> None:
        monkeypatch.setattr(shared, "MIGRATIONS", (*shared.MIGRATIONS, add_a_column))

    return upgrade


def test_a_column_is_added_to_old_tables_and_found_in_new_ones(database: str) -> None:
    def things(*columns: "sa.Column[Any]") -> sa.Table:
        return sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer), *columns)

    colour = sa.Column("colour", sa.Text, nullable=False, server_default="it's blue")
    new, old = things(colour), things()
    engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    for first in (old, new):
        with engine.begin() as connection:
            first.metadata.create_all(connection)
            connection.execute(first.insert().values(id=1))
            add_column(connection, colour)
            assert connection.execute(new.select()).all() == [(1, "it's blue")]
            first.drop(connection)
    engine.dispose()


def colours(database: str) -> list[str]:
    return [colour for (colour,) in rows(database, "SELECT colour FROM events")]


def test_a_newer_version_migrates_and_the_old_one_beside_it_goes_on(
    make_app: MakeApp, database: str, newer: Callable[[], None]
) -> None:
    old = make_app()
    send(old.test_client(), braze_campaign_id="c1")
    newer()
    new = make_app()
    send(new.test_client(), braze_campaign_id="c2")
    send(old.test_client(), braze_campaign_id="c3")
    # Also after it had to look at the database anew.
    parts_of(old).store.database._migrated = False  # noqa: SLF001
    send(old.test_client(), braze_campaign_id="c4")
    assert colours(database) == ["blue"] * 4
    assert parts_of(new).store.database.schema_version() == len(shared.MIGRATIONS)


def test_an_old_version_that_starts_is_refused_in_one_line(
    make_app: MakeApp,
    database: str,
    newer: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    sandbox: SandboxServer,
    tmp_path: Path,
) -> None:
    newer()
    make_app()
    monkeypatch.undo()
    with pytest.raises(NewerSchemaError, match="made by a newer bridge"):
        make_app()
    environ = environment(sandbox.url, tmp_path, BRIDGE_DATABASE_URL=database)
    for command in ("serve", "check", "deliver"):
        refused = run_bridge(command, env={"PATH": "", **environ}, cwd=tmp_path)
        assert refused.returncode == 1
        assert "made by a newer bridge" in refused.stdout + refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_many_that_come_at_once_migrate_once(database: str) -> None:
    calls = []

    def count(connection: sa.Connection) -> None:
        calls.append(connection)
        add_a_column(connection)

    def first_use(opened: Database) -> int:
        opened._migrations = (*shared.MIGRATIONS, count)  # noqa: SLF001
        with opened.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()

    opened = [open_outbox(database) for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(first_use, opened)) == [0] * 8
    finally:
        for one in opened:
            one.close()
    assert len(calls) == 1


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    make_app: MakeApp, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(make_app().test_client(), braze_campaign_id="c1")

    def half(connection: sa.Connection) -> None:
        add_a_column(connection)
        connection.exec_driver_sql("SELECT nonsense")

    monkeypatch.setattr(shared, "MIGRATIONS", (*shared.MIGRATIONS, half))
    broken = make_app().test_client()
    assert broken.get("/readyz").status_code == 503
    monkeypatch.undo()
    whole = make_app()
    send(whole.test_client(), braze_campaign_id="c2")
    assert parts_of(whole).store.database.schema_version() == len(shared.MIGRATIONS)
    assert "colour" not in columns(database)


def columns(database: str) -> set[str]:
    engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    try:
        return {column["name"] for column in sa.inspect(engine).get_columns("events")}
    finally:
        engine.dispose()
