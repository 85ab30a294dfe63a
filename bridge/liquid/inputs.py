"""Read the test values of a preview as typed by a person: JSON, since values have types."""

import json
from typing import Any

# Keys of objects that a file may hold beside the profile's own fields.
OBJECTS = (
    *("custom_attribute", "event_properties", "context", "api_trigger_properties"),
    *("canvas_entry_properties", "content_blocks", "catalogs"),
)


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
        found = json.loads(text)
    except RecursionError:
        raise InputError("is nested too deep") from None
    except json.JSONDecodeError as error:
        hint = "; curly quotes, pasted from a word processor?" if set("“”„’") & set(text) else ""
        raise InputError(
            f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from None
    if not isinstance(found, dict):
        raise InputError('is not a JSON object, such as {"points": 600}')
    return found


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
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
