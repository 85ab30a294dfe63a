"""Ruby's values in Braze's Liquid: printing, comparison and conversion to numbers.

Braze runs its fork of Shopify's Liquid 5.2.0 on Ruby 3. The values of a template are those of JSON
(``None``, bool, int, float, str, list and dict), `Range` and `Time`.
"""

import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal
from typing import Any, NoReturn

# Limits of a template's values: characters of a text, items of a list, bits of a whole number.
LARGEST_TEXT = 1_000_000
LARGEST_LIST = 100_000
LARGEST_NUMBER = 8_192

WHITESPACE = " \t\n\v\f\r"

# For arithmetic. Digits of a quotient: enough to convert it to a float. Without traps, infinity
# minus infinity is NaN, as in Ruby.
DECIMAL = Context(prec=40, Emax=999_999, Emin=-999_999, traps=[])

_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+(?:_[0-9]+)*)")
_WHOLE = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|[0-9]+)\s*")
_FRACTION = re.compile(r"-?[0-9]+\.[0-9]+")


class LiquidFault(ValueError):  # noqa: N818 - `LiquidError` is the error for callers
    """An operation that Ruby refuses, with Ruby's own message."""


class TooLargeError(Exception):
    """A template exceeds the limits of a preview."""


@dataclass(frozen=True)
class Range:
    """A range of whole numbers, ``(1..3)``, including *last*."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """The number of its items, which may be too large for ``len``."""
        return max(0, self.last - self.first + 1)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))


class Drop(Mapping[str, Any]):
    """An object of Liquid's own, such as ``forloop``; *name* is its class in Ruby."""

    name = ""
    # Each object equals only itself, as in Ruby.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Any]:
        """The present values by name."""

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __str__(self) -> str:
        return self.name


def is_true(value: object) -> bool:
    """Return whether *value* is true in a condition: all values except nil and false."""
    return value is not None and value is not False


def from_json(text: str) -> Any:
    """Parse JSON as Ruby does: NaN, Infinity and half of a surrogate pair are not allowed.

    Raises:
        ValueError: it is not JSON, or a number has over 4,300 digits.
        RecursionError: it is nested too deep.
    """
    value = json.loads(text, parse_constant=_refuse_constant)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# --- Text ---------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """Return *value* as Ruby's ``to_s`` does."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return limited_text(inspect(limited_value(value)))
    return inspect(value)


def printed(value: Any) -> str:
    """Return *value* as an output prints it: lists are joined."""
    return joined(value, "") if isinstance(value, list) else text_of(value)


def joined(items: Iterable[Any], glue: str) -> str:
    """Return *items* as Ruby's ``Array#join`` does, lists in lists included."""
    parts, size = [], 0
    for item in items:
        parts.append(joined(item, glue) if isinstance(item, list) else text_of(item))
        size += len(parts[-1]) + len(glue)
        if size > 2 * LARGEST_TEXT:
            break
    return limited_text(glue.join(parts))


def weight(value: object) -> int:
    """Return the approximate size of *value* in bytes."""
    if isinstance(value, str):
        return 50 + len(value)
    if isinstance(value, list):
        return 60 + sum(8 + weight(item) for item in value)
    if isinstance(value, dict):
        return 200 + sum(weight(key) + weight(item) for key, item in value.items())
    return 30


def check_length(characters: float) -> None:
    """Refuse a text of that length.

    Raises:
        TooLargeError: it is longer than `LARGEST_TEXT`.
    """
    if characters > LARGEST_TEXT:
        raise TooLargeError(f"a text grows beyond {LARGEST_TEXT:,} characters")


def limited_value(value: Any) -> Any:
    """Return *value* unless its text would be far too long: check this before making the text."""
    check_length(weight(value) / 10)
    return value


def limited_text(text: str) -> str:
    check_length(len(text))
    return text


def limited_list(items: Iterable[Any], size: int) -> list[Any]:
    if size > LARGEST_LIST:
        raise TooLargeError(f"a list grows beyond {LARGEST_LIST:,} items")
    return list(items)


def inspect(value: Any) -> str:
    """Return *value* as Ruby's ``inspect`` does."""
    show = _INSPECT.get(type(value), str)
    return show(value)


def _inspect_list(items: list[Any]) -> str:
    return f"[{', '.join(map(inspect, items))}]"


def _inspect_object(items: dict[Any, Any]) -> str:
    return f"{{{', '.join(f'{inspect(key)}=>{inspect(item)}' for key, item in items.items())}}}"


