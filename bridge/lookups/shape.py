"""SessionM JSON -> Liquid-ready JSON. Pure.

Always one object with the same keys, so that a template never meets a missing one, and never
``null``, on which Liquid filters stumble. Where SessionM sends ``null`` the field is left out:
for Liquid that is the same.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.customer import Customer
from bridge.fields import instant, iso
from bridge.lookups.query import Query

# Braze does not use larger answers (Connected Content, "Response size").
MOST_BYTES = 1_000_000
# Days left of an offer that does not expire: more than anybody compares with.
NEVER = 9999

BrazeId = Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True)
class Part:
    """What is known of one side of a customer, tags or offers.

    Attributes:
        status: ``ok``, ``not_found`` or ``unavailable``.
        document: SessionM's answer, ``{}`` unless ok.
        fetched_at: when SessionM said so; 0 if it did not.
        reason: why the status is not ok, or "".
    """

    status: str
    document: Mapping[str, Any] = field(default_factory=dict)
    fetched_at: float = 0.0
    stale: bool = False
    reason: str = ""


@dataclass(frozen=True)
class OwnWrites:
    """What the bridge knows of a customer's tags because it writes them."""

    pending: Sequence[str] = ()
    expires: Mapping[str, float] = field(default_factory=dict)


def tags_answer(
    customer: Customer, part: Part, own: OwnWrites, braze_id: BrazeId, now: float
) -> dict[str, Any]:
    """The answer of ``/connected-content/tags``."""
    return {
        **_head(customer, [part], now),
        **_tags(part, own, braze_id),
    }


def offers_answer(query: Query, user_id: str, part: Part, now: float) -> dict[str, Any]:
    """The answer of ``/connected-content/offers``; *user_id* is "" when it is not known."""
    return {
        **_head(query.customer, [part], now, user_id),
        **_offers(query, part, now),
    }


def customer_answer(
    query: Query,
    user_id: str,
    tags: Part,
    offers: Part,
    own: OwnWrites,
    braze_id: BrazeId,
    now: float,
) -> dict[str, Any]:
    """The answer of ``/connected-content/customer``: both, and which of them worked."""
    return {
        **_head(query.customer, [tags, offers], now, user_id),
        "parts": {"tags": tags.status, "offers": offers.status},
        "tags_count": len(_counts(tags)),
        **_tags(tags, own, braze_id),
        **_offers(query, offers, now),
    }


_WEIGHT = {"ok": 0, "not_found": 1, "unavailable": 2}


def _head(
    customer: Customer, parts: Sequence[Part], now: float, user_id: str = ""
) -> dict[str, Any]:
    worst = max(parts, key=lambda part: _WEIGHT[part.status])
    told = [part.fetched_at for part in parts if part.fetched_at]
    return {
        "status": worst.status,
        "reason": worst.reason if worst.status != "ok" else "",
        "user_id": customer.id if customer.kind == "user_id" else user_id,
        "external_id": customer.id if customer.kind == "external_id" else "",
        "stale": any(part.stale for part in parts),
        "age": max(0, int(now - min(told))) if told else 0,
        "as_of": iso(min(told)) if told else "",
        "truncated": False,
    }


def _counts(part: Part) -> dict[str, int]:
    tags = part.document.get("tags")
    if not isinstance(tags, dict):
        return {}
    return {str(tag): _whole(count) for tag, count in tags.items()}


def _tags(part: Part, own: OwnWrites, braze_id: BrazeId) -> dict[str, Any]:
    counts = _counts(part)
    braze: dict[str, list[str]] = {"campaigns": [], "canvases": []}
    for tag in counts:
        if found := braze_id(tag):
            braze[found[0]].append(found[1])
    known = {*counts, *own.pending}
    return {
        "tags": counts,
        "names": list(counts),
        "count": len(counts),
        "braze": braze,
        "pending": list(own.pending),
        "expires": {tag: iso(at) for tag, at in own.expires.items() if tag in known},
    }


def _offers(query: Query, part: Part, now: float) -> dict[str, Any]:
    payload = part.document.get("payload")
    payload = payload if isinstance(payload, dict) else {}
    live = _sorted([offer for offer in _live(payload, now) if _wanted(offer, query)], query.sort)
    shown = [_only(offer.fields, query.fields) for offer in live[: query.limit]]
    soonest = min((offer for offer in live if offer.expires_at), default=None, key=_expiry)
    return {
        "available_points": _amount(payload.get("available_points")),
        "total_points": _amount(payload.get("total_points")),
        "count": len(shown),
        "total": len(live),
        "offers": shown,
        "first": shown[0] if shown else {},
        "next_to_expire": _only(soonest.fields, query.fields) if soonest else {},
    }


@dataclass(frozen=True)
class _Offer:
    fields: dict[str, Any]
    expires_at: float | None


