"""The rate limit of a delivery loop."""

import threading

from bridge import clock


class TokenBucket:
    """A token bucket with almost no burst: it holds one token, or those of 20 ms.

    Args:
        rps: tokens a second.
    """

    def __init__(self, rps: float) -> None:
        self._configured = self._rps = rps
        self._size = max(1.0, rps / 50)
        self._tokens = 0.0
        self._at = clock.steady()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a token; return false if there is none."""
        with self._lock:
            self._refill()
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def limit(self, rps: float | None) -> None:
        """Give at most *rps* tokens a second from now on; ``None``: the configured rate."""
        with self._lock:
            self._refill()
            self._rps = self._configured if rps is None else min(rps, self._configured)

    def is_empty(self) -> bool:
        with self._lock:
            self._refill()
            return self._tokens < 1

    def seconds_to_next(self) -> float:
        """Return the seconds until there is a token."""
        return max(0.0, (1 - self._tokens) / self._rps)

    def _refill(self) -> None:
        now = clock.steady()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rps)
        self._at = now
