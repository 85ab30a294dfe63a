"""The pages without a browser: headers, doors, forms, and what stands on them."""

import base64
import os
import re
import socket
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from tests.app.test_batches import Bridge
from tests.app.test_operator import make_dead, state_of
from tests.conftest import ALICE, KEYS, MakeApp, bearer, eventually, send

ADMIN = bearer("admin")
PAGES = ["/", "/dashboard", "/dashboard?span=day", "/events", "/setup", "/delivery/pause"]
FROM_ELSEWHERE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:81"},
    {"Origin": "http://[bad"},
]
FROM_HERE: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
]


def get(client: FlaskClient, path: str) -> str:
    """The words of a page that must be there."""
    answer = client.get(path, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return words(answer)


def words(answer: TestResponse) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


def post(client: FlaskClient, path: str, **form: str) -> TestResponse:
    return client.post(path, data=form, headers=ADMIN)


# --- The frame --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_a_browser_is_asked_for_a_key_and_keeps_nothing(client: FlaskClient, path: str) -> None:
    asked = client.get(path)
    assert asked.status_code == 401
    assert asked.headers["WWW-Authenticate"].startswith("Basic ")
    token = base64.b64encode(f"test:{KEYS['admin']}".encode()).decode()
    answer = client.get(path, headers={"Authorization": f"Basic {token}"})
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("path", PAGES)
def test_nothing_on_a_page_is_inline_or_from_elsewhere(client: FlaskClient, path: str) -> None:
    text = client.get(path, headers=ADMIN).text
    assert not re.search(r"<style|<script(?! src=)|\sstyle=|\son[a-z]+=", text)
    fetched = re.findall(r'<(?:link|script|img)[^>]*(?:href|src)="([^"]*)"', text)
    assert fetched
    for address in fetched:
        answer = client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]


