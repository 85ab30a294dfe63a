"""Seeds: the format of customers and offers, and their creation."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field
from pydantic_core import from_json

from bridge.sandbox.customers import SandboxCustomer, Tag, made_up_id
from bridge.sandbox.messages import Count, Given, Json, Text, Whole, check

SEED = Path(__file__).with_name("seed.json")


class SeedError(ValueError):
    """A seed file or a customer that cannot be used; the message says where and why."""


class _SeedOffer(Given, extra="allow"):
    """An offer of a wallet, in `copies`, with any fields.

    `use` names an offer of the seed's `offers`, whose fields the fields here override.
    """

    use: str | None = None
    copies: Count = 1
    translations: dict[str, Json] = Field(default={})


class _Expiring(Given):
    ttl: Count


class Newcomer(Given):
    """A customer without identifiers."""

    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    profile: Json = Field(default={})
    tags: dict[Text, Count | _Expiring] = Field(default={})
    offers: list[_SeedOffer] = Field(default=[])
    total_points: Whole = 0
    available_points: Whole = 0


class GivenCustomer(Newcomer):
    user_id: Text
    external_id: Text | None = None


class _Named(Given, extra="allow"):
    id: Text


class Seed(Given):
    """A seed. With `any_customer`, unknown identifiers become customers like `new_customer`."""

    customers: list[GivenCustomer] = Field(default=[])
    offers: dict[str, _SeedOffer] = Field(default={})
    offer_groups: list[_Named] = Field(default=[])
    offer_categories: list[_Named] = Field(default=[])
    any_customer: bool = False
    new_customer: Newcomer = Newcomer()


def load_seed(path: Path = SEED) -> Json:
    """Read a seed file. Raises SeedError if it cannot be read or is not a JSON object."""
    try:
        seed = from_json(path.read_bytes(), allow_inf_nan=False)
    except (OSError, ValueError) as error:
        raise SeedError(f"{path}: {error}") from error
    if not isinstance(seed, dict):
        raise SeedError(f"{path}: must be a JSON object")
    return seed


@contextlib.contextmanager
def seeding() -> Iterator[None]:
    """Convert any ValueError in the block to SeedError."""
    try:
        yield
    except ValueError as error:
        raise SeedError(str(error)) from error


class Catalogue:
    """Creates customers and wallets; days and TTLs count from `now` (seconds since the epoch)."""

    def __init__(self, seed: Seed, now: float) -> None:
        self._now = now
        self._offers = seed.offers
        self.groups = [each.model_dump() for each in seed.offer_groups]
        self.categories = [each.model_dump() for each in seed.offer_categories]

    def customer(self, given: GivenCustomer) -> SandboxCustomer:
        """Raises ValueError."""
        return self.like(given, given.user_id, given.external_id)

    def like(
        self, given: Newcomer, user_id: str, external_id: str | None = None
    ) -> SandboxCustomer:
        """Raises ValueError."""
        names = given.model_dump(include={"email", "first_name", "last_name"})
        return SandboxCustomer(
            user_id,
            external_id,
            profile=names | given.profile,
            points=given.model_dump(include={"total_points", "available_points"}),
            offers=tuple(self._wallet(given.offers, user_id)),
            tags={name: self._tag(tag) for name, tag in given.tags.items()},
        )

    def offer(self, given: Mapping[str, object], user_id: str) -> Json:
        """One offer, given as in the seed. Raises ValueError."""
        return next(self._wallet([check(_SeedOffer, dict(given))], user_id))

    def _tag(self, given: int | _Expiring) -> Tag:
        return Tag(given) if isinstance(given, int) else Tag(0, self._now + given.ttl)

    def _wallet(self, entries: list[_SeedOffer], user_id: str) -> Iterator[Json]:
        """Yield the offers; copies have their own ids and share `root_offer_id`."""
        for number, entry in enumerate(entries):
            if entry.use and entry.use not in self._offers:
                raise ValueError(f"{user_id}: there is no offer {entry.use!r} to use")
            used = _fields(self._offers[entry.use]) if entry.use else {}
            offer = _complete(self._dated(used | _fields(entry)), made_up_id(user_id, number))
            yield offer
            for copy in range(1, entry.copies):
                yield offer | {"offer_id": made_up_id(offer["offer_id"], copy)}

    def _dated(self, offer: Json) -> Json:
        """Convert `X_in_days: 2` to `X: "2026-12-01T00:00:00Z"`, unless X is given."""
        given = {key: value for key, value in offer.items() if not key.endswith("_in_days")}
        dates = {
            key.removesuffix("_in_days"): self._date(key, days)
            for key, days in offer.items()
            if key not in given
        }
        return dates | given

    def _date(self, key: str, days: float) -> str:
        try:
            at = datetime.fromtimestamp(self._now, UTC) + timedelta(days=days)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{key}: must be a number of days ({error})") from error
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _fields(offer: _SeedOffer) -> Json:
    return offer.model_dump(exclude={"use", "copies"}, exclude_unset=True)


def _complete(offer: Json, made_up: str) -> Json:
    """Add the fields that every offer has."""
    title = offer.get("title") or offer.get("name") or "An offer"
    offer_id = offer.get("offer_id") or made_up
    usual = {
        "offer_id": offer_id,
        "root_offer_id": offer_id,
        "offer_group_id": "00000000-0000-0000-0000-000000000000",
        "offer_type": "manual_fulfillment",
        "name": title,
        "title": title,
        "expiration_date": None,
        "redeem_date": None,
    }
    return usual | offer
