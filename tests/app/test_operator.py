"""What an operator orders: through the admin API, and through `bridge queue` and `bridge erase`."""

import csv
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.intake.payload import UNSENT
from bridge.outbox.model import State
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from tests.app.conftest import goes_round
from tests.commands import run_bridge
from tests.conftest import (
    ALICE,
    MakeApp,
    Provide,
    bearer,
    environment,
    eventually,
    rows,
    send,
    stored_state,
)

ADMIN = bearer("admin")


def listed(client: FlaskClient, **filters: Any) -> list[dict[str, Any]]:
    answer = client.get("/api/events", query_string=filters, headers=ADMIN)
    assert answer.status_code == 200, answer.get_json()
    found: list[dict[str, Any]] = answer.get_json()["events"]
    return found


def state_of(client: FlaskClient, event_id: str) -> str:
    """The state of an event; "" while the database of a busy machine is too slow."""
    answer = client.get(f"/api/events/{event_id}", headers=ADMIN)
    return "" if answer.status_code == 503 else str(answer.get_json()["event"]["state"])


def post(client: FlaskClient, path: str, **body: Any) -> TestResponse:
    return client.post(f"/api{path}", json=body, headers=ADMIN)


def make_dead(client: FlaskClient, sandbox: SandboxServer, **fields: Any) -> str:
    sandbox.sandbox.set_faults({"ok_error": True, "code": "validation", "match": "POST"})
    event = send(client, **fields)
    eventually(lambda: state_of(client, event) == "dead")
    sandbox.sandbox.set_faults({})
    return event


@pytest.mark.both_databases
def test_an_event_shows_its_whole_history(make_app: MakeApp, sandbox: SandboxServer) -> None:
    client = make_app(deliver=True).test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer")
    story = client.get(f"/api/events/{event}", headers=ADMIN).get_json()["event"]
    assert json.loads(story["body"])["braze_campaign_id"] == "summer"
    assert (story["campaign_id"], story["customer"]) == ("summer", {"user_id": ALICE})
    assert "VALIDATION" in story["reason"]
    [write] = story["writes"]
    assert write["tags"] == ["braze_campaign_summer"]
    [tried] = write["tries"]
    assert (tried["status"], tried["outcome"]) == (200, "refused")
    assert tried["milliseconds"] >= 0
    assert tried["at"].endswith("Z")


@pytest.mark.both_databases
def test_a_dead_event_is_replayed_and_delivered(make_app: MakeApp, sandbox: SandboxServer) -> None:
    client = make_app(deliver=True).test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer", dispatch_id="d1")
    again = client.post(
        "/webhooks/braze",
        json={"user_id": ALICE, "braze_campaign_id": "summer", "dispatch_id": "d1"},
        headers=bearer("webhook"),
    )
    assert again.get_json() == {"status": "duplicate", "id": event}
    assert post(client, f"/events/{event}/replay").get_json()["replayed"] == 1
    eventually(lambda: state_of(client, event) == "delivered")
    assert "braze_campaign_summer" in sandbox.sandbox.tags(ALICE)
    assert post(client, f"/events/{event}/replay").status_code == 409


