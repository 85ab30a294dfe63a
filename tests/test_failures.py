"""Guessing keys is counted and slow; having one is always fast."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from flask import Flask
from werkzeug.test import EnvironBuilder

from bridge.failures import ADDRESSES, LONGEST_DELAY, MEMORY, MOST_TOLD, Failures, source_of
from bridge.parts import parts_of
from bridge.web.auth import DELAY
from tests.conftest import KEYS, MakeService, bearer

WRONG = {"Authorization": "Bearer wrong"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_goes_on_guessing_waits_longer_up_to_a_bound() -> None:
    failures = Failures(Clock())
    delays = [failures.saw("192.0.2.1") for _ in range(3000)]
    assert delays[:3] == [0, 0, 0]
    assert delays == sorted(delays)
    assert delays[3] > 0
    assert delays[-1] == LONGEST_DELAY
    assert failures.saw("192.0.2.2") == 0
    assert failures.count == 3001


def test_who_stops_guessing_is_forgotten() -> None:
    clock = Clock()
    failures = Failures(clock)
    for _ in range(20):
        failures.saw("192.0.2.1")
    clock.now = MEMORY + 1
    assert failures.saw("192.0.2.1") == 0


def test_memory_is_bounded_however_many_addresses_guess() -> None:
    failures = Failures(Clock())
    for number in range(3 * ADDRESSES):
        failures.saw(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures._tries) <= ADDRESSES  # noqa: SLF001 - what it holds
    assert len(failures._untold) <= ADDRESSES  # noqa: SLF001


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("<script>\n", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_stands_for_whoever_holds_it(address: str | None, source: str) -> None:
    assert source_of(address) == source


def test_the_log_tells_of_an_address_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    failures = Failures(clock)
    for _ in range(50):
        failures.saw("192.0.2.1")
    clock.now = 61
    failures.saw("192.0.2.1")
    assert [record.args for record in caplog.records] == [("192.0.2.1", 1), ("192.0.2.1", 50)]
    for number in range(1000):
        failures.saw(f"2001:db8:0:{number:x}::1")
    assert len(caplog.records) <= MOST_TOLD + 1


def test_a_server_that_waits_by_itself_is_told_how_long(app: Flask) -> None:
    environ = EnvironBuilder("/health", headers=list(WRONG.items())).get_environ()
    delays: list[float] = []
    statuses: list[str] = []

    def start(status: str, *_: object) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda _body: None

    for _ in range(10):
        environ[DELAY] = 0.0
        b"".join(app.wsgi_app(environ, start))
        delays.append(environ[DELAY])
    assert delays[0] == 0
    assert delays[-1] == LONGEST_DELAY
    assert {status[:3] for status in statuses} == {"401"}
    assert parts_of(app).auth_failures.count == 10


def test_the_right_key_passes_however_many_wrong_ones_come_from_its_address(
    make_service: MakeService,
) -> None:
    service = make_service("--workers", "1", "--threads", "4")
    until = time.monotonic() + 4

    def guess(number: int) -> set[int]:
        found = set()
        while time.monotonic() < until:
            wrong = {"Authorization": f"Bearer {KEYS['webhook']}{number}"}
            url = f"{service.url}/webhooks/braze"
            found.add(requests.post(url, json={}, headers=wrong, timeout=9).status_code)
        return found

    right = []
    with ThreadPoolExecutor(3) as pool:
        guesses = [pool.submit(guess, number) for number in range(3)]
        while time.monotonic() < until:
            answer = service.webhook(user_id="a", braze_campaign_id="c")
            right.append(answer.status_code)
            looked = requests.get(f"{service.url}/health", headers=bearer("admin"), timeout=9)
            right.append(looked.status_code)
    assert set(right) <= {200, 202}
    assert {202, 200} == set(right)
    assert set().union(*(one.result() for one in guesses)) == {401}
    assert service.log.read_text().count("auth_failed") <= 2
