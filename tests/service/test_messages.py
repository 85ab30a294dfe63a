"""Messages to Braze through a real service: in time, through kill -9, and with the new offer."""

import os
import signal
import statistics
import time
from collections import Counter
from typing import Any

import requests

from bridge.sandbox import SandboxServer
from tests.conftest import MakeService, Service, bearer, eventually

CAMPAIGN = "0d2f6f5e-0000-4000-8000-000000000001"


def post(service: Service, **fields: Any) -> requests.Response:
    """Send a message as SessionM does: again until it is answered."""
    while True:
        try:
            answer = requests.post(
                f"{service.url}/webhooks/sessionm/message",
                json={"braze_campaign_id": CAMPAIGN, **fields},
                headers=bearer("trigger"),
                timeout=20,
            )
        except requests.RequestException:
            time.sleep(0.05)
            continue
        if answer.status_code != 503:
            return answer


def state_of(service: Service, event_id: str) -> tuple[str, bool]:
    """The state of an event, and whether one of its messages is uncertain."""
    path = f"{service.url}/api/events/{event_id}"
    event = requests.get(path, headers=bearer("admin"), timeout=20).json()["event"]
    return event["state"], any(write["uncertain"] for write in event["writes"])


def test_kill_9_sends_nothing_twice_and_forgets_nothing(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    # Long enough that calls are under way whenever the process dies.
    sandbox.sandbox.set_faults({"latency_ms": 150, "where": "braze"})
    service = make_service("--workers", "1", BRAZE_RPS="50")
    events: dict[str, str] = {}
    for number in range(60):
        user = f"u{number}"
        answer = post(service, user_id=user, event_id=f"e{number}", wait=0)
        assert answer.status_code in {200, 202}
        events[user] = answer.json()["id"]
        if number % 20 == 15:
            [deliverer] = eventually(service.deliverers)
            os.kill(deliverer, signal.SIGKILL)
    ended = eventually(
        lambda: all(state_of(service, one)[0] in {"delivered", "dead"} for one in events.values()),
        60,
    )
    assert ended
    sent = Counter(one["recipient"]["external_user_id"] for one in sandbox.sandbox.braze.sent())
    assert max(sent.values()) == 1
    for user, event in events.items():
        state, uncertain = state_of(service, event)
        # What was cut off is not sent again: it is dead, and says that it is uncertain.
        assert (state == "delivered" and sent[user] == 1) or (state == "dead" and uncertain)
    # The rest was accepted after the last kill.
    assert all(sent[f"u{number}"] == 1 for number in range(56, 60))


def test_a_message_is_at_braze_soon(make_service: MakeService, sandbox: SandboxServer) -> None:
    service = make_service("--workers", "1")
    post(service, user_id="first")
    eventually(sandbox.sandbox.braze.sent)
    took = []
    for number in range(15):
        accepted_at = time.time()
        assert post(service, user_id=f"u{number}", event_id=str(number)).status_code == 202
        [call] = eventually(
            lambda number=number: [  # type: ignore[misc]
                one
                for one in sandbox.sandbox.calls(match="/trigger/send$")
                if f'u{number}"' in str(one["body"]).replace("'", '"')
            ]
        )
        took.append(call["at"] - accepted_at)
    # 200 ms on a quiet machine; tests share theirs.
    assert statistics.median(took) < 1


def test_the_event_loop_answers_as_flask_does(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "1")
    accepted = post(service, user_id="u", title="x")
    assert (accepted.status_code, accepted.json()["sends"]) == (202, [{"campaign_id": CAMPAIGN}])
    assert post(service, user_id="u", title="x").json()["status"] == "duplicate"
    refused = post(service, user_id="u", title="{{x}}")
    assert (refused.status_code, refused.json()["errors"]["code"]) == (422, "invalid_field")
    other_key = requests.post(
        f"{service.url}/webhooks/sessionm/message", json={}, headers=bearer("webhook"), timeout=20
    )
    assert other_key.status_code == 403
    eventually(lambda: len(sandbox.sandbox.braze.sent()) == 1)


def test_the_log_names_no_customer_and_no_key(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.braze.replace({"refused": ["zoe.somebody@example.com"]})
    service = make_service("--workers", "1")
    event = post(service, email="zoe.somebody@example.com", name="Zoë").json()["id"]
    eventually(lambda: state_of(service, event)[0] == "dead")
    log = service.log.read_text()
    assert event in log
    assert "zoe.somebody" not in log
    assert sandbox.sandbox.credentials.braze_key not in log
    story = requests.get(
        f"{service.url}/api/events/{event}", headers=bearer("admin"), timeout=20
    ).json()["event"]
    # The event itself says why.
    assert "zoe.somebody" in story["reason"]
    assert story["customer"] == {"email": "zoe.somebody@example.com"}
