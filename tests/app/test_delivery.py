"""The delivery loop with a real store, against the sandbox over HTTP."""

import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from bridge import clock
from bridge.customer import Customer
from bridge.outbox.model import State
from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.app.conftest import goes_round
from tests.conftest import ALICE, LetPass, MakeApp, bearer, eventually, send, stored_state


class Bridge:
    """A bridge within this process that delivers."""

    def __init__(self, make_app: MakeApp, **more: str) -> None:
        app = make_app(deliver=True, **more)
        self.parts: Parts = parts_of(app)
        self.client: FlaskClient = app.test_client()

    def send(self, **fields: Any) -> str:
        return send(self.client, **fields)

    def has_tried(self, event_id: str) -> bool:
        """Whether the outcome of a first try is stored."""
        story = self.parts.events.details(event_id)
        return bool(story and story["writes"][0]["tries"])

    def ends_as(self, event_id: str, state: State, seconds: float = 10.0) -> bool:
        return bool(eventually(lambda: stored_state(self.parts.store, event_id) is state, seconds))

    def tags(self) -> dict[str, Any]:
        answer = self.client.get(
            f"/connected-content/tags?user_id={ALICE}", headers=bearer("content")
        )
        found: dict[str, Any] = answer.get_json()
        return found

    def delivery_health(self) -> dict[str, Any]:
        answer = self.client.get("/health", headers=bearer("admin")).get_json()
        found: dict[str, Any] = answer["checks"]["delivery"]
        return found


def writes(sandbox: SandboxServer) -> list[dict[str, Any]]:
    """The bodies of the tag writes that SessionM was sent, in order."""
    return [call["body"] for call in sandbox.sandbox.calls(method="POST", match="/tags$")]


@pytest.mark.both_databases
def test_a_campaign_becomes_an_expiring_tag(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    event = bridge.send(braze_campaign_id="summer")
    assert bridge.ends_as(event, State.DELIVERED)
    assert writes(sandbox) == [{"tags": ["braze_campaign_summer"], "ttl": 2592000}]
    assert sandbox.sandbox.tags(ALICE)["braze_campaign_summer"] == 0


@pytest.mark.both_databases
def test_a_lookup_shows_a_write_as_pending_and_then_as_a_tag(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
    assert "braze_campaign_summer" not in bridge.tags()["names"]
    event = bridge.send(braze_campaign_id="summer")
    waiting = bridge.tags()
    assert waiting["pending"] == ["braze_campaign_summer"]
    assert "braze_campaign_summer" in waiting["expires"]
    sandbox.sandbox.set_faults({})
    assert bridge.ends_as(event, State.DELIVERED)
    delivered = bridge.tags()
    assert "braze_campaign_summer" in delivered["names"]
    assert delivered["braze"]["campaigns"] == ["summer"]
    assert delivered["pending"] == []
    assert (
        delivered["expires"]["braze_campaign_summer"] == waiting["expires"]["braze_campaign_summer"]
    )


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "retry_after": 1},
        {"drop": "before"},
        {"garbage": "json"},
        {"ok_error": True, "code": "internal_server_error"},
    ],
    ids=str,
)
def test_a_passing_fault_is_tried_again(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "times": 2, "match": "POST"})
    bridge = Bridge(make_app)
    event = bridge.send(braze_campaign_id="summer")
    assert bridge.ends_as(event, State.DELIVERED)
    assert len(writes(sandbox)) == 3


def test_no_write_dies_of_a_limit_that_names_no_time(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 429, "match": "POST"})
    bridge = Bridge(make_app, BRIDGE_MAX_ATTEMPTS="2")
    for number in range(10):
        sandbox.sandbox.put_customer({"user_id": f"u{number}"})
    events = [bridge.send(user_id=f"u{number}", braze_campaign_id="c") for number in range(10)]
    # The first calls, and then one at a time.
    eventually(lambda: bridge.delivery_health()["held_by"] == "limit")
    first = len(writes(sandbox))
    eventually(lambda: len(writes(sandbox)) == first + 2)
    assert bridge.delivery_health()["dead"] == 0
    sandbox.sandbox.set_faults({})
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED, 20)