def _float(value: float) -> str:
    if value != value:  # noqa: PLR0124 - only NaN is unlike itself
        return "NaN"
    if value in {float("inf"), float("-inf")}:
        return "Infinity" if value > 0 else "-Infinity"
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)  # noqa: S101 - it is finite
    text = "".join(map(str, digits)).lstrip("0") or "0"
    point = len(text) + exponent if value else 1
    text = text.rstrip("0") or "0"
    minus = "-" if sign else ""
    if not -4 < point <= 16:
        return f"{minus}{text[0]}.{text[1:] or '0'}e{point - 1:+03d}"
    if point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    return f"{minus}{text[:point].ljust(point, '0')}.{text[point:] or '0'}"


_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\t": "\\t",
    "\r": "\\r",
    "\x1b": "\\e",
    "\f": "\\f",
    "\v": "\\v",
    "\b": "\\b",
    "\a": "\\a",
}
_TO_ESCAPE = re.compile(r'["\\]|#(?=[{$@])|[^ -~]')


def _quoted(text: str) -> str:
    return f'"{_TO_ESCAPE.sub(_escaped, text)}"'


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if char == "#":
        return "\\#"
    if char in _ESCAPES:
        return _ESCAPES[char]
    if unicodedata.category(char)[0] in "CZ" and char != " ":
        return f"\\u{ord(char):04X}" if ord(char) < 0x10000 else f"\\u{{{ord(char):X}}}"
    return char


_INSPECT: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "nil",
    bool: lambda value: "true" if value else "false",
    float: _float,
    str: _quoted,
    list: _inspect_list,
    dict: _inspect_object,
    Range: lambda value: f"{value.first}..{value.last}",
}


# --- Numbers --------------------------------------------------------------------------------------


def number_of(value: Any) -> int | Decimal:
    """Return *value* for arithmetic (Liquid's ``Utils.to_number``).

    Text gives its leading digits, text with one point and nothing else a decimal, anything else 0.
    """
    match value:
        case bool():
            return 0
        case int():
            return value
        case float():
            return Decimal(repr(value))
        case str():
            stripped = value.strip(WHITESPACE + "\0")
            if len(stripped) < LARGEST_NUMBER and _FRACTION.fullmatch(stripped):
                return Decimal(stripped)
            return leading_integer(value)
    return 0


def leading_integer(text: str) -> int:
    """Return the whole number that *text* begins with, else 0 (Ruby's ``String#to_i``)."""
    found = _INTEGER.match(text)
    if not found:
        return 0
    if len(found[1]) > LARGEST_NUMBER // 4:
        raise TooLargeError("a number has too many digits")
    return int(found[1])


def integer_of(value: Any) -> int:
    """Return *value* where a filter takes a whole number (Liquid's ``Utils.to_integer``).

    Raises:
        LiquidFault: *value* is not a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _WHOLE.fullmatch(text_of(value).replace("_", ""))
    if not found or len(found[2]) > LARGEST_NUMBER // 4:
        raise LiquidFault("invalid integer")
    digits = found[2].lower()
    base = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2], 8 if digits[0] == "0" else 10)
    return int(found[1] + digits, base)


def plain_number(number: int | Decimal) -> int | float:
    """Return *number* as a value of a template."""
    if isinstance(number, Decimal):
        return float(number)
    if number.bit_length() > LARGEST_NUMBER:
        raise TooLargeError("a number has too many digits")
    return number


def whole(number: float | Decimal) -> int:
    """Return *number* without its fraction.

    Raises:
        LiquidFault: it is infinite or not a number.
    """
    try:
        return int(number)
    except (OverflowError, ValueError):
        raise LiquidFault(inspect(number)) from None


def divided(a: int | Decimal, b: int | Decimal) -> int | Decimal:
    """Return ``a / b``, rounded down if both are whole; *b* is not 0."""
    return a // b if isinstance(a, int) and isinstance(b, int) else Decimal(a) / b


def remainder(a: int | Decimal, b: int | Decimal) -> int | Decimal:
    """Return ``a % b`` with the sign of *b*, which is not 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return a - b * (Decimal(a) / b).to_integral_value(ROUND_FLOOR)


