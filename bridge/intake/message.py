"""Read a message of SessionM into sends, or refuse it with an error that names the field. Pure.

There are three formats: the bridge's own (`/webhooks/sessionm/message`), and those of Braze's
`/campaigns/trigger/send` and `/canvas/trigger/send`. All are read with the tolerance of
`bridge.intake.payload`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from bridge.customer import CUSTOMER_KINDS, Customer, CustomerKind, named_customers
from bridge.fields import (
    TEXT_SCHEMA,
    FieldError,
    PlaceholderError,
    has_liquid,
    identifier,
    is_no_value,
    is_storable,
    shown,
    significant,
    text,
    trim,
)
from bridge.intake.payload import (
    DEDUPE_DIGITS,
    PartialEvent,
    RefusedError,
    as_sent,
    parse_object,
    partial_fields,
    read_fields,
    readable,
    stated_words,
)

# Bytes of one recipient's properties (Braze documentation, "/campaigns/trigger/send").
MAX_PROPERTIES = 50 * 1024
MOST_RECIPIENTS = 50
# Seconds for which an equal body without its own ID is a duplicate.
BODY_DEDUPE_TIME = 600.0
# Name of the property with the event's ID, which the bridge adds.
EVENT_PROPERTY = "bridge_event"
# Bytes of that property, with its name.
_EVENT_PROPERTY_BYTES = len(f'"{EVENT_PROPERTY}": "", ') + 32

# One encoder: `json.dumps` builds a new one for each call with this option.
_encode = json.JSONEncoder(ensure_ascii=False).encode

BrazeKind = Literal["campaign", "canvas"]


class MessagePath(StrEnum):
    """The path of a message, which decides its format."""

    MESSAGE = "message"
    CAMPAIGN = "campaign"
    CANVAS = "canvas"


class Send(NamedTuple):
    """One message to one recipient, or a broadcast.

    Attributes:
        braze_id: ID of the campaign or Canvas.
        customer: the recipient as text. Sends to one customer keep their order.
        content: JSON with these fields. ``recipient``: Braze's fields of the recipient, ``None``
            for a broadcast. ``translate``: the SessionM customer (key) whose external ID in Braze
            must be looked up first. ``properties``. ``call``: further fields of the call.
            ``outdate``: the SessionM customer (key) whose lookups become outdated.
    """

    kind: BrazeKind
    braze_id: str
    customer: str
    content: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The campaign or Canvas as text: ``campaign:ID``."""
        return f"{self.kind}:{self.braze_id}"


class Message(NamedTuple):
    """The content of one request.

    Attributes:
        sends: in their order, at least one.
        customer: the key of the recipient; ``None`` if there are several.
        token: two messages with the same token are duplicates; ``None``: see `dedupe_of`.
    """

    sends: tuple[Send, ...]
    customer: str | None
    campaign_id: str | None = None
    canvas_id: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class MessageRules:
    """Settings for reading messages.

    Attributes:
        external_id_is: the identifier of SessionM that is the external ID in Braze.
        may_broadcast: returns whether a campaign or Canvas may be sent to its whole segment.
    """

    external_id_is: CustomerKind = "user_id"
    may_broadcast: Callable[[BrazeKind, str], bool] = lambda _kind, _braze_id: False


