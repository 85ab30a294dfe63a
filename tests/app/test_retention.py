"""Ended events are forgotten by age, and nothing else is."""

import time
from typing import Any

import pytest
from flask import Flask

from bridge.outbox.events import BATCH
from bridge.outbox.model import State
from bridge.outbox.schema import expiries
from bridge.outbox.search import Filter
from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeApp, bearer, eventually, rows, stored_state

pytestmark = pytest.mark.both_databases

DAY = 86400.0


def send(app: Flask, **fields: Any) -> str:
    answer = app.test_client().post(
        "/webhooks/braze", json={"user_id": ALICE, **fields}, headers=bearer("webhook")
    )
    event_id: str = answer.get_json().get("id", "")
    return event_id


def forget_all_before(parts: Parts, then: float) -> int:
    forgotten = 0
    while count := parts.events.forget_before(then, time.time()):
        forgotten += count
    return forgotten


def test_what_ended_long_ago_is_forgotten_with_its_writes_and_tries(make_app: MakeApp) -> None:
    app = make_app(deliver=True)
    parts = parts_of(app)
    event = send(app, braze_campaign_id="summer", dispatch_id="d1")
    send(app, user_id="")
    eventually(lambda: stored_state(parts.store, event) is State.DELIVERED)
    assert forget_all_before(parts, time.time() - DAY) == 0
    assert forget_all_before(parts, time.time() + DAY) == 2
    assert parts.events.find(Filter()).events == []
    with parts.store.database.read() as connection:
        for table in ("writes", "attempts"):
            rows = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()  # noqa: S608
            assert rows == 0
    # Forgotten means that it may come again.
    assert send(app, braze_campaign_id="summer", dispatch_id="d1") not in {"", event}


def test_what_waits_or_is_dead_is_kept_whatever_its_age(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    parts = parts_of(app)
    sandbox.sandbox.set_faults({"ok_error": True, "code": "validation"})
    dead = send(app, braze_campaign_id="summer")
    eventually(lambda: stored_state(parts.store, dead) is State.DEAD)
    sandbox.sandbox.set_faults({"status": 500})
    queued = send(app, braze_campaign_id="winter")
    assert forget_all_before(parts, time.time() + DAY) == 0
    assert stored_state(parts.store, dead) is State.DEAD
    assert stored_state(parts.store, queued) is State.QUEUED


def test_more_than_one_batch_is_forgotten(app: Flask) -> None:
    parts = parts_of(app)
    for number in range(BATCH + 5):
        event = send(app, user_id=f"u{number}", braze_campaign_id="c")
        assert event
    assert parts.operator.discard(Filter(state=State.QUEUED)).changed == BATCH + 5
    assert forget_all_before(parts, time.time() + DAY) == BATCH + 5


def test_expiry_times_are_forgotten_a_batch_at_a_time(app: Flask) -> None:
    parts = parts_of(app)
    past = [{"customer": f"user_id:{n}", "tag": "t", "expires_at": 1.0} for n in range(BATCH + 5)]
    with parts.store.database.write() as connection:
        connection.execute(expiries.insert(), [*past, {**past[0], "tag": "u", "expires_at": 9e9}])
    assert parts.events.forget_before(0, time.time()) == BATCH
    assert forget_all_before(parts, 0) == 5
    assert list(parts.store.expiries_of("user_id:0", 0)) == ["u"]


def test_the_bridge_knows_an_expiry_longer_than_it_keeps_the_event(make_app: MakeApp) -> None:
    app = make_app(deliver=True)
    parts = parts_of(app)
    event = send(app, braze_campaign_id="summer")
    eventually(lambda: stored_state(parts.store, event) is State.DELIVERED)
    assert forget_all_before(parts, time.time() + DAY) == 1
    answer = app.test_client().get(
        f"/connected-content/tags?user_id={ALICE}", headers=bearer("content")
    )
    assert "braze_campaign_summer" in answer.get_json()["expires"]


def test_lookups_that_nobody_may_be_served_any_more_are_dropped(
    make_app: MakeApp, database: str
) -> None:
    app = make_app()
    for number in range(3):
        app.test_client().get(
            f"/connected-content/tags?user_id=u{number}", headers=bearer("content")
        )
    table = database if database.startswith("postgresql:") else f"{database}.cache"
    cache = parts_of(app).cache
    # Answers come before they are stored.
    eventually(lambda: rows(table, "SELECT count(*) FROM lookups") == [(3,)])
    assert cache.forget_before(time.time() - DAY) == 0
    assert cache.forget_before(time.time() + DAY) == 3
    assert rows(table, "SELECT count(*) FROM lookups") == [(0,)]
