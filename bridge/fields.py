"""Read single values written by people, spreadsheets and Liquid templates. Pure.

Braze fills templates by text substitution. A value may therefore be blank, padded with (no-break)
spaces, a number, the word ``null``, or Liquid that was not rendered.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import NoReturn

MAX_TEXT = 255
# Levels of nested JSON. No sender needs more, and Python limits recursion.
MAX_DEPTH = 100
MAX_TTL = 10 * 365 * 86400
# The forms of a length of time, for messages.
DURATIONS = "90s, 15m, 12h, 30d"

# Ranges of Unicode category Cf: invisible characters such as direction marks and the byte order
# mark. Written out, since computing them takes a second. A test compares them with Python's data.
_INVISIBLE = (
    *((0xAD, 0xAD), (0x600, 0x605), (0x61C, 0x61C), (0x6DD, 0x6DD), (0x70F, 0x70F)),
    *((0x890, 0x891), (0x8E2, 0x8E2), (0x180E, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E)),
    *((0x2060, 0x2064), (0x2066, 0x206F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)),
    *((0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3)),
    *((0x1D173, 0x1D17A), (0xE0001, 0xE0001), (0xE0020, 0xE007F)),
)
_PADDING = "".join(char for char in map(chr, range(0x3001)) if char.isspace()) + "".join(
    chr(code) for first, last in _INVISIBLE for code in range(first, last + 1)
)
# Seconds since the epoch at 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: the first and the last
# second with a four-digit year.
_EARLIEST, _LATEST = -62_135_596_800.0, 253_402_300_799.0
_LIQUID = re.compile(r"\{\{|\{%|\$\{")
# Control characters, line separators, and lone surrogates, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
CURLY_QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb"
# Words that programs print for "no value", and that spreadsheets show for a failed formula.
_NO_VALUE = re.compile(
    r"[<(]?(null|undefined|none|nil|nan)[>)]?|\[object object\]|\\n|#(n/a|nv|[a-z_/0]{2,12}[!?])",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"([0-9]{1,12})(?:\.0+)?", re.ASCII)
_DURATION = re.compile(rf"{_WHOLE.pattern}\s*([smhd]?)", re.ASCII)
_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

# JSON Schemas of the functions below. Rules that a schema cannot express, such as the refusal of
# Liquid, or a length without the blanks around a text, are in the description of the interface.
TEXT_SCHEMA = {"type": ["string", "integer", "null"]}
REQUIRED_SCHEMA = {**TEXT_SCHEMA, "type": ["string", "integer"], "minLength": 1}
TTL_SCHEMA = {
    "type": ["integer", "string", "null"],
    "description": f"Seconds, or a length of time written as {DURATIONS}.",
    "minimum": 1,
    "maximum": MAX_TTL,
}


class FieldError(ValueError):
    """A value that cannot be used; ``str()`` is one sentence that names the field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class PlaceholderError(FieldError):
    """A value that the template of its sender did not fill in; *advice* says what to check."""

    def __init__(
        self,
        field: str,
        value: str,
        advice: str = "check the spelling of the Liquid; in a test, choose a user to test with",
    ) -> None:
        super().__init__(field, f"still holds a placeholder ({shown(value)}): {advice}")
        self.value = value


class Whole(str):
    """A whole number of a JSON document, kept as text so that no digit of an ID is lost."""

    __slots__ = ()


def trim(value: str) -> str:
    """Return *value* without spaces and invisible characters (Unicode category Cf) around it."""
    return value.strip() if value.isascii() else value.strip(_PADDING)


def shown(value: str, most: int | None = 60) -> str:
    """Return the first *most* characters of *value* as one line, for a log or a terminal."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value[:most])


def spreadsheet_cell(value: str) -> str:
    """Return *value* as a cell that no spreadsheet reads as a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def csv_text(rows: Iterable[Sequence[object]], end: str = "\r\n") -> str:
    """Return *rows* as lines of CSV; *end* is the end of each line."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue()


def has_liquid(value: str) -> bool:
    """Return whether *value* still holds Liquid that Braze should have replaced."""
    return _LIQUID.search(value) is not None


def is_no_value(value: str) -> bool:
    """Return whether *value* is a word such as ``null`` or ``#N/A``, printed for "no value"."""
    return _NO_VALUE.fullmatch(value) is not None


def significant(value: str | None) -> str | None:
    """Return *value*; ``None`` if it is blank, or a word that `is_no_value` knows."""
    return value if value and not is_no_value(value) else None


