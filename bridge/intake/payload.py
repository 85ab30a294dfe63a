"""Webhook body -> Event, or a refusal that names the field.

Pure. Tolerated is what Braze templates produce: trailing commas, a byte order mark, padding,
blank strings, numbers as text. What stands inside a string is never touched.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from bridge.customer import Customer, CustomerKind
from bridge.fields import (
    MAX_DEPTH,
    MAX_TEXT,
    REQUIRED_SCHEMA,
    TEXT_SCHEMA,
    TTL_SCHEMA,
    FieldError,
    Whole,
    deeper_than,
    has_liquid,
    identifier,
    required,
    shown,
    text,
    trim,
    ttl,
)

MAX_BODY = 256 * 1024
# No text begins so (RFC 1952 2.3.1).
_GZIP = b"\x1f\x8b"
MAX_TAGS = 100
MAX_FORM_FIELDS = 1000

# What a webhook may say: field -> JSON schema. Other fields are ignored, with a warning.
FIELDS: dict[str, dict[str, Any]] = {
    "braze_campaign_id": TEXT_SCHEMA,
    "campaign_id": TEXT_SCHEMA,
    "braze_canvas_id": TEXT_SCHEMA,
    "canvas_id": TEXT_SCHEMA,
    "user_id": TEXT_SCHEMA,
    "external_id": TEXT_SCHEMA,
    "external_user_id": TEXT_SCHEMA,
    "tags": {
        "type": ["array", "string", "integer", "null"],
        "items": REQUIRED_SCHEMA,
        "description": f"at most {MAX_TAGS} different ones; as text, separated by commas",
    },
    "ttl": TTL_SCHEMA,
    "dispatch_id": TEXT_SCHEMA,
}
# Of these a call to SessionM's own path may bring.
TAG_FIELDS = {name: FIELDS[name] for name in ("tags", "ttl", "dispatch_id")}

_CAMPAIGN = ("braze_campaign_id", "campaign_id")
_CANVAS = ("braze_canvas_id", "canvas_id")
# By what a customer may be named, what counts first.
_CUSTOMER: dict[CustomerKind, tuple[str, ...]] = {
    "user_id": ("user_id",),
    "external_id": ("external_id", "external_user_id"),
}

# Hex digits of what makes two events the same: 96 bits, which any two of a hundred million events
# share with a chance of one in ten million millions. All 64 of the hash, at random places of an
# index, made a webhook dearer by a twentieth.
DEDUPE_DIGITS = 24

# Braze's placeholder in test sends of a campaign that was never sent (Braze documentation,
# "dispatch_id").
UNSENT = "dispatch_id_for_unsent_campaign"


class Event(NamedTuple):
    """What one webhook says; *ignored* are names in it that mean nothing to the bridge."""

    customer: Customer
    campaign_id: str | None = None
    canvas_id: str | None = None
    tags: tuple[str, ...] = ()
    ttl: int | None = None
    dispatch_id: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def is_test(self) -> bool:
        """Whether Braze sent it as a test of a campaign."""
        return self.dispatch_id is not None and UNSENT in self.dispatch_id

    def dedupe_key(self, idempotency_key: str | None) -> str | None:
        """What makes two events the same one; ``None`` when nothing does.

        Braze's dispatch id is shared by all recipients of a send, so the customer, the IDs and
        the tags belong to the key.
        """
        token = ["key", idempotency_key] if idempotency_key else ["dispatch", self.dispatch_id]
        if not token[1] or self.is_test:
            return None
        parts = [*token, self.customer.key, self.campaign_id, self.canvas_id, sorted(self.tags)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:DEDUPE_DIGITS]


@dataclass(frozen=True)
class Named:
    """Whom and what a webhook names, as far as it can be read."""

    customer: Customer | None = None
    campaign_id: str | None = None
    canvas_id: str | None = None


class RefusedError(Exception):
    """A webhook that cannot become an event: HTTP *status*, error *code*, a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def read_event(body: bytes, content_type: str) -> Event:
    """Read a webhook's *body* (at most `MAX_BODY` bytes count) sent as *content_type*.

    Raises:
        RefusedError: 400 malformed, 413 too large, 415 wrong type, 422 without meaning.
    """
    fields = read_fields(body, content_type)
    try:
        return _event(fields)
    except FieldError as error:
        raise RefusedError(422, "invalid_field", f"{error}.") from None


def read_tag_event(body: bytes, content_type: str, kind: CustomerKind, path_id: str) -> Event:
    """Read SessionM's own ``{"tags":["…"],"ttl":N}`` for the customer that the path names.

    Raises:
        RefusedError: as `read_event`.
    """
    fields = read_fields(body, content_type)
    known: dict[str, Any] = {name: fields[name] for name in TAG_FIELDS if name in fields}
    try:
        return _event({**known, kind: path_id})
    except FieldError as error:
        raise RefusedError(422, "invalid_field", f"{error}.") from None


