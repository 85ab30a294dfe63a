"""Ruby's dates: ``Time.parse`` and ``Time#strftime``, in UTC.

Both follow Ruby 3.1 (ext/date/date_parse.c, lib/time.rb, strftime.c). Unlike in `datetime`, years
have no limit: as in Braze, a Unix time in milliseconds is a date in the year 53,392.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bridge.fields import MONTHS, ZONES
from bridge.liquid.values import LARGEST_NUMBER, TooLargeError

# Characters. Ruby's limit for text that it parses as a date.
LONGEST_DATE = 128
_DAY = 86_400
_DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


@dataclass(frozen=True)
class Time:
    """A moment: *seconds* since 1970 in UTC, *nanos* more, shown *offset* seconds east of UTC."""

    seconds: int
    nanos: int = 0
    offset: int = 0
    zone: str = "UTC"

    def __str__(self) -> str:
        return self.strftime("%Y-%m-%d %H:%M:%S " + ("UTC" if self.zone == "UTC" else "%z"))

    @property
    def days(self) -> int:
        return (self.seconds + self.offset) // _DAY

    @property
    def second_of_day(self) -> int:
        return (self.seconds + self.offset) % _DAY

    def strftime(self, form: str) -> str:
        """Format the moment; a directive that Ruby does not know is printed unchanged."""
        return _DIRECTIVE.sub(lambda found: _directive(self, found), form)

    def at(self, zone: str) -> "Time | None":
        """Return the moment in *zone* (``America/New_York``, ``-0500``); ``None`` if unknown."""
        if (offset := _offset_of(zone)) is not None:
            return Time(self.seconds, self.nanos, offset, "UTC" if zone.upper() == "UTC" else "")
        try:
            region = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return None
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            seconds=max(-62_000_000_000, min(self.seconds, 253_000_000_000))
        )
        there = moment.astimezone(region)
        offset = int((there.utcoffset() or timedelta()).total_seconds())
        return Time(self.seconds, self.nanos, offset, there.tzname() or "")


def _civil(days: int) -> tuple[int, int, int]:
    """Return year, month and day, *days* after 1970-01-01 (Gregorian, any year)."""
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    rest = day - (365 * year + year // 4 - year // 100)
    month = (5 * rest + 2) // 153
    day = rest - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return year + era * 400 + (month <= 2), month, day


def _days(year: int, month: int, day: int) -> int:
    """Return the number of days after 1970-01-01."""
    year -= month <= 2
    era, year = divmod(year, 400)
    rest = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year * 365 + year // 4 - year // 100 + rest - 719_468


# --- Printing -------------------------------------------------------------------------------------

_DIRECTIVE = re.compile(r"%([-0^#_]*)([0-9]*)(:{0,3})[EO]?([A-Za-z%+])")
_FRACTIONS = {"L": 3, "N": 9}
_COMPOSED = {
    "c": "%a %b %e %H:%M:%S %Y",
    "D": "%m/%d/%y",
    "F": "%Y-%m-%d",
    "R": "%H:%M",
    "r": "%I:%M:%S %p",
    "T": "%H:%M:%S",
    "v": "%e-%^b-%4Y",
    "X": "%H:%M:%S",
    "x": "%m/%d/%y",
    "+": "%a %b %e %H:%M:%S %Z %Y",
}


def unknown_directives(form: str) -> list[str]:
    """Return the directives of *form* that Ruby prints unchanged."""
    known = {*_NUMBERS, *_FRACTIONS, *_COMPOSED, *_TEXTS, "z"}
    found = _DIRECTIVE.finditer(form)
    return [one[0] for one in found if one[4] not in known or (one[3] and one[4] != "z")]


# What spreadsheets write for the parts of a date.
_SPREADSHEET = {"yyyy": "%Y", "yy": "%y", "mmmm": "%B", "mmm": "%b", "mm": "%m", "dd": "%d"}
_SPREADSHEET_PART = re.compile("|".join(_SPREADSHEET), re.IGNORECASE)


def strftime_form(form: str) -> str:
    """Return the format that a spreadsheet's *form* stands for, or else an example."""
    meant = _SPREADSHEET_PART.sub(lambda found: _SPREADSHEET[found[0].lower()], form)
    return meant if not re.search("[A-Za-z]", re.sub("%.", "", meant)) else "%d/%m/%Y"


