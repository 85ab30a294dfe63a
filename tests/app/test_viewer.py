"""Keys that may look and change nothing, and the names of those who changed something."""

import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from bridge.sandbox import SandboxServer
from bridge.web.auth import scope_of
from tests.app.test_operator import make_dead, state_of
from tests.conftest import ALICE, MakeApp, bearer, eventually, send

VIEWER, ADMIN = bearer("viewer"), bearer("admin")
# Views by POST that change nothing: a customer's ID belongs in no URL.
LOOKS = {
    "events.search",
    "export.events_as_csv",
    "setup.preview",
    "setup.frame",
    "customers.customers",
}


def test_a_viewer_opens_what_is_looked_at_and_gets_403_for_all_that_changes(
    client: FlaskClient,
) -> None:
    event = send(client, braze_campaign_id="summer")
    paths = ["/", "/dashboard", "/events", f"/events/{event}", "/setup", "/health", "/metrics"]
    for path in [*paths, "/api/events", f"/api/events/{event}", "/batches"]:
        assert client.get(path, headers=VIEWER).status_code == 200, path
    app = client.application
    with app.app_context():
        for rule in app.url_map.iter_rules():
            changing = (rule.methods or set()) & {"POST", "DELETE", "PUT", "PATCH"}
            if changing and scope_of(rule.endpoint) == "viewer":
                assert rule.endpoint in LOOKS
            if not changing or scope_of(rule.endpoint) != "admin":
                continue
            path = rule.rule.replace("<event_id>", event).replace("<batch_id>", "x")
            for method in changing:
                answer = client.open(path, method=method, headers=VIEWER)
                assert answer.status_code == 403, path
                assert answer.get_json()["errors"]["code"] == "wrong_scope"
    assert state_of(client, event) == "queued"


def test_a_viewer_is_offered_no_button(make_app: MakeApp, sandbox: SandboxServer) -> None:
    client = make_app(deliver=True).test_client()
    event = make_dead(client, sandbox, braze_campaign_id="summer")
    for path in ("/dashboard", "/events?state=dead", f"/events/{event}"):
        for headers, offered in ((VIEWER, False), (ADMIN, True)):
            text = client.get(path, headers=headers).text
            buttons = re.findall(r">(Replay|Discard|Pause|Resume)\b", text)
            assert bool(buttons) is offered, (path, buttons)


@pytest.fixture
def log_lines(capfd: pytest.CaptureFixture[str]) -> Any:
    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]

    return read


def test_who_acted_stands_in_the_history_on_health_and_in_the_log(
    make_app: MakeApp, sandbox: SandboxServer, log_lines: Any
) -> None:
    client = make_app(
        deliver=True, BRIDGE_ADMIN_KEYS="test:the-admin-secret,ann:anns-secret"
    ).test_client()
    ann = {"Authorization": "Bearer anns-secret"}
    event = make_dead(client, sandbox, braze_campaign_id="summer")
    client.post("/api/delivery/pause", headers=ann)
    answer = client.get("/health", headers=ADMIN).get_json()
    assert answer["checks"]["delivery"]["by"] == "ann"
    assert "Delivery is paused by hand (ann)." in answer["reasons"]
    assert "paused by hand (ann)" in client.get("/dashboard", headers=ADMIN).text
    client.delete(f"/api/events/{event}", headers=ADMIN)
    client.post(f"/api/events/{event}/replay", headers=ann)
    client.post("/api/delivery/resume", headers=ann)
    eventually(lambda: state_of(client, event) == "delivered")
    story = client.get(f"/api/events/{event}", headers=ADMIN).get_json()["event"]
    assert [(one["action"], one["by"]) for one in story["history"]] == [
        ("discarded", "test"),
        ("replayed", "ann"),
    ]
    assert all(one["at"].startswith("20") for one in story["history"])
    page = client.get(f"/events/{event}", headers=ADMIN).text
    assert "ann" in page
    client.delete(f"/api/cache?user_id={ALICE}", headers=ann)
    acted = {(line["action"], line["by"]) for line in log_lines() if "by" in line}
    assert acted >= {
        ("paused", "ann"),
        ("discarded", "test"),
        ("replayed", "ann"),
        ("resumed", "ann"),
        ("lookups_dropped", "ann"),
    }
