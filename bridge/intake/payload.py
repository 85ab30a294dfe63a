"""Read a webhook's body into an Event, or refuse it with a message that names the field.

Pure. These results of Braze templates are accepted: trailing commas, a byte order mark, padding,
blank strings, numbers as text, lists as text. Text inside a JSON string is never changed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

from bridge.customer import Customer, CustomerKind
from bridge.fields import (
    DURATIONS,
    MAX_DEPTH,
    MAX_TEXT,
    REQUIRED_SCHEMA,
    TEXT_SCHEMA,
    TTL_SCHEMA,
    FieldError,
    Whole,
    display_name,
    has_liquid,
    identifier,
    is_no_value,
    is_too_deep,
    required,
    shown,
    significant,
    text,
    trim,
    ttl,
)
from bridge.intake.broken import explain, legible_fields
from bridge.intake.printed import is_printed_list, printed_list

# Bytes.
MAX_BODY = 256 * 1024
# The first bytes of a gzip file (RFC 1952, 2.3.1); no text begins with them.
_GZIP = b"\x1f\x8b"
MAX_TAGS = 100
MAX_FORM_FIELDS = 1000

# Field of a webhook -> JSON schema. Other fields are ignored, with a warning.
FIELDS: dict[str, dict[str, Any]] = {
    "braze_campaign_id": {**TEXT_SCHEMA, "description": "The API identifier of the campaign."},
    "campaign_id": {**TEXT_SCHEMA, "description": "Another name of `braze_campaign_id`."},
    "braze_canvas_id": {**TEXT_SCHEMA, "description": "The API identifier of the Canvas."},
    "canvas_id": {**TEXT_SCHEMA, "description": "Another name of `braze_canvas_id`."},
    "user_id": {
        **TEXT_SCHEMA,
        "description": "The customer's ID in SessionM; it wins over `external_id`.",
    },
    "external_id": {**TEXT_SCHEMA, "description": "The customer's ID in the retailer's system."},
    "external_user_id": {**TEXT_SCHEMA, "description": "Another name of `external_id`."},
    "tags": {
        "type": ["array", "string", "integer", "null"],
        "items": REQUIRED_SCHEMA,
        "description": f"Further tags, at most {MAX_TAGS} different ones: a list, or text with "
        "commas, or a list as Liquid prints it.",
    },
    "ttl": {
        **TTL_SCHEMA,
        "description": f"How long the tags live: seconds, or {DURATIONS}. Without it `tags` are "
        "counters. It also wins over the rule's TTL for the campaign's or Canvas's own tags.",
    },
    "dispatch_id": {
        **TEXT_SCHEMA,
        "description": "Braze's ID of the send: a retry with the same one is a duplicate.",
    },
    "campaign_name": {**TEXT_SCHEMA, "description": "Shown on the pages beside the ID."},
    "canvas_name": {**TEXT_SCHEMA, "description": "Shown on the pages beside the ID."},
}
# The fields that a call to SessionM's own path may have.
TAG_FIELDS = {name: FIELDS[name] for name in ("tags", "ttl", "dispatch_id")}

_CAMPAIGN = ("braze_campaign_id", "campaign_id")
_CANVAS = ("braze_canvas_id", "canvas_id")
# Identifier of SessionM's -> its names in a webhook; the first one given wins.
_CUSTOMER: dict[CustomerKind, tuple[str, ...]] = {
    "user_id": ("user_id",),
    "external_id": ("external_id", "external_user_id"),
}

# Hex digits, 96 bits: among 100 million events, the probability of a collision is 6e-14. All 64
# digits of the hash would cost 5 % of a webhook's time, in the index.
DEDUPE_DIGITS = 24

# Braze's placeholder in test sends of an unsent campaign (Braze documentation, "dispatch_id").
UNSENT = "dispatch_id_for_unsent_campaign"


class Event(NamedTuple):
    """One webhook; *ignored* are the names of unknown fields."""

    customer: Customer
    campaign_id: str | None = None
    canvas_id: str | None = None
    tags: tuple[str, ...] = ()
    ttl: int | None = None
    dispatch_id: str | None = None
    ignored: tuple[str, ...] = ()
    campaign_name: str | None = None
    canvas_name: str | None = None

    @property
    def is_test(self) -> bool:
        """Whether Braze sent it as a test."""
        return self.dispatch_id is not None and UNSENT in self.dispatch_id

    def dedupe_key(self, idempotency_key: str | None) -> str | None:
        """Return the key that equal events share; ``None`` when every event counts.

        Braze's dispatch ID is shared by all recipients of a send, so the customer, the IDs and
        the tags are part of the key. An *idempotency_key* such as ``null`` counts as none.
        """
        key = significant(idempotency_key)
        token = ["key", key] if key else ["dispatch", self.dispatch_id]
        if not token[1] or self.is_test:
            return None
        parts = [*token, self.customer.key, self.campaign_id, self.canvas_id, sorted(self.tags)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:DEDUPE_DIGITS]


@dataclass(frozen=True)
class PartialEvent:
    """The customer and the IDs of a refused webhook, if they are valid."""

    customer: Customer | None = None
    campaign_id: str | None = None
    canvas_id: str | None = None


class RefusedError(Exception):
    """A refused request: HTTP *status*, error *code*, and ``str()``, a sentence for a marketer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def read_event(body: bytes, content_type: str, path_customer: Customer | None = None) -> Event:
    """Read a webhook's *body*, sent as *content_type*.

    With *path_customer*, it is SessionM's own format ``{"tags":["…"],"ttl":N}`` for the customer
    in the path.

    Raises:
        RefusedError: 400 malformed, 413 over `MAX_BODY` bytes, 415 wrong type, 422 meaningless.
    """
    fields = read_fields(body, content_type)
    if path_customer:
        known = {name: fields[name] for name in TAG_FIELDS if name in fields}
        fields = {**known, **path_customer.ids}
    try:
        return _event(fields)
    except FieldError as error:
        raise RefusedError(422, "invalid_field", f"{error}.") from None


