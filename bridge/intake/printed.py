"""Read a list that a template printed as text: ``["vip", "gold"]``, ``['vip']``, ``vip, gold``.

Pure. Liquid prints a list like Ruby, other engines like Python or JSON. Filters escape the quotes
or replace them by HTML codes.
"""

import re
from collections.abc import Iterator

from bridge.fields import FieldError, is_no_value, shown, trim

_QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019"
_BEGINS_QUOTED = re.compile(r"\[\s*(?:\\?[\"']|&quot;|&#39;|\])")
_OPENING = re.compile(r"\s*([\"'])")
# A quote closes an item only before a comma or the end: names may contain quotes.
_QUOTED = re.compile(
    r"""\s*(?P<quote>["']) (?P<item> (?: \\. | (?! (?P=quote)\s*(?:,|\Z) ) . )*+ )
    (?P=quote)\s*(?:,|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def is_printed_list(value: str) -> bool:
    """Return whether *value* can only be a printed list: ``[]``, or ``[`` and a quote."""
    return _BEGINS_QUOTED.match(trim(value)) is not None


def printed_list(value: str, field: str) -> list[str | None]:
    """Read the items of a printed list, or of text separated by commas, in their order.

    A comma in quotes is part of its item. Blank items between commas are left out. ``None`` means
    ``nil`` or ``null`` without quotes in a list.

    Raises:
        FieldError: the text begins like a list and is not one.
    """
    written = trim(value)
    if not written.startswith("[") or not (written.endswith("]") or is_printed_list(written)):
        return [item for item, _ in _items(written) if item]
    if not written.endswith("]"):
        raise FieldError(field, f"begins as a list and does not end as one: {shown(written)}")
    inner = _plain_quotes(written)[1:-1]
    found: list[str | None] = []
    for item, is_quoted in _items(inner):
        if is_quoted:
            found.append(item)
        elif item:
            found.append(_bare(item, field))
    return found


def _plain_quotes(written: str) -> str:
    """Restore quotes that filters have replaced by HTML codes or escaped by a backslash."""
    if re.match(r"\[\s*&", written):
        written = written.replace("&quot;", '"').replace("&#39;", "'").replace("&amp;", "&")
    if re.match(r"\[\s*\\", written):
        written = re.sub(r"\\([\\\"'])", r"\1", written)
    return written


def _items(written: str) -> Iterator[tuple[str, bool]]:
    """Yield each item, and whether it was in quotes."""
    place, unclosed = 0, set[str]()
    while place < len(written):
        opening = _OPENING.match(written, place)
        if opening and opening[1] not in unclosed:
            if match := _QUOTED.match(written, place):
                yield _unescaped(match["item"]), True
                place = match.end()
                continue
            # This quote is never closed: do not search again, so that the time stays linear.
            unclosed.add(opening[1])
        comma = written.find(",", place)
        end = len(written) if comma < 0 else comma
        yield trim(written[place:end]), False
        place = end + 1


def _unescaped(item: str) -> str:
    if "\\" not in item:
        return item
    plain = _ESCAPE.sub(_character, item)
    # Two escapes may be a surrogate pair.
    return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _character(escape: re.Match[str]) -> str:
    if escape[1]:
        return chr(int(escape[1], 16))
    return _ESCAPED.get(escape[2], escape[2])


def _bare(item: str, field: str) -> str | None:
    """Return an item without quotes.

    Raises:
        FieldError: it is part of an object, of an inner list, or has a single quote.
    """
    if is_no_value(item):
        return None
    if item == "object Object" or item[0] in "[{" + _QUOTES or item[-1] in "]}" + _QUOTES:
        raise FieldError(field, f"is a list of something else than texts: {shown(item)}")
    return item
