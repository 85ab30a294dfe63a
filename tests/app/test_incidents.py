"""Incidents on `/health`: their beginning survives restarts, their extent leads to the events."""

import itertools
import re
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from bridge.fields import instant
from bridge.ops import chronicle
from bridge.ops.incidents import Cause
from bridge.outbox.model import Extent
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from tests.app.test_operator import make_dead, state_of
from tests.app.test_pages import words
from tests.conftest import ALICE, LetPass, MakeApp, bearer, eventually, send

ADMIN = bearer("admin")


def incidents(client: FlaskClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/health", headers=ADMIN).get_json()["incidents"]
    return found


def opened(client: FlaskClient) -> list[dict[str, Any]]:
    return [one for one in incidents(client) if "until" not in one]


@pytest.mark.both_databases
def test_dead_writes_are_grouped_by_reason_with_what_they_concern(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    for number, campaign in enumerate(["summer", "summer", "winter"]):
        make_dead(client, sandbox, user_id=f"customer-{number}", braze_campaign_id=campaign)
    [one] = opened(client)
    assert one["code"] == "dead_writes"
    assert "3 writes are dead: HTTP 200: VALIDATION" in one["reason"]
    assert (one["writes"], one["customers"]) == (3, 3)
    assert one["campaigns"] == ["summer", "winter"]
    answer = client.get("/health", headers=ADMIN).get_json()
    assert answer["status"] == "degraded"
    assert answer["reasons"] == [one["reason"]]


def test_the_dashboard_names_the_cause_and_the_campaign(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    for number in range(5):
        make_dead(client, sandbox, braze_campaign_id="c-1", campaign_name="Sale", dedupe=number)
    # Reads are answered meanwhile.
    client.get(f"/connected-content/tags?user_id={ALICE}", headers=bearer("content"))
    # The deliverer reports the row of refusals with its next heartbeat.
    eventually(lambda: "refuses us" in words(client.get("/dashboard", headers=ADMIN)))
    seen = words(client.get("/dashboard", headers=ADMIN))
    assert "1 incident open. Cause: writes that SessionM did not take." in seen
    assert "5 writes 1 customer Sale" in seen
    assert "SessionM Core ! refuses us" in seen
    assert re.search(r"[56] of \d+ refused", seen)
    assert "SessionM refuses every write now." in seen
    assert "Replay…" not in seen


def test_writes_without_an_answer_are_one_state_everywhere_while_lookups_go_on(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    sandbox.sandbox.set_faults({"drop": "after", "match": "POST .*/tags"})
    for number in range(5):
        send(client, user_id=f"u{number}", braze_campaign_id="summer")
    numbers = itertools.count()

    def reason() -> str:
        # Another customer each time, as others' answers are cached.
        path = f"/connected-content/tags?user_id=other-{next(numbers)}"
        client.get(path, headers=bearer("content"))
        return next((one["reason"] for one in opened(client) if one["code"] == "sessionm_down"), "")

    eventually(lambda: "SessionM does not answer our writes" in reason())
    assert "SessionM Core ✕ does not answer writes" in words(
        client.get("/dashboard", headers=ADMIN)
    )
    exported = client.get("/metrics", headers=ADMIN).text
    assert 'bridge_sessionm_state{state="down",system="core"} 1.0' in exported
    # The same outage in other words, and its end.
    sandbox.sandbox.set_faults({"garbage": True, "match": "POST .*/tags"})
    client.post("/api/delivery/resume", headers=ADMIN)
    eventually(lambda: "no SessionM answer in the body" in reason())
    sandbox.sandbox.set_faults({})
    client.post("/api/delivery/resume", headers=ADMIN)
    eventually(lambda: not opened(client))
    assert "Also: HTTP 200: no SessionM answer" in incidents(client)[0]["reason"]
    assert "Healthy" in (seen := words(client.get("/dashboard", headers=ADMIN)))
    assert "1 incident in the last 12 h , the last ended 20" in seen


def test_a_limit_after_refused_credentials_is_a_limit(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()

    def reasons() -> list[tuple[str, str]]:
        return [(one["code"], one["reason"]) for one in opened(client)]

    sandbox.sandbox.set_faults({"status": 401, "where": "braze"})
    message = {"braze_campaign_id": "award", "user_id": "u", "user_offer_id": 1}
    client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))
    eventually(lambda: [code for code, _ in reasons()] == ["braze_refuses"])
    sandbox.sandbox.set_faults({"status": 429, "retry_after": 300, "where": "braze"})
    client.post("/api/delivery/resume", headers=ADMIN)
    [(_, reason)] = eventually(lambda: [one for one in reasons() if one[0] == "braze_limits"])
    assert "we wait until 20" in reason
    assert len(reasons()) == 1


def test_refused_credentials_are_no_cause_of_what_sessionm_refuses_later(
    make_app: MakeApp, sandbox: SandboxServer, let_pass: LetPass
) -> None:
    client = make_app().test_client()

    def look_up(customers: int) -> list[str]:
        for number in range(customers):
            path = f"/connected-content/offers?user_id={number}"
            client.get(path, headers=bearer("content"))
        return [one["reason"] for one in opened(client) if one["code"] == "sessionm_refuses"]

    sandbox.sandbox.set_faults({"status": 401, "where": "connect"})
    assert "HTTP 401" in look_up(1)[0]
    let_pass(10)
    sandbox.sandbox.set_faults({"ok_error": True, "code": "argument_error", "where": "connect"})
    assert look_up(5) == ["SessionM Connect refuses one call after the other."]
    check = client.get("/health", headers=ADMIN).get_json()["checks"]["sessionm_connect"]
    assert (check["last_error"], check["errors"]) == ("HTTP 200: ARGUMENT_ERROR", 1)


def test_a_refusal_that_has_not_been_tried_again_is_reported_in_the_past_tense(
    client: FlaskClient, sandbox: SandboxServer, let_pass: LetPass
) -> None:
    sandbox.sandbox.set_faults({"ok_error": True, "code": "argument_error", "where": "connect"})
    for number in range(5):
        client.get(f"/connected-content/offers?user_id={number}", headers=bearer("content"))
    assert "SessionM Connect ! refuses us" in words(client.get("/dashboard", headers=ADMIN))
    sandbox.sandbox.set_faults({})
    let_pass(30)
    seen = words(client.get("/dashboard", headers=ADMIN))
    assert "SessionM Connect ! refused us until 20" in seen
    assert "UTC ; no call since" in seen
    assert "refuses us" not in seen
    # Its customers are not counted; the lookups are.
    assert "5 lookups without an answer in time" in seen
    client.get("/connected-content/offers?user_id=new", headers=bearer("content"))
    assert "SessionM Connect ✓ ok" in words(client.get("/dashboard", headers=ADMIN))


def test_failures_of_a_system_that_works_again_are_past(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    def seen(customer: str) -> str:
        client.get(f"/connected-content/tags?user_id={customer}", headers=bearer("content"))
        return words(client.get("/dashboard", headers=ADMIN))

    sandbox.sandbox.set_faults({"status": 503, "where": "core"})
    assert re.search(r"SessionM Core ! failing .* 1 of 1 failed SessionM", seen("first"))
    sandbox.sandbox.set_faults({})
    assert re.search(r"SessionM Core ✓ ok .* 1 of 2 failed before SessionM", seen(ALICE))


def test_a_pause_by_hand_leaves_a_past_failure_in_the_past(
    make_app: MakeApp, sandbox: SandboxServer, let_pass: LetPass
) -> None:
    client = make_app(deliver=True).test_client()

    def post(number: int) -> None:
        message = {"braze_campaign_id": "award", "user_id": "u", "user_offer_id": number}
        client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))

    def failure() -> str:
        return next((one["reason"] for one in opened(client) if one["code"] == "braze_fails"), "")

    sandbox.sandbox.set_faults({"garbage": True, "where": "braze"})
    post(1)
    eventually(lambda: "is failing" in failure())
    client.post("/api/delivery/pause", headers=ADMIN)
    post(2)
    let_pass(30)
    eventually(lambda: [one for one in opened(client) if one["code"] == "delivery_paused"])
    assert "failed until 20" in failure()


def test_messages_that_wait_for_braze_have_a_forecast(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True, BRAZE_RPS="1", BRIDGE_TRIGGER_MAX_AGE="2h").test_client()
    sandbox.sandbox.set_faults({"status": 503, "where": "braze"})
    for number in range(3):
        message = {"braze_campaign_id": "award", "user_id": f"u{number}", "user_offer_id": number}
        client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))
    forecast = (
        "nothing goes out now; about 3 s at 1 a second once delivery resumes; "
        "the oldest expires in 1 h"
    )

    def seen() -> str:
        return words(client.get("/dashboard", headers=ADMIN))

    # Each figure comes from memory while a busy database is too slow for a page.
    for expected in (
        forecast,
        "Try now…",
        "Waiting for Braze 3 messages Oldest:",
        "3 messages 3 customers award",
        "waited for BRIDGE_TRIGGER_MAX_AGE (2 h) expires: it is not sent",
    ):
        eventually(lambda expected=expected: seen().count(expected))  # type: ignore[misc]
    assert seen().count(forecast) <= 1
    checks = client.get("/health", headers=ADMIN).get_json()["checks"]
    assert checks["delivery_to_braze"]["held_by"] == "down"


