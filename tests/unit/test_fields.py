"""Single values as people and Liquid templates write them."""

import json
import sys
import time
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.fields import (
    MAX_TEXT,
    MAX_TTL,
    FieldError,
    Whole,
    amount,
    duration,
    form,
    instant,
    iso,
    percent,
    required,
    text,
    trim,
    ttl,
    whole_number,
)
from bridge.fields import identifier as read_identifier

ANY_TEXT = st.text(st.characters(exclude_categories=()))
READERS = [text, required, read_identifier]


def is_one_line(message: str) -> bool:
    """Whether *message* fits a line of a log and any database: no controls, no half emoji."""
    return not {unicodedata.category(char) for char in message} & {"Cc", "Cs", "Zl", "Zp"}


def refusal(read: Any, value: object) -> str:
    """The message with which *read* refuses *value*."""
    with pytest.raises(FieldError) as caught:
        read(value, "the_field")
    assert caught.value.field == "the_field"
    assert str(caught.value).startswith("the_field ")
    return str(caught.value)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "before",
    [
        *("", "  ", "\u00a0", "\u202f", "\r\n\t", "\ufeff", "\ufeff \u200b\u00a0\ufeff "),
        *("\u200e", "\u202a \u2060", "\u2066\u00ad", "\U000e0020"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize(
    "after", ["", " \u200b", "\u200b \u00a0\ufeff", "\u200f \u2069"], ids=ascii
)
def test_padding_around_a_text_is_no_part_of_it(read: Any, before: str, after: str) -> None:
    assert read(f"{before}a b{after}", "f") == "a b"


def test_every_invisible_character_is_trimmed() -> None:
    """All of Unicode's category Cf, as this Python knows it."""
    characters = map(chr, range(sys.maxunicode + 1))
    left = [char for char in characters if unicodedata.category(char) == "Cf" and trim(char)]
    assert not left


@pytest.mark.parametrize("value", [None, "", "  \u00a0", "\ufeff", "\n"])
def test_a_blank_text_counts_as_absent(value: str | None) -> None:
    assert [read(value, "f") for read in (text, read_identifier, ttl)] == [None] * 3
    assert "is empty" in refusal(required, value)


@pytest.mark.parametrize("value", ["a\u00a0b", "ünï😀", "a,b", "{a}$5 50%}}%}", "x" * MAX_TEXT])
def test_what_stands_inside_a_text_is_kept(value: str) -> None:
    assert text(value, "f") == value


def test_a_number_of_json_is_an_identifier_with_all_its_digits() -> None:
    assert text(Whole("12345678901234567890123456789"), "f") == "12345678901234567890123456789"


REFUSED: dict[str, list[object]] = {
    "placeholder": [
        "…",
        " … ",
        "{{${id}}}",
        "{% if a %}b",
        "${id}",
        "a{{b}}c",
        "{{\n${id}\n}}",
        "\ud83d{{x}}",
    ],
    "control character": ["a\nb", "a\0b", "a\x1b[31m", "a\x9bb", "a\u2028b", "a\ud83db"],
    "255": ["é" * (MAX_TEXT + 1)],
    "text": [True, 5, 1.5, ["a"], {"a": "b"}],
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("says", "value"), [(says, value) for says, values in REFUSED.items() for value in values]
)
def test_a_refusal_is_one_line_that_names_the_field(read: Any, says: str, value: object) -> None:
    message = refusal(read, value)
    assert says in message
    assert is_one_line(message)
    assert len(message) < 300


@pytest.mark.parametrize("value", ["“42”", "42”", " „42“ ", "‘42’", "«42»"])
def test_an_identifier_in_curly_quotes_is_refused(value: str) -> None:
    assert "in curly quotes, pasted from a word processor" in refusal(read_identifier, value)
    assert read_identifier("4“2”4", "f") == "4“2”4"


@pytest.mark.parametrize("value", [".", "..", " .. "])
def test_an_identifier_that_a_url_path_cannot_carry_is_refused(value: str) -> None:
    assert "cannot be" in refusal(read_identifier, value)


NO_VALUES = [
    *("null", "NULL", "undefined", "None", "nil", "NaN", "[object Object]", "<nil>", "(null)"),
    *("\\N", "#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NV", " null\u200b"),
]


@pytest.mark.parametrize("value", NO_VALUES)
def test_a_word_for_no_value_is_no_identifier(value: str) -> None:
    assert read_identifier(value, "f") is None


@pytest.mark.parametrize(
    "value",
    ["nully", "nil-1", "nonesuch", "nan0", "#1", "#vip", "N", "\\NN", "0", "none@a.b", "NA"],
)
def test_what_only_resembles_such_a_word_is_an_identifier(value: str) -> None:
    assert read_identifier(value, "f") == value


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1), ("1", 1), (Whole("20"), 20), (" 20.0\u00a0", 20), (20.0, 20), ("007", 7), (50, 50)]
    + [(blank, None) for blank in (None, "", " ")],
)
def test_a_whole_number_is_read_from_a_number_or_text(value: object, number: int | None) -> None:
    assert whole_number(value, "f", 50) == number


