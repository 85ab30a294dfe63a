"""What to ask SessionM for a lookup, and what is answered when."""

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

from bridge.customer import Customer, CustomerKind
from bridge.database import StoreUnavailableError, in_time
from bridge.fields import FieldError, identifier
from bridge.lookups.cache import Ages, Asked, Cache, Fetch, Key, Served, UnavailableError
from bridge.lookups.query import Query
from bridge.lookups.shape import (
    BrazeId,
    OwnWrites,
    Part,
    customer_answer,
    encode,
    offers_answer,
    offers_change_at,
    tags_answer,
)
from bridge.lookups.stamps import Stamps
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM

log = logging.getLogger(__name__)

# All of a wallet in one call, as the Braze guide to SessionM does it.
TAKE = 1000
# Which customer an external id belongs to does not change.
PROFILE_MAX_AGE = 86400.0
# With more customers than this at once, everybody's lookups are outdated.
MANY = 50_000

_NO_CUSTOMER = "SessionM does not know this customer."
_NO_OFFERS = "Offers are switched off: SESSIONM_CONNECT_URL is not set."


@dataclass(frozen=True)
class Freshness:
    """Seconds: how long lookups are fresh, may be stale, and have to be answered in."""

    tags: float
    offers: float
    while_refreshing: float
    if_error: float
    deadline: float


@dataclass(frozen=True)
class Answer:
    """One finished lookup.

    Attributes:
        body: JSON.
        status: ``ok``, ``not_found`` or ``unavailable``.
        how: ``hit``, ``stale`` or ``miss`` for the cache; "" if nothing was served.
        age: seconds since SessionM said so.
        ttl: seconds it stays fresh; negative if it is stale.
        version: changes when the content does, ages apart.
        repeat: whether and how long it may be given again, ages apart; ``None``: it may not.
    """

    body: bytes
    status: str
    how: str
    age: int
    ttl: int
    version: str
    repeat: "Repeatable | None" = None


@dataclass(frozen=True)
class Repeatable:
    """What the repetition of an answer has to know. Times are seconds since the epoch.

    *unchanged* tells whether everything that the answer was made of still is as it was.
    """

    fetched_at: float
    fresh_until: float
    until: float
    unchanged: Callable[[], bool]


class TagWrite(NamedTuple):
    """A tag write that has begun, and the stamps of the customer's names from then."""

    customer: Customer
    stamps: Mapping[Customer, int]


# What reads a stamp, and what it read.
_Held = tuple[Callable[[], int], int]


@dataclass(frozen=True)
class _Got:
    part: Part
    how: str
    fresh: float
    held: tuple[_Held, ...] = ()