def read_named(body: bytes, content_type: str) -> Named:
    """What can be read of a *body* that is refused: each identifier that is valid by itself."""
    try:
        fields = read_fields(body, content_type)
    except RefusedError:
        return Named()
    customers = _customers(fields)
    return Named(
        customer=customers[0] if customers else None,
        campaign_id=_readable(fields, *_CAMPAIGN),
        canvas_id=_readable(fields, *_CANVAS),
    )


def named_customers(body: bytes, content_type: str) -> tuple[Customer, ...]:
    """Every customer that a webhook's *body* names, the one that does not count included."""
    try:
        return _customers(read_fields(body, content_type))
    except RefusedError:
        return ()


def as_sent(value: Any) -> Any:
    """*value* out of `read_fields` with its whole numbers as numbers again, for passing on."""
    if isinstance(value, dict):
        return {name: as_sent(one) for name, one in value.items()}
    if isinstance(value, list):
        return [as_sent(one) for one in value]
    # Python converts no number of thousands of digits; such a one goes on as text.
    return int(value) if isinstance(value, Whole) and len(value) < MAX_TEXT else value


def read_fields(body: bytes, content_type: str) -> dict[str, Any]:
    """Read *body*, a JSON object or a form, as names and values.

    Raises:
        RefusedError: 400, 413 or 415, as `read_event`.
    """
    if len(body) > MAX_BODY:
        raise RefusedError(
            413, "too_large", f"The body is larger than {MAX_BODY // 1024} KB; send less."
        )
    if body.startswith(_GZIP):
        raise RefusedError(415, "unsupported_encoding", "The body is compressed: send plain text.")
    try:
        content = trim(body.decode())
    except UnicodeDecodeError as error:
        raise RefusedError(
            400, "invalid_encoding", f"The body is not UTF-8 text (byte {error.start})."
        ) from None
    kind = _media_type(content_type)
    # Raw text that Braze sends, and curl's default type, often hold JSON all the same.
    if kind in _JSON or kind.endswith("+json") or (kind in _SNIFFED and content.startswith("{")):
        return _json_fields(content)
    if kind == _FORM:
        return _form_fields(content)
    raise RefusedError(
        415,
        "unsupported_type",
        f"The Content-Type {kind or '(none)'} is not understood: send application/json.",
    )


@lru_cache
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


_JSON = {"application/json", "text/json"}
_FORM = "application/x-www-form-urlencoded"
_SNIFFED = {"", "text/plain", _FORM}


def _json_fields(content: str) -> dict[str, Any]:
    try:
        fields = _parse(content)
    except RecursionError:
        raise RefusedError(400, "invalid_json", "The JSON is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise RefusedError(400, "invalid_json", _explain(content, error)) from None
    except ValueError as error:
        raise RefusedError(400, "invalid_json", f"The JSON cannot be used: {error}.") from None
    # With fewer brackets than that it is not; to count them takes less time than to look.
    if content.count("{") + content.count("[") > MAX_DEPTH and deeper_than(fields, MAX_DEPTH):
        raise RefusedError(400, "invalid_json", "The JSON is nested too deeply.")
    if not isinstance(fields, dict):
        raise RefusedError(
            422, "not_an_object", 'The body must be a JSON object, { "user_id": "…", … }.'
        )
    return fields


def _parse(content: str) -> object:
    """Strict JSON first; if that fails, once more without trailing commas."""
    try:
        value, end = _DECODER.raw_decode(content)
        # What stands behind it is told by the other.
        return value if end == len(content) else _DECODER.decode(content)
    except json.JSONDecodeError:
        mended = _SLIPS.sub(_mend, content)
        if mended == content:
            raise
        return _DECODER.decode(mended)


# A whole string (to be left alone; one without an end reaches to the end), a comma before a
# closing bracket, or a space that JSON does not know. Possessive, so that hostile text costs
# linear time.
_SLIPS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|,(?=\s*+[}\]])|[^\S \t\r\n]', re.DOTALL)


def _mend(slip: re.Match[str]) -> str:
    if slip[0].startswith('"'):
        return slip[0]
    # As long as what it stands for, so that the place of another fault is told rightly.
    return " "


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f'"{shown(name)}" is given twice with different values')
        found[name] = value
    return found


class _Fraction(float):
    """A number with a point or exponent: no identifier, TTL or tag."""


