"""Moving house: what waits, is dead or is remembered goes into another database, once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from bridge.ops.move import Move, MoveCounts
from bridge.outbox.model import AFTER_BATCH, State
from bridge.outbox.search import Filter
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from bridge.shared import open_outbox
from tests.commands import run_bridge
from tests.conftest import ALICE, MakeApp, bearer, eventually, rows, send, stored_state
from tests.postgres import fresh_database


@pytest.fixture
def new_home() -> Iterator[str]:
    with fresh_database() as url:
        yield url


def move(source: str, target: str, folder: Path, status: int = 0, *more: str) -> str:
    arguments = ("move", "--from", source, "--to", target, *more)
    ended = run_bridge(*arguments, env=os.environ, cwd=folder)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout if status == 0 else ended.stderr


class Household:
    """A bridge's events, one of each kind."""

    def __init__(self, app: Flask, sandbox: SandboxServer) -> None:
        self.app = app
        self.client = app.test_client()
        parts = parts_of(app)
        self.delivered = send(
            self.client, braze_campaign_id="done", campaign_name="Summer", dispatch_id="d0"
        )
        eventually(lambda: stored_state(parts.store, self.delivered) is State.DELIVERED)
        sandbox.sandbox.set_faults({"ok_error": True, "code": "validation", "match": "POST"})
        self.dead = send(self.client, braze_campaign_id="dead")
        eventually(lambda: stored_state(parts.store, self.dead) is State.DEAD)
        sandbox.sandbox.set_faults({})
        assert parts.operator.pause()
        self.queued = [
            send(self.client, braze_campaign_id=f"c{n}", tags=["visits"], dispatch_id=f"q{n}")
            for n in range(3)
        ]
        self.client.post("/webhooks/braze", json={"user_id": ALICE}, headers=bearer("webhook"))

    def states(self) -> dict[str, str]:
        return states(self.app)


def states(app: Flask) -> dict[str, str]:
    return {one["id"]: one["state"] for one in parts_of(app).events.find(Filter()).events}


def stories(app: Flask) -> list[Any]:
    found = [parts_of(app).events.details(event_id) for event_id in sorted(states(app))]
    assert all(found)
    return found


def test_everything_moves_and_is_delivered_from_there_once(
    make_app: MakeApp, sandbox: SandboxServer, database: str, new_home: str, tmp_path: Path
) -> None:
    old = Household(make_app(deliver=True), sandbox)
    before, stories_before = old.states(), stories(old.app)
    parts_of(old.app).close()
    assert move(database, new_home, tmp_path).startswith("6 events copied")
    assert "0 events copied, 6 there" in move(database, new_home, tmp_path)
    there = make_app(deliver=True, BRIDGE_DATABASE_URL=new_home)
    assert states(there) == before
    assert stories(there) == stories_before
    assert parts_of(there).events.campaign_names(["done"]) == {"done": "Summer"}
    client = there.test_client()
    health = client.get("/health", headers=bearer("admin")).get_json()
    assert health["checks"]["delivery"]["held_by"] == "hand"
    again = client.post(
        "/webhooks/braze",
        json={"user_id": ALICE, "braze_campaign_id": "done", "dispatch_id": "d0"},
        headers=bearer("webhook"),
    )
    assert again.get_json() == {"status": "duplicate", "id": old.delivered}
    parts_of(there).operator.resume()
    eventually(lambda: {states(there)[event] for event in old.queued} == {"delivered"})
    assert sandbox.sandbox.tags(ALICE)["visits"] == 3
    assert states(there)[old.dead] == "dead"
    assert (
        "expires"
        in client.get(
            f"/connected-content/tags?user_id={ALICE}", headers=bearer("content")
        ).get_json()
    )


def test_and_back_again(
    make_app: MakeApp, sandbox: SandboxServer, new_home: str, tmp_path: Path
) -> None:
    old = Household(make_app(deliver=True, BRIDGE_DATABASE_URL=new_home), sandbox)
    answer = stories(old.app)
    parts_of(old.app).close()
    back = f"sqlite:///{tmp_path}/back/bridge.db"
    assert "6 events copied" in move(new_home, back, tmp_path)
    assert stories(make_app(BRIDGE_DATABASE_URL=back)) == answer


def test_an_event_that_came_to_both_is_kept_once(
    make_app: MakeApp, database: str, new_home: str, tmp_path: Path
) -> None:
    for url in (database, new_home):
        app = make_app(BRIDGE_DATABASE_URL=url)
        send(app.test_client(), braze_campaign_id="c", dispatch_id="d1")
        parts_of(app).close()
    assert "0 events copied, 1 there" in move(database, new_home, tmp_path)
    assert rows(new_home, "SELECT count(*) FROM writes") == [(1,)]


