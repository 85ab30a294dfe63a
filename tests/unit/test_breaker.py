"""When a system of SessionM is called, and what is said of it."""

from array import array
from itertools import pairwise

import pytest

from bridge.breaker import (
    FAILURES_IN_A_ROW,
    LONGEST_DOWN,
    LONGEST_REFUSED,
    PROBE_TIMEOUT,
    STATE_MAX_AGE,
    Breaker,
    Mode,
)
from bridge.sessionm.answers import Meaning, SessionMError

WIDTH = 16
WRONG_KEY = SessionMError(Meaning.CREDENTIALS, "HTTP 401", status=401)
BROKEN = SessionMError(Meaning.BUSY, "HTTP 503", status=503)
SILENT = SessionMError(Meaning.UNANSWERED, "no answer in time")
UNREACHABLE = SessionMError(Meaning.UNREACHABLE, "no connection")
GARBLED = SessionMError(Meaning.GARBLED, "HTTP 200", status=200)
THROTTLED = SessionMError(Meaning.BUSY, "HTTP 429", status=429)
REFUSED = SessionMError(Meaning.REFUSED, "HTTP 400", status=400)
UNKNOWN = SessionMError(Meaning.UNKNOWN_CUSTOMER, "HTTP 404", status=404)
AWAY = [SILENT, BROKEN, UNREACHABLE, GARBLED]
VERDICTS = [None, REFUSED, UNKNOWN]
OPENED = {"refused": [WRONG_KEY], "away": [BROKEN] * FAILURES_IN_A_ROW}
opened = pytest.mark.parametrize("opening", OPENED.values(), ids=OPENED)


def after(*ended: SessionMError | None, at: float = 0.0) -> Breaker:
    """A breaker after calls that ended in these ways, all begun and ended *at*."""
    breaker = Breaker()
    for one in ended:
        breaker.record(one, at, at)
    return breaker


def asking(seconds: float) -> SessionMError:
    return SessionMError(Meaning.BUSY, "HTTP 429", status=429, retry_after=seconds)


def room(breaker: Breaker, now: float, in_flight: int = 0) -> int:
    return breaker.room(now, WIDTH, in_flight)


def next_probe(breaker: Breaker, now: float = 0.0) -> float:
    """When the breaker allows the next probe, to a tenth of a second."""
    return next(at for n in range(10_000) if room(breaker, at := now + n / 10))


def distances(breaker: Breaker, failures: list[SessionMError]) -> list[float]:
    """The times between probes that fail in these ways, one after the other."""
    now, found = 0.0, []
    for error in failures:
        found.append((at := next_probe(breaker, now)) - now)
        breaker.record(error, at, at)
        now = at
    return found


def test_as_many_calls_as_configured_may_be_in_flight() -> None:
    assert [room(Breaker(), 0, n) for n in (0, 10, WIDTH)] == [WIDTH, WIDTH - 10, 0]


def test_refused_credentials_open_it_at_once() -> None:
    breaker = after(WRONG_KEY, at=100)
    assert (breaker.mode, breaker.cause) == (Mode.REFUSED, "HTTP 401")
    assert room(breaker, 100.5) == 0


@pytest.mark.parametrize("error", AWAY, ids=str)
def test_a_system_is_away_after_some_failures_in_a_row(error: SessionMError) -> None:
    assert after(*[error] * (FAILURES_IN_A_ROW - 1)).mode is Mode.CLOSED
    breaker = after(*[error] * FAILURES_IN_A_ROW)
    assert (breaker.mode, breaker.cause) == (Mode.DOWN, error.brief)


def test_throttling_is_no_outage() -> None:
    assert after(*[THROTTLED] * 100).mode is Mode.CLOSED


@pytest.mark.parametrize("answer", VERDICTS, ids=str)
def test_any_verdict_ends_a_row_of_failures(answer: SessionMError | None) -> None:
    row = [BROKEN] * (FAILURES_IN_A_ROW - 1)
    assert after(*row, answer, *row).mode is Mode.CLOSED


@opened
def test_an_open_breaker_allows_one_probe_at_a_time(opening: list[SessionMError]) -> None:
    breaker = after(*opening)
    at = next_probe(breaker)
    assert (room(breaker, at), room(breaker, at, 1)) == (1, 0)


@opened
@pytest.mark.parametrize("answer", VERDICTS, ids=str)
def test_the_first_probe_that_gets_through_closes_it(
    opening: list[SessionMError], answer: SessionMError | None
) -> None:
    breaker = after(*opening, answer)
    assert (breaker.mode, breaker.cause, room(breaker, 0)) == (Mode.CLOSED, "", WIDTH)


@opened
def test_probes_are_made_at_growing_distance(opening: list[SessionMError]) -> None:
    found = distances(after(*opening), opening[:1] * 10)
    assert found[0] <= 2
    assert all(later >= earlier - 0.1 for earlier, later in pairwise(found))
    longest = LONGEST_REFUSED if opening == [WRONG_KEY] else LONGEST_DOWN
    assert found[-1] == pytest.approx(longest, abs=0.2)


def test_the_distance_grows_in_whatever_way_the_probes_fail() -> None:
    assert distances(after(WRONG_KEY), [SILENT, WRONG_KEY] * 6)[-1] >= LONGEST_DOWN - 0.1


@pytest.mark.parametrize("error", [WRONG_KEY, SILENT], ids=str)
def test_calls_that_were_in_flight_together_count_as_one_failed_probe(error: SessionMError) -> None:
    assert next_probe(after(*[error] * WIDTH)) <= 2