@pytest.mark.both_databases
def test_events_are_replayed_by_filter_after_a_dry_run(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    dead = [make_dead(client, sandbox, braze_campaign_id="summer") for _ in range(3)]
    other = make_dead(client, sandbox, braze_campaign_id="winter")
    filters = {"state": "dead", "campaign": "summer"}
    dry = post(client, "/events/replay", dry_run=True, **filters).get_json()
    assert (dry["matched"], dry["replayed"]) == (3, 0)
    misplaced = client.post("/api/events/replay?dry_run=true", headers=ADMIN)
    assert (misplaced.status_code, "JSON body" in misplaced.get_data(as_text=True)) == (400, True)
    done = post(client, "/events/replay", **filters).get_json()
    assert (done["status"], done["matched"], done["replayed"]) == ("ok", 3, 3)
    for event in dead:
        eventually(lambda event=event: state_of(client, event) == "delivered")  # type: ignore[misc]
    assert state_of(client, other) == "dead"


@pytest.mark.both_databases
def test_a_rejected_event_is_taken_in_once_a_rule_is_mended(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[defaults]\nunknown = "reject"\n')
    strict = make_app(BRIDGE_RULES=str(rules)).test_client()
    refused = strict.post(
        "/webhooks/braze",
        json={"user_id": ALICE, "braze_campaign_id": "summer"},
        headers=bearer("webhook"),
    )
    assert refused.status_code == 422
    [event] = listed(strict, state="rejected")
    still = post(strict, "/events/replay", state="rejected").get_json()
    assert (still["matched"], still["replayed"]) == (1, 0)
    assert "summer" in still["refused"][0]

    rules.write_text('[campaigns.summer]\ntags = ["summer_promo"]\n')
    client = make_app(deliver=True, BRIDGE_RULES=str(rules)).test_client()
    assert post(client, f"/events/{event['id']}/replay").status_code == 200
    eventually(lambda: state_of(client, event["id"]) == "delivered")
    assert "summer_promo" in sandbox.sandbox.tags(ALICE)


@pytest.mark.both_databases
def test_what_was_accepted_meanwhile_is_not_replayed_and_says_why(
    make_app: MakeApp, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[defaults]\nunknown = "reject"\n')
    strict = make_app(BRIDGE_RULES=str(rules)).test_client()
    fields: dict[str, Any] = {"braze_campaign_id": "summer", "dispatch_id": "d1"}
    refuse(strict, user_id=ALICE, **fields)
    [event] = listed(strict, state="rejected")
    client = make_app().test_client()
    accepted = send(client, **fields)
    answer = post(client, f"/events/{event['id']}/replay")
    assert answer.status_code == 409
    assert f"accepted before as {accepted}" in answer.get_data(as_text=True)


def test_a_webhook_with_an_unreadable_wait_is_kept(client: FlaskClient) -> None:
    fields = {"user_id": ALICE, "braze_campaign_id": "summer"}
    answer = client.post("/webhooks/braze?wait=10s", json=fields, headers=bearer("webhook"))
    assert answer.status_code == 400
    [event] = listed(client, state="rejected")
    assert event["customer"] == {"user_id": ALICE}
    assert "wait must be a whole number" in event["reason"]
    assert post(client, f"/events/{event['id']}/replay").status_code == 200
    assert state_of(client, event["id"]) == "queued"


def refuse(client: FlaskClient, **fields: Any) -> str:
    """Send a webhook that must be refused; its event's id."""
    answer = client.post("/webhooks/braze", json=fields, headers=bearer("webhook"))
    assert answer.status_code == 422, answer.get_json()
    found: str = listed(client, state="rejected")[0]["id"]
    return found


@pytest.mark.both_databases
def test_a_refused_event_is_found_by_what_could_be_read_of_it(client: FlaskClient) -> None:
    placeholder = "{{${user_id}}}"
    first = refuse(client, user_id=ALICE, braze_campaign_id="summer", ttl="soon")
    second = refuse(client, user_id=placeholder, canvas_id="welcome", campaign_id="summer")
    third = refuse(
        client, user_id=placeholder, external_id="loyal-1", braze_campaign_id=placeholder
    )
    client.post("/webhooks/braze", data='{"user_id": "u1", ', headers=bearer("webhook"))

    def found(**filters: str) -> list[str]:
        return [event["id"] for event in listed(client, state="rejected", **filters)]

    assert found(campaign="summer") == [second, first]
    assert found(campaign="welcome") == [second]
    assert found(customer=ALICE) == [first]
    assert found(customer="loyal-1") == [third]
    # Even of JSON that is broken.
    assert len(found(customer="u1")) == 1
    # Nothing was accepted of any of them.
    parts = parts_of(client.application)
    counted = [(one.id, one.accepted, one.rejected) for one in parts.events.campaigns()]
    assert counted == [("summer", 0, 2), ("welcome", 0, 1)]
    for event in (first, second):
        assert client.delete(f"/api/events/{event}", headers=ADMIN).status_code == 200
    assert parts.events.campaigns() == []


@pytest.mark.both_databases
def test_refused_events_of_a_campaign_are_taken_in_from_the_shell(
    make_app: MakeApp, shell: "Shell", tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[defaults]\nunknown = "reject"\n')
    strict = make_app(BRIDGE_RULES=str(rules)).test_client()
    events = [refuse(strict, user_id=ALICE, braze_campaign_id="summer") for _ in range(2)]
    refuse(strict, user_id=ALICE, braze_campaign_id="winter")
    rules.write_text('[campaigns.summer]\ntags = ["summer_promo"]\n')
    answer = shell("queue", "replay", "--state", "rejected", "--campaign", "summer")
    assert answer == "2 of 2 events replayed.\n"
    assert {state_of(strict, event) for event in events} == {"queued"}
    winter, summer = parts_of(strict.application).events.campaigns()
    assert (summer.id, summer.accepted, summer.pending, summer.rejected) == ("summer", 2, 2, 0)
    assert (winter.id, winter.accepted, winter.rejected) == ("winter", 0, 1)


def test_a_refused_call_to_sessionms_own_path_is_read_again_as_such(
    make_app: MakeApp, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[campaigns.a]\ncounters = ["promo"]\n')
    strict = make_app(BRIDGE_RULES=str(rules)).test_client()
    # What such a call says beside its tags counts for nothing, now and later.
    body = {"user_id": ALICE, "braze_campaign_id": "summer", "tags": ["promo"], "ttl": 60}
    path = f"/priv/v1/apps/bridge/users/{ALICE}/tags"
    assert strict.post(path, json=body, headers=bearer("webhook")).status_code == 422
    [event] = listed(strict, state="rejected", customer=ALICE)
    assert event["campaign_id"] == ""
    rules.write_text("")
    client = make_app(BRIDGE_RULES=str(rules)).test_client()
    assert post(client, f"/events/{event['id']}/replay").status_code == 200
    story = client.get(f"/api/events/{event['id']}", headers=ADMIN).get_json()["event"]
    assert story["customer"] == {"user_id": ALICE}
    assert [write["tags"] for write in story["writes"]] == [["promo"]]


@pytest.mark.both_databases
def test_events_are_found_by_each_filter(client: FlaskClient) -> None:
    first = send(client, braze_campaign_id="summer")
    second = send(client, user_id="u2", braze_canvas_id="welcome")
    client.post("/webhooks/braze", data="{", headers=bearer("webhook"))
    ids = [event["id"] for event in listed(client)]
    assert ids[1:] == [second, first]
    assert [event["id"] for event in listed(client, customer="u2")] == [second]
    assert [event["id"] for event in listed(client, campaign="welcome")] == [second]
    assert len(listed(client, state="queued")) == 2
    assert len(listed(client, text="JSON", state="rejected")) == 1
    assert len(listed(client, since="1h")) == 3
    assert listed(client, since="2999-01-01T00:00:00Z") == []


@pytest.mark.both_databases
def test_a_list_is_read_page_by_page(client: FlaskClient) -> None:
    sent = [send(client, user_id=f"u{i}", braze_campaign_id="c") for i in range(5)]
    seen: list[str] = []
    page: dict[str, Any] = {"next": ""}
    for _ in range(3):
        query = {"limit": 2, **({"before": page["next"]} if page["next"] else {})}
        page = client.get("/api/events", query_string=query, headers=ADMIN).get_json()
        seen += [event["id"] for event in page["events"]]
    assert seen == sent[::-1]
    assert page["next"] == ""


@pytest.mark.parametrize(
    "query", [{"state": "lost"}, {"colour": "red"}, {"since": "yesterday"}, {"limit": "0"}]
)
def test_a_bad_filter_is_named(client: FlaskClient, query: dict[str, str]) -> None:
    answer = client.get("/api/events", query_string=query, headers=ADMIN)
    assert answer.status_code == 400
    assert next(iter(query)) in answer.get_json()["errors"]["message"]


@pytest.mark.both_databases
def test_a_discarded_event_is_not_delivered(make_app: MakeApp, sandbox: SandboxServer) -> None:
    app = make_app()
    client = app.test_client()
    event = send(client, braze_campaign_id="summer")
    other = send(client, user_id="b4e2d3c5-1c6f-4d70-9b82-a3c4d5e6f702", braze_campaign_id="c")
    assert client.delete(f"/api/events/{event}", headers=ADMIN).status_code == 200
    assert client.delete(f"/api/events/{event}", headers=ADMIN).status_code == 409
    assert client.delete("/api/events/none", headers=ADMIN).status_code == 404
    delivering = make_app(deliver=True).test_client()
    eventually(lambda: state_of(delivering, other) == "delivered")
    assert state_of(client, event) == "discarded"
    assert "braze_campaign_summer" not in sandbox.sandbox.tags(ALICE)


@pytest.mark.both_databases
def test_a_pause_by_hand_survives_a_restart(make_app: MakeApp, sandbox: SandboxServer) -> None:
    assert post(make_app().test_client(), "/delivery/pause").status_code == 200
    client = make_app(deliver=True).test_client()
    event = send(client, braze_campaign_id="summer")

    def delivery() -> str:
        health = client.get("/health", headers=ADMIN).get_json()
        state: str = health["checks"]["delivery"]["state"]
        return state

    eventually(lambda: delivery() == "paused")
    assert sandbox.sandbox.counts()["tags_write"] == 0
    assert post(client, "/delivery/resume").status_code == 200
    eventually(lambda: state_of(client, event) == "delivered")


@pytest.mark.both_databases
def test_once_a_pause_is_answered_no_write_goes_out(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True, BRIDGE_SESSIONM_RPS="20")
    client = app.test_client()
    for number in range(100):
        send(client, user_id=f"u{number}", braze_campaign_id="summer")
    sent = sandbox.sandbox.counts
    eventually(lambda: sent()["tags_write"] > 0)
    assert post(client, "/delivery/pause").get_json()["state"] == "paused"
    # Those under way end.
    eventually(lambda: all(call["status"] for call in sandbox.sandbox.calls(method="POST")))
    before = sent()["tags_write"]
    goes_round(parts_of(app))
    assert sent()["tags_write"] == before < 100


def test_forgetting_a_lookup_asks_sessionm_again(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    path = f"/connected-content/tags?user_id={ALICE}"
    client.get(path, headers=bearer("content"))
    assert client.delete(f"/api/cache?user_id={ALICE}", headers=ADMIN).status_code == 200
    client.get(path, headers=bearer("content"))
    assert sandbox.sandbox.counts()["tags_read"] == 2
    for wrong in ("", f"?user_id={ALICE}&foo=1"):
        assert client.delete(f"/api/cache{wrong}", headers=ADMIN).status_code == 400


class Shell:
    """`bridge …` on the store of this test."""

    def __init__(self, sandbox: SandboxServer, folder: Path, database: str, **more: str) -> None:
        self._environ = environment(sandbox.url, folder, BRIDGE_DATABASE_URL=database, **more)
        self._folder = folder

    def __call__(self, *arguments: str, status: int = 0, stderr: bool = False) -> str:
        """What it writes; on stderr where it fails, or if *stderr* is asked for."""
        ended = run_bridge(*arguments, env={"PATH": "", **self._environ}, cwd=self._folder)
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr if status or stderr else ended.stdout


@pytest.fixture
def shell(sandbox: SandboxServer, tmp_path: Path, database: str, provide: Provide) -> Shell:
    provide(database)
    return Shell(sandbox, tmp_path, database)


@pytest.mark.both_databases
def test_the_queue_is_put_in_order_from_the_shell(
    make_app: MakeApp, sandbox: SandboxServer, shell: Shell
) -> None:
    client = make_app(deliver=True).test_client()
    events = [make_dead(client, sandbox, braze_campaign_id="summer") for _ in range(2)]
    assert "Dead      2 events (2 writes)\n" in shell("queue", "status")
    assert events[0] in shell("queue", "list", "--state", "dead")
    assert json.loads(shell("queue", "show", events[0], "--json"))["state"] == "dead"
    assert shell("queue", "replay", "--campaign", "summer", "--dry-run").startswith("2 of 2 ")
    assert "filter" in shell("queue", "replay", status=2)
    assert "--dry-run" in shell("queue", "replay", events[0], "--dry-run", status=2)
    assert state_of(client, events[0]) == "dead"
    assert shell("queue", "replay", events[0]) == f"{events[0]} replayed.\n"
    eventually(lambda: state_of(client, events[0]) == "delivered")
    assert "no such event" in shell("queue", "replay", "nonsense", status=1)
    assert shell("queue", "discard", "--state", "dead") == "1 of 1 event discarded.\n"
    assert json.loads(shell("queue", "status", "--json"))["dead"] == 0


def test_a_list_from_the_shell_marks_test_sends_and_says_when_it_is_empty(
    client: FlaskClient, shell: Shell
) -> None:
    send(client, braze_campaign_id="summer", dispatch_id=UNSENT)
    send(client, braze_campaign_id="winter", dispatch_id="d1")
    _header, real, test = shell("queue", "list").splitlines()
    assert "  winter  " in real
    assert "  summer  " in test
    assert test.split()[-2:] == ["test", "send"]
    assert shell("queue", "list", "--state", "dead", stderr=True) == "No event matches.\n"
    assert shell("queue", "list", "--state", "dead", "--json") == "[]\n"


def test_the_shell_shows_since_when_a_write_waits(
    make_app: MakeApp, sandbox: SandboxServer, shell: Shell
) -> None:
    assert shell("queue", "status").splitlines() == [
        ANY,
        "Delivery  stopped",
        "Backlog   0 writes",
        "Dead      0 writes",
        "To Braze  stopped, 0 dead, 0 messages waiting",
        "",
        "Delivery has stopped: no process runs the delivery loop.",
        ANY,
        (
            "  -> Start `bridge serve` or `bridge deliver`; the log says why the last one ended. "
            "If a bridge still serves, webhooks are accepted and wait."
        ),
    ]
    client = make_app(deliver=True, BRIDGE_SESSIONM_RPS="1").test_client()
    event = send(client, user_id="not-there-yet", braze_campaign_id="summer")

    def tried() -> bool:
        story = client.get(f"/api/events/{event}", headers=ADMIN).get_json()["event"]
        return bool(story["writes"][0]["tries"])

    eventually(tried)
    _database, _delivery, backlog, oldest, *_rest = shell("queue", "status").splitlines()
    assert backlog == "Backlog   1 write, waiting for customers to be created"
    assert oldest.startswith("Oldest    20")
    asked = json.loads(shell("queue", "status", "--json"))
    assert (asked["waits_for_customers"], asked["oldest"][:2]) == (True, "20")
    delivery = client.get("/health", headers=ADMIN).get_json()["checks"]["delivery"]
    assert (delivery["waits_for_customers"], delivery["oldest_seconds"]) == (True, 0)
    sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
    send(client, braze_campaign_id="summer")
    both = r"^Backlog   2 writes, 1 of them waiting for customers to be created; the others: .*\n"
    assert re.search(both + "Oldest    20", shell("queue", "status"), re.MULTILINE)
    delivery = client.get("/health", headers=ADMIN).get_json()["checks"]["delivery"]
    assert (delivery["queued"], delivery["unknown_customer_writes"]) == (2, 1)
    # One write a second at most: the forecast is about one of them.
    assert max(delivery["done_in_seconds"], delivery["takes_seconds"]) == 1


def test_the_shell_says_what_to_do_next(
    make_app: MakeApp, sandbox: SandboxServer, shell: Shell
) -> None:
    client = make_app(deliver=True).test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer", campaign_name="Summer sale")
    answer = shell("queue", "status")
    assert "1 campaign (Summer sale)" in answer
    assert re.search(r"  dead  +SessionM  +Summer sale  ", shell("queue", "list"))
    assert "Campaign  summer  Summer sale\n" in shell("queue", "show", event)
    # Each line is a command that works as it stands.
    listed = re.search(r"^     bridge (queue list .*)$", answer, re.MULTILINE)
    replays = re.search(r"^     bridge (queue replay .* --dry-run)$", answer, re.MULTILINE)
    assert listed
    assert replays
    assert event in shell(*shlex.split(listed[1]))
    assert shell(*shlex.split(replays[1])) == "1 of 1 event would be replayed.\n"
    assert "without --dry-run" in shell(*shlex.split(replays[1]), stderr=True)
    assert f"bridge queue replay {event}" in shell("queue", "show", event, stderr=True)
    assert "bridge queue show ID" in shell("queue", "list", stderr=True)
    assert "replay --state discarded" in shell("queue", "discard", "--all", stderr=True)
    shell("queue", "replay", event)
    eventually(lambda: state_of(client, event) == "delivered")
    refused = shell("queue", "replay", event, status=1)
    assert "it is delivered, not dead, rejected or discarded" in refused


def test_the_shell_says_how_long_what_waits_has_waited(
    make_app: MakeApp, sandbox: SandboxServer, shell: Shell
) -> None:
    app = make_app(deliver=True)
    send(app.test_client(), user_id="not-there-yet", braze_campaign_id="summer")
    eventually(lambda: parts_of(app).store.backlog().waits_for_customers)
    assert "not counting" not in shell("queue", "status")
    sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
    send(app.test_client(), braze_campaign_id="summer")
    oldest = r"^Oldest .* ago, not counting writes that wait for .* created \(\d+ (s|ms|min)\)$"
    eventually(lambda: re.search(oldest, shell("queue", "status"), re.MULTILINE))
    eventually(lambda: health_of(app.test_client())["held_by"] == "down")
    shown = shell("queue", "status")
    held_up = r"Delivery  held up\nBacklog   2 writes.*; (the others: )?nothing goes out now; about"
    assert re.search(held_up, shown)
    cause = r"^  since 20.* for .*; 2 writes, 2 customers, 1 campaign \(summer\)\n  -> Ask SessionM"
    assert re.search(cause, shown, re.MULTILINE)
    found = json.loads(shell("queue", "status", "--json"))
    assert (found["held_by"], found["incidents"][0]["customers"]) == ("down", 2)
    [row] = csv.DictReader(io.StringIO(shell("queue", "status", "--csv")))
    assert (row["incidents"], row["to_braze_queued"]) == ("sessionm_down", "0")
    [row] = csv.DictReader(io.StringIO(shell("queue", "status", "--past", "--csv")))
    assert (row["code"], row["until"], row["customers"]) == ("sessionm_down", "", "2")
    assert shell("queue", "status", "--exit-code", status=1) == "bridge: the status is degraded\n"
    assert "Why queued events wait: Delivery is held up" in shell("queue", "list", stderr=True)


def health_of(client: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/health", headers=ADMIN).get_json()["checks"]["delivery"]
    return found


def test_the_shell_offers_no_replay_of_what_braze_may_have_sent_before_a_look_there(
    make_app: MakeApp, sandbox: SandboxServer, shell: Shell
) -> None:
    client = make_app(deliver=True).test_client()
    sandbox.sandbox.set_faults({"drop": "after", "match": "trigger/send"})
    message = {"braze_campaign_id": "award", "user_id": ALICE, "user_offer_id": "1"}
    answer = client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))
    event = answer.get_json()["id"]
    eventually(lambda: state_of(client, event) == "dead")
    body = shell("queue", "status")
    assert "-> Look in Braze first" in body
    assert "queue replay" not in body
    listed = re.search(r"^     bridge (queue list .* --text .*)$", body, re.MULTILINE)
    assert listed
    assert event in shell(*shlex.split(listed[1]))
    assert "--text 'or a device on the way" in body
    assert "-> Look in Braze first" in shell("queue", "show", event, stderr=True)
    sandbox.sandbox.set_faults({})
    assert "Left out: 1 event" in shell("queue", "replay", "--all", stderr=True)
    asked = client.post("/events/replay-all", data={"state": "dead"}, headers=ADMIN)
    assert "1 of them Braze may have sent already" in asked.text
    assert state_of(client, event) == "dead"
    assert shell("queue", "replay", "--all", "--uncertain") == "1 of 1 event replayed.\n"
    eventually(lambda: state_of(client, event) == "delivered")


def test_delivery_is_paused_and_resumed_from_the_shell(make_app: MakeApp, shell: Shell) -> None:
    client = make_app(deliver=True).test_client()
    shell("queue", "pause")
    assert json.loads(shell("queue", "status", "--json"))["paused_by_hand"] is True
    assert "Delivery is paused by hand (command line).\n  since " in shell("queue", "status")
    event = send(client, braze_campaign_id="summer")
    shell("queue", "resume")
    eventually(lambda: state_of(client, event) == "delivered")
    shown = eventually(lambda: text if "No incident" in (text := shell("queue", "status")) else "")
    assert "paused by hand" not in shown
    over = (
        r"^Over: 20.* to 20.*, for .* m?s.*\n  at its worst: Delivery is paused by hand \(command"
    )
    assert re.search(over, shell("queue", "status", "--past"), re.MULTILINE)


@pytest.mark.both_databases
def test_an_erased_customer_is_nowhere_in_the_database(
    make_app: MakeApp, shell: Shell, database: str
) -> None:
    app = make_app(deliver=True)
    client = app.test_client()
    event = send(client, braze_campaign_id="summer")
    eventually(lambda: stored_state(parts_of(app).store, event) is State.DELIVERED)
    client.post("/webhooks/braze", json={"user_id": ALICE}, headers=bearer("webhook"))
    for path in (f"customer?user_id={ALICE}", "offers?external_id=loyal-1001"):
        client.get(f"/connected-content/{path}", headers=bearer("content"))
    assert mentions(database, ALICE)
    assert "2 events" in shell("erase", "--user-id", ALICE)
    assert mentions(database, ALICE) == []


def mentions(database: str, word: str) -> list[str]:
    """The tables in which *word* stands."""
    tables = "SELECT name FROM sqlite_master WHERE type='table'"
    databases = [database, f"{database}.cache"]
    if database.startswith("postgresql:"):
        tables = "SELECT relname FROM pg_stat_user_tables"
        databases = [database]
    return [
        table
        for one in databases
        for (table,) in rows(one, tables)
        if any(holds(value, word) for row in rows(one, f"SELECT * FROM {table}") for value in row)  # noqa: S608
    ]


def holds(value: object, word: str) -> bool:
    return word.encode() in (value if isinstance(value, bytes) else str(value).encode())
