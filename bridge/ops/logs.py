"""Logs: text on a terminal, JSON elsewhere, without secrets and identifiers of customers.

A keyed hash, the same in all processes, replaces identifiers, so that one customer can be followed.
"""

import hashlib
import hmac
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from bridge.settings import Settings

# The bridge's own fields of a log record, in the order of the output.
_FIELDS = (
    *("action", "event", "write", "direction", "target", "batch", "request", "customer"),
    *("campaign", "canvas", "key", "by", "kind", "method", "path", "state", "outcome", "status"),
    *("milliseconds", "reason", "error", "pid"),
)


def install(settings: Settings) -> None:
    """Set up this process's logs."""
    chosen = settings.bridge_log_format or ("text" if sys.stderr.isatty() else "json")
    # A secret that all processes share, so that they make the same hashes.
    secret = settings.sessionm_core_secret.get_secret_value()
    key = hashlib.sha256(b"log" + secret.encode()).digest()
    handler = logging.StreamHandler()
    braze = settings.braze_rest_key
    secrets = (
        settings.sessionm_core_key.get_secret_value(),
        secret,
        *([braze.get_secret_value()] if braze else []),
    )
    handler.setFormatter(_Formatter(key, secrets, as_json=chosen == "json"))
    ours = logging.getLogger("bridge")
    ours.handlers = [handler]
    ours.setLevel(settings.bridge_log_level.upper())
    ours.propagate = False


def adopt(logger: logging.Logger) -> None:
    """Write the records of another *logger* in the bridge's format; call `install` first."""
    # A copy: gunicorn adds a handler of its own again when it reloads.
    logger.handlers = [*logging.getLogger("bridge").handlers]


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
            # Errors of SessionM may contain the customer's identifier.
            hidden = {customer.partition(":")[2]: fields["customer"], **self._hidden}
        else:
            hidden = self._hidden
        message, trace = _without(message, hidden), _without(trace, hidden)
        for name in ("error", "reason"):
            if name in fields:
                fields[name] = _without(str(fields[name]), hidden)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            head = {"at": at, "level": record.levelname.lower(), "message": message}
            tail = {"trace": trace} if trace else {}
            return json.dumps({**head, **fields, **tail}, default=str)
        pairs = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        text = f"{at} {record.levelname.lower():7} {_one_line(message)} {pairs}"
        return text.rstrip() + (f"\n{trace}" if trace else "")


def hash_customer(customer: str, key: bytes) -> str:
    """Return the hash of a customer's key for logs."""
    return hmac.new(key, customer.encode(errors="replace"), hashlib.sha256).hexdigest()[:16]


def _without(text: str, hidden: Mapping[str, str]) -> str:
    for word, replacement in hidden.items():
        # A short word would be replaced inside of other words.
        if len(word) > 3:
            text = text.replace(word, replacement)
    return text


def _quoted(value: object) -> str:
    text = _one_line(str(value))
    return json.dumps(text) if " " in text else text


def _one_line(text: str) -> str:
    """Replace line ends and control characters, so that input cannot add lines to the log."""
    return text.translate(dict.fromkeys([*range(32), 127, 133, 8232, 8233], " "))
