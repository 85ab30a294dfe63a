"""Kill -9 at any instant: nothing accepted is lost, nothing confirmed is counted again."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import requests

from bridge.sandbox import SandboxServer
from tests.commands import Command
from tests.conftest import (
    ALICE,
    MakeService,
    Service,
    bearer,
    environment,
    eventually,
)

ROUNDS = 10
CUSTOMERS = [f"customer-{number}" for number in range(12)]


class Traffic:
    """Braze, which sends an event again and again until it is acknowledged."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self.sent: Counter[str] = Counter()
        self.unexpected: list[int] = []

    @contextmanager
    def running(self, senders: int = 6) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(senders)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                with self._lock:
                    number, self._next = self._next, self._next + 1
                customer = CUSTOMERS[number % len(CUSTOMERS)]
                self._until_acknowledged(session, customer, f"d{number}")
                with self._lock:
                    self.sent[customer] += 1
                time.sleep(0.06)

    def _until_acknowledged(self, session: requests.Session, customer: str, dispatch: str) -> None:
        event = {
            "user_id": customer,
            "braze_campaign_id": "summer",
            "tags": ["visits"],
            "dispatch_id": dispatch,
        }
        while True:
            try:
                answer = session.post(
                    f"{self._service.url}/webhooks/braze",
                    json=event,
                    headers=bearer("webhook"),
                    timeout=20,
                )
            except requests.RequestException:
                time.sleep(0.05)
                continue
            if answer.status_code in {200, 202}:
                return
            if answer.status_code != 503:
                self.unexpected.append(answer.status_code)
                return


@pytest.mark.both_databases
def test_kills_at_random_instants_lose_and_double_nothing(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    for customer in CUSTOMERS:
        sandbox.sandbox.put_customer({"user_id": customer})
    sandbox.sandbox.set_faults({"latency_ms": [1, 40]})
    service = make_service("--workers", "3", "--threads", "8")
    traffic = Traffic(service)
    chance = random.Random()  # noqa: S311 - moments to kill at
    with traffic.running():
        for round_ in range(ROUNDS):
            time.sleep(chance.uniform(0.2, 1.5))
            if round_ % 2:
                service.kill()
                service.start()
            else:
                os.kill(chance.choice(service.workers()), signal.SIGKILL)
    assert traffic.unexpected == []
    assert sum(traffic.sent.values()) > ROUNDS * 10
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0, 90)
    counted = {customer: sandbox.sandbox.tags(customer).get("visits") for customer in CUSTOMERS}
    assert counted == dict(traffic.sent)
    assert service.health()["checks"]["delivery"]["dead"] == 0
    assert all("braze_campaign_summer" in sandbox.sandbox.tags(c) for c in CUSTOMERS)


def test_a_standby_goes_on_at_once_when_the_deliverer_is_killed(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "3")
    pid = eventually(partial(heartbeat, service))
    os.kill(pid, signal.SIGKILL)
    event = {"user_id": ALICE, "braze_campaign_id": "summer", "dispatch_id": "d1"}
    eventually(lambda: is_acknowledged(service, event))
    eventually(lambda: "braze_campaign_summer" in sandbox.sandbox.tags(ALICE), 30)
    assert heartbeat(service) != pid
    lines = map(json.loads, service.log.read_text().splitlines())
    [ended] = [line for line in lines if line.get("action") == "deliverer_ended"]
    assert (ended["level"], ended["message"]) == ("warning", "deliverer ended by SIGKILL")


@pytest.mark.parametrize("workers", [1, 2])
def test_one_child_delivers_and_listens_nowhere_with_any_options_of_gunicorn(
    make_service: MakeService, sandbox: SandboxServer, workers: int
) -> None:
    service = make_service("--workers", str(workers))

    def is_well(listening: int) -> bool:
        try:
            alone = service.deliverers() == [heartbeat(service)]
            return alone and len(service.workers()) == listening
        except (OSError, requests.RequestException):
            # A process has just ended, and its connections with it.
            return False

    eventually(lambda: is_well(workers), 20)
    assert service.process
    before = service.children()
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: not {*before} & {*service.children()} and is_well(workers), 40)
    [pid] = service.deliverers()
    # One worker less.
    service.process.send_signal(signal.SIGTTOU)
    # A worker that ends listens no more for a moment.
    eventually(lambda: is_well(1) and service.deliverers() == [pid], 60)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: service.deliverers() != [pid] and is_well(1), 60)
    service.webhook(user_id=ALICE, braze_campaign_id="summer")
    eventually(lambda: "braze_campaign_summer" in sandbox.sandbox.tags(ALICE), 30)
    # gunicorn writes no line a second time, in its own format.
    assert [line for line in service.log.read_text().splitlines() if line[:1] != "{"] == []


