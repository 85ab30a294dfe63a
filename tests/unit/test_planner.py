"""The send planner, in figures that can be checked by head."""

import dataclasses
from typing import Any

import pytest

from bridge.planner import KINDS, Outcome, Plan, PlannedSend, SendPace, plan

PACE = SendPace(core=20.0, connect=40.0, requests=500.0, queue_limit=100_000)


def planned(kind: str, recipients: int = 12_000, **more: Any) -> Plan:
    send = dataclasses.replace(PlannedSend(recipients, KINDS[kind], retries=0.0), **more)
    return plan(send, PACE)


def wished(kind: str, **more: Any) -> Outcome:
    found = planned(kind, **more).wished
    assert found
    return found


@pytest.mark.parametrize(
    ("kind", "more", "limit", "speed"),
    [
        # 80 % of 20 writes a second, one each.
        ("webhook", {}, "SessionM Core", 960),
        # A counter takes a call of its own.
        ("webhook", {"counters": True}, "SessionM Core", 480),
        ("tags", {}, "SessionM Core", 960),
        # Half of the recipients are cached.
        ("tags", {"warm": 0.5}, "SessionM Core", 1900),
        ("offers", {}, "SessionM Connect", 1900),
        ("customer", {}, "SessionM Core", 960),
        # All are cached: only the bridge itself is asked, three times each.
        ("customer", {"warm": 1.0}, "this bridge", 8000),
        ("offers_webhook", {}, "SessionM Core", 960),
        # 20 calls to Braze a second, one for each recipient at worst.
        ("triggered", {"warm": 1.0}, "BRAZE_RPS", 1200),
        # 150 ms for each customer, one after the other.
        ("context", {"calls": 1}, "one customer after the other", 400),
        # 2 ms more for each further call, which is cached.
        ("context", {"calls": 26}, "one customer after the other", 300),
        ("context", {"warm": 1.0, "calls": 1}, "this bridge", 24000),
        # Failed lookups count only if they are over 90 %.
        ("offers", {"warm": 1.0, "retries": 0.5}, "this bridge", 5300),
    ],
)
def test_the_tightest_limit_sets_the_speed(
    kind: str, more: dict[str, Any], limit: str, speed: int
) -> None:
    found = planned(kind, **more)
    assert (found.bounds[0].name, found.advised.speed) == (limit, speed)


def test_at_the_advised_speed_nothing_waits() -> None:
    advised = planned("webhook").advised
    assert (advised.backlog, advised.written, advised.seconds) == (0, 750.0, 750.0)
    assert planned("webhook").warnings == ()


def test_what_comes_too_fast_waits_and_is_written_at_sessionms_pace() -> None:
    found = wished("webhook", speed=12_000)
    # 200 a second for a minute, of which 20 go out each second.
    assert (found.seconds, found.backlog) == (60.0, 10_800)
    # All 12,000 need 600 seconds, however they come.
    assert found.written == 600.0


def test_lookups_go_before_writes() -> None:
    send = PlannedSend(
        600, dataclasses.replace(KINDS["webhook"], core=1), calls=1, retries=0, speed=600
    )
    found = plan(send, PACE).wished
    assert found
    # Ten lookups and ten writes a second fill Core's twenty.
    assert (found.core_rate, found.backlog) == (20.0, 0)


def test_all_but_the_first_lookup_of_a_recipient_come_from_the_cache() -> None:
    assert PlannedSend(1, KINDS["offers"], calls=4, retries=0).hit_ratio == 0.75
    assert PlannedSend(1, KINDS["offers"], calls=4, retries=0, warm=0.5).hit_ratio == 0.875
    assert PlannedSend(1, KINDS["webhook"]).hit_ratio == 0


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (
            "webhook",
            {"speed": 12_000},
            "At your 12,000 a minute, tags come faster than SessionM takes them: 200",
        ),
        ("webhook", {"speed": 12_000}, "At your 12,000 a minute, tags will be over five minutes"),
        (
            "webhook",
            {"speed": 60_000, "recipients": 200_000},
            "limit (100,000 writes)",
        ),
        ("webhook", {"counters": True}, "dispatch_id"),
        ("tags", {"speed": 3_000}, "ask SessionM Core 50 times a second against 20"),
        ("offers", {"speed": 3_000}, "ask SessionM Connect 50 times a second against 40"),
        ("webhook", {"speed": 15_000, "retries": 0.2}, "about 3,000 webhooks fail each minute"),
    ],
)
def test_a_speed_that_is_too_high_is_warned_of(kind: str, more: dict[str, Any], words: str) -> None:
    assert any(words in warning for warning in planned(kind, **more).warnings)


def test_a_speed_that_fits_is_not_warned_of() -> None:
    assert planned("offers", speed=1_000).warnings == ()


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_speed_however_slow_sessionm_is(kind: str) -> None:
    slow = SendPace(core=0.001, connect=0.001, requests=500.0, queue_limit=1)
    assert plan(PlannedSend(1, KINDS[kind]), slow).advised.speed == 1


def test_brazes_hourly_limit_is_known() -> None:
    fast = dataclasses.replace(PACE, triggers=1000.0)
    send = PlannedSend(12_000, KINDS["triggered"], retries=0.0, warm=1.0, calls=1)
    bounds = {bound.name: bound.speed for bound in plan(send, fast).bounds}
    # 80 % of 250,000 an hour.
    assert bounds["Braze's hourly limit"] == pytest.approx(3333.33, abs=0.01)


def test_half_of_brazes_failure_limit_is_planned_with() -> None:
    fast = dataclasses.replace(PACE, core=1e6, requests=1e6)
    found = plan(PlannedSend(12_000, KINDS["webhook"], retries=0.5), fast)
    assert (found.bounds[0].name, found.advised.speed) == ("Braze's failure limit", 3000)


def test_a_context_step_is_warned_of() -> None:
    assert any("bridge warm" in warning for warning in planned("context").warnings)
    assert not planned("context", warm=1.0, calls=1).warnings
