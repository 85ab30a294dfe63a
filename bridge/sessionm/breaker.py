"""Circuit breakers: while SessionM is away, do not let everybody wait to find it out again.

Every process of the machine feeds them with the calls it makes, and all see the same state,
through a memory map of a few bytes. After some failures in a row a breaker opens; then one call
at a time probes, at growing distance, and the first that gets through closes it.
"""

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from bridge.sessionm.answers import SessionMError

FAILURES_IN_A_ROW = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 15.0
# No lookup's call takes longer.
PROBE_LASTS = 6.0

# Failures in a row; open until (seconds since the epoch, 0 is closed); the present wait; when the
# last call ended; when a probe was let through.
_STATE = struct.Struct("<5d")
_PLACES = {"core": 0, "connect": _STATE.size}
_SIZE = len(_PLACES) * _STATE.size


class Breakers:
    """One breaker for each of SessionM's systems, ``core`` and ``connect``, in file *path*.

    Without a file each process has its own, and finds out by itself.

    Two processes may write at once, and the later wins: that costs a probe too many or too few.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.time) -> None:
        self._now = now
        if path is None:
            self._map = mmap.mmap(-1, _SIZE)
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                # Written, not just made long: a hole in a memory map kills the process that
                # writes to it when the disk is full.
                os.pwrite(descriptor, bytes(_SIZE), 0)
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)

    def saw(self, system: str, error: SessionMError | None, began_at: float) -> None:
        """Take note of how a call to *system* that began then has ended: ``None`` is success."""
        failures, until, wait, _ended_at, probe_at = self._read(system)
        now = self._now()
        if error is None or not error.is_outage:
            self._write(system, 0, 0, 0, now, 0)
            return
        failures += 1
        if not until and failures >= FAILURES_IN_A_ROW:
            wait, until = FIRST_WAIT, now + FIRST_WAIT
        elif until and 0 < probe_at <= began_at:
            # Only a probe tells more than was known; others were under way when it opened.
            wait = min(LONGEST_WAIT, wait * 2)
            until, probe_at = now + wait, 0
        self._write(system, failures, until, wait, now, probe_at)

    def state(self, system: str) -> str:
        """``up``, ``failing`` (the last call found it away), ``down`` (open) or ``unknown``."""
        failures, until, _wait, ended_at, _probe_at = self._read(system)
        if not ended_at:
            return "unknown"
        return "down" if until else "failing" if failures else "up"

    def allows(self, system: str) -> bool:
        """Whether a call to *system* may be made; if it is open, a yes makes you the probe."""
        failures, until, wait, ended_at, _probe_at = self._read(system)
        now = self._now()
        # A clock that was set back must not keep it open.
        if not until or until - now > LONGEST_WAIT:
            return True
        if now < until:
            return False
        # One probe at a time: the next only when this one has ended, or its process has.
        self._write(system, failures, now + max(wait, PROBE_LASTS), wait, ended_at, now)
        return True

    def close(self) -> None:
        self._map.close()

    def _read(self, system: str) -> tuple[float, ...]:
        return _STATE.unpack_from(self._map, _PLACES[system])

    def _write(self, system: str, *state: float) -> None:
        _STATE.pack_into(self._map, _PLACES[system], *state)
