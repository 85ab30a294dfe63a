"""Schemas go forward, once, whoever comes first; old processes go on beside new ones."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge.database import Database, NewerSchemaError
from bridge.outbox import schema
from bridge.outbox.schema import State, events
from bridge.outbox.search import Filter
from bridge.parts import open_outbox, parts_of
from bridge.sessionm.sandbox import SandboxServer
from tests.conftest import ALICE, MakeApp, bearer, environment, rows, send

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


def add_a_column(connection: sa.Connection) -> None:
    """What a later version might do: only add."""
    connection.exec_driver_sql("ALTER TABLE events ADD COLUMN colour TEXT DEFAULT 'blue'")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, what opens a database is a version later."""

    def upgrade() -> None:
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_a_column))

    return upgrade


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
    assert parts_of(new).store.database.schema_version() == len(schema.MIGRATIONS)


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
        refused = subprocess.run(
            [sys.executable, "-m", "bridge", command],
            env={"PATH": "", **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert refused.returncode == 1
        assert "made by a newer bridge" in refused.stdout + refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_many_that_come_at_once_migrate_once(database: str) -> None:
    calls = []

    def count(connection: sa.Connection) -> None:
        calls.append(connection)
        add_a_column(connection)

    def first_use(opened: Database) -> int:
        opened._migrations = (*schema.MIGRATIONS, count)  # noqa: SLF001
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


def test_an_older_batch_table_takes_writes_beyond_32_bits(
    make_app: MakeApp, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
    old = parts_of(make_app()).store.database
    if database.startswith("postgresql"):
        with old.write() as connection:
            narrow = "ALTER TABLE batch_writes ALTER COLUMN write_seq TYPE INTEGER"
            connection.exec_driver_sql(narrow)
    monkeypatch.undo()
    new = make_app()
    send(new.test_client(), braze_campaign_id="c1")
    parts_of(new).batches.jobs.follow("test", "1", "1", 0.0)
    with old.write() as connection:
        connection.execute(schema.writes.update().values(seq=2**31))
        job = connection.execute(sa.select(schema.batch_jobs.c.id)).scalar_one()
        connection.execute(schema.batch_writes.insert().values(write_seq=2**31, job_id=job))
    assert rows(database, "SELECT write_seq FROM batch_writes") == [(2**31,)]


def test_a_refused_call_of_before_keeps_the_customer_of_its_path(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[campaigns.a]\ncounters = ["promo"]\n')
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:4])
    old = make_app(BRIDGE_RULES=str(rules))
    path, body = f"/priv/v1/apps/bridge/users/{ALICE}/tags", {"tags": ["promo"], "ttl": 60}
    refused = old.test_client().post(path, json=body, headers=bearer("webhook"))
    assert refused.status_code == 422
    with parts_of(old).store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE events DROP COLUMN in_body")
    monkeypatch.undo()
    new = parts_of(make_app())
    [event] = new.events.find(Filter()).events
    assert new.operator.replay(Filter(state=State.REJECTED)).changed == 1
    [write] = (new.events.story(event["id"]) or {})["writes"]
    assert (event["customer"], write["tags"]) == ({"user_id": ALICE}, ["promo"])


def test_events_of_before_are_still_known_when_they_come_again(
    make_app: MakeApp, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:5])
        patch.setattr("bridge.intake.payload.DEDUPE_DIGITS", 64)
        old = make_app().test_client()
        first = send(old, braze_campaign_id="c1", dispatch_id="d1")
    new = make_app().test_client()
    assert send(new, again=True, braze_campaign_id="c1", dispatch_id="d1") == first
    assert len(rows(database, "SELECT id FROM events")) == 1


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    make_app: MakeApp, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(make_app().test_client(), braze_campaign_id="c1")

    def half(connection: sa.Connection) -> None:
        add_a_column(connection)
        connection.exec_driver_sql("SELECT nonsense")

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, half))
    broken = make_app().test_client()
    assert broken.get("/readyz").status_code == 503
    monkeypatch.undo()
    whole = make_app()
    send(whole.test_client(), braze_campaign_id="c2")
    assert parts_of(whole).store.database.schema_version() == len(schema.MIGRATIONS)
    assert "colour" not in columns(database)


def columns(database: str) -> set[str]:
    engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    try:
        return {column["name"] for column in sa.inspect(engine).get_columns("events")}
    finally:
        engine.dispose()
