"""Two bridges on one PostgreSQL send messages to Braze: each once, and with the new offer."""

import os
import signal
from collections import Counter
from typing import Any

import requests

from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeService, Service, bearer, eventually

CAMPAIGN = "0d2f6f5e-0000-4000-8000-000000000001"


def post(service: Service, **fields: Any) -> None:
    answer = requests.post(
        f"{service.url}/webhooks/sessionm/message",
        json={"braze_campaign_id": CAMPAIGN, **fields},
        headers=bearer("trigger"),
        timeout=20,
    )
    assert answer.status_code in {200, 202}, answer.text


def test_two_machines_send_each_message_once_and_render_with_the_new_offer(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    machines = [make_service("--workers", "1") for _ in range(2)]
    for number in range(30):
        for machine in machines:
            # SessionM repeats it, to whichever machine.
            post(machine, user_id=f"u{number}", event_id=f"e{number}")
    eventually(lambda: len(sandbox.sandbox.braze.sent()) == 30)

    def titles(machine: Service) -> list[str]:
        found = machine.lookup("offers", user_id=ALICE).json()["offers"]
        return [offer["title"] for offer in found]

    before = [titles(machine) for machine in machines]
    seen: list[list[str]] = []
    # Braze renders while it is being called, and may reach either machine.
    sandbox.sandbox.braze.on_message = lambda _one: seen.extend(titles(m) for m in machines)
    sandbox.sandbox.award(ALICE, {"title": "A new one"})
    post(machines[0], user_id=ALICE)
    eventually(lambda: len(seen) == 2)
    assert seen == [["A new one", *before[0]], ["A new one", *before[1]]]
    sandbox.sandbox.braze.on_message = lambda _one: None
    # The machine that sends dies; the other one takes over.
    pid = machines[0].health()["checks"]["delivery_to_braze"]["pid"]
    os.kill(pid, signal.SIGKILL)
    for number in range(30, 40):
        post(machines[1], user_id=f"u{number}", event_id=f"e{number}")
    eventually(lambda: len(sandbox.sandbox.braze.sent()) == 41, 90)
    sent = Counter(one["recipient"]["external_user_id"] for one in sandbox.sandbox.braze.sent())
    assert max(sent.values()) == 1
