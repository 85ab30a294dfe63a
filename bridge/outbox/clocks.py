"""The store's clock during delivery, and reports of clocks that are off."""

import logging
import math
import os
import socket
from collections.abc import Mapping
from typing import Any

from bridge import clock
from bridge.outbox.model import Direction
from bridge.outbox.store import Store

log = logging.getLogger(__name__)

# Names of shared facts: the loop's heartbeat by direction; the prefix of a clock report.
HEARTBEAT_FACTS = {Direction.TO_SESSIONM: "delivery", Direction.TO_BRAZE: "delivery_to_braze"}
CLOCK_FACTS = "clock of "
# Seconds between two reports of a clock that is off.
CLOCK_REPORT_INTERVAL = 10.0
# Seconds after which a report is out of date.
CLOCK_REPORT_MAX_AGE = 3 * CLOCK_REPORT_INTERVAL


class ClockKeeper:
    """Adjusts the store's clock, and reports this machine's clock if it is off."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # By `clock.steady`.
        self._adjusted_at = self._reported_at = -math.inf
        self._was_off = False

    def adjust(self, most: float, *, is_idle: bool) -> None:
        """Let the store's clock follow a step of the wall clock since the last call.

        Only one loop may do so: two that both follow would stop the clock.

        Args:
            most: seconds that the clock follows, if more have passed: another process may have
                called this meanwhile.
            is_idle: whether nothing is in flight, so that the clock may jump.
        """
        now = clock.steady()
        passed, self._adjusted_at = min(most, now - self._adjusted_at), now
        store_clock = clock.store()
        if store_clock.wants_to_jump() and is_idle:
            self._store.if_queue_empty(store_clock.jump)
        store_clock.follow(passed)
        if store_clock.stepped_back():
            log.warning("the store's clock was set back", extra={"action": "clock_set_back"})
            self._store.make_due(clock.now())

    def report(self) -> None:
        """Store for `/health` that this machine's clock is off, or is right again, in a fleet."""
        if not clock.store().is_fleets:
            return
        difference = clock.store().difference()
        is_off = abs(difference) > clock.TOLERANCE
        is_due = is_off and clock.steady() - self._reported_at > CLOCK_REPORT_INTERVAL
        if is_due or is_off is not self._was_off:
            name = f"{CLOCK_FACTS}{socket.gethostname()} {os.getpid()}"
            self._store.set_fact(name, {"at": clock.now(), "difference": difference})
            self._reported_at, self._was_off = clock.steady(), is_off


def correct_clock(store: Store) -> None:
    """Set the store's clock to a time after all stored ones, or else make queued writes due.

    The wall clock of a restarted machine may be behind the time at which it stopped. The database
    of a fleet may have moved to another server.

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    accepted_at = store.newest_queued_at()
    if accepted_at is not None:
        beats = [store.fact(name) or {} for name in HEARTBEAT_FACTS.values()]
        clock.store().not_before(max(accepted_at, *(beat.get("at", 0.0) for beat in beats)))
        if accepted_at > clock.now() + clock.TOLERANCE:
            store.make_due(clock.now())


def reported_clocks(store: Store) -> dict[str, float]:
    """Return bridges whose clocks are off: "host pid" -> seconds ahead of the store's clock."""
    found = store.facts_named(CLOCK_FACTS)
    return {
        name: report["difference"]
        for name, report in found.items()
        if _is_current(report) and abs(report["difference"]) > clock.TOLERANCE
    }


def forget_clock_reports(store: Store) -> None:
    """Delete the reports of bridges that have ended."""
    old = [n for n, report in store.facts_named(CLOCK_FACTS).items() if not _is_current(report)]
    if old:
        store.forget_facts(CLOCK_FACTS, old)


def _is_current(report: Mapping[str, Any]) -> bool:
    at: float = report["at"]
    return abs(clock.now() - at) < CLOCK_REPORT_MAX_AGE
