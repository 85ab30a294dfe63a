"""The time. The only module that reads this machine's wall clock.

- `steady`: seconds for durations, independent of steps of the wall clock.
- `now`: seconds since the epoch by the store's clock, for all times that are stored and compared by
  several processes. In a fleet this is the database's clock. On one machine it is the wall clock
  at the machine's start plus the time since then. It follows a later step of the wall clock
  gradually, or at once when nothing stored is waiting.
- `wall`: this machine's wall clock, for HTTP headers and for people.

For tests: the environment variable ``BRIDGE_TEST_CLOCK`` names a file that holds the number of
seconds by which `wall` is set forward (or back).
"""

import os
import time
from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import Protocol

# Seconds. A smaller difference between two clocks is not reported.
TOLERANCE = 2.0
# Seconds per second by which the clock of one machine approaches the wall clock: it runs at 0.5 or
# 1.5 times its normal speed.
SHARE = 0.5
# Seconds. A larger difference is corrected at once when nothing stored is waiting.
JUMP = 60.0

# BOOTTIME includes the time for which the machine was suspended.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Return seconds since the machine started, the same for all of its processes."""
    return time.clock_gettime(_STEADY)


def wall() -> float:
    """Return seconds since the epoch by this machine's wall clock."""
    test_file = os.environ.get("BRIDGE_TEST_CLOCK")
    return time.time() + (_set_forward(test_file) if test_file else 0.0)


def now() -> float:
    """Return seconds since the epoch by the store's clock."""
    return _chosen.now()


def _set_forward(path: str) -> float:
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):
        # The test has not written the file completely yet.
        return 0.0


class StoreClock(Protocol):
    """The clock for stored times.

    Attributes:
        is_fleets: whether several machines share this clock.
    """

    is_fleets: bool

    def now(self) -> float:
        """Return seconds since the epoch."""

    def difference(self) -> float:
        """Return by how many seconds this machine's wall clock is ahead of this clock."""

    def before(self, age: float) -> float:
        """Return a time such that everything before it is older than *age* seconds."""

    def not_before(self, at: float) -> None:
        """Continue from *at*, a stored time of the past, if this clock is behind it."""

    def follow(self, passed: float) -> None:
        """Approach the wall clock gradually (on one machine only).

        Args:
            passed: seconds since the last call.
        """

    def wants_to_jump(self) -> bool:
        """Return whether `jump` would change this clock by more than `JUMP` seconds."""

    def jump(self) -> None:
        """Set this clock to the wall clock. Call this only when nothing stored is waiting."""

    def stepped_back(self) -> bool:
        """Return whether this clock has stepped back since the last call."""


class MachineClock:
    """The clock of a store on one machine.

    Args:
        cells: three numbers, shared by all processes until the machine restarts: this clock minus
            `steady`, the seconds of the last jump forward, and the time after that jump.
        wall: the wall clock.
        steady: the clock for durations.
    """

    is_fleets = False

    def __init__(
        self,
        cells: "MutableSequence[float] | memoryview[float] | None" = None,
        wall: Callable[[], float] = wall,
        steady: Callable[[], float] = steady,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._cells = cells if cells is not None else self.initial()

    @staticmethod
    def initial() -> list[float]:
        """Return the first values of the cells."""
        return [wall() - steady(), 0.0, 0.0]

    def now(self) -> float:
        return self._steady() + self._cells[0]

    def difference(self) -> float:
        return self._wall() - self.now()

    def before(self, age: float) -> float:
        then = self.now() - age
        _, jumped, at = self._cells
        # What was stored before the jump looks older than it is.
        return then - jumped if then < at else then

    def not_before(self, at: float) -> None:
        if at > self.now() + TOLERANCE:
            self._cells[0] = at - self._steady()

    def follow(self, passed: float) -> None:
        most = SHARE * passed
        self._cells[0] += max(-most, min(most, self.difference()))

    def wants_to_jump(self) -> bool:
        return abs(self.difference()) > JUMP

    def jump(self) -> None:
        by = self.difference()
        self._cells[0] += by
        if by > 0:
            # Add up: of two jumps within one age, both make things look older than they are.
            self._cells[1] += by
            self._cells[2] = self.now()

    def stepped_back(self) -> bool:
        return False


class DatabaseClock:
    """The clock of a database server, by its last answer to a query."""

    is_fleets = True

    def __init__(self) -> None:
        # The wall clock until the first measurement; nothing can be stored before that.
        self._offset = wall() - steady()
        self._measured = False
        self._stepped_back = False

    def measure(self, asked_at: float, server_time: float, answered_at: float) -> None:
        """Set this clock by the server's answer.

        Args:
            asked_at: when the query was sent, by `steady`.
            server_time: the server's time, seconds since the epoch.
            answered_at: when the answer was received, by `steady`.
        """
        offset = server_time - (asked_at + answered_at) / 2
        change = offset - self._offset
        # A change within the duration of the query is measurement error.
        if self._measured and abs(change) <= (answered_at - asked_at) / 2:
            return
        self._stepped_back |= self._measured and change < -TOLERANCE
        self._offset, self._measured = offset, True

    def now(self) -> float:
        return steady() + self._offset

    def difference(self) -> float:
        return wall() - self.now()

    def before(self, age: float) -> float:
        return self.now() - age

    def not_before(self, at: float) -> None:
        """The server decides."""

    def follow(self, passed: float) -> None:
        """The server decides."""

    def wants_to_jump(self) -> bool:
        return False

    def jump(self) -> None:
        """The server decides."""

    def stepped_back(self) -> bool:
        stepped, self._stepped_back = self._stepped_back, False
        return stepped


_chosen: StoreClock = MachineClock()


def use(store: StoreClock) -> None:
    """Make *store* the clock of `now`; a process has one store."""
    global _chosen  # noqa: PLW0603 - the one thing that a process sets once
    _chosen = store


def store() -> StoreClock:
    """Return the clock that `now` reads."""
    return _chosen