@pytest.mark.parametrize(
    "value",
    [
        0,
        51,
        "0",
        "51",
        -1,
        "-1",
        1.5,
        "1.5",
        "1e1",
        float("inf"),
        float("nan"),
        10**30,
        "9" * 5000,
        "x",
        "²",
        "٣",
        "1,0",
        "{{a}}",
        True,
        [],
        {},
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_other_number_is_refused(value: object) -> None:
    refusal(lambda value, field: whole_number(value, field, 50), value)


LENGTHS: list[tuple[object, int]] = [
    *((0, 0), (90, 90), ("90", 90), (Whole("90"), 90), ("007", 7), ("90s", 90)),
    *((90.0, 90), ("90.0", 90), ("2592000.00", 2_592_000), ("30.0d", 2_592_000)),
    *(("15m", 900), ("12h", 43_200), ("30d", 2_592_000), (" 30 D\u00a0", 2_592_000)),
]
NO_LENGTHS: list[object] = [
    *(
        "-1",
        "+1",
        "1.5",
        "1.05d",
        "1.",
        ".0",
        "1e3",
        "0x10",
        "30w",
        "30 days",
        "1h30m",
        "٣٠",
        "d",
        "1_000",
    ),
    *(
        -1,
        1.5,
        -90.0,
        float("inf"),
        float("nan"),
        1e300,
        True,
        [],
        {},
        "9" * 5000,
        Whole("9" * 5000),
    ),
]


@pytest.mark.parametrize(("value", "seconds"), LENGTHS)
def test_a_length_of_time_is_read_as_seconds(value: object, seconds: int) -> None:
    assert duration(value) == seconds


@pytest.mark.parametrize("value", [*NO_LENGTHS, "", None], ids=lambda value: ascii(value)[:20])
def test_anything_else_is_no_length_of_time(value: object) -> None:
    with pytest.raises(ValueError, match="length of time"):
        duration(value)


@pytest.mark.parametrize("value", [1, "1", "1s", MAX_TTL, str(MAX_TTL), "3650d"])
def test_a_ttl_may_be_anything_from_a_second_to_ten_years(value: object) -> None:
    assert ttl(value, "f") in {1, MAX_TTL}


@pytest.mark.parametrize(
    "value", [*NO_LENGTHS, 0, "0d", MAX_TTL + 1, "3651d"], ids=lambda value: ascii(value)[:20]
)
def test_any_other_ttl_is_refused(value: object) -> None:
    assert "must be whole seconds, or a time written as 90s, 15m, 12h, 30d" in refusal(ttl, value)


def test_a_ttl_that_is_still_liquid_is_called_a_placeholder() -> None:
    assert "placeholder" in refusal(ttl, "{{ttl}}")


NEW_YEAR = 1_577_836_800.0  # 2020-01-01T00:00:00Z
INSTANTS: list[object] = [
    *("2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01T00:00:00", "2020-01-01 00:00:00"),
    *("2020-01-01t00:00:00z", "2020-01-01T00:00Z", "2020-01-01T00", "2020-01-01T00Z"),
    *("2019-12-31T24:00:00Z", "2019-12-31 24:00", "2019-12-31T23:59:60Z", "2020/01/01 00:00"),
    *("2020-01-01 00:00:00 UTC", "2020-01-01 00:00:00 GMT", "2020-01-01 00:00:00 Z"),
    *("2020-01-01 00:00:00 +0000", "2020-01-01 00:00:00 +0000 UTC", "2020-01-01T01:00:00+01"),
    *("2020-01-01T05:30:00+05:30", "2019-12-31T19:00:00-0500", "2020-01-01T00:00:00Z[UTC]"),
    *("2020-01-01T01:00:00+01:00[Europe/Paris]", " 2020-01-01T00:00:00Z\u200b"),
    *(f"2020-01-01T00:00:00.{'0' * digits}Z" for digits in (1, 2, 3, 6, 7, 9, 12)),
    *("2020-01-01T00:00:00,000Z", "20200101", "20200101T000000Z", "20200101T00", "202001010000"),
    *("20200101000000", "2020-W01-3", "2020W013T00:00:00Z", 20200101),
    *(1_577_836_800, 1_577_836_800.0, "1577836800", "1577836800.0", Whole("1577836800")),
    *(1_577_836_800_000, "1577836800000", "/Date(1577836800000)/", "Date(1577836800000)"),
    *("/Date(1577836800000+0000)/", "/Date(1577836800000-0500)/"),
    *("Wed, 01 Jan 2020 00:00:00 GMT", "Wed, 1 Jan 2020 00:00:00 +0000", "01 Jan 2020 00:00 UT"),
    *("Wednesday, 01-Jan-2020 00:00:00 GMT", "Tue, 31 Dec 2019 19:00:00 EST"),
    *("01/01/2020", "1/1/2020", "1/1/2020 12:00:00 AM", "1/1/2020 0:00", "1/1/2020, 12:00 am"),
    *("1/1/2020, 12:00:00\u202fAM", "01/01/2020 00:00:00 UTC", "1/1/2020 12:00 a.m."),
    *("January 1, 2020", "Jan 1, 2020 12:00 AM", "1 January 2020", "1-Jan-2020"),
    "Wed Jan 01 2020 00:00:00 GMT+0000 (Coordinated Universal Time)",
]
NO_INSTANTS: list[object] = [
    *(
        "",
        " ",
        "someday",
        "never",
        "null",
        "2020",
        "2020-01",
        "2020-13-01",
        "2020-02-30",
        "0000-01-01",
    ),
    *("2020-01-01T24:00:01Z", "2020-01-01T25:00:00Z", "2020-01-01T00:60:00Z", "2020-01-01x00:00"),
    *("31/12/2020", "01/01/20", "1.1.2020", "1/1/2020 13:00 PM", "1/1/2020 0:00 AM", "13 Foo 2020"),
    *("2020-01-01T00:00:00 LMT", "2020-01-01T00:00:00+99:00", "0", "12345", 0, 12345, -1),
    *("9" * 5000, "9223372036854775807", 10**400, float("nan"), float("inf"), 1e20, 1e400),
    *("2020-01-01" + " " * 1000, "/Date()/", "/Date(x)/", None, True, [], {}, ["2020-01-01"]),
]


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("value", INSTANTS, ids=ascii)
def test_a_date_is_read_in_every_usual_form_as_utc_wherever_the_machine_is(value: object) -> None:
    assert instant(value) == NEW_YEAR


@pytest.mark.parametrize("value", NO_INSTANTS, ids=lambda value: ascii(value)[:30])
def test_anything_else_is_no_date(value: object) -> None:
    assert instant(value) is None


@pytest.mark.parametrize(
    ("value", "read"),
    [
        # The month first, as in the USA.
        ("12/1/2026 11:59:59 PM", "2026-12-01T23:59:59Z"),
        ("12/1/2026 12:30 PM", "2026-12-01T12:30:00Z"),
        (1_577_836_800.9, "2020-01-01T00:00:00Z"),
        (253_402_300_799_000, "9999-12-31T23:59:59Z"),
        ("9999-12-31T24:00:00Z", "9999-12-31T23:59:59Z"),
        ("9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59Z"),
        ("0001-01-01T00:00:00+02:00", "0001-01-01T00:00:00Z"),
        ("/Date(-99999999999999999)/", "0001-01-01T00:00:00Z"),
        ("2020-02-29T12:00:00.987654321+02:00", "2020-02-29T10:00:00Z"),
    ],
)
def test_a_date_keeps_its_time(value: object, read: str) -> None:
    found = instant(value)
    assert found is not None
    assert iso(found) == read


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(9999, 1, 1)),  # noqa: DTZ001 - a zone is added
    st.integers(-14 * 60, 14 * 60),
)
def test_what_python_writes_is_read_to_the_microsecond(when: datetime, minutes: int) -> None:
    aware = when.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    for written in (aware.isoformat(), aware.isoformat(" "), aware.strftime("%Y-%m-%d %T.%f %z")):
        assert instant(written) == pytest.approx(aware.timestamp(), abs=1e-3)
    in_utc = when.replace(tzinfo=UTC, microsecond=0)
    for pattern in ("%a, %d %b %Y %T GMT", "%m/%d/%Y %I:%M:%S %p", "%Y%m%dT%H%M%SZ"):
        assert instant(in_utc.strftime(pattern)) == in_utc.timestamp()


