"""Guessing keys is counted and slow; having one is always fast."""

import pytest

from bridge.ops.throttle import ADDRESSES, LONGEST_DELAY, MEMORY, MOST_LOGGED, Throttle, source_of

WRONG = {"Authorization": "Bearer wrong"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_goes_on_guessing_waits_longer_up_to_a_bound() -> None:
    failures = Throttle(Clock())
    delays = [failures.failed("192.0.2.1") for _ in range(3000)]
    assert delays[:3] == [0, 0, 0]
    assert delays == sorted(delays)
    assert delays[3] > 0
    assert delays[-1] == LONGEST_DELAY
    assert failures.failed("192.0.2.2") == 0


def test_who_stops_guessing_is_forgotten() -> None:
    clock = Clock()
    failures = Throttle(clock)
    for _ in range(20):
        failures.failed("192.0.2.1")
    clock.now = MEMORY + 1
    assert failures.failed("192.0.2.1") == 0


def test_memory_is_bounded_however_many_addresses_guess() -> None:
    failures = Throttle(Clock())
    for _ in range(20):
        failures.failed("192.0.2.1")
    for number in range(ADDRESSES):
        failures.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert failures.failed("192.0.2.1") == 0


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("<script>\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_address_stands_for_its_holder(address: str, source: str) -> None:
    assert source_of(address) == source


def test_the_log_names_an_address_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    failures = Throttle(clock)
    for _ in range(50):
        failures.failed("192.0.2.1")
    clock.now = 61
    failures.failed("192.0.2.1")
    assert [record.args for record in caplog.records] == [("192.0.2.1", 1), ("192.0.2.1", 50)]
    for number in range(1000):
        failures.failed(f"2001:db8:0:{number:x}::1")
    assert len(caplog.records) <= MOST_LOGGED + 1
