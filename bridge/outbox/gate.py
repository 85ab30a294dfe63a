"""How many calls may be under way: all, a single probe, or none. Pure.

Two things close the gate by themselves: SessionM refuses our credentials (*paused*), or it is
away (*down*). Then one call at a time probes, at growing distance, and the first that gets
through opens the gate. The operator's own pause closes it without probes.
"""

from enum import StrEnum

from bridge.fields import iso
from bridge.outbox.verdict import LONGEST_RETRY_AFTER
from bridge.sessionm.answers import Meaning, SessionMError

FAILURES_IN_A_ROW = 5
LONGEST_PAUSE = 60.0
LONGEST_OUTAGE = 15.0


class Mode(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    DOWN = "down"


class Gate:
    """Fed with every answer by `saw`; asked by `room`."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.mode = Mode.RUNNING
        self.reason = ""
        self._wait = 1.0
        self._probe_at = 0.0
        # SessionM asked not to be called before then.
        self.hold_until = 0.0
        self._failures = 0

    def told(self, now: float) -> str:
        """Why not everything goes out at *now*; "" if it does."""
        if self.is_held(now):
            return f"SessionM asked us to wait until {iso(self.hold_until)}"
        return self.reason

    def is_held(self, now: float) -> bool:
        return now < self.hold_until

    def room(self, now: float, under_way: int) -> int:
        """How many more calls may start at *now* when so many are *under_way*."""
        if self.is_held(now):
            return 0
        if self.mode is Mode.RUNNING:
            return self._width - under_way
        return 1 if under_way == 0 and now >= self._probe_at else 0

    def saw(self, error: SessionMError | None, now: float) -> None:
        """Take note of how a call ended: ``None`` is success."""
        if error is not None and error.retry_after is not None:
            # What it asks of one call it asks of us: the limit is per client.
            wait = min(error.retry_after, LONGEST_RETRY_AFTER)
            self.hold_until = max(self.hold_until, now + wait)
        if error is not None and error.meaning is Meaning.CREDENTIALS:
            self._close(Mode.PAUSED, f"SessionM refuses our credentials ({error.brief})", now)
        elif error is not None and error.is_outage:
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW or self.mode is not Mode.RUNNING:
                self._close(Mode.DOWN, f"SessionM does not answer ({error.brief})", now)
        elif self.mode is Mode.PAUSED and error is not None and error.meaning is Meaning.BUSY:
            # Throttled: that says nothing about our credentials.
            self._close(Mode.PAUSED, self.reason, now)
        elif error is None or error.status:
            self._open()

    def _close(self, mode: Mode, reason: str, now: float) -> None:
        longest = LONGEST_PAUSE if mode is Mode.PAUSED else LONGEST_OUTAGE
        if self.mode is Mode.RUNNING:
            self._wait = 1.0
        elif now >= self._probe_at:
            self._wait = min(longest, self._wait * 2)
        else:
            # It was under way when the gate closed: no probe.
            return
        self.mode, self.reason = mode, reason
        self._probe_at = now + self._wait

    def _open(self) -> None:
        self.mode, self.reason = Mode.RUNNING, ""
        self._failures = 0
