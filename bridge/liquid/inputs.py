"""Read the test values of a preview as typed by a person: JSON, since values have types."""

import json
import re
from collections.abc import Mapping
from typing import Any

from bridge.fields import CURLY_QUOTES
from bridge.liquid.values import from_json

# Keys of objects that a file may hold beside the profile's own fields.
OBJECTS = (
    *("custom_attribute", "event_properties", "context", "api_trigger_properties"),
    *("canvas_entry_properties", "content_blocks", "catalogs"),
)


_TRAILING_COMMA = re.compile(r",\s*([}\]])")


class InputError(ValueError):
    """Text that is not the expected JSON; ``str()`` is a sentence without its subject."""


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object; blank text is an empty one.

    Raises:
        InputError: the text is not a JSON object.
    """
    if not text.strip():
        return {}
    try:
        found = from_json(text)
    except RecursionError:
        raise InputError("is nested too deep") from None
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {_fault(text, error)}") from None
    except ValueError:
        words = "NaN, Infinity, a number over 4,300 digits, or half of a surrogate pair"
        raise InputError(f"is not JSON: it has {words}") from None
    if not isinstance(found, dict):
        raise InputError('is not a JSON object, such as {"points": 600}')
    return found


def _fault(text: str, error: json.JSONDecodeError) -> str:
    """Return the place and the likely cause of *error*."""
    # Python's releases differ: some name the place of the comma, others of the bracket.
    comma = text.rfind(",", 0, error.pos + 1)
    found = _TRAILING_COMMA.match(text, comma) if comma >= 0 else None
    if found and error.pos < found.end():
        line, column = text.count("\n", 0, comma) + 1, comma - text.rfind("\n", 0, comma)
        return f"line {line}, column {column}: delete the comma before {found[1]}"
    if error.pos == 0:
        return 'it must look like {"tier": "gold"}'
    curly = error.pos < len(text) and text[error.pos] in CURLY_QUOTES
    words = _CURLY if curly else _FAULTS.get(error.msg.partition(" at")[0], error.msg)
    return f"line {error.lineno}, column {error.colno}: {words}"


_CURLY = "these are curly quotes: type straight ones"
# Python's messages -> ours.
_FAULTS = {
    "Extra data": "delete what stands behind the last }",
    "Expecting property name enclosed in double quotes": (
        'a name in double quotes is missing, such as "points"'
    ),
    "Expecting value": "a value is missing; a text stands in double quotes",
    "Expecting ',' delimiter": 'a comma is missing; within a text, write \\" for a double quote',
    "Expecting ':' delimiter": "a colon is missing behind the name",
    "Unterminated string starting": "the text has no closing quote",
    "Invalid control character": "a text goes over several lines: write \\n for the end of a line",
    "Invalid \\escape": "within a text, write \\\\ for \\",
}


def read_attributes(text: str) -> dict[str, Any]:
    """Read test values: ``{"first_name": "Ann", "custom_attribute": {…}, …}``.

    Raises:
        InputError: the text is not a JSON object, or a key of `OBJECTS` does not hold an object.
    """
    found = read_object(text)
    for name in OBJECTS:
        if not isinstance(found.get(name, {}), dict):
            raise InputError(f'needs an object for "{name}"')
    _check_catalogs(found.get("catalogs", {}))
    return found


def read_catalogs(text: str) -> dict[str, Any]:
    """Read test items of catalogs: ``{"games": {"1": {"title": "Go"}}}``.

    Raises:
        InputError: the text is not a JSON object, or a catalog in it is not an object of objects.
    """
    found = read_object(text)
    _check_catalogs(found)
    return found


def _check_catalogs(catalogs: Mapping[str, Any]) -> None:
    for name, items in catalogs.items():
        if not isinstance(items, dict) or not all(isinstance(one, dict) for one in items.values()):
            raise InputError(
                f'needs an object of items for the catalog "{name}", such as '
                '{"games": {"1": {"title": "Go"}}}'
            )


def read_value(text: str) -> Any:
    """Read a value from a command line: JSON if possible (``600``, ``true``), else text."""
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return text
