"""The parameters of a Connected Content call -> Query, or a refusal that names one. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridge.customer import Customer
from bridge.fields import TEXT_SCHEMA, FieldError, identifier, text

Sort = Literal["", "expiry", "-expiry"]
MOST_OFFERS = 1000

_SORTS = ("", "expiry", "-expiry")
_ON_ERROR = ("empty", "retry")

# Parameter -> JSON schema, for each lookup.
_TAGS: dict[str, dict[str, Any]] = {
    "user_id": {**TEXT_SCHEMA, "description": "SessionM's id; wins over external_id"},
    "external_id": {**TEXT_SCHEMA, "description": "the id in the retailer's system"},
    "on_error": {
        "description": "if SessionM fails: 200 with empty lists, or 503 for Braze's :retry",
        "enum": [*_ON_ERROR, "", None],
        "default": _ON_ERROR[0],
    },
}
_OFFERS: dict[str, dict[str, Any]] = {
    **_TAGS,
    "culture": {**TEXT_SCHEMA, "default": "en-US"},
    "limit": {
        "type": ["integer", "string", "null"],
        "minimum": 1,
        "maximum": MOST_OFFERS,
        "pattern": r"^\s*[0-9]*\s*$",
        "default": 20,
    },
    "type": {**TEXT_SCHEMA, "description": "only offers of this offer_type"},
    "category": {**TEXT_SCHEMA, "description": "only offers of this category, name or id"},
    "group": {**TEXT_SCHEMA, "description": "only offers of this group, name or id"},
    "sort": {"enum": [*_SORTS, None], "default": _SORTS[0]},
    "fields": {**TEXT_SCHEMA, "description": "only these fields of an offer, by commas"},
}
PARAMETERS = {"tags": _TAGS, "offers": _OFFERS, "customer": _OFFERS}
_CULTURE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")


@dataclass(frozen=True)
class Query:
    """What a lookup asks for; equal queries have equal answers."""

    customer: Customer
    culture: str = "en-US"
    limit: int = 20
    type: str = ""
    category: str = ""
    group: str = ""
    sort: Sort = ""
    fields: tuple[str, ...] = ()
    retry: bool = False


def read_query(lookup: str, given: Mapping[str, Any]) -> Query:
    """Read the parameters of ``tags``, ``offers`` or ``customer``.

    Raises:
        FieldError: a parameter is unknown or bad, or there is no customer.
    """
    known = PARAMETERS[lookup]
    for name in given:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise FieldError(f'"{name[:60]}"', f"is not a parameter here; known are {listed}")
    return Query(
        customer=_customer(given),
        culture=_culture(given),
        limit=_limit(given),
        type=text(given.get("type"), "type") or "",
        category=text(given.get("category"), "category") or "",
        group=text(given.get("group"), "group") or "",
        sort=_choice(given, "sort", _SORTS),
        fields=_fields(given),
        retry=_choice(given, "on_error", _ON_ERROR) == "retry",
    )


def _customer(given: Mapping[str, Any]) -> Customer:
    user_id = identifier(given.get("user_id"), "user_id")
    external_id = identifier(given.get("external_id"), "external_id")
    if user_id:
        return Customer("user_id", user_id)
    if external_id:
        return Customer("external_id", external_id)
    raise FieldError("user_id", "is missing or blank: say whose (user_id or external_id)")


def _culture(given: Mapping[str, Any]) -> str:
    culture = text(given.get("culture"), "culture") or Query.culture
    if not _CULTURE.fullmatch(culture):
        raise FieldError("culture", "must look like en-US")
    language, *rest = culture.split("-")
    # en-us and EN-US are one culture, and cost SessionM one call.
    return "-".join([language.lower(), *(_subtag(part) for part in rest)])


def _subtag(part: str) -> str:
    """A region in capitals, a script with one: ``US``, ``Latn`` (RFC 5646 2.1.1)."""
    return {2: part.upper(), 4: part.title()}.get(len(part), part.lower())


def _limit(given: Mapping[str, Any]) -> int:
    value = text(given.get("limit"), "limit")
    if value is None:
        return Query.limit
    if not (re.fullmatch("[0-9]{1,9}", value) and 1 <= int(value) <= MOST_OFFERS):
        raise FieldError("limit", f"must be a whole number from 1 to {MOST_OFFERS}")
    return int(value)


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> Any:
    value = text(given.get(name), name) or choices[0]
    if value not in choices:
        raise FieldError(name, f"must be one of {', '.join(filter(None, choices))}")
    return value


def _fields(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = text(given.get("fields"), "fields") or ""
    return tuple(sorted({part.strip() for part in value.split(",") if part.strip()}))