def test_an_event_with_writes_on_two_pages_is_counted_once(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.ops.move.PAGE", 3)
    app = make_app()
    for number in range(6):
        send(app.test_client(), braze_campaign_id="c", tags=["visits"], dispatch_id=f"d{number}")
    target = open_outbox(f"sqlite:///{tmp_path}/new.db")
    target.migrate()
    moved = Move(parts_of(app).store.database, target).run(lambda _steps: None)
    target.close()
    assert moved == MoveCounts(copied=6)


def test_what_cannot_be_moved_is_refused_in_one_line(
    make_app: MakeApp, database: str, new_home: str, tmp_path: Path
) -> None:
    nowhere = f"sqlite:///{tmp_path}/nowhere.db"
    assert "there is no database at" in move(nowhere, new_home, tmp_path, 1)
    assert not (tmp_path / "nowhere.db").exists()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database" * 1000)
    assert "--from: " in move(f"sqlite:///{damaged}", new_home, tmp_path, 1)
    assert "same database" in move(new_home, new_home, tmp_path, 2)
    assert "postgresql://" in move("mysql://x/y", new_home, tmp_path, 2)
    wrong = "postgresql://u:hunter2@127.0.0.1:1/x"
    parts_of(make_app()).close()
    refused = move(database, wrong, tmp_path, 1)
    assert "hunter2" not in refused
    assert len(refused.splitlines()) == 1
    make_newer(new_home, make_app)
    assert "newer bridge" in move(database, new_home, tmp_path, 1)


def make_newer(url: str, make_app: MakeApp) -> None:
    parts = parts_of(make_app(BRIDGE_DATABASE_URL=url))
    with parts.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")


@pytest.mark.parametrize("option", ["--from", "--to"])
def test_a_bridge_that_still_delivers_is_to_be_stopped_first(
    make_app: MakeApp, database: str, new_home: str, tmp_path: Path, option: str
) -> None:
    urls = {"--from": database, "--to": new_home}
    parts_of(make_app(BRIDGE_DATABASE_URL=database))
    parts = parts_of(make_app(deliver=True, BRIDGE_DATABASE_URL=urls[option]))
    eventually(lambda: parts.store.fact("delivery"))
    assert f"a bridge delivers from {option}: stop it" in move(database, new_home, tmp_path, 1)


def test_a_copy_that_broke_off_is_run_again(
    make_app: MakeApp, database: str, new_home: str, tmp_path: Path
) -> None:
    client = make_app().test_client()
    for number in range(3):
        send(client, braze_campaign_id=f"c{number}", dispatch_id=f"d{number}")
    move(database, new_home, tmp_path)
    with psycopg.connect(new_home, autocommit=True) as there:
        there.execute("DELETE FROM events WHERE campaign_id = 'c1'")
    assert move(database, new_home, tmp_path).startswith("1 event copied, 2 there already")
    assert rows(new_home, "SELECT count(*) FROM writes") == [(3,)]


def test_a_file_that_waits_is_not_left_behind_without_a_word(
    make_app: MakeApp, database: str, new_home: str, tmp_path: Path
) -> None:
    app = make_app(BRIDGE_PUBLIC_URL="https://bridge.example")
    client = app.test_client()
    send(client, braze_campaign_id="c")
    accepted = client.post(
        "/batches?tag=vip&ttl=30d",
        data=f"user_id\n{ALICE}\n",
        content_type="text/csv",
        headers=bearer("admin"),
    )
    assert accepted.status_code == 202
    refused = move(database, new_home, tmp_path, 1)
    assert "1 batch has not ended" in refused
    assert "bridge batch status" in refused
    assert len(refused.splitlines()) == 1
    assert rows(new_home, "SELECT count(*) FROM events") == [(0,)]
    assert "1 event copied" in move(database, new_home, tmp_path, 0, "--without-batches")
    parts_of(app).batches.discard(accepted.get_json()["id"])
    assert "1 there already" in move(database, new_home, tmp_path)


def test_what_waited_for_a_job_of_the_backlog_is_delivered_from_there(
    make_app: MakeApp, sandbox: SandboxServer, database: str, new_home: str, tmp_path: Path
) -> None:
    old = make_app(BRIDGE_PUBLIC_URL="https://bridge.example", BRIDGE_BULK_THRESHOLD="1")
    for number in range(3):
        send(old.test_client(), braze_campaign_id=f"c{number}")
    parts_of(old).jobs.backlog.gather((), 60)
    assert {one for (one,) in rows(database, "SELECT next_at FROM writes")} == {AFTER_BATCH}
    assert "3 events copied" in move(database, new_home, tmp_path)
    there = make_app(deliver=True, BRIDGE_DATABASE_URL=new_home)
    eventually(lambda: set(states(there).values()) == {"delivered"})
    assert "braze_campaign_c2" in sandbox.sandbox.tags(ALICE)
