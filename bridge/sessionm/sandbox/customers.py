"""Customers, their tags and wallets, found by either identifier."""

import itertools
import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bridge.sessionm.sandbox.messages import Json, RefusedError


class Tag(NamedTuple):
    """A counter from 1, or an expiring tag, whose count is 0."""

    uses: int
    expires_at: float = math.inf


@dataclass(slots=True)
class Customer:
    """`profile` and `offers` may be shared between customers and are never changed."""

    user_id: str
    external_id: str | None
    profile: Json
    offers: Sequence[Json]
    points: Json
    tags: dict[str, Tag]

    def counts(self, now: float) -> dict[str, int]:
        """Return all tags that live, with their counts: the answer of the Tags API."""
        self.tags = {name: tag for name, tag in self.tags.items() if tag.expires_at > now}
        return {name: tag.uses for name, tag in self.tags.items()}

    def tag(self, names: Sequence[str], ttl: int, now: float) -> dict[str, int]:
        """Count each name once, or with `ttl` (seconds; 0 is none) let each live until then.

        A tag cannot change its kind while it lives. That this is answered with
        VALIDATION, and that nothing of the call is applied then, is assumed.
        """
        present = self.counts(now)
        for name in present.keys() & set(names):
            if bool(present[name]) == bool(ttl):
                kind = "a counter" if ttl else "an expiring tag"
                raise RefusedError(200, "validation", f"Tag {name!r} is {kind} already.")
        for name in dict.fromkeys(names):
            self.tags[name] = Tag(0, now + ttl) if ttl else Tag(present.get(name, 0) + 1)
        return self.counts(now)

    def summary(self, now: float) -> Json:
        ids = {"user_id": self.user_id, "external_id": self.external_id}
        return ids | {"tags": self.counts(now), "offers": len(self.offers)} | self.points


class Customers:
    """All customers, for many threads. `newcomer` is what an unknown one becomes, if any.

    `ids` hold a `user_id`, which wins, or an `external_id`. An unknown one raises RefusedError.
    """

    def __init__(self, clock: Callable[[], float], newcomer: Customer | None) -> None:
        self._clock = clock
        self._newcomer = newcomer
        self._lock = threading.RLock()
        self._by_user_id: dict[str, Customer] = {}
        self._by_external_id: dict[str, Customer] = {}

    def __len__(self) -> int:
        return len(self._by_user_id)

    def put(self, customer: Customer) -> None:
        """Create or replace. Raises ValueError if another has the external_id."""
        with self._lock:
            other = self._by_external_id.get(customer.external_id or "", customer)
            if other.user_id != customer.user_id:
                raise ValueError(f"external_id: it belongs to {other.user_id} already")
            self.remove(customer.user_id)
            self._by_user_id[customer.user_id] = customer
            if customer.external_id:
                self._by_external_id[customer.external_id] = customer

    def remove(self, user_id: str) -> bool:
        """Say whether there was such a customer."""
        with self._lock:
            customer = self._by_user_id.pop(user_id, None)
            if customer and customer.external_id:
                del self._by_external_id[customer.external_id]
            return customer is not None

    def find(self, ids: Mapping[str, str]) -> Customer:
        user_id, external_id = ids.get("user_id", ""), ids.get("external_id", "")
        with self._lock:
            by_external_id = self._by_external_id.get(external_id)
            customer = self._by_user_id.get(user_id) if user_id else by_external_id
            if not customer and self._newcomer and (user_id or external_id):
                customer = self._create(self._newcomer, user_id, external_id)
        if not customer:
            raise RefusedError(404, "user_not_found", "There is no such customer.")
        return customer

    def _create(self, like: Customer, user_id: str, external_id: str) -> Customer:
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
        """Return what there is to say about each customer, wallets only by their size."""
        with self._lock:
            now = self._clock()
            some = itertools.islice(self._by_user_id.values(), limit)
            return [customer.summary(now) for customer in some]


def made_up_id(*parts: object) -> str:
    """Return the same GUID for the same parts, so that restarts change no identifier."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts)))
