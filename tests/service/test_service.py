"""The whole service: real gunicorn workers, real HTTP, a real file."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from bridge.sandbox import SandboxServer
from tests.conftest import (
    ALICE,
    MakeService,
    Service,
    at_most,
    bearer,
    environment,
    eventually,
    free_port,
)

BOB = "b4e2d3c5-1c6f-4d70-9b82-a3c4d5e6f702"


def test_with_sessionm_away_webhooks_are_taken_and_lookups_answered(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service(BRIDGE_TAGS_MAX_AGE="0", BRIDGE_STALE_WHILE_REVALIDATE="0")
    service.lookup("tags", user_id=ALICE)
    sandbox.stop()
    sent = [service.webhook(user_id=ALICE, braze_campaign_id=f"c{i}") for i in range(10)]
    assert {answer.status_code for answer in sent} == {202}
    warm = service.lookup("tags", user_id=ALICE).json()
    assert (warm["status"], warm["stale"]) == ("ok", True)
    with at_most(1.7):
        cold = service.lookup("tags", user_id=BOB)
    assert (cold.status_code, cold.json()["status"]) == (200, "unavailable")
    eventually(lambda: service.health()["status"] == "degraded")
    sandbox.start()
    eventually(
        lambda: {f"braze_campaign_c{i}" for i in range(10)} <= set(sandbox.sandbox.tags(ALICE)), 45
    )
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0)


def test_what_is_fetched_while_it_ends_is_kept(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"latency_ms": 1000})
    service = make_service(BRIDGE_LOOKUP_DEADLINE="0.2")
    assert service.lookup("tags", user_id=ALICE).json()["status"] == "unavailable"
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()
    service.start()
    assert service.lookup("tags", user_id=ALICE).headers["Cache-Status"].startswith("bridge; hit")


def test_probes_and_health_tell_how_it_is(service: Service) -> None:
    assert requests.get(f"{service.url}/healthz", timeout=5).json() == {"status": "ok"}
    assert requests.get(f"{service.url}/readyz", timeout=5).status_code == 200
    assert requests.get(f"{service.url}/health", timeout=5).status_code == 401
    eventually(lambda: service.health()["checks"]["delivery"]["state"] == "running")
    health = service.health()
    assert (health["status"], health["reasons"]) == ("ok", [])
    assert set(health["checks"]) == {
        "store",
        "delivery",
        "sessionm_core",
        "sessionm_connect",
        "delivery_to_braze",
        "braze",
        "cache",
        "webhooks",
        "braze_budget",
        "files",
        "offers",
        "clocks",
    }
    assert health["checks"]["braze_budget"] == {
        "webhook_failures_last_minute": 0,
        "content_failures_last_minute": 0,
        "content_calls_last_minute": 0,
        "limit": 3000,
        "content_share_limit": 0.9,
    }


ASGI = ["-k", "uvicorn_worker.UvicornWorker", "app:asgi"]


@pytest.mark.parametrize(
    "way", [["app:app", "--preload", "--workers", "2"], ASGI], ids=["wsgi, preload", "asgi"]
)
def test_gunicorn_serves_the_same_application(
    sandbox: SandboxServer, tmp_path: Path, way: list[str]
) -> None:
    root = Path(__file__).parents[2]
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(root)]
    process = subprocess.Popen(
        [*command, *way, "--bind", f"127.0.0.1:{port}", "--log-level", "warning"],
        env={**environment(sandbox.url, tmp_path), "PATH": ""},
        cwd=tmp_path,
    )
    try:

        def sent(campaign: str, query: str = "") -> int:
            try:
                return requests.post(
                    f"http://127.0.0.1:{port}/webhooks/braze{query}",
                    json={"user_id": ALICE, "braze_campaign_id": campaign},
                    headers=bearer("webhook"),
                    timeout=35,
                ).status_code
            except (requests.ConnectionError, requests.Timeout):
                # gunicorn listens before its worker has loaded the application.
                return 0

        eventually(lambda: sent("summer") == 202, 20)
        eventually(lambda: "braze_campaign_summer" in sandbox.sandbox.tags(ALICE))
        # SIGTERM ends what waits for a delivery.
        sandbox.sandbox.set_faults({"status": 503})
        before = len(sandbox.sandbox.calls(method="POST"))
        with ThreadPoolExecutor(1) as sender, at_most(15):
            waiting = sender.submit(sent, "winter", "?wait=30")
            eventually(lambda: len(sandbox.sandbox.calls(method="POST")) > before)
            process.terminate()
            assert waiting.result() == 202
    finally:
        process.terminate()
        assert process.wait(35) == 0


def test_gunicorn_stops_with_one_line_when_a_setting_is_wrong(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--chdir", str(root), "app:app"],
        env={"PATH": "", "BRIDGE_CAMPAIGN_TTL": "soon"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode != 0
    assert "SESSIONM_CORE_URL" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_equal_events_at_once_in_several_workers_make_one(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "4")
    event = {"user_id": ALICE, "tags": ["visits"], "dispatch_id": "d1"}
    with ThreadPoolExecutor(20) as pool:
        answers = [
            answer.json() for answer in pool.map(lambda _: service.webhook(**event), range(20))
        ]
    assert sorted(answer["status"] for answer in answers) == ["accepted"] + ["duplicate"] * 19
    assert len({answer["id"] for answer in answers}) == 1
    eventually(lambda: sandbox.sandbox.tags(ALICE).get("visits") == 1)


def test_lookups_do_not_wait_for_a_sessionm_that_is_known_to_be_away(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "2", BRIDGE_TAGS_MAX_AGE="0")
    service.lookup("tags", user_id=ALICE)
    sandbox.sandbox.set_faults({"drop": "before"})
    for number in range(6):
        service.webhook(user_id=f"u{number}", braze_campaign_id="summer")
    eventually(lambda: sandbox.sandbox.counts()["tags_write"] >= 6)
    sandbox.sandbox.set_faults({"hang": 10})
    times = []
    for number in range(20):
        began = time.monotonic()
        cold = service.lookup("tags", user_id=f"cold-{number}").json()
        times.append(time.monotonic() - began)
        assert cold["status"] == "unavailable"
    # Now and then one of them is the probe.
    assert sorted(times)[10] < 0.3
    assert service.lookup("tags", user_id=ALICE).json()["status"] == "ok"
    sandbox.sandbox.set_faults({})
    eventually(lambda: service.lookup("tags", user_id=BOB).json()["status"] == "ok", 40)
