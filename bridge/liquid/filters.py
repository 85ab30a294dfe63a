"""The filters of Braze's Liquid: those of Liquid 5.2.0 and Braze's own.

Liquid's filters are those of lib/liquid/standardfilters.rb, with Ruby's semantics. Braze's are
described in Braze's documentation, "Filters" and "Advanced filters". A filter raises `LiquidFault`
where Ruby would raise an exception. Filters of one line are in the table `FILTERS`.
"""

import base64
import hashlib
import hmac
import html
import json
import operator
import re
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cmp_to_key
from inspect import Parameter, signature
from typing import Any
from urllib.parse import quote, quote_plus, unquote_to_bytes

from liquid import RenderContext

from bridge.liquid import dates, values
from bridge.liquid.run import Run, run_of
from bridge.liquid.values import (
    LiquidFault,
    items_of,
    limited_list,
    limited_text,
    plain_number,
    text_of,
)

# --- Text -----------------------------------------------------------------------------------------

_ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_STRIPPED = values.WHITESPACE + "\0"
_SPACES = re.compile(f"[{values.WHITESPACE}]+")


def escape(value: Any) -> str:
    return limited_text(html.escape(text_of(value)).replace("&#x27;", "&#39;"))


_ESCAPED_ONCE = re.compile(r"[\"><']|&(?!(?:[a-zA-Z]+|#[0-9]+);)")


def escape_once(value: Any) -> str:
    return limited_text(_ESCAPED_ONCE.sub(lambda found: escape(found[0]), text_of(value)))


_BLOCKS = {"<script": "</script>", "<!--": "-->", "<style": "</style>"}
_OPENING = re.compile("<script|<!--|<style")


def strip_html(value: Any) -> str:
    return _remove_enclosed(
        _remove_enclosed(text_of(value), _OPENING, _BLOCKS), re.compile("<"), {"<": ">"}
    )


def _remove_enclosed(text: str, opening: re.Pattern[str], ends: dict[str, str]) -> str:
    """Remove everything between an opening and its end from *text*, in one pass."""
    kept, position, start = [], 0, 0
    unended: set[str] = set()
    while found := opening.search(text, start):
        kind = found[0]
        end = -1 if kind in unended else text.find(ends[kind], found.end())
        if end < 0:
            unended.add(kind)
            start = found.end()
            continue
        kept.append(text[position : found.start()])
        position = start = end + len(ends[kind])
    return "".join((*kept, text[position:]))


_IN_REPLACEMENT = re.compile(r"\\([0-9&\\])")


def _replacement(pattern: str, given: Any) -> str:
    r"""Return the replacement for *pattern*, in which Ruby interprets ``\0`` and ``\\``."""
    special = {"0": pattern, "&": pattern, "\\": "\\"}
    return _IN_REPLACEMENT.sub(lambda found: special.get(found[1], ""), text_of(given))


def replace(value: Any, old: Any, new: Any = "", count: int = -1) -> str:
    text, pattern = text_of(value), text_of(old)
    replacement = _replacement(pattern, new)
    times = text.count(pattern) if count < 0 else count
    values.check_length(len(text) + times * (len(replacement) - len(pattern)))
    return text.replace(pattern, replacement, count)


def replace_last(value: Any, old: Any, new: Any) -> str:
    text, pattern = text_of(value), text_of(old)
    index = text.rfind(pattern)
    if index < 0:
        return text
    return limited_text(text[:index] + text_of(new) + text[index + len(pattern) :])


def slice_(value: Any, offset: Any, length: Any = None) -> Any:
    sliced = value if isinstance(value, list) else text_of(value)
    start = values.integer_of(offset)
    size = values.integer_of(length) if values.is_true(length) else 1
    start += len(sliced) if start < 0 else 0
    if start < 0 or start > len(sliced) or size < 0:
        return [] if isinstance(value, list) else ""
    return sliced[start : start + size]


def split(value: Any, pattern: Any) -> list[str]:
    text, by = text_of(value), text_of(pattern)
    if by == " ":
        parts = _SPACES.split(text.strip(values.WHITESPACE))
    elif by:
        parts = limited_list(text.split(by), text.count(by))
    else:
        parts = limited_list(text, len(text))
    while parts and not parts[-1]:
        parts.pop()
    return limited_list(parts, len(parts))


def truncate(value: Any, length: Any = 50, end: Any = "...") -> str:
    text, most, tail = text_of(value), values.integer_of(length), text_of(end)
    return limited_text(text[: max(0, most - len(tail))] + tail) if len(text) > most else text