def is_storable(value: str) -> bool:
    """Return whether *value* is text for UTF-8 and PostgreSQL: no lone surrogate, and no NUL."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def text(value: object, field: str) -> str | None:
    """Read one line of text; ``None`` when it is absent or blank.

    Raises:
        FieldError: the value is not text, is a placeholder, holds Liquid or control characters, or
            is longer than 255 characters.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise FieldError(field, "must be text, not a list or an object")
    if len(value) <= MAX_TEXT and value.isascii() and value.isprintable() and "{" not in value:
        # Fast path: none of the checks below applies to such a text.
        return value.strip() or None
    cleaned = trim(value)
    # "…" stands for an ID in what the pages offer for copying.
    if has_liquid(cleaned) or cleaned == "…":
        raise PlaceholderError(field, cleaned)
    if _UNPRINTABLE.search(cleaned):
        raise FieldError(field, "holds a line break or another control character: delete it")
    if len(cleaned) > MAX_TEXT:
        raise FieldError(field, f"is longer than {MAX_TEXT} characters")
    return cleaned or None


def required(value: object, field: str) -> str:
    """Read required text.

    Raises:
        FieldError: as `text`, or the value is absent or blank.
    """
    found = text(value, field)
    if found is None:
        raise FieldError(field, "is empty")
    return found


def display_name(value: object, field: str) -> str | None:
    """Read a name for display, cut to one line; ``None`` when blank.

    Raises:
        FieldError: the value is not text, or holds Liquid.
    """
    if value is None or (isinstance(value, str) and not has_liquid(value)):
        return significant(shown(trim(value or ""), MAX_TEXT))
    return text(value, field)


def identifier(value: object, field: str, *, in_quotes: bool = False) -> str | None:
    """Read an identifier; ``None`` when it is absent, blank or a word for "no value".

    A word such as ``null`` counts as blank, so that another identifier of the same customer is
    used if there is one: see `is_no_value`.

    Args:
        value: the identifier.
        field: its name, for messages.
        in_quotes: accept an ID that begins or ends with a curly quote, to erase events that hold
            one.

    Raises:
        FieldError: as `text`, or a curly quote is at its beginning or end, or the value is ``.``
            or ``..``, or holds one of them between slashes. A URL path cannot hold these, since a
            server before SessionM may resolve them.
    """
    found = text(value, field)
    if found and "." in found and not {".", ".."}.isdisjoint(re.split(r"[/\\]", found)):
        raise FieldError(field, 'cannot be "." or "..", nor hold one between slashes')
    if found and not in_quotes and is_in_quotes(found):
        raise FieldError(
            field,
            f'is in curly quotes, pasted from a word processor: "{shown(found)}". Delete them',
        )
    return significant(found)


def is_in_quotes(value: str) -> bool:
    """Return whether *value* begins or ends with a curly quote."""
    return not value.isascii() and not {value[0], value[-1]}.isdisjoint(CURLY_QUOTES)


