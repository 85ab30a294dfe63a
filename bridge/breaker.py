"""A circuit breaker: whether a system is up, and how many calls may be made to it. Pure.

Two kinds of failure open it: several calls in a row without a usable answer, or a refusal of our
credentials. While it is open, only probes are made, one at a time and at growing intervals; the
first successful probe closes it. Independently, the system may request a wait (``Retry-After``), or
refuse calls for their number (429): then one call at a time shows whether the limit has ended.

Each delivery loop has its own breaker. Lookups share one for each system among the processes of a
machine, without a lock: if two processes write at the same time, there may be one probe too many
or too few.
"""

from array import array
from collections.abc import MutableSequence
from enum import IntEnum
from typing import NamedTuple

from bridge.calls import CallError, Meaning

# Calls. After this number of failures in a row, the breaker opens.
FAILURES_IN_A_ROW = 5
# Seconds between two probes: the first interval, and the longest by the kind of failure.
FIRST_WAIT = 1.0
LONGEST_DOWN, LONGEST_REFUSED = 15.0, 60.0
# Seconds after which a probe without a result (its process was killed) no longer blocks the next.
PROBE_TIMEOUT = 6.0
# Seconds. A Retry-After that is further ahead comes from a wrong clock.
LONGEST_RETRY_AFTER = 86400.0
# Seconds after the last call for which its outcome is still reported.
STATE_MAX_AGE = 300.0


class Mode(IntEnum):
    """Whether the breaker is closed, or the reason why it is open."""

    CLOSED = 0
    DOWN = 1
    REFUSED = 2


class _Last(IntEnum):
    """The outcome of the last call."""

    NOTHING = 0
    ANSWER = 1
    REFUSAL = 2
    LIMIT = 3
    FAILURE = 4


class _Numbers(NamedTuple):
    """The state of a breaker; all times in seconds by `bridge.clock.steady`."""

    mode: float
    last: float
    failures: float  # in a row
    refusals: float  # in a row
    wait: float  # seconds from one probe to the next
    probe_at: float
    probed_until: float  # a probe is in flight, at most until this time
    hold_until: float  # the end of the requested wait
    ended_at: float  # the end of the last call


