"""The filters of Braze's Liquid: those of Liquid 5.2.0 and Braze's own.

Liquid's filters are those of lib/liquid/standardfilters.rb, with Ruby's semantics. Braze's are
described in Braze's documentation, "Filters" and "Advanced filters". A filter raises `LiquidFault`
where Ruby would raise an exception.
"""

import base64
import binascii
import hashlib
import hmac
import html
import json
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cmp_to_key
from inspect import Parameter, signature
from typing import Any
from urllib.parse import quote, quote_plus, unquote_to_bytes

from liquid import RenderContext
from liquid.filter import with_context

from bridge.liquid import dates, values
from bridge.liquid.dates import Time
from bridge.liquid.run import run_of
from bridge.liquid.values import LiquidFault, fitting, fitting_list, items_of, simple, text_of

# --- Text -----------------------------------------------------------------------------------------

_ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_STRIPPED = values.WHITESPACE + "\0"
_SPACES = re.compile(f"[{values.WHITESPACE}]+")


def append(value: Any, more: Any) -> str:
    return fitting(text_of(value) + text_of(more))


def prepend(value: Any, more: Any) -> str:
    return append(more, value)


def capitalize(value: Any) -> str:
    return text_of(value).capitalize()


def downcase(value: Any) -> str:
    return text_of(value).lower()


def upcase(value: Any) -> str:
    return fitting(text_of(value).upper())


def escape(value: Any) -> str | None:
    if value is None:
        return None
    return fitting(html.escape(text_of(value)).replace("&#x27;", "&#39;"))


_ESCAPED_ONCE = re.compile(r"[\"><']|&(?!(?:[a-zA-Z]+|#[0-9]+);)")


def escape_once(value: Any) -> str:
    return fitting(_ESCAPED_ONCE.sub(lambda found: escape(found[0]) or "", text_of(value)))


def newline_to_br(value: Any) -> str:
    return fitting(re.sub("\r?\n", "<br />\n", text_of(value)))


def strip(value: Any) -> str:
    return text_of(value).strip(_STRIPPED)


def strip_newlines(value: Any) -> str:
    return re.sub("\r?\n", "", text_of(value))


_BLOCKS = {"<script": "</script>", "<!--": "-->", "<style": "</style>"}
_OPENING = re.compile("<script|<!--|<style")


def strip_html(value: Any) -> str:
    return _without(_without(text_of(value), _OPENING, _BLOCKS), re.compile("<"), {"<": ">"})


def _without(text: str, opening: re.Pattern[str], ends: dict[str, str]) -> str:
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
    if len(text) + times * (len(replacement) - len(pattern)) > values.LARGEST_TEXT:
        raise values.TooLargeError(f"a text grows beyond {values.LARGEST_TEXT:,} characters")
    return text.replace(pattern, replacement, count)


def replace_first(value: Any, old: Any, new: Any = "") -> str:
    return replace(value, old, new, 1)


def replace_last(value: Any, old: Any, new: Any) -> str:
    text, pattern = text_of(value), text_of(old)
    place = text.rfind(pattern)
    if place < 0:
        return text
    return fitting(text[:place] + text_of(new) + text[place + len(pattern) :])


def remove(value: Any, old: Any) -> str:
    return replace(value, old)


def remove_first(value: Any, old: Any) -> str:
    return replace(value, old, "", 1)


def remove_last(value: Any, old: Any) -> str:
    return replace_last(value, old, "")


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
        parts = fitting_list(text.split(by), text.count(by))
    else:
        parts = fitting_list(text, len(text))
    while parts and not parts[-1]:
        parts.pop()
    return fitting_list(parts, len(parts))


def truncate(value: Any, length: Any = 50, end: Any = "...") -> str | None:
    if value is None:
        return None
    text, most, tail = text_of(value), values.integer_of(length), text_of(end)
    return fitting(text[: max(0, most - len(tail))] + tail) if len(text) > most else text