@pytest.mark.both_databases
def test_after_the_last_try_a_write_is_dead(make_app: MakeApp, sandbox: SandboxServer) -> None:
    sandbox.sandbox.set_faults({"status": 500})
    bridge = Bridge(make_app, BRIDGE_MAX_ATTEMPTS="3")
    assert bridge.ends_as(bridge.send(braze_campaign_id="summer"), State.DEAD)
    assert len(writes(sandbox)) == 3


def test_an_unknown_customer_is_tried_again_later(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    event = bridge.send(user_id="late", braze_campaign_id="summer")
    eventually(lambda: writes(sandbox))
    sandbox.sandbox.put_customer({"user_id": "late"})
    eventually(lambda: stored_state(bridge.parts.store, event) is State.DELIVERED, 15)
    first, second = sandbox.sandbox.calls(method="POST")
    assert second["at"] - first["at"] > 2


@pytest.mark.both_databases
def test_what_waits_behind_a_write_of_an_unknown_customer_is_not_late(make_app: MakeApp) -> None:
    bridge = Bridge(make_app)

    def waiting() -> tuple[int, int]:
        health = bridge.delivery_health()
        return health["unknown_customer_writes"], health["oldest_seconds"]

    bridge.send(user_id="nobody", tags=["one"], ttl=600)
    eventually(lambda: waiting() == (1, 0))
    # A counter is no part of the other call.
    bridge.send(user_id="nobody", tags=["two"])
    eventually(lambda: waiting() == (2, 0))


def test_refused_credentials_pause_delivery_and_kill_nothing(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 401, "code": "invalid_api_key"})
    bridge = Bridge(make_app)
    events = [bridge.send(user_id=f"u{i}", braze_campaign_id="summer") for i in range(30)]
    eventually(lambda: bridge.delivery_health()["state"] == "paused")
    goes_round(bridge.parts)
    tried = len(writes(sandbox))
    # What was under way when the first refusal came, and probes since then.
    assert tried <= 16 + 2
    for i in range(30):
        sandbox.sandbox.put_customer({"user_id": f"u{i}"})
    sandbox.sandbox.set_faults({})
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    assert bridge.delivery_health()["dead"] == 0


@pytest.mark.both_databases
def test_a_customers_writes_arrive_in_order_and_together(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503, "times": 1})
    bridge = Bridge(make_app)
    events = [bridge.send(braze_campaign_id=f"c{i}") for i in range(20)]
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    sent = [tag for body in writes(sandbox) for tag in body["tags"]]
    assert list(dict.fromkeys(sent)) == [f"braze_campaign_c{i}" for i in range(20)]
    assert len(writes(sandbox)) < 20


