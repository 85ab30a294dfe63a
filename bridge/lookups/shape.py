"""Shape SessionM's JSON for Liquid. Pure.

An answer is always an object with the same keys, so that a template can rely on them. It never
holds ``null``, on which Liquid filters fail. A field that SessionM sends as ``null`` is left out:
Liquid treats a missing field in the same way.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.customer import Customer
from bridge.fields import amount, form, instant, iso, trim
from bridge.lookups.query import Query

# Braze does not use larger answers (Connected Content, "Response size").
MOST_BYTES = 1_000_000
# Days left of an offer that does not expire, or whose expiry cannot be read.
NEVER = 9999

BrazeId = Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True)
class Part:
    """One side of a customer, tags or offers, as SessionM answered.

    Attributes:
        status: ``ok``, ``not_found`` or ``unavailable``.
        document: SessionM's answer, ``{}`` unless ok.
        fetched_at: time of that answer, seconds since the epoch; 0 without one.
        reason: why the status is not ok, or "".
        is_off: whether this side is not configured.
    """

    status: str
    document: Mapping[str, Any] = field(default_factory=dict)
    fetched_at: float = 0.0
    stale: bool = False
    reason: str = ""
    is_off: bool = False


@dataclass(frozen=True)
class OwnWrites:
    """The tags that the bridge itself writes for a customer.

    Attributes:
        pending: tags accepted by the bridge and not yet in SessionM.
        expires: tag -> end of its TTL, seconds since the epoch.
    """

    pending: Sequence[str] = ()
    expires: Mapping[str, float] = field(default_factory=dict)


def tags_answer(
    customer: Customer, part: Part, own: OwnWrites, braze_id: BrazeId, now: float
) -> dict[str, Any]:
    """Return the answer of ``/connected-content/tags``."""
    return {
        **_head(customer, [part], now),
        **_tags(part, own, braze_id),
    }


def offers_answer(query: Query, user_id: str, part: Part, now: float) -> dict[str, Any]:
    """Return the answer of ``/connected-content/offers``; *user_id* is "" when unknown."""
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
    """Return the answer of ``/connected-content/customer``: both, and which of them worked.

    Its status is that of the tags if offers are off.
    """
    return {
        **_head(query.customer, [tags] if offers.is_off else [tags, offers], now, user_id),
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
    fetched = [part.fetched_at for part in parts if part.fetched_at]
    return {
        "status": worst.status,
        "reason": worst.reason if worst.status != "ok" else "",
        "user_id": customer.id if customer.kind == "user_id" else user_id,
        "external_id": customer.id if customer.kind == "external_id" else "",
        "stale": any(part.stale for part in parts),
        "age": max(0, int(now - min(fetched))) if fetched else 0,
        "as_of": iso(min(fetched)) if fetched else "",
        "truncated": False,
    }


def _counts(part: Part) -> dict[str, int]:
    tags = part.document.get("tags")
    if not isinstance(tags, dict):
        return {}
    return {str(tag): int(amount(count) or 0) for tag, count in tags.items()}


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
        "available_points": amount(payload.get("available_points")) or 0,
        "total_points": amount(payload.get("total_points")) or 0,
        "count": len(shown),
        "total": len(live),
        "offers": shown,
        "first": shown[0] if shown else {},
        "next_to_expire": _only(soonest.fields, query.fields) if soonest else {},
    }


@dataclass(frozen=True)
class _ShapedOffer:
    fields: dict[str, Any]
    expires_at: float | None


def _live(payload: Mapping[str, Any], now: float) -> Iterable[_ShapedOffer]:
    """Yield the offers that have not expired, with the fields that Liquid needs."""
    groups, categories = _names(payload, "offer_groups"), _names(payload, "offer_categories")
    for raw in _objects(payload.get("user_offers")):
        expires_at = instant(_expiry_of(raw))
        if expires_at is not None and expires_at <= now:
            continue
        category = raw.get("offer_category_id") or raw.get("category_id")
        own = {
            "offer_id": _text(raw.get("offer_id")),
            "title": _text(raw.get("title") or raw.get("name")),
            "group": groups.get(_text(raw.get("offer_group_id")), "") or _text(raw.get("group")),
            "category": categories.get(_text(category), "") or _text(raw.get("category")),
            "expires_at": iso(expires_at) if expires_at else "",
            "days_left": math.floor((expires_at - now) / 86400) if expires_at else NEVER,
        }
        yield _ShapedOffer({**without_null(raw), **own}, expires_at)


def not_understood(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the field and form of each expiry and balance in a wallet that cannot be read.

    For example ``expiration_date 99/99/9999``: never the value, which must not be logged.
    """
    payload = document.get("payload")
    payload = payload if isinstance(payload, dict) else {}
    for name in ("available_points", "total_points"):
        if _is_given(payload.get(name)) and amount(payload[name]) is None:
            yield f"{name} {form(payload[name])}"
    for raw in _objects(payload.get("user_offers")):
        name = "expiration_date" if raw.get("expiration_date") else "expires_at"
        if _is_given(raw.get(name)) and instant(raw[name]) is None:
            yield f"{name} {form(raw[name])}"


def _expiry_of(raw: Mapping[str, Any]) -> object:
    return raw.get("expiration_date") or raw.get("expires_at")


def _is_given(value: object) -> bool:
    return bool(trim(value)) if isinstance(value, str) else value not in (None, 0)


def offers_change_at(part: Part, now: float) -> float:
    """Return when time alone changes the offers shown: one expires, or has a day less left."""
    payload = part.document.get("payload")
    offers = _objects(payload.get("user_offers")) if isinstance(payload, dict) else []
    ends = (instant(_expiry_of(raw)) for raw in offers)
    return min(
        (at - math.floor((at - now) / 86400) * 86400 for at in ends if at is not None and at > now),
        default=math.inf,
    )


def _wanted(offer: _ShapedOffer, query: Query) -> bool:
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


def _sorted(offers: list[_ShapedOffer], sort: str) -> list[_ShapedOffer]:
    if not sort:
        return offers
    dated = [offer for offer in offers if offer.expires_at]
    dated.sort(key=_expiry, reverse=sort == "-expiry")
    return dated + [offer for offer in offers if not offer.expires_at]


def _expiry(offer: _ShapedOffer) -> float:
    return offer.expires_at or math.inf


def _only(offer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields *names*, blank if the offer lacks them; without *names*, all fields."""
    return {name: offer.get(name, "") for name in names} if names else offer


def _names(payload: Mapping[str, Any], listed: str) -> dict[str, str]:
    return {_text(one.get("id")): _text(one.get("name")) for one in _objects(payload.get(listed))}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def without_null(value: Any, levels: int = 100) -> Any:
    """Return *value* without fields and items that are ``null``, cut at *levels* of nesting."""
    if isinstance(value, dict | list) and not levels:
        return ""
    if isinstance(value, dict):
        return {
            name: without_null(one, levels - 1) for name, one in value.items() if one is not None
        }
    if isinstance(value, list):
        return [without_null(one, levels - 1) for one in value if one is not None]
    # Python's reader accepts NaN and Infinity, which are not JSON.
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return value


def encode(answer: dict[str, Any]) -> bytes:
    """Return *answer* as JSON, cut to `MOST_BYTES`: offers, then tags, from the end."""
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
        # The answer holds the first offer twice.
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