def truncatewords(value: Any, words: Any = 15, end: Any = "...") -> str:
    text, most = text_of(value), max(1, values.integer_of(words))
    if most >= 2**31 - 1:
        raise LiquidFault(f"integer {most} too big for truncatewords")
    parts = _SPACES.split(text.lstrip(values.WHITESPACE), most)
    return text if len(parts) <= most else limited_text(" ".join(parts[:-1]) + text_of(end))


# --- Numbers --------------------------------------------------------------------------------------


def _arithmetic(
    operation: Callable[[Any, Any], int | Decimal], *, divides: bool = False
) -> Callable[[Any, Any], int | float]:
    def calculate(value: Any, operand: Any) -> int | float:
        number, other = values.number_of(value), values.number_of(operand)
        if divides and not other:
            raise LiquidFault("divided by 0")
        with localcontext(values.DECIMAL):
            return plain_number(operation(number, other))

    return calculate


def _of_number(operation: Callable[[Any], int | Decimal]) -> Callable[[Any], int | float]:
    def calculate(value: Any) -> int | float:
        with localcontext(values.DECIMAL):
            return plain_number(operation(values.number_of(value)))

    return calculate


def round_(value: Any, digits: Any = 0) -> int | float:
    places = values.whole(values.number_of(digits))
    result = plain_number(values.rounded(values.number_of(value), places))
    return int(result) if values.equal(digits, 0) else result


def money(value: Any) -> str:
    """Two decimals and no currency (Braze documentation, "Filters")."""
    return f"{values.rounded(Decimal(values.number_of(value)), 2):.2f}"


def number_with_delimiter(value: Any) -> str:
    whole, point, fraction = text_of(value).partition(".")
    return re.sub(r"([0-9])(?=(?:[0-9]{3})+$)", r"\1,", whole[-1000:]) + point + fraction


# --- Lists ----------------------------------------------------------------------------------------


def compact(value: Any, name: Any = None) -> Any:
    items = items_of(value)
    if name is None:
        return [item for item in items if item is not None]
    return _select(items, lambda item: values.property_of(item, name) is not None)


def concat(value: Any, more: Any) -> list[Any]:
    if not isinstance(more, list):
        raise LiquidFault("concat filter requires an array argument")
    items = items_of(value)
    return limited_list(items + more, len(items) + len(more))


def map_(value: Any, name: Any) -> list[Any]:
    if name == "to_liquid":
        return items_of(value)
    return [values.property_of(item, name) for item in items_of(value)]


def uniq(value: Any, name: Any = None) -> Any:
    items = items_of(value)
    if name is not None and not all(map(values.has_properties, items)):
        return None
    kept: dict[Any, Any] = {}
    for item in items:
        key = item if name is None else values.property_of(item, name)
        kept.setdefault(values.eql_key(key), item)
    return list(kept.values())


def where(value: Any, name: Any, target: Any = None) -> Any:
    if target is None:
        return _select(items_of(value), lambda item: values.is_true(values.property_of(item, name)))
    return _select(
        items_of(value), lambda item: values.equal(values.property_of(item, name), target)
    )


def _select(items: list[Any], holds: Callable[[Any], bool]) -> list[Any] | None:
    """Return the items for which *holds* is true; nil if an item has no properties."""
    if not all(map(values.has_properties, items)):
        return None
    return [item for item in items if holds(item)]


def _sorted(items: list[Any], name: Any, *, folds: bool = False) -> list[Any] | None:
    """Return *items* by their property *name*, absent ones last; nil if one has no properties."""
    if name is None:
        keys = items
    elif all(map(values.has_properties, items)):
        keys = [values.property_of(item, name) for item in items]
    else:
        return None
    known = [pair for pair in zip(keys, items, strict=True) if pair[0] is not None]
    absent = [item for key, item in zip(keys, items, strict=True) if key is None]
    if folds:
        known.sort(key=lambda pair: _lowered(pair[0]))
    elif all(isinstance(key, str) for key, _ in known) or all(
        values.is_number(key) for key, _ in known
    ):
        known.sort(key=lambda pair: pair[0])
    else:
        key_of = cmp_to_key(_compared)
        known.sort(key=lambda pair: key_of(pair[0]))
    return [item for _, item in known] + absent


def _compared(a: Any, b: Any) -> int:
    order = values.compared(a, b)
    if order is None:
        raise LiquidFault("cannot sort values of incompatible types")
    return order


def _lowered(value: Any) -> str:
    return text_of(value).translate(_ASCII_LOWER)


# --- Dates ----------------------------------------------------------------------------------------