# Field of a message -> JSON schema. All other fields are properties.
FIELDS: dict[str, dict[str, Any]] = {
    "braze_campaign_id": {**TEXT_SCHEMA, "description": "The campaign to send."},
    "braze_canvas_id": {**TEXT_SCHEMA, "description": "The Canvas to start."},
    "advanced_settings": {
        "type": ["object", "string", "null"],
        "description": "May hold the two IDs: an object, or its text.",
    },
    "custom_data": {
        "type": ["object", "string", "null"],
        "description": "May hold the two IDs: an object, or its text.",
    },
    "user_id": {**TEXT_SCHEMA, "description": "The customer's ID in SessionM."},
    "external_id": {**TEXT_SCHEMA, "description": "The customer's ID in the retailer's system."},
    "external_user_id": {**TEXT_SCHEMA, "description": "The customer's external ID in Braze."},
    "braze_id": {**TEXT_SCHEMA, "description": "The customer's Braze ID."},
    "email": {**TEXT_SCHEMA, "description": "The customer's address in Braze."},
    "user_alias": {
        "type": ["object", "string", "null"],
        "description": "The customer's alias in Braze: `alias_name` and `alias_label`.",
    },
    "broadcast": {
        "type": ["boolean", "string", "integer", "null"],
        "description": "`true` sends to the whole segment, where rules.toml allows it.",
    },
    "dedupe_id": {**TEXT_SCHEMA, "description": "A message with the same one is a duplicate."},
    "event_id": {**TEXT_SCHEMA, "description": "Taken for `dedupe_id` if there is none."},
    "user_offer_id": {
        **TEXT_SCHEMA,
        "description": "Taken for `dedupe_id` if there is no `event_id` either.",
    },
}
# The fields of Braze's formats.
TRIGGER_FIELDS: dict[str, dict[str, Any]] = {
    "recipients": {
        "type": ["array", "string", "null"],
        "description": f"1 to {MOST_RECIPIENTS} recipients, as Braze documents them.",
    },
    "broadcast": FIELDS["broadcast"],
}

_CONTAINERS = ("advanced_settings", "custom_data")
_TOKENS = ("dedupe_id", "event_id", "user_offer_id")
_BRAZE_IDENTIFIERS = ("external_user_id", "braze_id", "user_alias", "email")
_PROPERTIES = ("trigger_properties", "canvas_entry_properties", "context")
_DEFAULT_PRIORITIZATION = ["most_recently_updated"]
_CONSUMED = {*_BRAZE_IDENTIFIERS, "user_id", "external_id", "broadcast", "prioritization"}
_NAME_OF: dict[BrazeKind, str] = {"campaign": "braze_campaign_id", "canvas": "braze_canvas_id"}
_ID_OF: dict[BrazeKind, str] = {"campaign": "campaign_id", "canvas": "canvas_id"}
_KIND_OF: dict[MessagePath, BrazeKind] = {
    MessagePath.CAMPAIGN: "campaign",
    MessagePath.CANVAS: "canvas",
}


def read_message(body: bytes, content_type: str, path: MessagePath, rules: MessageRules) -> Message:
    """Read a message's *body*, sent as *content_type* to *path*.

    Raises:
        RefusedError: 400 malformed, 413 too large, 415 wrong type, 422 meaningless.
    """
    fields = read_fields(body, content_type)
    try:
        if path is MessagePath.MESSAGE:
            return _read_own(fields, rules)
        return _read_braze(_KIND_OF[path], fields, rules)
    except FieldError as error:
        raise refusal_of(error) from None


def refusal_of(error: FieldError) -> RefusedError:
    """Return the refusal for a field that SessionM sent."""
    if isinstance(error, PlaceholderError):
        error = PlaceholderError(error.field, error.value, "check the template in SessionM")
    return RefusedError(422, "invalid_field", f"{error}.")


def read_partial_message(body: bytes, content_type: str, path: MessagePath) -> PartialEvent:
    """Read the valid identifiers of a refused *body*."""
    fields = partial_fields(body, content_type)
    found: Mapping[BrazeKind, str | None] = {}
    if path is MessagePath.MESSAGE:
        with suppress(FieldError):
            found = _ids(fields)[0]
    else:
        kind = _KIND_OF[path]
        found = {kind: readable(fields, _ID_OF[kind])}
    # The others of a message in Braze's format are its recipients.
    kinds = CUSTOMER_KINDS if path is MessagePath.MESSAGE else ()
    customers = (Customer(kind, one) for kind in kinds if (one := readable(fields, kind)))
    return PartialEvent(next(customers, None), **_columns(found))


