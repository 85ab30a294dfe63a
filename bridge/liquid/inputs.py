"""Read the test values of a preview as typed by a person: JSON, since values have types."""

import json
import re
from typing import Any

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
    hint = "; curly quotes, pasted from a word processor?" if set("“”„’") & set(text) else ""
    return f"line {error.lineno}, column {error.colno}: {error.msg}{hint}"


def read_attributes(text: str) -> dict[str, Any]:
    """Read test values: ``{"first_name": "Ann", "custom_attribute": {…}, …}``.

    Raises:
        InputError: the text is not a JSON object, or a key of `OBJECTS` does not hold an object.
    """
    found = read_object(text)
    for name in OBJECTS:
        if not isinstance(found.get(name, {}), dict):
            raise InputError(f'needs an object for "{name}"')
    return found


def read_value(text: str) -> Any:
    """Read a value from a command line: JSON if possible (``600``, ``true``), else text."""
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return text
