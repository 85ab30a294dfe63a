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


class LookupShape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BrazeIds(LookupShape):
    """Braze IDs read back out of default tags."""

    campaigns: list[str]
    canvases: list[str]


class PartStates(LookupShape):
    """Which side of a customer lookup worked."""

    tags: Status
    offers: Status


class Offer(BaseModel):
    """One offer: the fields that Liquid needs, and every field that SessionM sent with a value."""

    model_config = ConfigDict(extra="allow", strict=True)

    offer_id: str
    title: str
    group: str
    category: str
    expires_at: str = Field(
        description="2026-12-01T00:00:00Z; blank if it does not expire, or is not understood"
    )
    days_left: int = Field(
        description="whole days; 9999 if it does not expire, or is not understood"
    )


class LookupHead(LookupShape):
    status: Status
    reason: str = Field(description="a short sentence if status is not ok; else blank")
    user_id: str
    external_id: str
    stale: bool
    age: int = Field(description="seconds since SessionM's answer")
    as_of: str = Field(description="time of SessionM's answer; blank without one")
    truncated: bool = Field(description="offers or tags were left out: 1,000,000 bytes at most")
    count: int


class _Tags(LookupShape):
    tags: dict[str, int] = Field(description="tag -> count; 0 for expiring tags")
    names: list[str]
    braze: BrazeIds
    pending: list[str] = Field(description="tags accepted by the bridge, not yet in SessionM")
    expires: dict[str, str] = Field(description="tag -> when it ends, if the bridge wrote it")


# With `fields`, an offer holds those fields only, and a customer without offers has none.
SomeOffer = Offer | dict[str, object]


class _Offers(LookupShape):
    available_points: int | float
    total_points: int | float
    total: int = Field(description="offers that matched, before limit")
    offers: list[SomeOffer]
    first: SomeOffer
    next_to_expire: SomeOffer


class TagsAnswer(LookupHead, _Tags):
    """Answer of ``/connected-content/tags``; *count* is the number of tags."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_HEAD, **_TAGS_EXAMPLE, "count": 3}]}
    )


class OffersAnswer(LookupHead, _Offers):
    """Answer of ``/connected-content/offers``; *count* is the number of offers shown."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_HEAD, **_OFFERS_EXAMPLE}]})


class CustomerAnswer(LookupHead, _Tags, _Offers):
    """Answer of ``/connected-content/customer``; *count* is the number of offers shown."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_HEAD,
                    **_TAGS_EXAMPLE,
                    **_OFFERS_EXAMPLE,
                    "tags_count": 3,
                    "parts": {"tags": "ok", "offers": "ok"},
                }
            ]
        }
    )

    parts: PartStates
    tags_count: int
    profile: dict[str, Any] = Field(
        default={}, description="the fields of BRIDGE_PROFILE_FIELDS; absent without that setting"
    )


ANSWERS: dict[str, type[BaseModel]] = {
    "tags": TagsAnswer,
    "offers": OffersAnswer,
    "customer": CustomerAnswer,
}