def customers_in_message(
    body: bytes, content_type: str, path: MessagePath, external_id_is: CustomerKind
) -> tuple[Customer, ...] | None:
    """Return all SessionM customers in a message, by each of their identifiers.

    ``None``: the body cannot be read, or has no recipient of any kind.
    """
    try:
        fields = read_fields(body, content_type)
        recipients = _listed(fields, path)
    except (RefusedError, FieldError):
        return None
    places = [fields, *(one for one in recipients if isinstance(one, dict))]
    named = [one for place in places for one in _named(place, external_id_is).values()]
    is_for_others = any(map(fields.get, ("recipients", "broadcast", *_BRAZE_IDENTIFIERS)))
    return tuple(dict.fromkeys(named)) if named or is_for_others else None


class Remainder(NamedTuple):
    """A message without one customer.

    Attributes:
        body: as JSON.
        removed: the recipients (keys) that were removed.
        has_recipients: whether the body lists others.
    """

    body: bytes
    removed: tuple[str, ...]
    has_recipients: bool


def without_customer(
    body: bytes, content_type: str, path: MessagePath, customer: Customer, rules: MessageRules
) -> Remainder:
    """Remove *customer* from a body in which `customers_in_message` has found it."""
    fields = read_fields(body, content_type)
    kept: list[Any] = []
    removed: list[dict[str, Any]] = []
    for one in _listed(fields, path):
        is_it = isinstance(one, dict) and customer in _named(one, rules.external_id_is).values()
        (removed if is_it else kept).append(one)
    names = _named(fields, rules.external_id_is)
    left = {name: value for name, value in fields.items() if names.get(name) != customer}
    if removed:
        left["recipients"] = kept
    keys = tuple(_key_of(one, rules) for one in removed)
    return Remainder(json.dumps(as_sent(left)).encode(), keys, bool(kept))


def _named(fields: Mapping[str, Any], external_id_is: CustomerKind) -> dict[str, Customer]:
    """Return the SessionM customers in the fields of a message or recipient: field -> customer."""
    kinds: dict[str, CustomerKind] = {kind: kind for kind in CUSTOMER_KINDS}
    kinds["external_user_id"] = external_id_is
    found = {name: readable(fields, name) for name in kinds}
    return {name: Customer(kinds[name], one) for name, one in found.items() if one}


def _listed(fields: Mapping[str, Any], path: MessagePath) -> list[Any]:
    """Return the recipients of a message in Braze's format; none of another message."""
    found = None if path is MessagePath.MESSAGE else _recipients(fields)
    return found if isinstance(found, list) else []


def _key_of(recipient: Mapping[str, Any], rules: MessageRules) -> str:
    try:
        return _recipient(recipient, rules, "recipients")[1]
    except (FieldError, RefusedError):
        return ""


def dedupe_of(message: Message, idempotency_key: str | None, body: bytes) -> tuple[str, bool]:
    """Return the key that equal messages share, and whether it depends on the body only.

    An *idempotency_key* such as ``null`` is ignored.
    """
    token = significant(idempotency_key) or message.token
    targets = [send.target for send in message.sends[:2]]
    if token:
        recipients = [send.customer for send in message.sends]
        parts = ["message", token, targets, recipients]
    else:
        parts = ["body", targets, hashlib.sha256(body).hexdigest()]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return digest[:DEDUPE_DIGITS], not token


# The bridge's own format.


def _read_own(fields: Mapping[str, Any], rules: MessageRules) -> Message:
    ids, properties = _ids(fields)
    broadcast = _is_broadcast(fields.get("broadcast"))
    token = next((found for name in _TOKENS if (found := _token(fields, name))), None)
    if not ids:
        raise RefusedError(
            422,
            "nothing_to_send",
            "braze_campaign_id and braze_canvas_id are missing or blank: give one of them, in the "
            "campaign's advanced settings.",
        )
    properties = _properties(properties, "properties")
    if broadcast:
        _refuse_broadcast(ids, rules)
        sends = tuple(_broadcast(kind, braze_id, properties, {}) for kind, braze_id in ids.items())
        customer = None
    else:
        content, customer = _recipient(fields, rules, "")
        sends = tuple(
            Send(kind, braze_id, customer, {**content, "properties": properties, "call": {}})
            for kind, braze_id in ids.items()
        )
    return Message(sends, customer, **_columns(ids), token=token)