def _not_json(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


# Line breaks inside strings are let through, so that the message can name the field.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs,
    parse_int=Whole,
    parse_float=_Fraction,
    parse_constant=_not_json,
    strict=False,
)


def _explain(content: str, error: json.JSONDecodeError) -> str:
    where = f"line {error.lineno}, column {error.colno}"
    near = shown(content[error.pos : error.pos + 20].split("\n", maxsplit=1)[0])
    if not content:
        return "The body is empty; send a JSON object."
    if has_liquid(content[max(0, error.pos - 3) : error.pos + 3]):
        return (
            f"The body still holds Liquid at {where}: {near} … Put it in quotes, and check that "
            "Braze replaces it."
        )
    return f"The body is not valid JSON at {where}, near: {near or 'its end'}"


def _form_fields(content: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            content, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except ValueError:
        raise RefusedError(
            400, "invalid_form", "The form cannot be read: too many fields, or not UTF-8."
        ) from None
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in {"tags", "tags[]"}:
            fields.setdefault("tags", []).append(value)
        elif fields.setdefault(name, value) != value:
            raise RefusedError(
                400, "invalid_form", f'"{shown(name)}" is given twice with different values.'
            )
    if len(fields.get("tags", [])) == 1:
        fields["tags"] = fields["tags"][0]
    return fields


def _event(fields: Mapping[str, Any]) -> Event:
    # The customer last: a placeholder left standing elsewhere is the more telling mistake.
    event = Event(
        campaign_id=_one_of(fields, *_CAMPAIGN),
        canvas_id=_one_of(fields, *_CANVAS),
        tags=_tags(fields.get("tags")),
        ttl=ttl(fields.get("ttl"), "ttl"),
        dispatch_id=text(fields.get("dispatch_id"), "dispatch_id"),
        ignored=_ignored(fields),
        customer=_customer(fields),
    )
    if not (event.campaign_id or event.canvas_id or event.tags):
        raise RefusedError(
            422,
            "nothing_to_tag",
            "Nothing to tag: give tags, or a braze_campaign_id or braze_canvas_id."
            + _without_meaning(event.ignored),
        )
    return event


def _customer(fields: Mapping[str, Any]) -> Customer:
    # All are read, so that none of them is wrong.
    given = [
        Customer(kind, name)
        for kind, names in _CUSTOMER.items()
        if (name := _one_of(fields, *names))
    ]
    if given:
        return given[0]
    raise RefusedError(
        422,
        "no_customer",
        "No customer: user_id (SessionM's) or external_id is missing or blank. In a test send, "
        "choose a user to test with." + _without_meaning(_ignored(fields)),
    )


def _customers(fields: Mapping[str, Any]) -> tuple[Customer, ...]:
    """The customers that can be read, the one that counts first."""
    given = {kind: _readable(fields, *names) for kind, names in _CUSTOMER.items()}
    return tuple(Customer(kind, name) for kind, name in given.items() if name)


def _readable(fields: Mapping[str, Any], *names: str) -> str | None:
    """As `_one_of`; ``None`` also where it cannot be used."""
    try:
        return _one_of(fields, *names)
    except FieldError:
        return None


def _ignored(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(shown(name) for name in fields if name not in FIELDS)[:5]


def _without_meaning(ignored: Sequence[str]) -> str:
    return f" {told_ignored(ignored)}" if ignored else ""


def told_ignored(ignored: Iterable[str]) -> str:
    """A sentence about the names in `Event.ignored`."""
    names = ", ".join(f'"{name}"' for name in ignored)
    return f"Ignored, since the webhook knows no such field: {names}."


def _one_of(fields: Mapping[str, Any], *names: str) -> str | None:
    """The identifier under any of its *names*, which must not disagree."""
    if fields.keys().isdisjoint(names):
        return None
    given = [
        (name, value)
        for name in names
        if name in fields and (value := identifier(fields[name], name))
    ]
    if len(given) > 1 and len({value for _, value in given}) > 1:
        raise FieldError(" and ".join(name for name, _ in given), "disagree: send one of them")
    return given[0][1] if given else None


def _tags(value: object) -> tuple[str, ...]:
    """A list of tags, or text that separates them by commas; order kept, repeats dropped."""
    if isinstance(value, str):
        items: Iterable[object] = [part for part in value.split(",") if trim(part)]
    elif isinstance(value, list):
        items = value
    elif value is None:
        return ()
    else:
        raise FieldError("tags", "must be a list of texts")
    tags = tuple(dict.fromkeys(required(item, f"tags[{i}]") for i, item in enumerate(items)))
    if len(tags) > MAX_TAGS:
        raise FieldError("tags", f"holds more than {MAX_TAGS} tags")
    return tags
