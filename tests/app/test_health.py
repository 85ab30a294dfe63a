"""`/health`: right over all workers and after restarts, and there when the store is not."""

import re
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from tests.app.conftest import take_store_away
from tests.app.test_pages import words
from tests.conftest import (
    ALICE,
    MakeApp,
    MakeService,
    Service,
    answered,
    bearer,
    eventually,
    post,
    send,
)


def health(client: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/health", headers=bearer("admin")).get_json()
    return found


def budget(service: Service) -> tuple[int, int]:
    answer = service.health()["checks"]["braze_budget"]
    return answer["content_failures_last_minute"], answer["content_calls_last_minute"]


def test_every_worker_shows_what_all_have_counted_before_and_after_a_restart(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "4")
    sandbox.stop()
    for number in range(12):
        answer = service.lookup("tags", user_id=f"u{number}", on_error="retry")
        assert answer.status_code == 503
    assert service.lookup("tags", user_id="u0").status_code == 200
    eventually(lambda: budget(service) == (12, 13))
    assert {budget(service) for _ in range(8)} == {(12, 13)}
    assert service.stop() == 0
    service.start()
    checks = service.health()["checks"]
    assert checks["braze_budget"]["content_failures_last_minute"] == 12
    assert checks["cache"]["unavailable"] == 13
    core = checks["sessionm_core"]
    assert (core["errors"] > 0, core["state"]) == (True, "down")
    assert "no connection" in core["last_error"]
    assert core["last_error_at"].startswith("20")


def test_latencies_are_those_of_all_workers(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "4")
    sandbox.sandbox.set_faults({"latency_ms": [200, 200]})
    for number in range(8):
        service.lookup("tags", user_id=f"u{number}")
    eventually(lambda: service.health()["checks"]["sessionm_core"]["calls"] == 8)
    for _ in range(6):
        checks = service.health()["checks"]
        assert 200 <= checks["sessionm_core"]["p50_ms"] <= 500
        assert 200 <= checks["cache"]["p99_ms"] <= 1000
        assert checks["cache"]["in_time_ratio"] == 1


@pytest.fixture
def parts(make_app: MakeApp) -> Parts:
    return parts_of(make_app())


def reasons(parts: Parts, make_app: MakeApp) -> str:
    parts.telemetry.flush()
    return " ".join(health(make_app().test_client())["reasons"])


def test_over_half_of_brazes_budget_is_degraded(parts: Parts, make_app: MakeApp) -> None:
    parts.telemetry.add("braze_webhook_failures", 1500)
    assert "budget" not in reasons(parts, make_app)
    parts.telemetry.count("braze_webhook_failures")
    assert "budget is used: webhooks" in reasons(parts, make_app)


def test_connected_content_is_halted_only_where_most_of_it_fails(
    parts: Parts, make_app: MakeApp
) -> None:
    parts.telemetry.add("braze_content_failures", 2000)
    parts.telemetry.add("braze_content_calls", 100_000)
    assert "budget" not in reasons(parts, make_app)
    parts.telemetry.add("braze_content_failures", 60_000)
    assert "budget is used: Connected Content" in reasons(parts, make_app)


def test_what_was_refused_in_the_last_day_is_a_figure(client: FlaskClient) -> None:
    for user_id in ("", ALICE):
        # Neither has anything to tag.
        assert answered(partial(post, client, user_id=user_id)).status_code == 422
    assert health(client)["checks"]["store"]["events"]["rejected"] == 2
    # A busy machine may read the figures a moment later.
    eventually(lambda: health(client)["checks"]["webhooks"]["rejected_last_day"] == 2)


def test_a_locked_store_is_reported_in_time_with_what_is_known(
    make_service: MakeService, make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    service = make_service()
    telemetry = parts_of(make_app()).telemetry
    for number in range(3):
        service.webhook(user_id=ALICE, braze_campaign_id=f"c{number}")
    # The deliverer notes with each heartbeat how much waits.
    eventually(lambda: any(m.gauge("queued") for m in telemetry.minutes(time.time() - 60)))
    lock = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    answer = service.health()
    assert time.monotonic() - began < 5
    assert answer["checks"]["delivery"]["queued"] > 0
    # Each worker finds out by itself.
    cause = "Events cannot be stored: the database"
    eventually(lambda: service.health()["reasons"][0].startswith(cause), 10)
    eventually(lambda: service.health()["status"] == "down", 10)
    lock.execute("ROLLBACK")
    lock.close()
    eventually(lambda: service.health()["status"] != "down")


def test_the_store_gone_is_down_and_the_rest_is_reported(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    client = app.test_client()
    send(client, braze_campaign_id="summer")
    message = {"braze_campaign_id": "award", "user_id": ALICE, "user_offer_id": "1"}
    client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))
    before = health(client)["checks"]
    take_store_away(app, tmp_path)
    answer = client.get("/health", headers=bearer("admin"))
    assert answer.status_code == 503
    body = answer.get_json()
    assert body["status"] == "down"
    assert body["checks"]["store"]["state"] == "down"
    # What was known last.
    assert body["checks"]["delivery_to_braze"]["queued"] == 1
    assert body["checks"]["delivery_to_braze"].keys() == body["checks"]["delivery"].keys()
    assert body["checks"].keys() == before.keys()
    assert body["checks"]["braze"].keys() == before["braze"].keys()
    assert client.get("/readyz").status_code == 503


def test_webhooks_that_failed_while_the_store_was_locked_are_past_with_the_lock(
    make_app: MakeApp, tmp_path: Path
) -> None:
    client = make_app(deliver=True).test_client()
    send(client, braze_campaign_id="summer")

    def seen() -> str:
        return words(client.get("/dashboard", headers=bearer("admin")))

    lock = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    event = {"user_id": ALICE, "braze_campaign_id": "winter"}
    answer = client.post("/webhooks/braze", json=event, headers=bearer("webhook"))
    assert answer.status_code == 503
    # Without an incident, the failures are past with their minute.
    eventually(lambda: "cannot be stored" in seen())
    down = seen()
    assert "Webhooks ✕ down" in down
    assert "Messages ✕ down" in down
    lock.execute("ROLLBACK")
    lock.close()
    past = r"Webhooks ✓ ok since 20.* UTC .* 1 of 2 failed before"
    eventually(lambda: re.search(past, seen()))
    # A heartbeat that could not be stored is no loop that has stopped.
    assert "stopped" not in seen()
