"""Failed authentications: counted, logged, and delayed by address.

Only refusals are delayed: a caller with a valid key never waits, even if other callers at the same
address fail.
"""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

log = logging.getLogger(__name__)

# Seconds for which an address is remembered after its last failure.
MEMORY = 600.0
# The maximum number of remembered addresses.
ADDRESSES = 10_000
# Failures without a delay, for mistyped keys; then seconds, doubled with each failure. Guessing is
# limited to one try in two seconds.
FREE = 3
FIRST_DELAY = 0.125
LONGEST_DELAY = 2.0
# Seconds between two log lines about one address, and the maximum number of lines in that time.
LOG_EVERY = 60.0
MOST_LOGGED = 100


class Throttle:
    """The failures to authenticate in this process. Safe for use by many threads."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._tries: TTLCache[str, int] = TTLCache(ADDRESSES, MEMORY, timer)
        self._unlogged: TTLCache[str, int] = TTLCache(ADDRESSES, MEMORY, timer)
        self._logged: TTLCache[str, None] = TTLCache(MOST_LOGGED, LOG_EVERY, timer)

    def failed(self, address: str) -> float:
        """Count a failure; return the seconds by which to delay its answer."""
        source = source_of(address)
        with self._lock:
            tries = self._tries[source] = self._tries.get(source, 0) + 1
            unlogged = self._unlogged[source] = self._unlogged.get(source, 0) + 1
            logs = source not in self._logged and len(self._logged) < MOST_LOGGED
            if logs:
                self._logged[source] = None
                del self._unlogged[source]
        if logs:
            log.warning(
                "failed to authenticate: %s, %s times since the last line",
                source,
                unlogged,
                extra={"action": "auth_failed"},
            )
        # Bounded, since a large exponent overflows.
        doubled = FIRST_DELAY * 2.0 ** min(tries - FREE - 1, 10)
        return 0.0 if tries <= FREE else min(LONGEST_DELAY, doubled)


def source_of(address: str) -> str:
    """Return the address, or its /64 network for IPv6, which providers assign to one client."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
