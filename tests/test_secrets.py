"""Nothing secret and no customer's identifier in anything that the service writes or answers."""

import json
from pathlib import Path

import requests

from bridge.sessionm.sandbox import Credentials, SandboxServer
from tests.conftest import ALICE, KEYS, MakeService, bearer, environment, eventually

CUSTOMERS = [ALICE, "loyal-1001", "nobody-at-all", "somebody@example.com"]


def test_a_full_run_writes_no_secret_and_no_identifier(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    service = make_service(BRIDGE_LOG_LEVEL="debug", BRIDGE_LOOKUP_DEADLINE="0.3")
    answers: list[requests.Response] = []

    def work() -> None:
        for customer in CUSTOMERS:
            answers.append(service.webhook(user_id=customer, tags=["n"], dispatch_id=customer))
            answers.append(service.webhook(external_id=customer, braze_campaign_id="c"))
            answers.append(service.webhook(user_id=customer, tags=["bad\n"]))
            for lookup in ("tags", "offers", "customer"):
                answers.append(service.lookup(lookup, user_id=customer))
                answers.append(service.lookup(lookup, external_id=customer, on_error="retry"))
            path = f"{service.url}/priv/v1/apps/bridge/users/{customer}/tags"
            answers.append(requests.get(path, headers=bearer("content"), timeout=9))
            answers.append(requests.get(path, headers=bearer("webhook"), timeout=9))

    work()
    for fault in (
        {"status": 500},
        {"status": 401, "code": "invalid_api_key"},
        {"drop": "reset"},
        {"garbage": True},
    ):
        sandbox.sandbox.set_faults(fault)
        work()
    sandbox.stop()
    work()
    answers.append(requests.get(f"{service.url}/health", headers=bearer("admin"), timeout=9))
    answers.append(requests.get(f"{service.url}/metrics", headers=bearer("admin"), timeout=9))
    answers.append(requests.get(f"{service.url}/openapi.json", timeout=9))
    assert service.stop() == 0

    log = service.log.read_text()
    assert eventually(lambda: log.count("\n") > 50)
    for line in log.splitlines():
        # One event, one line, whatever a stranger sent.
        assert json.loads(line)["action"] or line.startswith("[")
    credentials = Credentials().environment(sandbox.url)
    secret = [
        *KEYS.values(),
        credentials["SESSIONM_CORE_SECRET"],
        credentials["SESSIONM_CORE_KEY"],
        credentials["SESSIONM_CONNECT_AUTH"].partition(":")[2],
    ]
    told = log + "".join(answer.text + str(answer.headers) for answer in answers)
    for word in secret:
        assert word not in told
    for customer in CUSTOMERS:
        assert customer not in log
        # Nor does health repeat of SessionM's errors whom they are about.
        assert all(customer not in answer.text for answer in answers[-3:])
    assert environment(sandbox.url, tmp_path)["BRIDGE_DATABASE_URL"] not in told
