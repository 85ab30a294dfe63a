"""Logs and figures: what the service says of itself.

Nothing secret and no customer's identifier goes through here in the clear: identifiers are
replaced by a keyed hash, the same for all processes, so that one customer can be followed.
"""

import hashlib
import hmac
import json
import logging
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from bridge.sessionm.answers import Meaning
from bridge.sessionm.client import Call
from bridge.settings import Settings

# Fields of a log record that are ours, in the order in which they are shown.
_FIELDS = (
    "action",
    "event",
    "write",
    "request",
    "customer",
    "campaign",
    "canvas",
    "key",
    "kind",
    "method",
    "path",
    "state",
    "status",
    "milliseconds",
    "reason",
    "error",
    "pid",
)


def install(settings: Settings) -> None:
    """Set up this process's logs."""
    chosen = settings.bridge_log_format or ("text" if sys.stderr.isatty() else "json")
    # Any secret that all processes share makes the same hashes in all of them.
    secret = settings.sessionm_core_secret.get_secret_value()
    key = hashlib.sha256(b"log" + secret.encode()).digest()
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(key, as_json=chosen == "json"))
    ours = logging.getLogger("bridge")
    ours.handlers = [handler]
    ours.setLevel(settings.bridge_log_level.upper())
    ours.propagate = False


class _Formatter(logging.Formatter):
    def __init__(self, key: bytes, *, as_json: bool) -> None:
        super().__init__()
        self._key = key
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            name: value
            for name in _FIELDS
            if (value := getattr(record, name, None)) not in {None, ""}
        }
        if "customer" in fields:
            fields["customer"] = hash_customer(str(fields["customer"]), self._key)
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            line: dict[str, Any] = {
                "at": at,
                "level": record.levelname.lower(),
                "message": record.getMessage(),
                **fields,
            }
            return json.dumps({**line, "trace": trace} if trace else line, default=str)
        told = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        text = f"{at} {record.levelname.lower():7} {_one_line(record.getMessage())} {told}"
        return text.rstrip() + (f"\n{trace}" if trace else "")


def hash_customer(customer: str, key: bytes) -> str:
    """A customer's key as logs show it."""
    return hmac.new(key, customer.encode(errors="replace"), hashlib.sha256).hexdigest()[:16]


def _quoted(value: object) -> str:
    text = _one_line(str(value))
    return json.dumps(text) if " " in text else text


def _one_line(text: str) -> str:
    """Nothing that a stranger sent may begin a line of its own in the log."""
    return text.translate(dict.fromkeys([*range(32), 127, 133, 8232, 8233], " "))


# Failures that are SessionM at work: it answered, if not as wished.
_ANSWERS = {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER}


class SessionMHealth:
    """How SessionM answered this process lately: the calls of the last five minutes."""

    WINDOW = 300.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, deque[tuple[float, float, str]]] = {
            system: deque(maxlen=2000) for system in ("core", "connect")
        }

    def saw(self, call: Call) -> None:
        """Take note of a finished call."""
        bad = call.error is not None and call.error.meaning not in _ANSWERS
        with self._lock:
            self._calls[call.system].append(
                (time.time(), call.seconds, str(call.error) if bad else "")
            )

    def figures(self, system: str) -> dict[str, Any]:
        """``{"state","p50_ms","p99_ms","last_error"}``; see `state_of` for the states."""
        since = time.time() - self.WINDOW
        with self._lock:
            calls = [call for call in self._calls[system] if call[0] >= since]
        seconds = sorted(call[1] for call in calls)
        errors = [call[2] for call in calls if call[2]]
        return {
            "state": state_of([bool(call[2]) for call in calls]),
            "p50_ms": _percentile(seconds, 0.50),
            "p99_ms": _percentile(seconds, 0.99),
            "last_error": errors[-1] if errors else "",
        }


def state_of(failures: list[bool]) -> str:
    """``up``, ``failing`` (of the last ten calls some failed), ``down`` (all), or ``unknown``."""
    last = failures[-10:]
    if not last:
        return "unknown"
    if all(last[-3:]):
        return "down"
    return "failing" if any(last) else "up"


def _percentile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1)


class BrazeBudget:
    """How near Braze is to halting calls to this host.

    Braze counts these statuses per host in a moving minute (Braze documentation, "unhealthy
    host detection"); over the limit it stops calling for a minute.
    """

    COUNTED = frozenset({408, 429, 502, 503, 504, 529})
    LIMIT = 3000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, deque[float]] = {
            kind: deque(maxlen=2 * self.LIMIT) for kind in ("webhook", "content")
        }

    def saw(self, kind: str, status: int) -> None:
        """Take note of an answer to a ``webhook`` or ``content`` call."""
        if status in self.COUNTED:
            with self._lock:
                self._failures[kind].append(time.time())

    def figures(self) -> dict[str, int]:
        since = time.time() - 60
        with self._lock:
            recent = {
                f"{kind}_failures_last_minute": sum(at >= since for at in times)
                for kind, times in self._failures.items()
            }
        return {**recent, "limit": self.LIMIT}


class LookupFigures:
    """How many lookups of this process were served from the cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = self._all = 0

    def saw(self, *, hit: bool) -> None:
        with self._lock:
            self._all += 1
            self._hits += hit

    def figures(self) -> dict[str, float]:
        with self._lock:
            return {
                "lookups": self._all,
                "hit_ratio": round(self._hits / self._all, 4) if self._all else 0.0,
            }