def rounded(number: int | Decimal, digits: int) -> int | Decimal:
    """Return *number* with *digits* after the point, halves away from zero."""
    digits = max(-LARGEST_NUMBER, min(digits, 400))
    if isinstance(number, int) and digits >= 0:
        return number
    if not Decimal(number).is_finite():
        raise LiquidFault(str(Decimal(number)))
    if digits > 0:
        assert isinstance(number, Decimal)  # noqa: S101 - the integers are returned above
        if -number.as_tuple().exponent <= digits:  # type: ignore[operator]
            return number
        return number.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, _WIDE)
    scale = Decimal(1).scaleb(-digits)
    return int((Decimal(number) / scale).to_integral_value(ROUND_HALF_UP) * scale)


_WIDE = Context(prec=2 * LARGEST_NUMBER, Emax=999_999, Emin=-999_999)


def floor(number: int | Decimal) -> int:
    return number if isinstance(number, int) else _integral(number, ROUND_FLOOR)


def ceil(number: int | Decimal) -> int:
    return number if isinstance(number, int) else _integral(number, ROUND_CEILING)


def _integral(number: Decimal, way: str) -> int:
    return whole(number.to_integral_value(way))


# --- Comparing ------------------------------------------------------------------------------------


def equal(a: Any, b: Any) -> bool:
    """Compare with Ruby's ``==``: 1 equals 1.0, but true does not equal 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    return bool(a == b)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compared(a: Any, b: Any) -> int | None:
    """Return -1, 0 or 1 like Ruby's ``<=>``; ``None`` if the two cannot be ordered."""
    if (is_number(a) and is_number(b)) or (isinstance(a, str) and isinstance(b, str)):
        return int(a > b) - int(a < b)
    return 0 if equal(a, b) else None


def eql_key(value: Any) -> Any:
    """Return a key that is equal for values with Ruby's ``eql?``: 1 is not 1.0."""
    if isinstance(value, list):
        return (list, *map(eql_key, value))
    if isinstance(value, dict):
        return (dict, frozenset((key, eql_key(item)) for key, item in value.items()))
    return (type(value), value)


def class_name(value: Any) -> str:
    """Return the name of the class that *value* has in Ruby."""
    names = {int: "Integer", float: "Float", str: "String", list: "Array", dict: "Hash"}
    return names.get(type(value), type(value).__name__)


def property_of(item: Any, name: Any) -> Any:
    """Return Ruby's ``item[name]``.

    Raises:
        LiquidFault: *item* has no properties.
    """
    refusal = LiquidFault(f"cannot select the property '{text_of(name)}'")
    match item:
        case Mapping():
            return item.get(name) if isinstance(name, str | int | float) else None
        case str() if isinstance(name, str):
            return name if name in item else None
        case str() | list() if is_number(name):
            index = whole(name)
            return item[index] if -len(item) <= index < len(item) else None
        case bool() | None | float():
            return None
        case int() if is_number(name):
            return (item >> whole(name)) & 1 if 0 <= name < LARGEST_NUMBER else 0
    raise refusal


def has_properties(item: Any) -> bool:
    """Return whether the object has ``[]`` in Ruby."""
    return isinstance(item, str | list | Mapping) or (
        isinstance(item, int) and not isinstance(item, bool)
    )


def is_blank(value: Any) -> bool:
    """Return Rails' ``blank?``: true for nil, false, empty values and white space."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is False or value in ([], {})


def is_empty(value: Any) -> bool | None:
    """Return Ruby's ``empty?``; ``None`` if the value has no such method."""
    return not value if isinstance(value, str | list | dict) else None


def size_of(value: Any) -> int | None:
    """Return Ruby's ``size`` (for a whole number, in bytes); ``None`` if there is none."""
    if isinstance(value, Range):
        return value.size
    if isinstance(value, str | list | Mapping):
        return len(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return max(8, (value.bit_length() + 63) // 64 * 8)
    return None


def items_of(value: Any) -> list[Any]:
    """Return *value* as a flat list for list filters; a single value becomes a list of one."""
    if value is None:
        return []
    if isinstance(value, list):
        return list(flattened(value))
    if isinstance(value, Range):
        return limited_list(value, value.size)
    return [value]


def end_of(value: Any, *, first: bool) -> Any:
    """Return the first or the last item; ``None`` if the value has no items in Ruby."""
    if isinstance(value, list):
        return value[0 if first else -1] if value else None
    if isinstance(value, Range):
        return value.first if first else value.last
    if isinstance(value, dict) and first and value:
        return list(next(iter(value.items())))
    return None


def flattened(items: list[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list):
            yield from flattened(item)
        else:
            yield item
