"""Failures to authenticate: counted, told, and slowed by address.

Only an answer that refuses is slowed: keys are looked at first, and whoever has the right one is
never made to wait, nor told to come later, whatever others send from the same address.
"""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

log = logging.getLogger(__name__)

# An address is remembered for so long after its last failure; so many addresses are.
MEMORY = 600.0
ADDRESSES = 10_000
# Somebody who mistypes does not notice; somebody who guesses gets a try in two seconds.
FREE = 3
FIRST_DELAY = 0.125
LONGEST_DELAY = 2.0
# One line per address and minute, and so many lines a minute in all.
TOLD_EVERY = 60.0
MOST_TOLD = 100


class Failures:
    """The failures to authenticate that this process has seen. Safe for use by many threads."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._tries: TTLCache[str, int] = TTLCache(ADDRESSES, MEMORY, timer)
        self._untold: TTLCache[str, int] = TTLCache(ADDRESSES, MEMORY, timer)
        self._told: TTLCache[str, None] = TTLCache(MOST_TOLD, TOLD_EVERY, timer)

    def saw(self, address: str | None) -> float:
        """Take note of a failure; how many seconds its answer should wait."""
        source = source_of(address)
        with self._lock:
            self.count += 1
            tries = self._tries[source] = self._tries.get(source, 0) + 1
            untold = self._untold[source] = self._untold.get(source, 0) + 1
            tell = source not in self._told and len(self._told) < MOST_TOLD
            if tell:
                self._told[source] = None
                del self._untold[source]
        if tell:
            log.warning(
                "failed to authenticate: %s, %s times since last told",
                source,
                untold,
                extra={"action": "auth_failed"},
            )
        # An exponent without end overflows.
        doubled = FIRST_DELAY * 2.0 ** min(tries - FREE - 1, 10)
        return 0.0 if tries <= FREE else min(LONGEST_DELAY, doubled)


def source_of(address: str | None) -> str:
    """Who stands behind *address*: itself, or the /64 that an IPv6 customer is given."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