def _columns(ids: Mapping[BrazeKind, str | None]) -> dict[str, str | None]:
    return {name: ids.get(kind) for kind, name in _ID_OF.items()}


def _ids(fields: Mapping[str, Any]) -> tuple[dict[BrazeKind, str], dict[str, Any]]:
    """Return the IDs by kind, and the properties.

    ``campaign_id`` and ``canvas_id`` are Braze's only if there is no ``braze_…`` field, blank or
    not: SessionM has its own ``campaign_id``.
    """
    containers = {name: _container(fields[name], name) for name in _CONTAINERS if name in fields}
    holders = [("", fields), *((f"{name}.", content) for name, content in containers.items())]
    ids: dict[BrazeKind, str] = {}
    for where, holder in holders:
        for kind, name in _NAME_OF.items():
            if found := identifier(holder.get(name), f"{where}{name}"):
                # The field beside the containers, the first one, takes precedence.
                ids.setdefault(kind, found)
    rest = {name: _without_ids(content) for name, content in containers.items() if content}
    consumed = {*_CONSUMED, *_NAME_OF.values(), *rest}
    properties = {name: value for name, value in fields.items() if name not in consumed}
    properties |= {name: content for name, content in rest.items() if content}
    if not any(name in holder for _, holder in holders for name in _NAME_OF.values()):
        for kind, name in _ID_OF.items():
            if found := identifier(properties.pop(name, None), name):
                ids[kind] = found
    # Always in the same order.
    return {kind: ids[kind] for kind in _ID_OF if kind in ids}, properties


def _without_ids(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in _NAME_OF.values()}


