"""The documented shapes of lookups, for OpenAPI and for tests that compare answers with them.

Every key is always present, and none is ever ``null``.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bridge.customer import DEMO_USER_ID

Status = Literal["ok", "not_found", "unavailable"]


_HEAD: dict[str, Any] = {
    "status": "ok",
    "reason": "",
    "user_id": DEMO_USER_ID,
    "external_id": "",
    "stale": False,
    "age": 3,
    "as_of": "2026-12-01T08:00:00Z",
    "truncated": False,
}
_TAGS_EXAMPLE: dict[str, Any] = {
    "tags": {"vip": 1, "app_user": 14, "braze_campaign_spring-sale": 0},
    "names": ["vip", "app_user", "braze_campaign_spring-sale"],
    "braze": {"campaigns": ["spring-sale"], "canvases": []},
    "pending": ["braze_campaign_summer-sale"],
    "expires": {"braze_campaign_summer-sale": "2026-12-31T08:00:00Z"},
}
_OFFER_EXAMPLE: dict[str, Any] = {
    "title": "Free barista coffee",
    "expires_at": "2026-12-03T08:00:00Z",
}
_OFFERS_EXAMPLE: dict[str, Any] = {
    "available_points": 1240,
    "total_points": 4820,
    "count": 1,
    "total": 4,
    "offers": [_OFFER_EXAMPLE],
    "first": _OFFER_EXAMPLE,
    "next_to_expire": _OFFER_EXAMPLE,
}
CUSTOMER_EXAMPLE: dict[str, Any] = {
    **_HEAD,
    **_TAGS_EXAMPLE,
    **_OFFERS_EXAMPLE,
    "tags_count": 3,
    "parts": {"tags": "ok", "offers": "ok"},
}


class LookupShape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BrazeIds(LookupShape):
    """Braze IDs read back out of default tags."""

    campaigns: list[str] = Field(description="Campaigns whose default tag the customer has.")
    canvases: list[str] = Field(description="Canvases whose default tag the customer has.")


class PartStates(LookupShape):
    """Which side of a customer lookup worked."""

    tags: Status = Field(description="The status of the tags.")
    offers: Status = Field(description="The status of the offers.")


class Offer(BaseModel):
    """One offer: the fields that Liquid needs, and every field that SessionM sent with a value."""

    model_config = ConfigDict(extra="allow", strict=True)

    offer_id: str = Field(description="SessionM's ID of the offer.")
    title: str = Field(description="The title in the culture of the request.")
    group: str = Field(description="The name of the offer's group.")
    category: str = Field(description="The name of the offer's category.")
    expires_at: str = Field(
        description="Such as `2026-12-01T00:00:00Z`; blank without an expiry that can be read."
    )
    days_left: int = Field(description="Whole days; 9999 without an expiry that can be read.")


class LookupHead(LookupShape):
    status: Status = Field(
        description="`not_found`: SessionM does not know the customer. `unavailable`: SessionM "
        "failed, and no usable answer is cached."
    )
    reason: str = Field(description="A short sentence if `status` is not `ok`; else blank.")
    user_id: str = Field(description="The customer's ID in SessionM; blank if it is not known.")
    external_id: str = Field(description="The `external_id` of the request, or blank.")
    stale: bool = Field(description="Whether the answer is older than it should be.")
    age: int = Field(description="Seconds since SessionM's answer.")
    as_of: str = Field(description="The time of SessionM's answer; blank without one.")
    truncated: bool = Field(
        description="Whether offers or tags were left out: an answer has 1,000,000 bytes at most."
    )


class _Tags(LookupShape):
    tags: dict[str, int] = Field(description="Tag to count; 0 for expiring tags.")
    names: list[str] = Field(description="The names of the tags.")
    braze: BrazeIds = Field(description="Campaigns and Canvases, by their default tags.")
    pending: list[str] = Field(description="Tags that the bridge accepted, not yet in SessionM.")
    expires: dict[str, str] = Field(description="Tag to its end, for tags that the bridge wrote.")


# With `fields`, an offer holds those fields only, and a customer without offers has none.
SomeOffer = Offer | dict[str, object]


class _Offers(LookupShape):
    available_points: int | float = Field(description="Points that the customer can spend.")
    total_points: int | float = Field(description="All points that the customer has earned.")
    count: int = Field(description="The number of offers in the answer.")
    total: int = Field(description="The number of offers that matched, before `limit`.")
    offers: list[SomeOffer] = Field(description="The offers, expired ones left out.")
    first: SomeOffer = Field(description="The first offer, or `{}`.")
    next_to_expire: SomeOffer = Field(description="The offer that ends first, or `{}`.")


class TagsAnswer(LookupHead, _Tags):
    """Answer of ``/connected-content/tags``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_HEAD, **_TAGS_EXAMPLE, "count": 3}]}
    )

    count: int = Field(description="The number of tags.")


class OffersAnswer(LookupHead, _Offers):
    """Answer of ``/connected-content/offers``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_HEAD, **_OFFERS_EXAMPLE}]})


class CustomerAnswer(LookupHead, _Tags, _Offers):
    """Answer of ``/connected-content/customer``."""

    model_config = ConfigDict(json_schema_extra={"examples": [CUSTOMER_EXAMPLE]})

    parts: PartStates = Field(description="Which of the two lookups worked.")
    tags_count: int = Field(description="The number of tags.")
    profile: dict[str, Any] = Field(
        default={},
        description="The fields of `BRIDGE_PROFILE_FIELDS`; absent without that setting.",
    )


ANSWERS: dict[str, type[BaseModel]] = {
    "tags": TagsAnswer,
    "offers": OffersAnswer,
    "customer": CustomerAnswer,
}