def truncatewords(value: Any, words: Any = 15, end: Any = "...") -> str | None:
    if value is None:
        return None
    text, most = text_of(value), max(1, values.integer_of(words))
    if most >= 2**31 - 1:
        raise LiquidFault(f"integer {most} too big for truncatewords")
    parts = _SPACES.split(text.lstrip(values.WHITESPACE), most)
    return text if len(parts) <= most else fitting(" ".join(parts[:-1]) + text_of(end))


# --- Numbers --------------------------------------------------------------------------------------


def _arithmetic(
    operation: Callable[[Any, Any], int | Decimal],
) -> Callable[[Any, Any], int | float]:
    def calculate(value: Any, operand: Any) -> int | float:
        return simple(operation(values.number_of(value), values.number_of(operand)))

    return calculate


def abs_(value: Any) -> int | float:
    number = values.number_of(value)
    return simple(-number if number < 0 else number)


def at_least(value: Any, least: Any) -> int | float:
    number, bound = values.number_of(value), values.number_of(least)
    return simple(max(number, bound))


def at_most(value: Any, most: Any) -> int | float:
    number, bound = values.number_of(value), values.number_of(most)
    return simple(min(number, bound))


def ceil(value: Any) -> int | float:
    return simple(values.ceil(values.number_of(value)))


def floor(value: Any) -> int | float:
    return simple(values.floor(values.number_of(value)))


def round_(value: Any, digits: Any = 0) -> int | float:
    result = simple(values.rounded(values.number_of(value), int(values.number_of(digits))))
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
    return _each(items, lambda item: values.property_of(item, name) is not None)


def concat(value: Any, more: Any) -> list[Any]:
    if not isinstance(more, list):
        raise LiquidFault("concat filter requires an array argument")
    items = items_of(value)
    return fitting_list(items + more, len(items) + len(more))


def first(value: Any) -> Any:
    return values.end_of(value, first=True)


def last(value: Any) -> Any:
    return None if isinstance(value, dict) else values.end_of(value, first=False)


def join(value: Any, glue: Any = " ") -> str:
    return values.joined(items_of(value), text_of(glue))


def map_(value: Any, name: Any) -> list[Any]:
    if name == "to_liquid":
        return items_of(value)
    return [values.property_of(item, name) for item in items_of(value)]


def reverse(value: Any) -> list[Any]:
    return items_of(value)[::-1]


def size(value: Any) -> int:
    return values.size_of(value) or 0


def sort(value: Any, name: Any = None) -> Any:
    return _sorted(items_of(value), name, _compared)


def sort_natural(value: Any, name: Any = None) -> Any:
    return _sorted(items_of(value), name, lambda a, b: int(_folded(a) > _folded(b)) * 2 - 1)


def uniq(value: Any, name: Any = None) -> Any:
    items = items_of(value)
    if name is not None and not all(map(values.has_properties, items)):
        return None
    kept: dict[Any, Any] = {}
    for item in items:
        key = item if name is None else values.property_of(item, name)
        kept.setdefault(values.identity(key), item)
    return list(kept.values())


def where(value: Any, name: Any, target: Any = None) -> Any:
    if target is None:
        return _each(items_of(value), lambda item: values.is_true(values.property_of(item, name)))
    return _each(items_of(value), lambda item: values.equal(values.property_of(item, name), target))


def _each(items: list[Any], holds: Callable[[Any], bool]) -> list[Any] | None:
    """Return the items for which *holds* is true; nil if an item has no properties."""
    if not all(map(values.has_properties, items)):
        return None
    return [item for item in items if holds(item)]