class Lookups:
    """The three lookups and the raw ones of the drop-in paths.

    Args:
        sessionm: whom to ask.
        cache: what is known already.
        freshness: how long that is good.
        own_writes: what the bridge itself is writing for a customer.
        own_stamps: a customer's changes whenever that changes.
        braze_id: reads a Braze ID back out of a default tag.
    """

    def __init__(
        self,
        sessionm: SessionM,
        cache: Cache,
        freshness: Freshness,
        own_writes: Callable[[Customer], OwnWrites],
        own_stamps: Stamps,
        braze_id: BrazeId,
        *,
        offers_on: bool,
    ) -> None:
        self._sessionm = sessionm
        self._cache = cache
        self._freshness = freshness
        self._own_writes = own_writes
        self._own_stamps = own_stamps
        self._braze_id = braze_id
        self._offers_on = offers_on

    def close(self) -> None:
        """Tell nobody of own writes any more."""
        self._own_stamps.close()

    def tags(self, query: Query) -> Answer:
        with self._in_time() as until:
            asked = self._cache.ask(*self._tags_question(query.customer))
            asked.get_going()
            own, held = self._own(query.customer)
            got = self._got(asked, until)
        now = time.time()
        answer = tags_answer(query.customer, got.part, own, self._braze_id, now)
        return _answer(answer, [got], min(own.expires.values(), default=math.inf), held)

    def offers(self, query: Query) -> Answer:
        with self._in_time() as until:
            got, user_id = self._offers(query, until)
        now = time.time()
        answer = offers_answer(query, user_id, got.part, now)
        return _answer(answer, [got], offers_change_at(got.part, now))

    def customer(self, query: Query) -> Answer:
        with self._in_time() as until:
            # Both are under way at once: the tags' fetch goes on while the offers are awaited.
            asked = self._cache.ask(*self._tags_question(query.customer))
            # Before anything is waited for: there would be no time left for it.
            own, held = self._own(query.customer)
            offers, user_id = self._offers(query, until)
            tags = self._got(asked, until)
        now = time.time()
        answer = customer_answer(query, user_id, tags.part, offers.part, own, self._braze_id, now)
        changes_at = min([offers_change_at(offers.part, now), *own.expires.values()])
        return _answer(answer, [tags, offers], changes_at, held)

    def patient(self, deadline: float) -> "Lookups":
        """The same lookups for somebody who can wait, and wants fresh answers only."""
        return Lookups(
            self._sessionm,
            self._cache,
            replace(self._freshness, while_refreshing=0, if_error=0, deadline=deadline),
            self._own_writes,
            self._own_stamps,
            self._braze_id,
            offers_on=self._offers_on,
        )

    def raw_tags(self, customer: Customer) -> Served:
        """SessionM's own answer to a read of tags, cached.

        Raises:
            UnavailableError: as `Cache.get`.
        """
        with self._in_time() as until:
            return self._cache.get(*self._tags_question(customer), until)

    def raw_repeat(self, customer: Customer, served: Served) -> Repeatable | None:
        """Whether and how long `raw_tags` that were *served* may be given again."""
        key = tags_key(customer)
        return _repeatable([self._part(key, served)], math.inf)

    def begin_writes(self, customers: Sequence[Customer]) -> list[TagWrite]:
        """Tag writes for *customers* begin; `end_writes` wants them back."""
        names = self.names(customers)
        return [
            TagWrite(
                customer, {name: self._cache.stamp(tags_key(name)) for name in names[customer]}
            )
            for customer in customers
        ]

    def end_writes(self, ended: Sequence[tuple[TagWrite, Mapping[str, Any]]]) -> None:
        """Tag writes have been made, with SessionM's answers: all tags of the customer now.

        No lookup serves older ones afterwards, under whichever identifier a customer is known. If
        something else has changed the customer meanwhile, the answer may be from before that, and
        is not kept.
        """
        names = self.names([write.customer for write, _ in ended])
        changed: dict[Customer, Mapping[str, Any] | None] = {}
        for write, answer in ended:
            theirs = names[write.customer]
            alone = all(
                write.stamps.get(name) == self._cache.stamp(tags_key(name)) and name not in changed
                for name in theirs
            )
            kept = answer if alone and isinstance(answer.get("tags"), dict) else None
            changed |= dict.fromkeys(theirs, kept)
        self._cache.change("tags", changed)

    def own_writes_changed(self, customer_key: str) -> None:
        """What the bridge is writing for a customer is something else now."""
        self._own_stamps.change("own", customer_key)

    def outdate_tags(self, customers: Iterable[Customer] | None) -> None:
        """Serve no older tags of *customers* than now; of anybody, if it is not known whose."""
        left = iter(customers or ())
        some = list(itertools.islice(left, MANY))
        if customers is None or len(some) == MANY:
            # In a fleet so many share their stamps with every second customer.
            self._cache.outdate_all()
            return
        for at in range(0, len(some), 500):
            names = self._names(some[at : at + 500])
            self._cache.change("tags", dict.fromkeys(itertools.chain(*names.values())))

    def forget(self, customer: Customer) -> None:
        """Serve nothing older than now for *customer*, under each identifier that is known."""
        for name in self.names([customer])[customer]:
            self._cache.forget(name)

    def names(self, customers: Collection[Customer]) -> dict[Customer, list[Customer]]:
        """Each, and the same by the other identifier if a lookup has found it out."""
        try:
            return self._names(customers)
        except StoreUnavailableError as error:
            # Tag writes go on without the cache.
            log.log(error.level, "cache not read: %s", error, extra={"action": "cache_unreadable"})
            return {customer: [customer] for customer in customers}

    def _names(self, customers: Collection[Customer]) -> dict[Customer, list[Customer]]:
        noted = self._cache.noted(_OTHER_NAME.values(), customers)
        names = {customer: [customer] for customer in customers}
        for customer in customers:
            entry = noted.get(customer.key)
            if entry and (other := json.loads(entry.body).get("other")):
                kind: CustomerKind = "external_id" if customer.kind == "user_id" else "user_id"
                names[customer].append(Customer(kind, other))
        return names

    def last_tags(self, customer: Customer) -> dict[str, int]:
        """The customer's tags as last known, without asking SessionM."""
        entry = self._cache.last_known(tags_key(customer))
        tags = json.loads(entry.body).get("tags") if entry else None
        return tags if isinstance(tags, dict) else {}

    def raw_offers(self, body: Mapping[str, Any]) -> Served:
        """SessionM's own answer to *body* of get_user_offers, cached; raises as `Cache.get`."""
        # A body may be longer than what a database takes as a name.
        variant = blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()
        customer = Customer("user_id", str(body["user_id"]))
        key = Key("offers", customer.key, variant)
        fetch = _fetch_offers(self._sessionm, body)
        with self._in_time() as until:
            return self._cache.get(key, fetch, self._ages(self._freshness.offers), until)

    def _own(self, customer: Customer) -> tuple[OwnWrites, _Held]:
        """Our own writes, and their stamp.

        To be read before the answer with SessionM's tags is taken: then a write that is delivered
        meanwhile is seen in the one or in the other.
        """
        read = self._own_stamps.reader("own", customer.key)
        stamp = read()
        return self._own_writes(customer), (read, stamp)

    @contextmanager
    def _in_time(self) -> Iterator[float]:
        """Until when a lookup that begins now has to be answered; the database knows it too."""
        until = time.monotonic() + self._freshness.deadline
        with in_time(until):
            yield until

    def _ages(self, fresh: float) -> Ages:
        return Ages(fresh, self._freshness.while_refreshing, self._freshness.if_error)

    def _tags_question(self, customer: Customer) -> tuple[Key, Fetch, Ages]:
        def fetch(timeout: float) -> Mapping[str, Any]:
            return self._sessionm.read_tags(customer, timeout)

        return tags_key(customer), fetch, self._ages(self._freshness.tags)

    def _offers(self, query: Query, until: float) -> tuple[_Got, str]:
        """The wallet, and the customer's user id, which the Offers API asks for."""
        if not self._offers_on:
            return _Got(Part("unavailable", reason=_NO_OFFERS), "", 0), ""
        user_id = query.customer.id
        held: tuple[_Held, ...] = ()
        if query.customer.kind == "external_id":
            profile = self._profile(query.customer, until)
            user_id = str(profile.part.document.get("other") or "")
            if not user_id:
                return profile, ""
            held = profile.held
        body = {
            "user_id": user_id,
            "skip": 0,
            "take": TAKE,
            "include_pending_extended_data": False,
            "culture": query.culture,
        }
        key = Key("offers", Customer("user_id", user_id).key, query.culture)
        fetch = _fetch_offers(self._sessionm, body)
        asked = self._cache.ask(key, fetch, self._ages(self._freshness.offers))
        got = self._got(asked, until)
        return replace(got, held=held + got.held), user_id

    def _profile(self, customer: Customer, until: float) -> _Got:
        def fetch(timeout: float) -> Mapping[str, Any]:
            # Only the id: the rest is personal data that no lookup shows.
            user_id = _user_id(self._sessionm.profile(customer.id, timeout))
            back = Key("external", Customer("user_id", user_id).key)
            self._cache.keep(back, {"other": customer.id})
            return {"other": user_id}

        ages = self._ages(PROFILE_MAX_AGE)
        return self._got(self._cache.ask(Key("profile", customer.key), fetch, ages), until)

    def _got(self, asked: Asked, until: float) -> _Got:
        try:
            served = self._cache.answer(asked, until)
        except UnavailableError as error:
            return _Got(Part("unavailable", reason=f"SessionM is unavailable: {error}"), "", 0)
        return self._part(asked.key, served)

    def _part(self, key: Key, served: Served) -> _Got:
        entry = served.entry
        return _Got(
            Part(
                status="ok" if entry.found else "not_found",
                document=json.loads(entry.body),
                fetched_at=entry.fetched_at,
                stale=served.how == "stale",
                reason="" if entry.found else _NO_CUSTOMER,
            ),
            served.how,
            served.fresh_for,
            ((self._cache.stamp_reader(key), entry.stamp),),
        )


