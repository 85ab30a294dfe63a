"""Lookups of a customer: requests to SessionM, and answers with their age and version."""

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from bridge import clock
from bridge.customer import Customer, CustomerKind
from bridge.fields import FieldError, identifier
from bridge.lookups.cache import (
    Ages,
    Cache,
    CacheKey,
    Fetch,
    PendingLookup,
    Served,
    UnavailableError,
)
from bridge.lookups.query import Query
from bridge.lookups.shape import (
    BrazeId,
    OwnWrites,
    Part,
    customer_answer,
    encode,
    not_understood,
    offers_answer,
    offers_change_at,
    tags_answer,
)
from bridge.lookups.stamps import OWN
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM
from bridge.storage.database import StoreUnavailableError, in_time

log = logging.getLogger(__name__)

# Offers in a call: a whole wallet, as in Braze's guide to SessionM.
TAKE = 1000
# Customers. If this number or more change at once, all lookups become outdated.
OUTDATE_ALL_ABOVE = 50_000

_NO_CUSTOMER = "SessionM does not know this customer."
_NO_OFFERS = "Offers are switched off: SESSIONM_CONNECT_URL is not set."


@dataclass(frozen=True)
class Freshness:
    """Times in seconds.

    Attributes:
        tags: for which tags are fresh.
        offers: for which offers are fresh.
        while_refreshing: for which a stale answer may be served during a refresh.
        if_error: for which a stale answer may be served if SessionM fails.
        deadline: within which a lookup must be answered.
    """

    tags: float
    offers: float
    while_refreshing: float
    if_error: float
    deadline: float


@dataclass(frozen=True)
class LookupAnswer:
    """One finished lookup.

    Attributes:
        body: JSON.
        status: ``ok``, ``not_found`` or ``unavailable``.
        how: as in `Served`; "" if nothing was served.
        age: seconds since SessionM's answer.
        ttl: seconds for which the answer stays fresh; negative if it is stale.
        version: a hash of the content without ages.
        validity: until when the answer may be served again; ``None``: not at all.
    """

    body: bytes
    status: str
    how: str
    age: int
    ttl: int
    version: str
    validity: "Validity | None" = None


@dataclass(frozen=True)
class Validity:
    """Conditions under which an answer may be served again.

    Attributes:
        fetched_at: the time of SessionM's answer, seconds since the epoch.
        fresh_until: when the answer becomes stale, seconds since the epoch.
        until: when the answer becomes stale or time alone changes it, seconds since the epoch.
        unchanged: returns whether all stamps of the answer are unchanged.
    """

    fetched_at: float
    fresh_until: float
    until: float
    unchanged: Callable[[], bool]


class OpenTagWrite(NamedTuple):
    """A tag write in progress, and the stamps of the customer's identifiers before it."""

    customer: Customer
    stamps: Mapping[Customer, int]


# A function that reads a stamp, and the value that it returned.
_StampCheck = tuple[Callable[[], int], int]


@dataclass(frozen=True)
class _FetchedPart(Part):
    how: str = ""
    fresh_until: float = 0.0
    checks: tuple[_StampCheck, ...] = ()