def _directive(time: Time, found: re.Match[str]) -> str:
    flags, width, colons, letter = found[1], int(found[2][:9] or 0), found[3], found[4]
    if width > LARGEST_NUMBER:
        raise TooLargeError("a date is printed too wide")
    if colons and letter != "z":
        return found[0]
    if letter == "z":
        return _zone_offset(time.offset, flags, width, len(colons))
    if letter in _NUMBERS:
        value, digits, fill = _NUMBERS[letter](time)
        return _padded_number(value, flags, width or digits, fill)
    if letter in _FRACTIONS:
        digits = width or _FRACTIONS[letter]
        return f"{time.nanos:09d}".ljust(digits, "0")[:digits]
    text = time.strftime(_COMPOSED[letter]) if letter in _COMPOSED else None
    text = _TEXTS[letter](time) if letter in _TEXTS else text
    return found[0] if text is None else _padded_text(text, flags, width, swaps=letter in "pZ")


def _padded_number(value: int, flags: str, width: int, fill: str) -> str:
    digits, minus = str(abs(value)), "-" if value < 0 else ""
    for flag in flags:
        fill = {"-": "", "0": "0", "_": " "}.get(flag, fill)
    if fill == "0":
        return minus + digits.rjust(width - len(minus), "0")
    return (minus + digits).rjust(width if fill else 0)


def _padded_text(text: str, flags: str, width: int, *, swaps: bool) -> str:
    if "#" in flags:
        text = text.lower() if swaps else text.upper()
    if "^" in flags:
        text = text.upper()
    if "-" in flags:
        return text
    return text.rjust(width, "0" if "0" in flags else " ")


def _zone_offset(offset: int, flags: str, width: int, colons: int) -> str:
    sign, rest = "-" if offset < 0 else "+", abs(offset)
    hours, minutes, seconds = rest // 3600, rest // 60 % 60, rest % 60
    if colons == 3:
        colons = 2 if seconds else 1 if minutes else 4
    whole = f"{minutes:02d}"
    tail = {0: whole, 1: f":{whole}", 2: f":{whole}:{seconds:02d}", 4: ""}[colons]
    if "-" in flags:
        return f"{sign}{hours}{tail}"
    digits = max(width, 3 + len(tail)) - len(tail) - 1
    if "_" in flags:
        return f"{sign}{hours}".rjust(digits + 1) + tail
    return sign + str(hours).rjust(digits, "0") + tail


def _date(time: Time) -> tuple[int, int, int]:
    return _civil(time.days)


def _weekday(time: Time) -> int:
    return (time.days + 4) % 7


def _day_of_year(time: Time) -> int:
    return time.days - _days(_date(time)[0], 1, 1) + 1


def _iso_week(time: Time) -> tuple[int, int]:
    """ISO 8601's year and week."""
    thursday = time.days - (_weekday(time) - 1) % 7 + 3
    year = _civil(thursday)[0]
    return year, (thursday - _days(year, 1, 1)) // 7 + 1


def _year(value: int) -> tuple[int, int, str]:
    return value, 4 if value >= 0 else 5, "0"