AMOUNTS: list[tuple[object, float]] = [
    *((1240, 1240), (1.5, 1.5), ("100", 100), ("1.5", 1.5), ("-3", -3), ("+3", 3), ("1e3", 1000)),
    *(
        (written, 1240)
        for written in ("1,240", "1 240", "1\u00a0240", "1\u202f240", "1'240", "1’240")
    ),
    *((written, 1240.5) for written in ("1240,5", "1.240,50", "1,240.50", "1 240,5", "1'240.50")),
    *(("1,240,500", 1_240_500), ("1.240.500", 1_240_500), ("12,5", 12.5), ("0,125", 0.125)),
    # A single dot is a decimal point.
    *(("1.240", 1.24), ("-1,240", -1240), (" 1,240\u200e", 1240), (Whole("7"), 7)),
]
NO_AMOUNTS: list[object] = [
    *(
        "",
        "many",
        "1,24,0",
        "12,34,567",
        "1,240 points",
        "$5",
        "1.2.3",
        "1,240.5.0",
        "--1",
    ),
    *("9" * 5000, "1e999", None, True, [], {}, float("nan"), float("inf"), 10**400, "NaN", "1 2"),
]


@pytest.mark.parametrize(("value", "number"), AMOUNTS, ids=ascii)
def test_a_number_is_read_as_people_write_it(value: object, number: float) -> None:
    assert amount(value) == number