@pytest.mark.both_databases
def test_since_survives_a_restart_and_what_is_over_is_listed(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    first = make_app(deliver=True)
    client = first.test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer")
    [one] = opened(client)
    parts_of(first).close()
    client = make_app(deliver=True).test_client()
    eventually(lambda: [again["code"] for again in opened(client)] == ["dead_writes"])
    [again] = opened(client)
    assert again["since"] == one["since"]
    client.post(f"/api/events/{event}/replay", headers=ADMIN)
    eventually(lambda: state_of(client, event) == "delivered")
    [closed] = eventually(lambda: [] if opened(client) else incidents(client))
    assert closed["since"] == one["since"]
    assert (instant(closed["until"]) or 0) >= (instant(closed["since"]) or 0)
    assert closed["writes"] == 1


@pytest.mark.both_databases
def test_replay_is_advised_when_a_write_of_the_campaign_came_through(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    client = app.test_client()
    make_dead(client, sandbox, braze_campaign_id="summer")
    extents = parts_of(app).extents
    assert [group.mended for group in extents.dead()] == [False]
    event = send(client, user_id="another", braze_campaign_id="summer")
    # Delivered, or it waits for its customer.
    sandbox.sandbox.put_customer({"user_id": "another"})
    eventually(lambda: state_of(client, event) == "delivered")
    assert [group.mended for group in extents.dead()] == [True]
    # Also during a send, while newer ones wait.
    client.post("/api/delivery/pause", headers=ADMIN)
    send(client, user_id=ALICE, braze_campaign_id="summer")
    assert [group.mended for group in extents.dead()] == [True]


@pytest.mark.both_databases
def test_a_write_that_dies_again_is_reported_with_its_present_reason(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    client, extents = app.test_client(), parts_of(app).extents
    first, _second = (make_dead(client, sandbox, dispatch_id=one, tags=["t"]) for one in "ab")
    assert [group.extent.writes for group in extents.dead()] == [2]
    sandbox.sandbox.set_faults({"ok_error": True, "code": "argument_error", "match": "POST"})
    client.post(f"/api/events/{first}/replay", headers=ADMIN)
    eventually(lambda: "ARGUMENT" in client.get(f"/api/events/{first}", headers=ADMIN).text)
    eventually(lambda: state_of(client, first) == "dead")
    codes = {group.reason.removeprefix("HTTP 200: ").split()[0] for group in extents.dead()}
    assert codes == {"VALIDATION", "ARGUMENT_ERROR"}


def test_a_pause_is_an_incident_with_what_waits(make_app: MakeApp) -> None:
    client = make_app(deliver=True).test_client()
    eventually(lambda: not opened(client))
    client.post("/api/delivery/pause", headers=ADMIN)
    send(client, user_id=ALICE, braze_campaign_id="summer")
    [one] = eventually(lambda: [one for one in opened(client) if one["writes"]])
    assert (one["code"], one["customers"], one["campaigns"]) == ("delivery_paused", 1, ["summer"])
    client.post("/api/delivery/resume", headers=ADMIN)
    eventually(lambda: not opened(client))


@pytest.mark.both_databases
def test_two_processes_name_the_same_beginning(make_app: MakeApp) -> None:
    first, second = make_app(), make_app()
    # Nothing delivers here.
    [one] = opened(first.test_client())
    [other] = opened(second.test_client())
    assert one["code"] == other["code"] == "delivery_stopped"
    assert one["since"] == other["since"]


@pytest.mark.both_databases
def test_an_outage_that_grew_is_stored_as_one_incident(make_app: MakeApp) -> None:
    both = [parts_of(make_app()) for _ in range(2)]
    for parts in both:
        parts.watch.stop()
    first, second = (parts.chronicle for parts in both)
    fails = Cause("sessionm_fails", "It fails.", "Wait.", "Core")
    down = Cause("sessionm_down", "It is down.", "Wait.", "Core", extent=Extent(3, 2, ("summer",)))
    first.follow([fails], store_is_up=True)
    second.follow([down], store_is_up=True)
    first.follow([fails], store_is_up=True)
    [closed] = second.follow([], store_is_up=True)
    assert (closed.cause, closed.extent) == (down, down.extent)
    assert first.follow([], store_is_up=True) == [closed]


def test_an_incident_that_another_version_stored_is_shown(make_app: MakeApp) -> None:
    parts = parts_of(make_app())
    parts.watch.stop()
    fails = Cause("sessionm_down", "It is down.", "Wait.", "Core")
    parts.chronicle.follow([fails], store_is_up=True)
    with parts.chronicle.database.write() as connection:
        story = connection.execute(sa.select(chronicle.incidents.c.story)).scalar_one()
        other = {**story["cause"], "removed": "lookups"}
        connection.execute(chronicle.incidents.update().values(story={**story, "cause": other}))
    [one] = parts.chronicle.follow([fails], store_is_up=True)
    assert one.cause == fails