def read_partial(body: bytes, content_type: str) -> PartialEvent:
    """Read the valid identifiers of a refused *body*, the customer's also by a name like userId."""
    fields = partial_fields(body, content_type)
    customers = _customers(fields) or _customers(fields, _spelt_otherwise(fields))
    return PartialEvent(
        customer=customers[0] if customers else None,
        campaign_id=readable(fields, *_CAMPAIGN),
        canvas_id=readable(fields, *_CANVAS),
    )


def partial_fields(body: bytes, content_type: str) -> Mapping[str, Any]:
    """Return the fields of a refused *body*; of broken JSON, those that `legible_fields` finds."""
    try:
        return read_fields(body, content_type)
    except RefusedError:
        return legible_fields(body.decode(errors="replace"))


def customers_in_event(body: bytes, content_type: str) -> tuple[Customer, ...]:
    """Return all customers in a webhook's *body*, the one that takes precedence first."""
    try:
        return _customers(read_fields(body, content_type))
    except RefusedError:
        return ()


def as_sent(value: Any) -> Any:
    """Convert the `Whole` numbers in a *value* of `read_fields` back to numbers."""
    if isinstance(value, dict):
        return {name: as_sent(one) for name, one in value.items()}
    if isinstance(value, list):
        return [as_sent(one) for one in value]
    # Python refuses to convert numbers of thousands of digits: they stay text.
    return int(value) if isinstance(value, Whole) and len(value) < MAX_TEXT else value


def read_fields(body: bytes, content_type: str) -> dict[str, Any]:
    """Read *body*, a JSON object or a form, into a dictionary.

    Raises:
        RefusedError: 400, 413, 415, or 422 for JSON that is not an object; as `read_event`.
    """
    if len(body) > MAX_BODY:
        raise RefusedError(
            413,
            "too_large",
            f"The body is larger than {MAX_BODY // 1024} KB: leave out what it does not need.",
        )
    if body.startswith(_GZIP):
        raise RefusedError(415, "unsupported_encoding", "The body is compressed: send plain text.")
    try:
        content = trim(body.decode())
    except UnicodeDecodeError as error:
        raise RefusedError(
            400,
            "invalid_encoding",
            f"The body is not UTF-8 text (byte {error.start}): send it as UTF-8.",
        ) from None
    kind = _media_type(content_type)
    # Braze's raw text and curl's default type often contain JSON.
    if kind in _JSON or kind.endswith("+json") or (kind in _SNIFFED and content.startswith("{")):
        return _json_fields(content)
    if kind in _FORM:
        return _form_fields(content)
    raise RefusedError(
        415,
        "unsupported_type",
        f"The Content-Type {kind or '(none)'} is not understood: set that header to "
        "application/json.",
    )


@lru_cache
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


_JSON = {"application/json", "text/json"}
# The second spelling is on a page of Braze's documentation.
_FORM = {"application/x-www-form-urlencoded", "application/x-www-form-url-encoded"}
_SNIFFED = {"", "text/plain", *_FORM}


_TOO_DEEP = f"The JSON is nested over {MAX_DEPTH} levels deep: send the fields in one object."