def date(value: Any, form: Any, *, run: Run) -> Any:
    if not text_of(form):
        return value
    time = dates.read_date(value, run.now)
    if time is None:
        if isinstance(value, str) and value.strip():
            run.warn(f"Braze reads no date in `{value[:40]}` and prints it unchanged")
        return value
    if "%" not in text_of(form):
        shown = text_of(form)[:40]
        run.warn(
            f"`{shown}` has no directive such as %d, so it is printed in place of every date; "
            f"write `date: '{dates.strftime_form(shown)}'`"
        )
    for directive in dates.unknown_directives(text_of(form)):
        run.warn(f"a date has no `{directive}` in Braze, which prints it unchanged")
    return limited_text(time.strftime(text_of(form)))


def time_zone(value: Any, zone: Any, *, run: Run) -> Any:
    """Convert a date to the time zone *zone* (Braze documentation, "Filters")."""
    time = dates.read_date(value, run.now)
    if time is None:
        return value
    if (there := time.at(text_of(zone))) is None:
        run.warn(f"the time zone `{text_of(zone)}` is not known; write it like America/New_York")
        return time
    return there


# --- Encodings ------------------------------------------------------------------------------------


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _base64_decoder(name: str, altchars: bytes | None) -> Callable[[Any], str]:
    def decode(value: Any) -> str:
        try:
            return base64.b64decode(text_of(value), altchars, validate=True).decode()
        except ValueError:
            raise LiquidFault(f"invalid base64 provided to {name}") from None

    return decode


def url_decode(value: Any) -> str:
    try:
        return unquote_to_bytes(text_of(value).replace("+", " ")).decode()
    except UnicodeError:
        raise LiquidFault("invalid byte sequence in UTF-8") from None


def as_json_string(value: Any) -> str:
    values.limited_value(value)
    return limited_text(
        json.dumps(value, default=text_of, ensure_ascii=False, separators=(",", ":"))
    )


def json_parse(value: Any) -> Any:
    try:
        return values.from_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise LiquidFault("json_parse needs a text with valid JSON") from None


def _hash(kind: str) -> Callable[[Any], str]:
    def digest(value: Any) -> str:
        return hashlib.new(kind, text_of(value).encode(), usedforsecurity=False).hexdigest()

    return digest


def _hmac(kind: str, encode: Callable[[bytes], str]) -> Callable[[Any, Any], str]:
    def sign(value: Any, key: Any) -> str:
        return encode(hmac.digest(text_of(key).encode(), text_of(value).encode(), kind))

    return sign


# --- The table ------------------------------------------------------------------------------------


def default(value: Any, other: Any = "", options: Any = None) -> Any:
    allows_false = isinstance(options, dict) and values.is_true(options.get("allow_false"))
    absent = value is None if allows_false else not values.is_true(value)
    return other if absent or values.is_empty(value) else value