def _hour12(time: Time) -> int:
    return (time.second_of_day // 3600 + 11) % 12 + 1


# Letter -> the number, its minimum width, and its fill character.
_NUMBERS: dict[str, Callable[[Time], tuple[int, int, str]]] = {
    "Y": lambda t: _year(_date(t)[0]),
    "C": lambda t: (_date(t)[0] // 100, 2, "0"),
    "y": lambda t: (_date(t)[0] % 100, 2, "0"),
    "m": lambda t: (_date(t)[1], 2, "0"),
    "d": lambda t: (_date(t)[2], 2, "0"),
    "e": lambda t: (_date(t)[2], 2, " "),
    "j": lambda t: (_day_of_year(t), 3, "0"),
    "H": lambda t: (t.second_of_day // 3600, 2, "0"),
    "k": lambda t: (t.second_of_day // 3600, 2, " "),
    "I": lambda t: (_hour12(t), 2, "0"),
    "l": lambda t: (_hour12(t), 2, " "),
    "M": lambda t: (t.second_of_day // 60 % 60, 2, "0"),
    "S": lambda t: (t.second_of_day % 60, 2, "0"),
    "s": lambda t: (t.seconds, 1, "0"),
    "u": lambda t: ((_weekday(t) - 1) % 7 + 1, 1, "0"),
    "w": lambda t: (_weekday(t), 1, "0"),
    "G": lambda t: _year(_iso_week(t)[0]),
    "g": lambda t: (_iso_week(t)[0] % 100, 2, "0"),
    "V": lambda t: (_iso_week(t)[1], 2, "0"),
    "U": lambda t: ((_day_of_year(t) + 6 - _weekday(t)) // 7, 2, "0"),
    "W": lambda t: ((_day_of_year(t) + 6 - (_weekday(t) - 1) % 7) // 7, 2, "0"),
}
_TEXTS: dict[str, Callable[[Time], str]] = {
    "A": lambda t: _DAYS[_weekday(t)],
    "a": lambda t: _DAYS[_weekday(t)][:3],
    "B": lambda t: MONTHS[_date(t)[1] - 1],
    "b": lambda t: MONTHS[_date(t)[1] - 1][:3],
    "h": lambda t: MONTHS[_date(t)[1] - 1][:3],
    "p": lambda t: "AM" if t.second_of_day < _DAY // 2 else "PM",
    "P": lambda t: "am" if t.second_of_day < _DAY // 2 else "pm",
    "Z": lambda t: t.zone,
    "n": lambda _: "\n",
    "t": lambda _: "\t",
    "%": lambda _: "%",
}


# --- Reading --------------------------------------------------------------------------------------


def read_date(value: Any, now: Callable[[], int]) -> Time | None:
    """Parse *value* as a moment (Liquid's ``Utils.to_date``); ``None`` if it is not a date.

    Args:
        value: text, or a whole number of seconds since 1970.
        now: returns the seconds since 1970, for ``now`` and for dates without a year.
    """
    if isinstance(value, Time):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Time(value)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_DATE:
        return None
    text = value.lower()
    if text in {"now", "today"}:
        return Time(now())
    return Time(int(text)) if re.fullmatch("[0-9]+", text) else _parse(text, now)


@dataclass
class _Found:
    """The parts of a date that have been parsed; *rest* is the remaining text."""

    rest: str
    year: int | None = None
    month: int | None = None
    day: int | None = None
    day_of_year: int | None = None
    hour: int | None = None
    minute: int | None = None
    second: int | None = None
    nanos: int | None = None
    zone: str | None = None
    has_century: bool = False
    before_christ: bool = False

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Find *pattern* in the rest and replace it by spaces."""
        found = pattern.search(self.rest)
        if found:
            self.rest = f"{self.rest[: found.start()]} {self.rest[found.end() :]}"
        return found


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_ERA = r"(?:\s*(c(?:e|\.e\.)|b(?:ce|\.c\.e\.)|a(?:d|\.d\.)|b(?:c|\.c\.))?\s*"
_NOT_IN_A_DATE = re.compile(r"[^-+',./:@a-z0-9\[\]\u0080-\U0010ffff]+")
_WEEKDAY_NAME = _compiled(r"\b(sun|mon|tue|wed|thu|fri|sat)[^-/\d\s]*")
_TIME_OF_DAY = _compiled(
    r"(\d+\s*(?:(?::\s*\d+(?:\s*:\s*\d+(?:[,.]\d*)?)?|h(?:\s*\d+m?(?:\s*\d+s?)?)?)"
    r"(?:\s*[ap](?:m\b|\.m\.))?|[ap](?:m\b|\.m\.)))"
    r"(?:\s*((?:gmt|utc?)?[-+]\d+(?:[,.:]\d+(?::\d+)?)?"
    r"|[a-z.\s]+(?:standard|daylight)\stime\b|[a-z]+(?:\sdst)?\b))?"
)
_PARTS_OF_TIME = _compiled(
    r"(\d+)\s*h?(?:\s*:?\s*(\d+)m?(?:\s*:?\s*(\d+)(?:[,.](\d*))?s?)?)?(?:\s*([ap])(?:m\b|\.m\.))?"
)
_EUROPEAN = _compiled(
    rf"('?\d+)[^-\d\s]*\s*{_MONTH}[^-\d\s']*{_ERA}('?-?\d+(?:(?:st|nd|rd|th)\b)?))?"
)
_AMERICAN = _compiled(
    rf"\b{_MONTH}[^-\d\s']*\s*('?\d+)[^-\d\s']*(?:\s*,?"
    r"\s*(c(?:e|\.e\.)|b(?:ce|\.c\.e\.)|a(?:d|\.d\.)|b(?:c|\.c\.))?\s*('?-?\d+))?"
)
_ISO = _compiled(r"('?[-+]?\d+)-(\d+)-('?-?\d+)")
_VMS = _compiled(rf"('?-?\d+)-{_MONTH}[^-/.]*-('?-?\d+)")
_VMS_AMERICAN = _compiled(rf"\b{_MONTH}[^-/.]*-('?-?\d+)(?:-('?-?\d+))?")
_SLASHES = _compiled(r"('?-?\d+)/\s*('?\d+)(?:\D\s*('?-?\d+))?")
_DOTS = _compiled(r"('?-?\d+)\.\s*('?\d+)\.\s*('?-?\d+)")
_ISO_WEEK = _compiled(r"\b(\d{2}|\d{4})?-?w(\d{2})(?:-?(\d))?\b")
_ISO_MONTH_DAY = _compiled(r"--(\d{2})?-?(\d{2})\b")
_QUOTED_YEAR = _compiled(r"'(\d+)\b")
_MONTH_ALONE = _compiled(rf"\b{_MONTH}\S*")
_DAY_ALONE = _compiled(r"(\d+)(?:st|nd|rd|th)\b")
_DIGITS = _compiled(
    r"([-+]?)(\d{2,14})(?:\s*t?\s*(\d{2,6})?(?:[,.](\d*))?)?(z\b|[-+]\d{1,4}\b|\[[-+]?\d[^\]]*\])?"
)
_BEFORE_CHRIST = _compiled(r"\b(bc\b|bce\b|b\.c\.|b\.c\.e\.)")
_FRAGMENT = _compiled(r"\A\s*(\d{1,2})\s*\Z")


def _parse(text: str, now: Callable[[], int]) -> Time | None:
    """Parse *text*, in lower case, like ``Time.parse``."""
    found = _Found(_NOT_IN_A_DATE.sub(" ", text))
    found.take(_WEEKDAY_NAME)
    _read_time(found)
    for read in _DATES:
        if read(found):
            break
    if found.take(_BEFORE_CHRIST):
        found.before_christ = True
    _read_fragment(found)
    if found.before_christ and found.year is not None:
        found.year = 1 - found.year
    elif found.year is not None and not found.has_century and 0 <= found.year <= 99:
        found.year += 1900 if found.year >= 69 else 2000
    return _build(found, now)


def _read_time(found: _Found) -> None:
    if not (time := found.take(_TIME_OF_DAY)):
        return
    found.zone = time[2]
    parts = _PARTS_OF_TIME.match(time[1])
    assert parts  # noqa: S101 - it begins with a digit
    found.hour = int(parts[1])
    if parts[5]:
        found.hour = found.hour % 12 + (12 if parts[5].lower() == "p" else 0)
    found.minute = int(parts[2]) if parts[2] else None
    found.second = int(parts[3]) if parts[3] else None
    found.nanos = _nanos(parts[4])


def _nanos(digits: str | None) -> int | None:
    return int(digits[:9].ljust(9, "0")) if digits else None


def _month(text: str | None) -> str | None:
    """Return the number of a month given by the first letters of its name; else *text*."""
    if text is None or not text.isalpha():
        return text
    return str([month[:3].lower() for month in MONTHS].index(text.lower()) + 1)


def _date_reader(
    pattern: re.Pattern[str], *, year: int | None, month: int, day: int, era: int | None = None
) -> Callable[[_Found], bool]:
    """Return a function that takes a date; the arguments are numbers of *pattern*'s groups."""

    def read(found: _Found) -> bool:
        if date := found.take(pattern):
            found.before_christ = era is not None and (date[era] or "").lower().startswith("b")
            _set_date(found, None if year is None else date[year], _month(date[month]), date[day])
        return bool(date)

    return read


def _part_reader(pattern: re.Pattern[str], name: str) -> Callable[[_Found], bool]:
    """Return a function that takes the part *name* alone, from *pattern*'s first group."""

    def read(found: _Found) -> bool:
        if part := found.take(pattern):
            setattr(found, name, int(_month(part[1]) or 0))
        return bool(part)

    return read


def _digits(found: _Found) -> bool:
    """Parse digits without separators: ``20210603t171341z``, ``0603``, ``2021154``."""
    if not (date := found.take(_DIGITS)):
        return False
    sign, digits, time, fraction, zone = date.groups()
    if time is None and fraction is not None:
        _set_from_right(found, digits)
    else:
        _set_from_left(found, sign, digits)
    if time is not None:
        parts = [int(time[i : i + 2]) for i in range(0, len(time) - 1, 2)]
        units = ["hour", "minute", "second"]
        names = units[-len(parts) :] if fraction is not None else units[: len(parts)]
        for name, value in zip(names, parts, strict=True):
            setattr(found, name, value)
    found.nanos = _nanos(fraction) if fraction else found.nanos
    if zone:
        found.zone = zone.strip("[]").partition(":")[0]
    return True


def _set_from_left(found: _Found, sign: str, digits: str) -> None:
    if len(digits) in {3, 5, 7}:
        found.day_of_year = int(digits[-3:])
        found.year = int(sign + digits[:-3]) if len(digits) > 3 else found.year
        found.has_century = len(digits) == 7
        return
    if len(digits) % 2:
        return
    if len(digits) >= 8:
        found.year, digits, found.has_century = int(sign + digits[:4]), digits[4:], True
    elif len(digits) == 6:
        found.year, digits = int(sign + digits[:2]), digits[2:]
    pairs = [int(digits[i : i + 2]) for i in range(0, len(digits), 2)]
    names = ["day"] if len(pairs) == 1 else ["month", "day", "hour", "minute", "second"]
    for name, value in zip(names, pairs, strict=False):
        setattr(found, name, value)


def _set_from_right(found: _Found, digits: str) -> None:
    names = ["second", "minute", "hour", "day", "month", "year"]
    while digits and names:
        name = names.pop(0)
        width = len(digits) if name == "year" else 2
        setattr(found, name, int(digits[-width:]))
        digits = digits[:-width]


def _set_date(found: _Found, year: str | None, month: str | None, day: str | None) -> None:
    """Assign year, month and day (date_parse.c, ``s3e``): 06/03/2021 is 6 March."""
    if year and month and not day:
        year, month, day = day, year, month
    if not year and day and (len(day) > 2 or day.startswith("'")):
        year, day = day, None
    if year and (parts := re.search(r"([-+]?\d+)(.*)", year)) and parts[2]:
        year, day = day, parts[1]
    if month and (month.startswith("'") or len(_only_digits(month)) > 2):
        year, month, day = month, day, year
    if day and (day.startswith("'") or len(_only_digits(day)) > 2):
        year, day = day, year
    if year:
        signed = re.search(r"([-+]?)(\d+)", year)
        assert signed  # noqa: S101 - every pattern for a year has a digit
        found.year = int(signed[0])
        found.has_century = bool(signed[1]) or len(signed[2]) > 2
    found.month = int(_only_digits(month)) if month else found.month
    found.day = int(_only_digits(day)) if day else found.day


def _only_digits(text: str) -> str:
    digits = re.search(r"\d+", text)
    return digits[0] if digits else "0"


# The first that matches is used.
_DATES = (
    _date_reader(_EUROPEAN, year=4, month=2, day=1, era=3),
    _date_reader(_AMERICAN, year=4, month=1, day=2, era=3),
    _date_reader(_ISO, year=1, month=2, day=3),
    _date_reader(_VMS, year=3, month=2, day=1),
    _date_reader(_VMS_AMERICAN, year=3, month=1, day=2),
    _date_reader(_SLASHES, year=1, month=2, day=3),
    _date_reader(_DOTS, year=1, month=2, day=3),
    lambda found: bool(found.take(_ISO_WEEK)),  # Time.parse uses neither its week nor its year
    _date_reader(_ISO_MONTH_DAY, year=None, month=1, day=2),
    _part_reader(_QUOTED_YEAR, "year"),
    _part_reader(_MONTH_ALONE, "month"),
    _part_reader(_DAY_ALONE, "day"),
    _digits,
)


def _read_fragment(found: _Found) -> None:
    if not (fragment := _FRAGMENT.match(found.rest)):
        return
    number = int(fragment[1])
    if found.hour is not None and found.day is None and 1 <= number <= 31:
        found.day = number
    elif found.day is not None and found.hour is None and 0 <= number <= 24:
        found.hour = number


_ZONES = {
    **ZONES,
    **{letter: hours + 1 for hours, letter in enumerate("abcdefghiklm")},
    **{letter: -hours - 1 for hours, letter in enumerate("nopqrstuvwxy")},
}
_OFFSET = re.compile(r"([+-])(\d\d)(?:(:?)(\d\d)(?:\3(\d\d))?)?", re.ASCII)
_MEANS_UTC = frozenset({"-00:00", "-0000", "-00", "utc", "z", "ut"})


def _offset_of(zone: str) -> int | None:
    """Return seconds east of UTC; ``None`` for a zone that ``Time.parse`` does not know."""
    if found := _OFFSET.fullmatch(zone):
        seconds = int(found[2]) * 3600 + int(found[4] or 0) * 60 + int(found[5] or 0)
        return -seconds if found[1] == "-" else seconds
    hours = _ZONES.get(zone.lower())
    return None if hours is None else hours * 3600


def _build(found: _Found, now: Callable[[], int]) -> Time | None:
    """Build the moment (time.rb, ``make_time``): missing parts are those of today."""
    date = (found.year, found.month, found.day, found.day_of_year)
    time = (found.hour, found.minute, found.second, found.nanos)
    if all(part is None for part in (*date, *time)):
        return None
    offset = _offset_of(found.zone) if found.zone else None
    year, month, day = found.year, found.month, found.day
    if year is None:
        today = _civil((now() + (offset or 0)) // _DAY)
        year = today[0]
        if month is None and found.day_of_year is None:
            month = today[1]
            day = today[2] if day is None else day
    month, day = 1 if month is None else month, 1 if day is None else day
    hour, minute, second = found.hour or 0, found.minute or 0, found.second or 0
    right = 1 <= month <= 12 and 1 <= day <= 31 and minute <= 59 and second <= 60
    if not right or hour > 24 or (hour == 24 and (minute or second)):
        return None
    days = _days(year, month, day)
    if found.day_of_year is not None:
        days = _days(year, 1, 1) + found.day_of_year - 1
    seconds = days * _DAY + hour * 3600 + minute * 60 + second
    if offset is None:
        return Time(seconds, found.nanos or 0)
    named = "UTC" if (found.zone or "").lower() in _MEANS_UTC else ""
    return Time(seconds - offset, found.nanos or 0, offset, named)
