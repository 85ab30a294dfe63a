"""Failures of calls to other systems, by what the caller has to do next. Pure."""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self

from bridge.fields import is_too_deep
from bridge.network.failure import NetworkError, OversizeAnswerError


class Meaning(StrEnum):
    """The kind of a failure."""

    UNREACHABLE = "unreachable"  # no connection: nothing was sent
    UNANSWERED = "unanswered"  # sent, but no answer: the effect is unknown
    BUSY = "busy"  # the system is overloaded, or has an internal error
    GARBLED = "garbled"  # an answer that is not in the system's format
    CREDENTIALS = "credentials"  # our own credentials are refused
    UNKNOWN_CUSTOMER = "unknown_customer"
    REFUSED = "refused"  # any other error of the system: a retry does not help


class CallError(Exception):
    """A failed call.

    Attributes:
        meaning: the kind of failure.
        status: HTTP status, 0 if there was no answer.
        retry_after: seconds of the requested wait, or ``None``.
        remedy: advice for an operator, or "".
        brief: the failure and the remedy without texts of the system, which may name a customer.
        sent_at: when the first byte was sent, by `time.monotonic`; ``None`` if nothing was sent.
    """

    def __init__(
        self,
        meaning: Meaning,
        message: str,
        *,
        status: int = 0,
        retry_after: float | None = None,
        brief: str = "",
        remedy: str = "",
        sent_at: float | None = None,
    ) -> None:
        super().__init__(message)
        self.meaning = meaning
        self.status = status
        self.retry_after = retry_after
        self.remedy = remedy
        self.brief = "; ".join(filter(None, (brief or message, remedy)))
        self.sent_at = sent_at

    @classmethod
    def from_network(cls, error: NetworkError) -> Self:
        """Return the failure of a call that got no usable answer."""
        meaning, message = Meaning.UNANSWERED, str(error)
        if isinstance(error, OversizeAnswerError):
            meaning = Meaning.GARBLED
        elif error.sent_at is None:
            meaning, message = Meaning.UNREACHABLE, f"no connection: {error}"
        return cls(meaning, message, remedy=error.remedy, sent_at=error.sent_at)

    @property
    def may_have_worked(self) -> bool:
        """Whether the call may have had its effect in spite of the failure."""
        if self.meaning is Meaning.BUSY:
            return self.status not in _THROTTLED
        return self.meaning in {Meaning.UNANSWERED, Meaning.GARBLED}

    @property
    def is_throttled(self) -> bool:
        """Whether the system takes no more calls for now."""
        return self.meaning is Meaning.BUSY and self.status in _THROTTLED

    @property
    def is_outage(self) -> bool:
        """Whether the system is down, and not just this call refused."""
        return self.meaning in _OUTAGE and not self.is_throttled


_OUTAGE = {Meaning.UNREACHABLE, Meaning.UNANSWERED, Meaning.GARBLED, Meaning.BUSY}
# Too Early, Too Many Requests: refused without an effect.
_THROTTLED = {425, 429}


class FinishedCall(NamedTuple):
    """A call that has ended, for telemetry: the system, the duration in seconds, the failure."""

    system: str
    seconds: float
    error: CallError | None


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in *body*; {} if there is none, or if it is too deeply nested."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    is_usable = isinstance(document, dict) and not is_too_deep(document)
    return document if is_usable else {}


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header: a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    first = value.split(",")[0].strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", first):
        return float(first)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.fromtimestamp(now, UTC)).total_seconds())
