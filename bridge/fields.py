"""Reading single values that people and Liquid templates write: text, identifiers, durations.

Pure. Braze fills templates by text substitution, so a value may arrive blank, padded with
(no-break) spaces, as a number, or with the Liquid still in it.
"""

import random
import re
from datetime import UTC, datetime
from typing import NoReturn

MAX_TEXT = 255
# Of JSON: nobody means more, and recursion ends somewhere.
MAX_DEPTH = 100
MAX_TTL = 10 * 365 * 86400

# Spaces of all kinds, and what is none for Python: byte order mark and zero-width space.
_PADDING = "".join(char for char in map(chr, range(0x3001)) if char.isspace()) + "\ufeff\u200b"
# 9999-12-31T23:59:59Z, the last second that has a name.
_LATEST = 253_402_300_799.0
_LIQUID = re.compile(r"\{\{|\{%|\$\{")
# Control characters, line separators, and lone surrogates, which no UTF-8 can carry.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DURATION = re.compile(r"([0-9]{1,12})\s*([smhd]?)", re.ASCII)
_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


# What the readers below take, as JSON Schema. Numbers are taken for what their digits say.
TEXT_SCHEMA = {
    "type": ["string", "integer", "null"],
    "maxLength": MAX_TEXT,
    "pattern": r"^(?![\s\S]*(\{\{|\{%|\$\{))"
    r"[\s\x1c-\x1f\x85\ufeff\u200b]*[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[\s\x1c-\x1f\x85\ufeff\u200b]*$",
}
REQUIRED_SCHEMA = {**TEXT_SCHEMA, "type": ["string", "integer"], "minLength": 1}
TTL_SCHEMA = {
    "type": ["integer", "string", "null"],
    "description": "seconds, or 90s, 15m, 12h, 30d",
    "minimum": 1,
    "maximum": MAX_TTL,
    "pattern": r"^\s*([0-9]{1,12}\s*[smhdSMHD]?)?\s*$",
}


class FieldError(ValueError):
    """A value that cannot be used; ``str()`` is one sentence that names the field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class Whole(str):
    """A whole number as it stood in JSON, kept as text so that no digit of an id is lost."""

    __slots__ = ()


def trim(value: str) -> str:
    """*value* without spaces, no-break spaces and byte order marks around it."""
    return value.strip(_PADDING)


def shown(value: str, most: int = 60) -> str:
    """The beginning of *value* as a message may hold it: one line, no half characters."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value[:most])


def has_liquid(value: str) -> bool:
    """Whether *value* still holds Liquid that Braze should have replaced."""
    return _LIQUID.search(value) is not None


def text(value: object, field: str) -> str | None:
    """Read one line of text; ``None`` when it is absent or blank.

    Raises:
        FieldError: it is no text, holds Liquid or control characters, or is over 255 long.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise FieldError(field, "must be text")
    if len(value) <= MAX_TEXT and value.isascii() and value.isprintable() and "{" not in value:
        # Nearly all there is: nothing else can be wrong with it, or stand around it.
        return value.strip() or None
    cleaned = trim(value)
    if has_liquid(cleaned):
        raise FieldError(
            field,
            f"still holds a placeholder ({shown(cleaned)}): put the value in, or check "
            "that the Liquid is written as Braze expects it",
        )
    if _UNPRINTABLE.search(cleaned):
        raise FieldError(field, "holds a line break or another control character")
    if len(cleaned) > MAX_TEXT:
        raise FieldError(field, f"is longer than {MAX_TEXT} characters")
    return cleaned or None


def required(value: object, field: str) -> str:
    """Read text that must be there.

    Raises:
        FieldError: as `text`, or it is absent or blank.
    """
    found = text(value, field)
    if found is None:
        raise FieldError(field, "is empty")
    return found


def identifier(value: object, field: str) -> str | None:
    """Read an identifier, as `text` does.

    Raises:
        FieldError: as `text`, or it is ``.`` or ``..``, which no URL path can carry, or holds one
            of them between slashes: what stands before SessionM may decode those.
    """
    found = text(value, field)
    if found and "." in found and not {".", ".."}.isdisjoint(re.split(r"[/\\]", found)):
        raise FieldError(field, 'cannot be "." or "..", nor hold one between slashes')
    return found


def duration(value: object) -> int:
    """Read a length of time, ``90``, ``90s``, ``15m``, ``12h`` or ``30d``, as whole seconds.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        _no_duration()
    match = _DURATION.fullmatch(trim(str(value)).lower())
    if match is None:
        _no_duration()
    return int(match[1]) * _UNIT[match[2]]


def ttl(value: object, field: str) -> int | None:
    """Read a tag's TTL in seconds; ``None`` when absent or blank.

    Raises:
        FieldError: it is not a positive whole number of seconds up to ten years.
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
            field, "must be a positive whole number of seconds up to 10 years, or such as 30d"
        )
    return seconds


def iso(at: float) -> str:
    """Seconds since the epoch as ``2026-12-01T00:00:00Z``."""
    return datetime.fromtimestamp(min(at, _LATEST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(value: object) -> float | None:
    """A date and time in ISO 8601 (UTC unless it says otherwise) as seconds since the epoch.

    ``None`` if it is none, or out of range.
    """
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        when = datetime.fromisoformat(value.strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def counted(number: int, word: str) -> str:
    """So many of what *word* says: ``1 write``, ``2 writes``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def chance_hex(digits: int) -> str:
    """So many hex digits that nobody else has by chance; they are no secret."""
    # Not os.urandom: it lets other threads go first, three times for each webhook.
    return f"{random.getrandbits(4 * digits):0{digits}x}"


def deeper_than(value: object, levels: int) -> bool:
    """Whether JSON is nested deeper than that; without recursion, which has a limit of its own."""
    level: list[object] = [value]
    for _ in range(levels):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _no_duration() -> NoReturn:
    raise ValueError("is not a length of time: give seconds, or 90s, 15m, 12h, 30d")
