"""What the service writes about each event and each request."""

import json
import os
import signal
from typing import Any

import requests

from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeService, Service, bearer, eventually


def lines(service: Service, **fields: object) -> list[dict[str, Any]]:
    """The lines of the log that have these fields."""
    found = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in found if fields.items() <= line.items()]


def actions(service: Service, event_id: str) -> list[str]:
    return [line["action"] for line in lines(service, event=event_id)]


def admin(service: Service, method: str, path: str) -> requests.Response:
    return requests.request(method, f"{service.url}{path}", headers=bearer("admin"), timeout=10)


def test_an_event_can_be_followed_from_line_to_line(
    service: Service, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503, "times": 1})
    sent = {"user_id": ALICE, "braze_campaign_id": "summer", "dispatch_id": "d1"}
    event = service.webhook(**sent).json()["id"]
    eventually(lambda: actions(service, event) == ["accepted", "retried", "delivered"])
    service.webhook(**sent)
    assert actions(service, event)[-1] == "duplicate"
    (accepted,) = lines(service, action="accepted")
    assert accepted["campaign"] == "summer"
    assert accepted["request"]
    (delivered,) = lines(service, action="delivered")
    assert (delivered["customer"], delivered["status"]) == (accepted["customer"], 200)
    (retried,) = lines(service, action="retried")
    assert (retried["status"], retried["level"]) == (503, "info")


def test_what_an_operator_does_is_logged_event_by_event(
    service: Service, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"ok_error": True, "code": "validation"})
    event = service.webhook(user_id=ALICE, braze_campaign_id="summer").json()["id"]
    eventually(lambda: "dead" in actions(service, event))
    (dead,) = lines(service, action="dead")
    assert dead["level"] == "warning"
    sandbox.sandbox.set_faults({})
    admin(service, "POST", "/api/delivery/pause")
    admin(service, "POST", f"/api/events/{event}/replay")
    admin(service, "DELETE", f"/api/events/{event}")
    admin(service, "POST", "/api/delivery/resume")
    assert actions(service, event) == ["accepted", "dead", "replayed", "discarded"]
    assert lines(service, action="paused")
    assert lines(service, action="resumed")
    refused = service.webhook(user_id=ALICE)
    assert refused.status_code == 422
    (rejected,) = lines(service, action="rejected")
    assert rejected["event"]


def test_delivery_says_why_it_stops_and_when_it_goes_on(
    service: Service, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 401, "code": "invalid_api_key"})
    service.webhook(user_id=ALICE, braze_campaign_id="summer")
    eventually(lambda: lines(service, action="delivery_refused"))
    (refused,) = lines(service, action="delivery_refused")
    assert (refused["level"], "credentials" in refused["reason"]) == ("warning", True)
    sandbox.sandbox.set_faults({})
    eventually(lambda: lines(service, action="delivery_open"), 30)


def requests_of(service: Service) -> list[tuple[str, int]]:
    return [(line["path"], line["status"]) for line in lines(service, action="request")]


def work(service: Service) -> None:
    service.lookup("tags", user_id=ALICE)
    service.lookup("tags", user_id=ALICE)
    path = f"{service.url}/priv/v1/apps/bridge/users/{ALICE}/tags"
    requests.get(path, headers=bearer("content"), timeout=10)
    requests.get(path, timeout=10)


def test_at_debug_there_is_a_line_for_every_request(make_service: MakeService) -> None:
    service = make_service(BRIDGE_LOG_LEVEL="debug")
    work(service)
    route = "/priv/v1/apps/<api_key>/users/<path:customer_id>/tags"
    eventually(lambda: (route, 401) in requests_of(service))
    answer = [one for one in requests_of(service) if one[0] not in {"/readyz", "/healthz"}]
    assert answer == [*[("/connected-content/tags", 200)] * 2, (route, 200), (route, 401)]
    answered, *_ = lines(service, action="request", path="/connected-content/tags")
    assert (answered["key"], answered["method"], answered["level"]) == ("test", "GET", "debug")
    assert answered["milliseconds"] > 0
    assert answered["request"]
    assert ALICE not in service.log.read_text()


def test_at_info_only_refused_requests_have_one(service: Service) -> None:
    work(service)
    eventually(lambda: requests_of(service))
    assert [status for _path, status in requests_of(service)] == [401]
    (refused,) = lines(service, action="request")
    assert 0 < refused["milliseconds"] < 5000


def test_what_gunicorn_says_is_json_too(service: Service) -> None:
    victim = service.workers()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: "SIGKILL" in service.log.read_text())
    (answer,) = [line for line in lines(service) if "SIGKILL" in line["message"]]
    assert (answer["level"], str(victim) in answer["message"]) == ("error", True)


def test_on_request_the_log_is_text(make_service: MakeService) -> None:
    service = make_service(BRIDGE_LOG_FORMAT="text")
    event = service.webhook(user_id=ALICE, braze_campaign_id="summer").json()["id"]
    eventually(lambda: "action=delivered" in service.log.read_text())
    line = next(one for one in service.log.read_text().splitlines() if "=accepted" in one)
    assert f"event={event}" in line
    assert "campaign=summer" in line
    assert " info " in line