def whole_number(value: object, field: str, most: int, least: int = 1) -> int | None:
    """Read a whole number, *least* to *most*, also as text or with ``.0``; ``None`` when blank.

    Raises:
        FieldError: the value is anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = format(value, ".0f") if _is_whole(value) else str(value)
    found = text(value, field)
    if found is None:
        return None
    match = _WHOLE.fullmatch(found)
    if match is None or not least <= int(match[1]) <= most:
        raise FieldError(field, f"must be a whole number from {least} to {most}")
    return int(match[1])


def duration(value: object) -> int:
    """Read a length of time, ``90``, ``90s``, ``15m``, ``12h`` or ``30d``, as whole seconds.

    ``90.0`` is accepted as a number and as text.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, float) and _is_whole(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        _refuse_duration()
    match = _DURATION.fullmatch(trim(str(value)).lower())
    if match is None:
        _refuse_duration()
    return int(match[1]) * _UNIT[match[2]]


def as_duration(seconds: int) -> str:
    """Write whole seconds as `duration` reads them, in the largest unit: ``30d``, ``36h``."""
    unit = next(unit for unit in "dhms" if seconds % _UNIT[unit] == 0)
    return f"{seconds // _UNIT[unit]}{unit}"


def ttl(value: object, field: str) -> int | None:
    """Read a tag's TTL in seconds; ``None`` when it is absent or blank.

    Raises:
        FieldError: the value is not a positive whole number of seconds up to ten years.
    """
    if value is None or (isinstance(value, str) and not trim(value)):
        return None
    if isinstance(value, str) and has_liquid(value):
        text(value, field)
    try:
        seconds = duration(value)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= MAX_TTL:
        raise FieldError(
            field, f"must be whole seconds, or a time written as {DURATIONS}, up to 10 years"
        )
    return seconds


_PLAIN_AMOUNT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
# Groups of three digits with one separator; dots only if they cannot be a decimal point.
_GROUPED_AMOUNT = re.compile(
    r"""[+-]?[1-9][0-9]{0,2}
    (?: (?P<by>[,\s'\u2019]) [0-9]{3} (?: (?P=by) [0-9]{3} )* (?: (?!(?P=by)) [.,] [0-9]+ )?
    | (?: \.[0-9]{3} )+ ,[0-9]+ | (?: \.[0-9]{3} ){2,} )""",
    re.VERBOSE,
)
_COMMA_AMOUNT = re.compile(r"[+-]?[0-9]+,[0-9]+")


def amount(value: object) -> int | float | None:
    """Read a number, also in local notation: ``1,240``, ``1 240``, ``1'240``, ``1.240,50``.

    A comma before exactly three digits separates thousands; any other comma is a decimal comma. A
    single dot is always a decimal point: ``1.240`` is 1.24.

    Returns:
        ``None`` if the value is not a number, or its absolute value exceeds 1e300.
    """
    if isinstance(value, str):
        cleaned = trim(value)
        # Python refuses to convert numbers of thousands of digits.
        if len(cleaned) > MAX_TEXT:
            return None
        if not _PLAIN_AMOUNT.fullmatch(cleaned):
            cleaned = _without_groups(cleaned)
        try:
            value = float(cleaned) if re.search(r"[.eE]", cleaned) else int(cleaned)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return value


def _without_groups(written: str) -> str:
    """Return *written* with a decimal point and without separators of thousands; else "".

    ``1,240`` fits both patterns; a separator of thousands is more likely.
    """
    if match := _GROUPED_AMOUNT.fullmatch(written):
        by = match["by"] or "."
        return written.replace(by, "").replace(",", ".")
    return written.replace(",", ".") if _COMMA_AMOUNT.fullmatch(written) else ""


def iso(at: float) -> str:
    """Return seconds since the epoch as ``2026-12-01T00:00:00Z``, from the year 1 to 9999."""
    when = datetime.fromtimestamp(max(_EARLIEST, min(at, _LATEST)), UTC)
    return f"{when.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


# What `iso` returns.
STAMP = re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def counted(number: int, one: str, many: str = "") -> str:
    """Return *number* with its noun, ``1 row`` or ``2 rows``; *many* is an irregular plural."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def number(value: float) -> str:
    """Return a number as people read it: ``1,234``, ``0.5``."""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def percent(share: float) -> str:
    """Return a share as people read it: ``19 %``, ``8.9 %``. Only all is ``100 %``."""
    digits = 0 if 0.1 <= share <= 0.99 else 1
    rounded = 100.0 if share >= 1 else min(100 * share, 99.9)
    return f"{rounded:.{digits}f}".removesuffix(".0") + " %"


def span(seconds: float) -> str:
    """Return a length of time in the two largest units that say something: ``1 h 20 min``."""
    if seconds < 1:
        return "0 s" if seconds <= 0 else f"{seconds * 1000:.0f} ms"
    left, found = round(seconds), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            found.append(f"{left // size} {unit}")
            left %= size
    return " ".join(found[:2])


_EPOCH = date(1970, 1, 1).toordinal()
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
# Hours east of UTC, by the names of RFC 822, section 5.1.
ZONES = dict.fromkeys(("z", "ut", "utc", "gmt"), 0) | {
    name + kind: hours + (kind == "dt")
    for name, hours in (("e", -5), ("c", -6), ("m", -7), ("p", -8))
    for kind in ("st", "dt")
}
_INSTANT = re.compile(
    rf"""
    (?: (?:mon|tue|wed|thu|fri|sat|sun)[a-z]* ,? \s+ )?
    (?: (?P<y>[0-9]{{4}}) (?P<dash>[-/]) (?P<m>[0-9]{{1,2}}) (?P=dash) (?P<d>[0-9]{{1,2}})
      | (?P<us_m>[0-9]{{1,2}}) / (?P<us_d>[0-9]{{1,2}}) / (?P<us_y>[0-9]{{4}})
      | (?P<rfc_d>[0-9]{{1,2}}) [ -] (?P<rfc_m>[a-z]{{3,9}}) [ -] (?P<rfc_y>[0-9]{{4}})
      | (?P<long_m>[a-z]{{3,9}}) [ ] (?P<long_d>[0-9]{{1,2}}) ,? [ ] (?P<long_y>[0-9]{{4}})
    )
    (?: (?: \s*t\s* | ,?\s+ )
      (?P<hour>[0-9]{{1,2}}) : (?P<minute>[0-9]{{2}})
      (?: : (?P<second>[0-9]{{2}} (?: [.,][0-9]+ )? ) )?
      (?: \s* (?P<half>[ap])\.?m\.? )?
    )?
    \s* (?P<zone> {"|".join(ZONES)} )?
    \s* (?: (?P<sign>[+-]) (?P<zone_h>[0-9]{{2}}) :? (?P<zone_m>[0-9]{{2}})? (?:\s*utc)? )?
    (?: \s* (?: \( .{{1,60}} \) | \[ .{{1,60}} \] ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Characters. Matching the pattern above against longer text takes too long.
_LONGEST_INSTANT = 100
_MICROSOFT = re.compile(r"/?Date\((-?[0-9]{1,17})(?:[+-][0-9]{4})?\)/?")
_NUMBER = re.compile(r"[+-]?[0-9]{1,17}(?:\.[0-9]+)?")
_COMPACT = re.compile(r"((?:19|20)[0-9]{6})([0-9]{4}(?:[0-9]{2})?)?")
# Rare forms of ISO 8601, parsed by Python: without separators, with an hour alone, with weeks.
_OTHER_ISO = re.compile(
    r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}T[0-9.,]+(Z|[+-][0-9:]+)?|[0-9]{4}-?W[0-9][-0-9TZ:.,+]*"
)


def instant(value: object) -> float | None:
    """Read a date and time as seconds since the epoch; without a zone, the time is in UTC.

    Accepted are ISO 8601 (also with ``UTC`` after a space, a lower-case ``z``, ``T24:00:00``),
    epoch seconds and milliseconds as numbers or text, ``20261201``, RFC 1123 dates, ``/Date(…)/``,
    and ``12/1/2026 11:59:59 PM`` with the month first, as in the USA, where SessionM is based.

    Returns:
        ``None`` if the value is none of these, or a number out of range. By its zone, a time may
        be before the year 1 or after the year 9999.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        value = str(value)
    if not isinstance(value, str) or len(value) > _LONGEST_INSTANT:
        return None
    written = trim(value)
    if match := _MICROSOFT.fullmatch(written):
        return int(match[1]) / 1000
    if _NUMBER.fullmatch(written):
        return _compact(written) or _epoch(float(written))
    if match := _INSTANT.fullmatch(written):
        return _from_parts({name: part for name, part in match.groupdict().items() if part})
    return _python_iso(written.upper()) if _OTHER_ISO.fullmatch(written.upper()) else None


def _epoch(number: float) -> float | None:
    """Read seconds, or milliseconds from 1e11 on (as seconds, the year 5138); else ``None``."""
    size = abs(number)
    if 1e8 <= size < 1e11:
        return number
    return number / 1000 if 1e11 <= size <= _LATEST * 1000 + 999 else None


def _compact(digits: str) -> float | None:
    """Read ``20261201``, ``202612012359`` or ``20261201235959``."""
    match = _COMPACT.fullmatch(digits)
    return _python_iso(f"{match[1]}T{match[2] or '00'}") if match else None


def _python_iso(written: str) -> float | None:
    try:
        when = datetime.fromisoformat(written)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _from_parts(part: dict[str, str]) -> float | None:
    """Return seconds since the epoch for the named groups of `_INSTANT`."""
    names = next(names for names in _DATE_PARTS if names[0] in part)
    year, month, day = (part[name] for name in names)
    try:
        number = int(month) if month.isdigit() else _month(month)
        days = date(int(year), number, int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
    hour, minute = int(part.get("hour", 0)), int(part.get("minute", 0))
    second = float(part.get("second", "0").replace(",", "."))
    if half := part.get("half"):
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half in "pP" else 0)
    # 24:00:00 is the end of the day, and a leap second is the next minute's first.
    if minute > 59 or second >= 61 or hour * 3600 + minute * 60 + second > 86400:
        return None
    offset = 3600 * ZONES[part["zone"].lower()] if "zone" in part else 0
    if "sign" in part:
        own = 3600 * int(part["zone_h"]) + 60 * int(part.get("zone_m", 0))
        if own > 86400:
            return None
        offset = own if part["sign"] == "+" else -own
    return days * 86400.0 + hour * 3600 + minute * 60 + second - offset


_DATE_PARTS = [(f"{form}y", f"{form}m", f"{form}d") for form in ("", "us_", "rfc_", "long_")]


def _month(name: str) -> int:
    """Return the number of a month by its English name or an abbreviation; 0 for no month."""
    numbers = (n for n, month in enumerate(MONTHS, 1) if month.lower().startswith(name.lower()))
    return next(numbers, 0)


def form(value: object) -> str:
    """Return the form of *value* without its content, for logs: ``99/99/9999 99:99 a``."""
    if isinstance(value, bool) or value is None:
        return "true, false or null"
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "an object"
    masked = re.sub(r"\d", "9", shown(str(value), 40))
    return re.sub(r"[^\W\d_]+", "a", masked)


def is_too_deep(value: object) -> bool:
    """Return whether JSON is nested over `MAX_DEPTH` levels. Iterative: recursion is limited."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value == int(value)


def _refuse_duration() -> NoReturn:
    raise ValueError(f"is not a length of time: give seconds, or {DURATIONS}")
