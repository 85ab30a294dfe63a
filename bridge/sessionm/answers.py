"""What SessionM's answers mean. Pure.

Only the body says whether a call worked: HTTP 200 may carry ``"status":"error"`` (Tags API,
"Statuses and Errors").
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from bridge.fields import MAX_DEPTH, deeper_than, shown


class Meaning(StrEnum):
    """Why a call did not work, as far as it matters to what is done next."""

    UNREACHABLE = "unreachable"  # nothing was sent
    UNANSWERED = "unanswered"  # sent, and no answer came: what it did is unknown
    BUSY = "busy"  # SessionM says: not now
    GARBLED = "garbled"  # an answer that SessionM would not give
    CREDENTIALS = "credentials"  # our own credentials are refused
    UNKNOWN_CUSTOMER = "unknown_customer"
    REFUSED = "refused"  # anything else that it will not do


class SessionMError(Exception):
    """A call that did not work.

    Attributes:
        meaning: what kind of failure it is.
        status: HTTP status, 0 when there was no answer.
        code: SessionM's error code in capitals, or "".
        retry_after: seconds that SessionM asked us to wait, or ``None``.
        brief: what happened without SessionM's own words, which may name the customer.
    """

    def __init__(
        self,
        meaning: Meaning,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        retry_after: float | None = None,
        brief: str = "",
    ) -> None:
        super().__init__(message)
        self.meaning = meaning
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.brief = brief or message

    @property
    def may_have_worked(self) -> bool:
        """Whether SessionM may have done what was asked in spite of the failure."""
        if self.meaning is Meaning.BUSY:
            return self.status not in _THROTTLED
        return self.meaning in {Meaning.UNANSWERED, Meaning.GARBLED}

    @property
    def is_outage(self) -> bool:
        """Whether it tells that SessionM is away, rather than what it thinks of the call."""
        return self.meaning in _OUTAGE and self.status not in _THROTTLED


_OUTAGE = {Meaning.UNREACHABLE, Meaning.UNANSWERED, Meaning.GARBLED, Meaning.BUSY}
# Too early, too many requests: refused before any work.
_THROTTLED = {425, 429}

_BUSY_STATUSES = {408, 425, 429}

_CODE = re.compile("[A-Z_]{1,40}")

# SessionM's generic codes; it does not hold to one case.
_BY_CODE = {
    "INTERNAL_SERVER_ERROR": Meaning.BUSY,
    "HTTPS_ONLY": Meaning.CREDENTIALS,
    "INVALID_AUTH_TOKEN": Meaning.CREDENTIALS,
    "INVALID_API_KEY": Meaning.CREDENTIALS,
    "ACCESS_DENIED": Meaning.CREDENTIALS,
    "USER_NOT_FOUND": Meaning.UNKNOWN_CUSTOMER,
    "NOT_FOUND": Meaning.UNKNOWN_CUSTOMER,
    "REQUIRES_REGISTERED_USER": Meaning.UNKNOWN_CUSTOMER,
}


def read_answer(status: int, headers: Mapping[str, str], body: bytes, now: float) -> dict[str, Any]:
    """The JSON object of an answer that worked.

    Args:
        status: HTTP status.
        headers: response headers, looked up without regard to case.
        body: the whole body.
        now: seconds since the epoch, for a ``Retry-After`` that is a date.

    Raises:
        SessionMError: anything else.
    """
    document = _json_object(body)
    worked = str(document.get("status", "")).lower() if document else ""
    if 200 <= status < 300 and worked == "ok":
        return document
    code, message = _error(document)
    raise SessionMError(
        _meaning(status, code, said_error=worked == "error"),
        _sentence(status, code, message),
        status=status,
        code=code,
        retry_after=retry_after(headers.get("Retry-After"), now),
        brief=_sentence(status, code if _CODE.fullmatch(code) else "", ""),
    )


def _meaning(status: int, code: str, *, said_error: bool) -> Meaning:
    if status in _BUSY_STATUSES or status >= 500:
        return Meaning.BUSY
    if status == 401:
        return Meaning.CREDENTIALS
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status == 404 and said_error and not code:
        return Meaning.UNKNOWN_CUSTOMER
    # A page of a proxy on the way is no verdict of SessionM's, whatever its status.
    return Meaning.REFUSED if said_error or code else Meaning.GARBLED


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    sane = isinstance(document, dict) and not deeper_than(document, MAX_DEPTH)
    return document if sane else {}


def _error(document: Mapping[str, Any]) -> tuple[str, str]:
    errors = document.get("errors")
    if isinstance(errors, list) and errors:
        errors = errors[0]
    if not isinstance(errors, dict):
        return "", str(errors or "")
    return str(errors.get("code") or "").upper(), str(errors.get("message") or "")


def _sentence(status: int, code: str, message: str) -> str:
    said = " ".join(part for part in (code, message) if part) or "no SessionM answer in the body"
    # SessionM may cut its text in the middle of a character, which no database would store.
    return shown(f"HTTP {status}: {said}", 500)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a ``Retry-After`` header, seconds or a date (RFC 9110 10.2.3)."""
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
