"""How many calls may be under way."""

from itertools import pairwise

import pytest

from bridge.outbox.gate import FAILURES_IN_A_ROW, LONGEST_OUTAGE, LONGEST_PAUSE, Gate, Mode
from bridge.sessionm.answers import Meaning, SessionMError

WIDTH = 16
WRONG_KEY = SessionMError(Meaning.CREDENTIALS, "HTTP 401", status=401)
BROKEN = SessionMError(Meaning.BUSY, "HTTP 503", status=503)
SILENT = SessionMError(Meaning.UNANSWERED, "no answer in time")
UNREACHABLE = SessionMError(Meaning.UNREACHABLE, "no connection")
GARBLED = SessionMError(Meaning.GARBLED, "HTTP 200", status=200)
THROTTLED = SessionMError(Meaning.BUSY, "HTTP 429", status=429)
AWAY = [SILENT, BROKEN, UNREACHABLE, GARBLED]
VERDICTS = [
    None,
    SessionMError(Meaning.REFUSED, "HTTP 400", status=400),
    SessionMError(Meaning.UNKNOWN_CUSTOMER, "HTTP 404", status=404),
]
CLOSED = {"paused": [WRONG_KEY], "down": [BROKEN] * FAILURES_IN_A_ROW}
closed = pytest.mark.parametrize("closing", CLOSED.values(), ids=CLOSED)


def gate_after(*seen: SessionMError | None, at: float = 0.0) -> Gate:
    gate = Gate(WIDTH)
    for one in seen:
        gate.saw(one, at)
    return gate


def asking(seconds: float) -> SessionMError:
    return SessionMError(Meaning.BUSY, "HTTP 429", status=429, retry_after=seconds)


def next_probe(gate: Gate, now: float = 0.0) -> float:
    """When the gate lets the next probe through, to a tenth of a second."""
    return next(at for n in range(10_000) if gate.room(at := now + n / 10, 0))


def distances(gate: Gate, failures: list[SessionMError]) -> list[float]:
    """The times between probes that fail in these ways, one after the other."""
    now, found = 0.0, []
    for error in failures:
        found.append((at := next_probe(gate, now)) - now)
        gate.saw(error, at)
        now = at
    return found


def test_as_many_calls_as_configured_may_be_under_way() -> None:
    assert [Gate(WIDTH).room(0, n) for n in (0, 10, WIDTH)] == [WIDTH, WIDTH - 10, 0]


def test_refused_credentials_pause_delivery_and_say_so() -> None:
    gate = gate_after(WRONG_KEY, at=100)
    assert gate.mode is Mode.PAUSED
    assert "credentials (HTTP 401)" in gate.reason
    assert gate.room(100.5, 0) == 0


@pytest.mark.parametrize("error", AWAY, ids=str)
def test_sessionm_is_down_after_some_failures_in_a_row(error: SessionMError) -> None:
    assert gate_after(*[error] * (FAILURES_IN_A_ROW - 1)).mode is Mode.RUNNING
    gate = gate_after(*[error] * FAILURES_IN_A_ROW)
    assert gate.mode is Mode.DOWN
    assert "does not answer" in gate.reason


def test_throttling_is_no_outage() -> None:
    assert gate_after(*[THROTTLED] * 100).mode is Mode.RUNNING


@pytest.mark.parametrize("answer", VERDICTS, ids=str)
def test_any_verdict_of_sessionm_ends_a_row_of_failures(answer: SessionMError | None) -> None:
    row = [BROKEN] * (FAILURES_IN_A_ROW - 1)
    assert gate_after(*row, answer, *row).mode is Mode.RUNNING


@closed
def test_a_closed_gate_lets_one_probe_through_at_a_time(closing: list[SessionMError]) -> None:
    gate = gate_after(*closing)
    at = next_probe(gate)
    assert (gate.room(at, 0), gate.room(at, 1)) == (1, 0)


@closed
@pytest.mark.parametrize("answer", VERDICTS, ids=str)
def test_the_first_probe_that_gets_through_opens_the_gate(
    closing: list[SessionMError], answer: SessionMError | None
) -> None:
    gate = gate_after(*closing, answer)
    assert (gate.mode, gate.reason, gate.room(0, 0)) == (Mode.RUNNING, "", WIDTH)


@closed
def test_probes_are_made_at_growing_distance(closing: list[SessionMError]) -> None:
    found = distances(gate_after(*closing), closing[:1] * 10)
    assert found[0] <= 2
    assert all(later >= earlier - 0.1 for earlier, later in pairwise(found))
    longest = LONGEST_PAUSE if closing == [WRONG_KEY] else LONGEST_OUTAGE
    assert found[-1] == pytest.approx(longest, abs=0.2)


def test_the_distance_grows_in_whatever_way_the_probes_fail() -> None:
    assert distances(gate_after(WRONG_KEY), [SILENT, WRONG_KEY] * 6)[-1] >= LONGEST_OUTAGE - 0.1


@pytest.mark.parametrize("error", [WRONG_KEY, SILENT], ids=str)
def test_calls_that_were_under_way_together_count_as_one_failed_probe(error: SessionMError) -> None:
    assert next_probe(gate_after(*[error] * WIDTH)) <= 2


def test_a_gate_that_was_open_in_between_starts_with_short_distances_again() -> None:
    gate = gate_after(WRONG_KEY)
    distances(gate, [WRONG_KEY] * 8)
    gate.saw(None, 1000)
    gate.saw(WRONG_KEY, 1001)
    assert next_probe(gate, 1001) <= 1003


def test_throttling_does_not_show_that_our_credentials_are_accepted_again() -> None:
    gate = gate_after(WRONG_KEY)
    at = next_probe(gate)
    gate.saw(THROTTLED, at)
    assert (gate.mode, gate.room(at, 0)) == (Mode.PAUSED, 0)


def test_nothing_is_sent_before_the_time_that_sessionm_asks_for() -> None:
    gate = gate_after(asking(30), asking(5), at=100)
    assert (gate.room(129.9, 0), gate.room(130, 0)) == (0, WIDTH)


def test_a_retry_after_of_years_holds_for_a_day() -> None:
    assert gate_after(asking(float("inf"))).room(86_401, 0) == WIDTH
