"""From a message of SessionM's to Braze: real HTTP, a real store, the sandbox as both."""

import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.customer import Customer
from bridge.outbox.model import State
from bridge.outbox.schema import events
from bridge.outbox.search import NOBODY, Filter
from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeApp, bearer, eventually, stored_state

CAMPAIGN = "0d2f6f5e-0000-4000-8000-000000000001"
CANVAS = "0d2f6f5e-0000-4000-8000-000000000002"


class Bridge:
    """A bridge within this process that delivers in both directions."""

    def __init__(self, make_app: MakeApp, *, deliver: bool = True, **more: str) -> None:
        app = make_app(deliver=deliver, **more)
        self.parts: Parts = parts_of(app)
        self.client: FlaskClient = app.test_client()

    def post(self, fields: Mapping[str, Any], path: str = "", **more: Any) -> TestResponse:
        path = path or "/webhooks/sessionm/message"
        headers = {**bearer("trigger"), **more.pop("headers", {})}
        return self.client.post(path, json=dict(fields), headers=headers, **more)

    def send(self, **fields: Any) -> str:
        """Send a message for ALICE that must be accepted; its event's id."""
        answer = self.post({"braze_campaign_id": CAMPAIGN, "user_id": ALICE, **fields})
        assert answer.status_code == 202, answer.get_json()
        found: str = answer.get_json()["id"]
        return found

    def ends_as(self, event_id: str, state: State, seconds: float = 20.0) -> bool:
        return bool(eventually(lambda: stored_state(self.parts.store, event_id) is state, seconds))

    def story(self, event_id: str) -> dict[str, Any]:
        path = f"/api/events/{event_id}"
        answer = self.client.get(path, headers=bearer("admin")).get_json()
        found: dict[str, Any] = answer["event"]
        return found

    def check(self, name: str) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer = self.client.get("/health", headers=bearer("admin")).get_json()
            found: dict[str, Any] = answer["checks"].get(name, {})
            return found

        # It is missing while the store gives no answer in time.
        return eventually(ask)


def triggers(sandbox: SandboxServer) -> list[dict[str, Any]]:
    """The calls that Braze got, in order."""
    return sandbox.sandbox.calls(method="POST", match="/trigger/send$")


def sent(sandbox: SandboxServer) -> list[dict[str, Any]]:
    """The messages that Braze sent."""
    return sandbox.sandbox.braze.sent()


