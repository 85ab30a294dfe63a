"""Random faults between bridge and SessionM, one after another: nothing lost, nothing doubled.

``SOAK_SECONDS=720`` makes it last for twelve minutes, with a fault every 20 s.
"""

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Self

import requests

from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.conftest import MakeService, Service, bearer, eventually
from tests.network import UNWELL, Disturb, Passage, Relay, passes

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
EVERY = 20.0 if SECONDS > 60 else 3.0
CUSTOMERS = [f"soak-{number}" for number in range(12)]
# Braze waits for 2 s.
IN_TIME = 2.0


def open_incidents(service: Service) -> set[str]:
    """The codes of the incidents that /health lists as open."""
    return {one["code"] for one in service.health()["incidents"] if "until" not in one}


def resets_old() -> Disturb:
    """A firewall that resets the connections that it has forgotten."""
    return _old(lambda passage, _data: passage.reset())


def forgets_old() -> Disturb:
    """A firewall that drops the packets of connections that it has forgotten."""
    return _old(lambda _passage, _data: None)


def _old(deal: Callable[[Passage, bytes], None]) -> Disturb:
    since = time.monotonic()

    def disturb(passage: Passage, data: bytes) -> bool:
        if passage.at > since:
            return False
        deal(passage, data)
        return True

    return disturb


def drops_all() -> Disturb:
    return lambda _passage, _data: True


def is_unwell() -> Disturb:
    def disturb(passage: Passage, _data: bytes) -> bool:
        passage.near.sendall(UNWELL)
        return True

    return disturb


def loses_answers() -> Disturb:
    """Requests arrive, and their answers do not."""

    def disturb(passage: Passage, _data: bytes) -> bool:
        passage.mute = True
        return False

    return disturb


def gives_up_early() -> Disturb:
    """A load balancer that closes before SessionM has answered."""

    def disturb(passage: Passage, data: bytes) -> bool:
        passage.mute = True
        passage.far.sendall(data)
        passage.end()
        return True

    return disturb


def cuts_requests() -> Disturb:
    def disturb(passage: Passage, data: bytes) -> bool:
        passage.far.sendall(data[: len(data) // 2])
        passage.reset()
        return True

    return disturb


def is_slow() -> Disturb:
    def disturb(_passage: Passage, _data: bytes) -> bool:
        time.sleep(1.0)
        return False

    return disturb


FAULTS = (
    resets_old,
    forgets_old,
    drops_all,
    is_unwell,
    loses_answers,
    gives_up_early,
    cuts_requests,
    is_slow,
)


class Load:
    """Counters and cold lookups, about ten of each a second; *fault* is what they meet."""

    def __init__(self, service: Service, sandbox: SandboxServer) -> None:
        self._service = service
        self._sandbox = sandbox
        self._sent_all, self._looked_all = threading.Event(), threading.Event()
        self.fault = "none"
        self.sent: Counter[str] = Counter()
        # By fault: how lookups ended, those over `IN_TIME` as "late".
        self.lookups: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._sender = threading.Thread(target=self._send)
        self._looker = threading.Thread(target=self._look)
        self._sender.start()
        self._looker.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.end_counters()
        self._looked_all.set()
        self._looker.join()

    def end_counters(self) -> None:
        self._sent_all.set()
        self._sender.join()

    def _send(self) -> None:
        with requests.Session() as http:
            while not self._sent_all.wait(0.1):
                customer = secrets.choice(CUSTOMERS)
                answer = http.post(
                    f"{self._service.url}/webhooks/braze",
                    json={
                        "user_id": customer,
                        "tags": ["visits"],
                        "dispatch_id": secrets.token_hex(8),
                    },
                    headers=bearer("webhook"),
                    timeout=30,
                )
                if answer.status_code == 202:
                    self.sent[customer] += 1
                else:
                    self.wrong.append(answer.text)

    def _look(self) -> None:
        number = 0
        with requests.Session() as http:
            while not self._looked_all.wait(0.1):
                number += 1
                customer = f"cold-{number}"
                self._sandbox.sandbox.put_customer({"user_id": customer})
                fault, began = self.fault, time.monotonic()
                answer = http.get(
                    f"{self._service.url}/connected-content/tags",
                    params={"user_id": customer},
                    headers=bearer("content"),
                    timeout=30,
                )
                late = time.monotonic() - began > IN_TIME
                said = "late" if late else answer.json()["status"]
                self.lookups.setdefault(fault, Counter())[said] += 1


def test_faults_on_the_way_lose_nothing_and_double_nothing(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    for customer in CUSTOMERS:
        sandbox.sandbox.put_customer({"user_id": customer})
    with Relay(int(sandbox.url.rpartition(":")[2])) as relay:
        service = make_service(SESSIONM_CORE_URL=relay.url)
        with Load(service, sandbox) as load:
            strike(relay, load)

        def counted() -> bool:
            now = {one: sandbox.sandbox.tags(one).get("visits", 0) for one in CUSTOMERS}
            assert all(now[one] <= load.sent[one] for one in CUSTOMERS), "counted twice"
            return sum(now.values()) == sum(load.sent.values())

        eventually(counted, 2 * (PROCESSING_TIME + COUNT_DELAY) + 60)
        # Lookups that were late during the faults count for five minutes more.
    eventually(lambda: open_incidents(service) <= {"lookups_late"}, 30)
    print(load.lookups)  # noqa: T201 - shown with -rP
    assert load.wrong == []
    answered = sum((one for one in load.lookups.values()), Counter[str]())
    assert answered["late"] <= answered.total() // 100
    for fault in ("none", "resets_old"):
        assert load.lookups[fault]["ok"] >= 0.95 * load.lookups[fault].total(), load.lookups


def strike(relay: Relay, load: Load) -> None:
    """Let each fault last for a quarter of the time between two of them."""
    until = time.monotonic() + SECONDS
    faults = list(FAULTS)
    while time.monotonic() < until or faults:
        if not faults:
            faults = list(FAULTS)
        fault = faults.pop(secrets.randbelow(len(faults)))
        load.fault, relay.disturb = fault.__name__, fault()
        time.sleep(EVERY / 4)
        load.fault, relay.disturb = f"after {fault.__name__}", passes
        time.sleep(EVERY / 4)
        load.fault = "none"
        time.sleep(EVERY / 2)