def _container(value: object, name: str) -> Mapping[str, Any]:
    """Return the object in one of `_CONTAINERS`; an empty one if the value is something else.

    Raises:
        FieldError: the value begins as a JSON object and is none, or holds a placeholder.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and trim(value).startswith("{"):
        if has_liquid(value):
            raise PlaceholderError(name, trim(value))
        try:
            found = parse_object(trim(value))
        except ValueError:
            raise FieldError(name, f"begins as JSON and is none: {shown(trim(value))}") from None
        if isinstance(found, dict):
            return found
    return {}


def _token(fields: Mapping[str, Any], name: str) -> str | None:
    found = significant(text(fields.get(name), name))
    return f"{name}:{found}" if found else None


# Braze's formats.


def _read_braze(kind: BrazeKind, fields: Mapping[str, Any], rules: MessageRules) -> Message:
    name = _ID_OF[kind]
    braze_id = identifier(fields.get(name), name)
    if braze_id is None:
        raise RefusedError(422, "nothing_to_send", f"{name} is missing or blank.")
    # Braze has no customer beside the recipients; what names one must not stay with the others.
    beside = {"user_id", "external_id", "external_user_id"}
    consumed = {name, "recipients", "broadcast", *_PROPERTIES, *beside}
    call = {
        field: _clean(as_sent(value), field)
        for field, value in fields.items()
        if field not in consumed
    }
    shared = _given_properties(fields, "")
    ids: dict[BrazeKind, str] = {kind: braze_id}
    recipients = _recipients(fields)
    if _is_broadcast(fields.get("broadcast")):
        if recipients:
            raise FieldError("recipients", "must be left out of a broadcast")
        _refuse_broadcast(ids, rules)
        alone = _broadcast(kind, braze_id, _properties(shared, "properties"), call)
        return Message((alone,), None, **_columns(ids))
    if not recipients or not isinstance(recipients, list):
        raise RefusedError(
            422, "no_customer", f"recipients must be a list of 1 to {MOST_RECIPIENTS}."
        )
    if len(recipients) > MOST_RECIPIENTS:
        raise FieldError("recipients", f"are {len(recipients)}: at most {MOST_RECIPIENTS} a call")
    found: dict[str, Send] = {}
    for place, one in enumerate(recipients):
        where = f"recipients[{place}]"
        if not isinstance(one, dict):
            raise FieldError(where, "must be an object")
        content, customer = _recipient(one, rules, f"{where}.")
        if customer in found:
            raise FieldError(where, "is the same customer as one before: Braze would send once")
        given = _given_properties(one, f"{where}.")
        properties = _properties({**shared, **given}, f"{where}.properties")
        extra = _extra_fields(one, where)
        content = {**content, "recipient": {**extra, **content["recipient"]}}
        found[customer] = Send(
            kind, braze_id, customer, {**content, "properties": properties, "call": call}
        )
    customer_alone = next(iter(found)) if len(found) == 1 else None
    return Message(tuple(found.values()), customer_alone, **_columns(ids))


def _recipients(fields: Mapping[str, Any]) -> object:
    """Return the recipients, which may be JSON text, as in a form field."""
    value = fields.get("recipients")
    if not isinstance(value, str):
        return value
    if not trim(value):
        return None
    try:
        return parse_object(trim(value))
    except ValueError:
        raise FieldError("recipients", "must be a list, written as JSON") from None


def _given_properties(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PROPERTIES:
        given = fields.get(name)
        if isinstance(given, str) and trim(given).startswith("{"):
            given = _container(given, f"{where}{name}")
        if given is None or given == "":
            continue
        if not isinstance(given, dict):
            raise FieldError(f"{where}{name}", "must be an object")
        found.update(given)
    return found


def _extra_fields(recipient: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the other fields of a recipient in Braze's format, such as attributes."""
    read = {*_BRAZE_IDENTIFIERS, *_PROPERTIES, "user_id", "external_id", "prioritization"}
    return {
        name: _clean(as_sent(value), f"{where}.{name}")
        for name, value in recipient.items()
        if name not in read
    }


# All formats.


def _recipient(
    fields: Mapping[str, Any], rules: MessageRules, where: str
) -> tuple[dict[str, Any], str]:
    """Read the recipient: the first fields of `Send.content`, and the customer (key).

    Raises:
        FieldError: an identifier is invalid, or there are two of Braze's.
        RefusedError: there is no identifier.
    """
    known = named_customers(fields, where)
    brazes = {
        name: found
        for name in _BRAZE_IDENTIFIERS
        if (found := _braze_identifier(fields.get(name), name, where))
    }
    if len(brazes) > 1:
        names = " and ".join(f"{where}{name}" for name in brazes)
        raise FieldError(names, "are two identifiers of Braze's: send one of them")
    if brazes:
        [(name, value)] = brazes.items()
        return _braze_recipient(name, value, fields, rules, known)
    if not known:
        raise RefusedError(422, "no_customer", _no_customer(fields, where))
    content: dict[str, Any] = {"outdate": known[0].key}
    direct = next((one for one in known if one.kind == rules.external_id_is), None)
    if direct is None:
        return {**content, "recipient": {}, "translate": known[0].key}, known[0].key
    return {**content, "recipient": {"external_user_id": direct.id}}, direct.key


def _no_customer(fields: Mapping[str, Any], where: str) -> str:
    stated = stated_words(fields, (*CUSTOMER_KINDS, *_BRAZE_IDENTIFIERS), where)
    return (
        f"No customer: {stated or f'{where}user_id or {where}external_id is missing or blank'}. "
        "Give one of them, or Braze's external_user_id, braze_id, user_alias or email."
    )