def _sorted(items: list[Any], name: Any, compare: Callable[[Any, Any], int]) -> Any:
    if not items:
        return []
    keyed: list[tuple[Any, Any]]
    if name is None:
        keyed = [(item, item) for item in items]
    elif all(map(values.has_properties, items)):
        keyed = [(values.property_of(item, name), item) for item in items]
    else:
        return None
    known = [pair for pair in keyed if pair[0] is not None]
    absent = [item for key, item in keyed if key is None]
    if compare is not _compared:
        known.sort(key=lambda pair: _folded(pair[0]))
    elif all(isinstance(key, str) for key, _ in known) or all(
        values.is_number(key) for key, _ in known
    ):
        known.sort(key=lambda pair: pair[0])
    else:
        key_of = cmp_to_key(compare)
        known.sort(key=lambda pair: key_of(pair[0]))
    return [item for _, item in known] + absent


def _compared(a: Any, b: Any) -> int:
    order = values.compared(a, b)
    if order is None:
        raise LiquidFault("cannot sort values of incompatible types")
    return order


def _folded(value: Any) -> str:
    return text_of(value).translate(_ASCII_LOWER)


# --- Dates ----------------------------------------------------------------------------------------


@with_context
def date(value: Any, form: Any, *, context: RenderContext) -> Any:
    if not text_of(form):
        return value
    time = dates.read_date(value, run_of(context).now)
    return fitting(time.strftime(text_of(form))) if time else value


@with_context
def time_zone(value: Any, zone: Any, *, context: RenderContext) -> Any:
    """Convert a date to the time zone *zone* (Braze documentation, "Filters")."""
    run = run_of(context)
    time = dates.read_date(value, run.now)
    if time is None:
        return value
    if (there := time.at(text_of(zone))) is None:
        run.warn(f"the time zone `{text_of(zone)}` is not known; write it like America/New_York")
        return time
    return there


# --- Encodings ------------------------------------------------------------------------------------


def base64_encode(value: Any) -> str:
    return base64.b64encode(text_of(value).encode()).decode()


def _base64_decoder(name: str, altchars: bytes | None) -> Callable[[Any], str]:
    def decode(value: Any) -> str:
        try:
            return base64.b64decode(text_of(value), altchars, validate=True).decode()
        except (binascii.Error, UnicodeError):
            raise LiquidFault(f"invalid base64 provided to {name}") from None

    return decode


def base64_url_safe_encode(value: Any) -> str:
    return base64.urlsafe_b64encode(text_of(value).encode()).decode()


def url_encode(value: Any) -> str | None:
    return None if value is None else fitting(quote_plus(text_of(value)))