def test_nothing_outlives_a_master_that_was_killed(service: Service) -> None:
    eventually(service.deliverers)
    children = service.children()
    assert len(children) == 3
    assert service.process
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    eventually(lambda: not any(is_running(pid) for pid in children), 30)


def test_a_deliverer_that_is_killed_after_a_mistake_in_the_settings_has_the_old_ones(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    settings = tmp_path / ".env"
    settings.write_text("BRIDGE_MAX_ATTEMPTS=3\n")
    service = make_service("--workers", "1")
    pid = eventually(partial(heartbeat, service))
    settings.write_text("BRIDGE_MAX_ATTEMPTS=soon\n")
    assert service.process
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: "not_reloaded" in service.log.read_text(), 20)
    os.kill(pid, signal.SIGKILL)
    event = {"user_id": ALICE, "braze_campaign_id": "summer", "dispatch_id": "d1"}
    eventually(lambda: is_acknowledged(service, event))
    eventually(lambda: "braze_campaign_summer" in sandbox.sandbox.tags(ALICE), 20)
    assert "Traceback" not in service.log.read_text()


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except OSError:
        return False


def is_acknowledged(service: Service, event: dict[str, str]) -> bool:
    """A connection that waited for the dead worker is reset; Braze comes again."""
    try:
        return service.webhook(**event).status_code in {200, 202}
    except requests.ConnectionError:
        return False


def heartbeat(service: Service) -> int:
    pid: int = service.health()["checks"]["delivery"].get("pid", 0)
    return pid


def test_sigterm_lets_calls_under_way_finish(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"latency_ms": 2000, "match": "POST"})
    service = make_service()
    pid = eventually(partial(heartbeat, service))
    service.webhook(user_id=ALICE, tags=["visits"], dispatch_id="d1")
    eventually(lambda: sandbox.sandbox.counts()["tags_write"] == 1)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 30
    assert sandbox.sandbox.tags(ALICE)["visits"] == 1
    sandbox.sandbox.set_faults({})
    service.start()
    eventually(lambda: heartbeat(service) != pid)
    assert service.health()["checks"]["delivery"]["queued"] == 0
    assert sandbox.sandbox.counts()["tags_write"] == 1


def test_sigterm_ends_within_30_seconds_though_sessionm_hangs(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"hang": 60})
    service = make_service()
    for number in range(5):
        service.webhook(user_id=f"u{number}", braze_campaign_id="summer")
    eventually(lambda: sandbox.sandbox.counts()["tags_write"] >= 5)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 30


def test_a_webhook_that_waits_for_delivery_does_not_hold_up_the_end(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    service = make_service()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(
            requests.post,
            f"{service.url}/webhooks/braze?wait=60",
            json={"user_id": ALICE, "braze_campaign_id": "summer"},
            headers=bearer("webhook"),
            timeout=90,
        )
        eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 1)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 15
        assert waiting.result().status_code == 202


@pytest.fixture
def deliverer(sandbox: SandboxServer, tmp_path: Path) -> Iterator[Command]:
    with Path(os.devnull).open("r+b") as nothing:
        process = Command(
            "deliver",
            env={"PATH": "", **environment(sandbox.url, tmp_path)},
            cwd=tmp_path,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
        )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_bridge_deliver_delivers_while_the_workers_stand_by(
    deliverer: Command,
    make_service: MakeService,
    sandbox: SandboxServer,
    tmp_path: Path,
) -> None:
    # There is no service to ask yet; the folder shows that the loop has begun.
    eventually((tmp_path / "bridge.db").exists)
    service = make_service()
    eventually(lambda: heartbeat(service) == deliverer.pid, 20)
    service.webhook(user_id=ALICE, braze_campaign_id="c1")
    eventually(lambda: "braze_campaign_c1" in sandbox.sandbox.tags(ALICE))
    assert heartbeat(service) == deliverer.pid
    deliverer.terminate()
    assert deliverer.wait(30) == 0
    service.webhook(user_id=ALICE, braze_campaign_id="c2")
    eventually(lambda: "braze_campaign_c2" in sandbox.sandbox.tags(ALICE), 30)
    assert heartbeat(service) != deliverer.pid