def _braze_recipient(
    name: str,
    value: Any,
    fields: Mapping[str, Any],
    rules: MessageRules,
    known: Sequence[Customer],
) -> tuple[dict[str, Any], str]:
    """Return the content and the key of a recipient with one of Braze's identifiers."""
    recipient: dict[str, Any] = {name: value}
    if name == "external_user_id":
        customer = Customer(rules.external_id_is, value)
        outdate = known[0] if known else customer
        return {"outdate": outdate.key, "recipient": recipient}, customer.key
    if name == "email":
        if "@" not in value:
            raise FieldError("email", "is no address")
        recipient["prioritization"] = _prioritization(fields.get("prioritization"))
        key = f"email:{value.lower()}"
    elif name == "user_alias":
        key = f"user_alias:{value['alias_label']}:{value['alias_name']}"
    else:
        key = f"braze_id:{value}"
    return {"outdate": known[0].key if known else None, "recipient": recipient}, key


def _braze_identifier(value: object, name: str, where: str) -> Any:
    place = f"{where}{name}"
    if name != "user_alias":
        return identifier(value, place)
    if isinstance(value, str):
        if not significant(trim(value)):
            return None
        value = _container(value, place) or value
    if value is None:
        return None
    if not isinstance(value, dict):
        raise FieldError(place, "must be an object with alias_name and alias_label")
    parts = {
        part: identifier(value.get(part), f"{place}.{part}")
        for part in ("alias_name", "alias_label")
    }
    if not any(parts.values()):
        return None
    for part, found in parts.items():
        if not found:
            raise FieldError(f"{place}.{part}", "is empty")
    return parts


def _prioritization(value: object) -> list[Any]:
    """Read the rule by which Braze chooses among customers with the same address."""
    if isinstance(value, str) and trim(value):
        value = [trim(value)]
    if not isinstance(value, list) or not value:
        return _DEFAULT_PRIORITIZATION
    return [text(one, "prioritization") for one in value]


def _is_broadcast(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    word = trim(value).lower() if isinstance(value, str) else None
    if word is not None and (word in {"", "false", "0", "no"} or is_no_value(word)):
        return False
    if word in {"true", "1", "yes"}:
        return True
    raise FieldError("broadcast", "must be true or false")


def _refuse_broadcast(ids: Mapping[BrazeKind, str], rules: MessageRules) -> None:
    for kind, braze_id in ids.items():
        if not rules.may_broadcast(kind, braze_id):
            raise FieldError(
                "broadcast",
                f"is true, which sends the {kind} {shown(braze_id)} to its whole segment: "
                "rules.toml must allow that with broadcast = true",
            )


def _broadcast(
    kind: BrazeKind, braze_id: str, properties: Mapping[str, Any], call: Mapping[str, Any]
) -> Send:
    content = {"recipient": None, "outdate": None, "properties": properties, "call": call}
    return Send(kind, braze_id, f"broadcast:{kind}:{braze_id}", content)


def _properties(given: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return the properties *given*, without those that have no name.

    Raises:
        FieldError: they are too large, or have a value that cannot be sent.
    """
    found: dict[str, Any] = {
        name: _clean(as_sent(value), name) for name, value in given.items() if _clean(name, name)
    }
    size = len(_encode(found).encode())
    if size + _EVENT_PROPERTY_BYTES > MAX_PROPERTIES:
        raise FieldError(field, f"are {size} bytes: at most {MAX_PROPERTIES // 1024} KB")
    return found


def _clean(value: Any, field: str) -> Any:
    """Return *value* if all of it can be sent.

    Raises:
        FieldError: it has a placeholder, an infinite number, or text that is not valid UTF-8.
    """
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend([*one.keys(), *one.values()])
        elif isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, float) and not math.isfinite(one):
            raise FieldError(shown(field), "holds a number that is too large")
        elif isinstance(one, str) and has_liquid(one):
            raise PlaceholderError(shown(field), one)
        elif isinstance(one, str) and not is_storable(one):
            raise FieldError(shown(field), "holds what is no text")
    return value