class Lookups:
    """The three lookups, and the raw ones of the drop-in paths.

    The deadline of a lookup counts from *arrived*, the ``time.monotonic()`` at which the request
    was received; ``None`` means now.

    Args:
        sessionm: the client.
        cache: cached answers.
        freshness: limits of age, and the deadline.
        own_writes: returns the tags that the bridge is writing for a customer.
        braze_id: reads a Braze ID back out of a default tag.
        offers_on: whether the Offers API is configured.
        profile_fields: the fields of a profile that `customer` returns; if empty, no profile.
        report: called with the form of each value in a fetched wallet that cannot be read.
    """

    def __init__(
        self,
        sessionm: SessionM,
        cache: Cache,
        freshness: Freshness,
        own_writes: Callable[[Customer], OwnWrites],
        braze_id: BrazeId,
        *,
        offers_on: bool,
        profile_fields: Sequence[str],
        report: Callable[[str], None],
    ) -> None:
        self._sessionm = sessionm
        self._cache = cache
        self._freshness = freshness
        self._own_writes = own_writes
        self._braze_id = braze_id
        self._offers_on = offers_on
        self._profile_fields = tuple(profile_fields)
        self._report = report

    def tags(self, query: Query, arrived: float | None = None) -> LookupAnswer:
        with self._in_time(arrived) as until:
            pending = self._begin_tags(query.customer)
            pending.let_fetch_start()
            own, own_check = self._own(query.customer)
            got = self._fetched(pending, until)
        now = clock.now()
        answer = tags_answer(query.customer, got, own, self._braze_id, now)
        return _answer(answer, [got], min(own.expires.values(), default=math.inf), own_check)

    def offers(self, query: Query, arrived: float | None = None) -> LookupAnswer:
        with self._in_time(arrived) as until:
            got, user_id = self._offers(query, until)
        now = clock.now()
        answer = offers_answer(query, user_id, got, now)
        return _answer(answer, [got], offers_change_at(got, now))

    def customer(self, query: Query, arrived: float | None = None) -> LookupAnswer:
        with self._in_time(arrived) as until:
            # Tags and offers are fetched concurrently. Offers need the user ID anyway.
            if self._offers_on:
                pending = self._cache.begin(*self._tags_request(query.customer))
            else:
                pending = self._begin_tags(query.customer)
            profile = None
            if self._profile_fields:
                profile = self._cache.begin(*self._profile_request(query.customer))
            # Read before waiting for SessionM, which may use up the deadline.
            own, own_check = self._own(query.customer)
            offers, user_id = self._offers(query, until)
            tags = self._fetched(pending, until)
            got = [tags, *([offers] if self._offers_on else [])]
            got += [self._fetched(profile, until)] if profile else []
        now = clock.now()
        answer = customer_answer(query, user_id, tags, offers, own, self._braze_id, now)
        if profile:
            shown = got[-1].document.get("profile") or {}
            answer["profile"] = {name: shown.get(name, "") for name in self._profile_fields}
        changes_at = min([offers_change_at(offers, now), *own.expires.values()])
        return _answer(answer, got, changes_at, own_check)

    def without_stale(self, deadline: float) -> "Lookups":
        """Return the same lookups with another deadline (seconds) and without stale answers."""
        return Lookups(
            self._sessionm,
            self._cache,
            replace(self._freshness, while_refreshing=0, if_error=0, deadline=deadline),
            self._own_writes,
            self._braze_id,
            offers_on=self._offers_on,
            profile_fields=self._profile_fields,
            report=self._report,
        )

    def raw_tags(self, customer: Customer, arrived: float) -> Served:
        """Return SessionM's own answer to a read of tags, cached.

        Raises:
            UnavailableError: as `Cache.answer`.
        """
        with self._in_time(arrived) as until:
            return self._cache.answer(self._begin_tags(customer), until)

    def raw_validity(self, customer: Customer, served: Served) -> Validity | None:
        """Return until when the *served* answer of `raw_tags` may be served again."""
        key = tags_key(customer)
        return _validity([self._part(key, served)], math.inf)

    def begin_writes(self, customers: Sequence[Customer]) -> list[OpenTagWrite]:
        """Return the stamps of *customers* before their tag writes, for `end_writes`."""
        names = self.names(customers)
        return [
            OpenTagWrite(
                customer, {name: self._cache.stamp(tags_key(name)) for name in names[customer]}
            )
            for customer in customers
        ]

    def end_writes(self, ended: Sequence[tuple[OpenTagWrite, Mapping[str, Any]]]) -> None:
        """Make older tags outdated after tag writes, under all known identifiers.

        Args:
            ended: writes with SessionM's answers, which hold all tags of the customer. The answer
                is cached, unless the customer was changed by something else meanwhile.

        Raises:
            StoreUnavailableError: other processes cannot be notified.
        """
        names = self.names([write.customer for write, _ in ended])
        changed: dict[Customer, Mapping[str, Any] | None] = {}
        for write, answer in ended:
            theirs, before = names[write.customer], write.stamps
            unchanged = all(
                before[name] == self._cache.stamp(tags_key(name)) and name not in changed
                for name in theirs
                if name in before
            )
            kept = answer if unchanged and isinstance(answer.get("tags"), dict) else None
            # Whether an identifier that was discovered meanwhile has changed is unknown.
            changed |= {name: kept if name in before else None for name in theirs}
        self._cache.change("tags", changed)

    def outdate_tags(self, customers: Iterable[Customer] | None) -> None:
        """Make cached tags of *customers* outdated; ``None``: of all customers.

        Raises:
            StoreUnavailableError: other processes cannot be notified.
        """
        left = iter(customers or ())
        some = list(itertools.islice(left, OUTDATE_ALL_ABOVE))
        if customers is None or len(some) == OUTDATE_ALL_ABOVE:
            # In a fleet, this many stamps would outdate every second customer anyway.
            self._cache.outdate_all()
            return
        for at in range(0, len(some), 500):
            names = self.identifiers(some[at : at + 500])
            self._cache.change("tags", dict.fromkeys(itertools.chain(*names.values())))

    def forget(self, customer: Customer) -> None:
        """Make all lookups of *customer* outdated, under all known identifiers.

        Raises:
            StoreUnavailableError: the cache cannot be written.
        """
        for name in self.identifiers([customer])[customer]:
            self._cache.forget(name)

    def names(self, customers: Collection[Customer]) -> dict[Customer, list[Customer]]:
        """As `identifiers`, but only the given ones while the cache cannot be read."""
        try:
            return self.identifiers(customers)
        except StoreUnavailableError as error:
            # Tag writes continue without the cache.
            log.log(error.level, "cache not read: %s", error, extra={"action": "cache_unreadable"})
            return {customer: [customer] for customer in customers}

    def identifiers(self, customers: Collection[Customer]) -> dict[Customer, list[Customer]]:
        """Return all known identifiers of each customer, the given one first.

        Lookups discover the others.

        Raises:
            StoreUnavailableError: the cache cannot be read.
        """
        names = {customer: [customer] for customer in customers}
        others = self._others(customers)
        # A customer may have several external IDs, which the user ID leads to.
        users = [one for found in others.values() for one in found if one.kind == "user_id"]
        siblings = self._others(users) if users else {}
        for customer, found in others.items():
            further = [one for other in found for one in siblings.get(other, ())]
            names[customer] = list(dict.fromkeys([customer, *found, *further]))
        return names

    def _others(self, customers: Collection[Customer]) -> dict[Customer, list[Customer]]:
        """Return the identifiers of the other kind that lookups have discovered."""
        found: dict[Customer, list[Customer]] = {}
        for key, entry in self._cache.stored_for(("profile", "external"), customers):
            customer = Customer.from_key(key)
            other = json.loads(entry.body).get("other")
            if other:
                kind: CustomerKind = "external_id" if customer.kind == "user_id" else "user_id"
                found.setdefault(customer, []).append(Customer(kind, other))
        return found

    def identify(self, customers: Collection[Customer]) -> None:
        """Find the user IDs of external IDs, so that a change applies under all identifiers.

        SessionM is asked, unless the user ID is cached and fresh. If SessionM fails or does not
        answer within the deadline of a lookup, a change applies under the known identifiers only.
        """
        with self._in_time(None) as until:
            pending = [
                self._cache.begin(*self._profile_request(customer))
                for customer in customers
                if customer.kind == "external_id"
            ]
            for one in pending:
                self._fetched(one, until)

    def outdate(self, customers: Collection[Customer], kinds: Collection[str]) -> None:
        """Make cached answers of *kinds* (``tags``, ``offers``) of *customers* outdated.

        Raises:
            StoreUnavailableError: other processes cannot be notified.
        """
        self.identify(customers)
        names = self.names(customers)
        theirs = dict.fromkeys(itertools.chain(*names.values()))
        for kind in kinds:
            self._cache.change(kind, theirs)

    def other_id(self, customer: Customer, seconds: float) -> str:
        """Return the customer's identifier of the other kind, from the cached profile.

        Args:
            customer: one identifier of SessionM.
            seconds: the time limit.

        Raises:
            SessionMError: SessionM does not know the identifier, or is unreachable.
        """
        with self._in_time(time.monotonic() + seconds - self._freshness.deadline) as until:
            part = self._profile(customer, until)
        if part.status == "unavailable":
            raise SessionMError(Meaning.UNREACHABLE, part.reason)
        found = str(part.document.get("other") or "")
        if not found:
            reason = part.reason or "the profile in SessionM has no external ID"
            raise SessionMError(Meaning.UNKNOWN_CUSTOMER, reason)
        return found

    def last_tags(self, customer: Customer) -> dict[str, int]:
        """Return the customer's last known tags, without asking SessionM."""
        entry = self._cache.last_known(tags_key(customer))
        tags = json.loads(entry.body).get("tags") if entry else None
        return tags if isinstance(tags, dict) else {}

    def raw_offers(self, body: Mapping[str, Any], arrived: float) -> Served:
        """Return SessionM's own answer to *body* of get_user_offers, cached.

        Raises:
            UnavailableError: as `Cache.answer`.
        """
        # A hash: a body may be longer than a database allows for an indexed text.
        variant = blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()
        customer = Customer("user_id", str(body["user_id"]))
        key = CacheKey("offers", customer.key, variant)
        ages = self._ages(self._freshness.offers)
        with self._in_time(arrived) as until:
            return self._cache.answer(self._cache.begin(key, self._fetch_offers(body), ages), until)

    def _own(self, customer: Customer) -> tuple[OwnWrites, _StampCheck]:
        """Return the bridge's own writes, and their stamp.

        Call this before taking SessionM's tags: a write delivered in between is then in at least
        one of them.
        """
        read = self._cache.stamp_reader(CacheKey(OWN, customer.key))
        stamp = read()
        return self._own_writes(customer), (read, stamp)

    @contextmanager
    def _in_time(self, arrived: float | None) -> Iterator[float]:
        """Yield the deadline of a lookup (``time.monotonic()``), which bounds the database too."""
        arrived = time.monotonic() if arrived is None else arrived
        until = arrived + self._freshness.deadline
        with in_time(until):
            yield until

    def _ages(self, fresh: float) -> Ages:
        return Ages(fresh, self._freshness.while_refreshing, self._freshness.if_error)

    def _begin_tags(self, customer: Customer) -> PendingLookup:
        """Begin a lookup of tags.

        If an external ID's tags must be fetched, its user ID is fetched too, but not waited for: a
        change under another identifier of the customer can then outdate these tags.
        """
        pending = self._cache.begin(*self._tags_request(customer))
        if customer.kind == "external_id" and pending.answered is not None:
            self._cache.begin(*self._profile_request(customer))
        return pending

    def _tags_request(self, customer: Customer) -> tuple[CacheKey, Fetch, Ages]:
        def fetch(timeout: float) -> Mapping[str, Any]:
            return self._sessionm.read_tags(customer, timeout)

        return tags_key(customer), fetch, self._ages(self._freshness.tags)

    def _fetch_offers(self, body: Mapping[str, Any]) -> Fetch:
        def fetch(timeout: float) -> Mapping[str, Any]:
            wallet = self._sessionm.offers(body, timeout)
            for form in not_understood(wallet):
                self._report(form)
            return wallet

        return fetch

    def _offers(self, query: Query, until: float) -> tuple[_FetchedPart, str]:
        """Return the wallet, and the customer's user id, which the Offers API requires."""
        if not self._offers_on:
            return _FetchedPart("unavailable", reason=_NO_OFFERS, is_off=True), ""
        user_id = query.customer.id
        checks: tuple[_StampCheck, ...] = ()
        if query.customer.kind == "external_id":
            profile = self._profile(query.customer, until)
            user_id = str(profile.document.get("other") or "")
            if not user_id:
                return profile, ""
            checks = profile.checks
        body = {
            "user_id": user_id,
            "skip": 0,
            "take": TAKE,
            "include_pending_extended_data": False,
            "culture": query.culture,
        }
        key = CacheKey("offers", Customer("user_id", user_id).key, query.culture)
        fetch = self._fetch_offers(body)
        pending = self._cache.begin(key, fetch, self._ages(self._freshness.offers))
        got = self._fetched(pending, until)
        return replace(got, checks=checks + got.checks), user_id

    def _profile(self, customer: Customer, until: float) -> _FetchedPart:
        return self._fetched(self._cache.begin(*self._profile_request(customer)), until)

    def _profile_request(self, customer: Customer) -> tuple[CacheKey, Fetch, Ages]:
        """Return the question for the other identifier and the profile's fields.

        A stale answer is not used: an external ID may be assigned to another customer.
        """

        def fetch(timeout: float) -> Mapping[str, Any]:
            # Keep only the configured fields: the rest is personal data that no lookup needs.
            user = _user(self._sessionm.profile(customer, timeout))
            shown = {name: _shown(user.get(name)) for name in self._profile_fields}
            kept: dict[str, Any] = {"profile": shown} if shown else {}
            if customer.kind == "user_id":
                return {"other": _identifier(user, "external_id") or "", **kept}
            user_id = _identifier(user, "id")
            if user_id is None:
                raise SessionMError(Meaning.GARBLED, "the profile has no id", status=200)
            # One entry for each external ID: a customer may have several.
            back = CacheKey("external", Customer("user_id", user_id).key, customer.id)
            self._cache.put(back, {"other": customer.id})
            return {"other": user_id, **kept}

        ages = Ages(self._freshness.offers, 0, self._freshness.if_error)
        return CacheKey("profile", customer.key), fetch, ages

    def _fetched(self, pending: PendingLookup, until: float) -> _FetchedPart:
        try:
            served = self._cache.answer(pending, until)
        except UnavailableError as error:
            return _FetchedPart("unavailable", reason=f"SessionM is unavailable: {error}")
        return self._part(pending.key, served)

    def _part(self, key: CacheKey, served: Served) -> _FetchedPart:
        entry = served.entry
        return _FetchedPart(
            status="ok" if entry.found else "not_found",
            document=json.loads(entry.body),
            fetched_at=entry.fetched_at,
            stale=served.how == "stale",
            reason="" if entry.found else _NO_CUSTOMER,
            how=served.how,
            fresh_until=served.fresh_until,
            checks=((self._cache.stamp_reader(key), entry.stamp),),
        )


