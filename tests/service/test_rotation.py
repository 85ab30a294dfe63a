"""Every secret is changed while Braze goes on sending, and nothing is lost or counted twice."""

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import requests

from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeService, Service, eventually

SECRETS = (
    "BRIDGE_WEBHOOK_KEYS",
    "BRIDGE_CONTENT_KEYS",
    "BRIDGE_ADMIN_KEYS",
    "SESSIONM_CORE_SECRET",
    "SESSIONM_CONNECT_AUTH",
)


class Braze(threading.Thread):
    """Sends webhooks one after the other, and like Braze tries again what is not acknowledged."""

    def __init__(self, service: Service, key: str) -> None:
        super().__init__()
        self.key = key
        self.accepted = 0
        self.statuses: Counter[int] = Counter()
        self.ending = threading.Event()
        self._service = service

    def run(self) -> None:
        while not self.ending.is_set():
            self._send(f"dispatch-{self.accepted}")
            self.accepted += 1

    def _send(self, dispatch_id: str) -> None:
        body = {"user_id": ALICE, "tags": ["counted"], "dispatch_id": dispatch_id}
        while True:
            headers = {"Authorization": f"Bearer {self.key}"}
            try:
                answer = requests.post(
                    f"{self._service.url}/webhooks/braze", json=body, headers=headers, timeout=20
                )
            except requests.ConnectionError:
                # A worker that ended had it in its hands; Braze comes again.
                time.sleep(0.05)
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code in {200, 202}:
                return
            time.sleep(0.05)


def status(service: Service, path: str, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    try:
        return requests.get(f"{service.url}{path}", headers=headers, timeout=20).status_code
    except requests.ConnectionError:
        return 0


def test_each_secret_is_rotated_under_load(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    files = {name: tmp_path / name.lower() for name in SECRETS}
    first = sandbox.sandbox.credentials
    files["BRIDGE_WEBHOOK_KEYS"].write_text("braze:webhook-old\n")
    files["BRIDGE_CONTENT_KEYS"].write_text("braze:content-old\n")
    files["BRIDGE_ADMIN_KEYS"].write_text("ops:admin-old\n")
    files["SESSIONM_CORE_SECRET"].write_text(first.core_secret)
    files["SESSIONM_CONNECT_AUTH"].write_text(f"{first.connect_user}:{first.connect_password}")
    settings = dict.fromkeys(SECRETS, "") | {f"{name}_FILE": str(files[name]) for name in SECRETS}
    service = make_service(**settings)

    def reload() -> None:
        assert service.process
        os.kill(service.process.pid, signal.SIGHUP)

    braze = Braze(service, "webhook-old")
    braze.start()
    try:
        # Both keys of each scope, then the callers change over, then the new ones alone.
        for old, new in (("", "braze-2:webhook-new,"), ("braze:webhook-old", "")):
            for scope in ("webhook", "content", "admin"):
                file = files[f"BRIDGE_{scope.upper()}_KEYS"]
                name = "ops" if scope == "admin" else "braze"
                both = f"{name}-2:{scope}-new,{name}:{scope}-old\n"
                file.write_text(f"{name}-2:{scope}-new\n" if old else both)
            reload()
            wanted = (401, 200) if old else (200, 200)
            for path, scope in (
                ("/health", "admin"),
                (f"/connected-content/tags?user_id={ALICE}", "content"),
            ):
                # All workers, not the one that answers first.
                eventually(
                    lambda path=path, scope=scope, wanted=wanted: all(  # type: ignore[misc]
                        (
                            status(service, path, f"{scope}-old"),
                            status(service, path, f"{scope}-new"),
                        )
                        == wanted
                        for _ in range(6)
                    ),
                    40,
                )
            assert new or braze.key == "webhook-new"
            braze.key = "webhook-new"
        # SessionM's own: it takes the new ones only; until the reload delivery waits.
        sandbox.sandbox.credentials = replace(
            first, core_secret="core-new", connect_password="connect-new"
        )
        eventually(lambda: paused(service), 30)
        files["SESSIONM_CORE_SECRET"].write_text("core-new")
        files["SESSIONM_CONNECT_AUTH"].write_text(f"{first.connect_user}:connect-new")
        reload()
        eventually(lambda: not paused(service), 40)
        # A file that is wrong changes nothing.
        files["BRIDGE_WEBHOOK_KEYS"].write_text("no colon")
        reload()
        eventually(lambda: "not_reloaded" in service.log.read_text(), 20)
    finally:
        braze.ending.set()
        braze.join(60)
    assert set(braze.statuses) <= {200, 202}
    # Counters of one customer go out one by one: on a busy machine late, but each of them.
    eventually(lambda: sandbox.sandbox.tags(ALICE).get("counted") == braze.accepted, 180)
    assert braze.accepted > 50
    headers = {"Authorization": "Bearer content-new"}
    offers = f"{service.url}/connected-content/offers?user_id={ALICE}"
    assert requests.get(offers, headers=headers, timeout=20).json()["status"] == "ok"
    for secret in ("webhook-old", "webhook-new", "core-new", "connect-new", "no colon"):
        assert secret not in service.log.read_text()


def paused(service: Service) -> bool:
    headers = {"Authorization": "Bearer admin-new"}
    try:
        answer = requests.get(f"{service.url}/health", headers=headers, timeout=20).json()
    except requests.ConnectionError:
        return False
    return bool(answer["checks"]["delivery"]["state"] == "paused")
