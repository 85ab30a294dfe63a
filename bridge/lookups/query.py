"""Read the parameters of a Connected Content call into a Query, or refuse one by name. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from bridge.customer import CUSTOMER_KINDS, Customer, named_customers
from bridge.fields import TEXT_SCHEMA, FieldError, shown, text, trim, whole_number

Sort = Literal["", "expiry", "-expiry"]
MOST_OFFERS = 1000

_SORTS = ("", "expiry", "-expiry")
_ON_ERROR = ("empty", "retry")


@dataclass(frozen=True)
class Query:
    """The parameters of a lookup. Equal queries have equal answers."""

    customer: Customer
    culture: str = "en-US"
    limit: int = 20
    type: str = ""
    category: str = ""
    group: str = ""
    sort: Sort = ""
    fields: tuple[str, ...] = ()
    retry: bool = False


# Parameter -> JSON schema, for each lookup.
_TAGS: dict[str, dict[str, Any]] = {
    "user_id": {
        **TEXT_SCHEMA,
        "description": "The customer's ID in SessionM; it wins over `external_id`.",
    },
    "external_id": {**TEXT_SCHEMA, "description": "The customer's ID in the retailer's system."},
    "on_error": {
        "description": "If SessionM fails: 200 with empty lists, or 503 for Braze's `:retry`.",
        "enum": [*_ON_ERROR, "", None],
        "default": _ON_ERROR[0],
    },
    "v": {"description": "Ignored: a new value lets a template pass Braze's own cache."},
}
_OFFERS: dict[str, dict[str, Any]] = {
    **_TAGS,
    "culture": {
        **TEXT_SCHEMA,
        "description": "`en-US`, also `en_US` or `en`; another language alone is passed on.",
        "default": Query.culture,
    },
    "limit": {
        "type": ["integer", "string", "null"],
        "minimum": 1,
        "maximum": MOST_OFFERS,
        "description": "Most offers in the answer.",
        "default": Query.limit,
    },
    "type": {**TEXT_SCHEMA, "description": "Only offers of this `offer_type`."},
    "category": {**TEXT_SCHEMA, "description": "Only offers of this category: its name or ID."},
    "group": {**TEXT_SCHEMA, "description": "Only offers of this group: its name or ID."},
    "sort": {
        "enum": [*_SORTS, None],
        "default": Query.sort,
        "description": "Soonest or latest expiry first; without it SessionM's order.",
    },
    "fields": {**TEXT_SCHEMA, "description": "Only these fields of an offer, separated by commas."},
}
PARAMETERS = {"tags": _TAGS, "offers": _OFFERS, "customer": _OFFERS}
LOOKUPS = tuple(PARAMETERS)
# A language and optional script, region and variants (RFC 5646, 2.1).
_CULTURE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}")


def read_query(lookup: str, given: Mapping[str, Any]) -> Query:
    """Read the parameters of ``tags``, ``offers`` or ``customer``.

    Raises:
        FieldError: a parameter is unknown or bad, or there is no customer.
    """
    known = PARAMETERS[lookup]
    for name in given:
        if name not in known:
            near = get_close_matches(name.lower(), known, n=1, cutoff=0.7)
            others = (
                f" (did you mean {near[0]}?)" if near else f"; known are {', '.join(sorted(known))}"
            )
            raise FieldError(f'"{shown(name)}"', f"is not a parameter here{others}")
    return Query(
        customer=read_customer(given),
        culture=read_culture(given.get("culture")),
        limit=whole_number(given.get("limit"), "limit", MOST_OFFERS) or Query.limit,
        type=text(given.get("type"), "type") or "",
        category=text(given.get("category"), "category") or "",
        group=text(given.get("group"), "group") or "",
        sort=_choice(given, "sort", _SORTS),
        fields=_fields(given),
        retry=_choice(given, "on_error", _ON_ERROR) == "retry",
    )


def read_customer(given: Mapping[str, Any]) -> Customer:
    """Read ``user_id``, which takes precedence, or ``external_id``.

    Raises:
        FieldError: one of them is bad, or both are missing. A word such as ``null`` is missing.
    """
    if customers := named_customers(given):
        return customers[0]
    for name in CUSTOMER_KINDS:
        if word := trim(given.get(name) or ""):
            raise FieldError(name, f'is "{word}": the template found no customer to put in')
    raise FieldError(
        "user_id",
        "is missing or blank: name a customer by user_id or external_id; in a test, choose a user",
    )


def read_culture(value: object) -> str:
    """Read a culture, ``en-US`` or ``en_US`` in any case, as SessionM writes it.

    A language alone is passed on, except the default's: ``en`` becomes ``en-US``, for which
    SessionM has texts and the cache has answers.

    Raises:
        FieldError: it does not look like a culture.
    """
    culture = text(value, "culture") or Query.culture
    if not _CULTURE.fullmatch(culture):
        raise FieldError("culture", "must look like en-US")
    language, *rest = culture.replace("_", "-").split("-")
    if not rest and Query.culture.startswith(f"{language.lower()}-"):
        return Query.culture
    # One spelling for each culture, so that each costs SessionM one call.
    return "-".join([language.lower(), *(_subtag(part) for part in rest)])


def _subtag(part: str) -> str:
    """Return a region as ``US`` and a script as ``Latn`` (RFC 5646, 2.1.1)."""
    return {2: part.upper(), 4: part.title()}.get(len(part), part.lower())


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> Any:
    value = text(given.get(name), name) or choices[0]
    if value not in choices:
        raise FieldError(name, f"must be one of {', '.join(filter(None, choices))}")
    return value


def _fields(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = text(given.get("fields"), "fields") or ""
    return tuple(sorted({part.strip() for part in value.split(",") if part.strip()}))
