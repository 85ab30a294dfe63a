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
from collections.abc import Iterable, Mapping
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
    secrets = (settings.sessionm_core_key.get_secret_value(), secret)
    handler.setFormatter(_Formatter(key, secrets, as_json=chosen == "json"))
    ours = logging.getLogger("bridge")
    ours.handlers = [handler]
    ours.setLevel(settings.bridge_log_level.upper())
    ours.propagate = False


class _Formatter(logging.Formatter):
    def __init__(self, key: bytes, secrets: Iterable[str], *, as_json: bool) -> None:
        super().__init__()
        self._key = key
        self._hidden = dict.fromkeys(secrets, "***")
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            name: value
            for name in _FIELDS
            if (value := getattr(record, name, None)) not in {None, ""}
        }
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if "customer" in fields:
            customer = str(fields["customer"])
            fields["customer"] = hash_customer(customer, self._key)
            # SessionM likes to repeat in its errors whom it was asked for.
            hidden = {customer.partition(":")[2]: fields["customer"], **self._hidden}
        else:
            hidden = self._hidden
        message, trace = _without(message, hidden), _without(trace, hidden)
        for name in ("error", "reason"):
            if name in fields:
                fields[name] = _without(str(fields[name]), hidden)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            line: dict[str, Any] = {
                "at": at,
                "level": record.levelname.lower(),
                "message": message,
                **fields,
            }
            return json.dumps({**line, "trace": trace} if trace else line, default=str)
        told = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        text = f"{at} {record.levelname.lower():7} {_one_line(message)} {told}"
        return text.rstrip() + (f"\n{trace}" if trace else "")


def hash_customer(customer: str, key: bytes) -> str:
    """A customer's key as logs show it."""
    return hmac.new(key, customer.encode(errors="replace"), hashlib.sha256).hexdigest()[:16]


def _without(text: str, hidden: Mapping[str, str]) -> str:
    for word, stand_in in hidden.items():
        # A word of a letter or two would be replaced in every other word.
        if len(word) > 3:
            text = text.replace(word, stand_in)
    return text


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
        """``{"p50_ms","p99_ms","last_error"}``; the error only while the last call made one."""
        since = time.time() - self.WINDOW
        with self._lock:
            calls = [call for call in self._calls[system] if call[0] >= since]
        seconds = sorted(call[1] for call in calls)
        return {
            "p50_ms": _percentile(seconds, 0.50),
            "p99_ms": _percentile(seconds, 0.99),
            "last_error": calls[-1][2] if calls else "",
        }


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
