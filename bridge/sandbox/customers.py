"""Customers, their tags and wallets, found by either identifier."""

import itertools
import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bridge.sandbox.messages import Json, SandboxRefusedError


class Tag(NamedTuple):
    """A counter from 1, or an expiring tag, whose count is 0."""

    uses: int
    expires_at: float = math.inf


@dataclass(slots=True)
class SandboxCustomer:
    """`profile` and `offers` may be shared between customers and are never changed."""

    user_id: str
    external_id: str | None
    profile: Json
    offers: Sequence[Json]
    points: Json
    tags: dict[str, Tag]

    def counts(self, now: float) -> dict[str, int]:
        """Return all live tags with their counts: the answer of the Tags API."""
        self.tags = {name: tag for name, tag in self.tags.items() if tag.expires_at > now}
        return {name: tag.uses for name, tag in self.tags.items()}

    def tag(self, names: Sequence[str], ttl: int, now: float) -> dict[str, int]:
        """Count each tag once, or with `ttl` (seconds; 0: none) set it to expire then.

        A tag cannot change its kind before it expires. Assumed: the answer is VALIDATION, and
        nothing of the call is applied.
        """
        present = self.counts(now)
        for name in present.keys() & set(names):
            if bool(present[name]) == bool(ttl):
                kind = "a counter" if ttl else "an expiring tag"
                raise SandboxRefusedError(200, "validation", f"Tag {name!r} is {kind} already.")
        for name in dict.fromkeys(names):
            self.tags[name] = Tag(0, now + ttl) if ttl else Tag(present.get(name, 0) + 1)
        return self.counts(now)

    def summary(self, now: float) -> Json:
        ids = {"user_id": self.user_id, "external_id": self.external_id}
        return ids | {"tags": self.counts(now), "offers": len(self.offers)} | self.points


class Customers:
    """All customers. Thread-safe. `newcomer` is the pattern for unknown customers, if any.

    `ids` hold a `user_id`, which takes precedence, or an `external_id`. An unknown customer raises
    SandboxRefusedError.
    """

    def __init__(self, clock: Callable[[], float], newcomer: SandboxCustomer | None) -> None:
        self._clock = clock
        self._newcomer = newcomer
        self._lock = threading.RLock()
        self._by_user_id: dict[str, SandboxCustomer] = {}
        self._by_external_id: dict[str, SandboxCustomer] = {}

    def __len__(self) -> int:
        return len(self._by_user_id)

    def put(self, customer: SandboxCustomer) -> None:
        """Create or replace a customer. Raises ValueError if another has the external_id."""
        with self._lock:
            other = self._by_external_id.get(customer.external_id or "", customer)
            if other.user_id != customer.user_id:
                raise ValueError(f"external_id: it belongs to {other.user_id} already")
            self.remove(customer.user_id)
            self._by_user_id[customer.user_id] = customer
            if customer.external_id:
                self._by_external_id[customer.external_id] = customer

    def add_external_id(self, user_id: str, external_id: str) -> None:
        """Give the customer one more external ID: the profile shows the newest alone."""
        with self._lock:
            customer = self.find({"user_id": user_id})
            customer.external_id = external_id
            self._by_external_id[external_id] = customer

    def award(self, user_id: str, offer: Json) -> None:
        """Put an offer in front of the customer's others."""
        with self._lock:
            customer = self.find({"user_id": user_id})
            customer.offers = (offer, *customer.offers)

    def remove(self, user_id: str) -> bool:
        """Remove a customer; return whether it existed."""
        with self._lock:
            customer = self._by_user_id.pop(user_id, None)
            if customer:
                # An external ID that was added to another customer stays with that one.
                others = self._by_external_id.items()
                self._by_external_id = {key: one for key, one in others if one is not customer}
            return customer is not None

    def find(self, ids: Mapping[str, str]) -> SandboxCustomer:
        user_id, external_id = ids.get("user_id", ""), ids.get("external_id", "")
        with self._lock:
            by_external_id = self._by_external_id.get(external_id)
            customer = self._by_user_id.get(user_id) if user_id else by_external_id
            if not customer and self._newcomer and (user_id or external_id):
                customer = self._create(self._newcomer, user_id, external_id)
        if not customer:
            raise SandboxRefusedError(404, "user_not_found", "There is no such customer.")
        return customer

    def _create(self, like: SandboxCustomer, user_id: str, external_id: str) -> SandboxCustomer:
        external = None if user_id else external_id
        user_id = user_id or made_up_id("customer", external_id)
        customer = replace(like, user_id=user_id, external_id=external, tags=dict(like.tags))
        self.put(customer)
        return customer

    def counts(self, ids: Mapping[str, str]) -> dict[str, int]:
        """Return the customer's tags."""
        with self._lock:
            return self.find(ids).counts(self._clock())

    def tag(self, ids: Mapping[str, str], names: Sequence[str], ttl: int) -> dict[str, int]:
        """Tag the customer and return all of its tags."""
        with self._lock:
            return self.find(ids).tag(names, ttl, self._clock())

    def summaries(self, limit: int | None = None) -> list[Json]:
        """Return a summary of each customer, with the size of the wallet only."""
        with self._lock:
            now = self._clock()
            some = itertools.islice(self._by_user_id.values(), limit)
            return [customer.summary(now) for customer in some]


def made_up_id(*parts: object) -> str:
    """Return a GUID derived from *parts*, so that restarts do not change identifiers."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts)))