FILTERS: dict[str, Callable[..., Any]] = {
    # Text
    "append": lambda value, more: limited_text(text_of(value) + text_of(more)),
    "capitalize": lambda value: text_of(value).capitalize(),
    "downcase": lambda value: text_of(value).lower(),
    "escape": escape,
    "escape_once": escape_once,
    "newline_to_br": lambda value: limited_text(re.sub("\r?\n", "<br />\n", text_of(value))),
    "prepend": lambda value, more: limited_text(text_of(more) + text_of(value)),
    "remove": lambda value, old: replace(value, old, ""),
    "remove_first": lambda value, old: replace(value, old, "", 1),
    "replace": lambda value, old, new="": replace(value, old, new),
    "replace_first": lambda value, old, new="": replace(value, old, new, 1),
    "slice": slice_,
    "split": split,
    "strip": lambda value: text_of(value).strip(_STRIPPED),
    "strip_html": strip_html,
    "strip_newlines": lambda value: re.sub("\r?\n", "", text_of(value)),
    "truncate": truncate,
    "truncatewords": truncatewords,
    "upcase": lambda value: limited_text(text_of(value).upper()),
    # Numbers
    "abs": _of_number(lambda number: -number if number < 0 else number),
    "at_least": _arithmetic(max),
    "at_most": _arithmetic(min),
    "ceil": _of_number(values.ceil),
    "divided_by": _arithmetic(values.divided, divides=True),
    "floor": _of_number(values.floor),
    "minus": _arithmetic(operator.sub),
    "modulo": _arithmetic(values.remainder, divides=True),
    "money": money,
    "number_with_delimiter": number_with_delimiter,
    "plus": _arithmetic(operator.add),
    "round": round_,
    "times": _arithmetic(operator.mul),
    # Lists
    "compact": compact,
    "concat": concat,
    "first": lambda value: values.end_of(value, first=True),
    "join": lambda value, glue=" ": values.joined(items_of(value), text_of(glue)),
    "last": lambda value: None if isinstance(value, dict) else values.end_of(value, first=False),
    "map": map_,
    "reverse": lambda value: items_of(value)[::-1],
    "size": lambda value: values.size_of(value) or 0,
    "sort": lambda value, name=None: _sorted(items_of(value), name),
    "sort_natural": lambda value, name=None: _sorted(items_of(value), name, folds=True),
    "uniq": uniq,
    "where": where,
    # Dates
    "date": date,
    "time_zone": time_zone,
    # Encodings
    "as_json_string": as_json_string,
    "base64_encode": lambda value: _base64(text_of(value).encode()),
    "hmac_sha1": _hmac("sha1", bytes.hex),
    "hmac_sha1_hex": _hmac("sha1", bytes.hex),
    "hmac_sha1_base64": _hmac("sha1", _base64),
    "hmac_sha256": _hmac("sha256", bytes.hex),
    "hmac_sha256_hex": _hmac("sha256", bytes.hex),
    "hmac_sha256_base64": _hmac("sha256", _base64),
    "hmac_sha512": _hmac("sha512", bytes.hex),
    "json_escape": lambda value: limited_text(json.dumps(text_of(value), ensure_ascii=False)[1:-1]),
    "json_parse": json_parse,
    "md5": _hash("md5"),
    "sha1": _hash("sha1"),
    "sha2": _hash("sha256"),
    "url_decode": url_decode,
    "url_encode": lambda value: limited_text(quote_plus(text_of(value))),
    "url_escape": lambda value: limited_text(quote(text_of(value), safe=";/?:@&=+$,[]-_.!~*'()")),
    "url_param_escape": lambda value: limited_text(quote(text_of(value), safe="")),
    # Any value
    "default": default,
    "property_accessor": lambda value, name: (
        value.get(name) if isinstance(value, dict) and isinstance(name, str) else None
    ),
}
# Filters of the engine that Braze's documentation does not mention.
UNDOCUMENTED: dict[str, Callable[..., Any]] = {
    "base64_decode": _base64_decoder("base64_decode", None),
    "base64_url_safe_decode": _base64_decoder("base64_url_safe_decode", b"-_"),
    "base64_url_safe_encode": lambda value: base64.urlsafe_b64encode(
        text_of(value).encode()
    ).decode(),
    "h": escape,
    "remove_last": lambda value, old: replace_last(value, old, ""),
    "replace_last": replace_last,
}
_ALL = FILTERS | UNDOCUMENTED
# Filters that return nil for nil.
_KEEP_NIL = frozenset({"escape", "h", "truncate", "truncatewords", "url_decode", "url_encode"})
_USE_RUN = frozenset({"date", "time_zone"})


def _bounds(function: Callable[..., Any]) -> tuple[int, int]:
    """Return the minimum and maximum number of values, including the filtered one."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    takes = [one for one in signature(function).parameters.values() if one.kind in positional]
    return sum(one.default is Parameter.empty for one in takes), len(takes)


_BOUNDS = {name: _bounds(function) for name, function in _ALL.items()}


class ArgumentsFault(LiquidFault):
    """The filter *name* has another number of values after its colon than it *takes*."""

    def __init__(self, words: str, name: str, given: int, takes: tuple[int, int]) -> None:
        super().__init__(words)
        self.name = name
        self.given = given
        self.takes = takes


def invoke(context: RenderContext, name: str, value: Any, *given: Any) -> Any:
    """Apply the filter *name*.

    Raises:
        LiquidFault: Ruby refuses the values or their number.
    """
    least, most = _BOUNDS[name]
    number = 1 + len(given)
    if not least <= number <= most:
        expected = f"{least}" if least == most else f"{least}..{most}"
        words = f"wrong number of arguments (given {number}, expected {expected})"
        raise ArgumentsFault(words, name, len(given), (least - 1, most - 1))
    if value is None and name in _KEEP_NIL:
        return None
    options = {"run": run_of(context)} if name in _USE_RUN else {}
    return _ALL[name](value, *given, **options)


def known(name: str) -> bool:
    return name in _BOUNDS


def takes_values(name: str) -> bool:
    """Return whether a filter takes values after its colon; no for an unknown one."""
    return name in _BOUNDS and _BOUNDS[name][1] > 1