def test_a_breaker_that_was_closed_in_between_starts_with_short_distances_again() -> None:
    breaker = after(WRONG_KEY)
    distances(breaker, [WRONG_KEY] * 8)
    breaker.record(None, 1000, 1000)
    breaker.record(WRONG_KEY, 1001, 1001)
    assert next_probe(breaker, 1001) <= 1003


def test_throttling_does_not_show_that_our_credentials_are_accepted_again() -> None:
    breaker = after(WRONG_KEY)
    at = next_probe(breaker)
    breaker.record(THROTTLED, at, at)
    assert (breaker.mode, room(breaker, at)) == (Mode.REFUSED, 0)


def test_nothing_is_sent_before_the_time_that_the_system_asks_for() -> None:
    breaker = after(asking(30), asking(5), at=100)
    assert (room(breaker, 129.9), room(breaker, 130)) == (0, 1)


@pytest.mark.parametrize("error", [asking(30), WRONG_KEY])
def test_a_wait_can_be_ended(error: SessionMError) -> None:
    breaker = after(error, at=100)
    assert room(breaker, 100) == 0
    breaker.try_now()
    assert room(breaker, 100) == 1


def test_after_a_limit_without_a_time_one_call_at_a_time_is_made_at_growing_distance() -> None:
    breaker, at, waits = after(THROTTLED), 0.0, []
    # Calls that were in flight when the wait began make it no longer.
    breaker.record(THROTTLED, 0.0 - 1, 0.5)
    for _ in range(6):
        began = at
        at = next_probe(breaker, at)
        waits.append(round(at - began))
        assert room(breaker, at, in_flight=1) == 0
        breaker.record(THROTTLED, at, at)
    assert waits == [1, 2, 4, 8, LONGEST_DOWN, LONGEST_DOWN]
    breaker.record(None, at, at)
    assert (breaker.mode, room(breaker, at + LONGEST_DOWN)) == (Mode.CLOSED, WIDTH)


def test_a_retry_after_of_years_holds_for_a_day() -> None:
    assert room(after(asking(float("inf"))), 86_401) == 1


def test_of_lookups_that_come_together_one_is_the_probe() -> None:
    breaker = after(*OPENED["away"])
    assert not breaker.may_call(0.5)
    assert [breaker.may_call(1.0) for _ in range(3)] == [True, False, False]
    breaker.record(SILENT, 1.0, 2.0)
    assert [breaker.may_call(at) for at in (3.9, 4.0, 4.0)] == [False, True, False]
    breaker.record(None, 4.0, 4.1)
    assert [breaker.may_call(4.1) for _ in range(3)] == [True] * 3


def test_a_probe_whose_process_was_killed_is_made_again() -> None:
    breaker = after(*OPENED["away"])
    assert breaker.may_call(1.0)
    assert not breaker.may_call(0.9 + PROBE_TIMEOUT)
    assert breaker.may_call(1.0 + PROBE_TIMEOUT)


def test_lookups_go_on_while_credentials_are_refused_until_there_is_no_answer() -> None:
    breaker = after(WRONG_KEY)
    distances(breaker, [WRONG_KEY] * 8)
    assert breaker.may_call(500)
    for _ in range(FAILURES_IN_A_ROW):
        breaker.record(SILENT, 500, 501)
    assert (breaker.mode, breaker.may_call(501)) == (Mode.DOWN, False)


def test_processes_that_share_its_numbers_share_its_state() -> None:
    cells = memoryview(bytearray(8 * Breaker.CELLS)).cast("d")
    for _ in range(FAILURES_IN_A_ROW):
        Breaker(cells).record(SILENT, 0, 0)
    assert Breaker(cells).mode is Mode.DOWN
    assert not Breaker(cells).may_call(0.5)
    Breaker(cells).record(None, 1, 1)
    assert Breaker(cells).mode is Mode.CLOSED
    assert list(cells) != list(array("d", [0.0] * Breaker.CELLS))


@pytest.mark.parametrize(
    ("ended", "state"),
    [
        ([], "unknown"),
        ([None], "up"),
        ([UNKNOWN], "up"),
        ([SILENT], "failing"),
        ([SILENT, None], "up"),
        ([BROKEN] * FAILURES_IN_A_ROW, "down"),
        ([BROKEN] * FAILURES_IN_A_ROW + [None], "up"),
        ([WRONG_KEY], "refusing"),
        ([WRONG_KEY, None], "up"),
        ([REFUSED], "up"),
        ([REFUSED] * FAILURES_IN_A_ROW, "refusing"),
        ([REFUSED] * FAILURES_IN_A_ROW + [None], "up"),
        ([THROTTLED], "limiting"),
        ([asking(30)], "limiting"),
        ([asking(30), None], "limiting"),
        ([THROTTLED, None], "limiting"),
        ([WRONG_KEY, asking(300)], "limiting"),
        ([WRONG_KEY, THROTTLED], "limiting"),
        ([asking(300), WRONG_KEY], "refusing"),
    ],
)
def test_its_state_has_a_name(ended: list[SessionMError | None], state: str) -> None:
    assert after(*ended).state(0.1) == state


@pytest.mark.parametrize("ended", [[None], [SILENT], [WRONG_KEY], OPENED["away"]], ids=str)
def test_five_minutes_after_the_last_call_nothing_is_known(
    ended: list[SessionMError | None],
) -> None:
    breaker = after(*ended)
    assert breaker.state(STATE_MAX_AGE) != "unknown"
    assert breaker.state(STATE_MAX_AGE + 1) == "unknown"