@pytest.mark.parametrize("value", NO_AMOUNTS, ids=lambda value: ascii(value)[:20])
def test_anything_else_is_no_number(value: object) -> None:
    assert amount(value) is None


@given(st.integers(0, 10**15), st.sampled_from([",", " ", "'", "\u00a0", "\u202f"]))
def test_separators_of_thousands_change_no_number(number: int, separator: str) -> None:
    assert amount(f"{number:,}".replace(",", separator)) == number


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (0.04, "4 %"), (0.089, "8.9 %"), (0.19, "19 %"), (0.9999, "99.9 %"), (1, "100 %")],
)
def test_a_share_is_written_as_percent_and_only_all_is_a_hundred(share: float, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("31/12/2026 Müller", "99/99/9999 a"),
        (123, "999"),
        (None, "true, false or null"),
        (["x"], "a list"),
        ({"a": "Ann"}, "an object"),
        ("a\nb", "a\N{REPLACEMENT CHARACTER}a"),
    ],
    ids=ascii,
)
def test_the_form_of_a_value_holds_nothing_of_it(value: object, shape: str) -> None:
    assert form(value) == shape


@given(st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT)
def test_whatever_sessionm_sends_is_a_date_or_a_number_or_neither(value: object) -> None:
    assert isinstance(instant(value), float | int | None)
    assert amount(value) is None or json.dumps(amount(value), allow_nan=False)
    shape = form(value)
    assert is_one_line(shape)
    assert len(shape) <= 40


@given(st.text("\ufeff\u200b\u00a0 \n\tab"))
def test_trimming_leaves_no_padding(value: str) -> None:
    assert trim(value) == value.strip("\ufeff\u200b\u00a0 \n\t")


@given(st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.lists(ANY_TEXT))
def test_whatever_comes_is_read_or_refused(value: object) -> None:
    for read in (*READERS, ttl):
        try:
            found = read(value, "f")
        except FieldError as refused:
            assert is_one_line(str(refused))  # noqa: PT017 - either is right
        else:
            assert found is None or isinstance(found, int) or 0 < len(found) <= MAX_TEXT