def _user_id(profile: Mapping[str, Any]) -> str:
    """The customer's id in SessionM's *profile*.

    Raises:
        SessionMError: there is none in it.
    """
    user = profile.get("user")
    found = user.get("id") if isinstance(user, dict) else None
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    try:
        user_id = identifier(found, "id")
    except FieldError:
        user_id = None
    if user_id is None:
        raise SessionMError(Meaning.GARBLED, "the profile has no id", status=200)
    return user_id


def tags_key(customer: Customer) -> Key:
    """Under which key a customer's tags are cached."""
    return Key("tags", customer.key)


def _fetch_offers(sessionm: SessionM, body: Mapping[str, Any]) -> Fetch:
    def fetch(timeout: float) -> Mapping[str, Any]:
        return sessionm.offers(body, timeout)

    return fetch


# Under which kind of key a customer's other identifier is cached.
_OTHER_NAME = {"external_id": "profile", "user_id": "external"}

# What changes in an answer while its content stays.
_PASSING = {"age", "stale", "as_of"}

# The cache did least for the part that had to be fetched.
_HOW = ("", "miss", "stale", "hit")


def _answer(document: dict[str, Any], got: list[_Got], changes_at: float, *held: _Held) -> Answer:
    """The finished answer; *changes_at* is when time alone makes it another one."""
    parts = {name: value for name, value in document.items() if name not in _PASSING}
    return Answer(
        body=encode(document),
        status=document["status"],
        how=min((one.how for one in got), key=_HOW.index),
        age=document["age"],
        ttl=math.floor(_fresh_until(got) - time.time()) if _fresh_until(got) else 0,
        version=blake2b(encode(parts), digest_size=12).hexdigest(),
        repeat=_repeatable(got, changes_at, *held),
    )


def _fresh_until(got: list[_Got]) -> float:
    """When the first part ceases to be fresh; 0 if SessionM has said nothing."""
    ends = [one.part.fetched_at + one.fresh for one in got if one.part.fetched_at]
    return min(ends, default=0.0)


def _repeatable(got: list[_Got], changes_at: float, *more: _Held) -> Repeatable | None:
    if any(one.how not in {"hit", "miss"} for one in got):
        return None
    held = [*more, *(pair for one in got for pair in one.held)]
    fresh_until = _fresh_until(got)
    return Repeatable(
        fetched_at=min(one.part.fetched_at for one in got),
        fresh_until=fresh_until,
        until=min(fresh_until, changes_at),
        unchanged=lambda: all(read() == stamp for read, stamp in held),
    )