class Breaker:
    """A circuit breaker. All times are in seconds by `bridge.clock.steady`.

    Args:
        cells: memory for its `CELLS` numbers, which processes may share; ``None``: its own.

    Attributes:
        cause: the failure that opened it, without texts of the system; "" while it is closed, or
            if another process opened it.
    """

    CELLS = len(_Numbers._fields)

    def __init__(self, cells: "MutableSequence[float] | memoryview[float] | None" = None) -> None:
        self._cells = cells if cells is not None else array("d", [0.0] * self.CELLS)
        self.cause = ""

    @property
    def mode(self) -> Mode:
        return Mode(int(self._read().mode))

    @property
    def hold_until(self) -> float:
        """The end of the wait that the system has requested."""
        return self._read().hold_until

    def hold(self, until: float) -> None:
        """Allow no call before *until*."""
        self._write(self._read()._replace(hold_until=until))

    def try_now(self) -> None:
        """End a requested wait, and let the next probe be due."""
        self._write(self._read()._replace(hold_until=0.0, probe_at=0.0))

    def is_held(self, now: float) -> bool:
        """Return whether the system has requested a wait that has not ended at *now*."""
        return now < self._read().hold_until

    def room(self, now: float, width: int, in_flight: int) -> int:
        """Return how many more calls may start at *now*.

        Args:
            now: the time.
            width: most calls at once while the breaker is closed.
            in_flight: calls that have started and are not recorded yet.
        """
        numbers = self._read()
        if now < numbers.hold_until:
            return 0
        if numbers.mode == Mode.CLOSED and numbers.last != _Last.LIMIT:
            return width - in_flight
        # One call shows whether the limit, or the outage, has ended.
        is_due = numbers.mode == Mode.CLOSED or now >= numbers.probe_at
        return 1 if in_flight == 0 and is_due else 0

    def may_call(self, now: float) -> bool:
        """Return whether a lookup may call the system, which is forbidden only while it is down.

        If the system is down and the result is true, this reserves the probe for the caller.
        """
        numbers = self._read()
        if numbers.mode != Mode.DOWN:
            return True
        if now < max(numbers.probe_at, numbers.probed_until):
            return False
        self._write(numbers._replace(probed_until=now + PROBE_TIMEOUT))
        return True

    def state(self, now: float) -> str:
        """Return the state of the system, for health and pages.

        ``up``, ``refusing`` (our credentials, or several calls in a row), ``limiting`` (it has
        requested a wait), ``failing`` (the last call failed), ``down`` (the breaker is open) or
        ``unknown`` (no call for five minutes). A limit after a refusal is ``limiting``: the last
        answer counts.
        """
        numbers = self._read()
        if numbers.last == _Last.NOTHING or now - numbers.ended_at > STATE_MAX_AGE:
            return "limiting" if now < numbers.hold_until else "unknown"
        if numbers.mode == Mode.DOWN:
            return "down"
        is_refused = numbers.mode == Mode.REFUSED or numbers.refusals >= FAILURES_IN_A_ROW
        if is_refused and numbers.last != _Last.LIMIT:
            return "refusing"
        if now < numbers.hold_until or numbers.last == _Last.LIMIT:
            return "limiting"
        return "failing" if numbers.last == _Last.FAILURE else "up"

    @property
    def has_failed(self) -> bool:
        """Whether the last call got no usable answer, however long ago."""
        return self._read().last in {_Last.LIMIT, _Last.FAILURE}

    def idle(self, now: float) -> float:
        """Return the seconds since the last call ended; 0 if there was none."""
        numbers = self._read()
        return 0.0 if numbers.last == _Last.NOTHING else now - numbers.ended_at

    def record(self, error: CallError | None, began_at: float, now: float) -> None:
        """Record the outcome of a call.

        Args:
            error: the failure; ``None`` is success.
            began_at: when the call began. While the breaker is open, the failure of a call that
                began before the probe was due changes nothing.
            now: the time.
        """
        before = self._read()
        numbers = before._replace(ended_at=now, last=_last(error))
        if error is not None and error.retry_after is not None:
            # The wait is for all calls: the limit counts all calls of a client.
            wait = min(error.retry_after, LONGEST_RETRY_AFTER)
            numbers = numbers._replace(hold_until=max(numbers.hold_until, now + wait))
        elif numbers.last == _Last.LIMIT and began_at >= before.hold_until:
            # The system names no time: wait as from one probe to the next.
            is_repeat = before.last == _Last.LIMIT and before.hold_until > 0
            wait = min(LONGEST_DOWN, before.wait * 2) if is_repeat else FIRST_WAIT
            numbers = numbers._replace(hold_until=now + wait, wait=wait)
        refused = error is not None and error.meaning is Meaning.REFUSED
        numbers = numbers._replace(refusals=numbers.refusals + 1 if refused else 0)
        if error is not None and error.meaning is Meaning.CREDENTIALS:
            numbers = numbers._replace(failures=0)
            numbers = self._opened(numbers, Mode.REFUSED, began_at, now, error.brief)
        elif error is not None and error.is_outage:
            numbers = numbers._replace(failures=numbers.failures + 1)
            if numbers.failures >= FAILURES_IN_A_ROW or numbers.mode != Mode.CLOSED:
                numbers = self._opened(numbers, Mode.DOWN, began_at, now, error.brief)
        elif numbers.mode == Mode.REFUSED and numbers.last == _Last.LIMIT:
            # A throttled call does not show whether our credentials are accepted.
            numbers = self._opened(numbers, Mode.REFUSED, began_at, now, self.cause)
            numbers = numbers._replace(hold_until=max(numbers.hold_until, numbers.probe_at))
        else:
            self.cause = ""
            numbers = numbers._replace(mode=Mode.CLOSED, failures=0, probed_until=0)
        self._write(numbers)

    def _opened(
        self, numbers: _Numbers, mode: Mode, began_at: float, now: float, cause: str
    ) -> _Numbers:
        longest = LONGEST_REFUSED if mode is Mode.REFUSED else LONGEST_DOWN
        if numbers.mode == Mode.CLOSED:
            wait = FIRST_WAIT
        elif began_at >= numbers.probe_at:
            wait = min(longest, numbers.wait * 2)
        elif numbers.mode != mode and numbers.failures >= FAILURES_IN_A_ROW:
            # Lookups continue while credentials are refused: now the system is down as well.
            wait = FIRST_WAIT
        else:
            # The call was in flight when the breaker opened: it is no probe.
            return numbers
        self.cause = cause
        return numbers._replace(mode=mode, wait=wait, probe_at=now + wait, probed_until=0)

    def _read(self) -> _Numbers:
        return _Numbers(*self._cells)

    def _write(self, numbers: _Numbers) -> None:
        for place, number in enumerate(numbers):
            self._cells[place] = number


def _last(error: CallError | None) -> _Last:
    if error is None or error.meaning is Meaning.UNKNOWN_CUSTOMER:
        return _Last.ANSWER
    if error.meaning in {Meaning.CREDENTIALS, Meaning.REFUSED}:
        return _Last.REFUSAL
    return _Last.FAILURE if error.is_outage else _Last.LIMIT