def _live(payload: Mapping[str, Any], now: float) -> Iterable[_Offer]:
    """The offers that have not expired, with what Liquid needs put in front."""
    groups, categories = _names(payload, "offer_groups"), _names(payload, "offer_categories")
    for raw in _objects(payload.get("user_offers")):
        expires_at = instant(raw.get("expiration_date") or raw.get("expires_at"))
        if expires_at is not None and expires_at <= now:
            continue
        category = raw.get("offer_category_id") or raw.get("category_id")
        own = {
            "offer_id": _text(raw.get("offer_id")),
            "title": _text(raw.get("title") or raw.get("name")),
            "group": groups.get(_text(raw.get("offer_group_id")), ""),
            "category": categories.get(_text(category), "") or _text(raw.get("category")),
            "expires_at": iso(expires_at) if expires_at else "",
            "days_left": math.floor((expires_at - now) / 86400) if expires_at else NEVER,
        }
        yield _Offer({**without_null(raw), **own}, expires_at)


def offers_change_at(part: Part, now: float) -> float:
    """When the offers shown become others by time alone: one expires, or has a day less left."""
    payload = part.document.get("payload")
    offers = _objects(payload.get("user_offers")) if isinstance(payload, dict) else []
    ends = (instant(raw.get("expiration_date") or raw.get("expires_at")) for raw in offers)
    return min(
        (at - math.floor((at - now) / 86400) * 86400 for at in ends if at is not None and at > now),
        default=math.inf,
    )


def _wanted(offer: _Offer, query: Query) -> bool:
    wanted = (
        (query.type, ("offer_type",)),
        (query.category, ("category", "offer_category_id", "category_id")),
        (query.group, ("group", "offer_group_id")),
    )
    return all(
        not value
        or value.casefold() in {_text(offer.fields.get(name)).casefold() for name in names}
        for value, names in wanted
    )


def _sorted(offers: list[_Offer], sort: str) -> list[_Offer]:
    if not sort:
        return offers
    dated = [offer for offer in offers if offer.expires_at]
    dated.sort(key=_expiry, reverse=sort == "-expiry")
    return dated + [offer for offer in offers if not offer.expires_at]


def _expiry(offer: _Offer) -> float:
    return offer.expires_at or math.inf


def _only(offer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields that were asked for; one that this offer lacks is blank."""
    return {name: offer.get(name, "") for name in names} if names else offer


def _names(payload: Mapping[str, Any], listed: str) -> dict[str, str]:
    return {_text(one.get("id")): _text(one.get("name")) for one in _objects(payload.get(listed))}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def without_null(value: Any, levels: int = 100) -> Any:
    """*value* without the fields and list items that are ``null``, *levels* deep at most."""
    if isinstance(value, dict | list) and not levels:
        return ""
    if isinstance(value, dict):
        return {
            name: without_null(one, levels - 1) for name, one in value.items() if one is not None
        }
    if isinstance(value, list):
        return [without_null(one, levels - 1) for one in value if one is not None]
    # NaN and Infinity pass through Python's reader, but are no JSON.
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return value


def encode(answer: dict[str, Any]) -> bytes:
    """*answer* as JSON of at most `MOST_BYTES`: offers, then tags, are dropped from the end."""
    encoded = _dump(answer)
    if len(encoded) <= MOST_BYTES:
        return encoded
    answer = {**answer, "truncated": True}
    if offers := answer.get("offers"):
        if len(_dump(answer["next_to_expire"])) > MOST_BYTES // 4:
            answer["next_to_expire"] = {}
        kept = _fitting(offers, MOST_BYTES - len(_dump(_with_offers(answer, []))))
        answer = _with_offers(answer, kept)
    while len(encoded := _dump(answer)) > MOST_BYTES and (
        answer.get("names") or answer.get("pending")
    ):
        answer = _with_fewer_tags(answer)
    return encoded


def _fitting(offers: Sequence[dict[str, Any]], space: int) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for offer in offers:
        # The first offer stands in the answer twice.
        space -= (len(_dump(offer)) + 1) * (1 if kept else 2)
        if space < 0:
            break
        kept.append(offer)
    return kept


def _with_offers(answer: dict[str, Any], offers: list[dict[str, Any]]) -> dict[str, Any]:
    first = offers[0] if offers else {}
    return {**answer, "offers": offers, "count": len(offers), "first": first}


def _with_fewer_tags(answer: dict[str, Any]) -> dict[str, Any]:
    names = answer["names"][: len(answer["names"]) // 2]
    pending = answer["pending"][: len(answer["pending"]) // 2]
    kept = {*names, *pending}
    return {
        **answer,
        "tags": {tag: count for tag, count in answer["tags"].items() if tag in kept},
        "names": names,
        "braze": {"campaigns": [], "canvases": []},
        "pending": pending,
        "expires": {tag: at for tag, at in answer["expires"].items() if tag in kept},
    }


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _text(value: object) -> str:
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _whole(value: object) -> int:
    amount = _amount(value)
    return int(amount)


def _amount(value: object) -> int | float:
    """A number, also where it came as text; anything else is 0."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return 0
    # Also no number for us: NaN, Infinity, and integers that no float holds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return 0
    return value