@pytest.mark.both_databases
def test_counters_count_every_event_once(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    events = [bridge.send(tags=["visits"], dispatch_id=f"d{i}") for i in range(5)]
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    assert sandbox.sandbox.tags(ALICE)["visits"] == 5


@pytest.mark.both_databases
def test_counters_whose_answers_were_lost_are_read_back_and_counted_once(
    make_app: MakeApp, sandbox: SandboxServer, let_pass: LetPass
) -> None:
    """At once, since each waits until SessionM can have finished; "shared" is counted by others."""
    drops = {"lost": "before", "counted": "after", "shared": "after"}
    faults = []
    for name, drop in drops.items():
        sandbox.sandbox.put_customer({"user_id": name})
        faults.append({"drop": drop, "times": 1, "match": f"POST .*/{name}/tags"})
    sandbox.sandbox.set_faults({"faults": faults})
    bridge, other = Bridge(make_app), make_app().test_client()

    def found_by(client: FlaskClient, name: str) -> dict[str, Any]:
        path = f"/connected-content/tags?user_id={name}"
        found: dict[str, Any] = client.get(path, headers=bearer("content")).get_json()
        return found

    for name in drops:
        assert "visits" not in found_by(bridge.client, name)["tags"]
    events = {
        name: bridge.send(user_id=name, tags=["visits"], dispatch_id=f"d-{name}") for name in drops
    }
    eventually(lambda: "visits" in sandbox.sandbox.tags("shared"))
    # Another program counts meanwhile: whose count it is cannot be known.
    bridge.parts.sessionm.write_tags(Customer("user_id", "shared"), ["visits"], None, 5)
    eventually(lambda: all(map(bridge.has_tried, events.values())))
    let_pass(PROCESSING_TIME + COUNT_DELAY)
    for name, event in events.items():
        assert bridge.ends_as(event, State.DELIVERED, 25)
        count = 2 if name == "shared" else 1
        assert sandbox.sandbox.tags(name)["visits"] == count
        # Lookups are outdated in every process.
        for client in (bridge.client, other):
            found = found_by(client, name)
            assert (found["tags"]["visits"], found["pending"]) == (count, []), name
        story = bridge.parts.events.details(event)
        assert story
        assert story["writes"][0]["uncertain"] is (name == "shared")


@pytest.mark.both_databases
def test_a_write_whose_ttl_ran_out_is_not_sent(make_app: MakeApp, sandbox: SandboxServer) -> None:
    sandbox.stop()
    bridge = Bridge(make_app)
    event = bridge.send(tags=["flash"], ttl=1)
    # After its end, and after a call that a busy machine began before it.
    ended = time.time() + 3
    eventually(lambda: time.time() > ended)
    sandbox.start()
    assert bridge.ends_as(event, State.EXPIRED)
    assert "flash" not in sandbox.sandbox.tags(ALICE)


def test_the_rate_limit_holds(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app, BRIDGE_SESSIONM_RPS="10")
    for i in range(15):
        sandbox.sandbox.put_customer({"user_id": f"u{i}"})
    events = [bridge.send(user_id=f"u{i}", braze_campaign_id="summer") for i in range(15)]
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    at = [call["at"] for call in sandbox.sandbox.calls(method="POST", match="/tags$")]
    in_one_second = [sum(1 for other in at if start <= other < start + 1) for start in at]
    assert max(in_one_second) <= 11


def test_prefer_wait_answers_when_sessionm_has_it(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    answer = bridge.client.post(
        "/webhooks/braze",
        json={"user_id": ALICE, "braze_campaign_id": "summer"},
        headers={**bearer("webhook"), "Prefer": "wait=10"},
    )
    assert answer.status_code == 200
    body = answer.get_json()
    assert body["status"] == "delivered"
    assert "braze_campaign_summer" in body["tags"]
    sandbox.sandbox.set_faults({"status": 500})
    late = bridge.client.post(
        "/webhooks/braze?wait=1",
        json={"user_id": ALICE, "braze_campaign_id": "winter"},
        headers=bearer("webhook"),
    )
    assert (late.status_code, late.get_json()["status"]) == (202, "accepted")


@pytest.mark.both_databases
def test_a_customer_with_very_many_waiting_writes_holds_up_nobody(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.put_customer({"user_id": "busy"})
    still = make_app().test_client()
    for number in range(600):
        body = {"user_id": "busy", "braze_campaign_id": f"c{number}"}
        assert (
            still.post("/webhooks/braze", json=body, headers=bearer("webhook")).status_code == 202
        )
    bridge = Bridge(make_app)
    event = bridge.send(braze_campaign_id="summer")
    assert bridge.ends_as(event, State.DELIVERED)
    eventually(lambda: len(sandbox.sandbox.tags("busy")) == 600, 20)


@pytest.mark.both_databases
def test_the_queue_of_a_customer_is_read_whole_unless_it_fills_a_query(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    for user in ("u1", "u2"):
        for number in range(3):
            send(app.test_client(), user_id=user, braze_campaign_id=f"c{number}")

    def read(most: int, *busy: str) -> dict[str, int]:
        monkeypatch.setattr("bridge.outbox.store.MOST_PER_QUERY", most)
        found = parts_of(app).store.due_queues(clock.now(), 10, busy)
        return {customer: len(queue) for customer, queue in found.items()}

    assert read(6 + 1) == {"user_id:u1": 3, "user_id:u2": 3}
    assert read(5) == {"user_id:u1": 3}
    assert read(5, "user_id:u1") == {"user_id:u2": 3}
    assert read(2) == {"user_id:u1": 2}
