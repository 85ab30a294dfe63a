"""Read SessionM's answers. Pure.

Only the body shows whether a call worked: HTTP 200 may carry ``"status":"error"`` (Tags API,
"Statuses and Errors").
"""

import re
from collections.abc import Mapping
from typing import Any

from bridge.calls import CallError, json_object, retry_after
from bridge.calls import Meaning as Meaning  # noqa: PLC0414 - exported with `SessionMError`
from bridge.fields import shown


class SessionMError(CallError):
    """A failed call to SessionM; *code* is SessionM's error code in upper case, or ""."""

    def __init__(
        self,
        meaning: Meaning,
        message: str,
        *,
        code: str = "",
        **details: Any,
    ) -> None:
        super().__init__(meaning, message, **details)
        self.code = code


_BUSY_STATUSES = {408, 425, 429}

_CODE = re.compile("[A-Z_]{1,40}")

# SessionM's generic error codes, in upper case: SessionM sends them in any case.
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
    """Return the JSON object of a successful answer.

    Args:
        status: HTTP status.
        headers: response headers by their names in lower case.
        body: the whole body.
        now: seconds since the epoch, for a ``Retry-After`` that is a date.

    Raises:
        SessionMError: the call failed.
    """
    document = json_object(body)
    worked = str(document.get("status", "")).lower() if document else ""
    if 200 <= status < 300 and worked == "ok":
        return document
    code, message = _error(document)
    raise SessionMError(
        _meaning(status, code, is_error=worked == "error"),
        _sentence(status, code, message),
        status=status,
        code=code,
        retry_after=retry_after(headers.get("retry-after"), now),
        brief=_sentence(status, code if _CODE.fullmatch(code) else "", ""),
    )


def _meaning(status: int, code: str, *, is_error: bool) -> Meaning:
    if status in _BUSY_STATUSES or status >= 500:
        return Meaning.BUSY
    if status == 401:
        return Meaning.CREDENTIALS
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status == 404 and is_error and not code:
        return Meaning.UNKNOWN_CUSTOMER
    # Without SessionM's error object, the answer may come from a proxy, whatever its status.
    return Meaning.REFUSED if is_error or code else Meaning.GARBLED


def _error(document: Mapping[str, Any]) -> tuple[str, str]:
    errors = document.get("errors")
    if isinstance(errors, list) and errors:
        errors = errors[0]
    if not isinstance(errors, dict):
        return "", str(errors or "")
    return str(errors.get("code") or "").upper(), str(errors.get("message") or "")


def _sentence(status: int, code: str, message: str) -> str:
    text = " ".join(part for part in (code, message) if part) or "no SessionM answer in the body"
    # `shown` removes incomplete characters, which a database refuses: SessionM may cut its texts.
    return shown(f"HTTP {status}: {text}", 500)