def _user(profile: Mapping[str, Any]) -> Mapping[str, Any]:
    user = profile.get("user")
    return user if isinstance(user, dict) else {}


def _shown(value: object) -> object:
    """Return a field of a profile for Liquid, without nil, on which filters fail."""
    return "" if value is None else value


def _identifier(user: Mapping[str, Any], name: str) -> str | None:
    """Return an identifier from SessionM's profile; ``None`` if there is no usable one."""
    found = user.get(name)
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    try:
        return identifier(found, name)
    except FieldError:
        return None


def tags_key(customer: Customer) -> CacheKey:
    return CacheKey("tags", customer.key)


# Fields that change while the content stays the same.
_VOLATILE = {"age", "stale", "as_of"}

# In this order, an answer of several parts is counted as its first.
_HOW = ("", "miss", "collapsed", "stale", "hit")


def _answer(
    document: dict[str, Any], got: list[_FetchedPart], changes_at: float, *checks: _StampCheck
) -> LookupAnswer:
    """Return the finished answer; at *changes_at* (epoch seconds), time alone changes it."""
    parts = {name: value for name, value in document.items() if name not in _VOLATILE}
    fresh_until = _fresh_until(got)
    return LookupAnswer(
        body=encode(document),
        status=document["status"],
        how=min((one.how for one in got), key=_HOW.index),
        age=document["age"],
        ttl=math.floor(fresh_until - clock.now()) if fresh_until else 0,
        version=blake2b(encode(parts), digest_size=12).hexdigest(),
        validity=_validity(got, changes_at, *checks),
    )


def _fresh_until(got: list[_FetchedPart]) -> float:
    """Return when the first part becomes stale; 0 if SessionM answered nothing."""
    return min((one.fresh_until for one in got if one.fetched_at), default=0.0)


def _validity(got: list[_FetchedPart], changes_at: float, *more: _StampCheck) -> Validity | None:
    if any(one.how not in {"hit", "miss", "collapsed"} for one in got):
        return None
    checks = [*more, *(pair for one in got for pair in one.checks)]
    fresh_until = _fresh_until(got)
    return Validity(
        fetched_at=min(one.fetched_at for one in got),
        fresh_until=fresh_until,
        until=min(fresh_until, changes_at),
        unchanged=lambda: all(read() == stamp for read, stamp in checks),
    )
