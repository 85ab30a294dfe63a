"""The fields of an answer as a tree, each with the Liquid to insert it into a message. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.liquid.tags import NO_END_DAYS

# Limits of a tree on a page: levels, fields of an object, items of a list, characters of a value.
DEEPEST = 6
MOST_FIELDS = 60
MOST_ITEMS = 3
LONGEST = 80

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")
_NAME_OF_DATE = re.compile(r".*_(?:at|date)|as_of")


@dataclass(frozen=True)
class AnswerField:
    """One field of an answer.

    Attributes:
        name: the last part of its path; ``[0]`` for an item of a list.
        value: the customer's value, cut to one line; "" for an object with fields.
        insert: the Liquid that inserts it, or ""; ``…`` is the gap for the author's own text.
        path: what stands for it within a tag.
        fields: the fields of an object, or the items of a list.
    """

    name: str
    value: str
    insert: str
    path: str
    fields: tuple["AnswerField", ...] = ()


def field_tree(name: str, value: Any) -> AnswerField:
    """Return *value*, parsed JSON, as the tree of the variable *name*."""
    return _field(name, name, value, DEEPEST)


def _field(name: str, path: str, value: Any, levels: int) -> AnswerField:
    if isinstance(value, dict):
        inner = tuple(_of_object(path, value, levels - 1)) if levels else ()
        return AnswerField(name, "" if value else "empty", "", path, inner)
    if isinstance(value, list):
        inner = tuple(_of_list(path, value, levels - 1)) if levels else ()
        return AnswerField(name, _size(value), _of_all(name, path, value), path, inner)
    shown = f"{value}, does not expire" if _is_endless(name, value) else _shown(value)
    return AnswerField(name, shown, _single(name, path, value), path)


def _of_object(path: str, value: Mapping[str, Any], levels: int) -> Iterator[AnswerField]:
    for name, one in sorted(value.items(), key=_rank)[:MOST_FIELDS]:
        step = f".{name}" if _NAME.fullmatch(name) else _quoted(name)
        if step:
            yield _field(name, path + step, one, levels)


def _rank(item: tuple[str, Any]) -> int:
    """Sort fields that messages show first, and identifiers last."""
    return 0 if item[0] in _SHOWN_FIRST else 2 if item[0].endswith("id") else 1


_SHOWN_FIRST = {"first", "title", "expires_at", "days_left", "description"}


def _of_list(path: str, value: list[Any], levels: int) -> Iterator[AnswerField]:
    for index, one in enumerate(value[:MOST_ITEMS]):
        yield _field(f"[{index}]", f"{path}[{index}]", one, levels)


def _quoted(name: str) -> str:
    """Return the path step for a field whose name is not a word. Liquid has no escapes."""
    quote = next((quote for quote in "'\"" if quote not in name), "")
    return f"[{quote}{name}{quote}]" if quote and "\n" not in name else ""


def _is_endless(name: str, value: Any) -> bool:
    return name == "days_left" and value == NO_END_DAYS


def _single(name: str, path: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{{% if {path} %}}…{{% endif %}}"
    if name == "days_left":
        return f"{{% if {path} < {NO_END_DAYS} %}}{{{{ {path} }}}}…{{% endif %}}"
    if isinstance(value, int | float):
        return f"{{{{ {path} | default: 0 }}}}"
    if _DATE.fullmatch(str(value)) or (not value and _NAME_OF_DATE.fullmatch(name)):
        return f"{{{{ {path} | date: '%d %B %Y' }}}}"
    return f"{{{{ {path} | default: '…' | escape }}}}"


def _of_all(name: str, path: str, value: list[Any]) -> str:
    """Return the Liquid for a whole list: a loop over objects, a condition for words."""
    first = value[0] if value else ""
    if isinstance(first, dict):
        item = name.removesuffix("s") if _NAME.fullmatch(name) and name.endswith("s") else "item"
        shown = "title" if "title" in first else next(iter(first), "")
        step = f".{shown}" if _NAME.fullmatch(shown) else ""
        return f"{{% for {item} in {path} %}}\n  {{{{ {item}{step} | escape }}}}\n{{% endfor %}}"
    word = first if isinstance(first, str) and first and not set(first) & set("'\n") else "…"
    return f"{{% if {path} contains '{word}' %}}…{{% endif %}}"


def _size(value: list[Any]) -> str:
    return "1 item" if len(value) == 1 else f"{len(value)} items"


def _shown(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value)
    line = " ".join(words.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
