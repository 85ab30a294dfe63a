"""What SessionM's answers mean."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from bridge.calls import retry_after
from bridge.sessionm.answers import Meaning, SessionMError, read_answer
from tests.unit.test_fields import is_one_line

NOON = 1_764_590_400.0  # 2025-12-01T12:00:00Z
HTML = b"<html><body>Bad Gateway</body></html>"
OK = {"status": "ok", "tags": {"tag1": 2}}


def answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, CaseInsensitiveDict(headers or {}), raw, NOON)


def failure(
    status: int, body: object = b"", headers: Mapping[str, str] | None = None
) -> SessionMError:
    with pytest.raises(SessionMError) as caught:
        answer(status, body, headers)
    assert caught.value.status == status
    assert is_one_line(str(caught.value))
    assert len(str(caught.value)) <= 500
    return caught.value


def error(code: object, message: object = "why") -> dict[str, Any]:
    return {"status": "error", "errors": {"code": code, "message": message}}


@pytest.mark.parametrize("status", [200, 201, 202])
def test_an_answer_worked_if_http_and_the_body_say_so(status: int) -> None:
    assert answer(status, OK) == OK
    assert answer(status, b"\xef\xbb\xbf" + json.dumps({"status": "OK"}).encode())


BY_MEANING = {
    Meaning.BUSY: ["INTERNAL_SERVER_ERROR"],
    Meaning.CREDENTIALS: ["HTTPS_ONLY", "INVALID_AUTH_TOKEN", "INVALID_API_KEY", "ACCESS_DENIED"],
    Meaning.UNKNOWN_CUSTOMER: ["USER_NOT_FOUND", "NOT_FOUND", "REQUIRES_REGISTERED_USER"],
    Meaning.REFUSED: ["MISSING_DATA", "VALIDATION", "NOT_AVAILABLE", "ARGUMENT_ERROR", "NEW"],
}
CODES = {code: meaning for meaning, codes in BY_MEANING.items() for code in codes}


@pytest.mark.parametrize(("code", "meaning"), CODES.items(), ids=CODES)
@pytest.mark.parametrize("status", [200, 400, 403, 404, 422])
def test_the_code_says_what_a_refusal_means(status: int, code: str, meaning: Meaning) -> None:
    for spelt in (code, code.lower(), code.title()):
        refused = failure(status, error(spelt))
        assert (refused.meaning, refused.code) == (meaning, code)
        assert str(refused) == f"HTTP {status}: {code} why"


@pytest.mark.parametrize("code", CODES)
def test_some_statuses_say_more_than_any_code(code: str) -> None:
    assert failure(401, error(code)).meaning is Meaning.CREDENTIALS
    for status in (408, 425, 429, 500, 502, 503, 504, 529):
        assert failure(status, error(code)).meaning is Meaning.BUSY


ERROR = {"status": "error"}
BARE: list[tuple[int, object, Meaning]] = [
    *((401, body, Meaning.CREDENTIALS) for body in (b"", HTML, OK, ERROR)),
    *((status, HTML, Meaning.BUSY) for status in (408, 425, 429, 500, 502, 503, 504, 529, 599)),
    *((429, body, Meaning.BUSY) for body in (b"", OK, ERROR)),
    *((200, body, Meaning.GARBLED) for body in (HTML, b"", b"null", b"[{}]", b"{}", b'"ok"')),
    *((200, {"status": status}, Meaning.GARBLED) for status in (None, "", "created", ["ok"], 1)),
    *((200, body, Meaning.GARBLED) for body in (b'{"status":"ok"', b'{"status":"ok","a":"\xff"}')),
    *((200, body, Meaning.GARBLED) for body in (b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}")),
    *((status, HTML, Meaning.GARBLED) for status in (302, 400, 403, 404)),
    (204, b"", Meaning.GARBLED),
    (400, OK, Meaning.GARBLED),
    *((status, ERROR, Meaning.REFUSED) for status in (200, 400, 403, 422)),
    (200, {"status": "ERROR", "errors": {}}, Meaning.REFUSED),
    (200, {"status": "error", "errors": "no"}, Meaning.REFUSED),
    (400, {"errors": {"code": "VALIDATION"}}, Meaning.REFUSED),
    (404, ERROR, Meaning.UNKNOWN_CUSTOMER),
    (200, {**ERROR, "errors": [{"code": "user_not_found"}]}, Meaning.UNKNOWN_CUSTOMER),
]


@pytest.mark.parametrize(("status", "body", "meaning"), BARE, ids=lambda part: ascii(part)[:40])
def test_answers_without_a_code_are_judged_by_what_there_is(
    status: int, body: object, meaning: Meaning
) -> None:
    assert failure(status, body).meaning is meaning


@pytest.mark.parametrize(
    "message",
    ["a\nb", "half an emoji: \ud83d", "\0", "\x1b[31m", "x" * 10_000, ["a"], {"a": 1}, None, 5],
    ids=ascii,
)
def test_whatever_sessionm_says_fits_a_log_line_and_a_database(message: object) -> None:
    assert failure(400, error("VALIDATION", message)).meaning is Meaning.REFUSED
    assert failure(400, error(message)).meaning is Meaning.REFUSED
    assert failure(400, {"status": "error", "errors": message}).meaning is Meaning.REFUSED


CLEAR = {425, 429, 401, 404, 400}


@pytest.mark.parametrize("status", [200, 408, 500, 503, *CLEAR])
def test_only_a_call_without_a_clear_answer_may_have_worked(status: int) -> None:
    refused = failure(status, error("INTERNAL_SERVER_ERROR" if status == 200 else "VALIDATION"))
    assert refused.may_have_worked is (status not in CLEAR)
    assert refused.is_outage is (status not in CLEAR)
    assert SessionMError(Meaning.UNANSWERED, "x").may_have_worked
    assert not SessionMError(Meaning.UNREACHABLE, "x").may_have_worked
    assert failure(200, HTML).may_have_worked


WAITS: dict[str | None, float | None] = {
    "0": 0,
    "120": 120,
    " 7 ": 7,
    "Mon, 01 Dec 2025 12:01:30 GMT": 90,
    "Mon, 01 Dec 2025 13:01:30 +0100": 90,
    "Monday, 01-Dec-25 12:01:30 GMT": 90,
    "Mon Dec  1 12:01:30 2025": 90,
    "Mon, 01 Dec 2025 11:00:00 GMT": 0,
    **dict.fromkeys([None, "", " ", "-5", "soon", "Mon, 99 Dec 2025 12:00:00 GMT"]),
    "Mon, 01 Dec 2025 12:00:00 +99999999999999999999": None,
    "Jan 2025 99999999999999999999 00.00 -": None,
    "9" * 5000 + "x": None,
}


@pytest.mark.parametrize(("value", "seconds"), WAITS.items(), ids=lambda part: str(part)[:40])
def test_retry_after_is_read_in_seconds_or_as_a_date(
    value: str | None, seconds: float | None
) -> None:
    assert retry_after(value, NOON) == seconds


@pytest.mark.parametrize("status", [200, 429, 503])
def test_a_failure_carries_the_wait_that_sessionm_asks_for(status: int) -> None:
    body = error("INTERNAL_SERVER_ERROR")
    assert failure(status, body, {"retry-after": "30"}).retry_after == 30
    assert failure(status, body).retry_after is None


DATE_PARTS = st.sampled_from(
    ["Mon,", "1", "Jan", "2025", "00:00:00", "GMT", "+0000", "9" * 20, "00.00", ":", "-", "."]
)


@given(st.text() | st.lists(DATE_PARTS, max_size=8).map(" ".join))
def test_any_retry_after_is_a_wait_or_nothing(value: str) -> None:
    found = retry_after(value, NOON)
    assert found is None or found >= 0


@given(st.integers(100, 599), st.binary(max_size=60))
def test_any_answer_worked_or_is_an_error_of_sessionm(status: int, body: bytes) -> None:
    failure(status, body)


@pytest.mark.parametrize("depth", range(100, 1100, 100))
def test_deep_nesting_is_an_error_of_sessionm(depth: int) -> None:
    deep = b'{"status":"error","errors":{"code":' + b"[" * depth + b"]" * depth + b"}}"
    assert failure(400, deep).meaning in {Meaning.REFUSED, Meaning.GARBLED}
