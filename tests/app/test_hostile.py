"""What a hostile SessionM, a hostile sender and unlucky moments may not do."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from bridge.customer import Customer
from bridge.outbox.model import State
from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.app.conftest import goes_round
from tests.conftest import (
    ALICE,
    KEYS,
    LetPass,
    MakeApp,
    MakeService,
    bearer,
    eventually,
    send,
    stored_state,
)

ADMIN = bearer("admin")


def ends_as(parts: Parts, event_id: str, state: State, seconds: float = 20) -> None:
    eventually(lambda: stored_state(parts.store, event_id) is state, seconds)


def test_a_healthy_store_never_answers_503_however_busy(
    make_service: MakeService,
) -> None:
    """Webhooks, lookups and delivery write two databases from many threads of many processes."""
    service = make_service("--workers", "3", BRIDGE_TAGS_MAX_AGE="0")
    until = time.monotonic() + 5
    statuses: list[int] = []

    def work(number: int) -> None:
        while time.monotonic() < until:
            customer = f"customer-{number % 8}"
            statuses.append(service.webhook(user_id=ALICE, tags=["n"]).status_code)
            service.lookup("customer", user_id=customer)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(work, range(24)))
    assert set(statuses) == {202}
    log = service.log.read_text()
    assert "store_failed" not in log
    assert "cache_unwritable" not in log
    assert "no_store" not in log


def test_half_a_body_is_no_body(make_service: MakeService) -> None:
    service = make_service()
    body = b"braze_campaign_id=c&user_id=customer-123456"
    head = (
        "POST /webhooks/braze HTTP/1.1\r\nHost: bridge\r\n"
        f"Authorization: Bearer {KEYS['webhook']}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
    )
    cut = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-3]
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\nZZ\r\n".encode() + body
    for request in (cut, chunked):
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            # uvicorn answers nobody who leaves in the middle of a body.
            answer = connection.recv(4096)
        assert answer[9:12] in {b"", b"400"}
    assert service.health()["checks"]["delivery"]["queued"] == 0
    listed = requests.get(f"{service.url}/api/events", headers=ADMIN, timeout=10).json()
    assert listed["events"] == []


class Scripted(BaseHTTPRequestHandler):
    """A SessionM with prepared answers, one after the other."""

    protocol_version = "HTTP/1.1"
    answers: list[Any]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = json.dumps(answer).encode() if answer else b""
        self.send_response(200 if answer else 302)
        if not answer:
            self.send_header("Location", "http://[::1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 - the name that the server calls

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@contextmanager
def scripted(answers: list[Any]) -> Iterator[ThreadingHTTPServer]:
    """A server that gives *answers* in turn and then the last for ever; ``None`` redirects."""
    handler = type("Handler", (Scripted,), {"answers": answers})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_redirect_is_a_failure_like_any_other(make_app: MakeApp) -> None:
    with scripted([None]) as server:
        app = make_app(deliver=True, SESSIONM_CORE_URL=url_of(server))
        client = app.test_client()
        looked = client.get(f"/connected-content/tags?user_id={ALICE}", headers=bearer("content"))
        assert looked.get_json()["status"] == "unavailable"
        event = send(client, braze_campaign_id="c")

        def tries() -> list[Any]:
            story = parts_of(app).events.details(event)
            found: list[Any] = story["writes"][0]["tries"] if story else []
            return found

        [tried, *_] = eventually(tries)
    assert (tried["status"], tried["outcome"]) == (302, "garbled")


def test_what_is_discarded_while_it_is_sent_is_not_sent_again(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    client = app.test_client()
    sandbox.sandbox.set_faults({"latency_ms": 500, "status": 503})
    event = send(client, braze_campaign_id="c")
    eventually(lambda: sandbox.sandbox.counts()["tags_write"] == 1)
    assert client.delete(f"/api/events/{event}", headers=ADMIN).status_code == 200
    sandbox.sandbox.set_faults({})
    eventually(lambda: [call["status"] for call in sandbox.sandbox.calls(method="POST")] == [503])
    goes_round(parts_of(app))
    assert stored_state(parts_of(app).store, event) is State.DISCARDED
    assert "braze_campaign_c" not in sandbox.sandbox.tags(ALICE)


def test_a_customer_erased_while_a_write_is_under_way_stays_erased(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    parts = parts_of(app)
    sandbox.sandbox.set_faults({"latency_ms": 500, "match": "POST"})
    send(app.test_client(), braze_campaign_id="c")
    eventually(lambda: sandbox.sandbox.counts()["tags_write"] == 1)
    customer, from_shell = Customer("user_id", ALICE), parts.events
    assert from_shell.erase(customer) == 1
    parts.cache.erase(customer)
    eventually(lambda: "braze_campaign_c" in sandbox.sandbox.tags(ALICE))
    goes_round(parts)
    with parts.cache._database.read() as connection:  # noqa: SLF001 - what is on disk
        kept = connection.exec_driver_sql("SELECT count(*) FROM lookups").scalar()
    assert kept == 0


def test_a_rejected_event_that_came_twice_is_taken_in_once(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[defaults]\nunknown = "reject"\n')
    event = {"user_id": ALICE, "braze_campaign_id": "c", "tags": ["n"], "dispatch_id": "d1"}
    strict = make_app(BRIDGE_RULES=str(rules)).test_client()
    for _ in range(2):
        refused = strict.post("/webhooks/braze", json=event, headers=bearer("webhook"))
        assert refused.status_code == 422
    rules.write_text("")
    app = make_app(deliver=True, BRIDGE_RULES=str(rules))
    client = app.test_client()
    replayed = client.post("/api/events/replay", json={"state": "rejected"}, headers=ADMIN)
    assert (replayed.get_json()["matched"], replayed.get_json()["replayed"]) == (2, 1)
    again = client.post("/webhooks/braze", json=event, headers=bearer("webhook"))
    assert again.get_json()["status"] == "duplicate"
    eventually(lambda: sandbox.sandbox.tags(ALICE).get("n") == 1)
    goes_round(parts_of(app))
    assert sandbox.sandbox.tags(ALICE)["n"] == 1


def test_a_dead_counter_that_is_replayed_is_not_taken_for_another_that_was_counted(
    make_app: MakeApp, sandbox: SandboxServer, let_pass: LetPass
) -> None:
    app = make_app(deliver=True, BRIDGE_MAX_ATTEMPTS="1")
    parts, client = parts_of(app), app.test_client()
    sandbox.sandbox.set_faults({"status": 500, "match": "POST", "times": 1})
    first = send(client, tags=["n"], dispatch_id="d1")
    ends_as(parts, first, State.DEAD)
    ends_as(parts, send(client, tags=["n"], dispatch_id="d2"), State.DELIVERED)
    let_pass(PROCESSING_TIME + COUNT_DELAY)
    assert client.post(f"/api/events/{first}/replay", headers=ADMIN).status_code == 200
    ends_as(parts, first, State.DELIVERED, 30)
    assert sandbox.sandbox.tags(ALICE)["n"] == 2


@pytest.mark.parametrize("tags", [["a", "list"], {"n": "many"}, {"n": {"x": 1}}, "text"], ids=str)
def test_counts_that_are_none_are_tried_again_and_reported(make_app: MakeApp, tags: Any) -> None:
    nonsense = {"status": "ok", "tags": tags}
    counted = {"status": "ok", "tags": {"n": 1}}
    answers = [nonsense, {"status": "ok", "tags": {}}, counted]
    with scripted(answers) as server:
        app = make_app(deliver=True, SESSIONM_CORE_URL=url_of(server))
        event = send(app.test_client(), tags=["n"], dispatch_id="d1")
        ends_as(parts_of(app), event, State.DELIVERED)
        story = parts_of(app).events.details(event)
    assert story
    assert [tried["outcome"] for tried in story["writes"][0]["tries"]] == ["garbled", "delivered"]


def test_a_wait_that_sessionm_asked_for_outlives_a_kill(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service()
    sandbox.sandbox.set_faults({"status": 429, "retry_after": 8, "times": 1, "match": "POST"})
    service.webhook(user_id=ALICE, braze_campaign_id="c1")
    eventually(lambda: "wait until" in service.health()["checks"]["delivery"]["reason"])
    assert service.health()["status"] == "degraded"
    service.kill()
    service.start()
    service.webhook(user_id="b4e2d3c5-1c6f-4d70-9b82-a3c4d5e6f702", braze_campaign_id="c2")
    eventually(lambda: sandbox.sandbox.counts()["tags_write"] == 3, 30)
    first, second, _ = sandbox.sandbox.calls(method="POST", match="/tags$")
    assert second["at"] - first["at"] >= 8


def test_resuming_by_hand_ends_a_wait(make_app: MakeApp, sandbox: SandboxServer) -> None:
    app = make_app(deliver=True)
    client = app.test_client()
    sandbox.sandbox.set_faults({"status": 429, "retry_after": 3600, "times": 1})
    sandbox.sandbox.put_customer({"user_id": "somebody"})

    def checks() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/health", headers=ADMIN).get_json()["checks"]
        return found

    events = [send(client, user_id="somebody", braze_campaign_id="c1")]
    eventually(lambda: checks()["delivery"]["held_by"] == "limit")
    events.append(send(client, braze_campaign_id="c2"))
    goes_round(parts_of(app))
    assert sandbox.sandbox.counts()["tags_write"] == 1
    assert client.post("/api/delivery/resume", headers=ADMIN).status_code == 200
    for event in events:
        ends_as(parts_of(app), event, State.DELIVERED)
    eventually(lambda: checks()["sessionm_core"]["state"] == "up")


def test_expired_writes_do_not_hold_up_live_ones(make_app: MakeApp, sandbox: SandboxServer) -> None:
    still = make_app().test_client()
    for number in range(300):
        sandbox.sandbox.put_customer({"user_id": f"u{number}"})
        send(still, user_id=f"u{number}", tags=["flash"], ttl=1)
    ended = time.time() + 1
    eventually(lambda: time.time() > ended)
    app = make_app(deliver=True, BRIDGE_SESSIONM_RPS="20")
    began = time.monotonic()
    ends_as(parts_of(app), send(app.test_client(), braze_campaign_id="c"), State.DELIVERED)
    assert time.monotonic() - began < 8


def test_customers_who_must_wait_do_not_hold_up_others(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    still = make_app()
    for name in ("unknown", "again"):
        for number in range(200):
            send(still.test_client(), user_id=f"u{number}", braze_campaign_id=name)
        if name == "unknown":
            for number in range(200):
                parts_of(still).store.postpone(f"user_id:u{number}", time.time() + 3600)
    app = make_app(deliver=True, BRIDGE_SESSIONM_RPS="10")
    began = time.monotonic()
    ends_as(parts_of(app), send(app.test_client(), braze_campaign_id="c"), State.DELIVERED)
    assert time.monotonic() - began < 8
    assert len(sandbox.sandbox.calls(method="POST", match="/tags$")) == 1


def test_rules_with_a_mistake_leave_the_old_ones_in_force_at_a_reload(
    make_service: MakeService, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[campaigns.c]\ntags = ["old"]\n')
    service = make_service()
    assert tags_of_a_webhook(service) == ["old"]
    assert service.process
    before = service.workers()
    rules.write_text("[bad\n")
    os.kill(service.process.pid, signal.SIGHUP)
    eventually(lambda: "not_reloaded" in service.log.read_text())
    eventually(lambda: not {*before} & {*service.workers()})
    eventually(lambda: tags_of_a_webhook(service) == ["old"])
    rules.write_text('[campaigns.c]\ntags = ["new"]\n')
    os.kill(service.process.pid, signal.SIGHUP)
    eventually(lambda: tags_of_a_webhook(service) == ["new"], 20)


def tags_of_a_webhook(service: Any) -> list[str]:
    try:
        answer = service.webhook(user_id=ALICE, braze_campaign_id="c")
    except requests.ConnectionError:
        return []
    found: list[str] = answer.json()["writes"][0]["tags"]
    return found


def test_a_port_that_is_taken_stops_the_start_with_one_line(make_service: MakeService) -> None:
    service = make_service()
    second = make_service("--bind", f"127.0.0.1:{service.port}", wait=False)
    assert second.process
    assert second.process.wait(20) == 1
    assert "--bind" in second.log.read_text().strip().splitlines()[-1]


def names(client: FlaskClient, **whose: str) -> set[str]:
    answer = client.get(
        "/connected-content/tags", query_string=whose, headers=bearer("content")
    ).get_json()
    assert answer["status"] == "ok", answer
    return set(answer["names"])


def test_answers_that_cross_do_not_bring_older_tags_back(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    """A write under one identifier is answered late; one under the other overtakes it."""
    app = make_app(deliver=True)
    client = app.test_client()
    client.get("/connected-content/customer?external_id=loyal-1001", headers=bearer("content"))
    sandbox.sandbox.set_faults({"hang_after": 1, "match": f"POST .*{ALICE}", "times": 1})
    slow = send(client, tags=["a"], ttl=600)
    eventually(lambda: "a" in sandbox.sandbox.tags(ALICE))
    fast = send(client, user_id="", external_id="loyal-1001", tags=["b"], ttl=600)
    for event in (fast, slow):
        ends_as(parts_of(app), event, State.DELIVERED)
    assert names(client, user_id=ALICE) >= {"a", "b"}
    assert names(client, external_id="loyal-1001") >= {"a", "b"}


def test_a_forgotten_customer_is_forgotten_and_still_known_under_both_identifiers(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    client = app.test_client()
    both = ({"user_id": ALICE}, {"external_id": "loyal-1001"})
    client.get("/connected-content/offers?external_id=loyal-1001", headers=bearer("content"))
    for whose in both:
        assert "vip" in names(client, **whose)
    sandbox.sandbox.put_customer(
        {"user_id": ALICE, "external_id": "loyal-1001", "tags": {"new": 1}}
    )
    client.delete(f"/api/cache?user_id={ALICE}", headers=ADMIN)
    for whose in both:
        assert names(client, **whose) == {"new"}
    ends_as(parts_of(app), send(client, tags=["later"], ttl=600), State.DELIVERED)
    for whose in both:
        assert names(client, **whose) == {"new", "later"}


@pytest.mark.parametrize("user", [None, {"id": " "}], ids=str)
def test_a_profile_without_an_id_is_a_failure_and_not_remembered(
    make_app: MakeApp, user: Any
) -> None:
    profile = {"status": "ok", "user": user}
    with scripted([profile, {"status": "ok", "user": {"id": ALICE}}]) as server:
        client = make_app(SESSIONM_CORE_URL=url_of(server)).test_client()
        path = "/connected-content/offers?external_id=loyal-1001"
        broken = client.get(path, headers=bearer("content")).get_json()
        assert broken["status"] == "unavailable"
        assert client.get(path, headers=bearer("content")).get_json()["count"] == 4


def test_tags_nested_beyond_reason_are_no_answer(make_app: MakeApp) -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    with scripted([{"status": "ok", "tags": {"n": deep}}]) as server:
        client = make_app(SESSIONM_CORE_URL=url_of(server)).test_client()
        for _ in range(2):
            answer = client.get(
                f"/connected-content/tags?user_id={ALICE}", headers=bearer("content")
            )
            assert (answer.status_code, answer.get_json()["status"]) == (200, "unavailable")


def test_a_blip_is_over_soon_after_it_is_over(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service()
    sandbox.sandbox.set_faults({"latency_ms": 200, "drop": "before", "times": 12})
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: service.lookup("tags", user_id=f"u{n}"), range(12)))
    # On a busy machine, the bridge stops asking before all twelve are used up.
    sandbox.sandbox.set_faults({})
    began = time.monotonic()
    eventually(lambda: service.lookup("tags", user_id=ALICE).json()["status"] == "ok")
    assert time.monotonic() - began < 4
