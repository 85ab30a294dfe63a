"""What becomes of a write whose call did not work."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.breaker import LONGEST_RETRY_AFTER
from bridge.outbox.verdict import Verdict, judge
from bridge.sessionm.answers import Meaning, SessionMError

MAX_TRIES = 12
TEMPORARY = [Meaning.UNREACHABLE, Meaning.UNANSWERED, Meaning.BUSY, Meaning.GARBLED]


def verdict(
    meaning: Meaning,
    tries: int = 0,
    chance: float = 1.0,
    asked: float | None = None,
    *,
    outage: bool = False,
) -> Verdict:
    error = SessionMError(meaning, "why", retry_after=asked)
    return judge(error, tries, MAX_TRIES, lambda: chance, outage=outage)


@pytest.mark.parametrize("meaning", [*TEMPORARY, Meaning.UNKNOWN_CUSTOMER])
def test_what_may_pass_is_tried_again_until_the_last_try(meaning: Meaning) -> None:
    assert not any(verdict(meaning, tries).is_dead for tries in range(MAX_TRIES - 1))
    assert all(verdict(meaning, tries).counts_attempt for tries in range(MAX_TRIES))
    assert verdict(meaning, MAX_TRIES - 1).is_dead
    assert verdict(meaning, 10**6).is_dead


@pytest.mark.parametrize("asked", [None, 5.0])
def test_a_refusal_is_final_at_once(asked: float | None) -> None:
    assert verdict(Meaning.REFUSED, asked=asked).is_dead


@pytest.mark.parametrize("tries", [0, MAX_TRIES - 1, 10**6])
def test_no_write_dies_of_our_own_credentials_or_of_an_outage(tries: int) -> None:
    assert verdict(Meaning.CREDENTIALS, tries) == Verdict(counts_attempt=False)
    for meaning in (Meaning.UNREACHABLE, Meaning.UNANSWERED):
        found = verdict(meaning, tries, outage=True)
        assert (found.is_dead, found.counts_attempt) == (False, False)
    throttled = SessionMError(Meaning.BUSY, "why", status=429)
    assert not judge(throttled, tries, MAX_TRIES, lambda: 1.0).is_dead


@pytest.mark.parametrize("meaning", TEMPORARY)
def test_waits_double_up_to_a_minute_with_full_jitter(meaning: Meaning) -> None:
    waits = [verdict(meaning, tries).seconds for tries in range(8)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [verdict(meaning, tries, 0.25).seconds for tries in range(8)] == [w / 4 for w in waits]
    assert verdict(meaning, 5, 0.0).seconds == 0


def test_an_unknown_customer_is_waited_for_by_hours() -> None:
    waits = [verdict(Meaning.UNKNOWN_CUSTOMER, n, 0.0).seconds for n in range(MAX_TRIES - 1)]
    assert waits == sorted(waits)
    assert waits[0] <= 5
    assert sum(waits) > 2 * 3600


@pytest.mark.parametrize("meaning", [*TEMPORARY, Meaning.UNKNOWN_CUSTOMER])
@pytest.mark.parametrize("asked", [0.0, 1.0, 30.0, 3600.0])
def test_never_sooner_than_sessionm_asks_and_not_all_at_that_moment(
    meaning: Meaning, asked: float
) -> None:
    assert (
        asked <= verdict(meaning, 0, 0.0, asked).seconds < verdict(meaning, 0, 1.0, asked).seconds
    )


@pytest.mark.parametrize("asked", [1e9, math.inf])
def test_a_retry_after_of_years_is_held_for_a_day(asked: float) -> None:
    found = verdict(Meaning.BUSY, 0, 1.0, asked).seconds
    assert LONGEST_RETRY_AFTER <= found < LONGEST_RETRY_AFTER + 60


@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_a_short_retry_after_does_not_use_up_the_tries_in_seconds(asked: float) -> None:
    waits = [verdict(Meaning.BUSY, tries, 0.5, asked).seconds for tries in range(MAX_TRIES - 1)]
    assert sum(waits) >= 120


@given(st.sampled_from(Meaning), st.integers(0, 10**9), st.floats(0, 1), st.floats(0))
def test_every_wait_is_a_time_that_can_be_stored(
    meaning: Meaning, tries: int, chance: float, asked: float
) -> None:
    error = SessionMError(meaning, "", retry_after=asked)
    found = judge(error, tries, 10**10, lambda: chance)
    assert 0 <= found.seconds <= LONGEST_RETRY_AFTER + 60
