"""Events as CSV, the pages of one campaign and of one customer."""

import csv
import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from bridge.outbox import search
from bridge.sandbox import SandboxServer
from bridge.web.customers import about_lookup
from bridge.web.export import COLUMNS
from tests.app.test_operator import make_dead, state_of
from tests.app.test_pages import get, post, words
from tests.conftest import ALICE, MakeApp, bearer, eventually, send
from tests.conftest import post as send_webhook

ADMIN, VIEWER = bearer("admin"), bearer("viewer")


def table(client: FlaskClient, path: str) -> list[dict[str, str]]:
    answer = client.get(path, headers=VIEWER)
    assert (answer.status_code, answer.mimetype) == (200, "text/csv")
    return list(csv.DictReader(io.StringIO(answer.text)))


@pytest.mark.both_databases
def test_events_come_as_csv_with_their_names(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer", campaign_name="Summer promotion")
    send(client, external_id="loyal-1", user_id="", braze_canvas_id="welcome")
    newest, oldest = table(client, "/events.csv")
    assert list(newest) == list(COLUMNS)
    assert (newest["external_id"], newest["canvas_id"]) == ("loyal-1", "welcome")
    assert oldest["campaign_name"] == "Summer promotion"
    assert (oldest["user_id"], oldest["state"]) == (ALICE, "queued")
    assert len(table(client, "/events.csv?campaign=summer")) == 1
    assert client.get("/events.csv?state=happy", headers=ADMIN).status_code == 400


def test_a_name_in_the_rules_goes_before_brazes_as_on_the_pages(
    make_app: MakeApp, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[campaigns.summer]\nname = "Summer"\n')
    client = make_app(BRIDGE_RULES=str(rules)).test_client()
    send(client, braze_campaign_id="summer", campaign_name="Summer promotion")
    [row] = table(client, "/events.csv")
    assert row["campaign_name"] == "Summer"
    assert "Summer promotion" not in client.get("/events", headers=ADMIN).text


def test_a_posted_filter_is_read_in_body_and_query_alike(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer")
    send(client, user_id="somebody-else", braze_campaign_id="summer")
    for body in ({"data": {"customer": ALICE}}, {"json": {"customer": ALICE}}):
        answer = client.post("/events.csv?campaign=summer", headers=VIEWER, **body)
        [row] = csv.DictReader(io.StringIO(answer.text))
        assert row["user_id"] == ALICE
    assert client.post("/events.csv?state=happy", headers=VIEWER).status_code == 400


def test_a_cell_is_never_a_formula(client: FlaskClient) -> None:
    for nasty in ("=1+1", "+1", "-1", "@SUM(A1)"):
        send(client, user_id=nasty, braze_campaign_id="summer", campaign_name=nasty)
    for row in table(client, "/events.csv"):
        for value in row.values():
            assert not value.startswith(("=", "+", "-", "@"))
        assert row["user_id"][0] == "'"


@pytest.mark.both_databases
def test_all_that_matches_is_in_the_file(client: FlaskClient) -> None:
    for number in range(12):
        send(client, braze_campaign_id=f"c{number}")
    assert len(table(client, "/events.csv?state=queued&since=1h")) == 12
    assert "/events.csv?state=queued" in client.get("/events?state=queued", headers=ADMIN).text


# --- One campaign -----------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_campaign_has_a_page_with_its_funnel_and_its_reasons(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    make_dead(client, sandbox, braze_campaign_id="summer", campaign_name="Summer promotion")
    event = send(client, braze_campaign_id="summer")
    eventually(lambda: state_of(client, event) == "delivered")
    answer = get(client, "/campaigns/summer")
    for part in ("Summer promotion", "accepted 2 100 %", "delivered 1 50 %", "dead 1 50 %"):
        assert part in answer
    assert "Why events are dead 1 HTTP 200: VALIDATION" in answer
    assert client.get("/campaigns/nonsense", headers=ADMIN).status_code == 404
    assert client.get("/campaigns", headers=ADMIN).headers["Location"] == "/dashboard#campaigns"
    refused = client.get("/campaigns/trigger/send", headers=ADMIN)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
    assert "Summer promotion" in get(client, "/events")
    assert "Summer promotion" in get(client, f"/events/{event}")


# --- One customer -----------------------------------------------------------------------------


def about(client: FlaskClient, **customer: str) -> dict[str, Any]:
    [(kind, name)] = customer.items()
    answer = client.get(f"/api/customers/{kind}/{name}", headers=VIEWER)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.get_json()
    return found


@pytest.mark.both_databases
def test_a_customer_is_shown_with_pending_writes_and_events(
    client: FlaskClient,
) -> None:
    send(client, braze_campaign_id="summer")
    send(client, user_id="somebody-else", braze_campaign_id="summer")
    found = about(client, user_id=ALICE)
    assert found["customer"] == {"user_id": ALICE}
    assert found["lookup"]["status"] == "ok"
    assert [write["tags"] for write in found["pending"]] == [["braze_campaign_summer"]]
    assert len(found["events"]) == 1
    client.get("/health", headers=ADMIN)
    assert "1 write waits. Delivery has stopped" in " ".join(
        about(client, user_id=ALICE)["findings"]
    )
    unknown = about(client, external_id="nobody")
    assert "does not know this customer" in unknown["findings"][0]
    assert "has named this customer for as long as events are kept" in unknown["findings"][1]
    wrong = {"a user ID": {"external_id": ALICE}, "an external ID": {"user_id": "loyal-1001"}}
    for kind, ids in wrong.items():
        says = f"SessionM knows this ID as {kind}: choose that ID type."
        assert about(client, **ids)["findings"][0] == says


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_programs_get_the_error_of_a_bad_customer_in_json(client: FlaskClient, method: str) -> None:
    answer = client.open(f"/api/customers/user_id/{'x' * 256}", method=method, headers=ADMIN)
    assert (answer.status_code, answer.mimetype) == (400, "application/json")
    assert "customer_id" in answer.get_json()["errors"]["message"]


def test_the_page_of_a_customer_keeps_her_out_of_the_address(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer")
    assert "Why did a customer not get it?" in get(client, "/customers")
    answer = post(client, "/customers", kind="user_id", id=ALICE)
    assert answer.status_code == 200
    assert "braze_campaign_summer" in words(answer)
    assert "Waiting for SessionM" in words(answer)
    assert ALICE not in " ".join(part for part in answer.text.split('"') if part.startswith("/"))
    assert post(client, "/customers", kind="user_id", id=" ").status_code == 400


def test_the_page_of_a_customer_says_that_an_answer_is_stale(make_app: MakeApp) -> None:
    client = make_app(BRIDGE_TAGS_MAX_AGE="0", BRIDGE_OFFERS_MAX_AGE="0").test_client()
    stale = "from the cache; the bridge asks SessionM again"
    assert stale not in words(post(client, "/customers", kind="user_id", id=ALICE))
    assert stale in words(post(client, "/customers", kind="user_id", id=ALICE))


def test_what_is_not_known_of_a_customer_is_no_zero(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503, "where": "connect"})
    seen = words(post(client, "/customers", kind="user_id", id=ALICE))
    assert "Points available – Offers – Tags 3" in seen


@pytest.mark.both_databases
def test_a_customer_is_erased_after_a_question(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer")
    asked = post(client, "/customers/erase", kind="user_id", id=ALICE)
    assert "Erase this customer?" in words(asked)
    assert len(about(client, user_id=ALICE)["events"]) == 1
    done = post(client, "/customers/erase", kind="user_id", id=ALICE, sure="yes")
    assert "1 event is gone" in words(done)
    assert about(client, user_id=ALICE)["events"] == []
    send(client, braze_campaign_id="summer")
    path = f"/api/customers/user_id/{ALICE}"
    assert client.delete(path, headers=VIEWER).status_code == 403
    assert client.delete(path, headers=ADMIN).get_json()["events"] == 1


@pytest.mark.parametrize(
    ("lookup", "known_as", "says"),
    [
        ({"status": "ok", "parts": {"offers": "ok"}, "offers": [1]}, None, []),
        ({"status": "ok", "parts": {"offers": "ok"}, "offers": []}, None, ["no current offer"]),
        ({"status": "unavailable", "reason": "SessionM is down."}, None, ["SessionM is down."]),
        ({"status": "not_found"}, None, ["does not know this customer"]),
        ({"status": "not_found"}, "user_id", ["knows this ID as a user ID"]),
    ],
)
def test_findings_say_why_a_message_lacks_something(
    lookup: dict[str, Any], known_as: Any, says: list[str]
) -> None:
    found = [one.text for one in about_lookup(lookup, known_as)]
    assert len(found) == len(says)
    assert all(words in text for words, text in zip(says, found, strict=True))


def found_on_page(client: FlaskClient, customer: str = ALICE) -> tuple[str, list[str]]:
    """What the customer's page says in its first section, and where its links lead."""
    page = post(client, "/customers", kind="user_id", id=customer).text
    section = page[page.index('id="findings"') : page.index("</section>")]
    links = [unescape(one) for one in re.findall(r'href="([^"]*)"', section)]
    return unescape(re.sub("<[^>]*>", "", section)), links


def test_a_send_that_was_rejected_is_found_by_its_customer(client: FlaskClient) -> None:
    for body in (
        f'{{"first_name": "An"na", "user_id": "{ALICE}", "braze_campaign_id": "summer"}}',
        f'{{"userid": "{ALICE}", "braze_campaign_id": "summer"}}',
    ):
        refused = client.post(
            "/webhooks/braze",
            data=body,
            content_type="application/json",
            headers=bearer("webhook"),
        )
        assert refused.status_code in {400, 422}
    says, links = found_on_page(client)
    assert "2 of this customer's last 2 events were rejected." in says
    assert "No send" not in says
    [event] = [link for link in links if link.startswith("/events/")]
    assert "Campaign summer" in get(client, event)


def test_a_send_that_may_have_been_for_the_customer_is_mentioned(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    says, links = found_on_page(client)
    assert "No send that the bridge could read has named this customer" in says
    assert links == []
    send_webhook(client, user_id="{{${user_id}}}", braze_campaign_id="summer")
    client.post("/webhooks/braze", json={}, headers={"Authorization": "Bearer wrong"})
    says, links = found_on_page(client)
    assert "1 rejected send names no customer that can be read" in says
    assert "1 send of the last 24 hours had a wrong key, or none" in says
    assert "holds no webhook key" in says
    assert links[1] == "/setup#webhook"
    shown = get(client, links[0])
    assert "1 event, newest first" in shown
    assert "still holds a placeholder" in shown
    # Nor is it denied when it is not among the events that are read.
    with monkeypatch.context() as patched:
        patched.setattr(search, "MOST_READ", 1)
        client.post("/webhooks/sessionm/message", json={}, headers=bearer("trigger"))
        assert "0 rejected sends or more name no customer" in found_on_page(client)[0]
    # What came before the customer's newest event is not mentioned.
    send(client, braze_campaign_id="summer")
    says, links = found_on_page(client)
    assert "wrong key" not in says


def test_a_dead_event_comes_with_what_to_do(make_app: MakeApp, sandbox: SandboxServer) -> None:
    client = make_app(deliver=True).test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer", tags=["visits"], ttl="1d")
    says, _ = found_on_page(client)
    assert "1 of this customer's last 1 event is dead. The newest: HTTP 200: VALID" in says
    do = "If one of these tags is a counter in SessionM, it cannot get a ttl"
    assert do in says
    assert do in get(client, f"/events/{event}")
    # The campaign's tag is not the webhook's own, unlike the counter.
    event = make_dead(client, sandbox, braze_campaign_id="summer", tags=["visits"])
    says, _ = found_on_page(client)
    assert "it cannot be a counter: send a ttl, or use another name for the tag" in says
    shown = get(client, f"/events/{event}")
    assert "it cannot get a ttl. The tag is that of the campaign's or Canvas's rule" in shown


def test_a_bridge_without_offers_misses_none(make_app: MakeApp) -> None:
    names = ("SESSIONM_CONNECT_URL", "SESSIONM_CONNECT_AUTH", "SESSIONM_RETAILER_ID")
    client = make_app(deliver=True, **dict.fromkeys(names, "")).test_client()
    event = send(client, braze_campaign_id="summer")
    eventually(lambda: state_of(client, event) == "delivered")
    [finding] = about(client, user_id=ALICE)["findings"]
    assert finding.startswith("Nothing is wrong")


def test_messages_that_showed_a_fallback_are_counted_for_all(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    for path in ("tags", "offers"):
        client.get(f"/connected-content/{path}?user_id=cold", headers=bearer("content"))
    seen = words(post(client, "/customers", kind="user_id", id=ALICE))
    assert "In the last 24 hours: 2 of 2 got no answer from SessionM, and 0 asked" in seen
    assert "In the 24 hours before" not in seen
