"""Single values as people and Liquid templates write them."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.fields import MAX_TEXT, MAX_TTL, FieldError, Whole, duration, required, text, trim, ttl
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
    "before", ["", "  ", "\u00a0", "\u202f", "\r\n\t", "\ufeff", "\ufeff \u200b\u00a0\ufeff "]
)
@pytest.mark.parametrize("after", ["", " \u200b", "\u200b \u00a0\ufeff"], ids=ascii)
def test_padding_around_a_text_is_no_part_of_it(read: Any, before: str, after: str) -> None:
    assert read(f"{before}a b{after}", "f") == "a b"


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
    "placeholder": ["{{${id}}}", "{% if a %}b", "${id}", "a{{b}}c", "{{\n${id}\n}}", "\ud83d{{x}}"],
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


@pytest.mark.parametrize("value", [".", "..", " .. "])
def test_an_identifier_that_a_url_path_cannot_carry_is_refused(value: str) -> None:
    assert "cannot be" in refusal(read_identifier, value)


LENGTHS: list[tuple[object, int]] = [
    *((0, 0), (90, 90), ("90", 90), (Whole("90"), 90), ("007", 7), ("90s", 90)),
    *(("15m", 900), ("12h", 43_200), ("30d", 2_592_000), (" 30 D\u00a0", 2_592_000)),
]
NO_LENGTHS: list[object] = [
    *("-1", "+1", "1.5", "1e3", "0x10", "30w", "30 days", "1h30m", "٣٠", "d", "1_000"),
    *(-1, 1.5, True, [], {}, "9" * 5000, Whole("9" * 5000)),
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
    assert "whole number of seconds up to 10 years, or such as 30d" in refusal(ttl, value)


def test_a_ttl_that_is_still_liquid_is_called_a_placeholder() -> None:
    assert "placeholder" in refusal(ttl, "{{ttl}}")


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
