"""The documented shapes of lookups, for OpenAPI and for tests that hold answers against them.

Every key is always there, and none is ever ``null``.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["ok", "not_found", "unavailable"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BrazeIds(_Shape):
    """Braze IDs read back out of default tags."""

    campaigns: list[str]
    canvases: list[str]


class Parts(_Shape):
    """Which side of a customer lookup worked."""

    tags: Status
    offers: Status


class Offer(BaseModel):
    """One offer: what Liquid needs, and every field that SessionM sent with a value."""

    model_config = ConfigDict(extra="allow", strict=True)

    offer_id: str
    title: str
    group: str
    category: str
    expires_at: str = Field(description="2026-12-01T00:00:00Z, or blank if it does not expire")
    days_left: int = Field(description="whole days; 9999 if it does not expire")


class _Head(_Shape):
    status: Status
    reason: str = Field(description="why status is not ok, in a short sentence; else blank")
    user_id: str
    external_id: str
    stale: bool
    age: int = Field(description="seconds since SessionM said so")
    as_of: str = Field(description="when SessionM said so; blank if it did not")
    truncated: bool = Field(description="something was left out to stay within 1,000,000 bytes")
    count: int


class _Tags(_Shape):
    tags: dict[str, int] = Field(description="tag -> count; 0 for expiring tags")
    names: list[str]
    braze: BrazeIds
    pending: list[str] = Field(description="tags accepted by the bridge, not yet in SessionM")
    expires: dict[str, str] = Field(description="tag -> when it ends, if the bridge wrote it")


# With `fields`, an offer holds those fields only, and a customer without offers has none.
SomeOffer = Offer | dict[str, object]


class _Offers(_Shape):
    available_points: int | float
    total_points: int | float
    total: int = Field(description="offers that matched, before limit")
    offers: list[SomeOffer]
    first: SomeOffer
    next_to_expire: SomeOffer


class TagsAnswer(_Head, _Tags):
    """``/connected-content/tags``; *count* counts the tags."""


class OffersAnswer(_Head, _Offers):
    """``/connected-content/offers``; *count* counts the offers shown."""


class CustomerAnswer(_Head, _Tags, _Offers):
    """``/connected-content/customer``: both; *count* counts the offers, *tags_count* the tags."""

    parts: Parts
    tags_count: int


ANSWERS: dict[str, type[BaseModel]] = {
    "tags": TagsAnswer,
    "offers": OffersAnswer,
    "customer": CustomerAnswer,
}