def test_an_old_address_of_an_asset_is_not_kept(client: FlaskClient) -> None:
    answer = client.get("/assets/style.css?v=old")
    assert answer.headers["Cache-Control"] == "no-cache"
    again = client.get("/assets/style.css", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert client.get("/assets/frame.html").status_code == 404


def test_answers_of_the_admin_api_are_not_kept_either(client: FlaskClient) -> None:
    for path in ("/api/events", "/health", "/api/events/nonsense"):
        assert client.get(path, headers=ADMIN).headers["Cache-Control"] == "no-store"
    content = client.get(f"/connected-content/tags?user_id={ALICE}", headers=bearer("content"))
    assert "Content-Security-Policy" not in content.headers


# --- Cross-site requests ----------------------------------------------------------------------

CHANGES: list[tuple[str, str]] = [
    ("POST", "/api/delivery/pause"),
    ("POST", "/api/events/replay"),
    ("POST", "/api/events/x/replay"),
    ("DELETE", "/api/events/x"),
    ("DELETE", f"/api/cache?user_id={ALICE}"),
    ("POST", "/delivery/pause"),
    ("POST", "/events/x/discard"),
    ("POST", "/events/discard-all"),
    ("POST", "/setup"),
    ("POST", "/webhooks/braze"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_another_site_changes_nothing(client: FlaskClient, method: str, path: str) -> None:
    key = bearer("webhook") if path.startswith("/webhooks") else ADMIN
    for headers in FROM_ELSEWHERE:
        answer = client.open(path, method=method, headers={**key, **headers})
        assert answer.status_code == 403, headers
        assert answer.get_json()["errors"]["code"] == "cross_site"
    for headers in FROM_HERE:
        answer = client.open(path, method=method, headers={**key, **headers})
        assert answer.status_code != 403, headers


def test_a_page_behind_a_proxy_may_change_what_its_own_address_shows(make_app: MakeApp) -> None:
    client = make_app(BRIDGE_TRUSTED_PROXIES="1").test_client()
    through = {"X-Forwarded-Host": "bridge.example", "X-Forwarded-Proto": "https", **ADMIN}
    origin = {"Origin": "https://bridge.example"}
    assert client.post("/delivery/pause", headers={**through, **origin}).status_code == 303
    assert client.post("/delivery/pause", headers={**ADMIN, **origin}).status_code == 403


# --- Dashboard --------------------------------------------------------------------------------


def test_the_dashboard_of_a_new_bridge_says_what_to_do_first(make_app: MakeApp) -> None:
    client = make_app(deliver=True).test_client()
    eventually(lambda: "Healthy" in get(client, "/dashboard"))
    assert "SessionM: no calls yet." in get(client, "/")
    assert "SessionM is well" not in get(client, "/")
    assert "No campaign has called yet" in get(client, "/")


def test_the_dashboard_shows_what_is_dead_and_of_which_campaign(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[campaigns.summer]\nname = "Summer promotion"\n')
    client = make_app(deliver=True, BRIDGE_RULES=str(rules)).test_client()
    make_dead(client, sandbox, braze_campaign_id="summer")
    delivered = send(client, braze_canvas_id="welcome")
    eventually(lambda: state_of(client, delivered) == "delivered")
    answer = get(client, "/dashboard")
    assert "Degraded" in answer
    assert "1 write is dead" in answer
    assert "Summer promotion 1 0 0 ✕ 1" in answer
    assert "welcome Canvas 1 0 1 0" in answer


def test_a_campaign_with_rejected_events_counts_as_failing(client: FlaskClient) -> None:
    for number in range(3):
        event = send(client, braze_campaign_id="busy", user_id=f"u{number}")
    client.delete(f"/api/events/{event}", headers=ADMIN)
    send(client, braze_campaign_id="summer")
    for campaign in ("summer", "winter"):
        bad = {"user_id": ALICE, "braze_campaign_id": campaign, "ttl": "soon"}
        client.post("/webhooks/braze", json=bad, headers=bearer("webhook"))
    body = get(client, "/dashboard")
    assert "Dead Expired Discarded Rejected" in body
    rows = r"summer 1 1 0 0 0 0 ⊘ 1 \S+ .*winter 0 0 0 0 0 0 ⊘ 1 .*busy 3 2 0 0 0 1 0 "
    assert re.search(rows, body)
    first = get(client, "/dashboard?sort=discarded")
    assert first.index("busy 3") < first.index("summer 1")
    assert "Accepted" not in get(client, "/campaigns/winter")
    assert "Why events were rejected 1 ttl" in get(client, "/campaigns/winter")


def test_the_dashboard_still_shows_itself_without_a_store(
    make_app: MakeApp, tmp_path: Path
) -> None:
    client = make_app().test_client()
    for file in tmp_path.glob("bridge.db*"):
        if not file.name.startswith("bridge.db."):
            file.unlink()
    (tmp_path / "bridge.db").write_text("no database at all, but long enough to be read" * 90)
    answer = client.get("/dashboard", headers=ADMIN)
    assert answer.status_code == 503
    assert "Down" in words(answer)
    assert "answered 503" in words(answer)
    for path in ("/events", "/events/x"):
        gone = client.get(path, headers={**ADMIN, "Accept": "text/html"})
        assert gone.status_code == 503
        assert gone.mimetype == "text/html"
        assert "Braze sends again what was not" in words(gone)


def test_the_dashboard_shows_the_deliverer_and_that_writes_wait_for_customers(
    make_app: MakeApp,
) -> None:
    client = make_app(deliver=True).test_client()
    send(client, user_id="not-there-yet", braze_campaign_id="summer")
    waits = "waiting for its customer to be created"
    answer = eventually(lambda: page if waits in (page := get(client, "/dashboard")) else "")
    assert f"process {os.getpid()} on {socket.gethostname()}" in answer


def test_the_oldest_is_shown_with_what_it_leaves_out(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(deliver=True)
    client = app.test_client()
    send(client, user_id="not-there-yet", braze_campaign_id="summer")
    eventually(lambda: parts_of(app).store.backlog().waits_for_customers)
    alone = "created in SessionM, the oldest for [0-9.]+ m?s"
    eventually(lambda: re.search(alone, get(client, "/dashboard")))
    sandbox.sandbox.set_faults({"hang": 60, "match": "POST"})
    send(client, braze_campaign_id="summer")
    left_out = r"not counting 1 write that waits for a customer to be created \([0-9.]+ m?s\)"
    both = rf"Oldest: [0-9.]+ m?s, {left_out}; done in"
    eventually(lambda: re.search(both, get(client, "/dashboard")))


def test_accepted_means_the_same_in_plot_and_table(make_app: MakeApp) -> None:
    client = make_app(deliver=True).test_client()
    send(client, braze_campaign_id="summer")
    message = {"braze_campaign_id": "award", "user_id": ALICE, "user_offer_id": "1"}
    client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))
    eventually(lambda: "accepted 2 delivered 2" in get(client, "/dashboard"))
    answer = get(client, "/dashboard")
    assert "Webhooks and messages a minute" in answer
    assert "Webhooks and messages of all time, test sends included · 2 of 2" in answer
    assert "award 1 0 1 0" in answer
    assert "summer 1 0 1 0" in answer
    off = make_app(BRAZE_REST_URL="", BRAZE_REST_KEY="", BRIDGE_TRIGGER_KEYS="").test_client()
    assert "Webhooks a minute" in get(off, "/dashboard")


def test_a_message_that_braze_has_accepted_is_not_called_delivered(make_app: MakeApp) -> None:
    client = make_app(deliver=True).test_client()
    message = {"braze_campaign_id": "award", "user_id": ALICE, "user_offer_id": "1"}
    answer = client.post("/webhooks/sessionm/message", json=message, headers=bearer("trigger"))
    event = answer.get_json()["id"]
    eventually(lambda: state_of(client, event) == "delivered")
    body = get(client, f"/events/{event}")
    assert "State ✓ accepted by Braze" in body
    assert "Whether the customer got it is in Braze" in body
    assert "delivered" not in body
    assert "→ to Braze ✓ accepted by Braze award" in get(client, "/events")
    assert "whether customers got them is in Braze's analytics" in get(client, "/campaigns/award")


def test_a_canvas_is_not_called_a_campaign(client: FlaskClient) -> None:
    send(client, braze_canvas_id="welcome")
    assert "Canvas Canvas, API identifier welcome" in get(client, "/campaigns/welcome")
    send(client, braze_campaign_id="summer")
    assert "Campaign Campaign, API identifier summer" in get(client, "/campaigns/summer")


def test_a_customers_offers_are_in_the_order_of_her_messages(client: FlaskClient) -> None:
    answer = client.get(f"/connected-content/offers?user_id={ALICE}", headers=bearer("content"))
    titles = [offer["title"] for offer in answer.get_json()["offers"]]
    body = words(post(client, "/customers", kind="user_id", id=ALICE))
    assert sorted(titles, key=body.index) == titles
    assert "in SessionM's order" in body


def test_delivery_is_paused_and_resumed_after_a_question(make_app: MakeApp) -> None:
    client = make_app(deliver=True).test_client()
    assert "Pause delivery?" in get(client, "/delivery/pause")
    assert post(client, "/delivery/pause").headers["Location"] == "/dashboard"
    assert "paused by hand" in get(client, "/dashboard")
    event = send(client, braze_campaign_id="summer")
    post(client, "/delivery/resume")
    eventually(lambda: state_of(client, event) == "delivered")


def test_failing_campaigns_come_first_then_the_busiest(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    make_dead(client, sandbox, braze_campaign_id="failing")
    for number in range(21):
        send(client, user_id=f"u{number}", braze_campaign_id=f"other-{number:02}")
    send(client, user_id="u", braze_campaign_id="other-13")
    answer = get(client, "/dashboard")
    assert "20 of 22" in answer
    assert answer.index("failing 1 0 0 ✕ 1") < answer.index("other-13") < answer.index("other-00")
    assert "other-20" not in answer
    assert "1 of 1" in get(client, "/dashboard?find=OTHER-20")
    assert "No name and no ID holds “nothing”" in get(client, "/dashboard?find=nothing")
    assert get(client, "/dashboard?sort=name").index("failing") < answer.index("other-00")


def test_the_dashboard_says_when_the_backlog_is_done(make_app: MakeApp) -> None:
    client = make_app(deliver=True, BRIDGE_SESSIONM_RPS="1").test_client()
    eventually(lambda: "Healthy" in get(client, "/dashboard"))
    for number in range(30):
        send(client, user_id=ALICE, braze_campaign_id=f"c{number}", ttl=1000 + number, tags=["a"])
    answer = get(client, "/dashboard")
    assert re.search(r"done in about \d+ s at 1 a second", answer), answer
    client.post("/api/delivery/pause", headers=ADMIN)
    assert "nothing goes out now" in get(client, "/dashboard")


@pytest.mark.parametrize("span", ["hour", "day", "week", "month"])
def test_every_span_has_its_plots(client: FlaskClient, span: str) -> None:
    text = client.get(f"/dashboard?span={span}", headers=ADMIN).text
    assert text.count("data-plot") == 4
    assert 40 <= text.count('class="column"') / 4 <= 120


# --- Events -----------------------------------------------------------------------------------


def test_a_search_for_a_customer_puts_nothing_into_the_address(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer")
    send(client, user_id="somebody-else", braze_campaign_id="winter")
    found = post(client, "/events", customer=ALICE)
    assert found.status_code == 200
    assert "summer" in words(found)
    assert "winter" not in words(found)
    for link in re.findall('href="([^"]*)"', found.text):
        assert ALICE not in link
    without = post(client, "/events", customer="", state="queued", campaign="winter")
    assert without.headers["Location"] == "/events?state=queued&campaign=winter"
    assert "somebody-else" in get(client, "/events?state=queued&campaign=winter")


@pytest.mark.parametrize("filters", [{}, {"customer": ALICE}])
def test_older_events_are_a_page_away(client: FlaskClient, filters: dict[str, str]) -> None:
    for number in range(60):
        send(client, braze_campaign_id=f"campaign-{number:02}")
        if number == 9:
            # The last of the second page: events of one millisecond have no order.
            at = time.time()
            eventually(lambda at=at: time.time() > at + 0.001)  # type: ignore[misc]
    first = post(client, "/events", **filters) if filters else client.get("/events", headers=ADMIN)
    assert "campaign-59" in first.text
    assert "campaign-09" not in first.text
    if filters:
        [before] = re.findall('name="before" value="([^"]*)"', first.text)
        second = post(client, "/events", before=before, **filters)
    else:
        [link] = re.findall('href="([^"]*)" rel="next"', first.text)
        second = client.get(link, headers=ADMIN)
    shown = set(re.findall(r"campaign-\d\d", second.text))
    assert shown == {f"campaign-{number:02}" for number in range(10)}


def test_a_filter_without_meaning_is_named_on_the_page(client: FlaskClient) -> None:
    for path, problem in (
        ("/events?state=happy", "State: must be one of"),
        ("/events?since=yesterday", "Since: for example 2h, 7d or 2026-12-01."),
    ):
        answer = client.get(path, headers=ADMIN)
        assert answer.status_code == 400
        assert problem in words(answer)
        assert 'aria-invalid="true" aria-describedby="problem" autofocus' in answer.text
    assert "Set up a webhook in Braze" in get(client, "/events?uncertain=1")


def test_an_empty_search_helps_on(client: FlaskClient) -> None:
    assert "Set up a webhook in Braze" in get(client, "/events")
    assert "replay or discard" in get(client, "/events?state=dead")
    assert "No campaign and no Canvas has this name or ID" in get(client, "/events?campaign=Summer")


def test_events_are_found_by_the_name_of_their_campaign(make_app: MakeApp, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[canvases.c3]\nname = "Winter welcome"\n')
    client = make_app(BRIDGE_RULES=str(rules)).test_client()
    for number, season in ((1, "Autumn"), (2, "Winter")):
        send(client, braze_campaign_id=f"c{number}", campaign_name=f"{season} sale")
    send(client, braze_canvas_id="c3")
    found = client.get("/events?campaign=autumn", headers=ADMIN)
    assert "Autumn sale" in words(found)
    assert "Winter sale" not in words(found)
    # What is done with all of them is done by the ID.
    assert "/events.csv?campaign=c1" in found.text
    assert "1 event, newest" in words(post(client, "/events", campaign="welcome", customer=ALICE))
    several = post(client, "/events", campaign="winter", customer=ALICE)
    assert "Which one? Winter sale Winter welcome" in words(several)
    assert f'name="customer" value="{ALICE}"' in several.text
    # An ID that is known is not taken for a name.
    send(client, braze_campaign_id="winter")
    assert "1 event, newest" in get(client, "/events?campaign=winter")
    assert "Nothing is dead here" in get(client, "/events?campaign=winter&state=dead")


def test_the_filter_of_states_uses_the_words_of_the_list(client: FlaskClient) -> None:
    assert "queued delivered or accepted by Braze expired" in get(client, "/events")
    body = get(client, "/events?direction=to_braze")
    assert "queued accepted by Braze expired" in body


def test_a_customer_is_a_click_away_from_the_list(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer")
    listed = client.get("/events", headers=ADMIN).text
    [form] = re.findall(r'<form method="post" action="/customers">.*?</form>', listed)
    shown = post(client, "/customers", **dict(re.findall(r'name="(\w+)" value="([^"]*)"', form)))
    assert "Last events" in words(shown)
    assert ALICE in shown.text


def test_one_event_is_shown_whole(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[campaigns.summer]\nname = "Summer promotion"\ntags = ["promo"]\nttl = "14d"')
    client = make_app(deliver=True, BRIDGE_RULES=str(rules)).test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer")
    answer = get(client, f"/events/{event}")
    assert "ttl of its own" not in answer
    short = send(client, braze_campaign_id="summer", ttl="12h")
    says = "The webhook has a ttl of its own, 12 h: it wins over the times below."
    assert says in get(client, f"/events/{short}")
    for word in ("Summer promotion", "promo", "14 d", "✕ dead", "VALIDATION", "refused", ALICE):
        assert word in answer
    assert '"braze_campaign_id": "summer"' in answer
    unknown = client.get("/events/nonsense", headers={**ADMIN, "Accept": "text/html"})
    assert (unknown.status_code, unknown.mimetype) == (404, "text/html")


def test_a_rejected_webhook_says_why_on_its_page(client: FlaskClient) -> None:
    client.post(
        "/webhooks/braze",
        json={"user_id": "{{${user_id}}}", "braze_campaign_id": "summer"},
        headers=bearer("webhook"),
    )
    [event] = client.get("/api/events", headers=ADMIN).get_json()["events"]
    assert "still holds a placeholder" in get(client, "/events?state=rejected")
    answer = get(client, f"/events/{event['id']}")
    assert "Why it was rejected user_id still holds a placeholder" in answer
    for word in ("Campaign summer", "Customer none that can be read", "Rules that would apply"):
        assert word in answer
    again = post(client, f"/events/{event['id']}/replay")
    assert again.status_code == 409
    assert "still holds a placeholder" in words(again)


@pytest.mark.parametrize(
    ("body", "indented"),
    [
        (
            '\n{"user_id":"u1","user_id":"u2", "points":1E2,"a":[{},"\\u00e9:{"]}',
            """{
  "user_id": "u1",
  "user_id": "u2",
  "points": 1E2,
  "a": [
    {},
    "\\u00e9:{"
  ]
}""",
        ),
        (f'{{"a":{"[" * 280}{",".join("1" * 120_000)}{"]" * 280}}}', ""),
    ],
)
def test_the_body_of_an_event_is_shown_as_it_came(
    client: FlaskClient, body: str, indented: str
) -> None:
    client.post("/webhooks/braze", data=body, headers=bearer("webhook"))
    [event] = client.get("/api/events", headers=ADMIN).get_json()["events"]
    page = client.get(f"/events/{event['id']}", headers=ADMIN).text
    shown = [unescape(one) for one in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]
    # HTML drops the first line end of a `pre`.
    assert shown == [f"\n{body}", *([indented] if indented else [])]


def test_one_event_is_replayed_and_discarded_after_a_question(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    first, second = (make_dead(client, sandbox, braze_campaign_id="summer") for _ in range(2))
    assert "Replay this event?" in get(client, f"/events/{first}/replay")
    assert state_of(client, first) == "dead"
    assert post(client, f"/events/{first}/replay").status_code == 303
    eventually(lambda: state_of(client, first) == "delivered")
    assert post(client, f"/events/{second}/discard").status_code == 303
    assert state_of(client, second) == "discarded"
    assert post(client, f"/events/{second}/discard").status_code == 409
    assert post(client, "/events/nonsense/replay").status_code == 404


@pytest.mark.parametrize(("order", "state"), [("replay", "delivered"), ("discard", "discarded")])
def test_many_events_are_counted_before_anything_happens(
    make_app: MakeApp, sandbox: SandboxServer, order: str, state: str
) -> None:
    client = make_app(deliver=True).test_client()
    dead = [make_dead(client, sandbox, braze_campaign_id="summer") for _ in range(3)]
    other = make_dead(client, sandbox, braze_campaign_id="winter")
    wanted = {"state": "dead", "campaign": "summer", "since": "1h"}
    asked = post(client, f"/events/{order}-all", **wanted)
    assert f"{order.capitalize()} 3 dead events?" in words(asked)
    # What destroys nothing has the first focus.
    focused = "Cancel" if order == "discard" else "Replay 3"
    assert re.search(rf"autofocus>{focused}<", asked.text)
    assert re.search(r'href="/events\?[^"]*campaign=summer[^"]*"[^>]*>Cancel', asked.text)
    begun = post(client, f"/events/{order}-all", origin="dashboard", **wanted)
    assert re.search('href="/dashboard"[^>]*>Cancel', begun.text)
    assert state_of(client, dead[0]) == "dead"
    given = dict(re.findall('type="hidden" name="([^"]*)" value="([^"]*)"', asked.text))
    # So that what is done is what was counted.
    assert given["since"].endswith("Z")
    done = post(client, f"/events/{order}-all", **given)
    assert "3 of 3" in words(done)
    for event in dead:
        eventually(lambda event=event: state_of(client, event) == state)  # type: ignore[misc]
    assert state_of(client, other) == "dead"
    assert "No dead event" in words(post(client, f"/events/{order}-all", **wanted))
    for since in ("0001-01-01T00:00:00+02:00", "1900-01-01"):
        assert post(client, f"/events/{order}-all", since=since).status_code == 200


def test_the_dashboard_lists_batch_jobs_where_there_are_any(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True, BRIDGE_PUBLIC_URL="https://bridge.invalid").test_client()
    assert "Batch jobs" not in get(client, "/dashboard")
    sandbox.sandbox.set_faults({"status": 400, "match": "batch/tags"})
    nasty = "<script>alert(1)</script>"
    sent = client.post(
        "/batches",
        query_string={"tag": "gold", "name": nasty},
        data=f"user_id\n{ALICE}\n{ALICE} \nnot\x00one\n",
        content_type="text/csv",
        headers=ADMIN,
    )
    assert sent.status_code == 202, sent.text
    batch = sent.get_json()["id"]
    eventually(lambda: "✕ failed" in get(client, "/dashboard"))
    answer = get(client, "/dashboard")
    assert f"bridge batch resubmit {batch}" in answer
    assert "1 batch needs a person" in answer
    assert nasty in answer
    assert nasty not in client.get("/dashboard", headers=ADMIN).text


@pytest.mark.parametrize(
    ("number", "expected"), [(1, " 1 event, newest"), (2, " 2 events, newest")]
)
def test_one_event_is_not_counted_as_several(
    client: FlaskClient, number: int, expected: str
) -> None:
    for _ in range(number):
        send(client, braze_campaign_id="c")
    assert expected in get(client, "/events")


def test_the_dashboard_shows_failed_rows_apart_from_refused_ones(make_app: MakeApp) -> None:
    bridge = Bridge(make_app).start()
    bridge.submit("user_id,x\nstranger-1,\nstranger-2,\n,\n", tag="gold", ttl="1d")
    eventually(lambda: "! completed" in get(bridge.client, "/dashboard"))
    answer = get(bridge.client, "/dashboard")
    assert "Rows Done Failed Refused Begun" in answer
    assert "it may not know these customers by user_id 2 0 ✕ 2 1" in answer
    bridge.close()


def test_every_word_of_a_stranger_is_escaped(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    nasty = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
    rules = tmp_path / "rules.toml"
    rules.write_text(f"[campaigns.summer]\nname = '''{nasty}'''\ncounters = ['''{nasty}''']\n")
    client = make_app(deliver=True, BRIDGE_RULES=str(rules)).test_client()
    sandbox.sandbox.set_faults({"ok_error": True, "code": nasty, "match": "POST"})
    fields: list[dict[str, Any]] = [
        {"braze_campaign_id": "summer"},
        {"braze_campaign_id": nasty, "user_id": nasty},
        {"braze_canvas_id": nasty, "tags": [nasty]},
    ]
    events = [send(client, **one) for one in fields]
    client.post("/webhooks/braze", data=nasty, headers=bearer("webhook"))
    for event in events:
        eventually(lambda event=event: state_of(client, event) == "dead")  # type: ignore[misc]
    paths = ["/dashboard", "/events", "/setup", *(f"/events/{event}" for event in events)]
    answers = [client.get(path, headers=ADMIN) for path in paths]
    answers.append(post(client, "/events", customer=nasty))
    answers.append(post(client, "/setup", source=nasty, customer=nasty, first_name=nasty))
    answers.append(client.get("/events", query_string={"state": nasty}, headers=ADMIN))
    for answer in answers:
        assert "<script>alert" not in answer.text
        assert "<img src=x" not in answer.text
    assert any("&lt;script&gt;alert" in answer.text for answer in answers)