def url_decode(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return unquote_to_bytes(text_of(value).replace("+", " ")).decode()
    except UnicodeError:
        raise LiquidFault("invalid byte sequence in UTF-8") from None


def url_escape(value: Any) -> str:
    return fitting(quote(text_of(value), safe=";/?:@&=+$,[]-_.!~*'()"))


def url_param_escape(value: Any) -> str:
    return fitting(quote(text_of(value), safe=""))


def json_escape(value: Any) -> str:
    return fitting(json.dumps(text_of(value), ensure_ascii=False)[1:-1])


def as_json_string(value: Any) -> str:
    plain = text_of(value) if isinstance(value, Time | values.Range | values.Drop) else value
    return fitting(json.dumps(values.bounded(plain), ensure_ascii=False, separators=(",", ":")))


def json_parse(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise LiquidFault("json_parse needs a text with valid JSON") from None


def property_accessor(value: Any, name: Any) -> Any:
    return value.get(name) if isinstance(value, dict) and isinstance(name, str) else None


def _hash(kind: str) -> Callable[[Any], str]:
    def digest(value: Any) -> str:
        return hashlib.new(kind, text_of(value).encode(), usedforsecurity=False).hexdigest()

    return digest


def _hmac(kind: str, encode: Callable[[bytes], str]) -> Callable[[Any, Any], str]:
    def sign(value: Any, key: Any) -> str:
        return encode(hmac.digest(text_of(key).encode(), text_of(value).encode(), kind))

    return sign


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


# --- All together ---------------------------------------------------------------------------------


def default(value: Any, other: Any = "", options: Any = None) -> Any:
    allows_false = isinstance(options, dict) and values.is_true(options.get("allow_false"))
    absent = value is None if allows_false else not values.is_true(value)
    return other if absent or values.is_empty(value) else value


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": abs_,
    "append": append,
    "as_json_string": as_json_string,
    "at_least": at_least,
    "at_most": at_most,
    "base64_encode": base64_encode,
    "capitalize": capitalize,
    "ceil": ceil,
    "compact": compact,
    "concat": concat,
    "date": date,
    "default": default,
    "divided_by": _arithmetic(values.divided),
    "downcase": downcase,
    "escape": escape,
    "escape_once": escape_once,
    "first": first,
    "floor": floor,
    "hmac_sha1": _hmac("sha1", bytes.hex),
    "hmac_sha1_hex": _hmac("sha1", bytes.hex),
    "hmac_sha1_base64": _hmac("sha1", _base64),
    "hmac_sha256": _hmac("sha256", bytes.hex),
    "hmac_sha256_hex": _hmac("sha256", bytes.hex),
    "hmac_sha256_base64": _hmac("sha256", _base64),
    "hmac_sha512": _hmac("sha512", bytes.hex),
    "join": join,
    "json_escape": json_escape,
    "json_parse": json_parse,
    "last": last,
    "map": map_,
    "md5": _hash("md5"),
    "minus": _arithmetic(lambda a, b: values.added(a, -b)),
    "modulo": _arithmetic(values.remainder),
    "money": money,
    "newline_to_br": newline_to_br,
    "number_with_delimiter": number_with_delimiter,
    "plus": _arithmetic(values.added),
    "prepend": prepend,
    "property_accessor": property_accessor,
    "remove": remove,
    "remove_first": remove_first,
    "replace": lambda value, old, new="": replace(value, old, new),
    "replace_first": replace_first,
    "reverse": reverse,
    "round": round_,
    "sha1": _hash("sha1"),
    "sha2": _hash("sha256"),
    "size": size,
    "slice": slice_,
    "sort": sort,
    "sort_natural": sort_natural,
    "split": split,
    "strip": strip,
    "strip_html": strip_html,
    "strip_newlines": strip_newlines,
    "time_zone": time_zone,
    "times": _arithmetic(values.multiplied),
    "truncate": truncate,
    "truncatewords": truncatewords,
    "uniq": uniq,
    "upcase": upcase,
    "url_decode": url_decode,
    "url_encode": url_encode,
    "url_escape": url_escape,
    "url_param_escape": url_param_escape,
    "where": where,
}
# Filters of the engine that Braze's documentation does not mention.
UNDOCUMENTED: dict[str, Callable[..., Any]] = {
    "base64_decode": _base64_decoder("base64_decode", None),
    "base64_url_safe_decode": _base64_decoder("base64_url_safe_decode", b"-_"),
    "base64_url_safe_encode": base64_url_safe_encode,
    "h": escape,
    "remove_last": remove_last,
    "replace_last": replace_last,
}


def _bounds(function: Callable[..., Any]) -> tuple[int, int]:
    """Return the minimum and maximum number of values, including the filtered one."""
    by_place = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    takes = [one for one in signature(function).parameters.values() if one.kind in by_place]
    return sum(one.default is Parameter.empty for one in takes), len(takes)


_BOUNDS = {name: _bounds(function) for name, function in (FILTERS | UNDOCUMENTED).items()}


def invoke(context: RenderContext, name: str, *given: Any) -> Any:
    """Apply the filter *name*.

    Raises:
        LiquidFault: Ruby refuses the values or their number.
    """
    least, most = _BOUNDS[name]
    if not least <= len(given) <= most:
        expected = f"{least}" if least == most else f"{least}..{most}"
        raise LiquidFault(f"wrong number of arguments (given {len(given)}, expected {expected})")
    return context.filter(name, None)(*given)


def known(name: str) -> bool:
    return name in _BOUNDS
