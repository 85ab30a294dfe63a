"""Read answers of Braze's trigger endpoints. Pure.

Sources: Braze documentation, "POST: Send API-triggered campaigns", "POST: Send API-triggered
Canvases", "API rate limits", "Errors and responses".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.calls import CallError, Meaning, json_object, retry_after
from bridge.fields import shown

# Seconds. The limit counts full clock hours; the margin is for clocks that differ.
LONGEST_HOLD = 3600.0 + 60.0
# Statuses with which Braze sends nothing to any recipient.
_NOTHING_SENT = {400, 413}
_NO_ACCESS = {401, 403, 404}
_ACCEPTED = {"success", "queued"}
_PAUSED = re.compile(r"\b(paused|archived)\b", re.IGNORECASE)


class BrazeError(CallError):
    """A failed call to Braze.

    Attributes:
        is_foreign: whether the answer does not have Braze's shape, such as the page of a proxy.
    """

    is_foreign = False

    @property
    def is_divisible(self) -> bool:
        """Whether one recipient may be the cause: then the call is repeated in two halves."""
        return self.status in _NOTHING_SENT


@dataclass(frozen=True)
class Quota:
    """The hourly limit: *left* of *limit* calls remain for the *seconds* until the reset."""

    limit: int
    left: int
    seconds: float

    @property
    def pace(self) -> float | None:
        """Calls a second with which *left* lasts until the reset; ``None``: no limit needed."""
        if self.left * 10 >= self.limit or self.seconds <= 0:
            return None
        return max(self.left, 1) / self.seconds


@dataclass(frozen=True)
class BrazeReceipt:
    """Braze's answer to an accepted call.

    Attributes:
        dispatch_id: Braze's ID of the send, or "".
        warnings: index of a recipient -> Braze's text; index -1: about the whole call.
    """

    dispatch_id: str
    warnings: Mapping[int, str]


def read_receipt(
    status: int, headers: Mapping[str, str], body: bytes, now: float, recipients: Sequence[str]
) -> BrazeReceipt:
    """Read the answer to a call.

    Args:
        status: HTTP status.
        headers: response headers by their names in lower case.
        body: the whole body.
        now: the wall clock, seconds since the epoch.
        recipients: the identifiers of the recipients in the call, in their order.

    Raises:
        BrazeError: Braze has not accepted the call.
    """
    document = json_object(body)
    message = str(document.get("message") or "")
    if not 200 <= status < 300:
        raise _refusal(status, headers, document, now)
    notice = str(document.get("notice") or "")
    if _PAUSED.search(notice):
        raise BrazeError(
            Meaning.REFUSED,
            shown(f"nothing was sent: {notice}", 500),
            status=status,
            brief="the campaign or Canvas is paused or archived",
        )
    if message.lower() not in _ACCEPTED:
        text = shown(message, 200) or "no Braze answer in the body"
        error = BrazeError(Meaning.GARBLED, f"HTTP {status}: {text}", status=status)
        error.is_foreign = True
        raise error
    warnings = _warnings(document.get("errors"), recipients)
    if notice:
        warnings[-1] = "; ".join(filter(None, (shown(notice, 300), warnings.get(-1, ""))))
    return BrazeReceipt(shown(str(document.get("dispatch_id") or ""), 100), warnings)


def read_quota(headers: Mapping[str, str], now: float) -> Quota | None:
    """Read the headers ``X-RateLimit-…``; ``None`` if they are missing or invalid.

    Args:
        headers: response headers by their names in lower case.
        now: the wall clock, seconds since the epoch, for answers without a ``Date``.
    """
    try:
        limit = int(headers["x-ratelimit-limit"])
        left = int(headers["x-ratelimit-remaining"])
        reset_at = float(headers["x-ratelimit-reset"])
    except (KeyError, ValueError):
        return None
    seconds = reset_at - _sent_at(headers, now)
    if not (0 <= seconds <= LONGEST_HOLD) or limit <= 0:
        return None
    return Quota(limit, max(0, left), seconds)


def _sent_at(headers: Mapping[str, str], now: float) -> float:
    """Return when Braze sent the answer, by its ``Date``, otherwise *now*."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return now


def _refusal(
    status: int, headers: Mapping[str, str], document: Mapping[str, Any], now: float
) -> BrazeError:
    message = str(document.get("message") or "no Braze answer in the body")
    details = document.get("errors")
    more = f" ({json.dumps(details, ensure_ascii=False)})" if details else ""
    wait = retry_after(headers.get("retry-after"), now)
    if status == 429 and (quota := read_quota(headers, now)):
        wait = quota.seconds
    remedy = ""
    if status in _NO_ACCESS or 300 <= status < 400:
        remedy = (
            "check BRAZE_REST_URL and BRAZE_REST_KEY, and that the key has the permissions "
            "campaigns.trigger.send and canvas.trigger.send"
        )
    error = BrazeError(
        _meaning(status),
        shown(f"HTTP {status}: {message}{more}", 500),
        status=status,
        retry_after=wait,
        brief=f"HTTP {status}",
        remedy=remedy,
    )
    error.is_foreign = not document.get("message")
    return error


def _meaning(status: int) -> Meaning:
    if status == 504:
        return Meaning.UNANSWERED
    if status >= 500 or status in {408, 425, 429}:
        return Meaning.BUSY
    # A redirect leads away from the API: the configured URL is wrong.
    if status in _NO_ACCESS or 300 <= status < 400:
        return Meaning.CREDENTIALS
    return Meaning.REFUSED


def _warnings(errors: object, recipients: Sequence[str]) -> dict[int, str]:
    """Return the entries of ``errors`` by the index of the recipient, or -1."""
    found: dict[int, list[str]] = {}
    for entry in errors if isinstance(errors, list) else [errors] if errors else []:
        text = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
        index = _index(entry, text, recipients)
        found.setdefault(index, []).append(shown(text, 300))
    return {index: shown("; ".join(text), 500) for index, text in found.items()}


def _index(entry: object, text: str, recipients: Sequence[str]) -> int:
    if isinstance(entry, dict):
        index = entry.get("index")
        if isinstance(index, int) and 0 <= index < len(recipients):
            return index
    named = [index for index, one in enumerate(recipients) if one and one in text]
    return named[0] if len(named) == 1 else -1