def _json_fields(content: str) -> dict[str, Any]:
    try:
        fields = _parse(content)
    except RecursionError:
        raise RefusedError(400, "invalid_json", _TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise RefusedError(400, "invalid_json", _explain(content, error)) from None
    except ValueError as error:
        raise RefusedError(400, "invalid_json", f"The JSON cannot be used: {error}.") from None
    # Fast path: a text with few brackets cannot be nested too deeply.
    if content.count("{") + content.count("[") > MAX_DEPTH and is_too_deep(fields):
        raise RefusedError(400, "invalid_json", _TOO_DEEP)
    if not isinstance(fields, dict):
        raise RefusedError(
            422, "not_an_object", 'The body must be a JSON object, { "user_id": "…", … }.'
        )
    return fields


def parse_object(content: str) -> object:
    """Read JSON text in a field with the same tolerance, and `Whole` numbers, see `as_sent`.

    Raises:
        ValueError: *content* is not JSON, or is nested too deeply.
    """
    try:
        found = _parse(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if is_too_deep(found):
        raise ValueError("nested too deeply")
    return found


def _parse(content: str) -> object:
    """Read strict JSON; if that fails, read it again without trailing commas."""
    try:
        value, end = _DECODER.raw_decode(content)
        # If text follows the value, the second call raises the error.
        return value if end == len(content) else _DECODER.decode(content)
    except json.JSONDecodeError:
        corrected = _TOLERATED.sub(_blank, content)
        if corrected == content:
            raise
        return _DECODER.decode(corrected)


# A string (also one that is not closed), a comma before a closing bracket, or a space that JSON
# does not allow. Possessive quantifiers, so that hostile text takes linear time.
_TOLERATED = re.compile(r'"(?:[^"\\]++|\\.)*+"?|,(?=\s*+[}\]])|[^\S \t\r\n]', re.DOTALL)


def _blank(found: re.Match[str]) -> str:
    if found[0].startswith('"'):
        return found[0]
    # Of the same length, so that the position of a later error is right.
    return " "


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f'"{shown(name)}" is given twice with different values: delete one')
        found[name] = value
    return found


class _Fraction(float):
    """A number with a point or exponent, which is no identifier and no tag."""


def _not_json(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


# Line breaks in strings are allowed here, so that a later check can name the field.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs,
    parse_int=Whole,
    parse_float=_Fraction,
    parse_constant=_not_json,
    strict=False,
)


def _explain(content: str, error: json.JSONDecodeError) -> str:
    if not content:
        return 'The body is empty: send the fields as JSON, { "user_id": "…", … }.'
    if has_liquid(content[max(0, error.pos - 3) : error.pos + 3]):
        near = shown(content[error.pos : error.pos + 20].split("\n", maxsplit=1)[0])
        return (
            f"The body still holds Liquid at line {error.lineno}, column {error.colno}: {near} … "
            "Put it in quotes, and check that the template fills it in."
        )
    return explain(content, error)


def _form_fields(content: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            content, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except ValueError:
        raise RefusedError(
            400, "invalid_form", "The form cannot be read: too many fields, or not UTF-8."
        ) from None
    try:
        refuse_stray_pieces(content)
    except FieldError as error:
        raise RefusedError(400, "invalid_form", f"{error}.") from None
    fields: dict[str, Any] = {}
    for field, value in pairs:
        if field in {"tags", "tags[]"}:
            fields.setdefault("tags", []).append(value)
        elif fields.setdefault(field, value) != value:
            raise RefusedError(
                400,
                "invalid_form",
                f'"{shown(field)}" is given twice with different values: delete one.',
            )
    if len(fields.get("tags", [])) == 1:
        fields["tags"] = fields["tags"][0]
    return fields


def refuse_stray_pieces(encoded: str) -> None:
    """Refuse a form or query with a part that has no ``=``, such as ``external_id=M&Ms-77``.

    Raises:
        FieldError: names the field before that part, whose value probably contains an ``&``.
    """
    for before, piece in pairwise(["", *encoded.split("&")]):
        if piece and "=" not in piece:
            cut = shown(unquote_plus(piece))
            field = shown(unquote_plus(before.partition("=")[0]))
            if not field:
                raise FieldError(f'"{cut}"', 'has no "=": a form reads name=value&name=value')
            raise FieldError(
                field,
                f'is followed by "{cut}", which has no "=": an & in a value must be written %26, '
                "as the filter url_param_escape does",
            )


def _event(fields: Mapping[str, Any]) -> Event:
    # The customer last: an error in another field explains the mistake better.
    event = Event(
        campaign_id=_one_of(fields, *_CAMPAIGN),
        canvas_id=_one_of(fields, *_CANVAS),
        tags=_tags(fields.get("tags")),
        ttl=ttl(fields.get("ttl"), "ttl"),
        # A word such as `null` is no ID: all events would be duplicates.
        dispatch_id=significant(text(fields.get("dispatch_id"), "dispatch_id")),
        ignored=_ignored(fields),
        campaign_name=display_name(fields.get("campaign_name"), "campaign_name"),
        canvas_name=display_name(fields.get("canvas_name"), "canvas_name"),
        customer=_customer(fields),
    )
    if not (event.campaign_id or event.canvas_id or event.tags):
        raise RefusedError(
            422,
            "nothing_to_tag",
            "Nothing to tag: the body needs a braze_campaign_id, a braze_canvas_id or tags."
            + _about_ignored(event.ignored),
        )
    return event


def _customer(fields: Mapping[str, Any]) -> Customer:
    # Read all identifiers, so that an invalid one is refused even if another takes precedence.
    given = [
        Customer(kind, found)
        for kind, names in _CUSTOMER.items()
        if (found := _one_of(fields, *names))
    ]
    if given:
        return given[0]
    stated = stated_words(fields, [name for names in _CUSTOMER.values() for name in names])
    raise RefusedError(
        422,
        "no_customer",
        f"No customer: {stated or 'the body needs a user_id or an external_id that is not blank'}."
        + _about_ignored(_ignored(fields))
        + " In a test send, choose a user to test with.",
    )


def stated_words(fields: Mapping[str, Any], names: Iterable[str], where: str = "") -> str:
    """Return which of the fields *names* hold words instead of an identifier; "" for none.

    *where* is written before the names.
    """
    return " and ".join(
        f'{where}{name} is "{shown(word)}"'
        for name in names
        if isinstance(value := fields.get(name), str) and (word := trim(value))
    )


def _customers(
    fields: Mapping[str, Any], names_of: Mapping[CustomerKind, tuple[str, ...]] = _CUSTOMER
) -> tuple[Customer, ...]:
    """Return the valid customers, the one that takes precedence first."""
    given = {kind: readable(fields, *names) for kind, names in names_of.items()}
    return tuple(Customer(kind, found) for kind, found in given.items() if found)


def _spelt_otherwise(fields: Iterable[str]) -> dict[CustomerKind, tuple[str, ...]]:
    """Return `_CUSTOMER` with the names in *fields* that differ by case and separators only."""
    return {
        kind: tuple(name for name in fields if _letters(name) in {*map(_letters, names)})
        for kind, names in _CUSTOMER.items()
    }


def _letters(name: str) -> str:
    return re.sub(r"[\s._-]", "", name).lower()


def readable(fields: Mapping[str, Any], *names: str) -> str | None:
    """Return the identifier in one of the fields *names*; ``None`` if it is absent or invalid."""
    try:
        return _one_of(fields, *names)
    except FieldError:
        return None


def _ignored(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(shown(name) for name in fields if name not in FIELDS)[:5]


def _about_ignored(ignored: Sequence[str]) -> str:
    return f" {ignored_warning(ignored)}" if ignored else ""


def ignored_warning(ignored: Iterable[str]) -> str:
    """Return a sentence about the names in `Event.ignored`."""
    names = ", ".join(
        f'"{name}"' + (f" (did you mean {meant}?)" if (meant := similar_field(name)) else "")
        for name in ignored
    )
    return f"Ignored, since the webhook knows no such field: {names}."


# The webhooks of a send have the same names.
@lru_cache
def similar_field(name: str) -> str:
    """Return the field of a webhook that is most similar to *name*; "" if none is."""
    return next(iter(get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.7)), "")


def _one_of(fields: Mapping[str, Any], *names: str) -> str | None:
    """Return the identifier in one of the fields *names*; two of them must have equal values."""
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
    """Read tags from a list or from text, in their order and without repetitions.

    Raises:
        FieldError: *value* is not a list of texts, or has more than `MAX_TAGS` tags.
    """
    if value is None:
        return ()
    if not isinstance(value, str | list):
        raise FieldError("tags", 'must be text such as "vip, gold", or a list of texts')
    items = _printed_tags(value) if isinstance(value, str) else _tag_items(value)
    tags = tuple(dict.fromkeys(required(item, f"tags[{i}]") for i, item in enumerate(items)))
    if len(tags) > MAX_TAGS:
        raise FieldError("tags", f"holds more than {MAX_TAGS} tags")
    return tags


def _tag_items(values: list[Any]) -> Iterable[object]:
    for value in values:
        # Several lists in a form, or quotes around a printed list: ["['vip','gold']"].
        if isinstance(value, str) and is_printed_list(value):
            yield from _printed_tags(value)
        else:
            yield value


def _printed_tags(value: str) -> Sequence[object]:
    if value.count(",") > MAX_TAGS * MAX_TEXT:
        # Reading that many tags would take a tenth of a second.
        raise FieldError("tags", f"holds more than {MAX_TAGS} tags")
    cleaned = trim(value)
    if is_no_value(cleaned) and not cleaned.startswith("["):
        return ()
    return printed_list(cleaned, "tags")