def test_a_message_reaches_braze_with_its_properties(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    answer = bridge.post(
        {"braze_campaign_id": CAMPAIGN, "user_id": ALICE, "title": "10 % off", "user_offer_id": "o"}
    )
    assert answer.status_code == 202
    body = answer.get_json()
    assert body["sends"] == [{"campaign_id": CAMPAIGN}]
    assert body["warnings"] == []
    assert bridge.ends_as(body["id"], State.DELIVERED)
    [message] = sent(sandbox)
    assert message["id"] == CAMPAIGN
    assert message["recipient"] == {
        "external_user_id": ALICE,
        "trigger_properties": {
            "title": "10 % off",
            "user_offer_id": "o",
            "bridge_event": body["id"],
        },
        "send_to_existing_only": True,
    }
    story = bridge.story(body["id"])
    assert story["direction"] == "to_braze"
    assert story["writes"][0]["dispatch_id"] == message["dispatch_id"]


def test_a_campaign_and_a_canvas_are_sent_in_their_order(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app, BRAZE_CANVAS_PROPERTIES="canvas_entry_properties")
    event = bridge.send(braze_canvas_id=CANVAS, n=1)
    assert bridge.ends_as(event, State.DELIVERED)
    assert [(one["kind"], one["id"]) for one in sent(sandbox)] == [
        ("campaign", CAMPAIGN),
        ("canvas", CANVAS),
    ]
    assert sent(sandbox)[1]["recipient"]["canvas_entry_properties"]["n"] == 1


def test_a_sender_may_wait_for_braze(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    answer = bridge.post(
        {"braze_campaign_id": CAMPAIGN, "user_id": ALICE}, query_string={"wait": "20"}
    )
    assert answer.status_code == 200
    dispatched = answer.get_json()["dispatch_ids"]
    assert dispatched == [sent(sandbox)[0]["dispatch_id"]]


@pytest.mark.both_databases
def test_brazes_own_paths_work_with_host_and_key_changed(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    recipients = [{"external_user_id": f"u{n}", "trigger_properties": {"n": n}} for n in range(50)]
    answer = bridge.post(
        {"campaign_id": CAMPAIGN, "recipients": recipients}, "/campaigns/trigger/send"
    )
    assert answer.status_code == 201
    assert answer.get_json()["message"] == "success"
    assert bridge.ends_as(answer.get_json()["dispatch_id"], State.DELIVERED)
    assert len(triggers(sandbox)) == 1
    assert {one["recipient"]["external_user_id"] for one in sent(sandbox)} == {
        f"u{n}" for n in range(50)
    }
    again = bridge.post(
        {"campaign_id": CAMPAIGN, "recipients": recipients}, "/campaigns/trigger/send"
    )
    assert (again.status_code, again.get_json()) == (201, answer.get_json())


def test_without_settings_the_paths_answer_404_and_say_so(make_app: MakeApp) -> None:
    bridge = Bridge(make_app, deliver=False, BRAZE_REST_URL="", BRAZE_REST_KEY="")
    for path in ("/webhooks/sessionm/message", "/campaigns/trigger/send", "/canvas/trigger/send"):
        answer = bridge.post({}, path)
        assert answer.status_code == 404
        assert "BRAZE_REST_URL" in answer.get_json()["errors"]["message"]
    without_keys = make_app(BRIDGE_TRIGGER_KEYS="").test_client()
    answer = without_keys.post("/webhooks/sessionm/message", json={})
    assert answer.status_code == 404
    assert "BRIDGE_TRIGGER_KEYS" in answer.get_json()["errors"]["message"]


@pytest.mark.both_databases
def test_a_refused_message_is_kept_with_its_reason(make_app: MakeApp) -> None:
    bridge = Bridge(make_app, deliver=False)
    answer = bridge.post({"braze_campaign_id": CAMPAIGN, "user_id": ALICE, "title": "{{offer}}"})
    assert answer.status_code == 422
    assert "title" in answer.get_json()["errors"]["message"]
    path = "/api/events?state=rejected&direction=to_braze"
    [kept] = bridge.client.get(path, headers=bearer("admin")).get_json()["events"]
    assert "title" in kept["reason"]
    assert kept["campaign_id"] == CAMPAIGN
    other = "/api/events?direction=to_sessionm"
    assert bridge.client.get(other, headers=bearer("admin")).get_json()["events"] == []


@pytest.mark.both_databases
def test_the_same_message_is_sent_once(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    fields = {"braze_campaign_id": CAMPAIGN, "user_id": ALICE}
    first = bridge.post({**fields, "event_id": "e1"}).get_json()
    again = bridge.post({**fields, "event_id": "e1", "more": 1})
    assert (again.status_code, again.get_json()["status"]) == (200, "duplicate")
    assert again.get_json()["id"] == first["id"]
    plain = bridge.post({**fields, "n": 1}).get_json()
    assert "dedupe_id" in plain["warnings"][0]
    repeated = bridge.post({**fields, "n": 1}).get_json()
    assert (repeated["status"], repeated["id"]) == ("duplicate", plain["id"])
    assert bridge.ends_as(first["id"], State.DELIVERED)
    assert bridge.ends_as(plain["id"], State.DELIVERED)
    assert len(sent(sandbox)) == 2


@pytest.mark.both_databases
def test_waiting_messages_go_fifty_to_a_call(make_app: MakeApp, sandbox: SandboxServer) -> None:
    quiet = Bridge(make_app, deliver=False)
    for number in range(200):
        quiet.send(user_id=f"u{number}", user_offer_id=f"o{number}")
    bridge = Bridge(make_app)
    eventually(lambda: len(sent(sandbox)) == 200)
    assert len(triggers(sandbox)) <= 24
    assert {one["recipient"]["external_user_id"] for one in sent(sandbox)} == {
        f"u{number}" for number in range(200)
    }
    eventually(lambda: bridge.parts.messages.backlog().queued == 0)


@pytest.mark.both_databases
def test_one_customers_messages_keep_their_order_in_calls_of_their_own(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    quiet = Bridge(make_app, deliver=False)
    for number in range(5):
        quiet.send(number=number)
    Bridge(make_app)
    eventually(lambda: len(sent(sandbox)) == 5)
    assert len(triggers(sandbox)) == 5
    numbers = [one["recipient"]["trigger_properties"]["number"] for one in sent(sandbox)]
    assert numbers == [0, 1, 2, 3, 4]


def test_one_bad_recipient_does_not_end_the_others(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.braze.replace({"refused": ["u7"]})
    quiet = Bridge(make_app, deliver=False)
    events = [quiet.send(user_id=f"u{n}", user_offer_id=f"o{n}") for n in range(50)]
    bridge = Bridge(make_app)
    assert bridge.ends_as(events[7], State.DEAD)
    assert "u7" in bridge.story(events[7])["reason"]
    eventually(lambda: len(sent(sandbox)) == 49)
    for n, event in enumerate(events):
        assert n == 7 or bridge.ends_as(event, State.DELIVERED)
    assert len(triggers(sandbox)) <= 14


def test_braze_renders_with_what_sessionm_has_just_changed(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    seen: list[list[str]] = []

    def titles() -> list[str]:
        path = f"/connected-content/offers?user_id={ALICE}"
        found = bridge.client.get(path, headers=bearer("content")).get_json()
        return [offer["title"] for offer in found["offers"]]

    # As Braze does: it looks the customer up while it is being called.
    sandbox.sandbox.braze.on_message = lambda _message: seen.append(titles())
    assert "A new one" not in titles()
    sandbox.sandbox.put_customer({"user_id": ALICE, "offers": [{"title": "A new one"}]})
    assert "A new one" not in titles()
    assert bridge.ends_as(bridge.send(title="A new one"), State.DELIVERED)
    assert seen == [["A new one"]]


@pytest.mark.both_databases
def test_sessionm_may_say_that_a_customer_changed(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app, deliver=False)
    other = Bridge(make_app, deliver=False)

    def points(of: Bridge) -> int:
        path = f"/connected-content/offers?user_id={ALICE}"
        found = of.client.get(path, headers=bearer("content")).get_json()
        return int(found["available_points"])

    before = points(bridge), points(other)
    sandbox.sandbox.put_customer({"user_id": ALICE, "available_points": 77})
    assert (points(bridge), points(other)) == before
    answer = bridge.post({"user_id": ALICE, "what": "offers"}, "/webhooks/sessionm/changed")
    assert answer.get_json() == {"status": "ok"}
    eventually(lambda: (points(bridge), points(other)) == (77, 77), 5)
    unknown: tuple[object, ...] = ("points", [["offers"]], [{}], 5)
    for what in unknown:
        refused = bridge.post({"user_id": ALICE, "what": what}, "/webhooks/sessionm/changed")
        assert refused.status_code == 422


@pytest.mark.parametrize(
    "fault",
    [{"status": 502}, {"status": 429}],
    ids=str,
)
def test_a_passing_fault_of_brazes_is_tried_again(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "times": 2, "where": "braze"})
    bridge = Bridge(make_app)
    assert bridge.ends_as(bridge.send(), State.DELIVERED)
    assert (len(triggers(sandbox)), len(sent(sandbox))) == (3, 1)


@pytest.mark.parametrize("fault", [{"retry_after": 60}, {}], ids=["Retry-After", "no reset"])
def test_a_429_that_names_no_reset_holds_up_all_messages(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "status": 429, "where": "braze"})
    bridge = Bridge(make_app)

    def is_held() -> bool:
        return bool(bridge.check("delivery_to_braze")["held_by"] == "limit")

    # One first: calls that are under way at the first 429 do not wait.
    bridge.send(user_id="first", braze_campaign_id="campaign")
    eventually(is_held)
    for number in range(29):
        bridge.send(user_id=f"u{number}", braze_campaign_id=f"campaign-{number}")
    eventually(is_held)
    assert bridge.check("delivery_to_braze")["done_in_seconds"] == -1
    if fault:
        assert len(triggers(sandbox)) == 1
        return
    eventually(lambda: len(triggers(sandbox)) > 2, 20)
    # Each wait is twice as long as the one before.
    called = [call["at"] for call in triggers(sandbox)]
    for number, (one, another) in enumerate(pairwise(called)):
        assert another - one >= 2**number


@pytest.mark.parametrize(
    "fault",
    [{"status": 504}, {"drop": "after"}, {"huge": 2_000_000}],
    ids=str,
)
@pytest.mark.both_databases
def test_an_unknown_outcome_is_dropped_flagged_and_can_be_replayed(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "times": 1, "where": "braze"})
    bridge = Bridge(make_app)
    event = bridge.send()
    assert bridge.ends_as(event, State.DEAD)
    assert bridge.story(event)["writes"][0]["uncertain"]
    assert len(triggers(sandbox)) == 1
    answer = bridge.client.post(f"/api/events/{event}/replay", headers=bearer("admin"))
    assert answer.get_json()["replayed"] == 1
    assert bridge.ends_as(event, State.DELIVERED)


def test_an_unknown_outcome_is_sent_again_where_that_is_set(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"drop": "after", "times": 1, "where": "braze"})
    bridge = Bridge(make_app, BRAZE_ON_UNKNOWN="resend")
    assert bridge.ends_as(bridge.send(), State.DELIVERED)
    assert len(sent(sandbox)) == 2


def test_a_refused_key_pauses_this_direction_alone(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 401, "where": "braze"})
    bridge = Bridge(make_app)
    event = bridge.send()
    eventually(lambda: bridge.check("delivery_to_braze")["state"] == "paused")
    assert "BRAZE_REST_KEY" in bridge.check("delivery_to_braze")["reason"]
    eventually(lambda: bridge.check("delivery")["state"] == "running")
    tagged = bridge.client.post(
        "/webhooks/braze",
        json={"user_id": ALICE, "braze_campaign_id": "summer"},
        headers=bearer("webhook"),
    ).get_json()["id"]
    assert bridge.ends_as(tagged, State.DELIVERED)
    assert stored_state(bridge.parts.store, event) is State.QUEUED
    sandbox.sandbox.set_faults({})
    assert bridge.ends_as(event, State.DELIVERED)


def test_sessionm_being_away_does_not_hold_up_messages(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    faults = [{"status": 503, "where": "core"}, {"status": 503, "where": "connect"}]
    sandbox.sandbox.set_faults({"faults": faults})
    bridge = Bridge(make_app)
    assert bridge.ends_as(bridge.send(), State.DELIVERED)


def test_no_call_is_made_while_the_hourly_limit_is_used_up(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app, BRAZE_RPS="1000")
    began = time.time()
    sandbox.sandbox.braze.replace({"limit": 3, "reset_in": 4})
    events = [bridge.send(user_id=f"u{n}", braze_campaign_id=f"c{n}") for n in range(6)]
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    calls = triggers(sandbox)
    assert [call["status"] for call in calls] == [201] * 6
    assert sum(call["at"] < began + 3.9 for call in calls) <= 3
    assert bridge.check("braze")["limit"] == 3


def test_try_now_makes_one_call_while_the_hourly_limit_is_used_up(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    sandbox.sandbox.braze.replace({"limit": 1, "reset_in": 1000})
    events = [bridge.send(user_id=f"u{n}", braze_campaign_id=f"c{n}") for n in range(3)]

    def waits() -> bool:
        delivery = bridge.check("delivery_to_braze")
        return (delivery["held_by"], delivery["done_in_seconds"]) == ("limit", -1)

    def try_now() -> None:
        bridge.client.post("/api/delivery/resume", headers=bearer("admin"))

    eventually(waits)
    try_now()
    eventually(lambda: len(triggers(sandbox)) == 2)
    eventually(waits)
    assert [call["status"] for call in triggers(sandbox)] == [201, 429]
    # Braze has raised the limit.
    sandbox.sandbox.braze.replace({})
    try_now()
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)


def test_what_braze_warns_of_stands_at_the_recipients_event(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.braze.replace({"warned": ["u1"]})
    quiet = Bridge(make_app, deliver=False)
    events = [quiet.send(user_id=f"u{n}", user_offer_id=f"o{n}") for n in range(3)]
    bridge = Bridge(make_app)
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    assert ["not known" in bridge.story(event)["reason"] for event in events] == [
        False,
        True,
        False,
    ]


@pytest.mark.both_databases
def test_an_old_message_is_not_sent_any_more(make_app: MakeApp, sandbox: SandboxServer) -> None:
    event = Bridge(make_app, deliver=False).send()
    time.sleep(1.1)
    bridge = Bridge(make_app, BRIDGE_TRIGGER_MAX_AGE="1s")
    assert bridge.ends_as(event, State.EXPIRED)
    assert triggers(sandbox) == []


@pytest.mark.both_databases
def test_a_loop_ends_after_five_messages(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    events = [bridge.send(number=number) for number in range(6)]
    assert bridge.ends_as(events[5], State.DEAD)
    assert "loop" in bridge.story(events[5])["reason"]
    assert len(sent(sandbox)) == 5
    # Another campaign is another matter.
    assert bridge.ends_as(bridge.send(braze_campaign_id="other"), State.DELIVERED)


@pytest.mark.both_databases
def test_an_external_id_is_translated_by_the_cached_profile(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.put_customer({"user_id": "u-9", "external_id": "e-9"})
    bridge = Bridge(make_app)
    for number in range(3):
        event = bridge.send(user_id="", external_id="e-9", number=number)
        assert bridge.ends_as(event, State.DELIVERED)
    assert {one["recipient"]["external_user_id"] for one in sent(sandbox)} == {"u-9"}
    assert sandbox.sandbox.counts()["profile"] == 1


def test_a_message_whose_external_id_sessionm_cannot_translate_now_waits_and_calls_no_braze(
    make_app: MakeApp, sandbox: SandboxServer, capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox.sandbox.put_customer({"user_id": "u-9", "external_id": "e-9"})
    sandbox.sandbox.set_faults({"status": 503})
    bridge = Bridge(make_app, BRIDGE_MAX_ATTEMPTS="2")
    others = [bridge.send(user_id=f"u{n}", braze_campaign_id=f"campaign-{n}") for n in range(5)]
    eventually(lambda: "is unavailable" in bridge.check("delivery_to_braze")["reason"])
    for other in others:
        bridge.client.delete(f"/api/events/{other}", headers=bearer("admin"))
    event = bridge.send(user_id="", external_id="e-9")
    # More tries than a message has attempts, and one due when Braze may be probed.
    eventually(lambda: len(bridge.story(event)["writes"][0]["tries"]) > 2)
    assert stored_state(bridge.parts.store, event) is State.QUEUED
    assert "delivery continues" not in capfd.readouterr().err
    sandbox.sandbox.set_faults({})
    assert bridge.ends_as(event, State.DELIVERED)
    eventually(lambda: "delivery continues" in capfd.readouterr().err)


def test_the_users_external_id_is_found_where_braze_knows_that(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.put_customer({"user_id": "u-9", "external_id": "e-9"})
    bridge = Bridge(make_app, BRAZE_EXTERNAL_ID="external_id")
    assert bridge.ends_as(bridge.send(user_id="u-9"), State.DELIVERED)
    assert sent(sandbox)[0]["recipient"]["external_user_id"] == "e-9"


@pytest.mark.both_databases
def test_a_broadcast_is_sent_once_an_hour_where_the_rules_allow_it(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[campaigns."{CAMPAIGN}"]\nbroadcast = true\n')
    bridge = Bridge(make_app, BRIDGE_RULES=str(rules))
    fields = {"braze_campaign_id": CAMPAIGN, "broadcast": True}
    first = bridge.post({**fields, "event_id": "1"}).get_json()["id"]
    assert bridge.ends_as(first, State.DELIVERED)
    [call] = triggers(sandbox)
    assert (call["body"]["broadcast"], "recipients" in call["body"]) == (True, False)
    second = bridge.post({**fields, "event_id": "2"}).get_json()["id"]
    assert bridge.ends_as(second, State.DEAD)
    assert bridge.post({**fields, "braze_campaign_id": "other"}).status_code == 422


@pytest.mark.both_databases
def test_erasing_one_recipient_leaves_the_others_theirs(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    quiet = Bridge(make_app, deliver=False)
    recipients = [{"external_user_id": f"u-{name}"} for name in ("ann", "bob", "eve")]
    body = {"campaign_id": CAMPAIGN, "recipients": recipients, "user_id": "u-bob"}
    event = quiet.post(body, "/campaigns/trigger/send").get_json()["dispatch_id"]
    alone = quiet.send(user_id="u-bob")
    assert quiet.parts.erase(Customer("user_id", "u-bob")).events == 2
    assert stored_state(quiet.parts.store, alone) is None
    assert "u-bob" not in str(quiet.story(event))
    bridge = Bridge(make_app)
    assert bridge.ends_as(event, State.DELIVERED)
    names = {one["recipient"]["external_user_id"] for one in sent(sandbox)}
    assert names == {"u-ann", "u-eve"}


@pytest.mark.both_databases
def test_an_erasure_keeps_the_messages_of_all_others(make_app: MakeApp, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[campaigns."{CAMPAIGN}"]\nbroadcast = true\n')
    bridge = Bridge(make_app, deliver=False, BRIDGE_RULES=str(rules))
    ids = {"braze_campaign_id": CAMPAIGN}

    def trigger(recipients: Any, **more: Any) -> str:
        body = {"campaign_id": CAMPAIGN, "recipients": recipients, **more}
        answer = bridge.post(body, "/campaigns/trigger/send").get_json()
        return str(answer.get("dispatch_id", ""))

    others = [{"external_user_id": "1423"}, {"external_user_id": "7"}]
    kept = [
        trigger(others, trigger_properties={"points": 42}),
        trigger([{"email": "ann42@acme.com"}, {"braze_id": "42"}]),
        bridge.send(user_id="7", recipients=[{"user_id": "42"}]),
        bridge.post({**ids, "broadcast": True, "user_id": "42"}).get_json()["id"],
    ]
    cut = trigger(json.dumps([*others, {"user_id": "42", "external_id": "é-42"}]))
    # Rejected ones, which may be accepted later.
    trigger([*others, {"user_id": "42"}, {"external_user_id": ""}])
    bridge.post({**ids, "email": "ann42@acme.com", "broadcast": "42"})
    for gone in ({**ids, "usr": "42"}, {**ids, "user_id": ["42"]}, {"user_id": "42"}):
        assert bridge.post(gone).status_code == 422

    def stored() -> dict[str, str]:
        found = bridge.parts.events.find(Filter()).events
        return {one["id"]: bridge.story(one["id"])["body"] for one in found}

    before = stored()
    # By the identifier that does not address the message.
    assert bridge.parts.erase(Customer("external_id", "é-42")).names[1:] == ()
    after = stored()
    assert json.loads(after[cut])["recipients"] == others
    assert [one["recipient"] for one in bridge.story(cut)["writes"]] == others
    assert {one for one in before if before[one] != after[one]} == {cut}
    assert bridge.parts.erase(Customer("user_id", "42")).events == 5
    after = stored()
    assert len(before) == len(after) + 3
    assert all(bridge.story(one)["writes"] for one in [*kept, cut])
    assert [one for one in after if '"user_id": "42"' in after[one]] == [kept[2]]


@pytest.mark.both_databases
def test_a_message_is_found_by_each_of_its_recipients(make_app: MakeApp) -> None:
    bridge = Bridge(make_app, deliver=False)
    recipients = [{"external_user_id": "u-1"}, {"email": "Anna@Acme.com"}]
    body = {"campaign_id": CAMPAIGN, "recipients": recipients}
    event = bridge.post(body, "/campaigns/trigger/send").get_json()["dispatch_id"]
    alone = bridge.send(user_id="u-1")

    def found(**wanted: str) -> list[str]:
        path = "/api/events"
        answer = bridge.client.get(path, query_string=wanted, headers=bearer("admin"))
        return [one["id"] for one in answer.get_json()["events"]]

    assert found(customer="u-1") == [alone, event]
    assert found(customer="u-1", campaign=CAMPAIGN, text="none") == []
    assert found(customer="Anna@Acme.com", state="queued") == [event]
    assert found(customer="u-2") == []
    # Events without a readable customer are others.
    assert found(customer=NOBODY) == []
    page = bridge.client.get("/api/customers/user_id/u-1", headers=bearer("admin")).get_json()
    assert [one["id"] for one in page["events"]] == [alone, event]
    assert "No send" not in " ".join(page["findings"])
    # To change all events of a customer changes no message that others get too.
    assert bridge.parts.operator.discard(Filter(State.QUEUED, customer=NOBODY)).changed == 0
    of_one = Filter(State.QUEUED, customer="u-1")
    assert bridge.parts.operator.discard(of_one, dry_run=True).matched == 1
    assert bridge.parts.operator.discard(of_one).changed == 1
    assert stored_state(bridge.parts.store, event) is State.QUEUED


@pytest.mark.both_databases
def test_a_message_goes_with_the_last_of_its_recipients(make_app: MakeApp) -> None:
    bridge = Bridge(make_app, deliver=False)
    names = [f"u-{number}" for number in range(6)]
    body = {"campaign_id": CAMPAIGN, "recipients": [{"external_user_id": one} for one in names]}
    event = bridge.post(body, "/campaigns/trigger/send").get_json()["dispatch_id"]

    def erase(name: str) -> int:
        return bridge.parts.erase(Customer("user_id", name)).events

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(erase, names[1:])) == [1] * 5
    story = bridge.story(event)
    assert json.loads(story["body"])["recipients"] == [{"external_user_id": "u-0"}]
    assert erase("u-0") == 1
    assert stored_state(bridge.parts.store, event) is None
    [figures] = bridge.parts.events.campaigns()
    assert (figures.pending, figures.discarded) == (0, 1)


@pytest.mark.parametrize("lookup", ["tags", "customer"])
@pytest.mark.both_databases
def test_all_external_ids_of_a_customer_outdate_each_other(
    make_app: MakeApp, sandbox: SandboxServer, lookup: str
) -> None:
    sandbox.sandbox.put_customer({"user_id": "u-9", "external_id": "old"})
    bridge = Bridge(make_app)

    def names(**whose: str) -> list[str]:
        found = bridge.client.get(
            f"/connected-content/{lookup}", query_string=whose, headers=bearer("content")
        ).get_json()
        return list(found["names"])

    def write(tag: str, **whose: str) -> None:
        event = bridge.client.post(
            "/webhooks/braze", json={**whose, "tags": [tag]}, headers=bearer("webhook")
        ).get_json()["id"]
        assert bridge.ends_as(event, State.DELIVERED)

    everyone = ({"external_id": "old"}, {"external_id": "new"}, {"user_id": "u-9"})
    known = bridge.parts.lookups.names
    customer = Customer("user_id", "u-9")
    names(external_id="old")
    # The customer gets a second external ID, and keeps the first.
    sandbox.sandbox.add_external_id("u-9", "new")
    for number, writer in enumerate(everyone):
        for reader in everyone:
            names(**reader)
        # The tags are answered before the profile, which links an external ID to its customer.
        eventually(lambda: len(known([customer])[customer]) == len(everyone))
        write(f"vip{number}", **writer)
        for reader in everyone:
            assert f"vip{number}" in names(**reader)


@pytest.mark.both_databases
def test_an_external_id_that_was_never_looked_up_outdates_the_wallet_of_its_user_id(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app, BRAZE_EXTERNAL_ID="external_id")

    def titles() -> list[str]:
        path = f"/connected-content/offers?user_id={ALICE}"
        found = bridge.client.get(path, headers=bearer("content")).get_json()
        return [offer["title"] for offer in found["offers"]]

    def award(title: str) -> None:
        sandbox.sandbox.put_customer(
            {"user_id": ALICE, "external_id": "loyal-1001", "offers": [{"title": title}]}
        )

    titles()
    award("A new one")
    answer = bridge.post({"external_id": "loyal-1001"}, "/webhooks/sessionm/changed")
    assert answer.status_code == 200
    assert titles() == ["A new one"]
    award("A newer one")
    message = {"braze_campaign_id": CAMPAIGN, "external_id": "loyal-1001"}
    event = bridge.post(message).get_json()["id"]
    assert bridge.ends_as(event, State.DELIVERED)
    assert titles() == ["A newer one"]


@pytest.mark.parametrize("fault", [{"hang": 20}, {"status": 403, "code": "access_denied"}], ids=str)
def test_a_profile_that_fails_holds_up_no_write_by_external_id(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "match": "GET .*/external/users/[^/]+$"})
    bridge = Bridge(make_app, BRIDGE_LOOKUP_DEADLINE="1")
    for number in range(8):
        answer = bridge.client.post(
            "/webhooks/braze",
            json={"external_id": "loyal-1001", "tags": ["visits"], "dispatch_id": f"d{number}"},
            headers=bearer("webhook"),
        )
        assert bridge.ends_as(answer.get_json()["id"], State.DELIVERED)
    assert bridge.check("delivery")["state"] == "running"
    [first, *_] = sandbox.sandbox.calls(method="GET", match="external/users/[^/]+$")
    assert first
    path = "/connected-content/tags?external_id=loyal-1001"
    found = bridge.client.get(path, headers=bearer("content")).get_json()
    assert (found["status"], found["tags"]["visits"]) == ("ok", 8)


@pytest.mark.both_databases
def test_a_rejected_message_is_read_again_once_a_rule_allows_it(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    fields = {"braze_campaign_id": CAMPAIGN, "broadcast": True}
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[campaigns."{CAMPAIGN}"]\nbroadcast = true\n')
    bridge = Bridge(make_app, deliver=False, BRIDGE_RULES=str(rules))
    # The same body, a week ago.
    bridge.parts.operator.discard_one(bridge.post(fields).get_json()["id"])
    with bridge.parts.store.database.write() as connection:
        connection.execute(events.update().values(received_at=time.time() - 7 * 86400))
    assert Bridge(make_app, deliver=False).post(fields).status_code == 422
    bridge = Bridge(make_app, BRIDGE_RULES=str(rules))
    done = bridge.client.post(
        "/api/events/replay",
        json={"state": "rejected", "direction": "to_braze"},
        headers=bearer("admin"),
    )
    assert done.get_json()["replayed"] == 1
    eventually(lambda: len(sent(sandbox)) == 1)


def test_messages_are_counted_for_prometheus(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    assert bridge.ends_as(bridge.send(), State.DELIVERED)
    assert bridge.post({}).status_code == 422

    def shows(*lines: str) -> bool:
        found = bridge.client.get("/metrics", headers=bearer("admin")).text
        return all(line in found for line in lines)

    eventually(
        lambda: shows(
            'bridge_messages_total{outcome="accepted"} 1.0',
            'bridge_messages_total{outcome="rejected"} 1.0',
            'bridge_messages_ended_total{outcome="delivered"} 1.0',
            "bridge_messages_sent_total 1.0",
            "bridge_braze_calls_total 1.0",
            'bridge_message_delivery_state{state="running"} 1.0',
            "bridge_braze_calls_left 249999.0",
            "bridge_message_queue 0.0",
        )
    )
    assert sandbox.sandbox.counts()["trigger"] == 1


def test_a_lookup_shows_the_profile_fields_that_are_allowed(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    profile = {"tier": "gold", "points_goal": 300, "secret": "x"}
    sandbox.sandbox.put_customer({"user_id": "u-9", "external_id": "e-9", "profile": profile})
    bridge = Bridge(make_app, deliver=False, BRIDGE_PROFILE_FIELDS="tier,points_goal,nickname")
    for name in ("user_id=u-9", "external_id=e-9", "user_id=nobody"):
        found = bridge.client.get(
            f"/connected-content/customer?{name}", headers=bearer("content")
        ).get_json()
        known = name != "user_id=nobody"
        assert found["profile"] == {
            "tier": "gold" if known else "",
            "points_goal": 300 if known else "",
            "nickname": "",
        }
    plain = Bridge(make_app, deliver=False)
    found = plain.client.get("/connected-content/customer?user_id=u-9", headers=bearer("content"))
    assert "profile" not in found.get_json()


def test_setup_shows_what_would_go_to_braze_and_sends_nothing(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    bridge = Bridge(make_app)
    body = f'{{"braze_campaign_id": "{CAMPAIGN}", "user_id": "{ALICE}", "title": "x",}}'
    form = {"message_body": body}
    shown = bridge.client.post("/setup", data=form, headers=bearer("admin"))
    assert shown.status_code == 200
    assert "/campaigns/trigger/send" in shown.text
    assert "send_to_existing_only" in shown.text
    refused = bridge.client.post(
        "/setup", data={"message_body": "{{oops}}"}, headers=bearer("admin")
    )
    assert refused.status_code == 400
    assert triggers(sandbox) == []


def test_setup_shows_the_lines_for_campaign_and_canvas_and_the_calls_of_a_body(
    make_app: MakeApp,
) -> None:
    bridge = Bridge(make_app)

    def show(**body: str) -> str:
        form = {"message_body": json.dumps(body, ensure_ascii=False)}
        return bridge.client.post("/setup", data=form, headers=bearer("admin")).text

    pages = [bridge.client.get("/setup", headers=bearer("viewer")).text]
    for name, braze_id in (("braze_campaign_id", CAMPAIGN), ("braze_canvas_id", CANVAS)):
        pages.append(show(**{name: braze_id}, user_id=ALICE))
        assert f"_id&#34;: &#34;{braze_id}&#34;" in pages[-1]
    for shown in pages:
        assert re.findall("&amp;v={{[^}]*}}}", shown[shown.index('id="sessionm"') :]) == [
            "&amp;v={{api_trigger_properties.${bridge_event}}}",
            "&amp;v={{context.${bridge_event}}}",
        ]
    [anchor] = re.findall('href="/docs#([^"]*)"', pages[0])
    assert f'id="{anchor}"' in bridge.client.get("/docs").text
    assert "still holds a placeholder (…)" in show(braze_campaign_id="…", user_id="…")
    # The body that the page begins with can be tried out as it is.
    [example] = re.findall(
        r'<textarea name="message_body"[^>]*>\n(.*?)</textarea>', pages[0], re.DOTALL
    )
    form = {"message_body": unescape(example)}
    answer = bridge.client.post("/setup", data=form, headers=bearer("admin"))
    assert answer.status_code == 200
    assert "&#34;campaign_id&#34;: &#34;example-campaign-id&#34;" in answer.text


def test_setup_shows_what_became_of_the_last_message(make_app: MakeApp) -> None:
    bridge = Bridge(make_app)

    def shown() -> str:
        path = "/setup?part=progress"
        page = bridge.client.get(path, headers=bearer("viewer")).text
        return page[page.index('id="message-state"') :]

    event = bridge.send(user_offer_id="o")
    eventually(lambda: "accepted by Braze" in shown())
    assert f'href="/events/{event}"' in shown()
    bridge.post({"braze_campaign_id": CAMPAIGN, "user_id": ALICE, "user_offer_id": "o"})
    assert "SessionM repeated 1 message in the last 15 minutes" in shown()
    bridge.post({"braze_campaign_id": CAMPAIGN, "user_id": "{{user.id}}"})
    assert "rejected" in shown()
    assert "check the template in SessionM" in shown()


def test_pages_know_the_direction(make_app: MakeApp, sandbox: SandboxServer) -> None:
    bridge = Bridge(make_app)
    event = bridge.send(title="x")
    assert bridge.ends_as(event, State.DELIVERED)
    page = bridge.client.get("/events?direction=to_braze", headers=bearer("admin")).text
    assert event in page
    assert (
        event
        not in bridge.client.get("/events?direction=to_sessionm", headers=bearer("admin")).text
    )
    shown = bridge.client.get(f"/events/{event}", headers=bearer("admin")).text
    assert "What is sent to Braze" in shown
    assert sent(sandbox)[0]["dispatch_id"] in shown


@pytest.mark.both_databases
def test_braze_being_away_holds_up_nothing_else_and_loses_nothing(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    # Nothing listens at the discard port.
    away = Bridge(make_app, BRAZE_REST_URL="http://127.0.0.1:9")
    event = away.send()
    tagged = away.client.post(
        "/webhooks/braze",
        json={"user_id": ALICE, "braze_campaign_id": "summer"},
        headers=bearer("webhook"),
    ).get_json()["id"]
    assert away.ends_as(tagged, State.DELIVERED)
    eventually(lambda: away.story(event)["writes"][0]["tries"])
    assert stored_state(away.parts.store, event) is State.QUEUED
    assert away.check("braze")["state"] in {"failing", "down"}
    away.parts.close()
    bridge = Bridge(make_app)
    assert bridge.ends_as(event, State.DELIVERED)
    assert len(sent(sandbox)) == 1
