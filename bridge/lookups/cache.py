"""Cached answers of SessionM: memory over a shared table, one flight, stale rules.

An answer is used only while its stamp is its customer's present one. A fetch that began under
one stamp and ends under another is not used either: that closes the race between a lookup in
flight and a tag write that goes through meanwhile.
"""

import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import sqlalchemy as sa
from cachetools import LRUCache

from bridge.customer import Customer
from bridge.database import Database, StoreUnavailableError
from bridge.locks import Flights, lock_number
from bridge.lookups.stamps import Stamps, hashed
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.statements import Holds, Prepared, insert, insert_many

log = logging.getLogger(__name__)

schema = sa.MetaData()
lookups = sa.Table(
    "lookups",
    schema,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, primary_key=True),
    sa.Column("found", sa.Boolean, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("fetched_at", sa.Float, nullable=False),
    sa.Column("stamp", sa.BigInteger, nullable=False),
)
sa.Index("lookups_fetched_at", lookups.c.fetched_at)
sa.Index("lookups_customer", lookups.c.customer)


def _first_schema(connection: sa.Connection) -> None:
    schema.create_all(connection)


MIGRATIONS = (_first_schema,)

# "No such customer" is worth less: profiles are created late.
UNKNOWN_MAX_AGE = 10.0
SPREAD = 0.1
# A fetch may outlive its first waiter, so that the next one finds the answer.
FETCH_TIMEOUT = 5.0
FETCHERS = 64
# So many are dropped in one transaction; to find them, or a customer, may take a while.
BATCH = 1000
SEARCH_PATIENCE = 60.0
# Whoever asked for a flight that began so late has had to do without.
STALE_FLIGHT = 2.0
# Seconds: enough for another thread to begin what somebody waits for.
HEAD_START = 0.002
# One interpreter for all threads: answers come first, and those that come meanwhile are stored in
# one transaction. As fast as 64 connections ask, an eighth more cold lookups were answered by it.
TOGETHER = 0.005
# In one transaction: a fleet's database has half a second for it.
AT_ONCE = 32
# Where the table is held up, so many wait for it.
MOST_LANDED = 1000
MEMORY_BYTES = 256 * 1024 * 1024
# Measured: what an entry takes beside its body, its key and places in two dictionaries included.
_OVERHEAD = 560


class Key(NamedTuple):
    """What was asked: tags, offers, profile or external; whose (a customer's key); which variant.

    ``profile`` is the user id behind an external id, ``external`` the way back.
    """

    kind: str
    customer: str
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer: SessionM's JSON as *body*; not *found* means "no such customer"."""

    found: bool
    body: bytes
    fetched_at: float
    stamp: int


class Use(Enum):
    """What a cached answer is good for."""

    FRESH = "fresh"
    WHILE_REFRESHING = "while refreshing"
    IF_ERROR = "if error"
    NOTHING = "nothing"


# With which SessionM is waited for.
_WAITING = {Use.IF_ERROR, Use.NOTHING}


@dataclass(frozen=True)
class Ages:
    """Seconds an answer is fresh, and past that may be served while refreshing or on failure."""

    fresh: float
    while_refreshing: float
    if_error: float

    def fresh_for(self, entry: Entry) -> float:
        """Seconds for which *entry* is fresh after it was fetched.

        Up to a tenth less than *fresh*, another share for each entry, so that what was fetched
        together for one send does not run out together.
        """
        most = self.fresh if entry.found else min(UNKNOWN_MAX_AGE, self.fresh)
        return most * (1 - SPREAD * (entry.fetched_at * 997 % 1))

    def use(self, entry: Entry | None, now: float) -> Use:
        if entry is None:
            return Use.NOTHING
        # A clock that was set back makes nothing fresh for ever.
        age = abs(now - entry.fetched_at)
        if age <= self.fresh_for(entry):
            return Use.FRESH
        if not entry.found:
            return Use.NOTHING
        if age <= self.fresh + self.while_refreshing:
            return Use.WHILE_REFRESHING
        return Use.IF_ERROR if age <= self.fresh + self.if_error else Use.NOTHING

    @property
    def longest(self) -> float:
        return self.fresh + max(self.while_refreshing, self.if_error)


@dataclass(frozen=True)
class Served:
    """An answer for a lookup. *how*: ``hit``, ``stale`` or ``miss``; *fresh_for* seconds in all."""

    entry: Entry
    how: str
    fresh_for: float


class UnavailableError(Exception):
    """SessionM failed and nothing usable is cached; ``str()`` is a sentence for Braze."""


Fetch = Callable[[float], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was put to the cache.

    Attributes:
        entry: what was cached of it.
        use: what that is good for.
        flight: the fetch that is under way; ``None`` if none is needed, or none would help.
    """

    key: Key
    fetch: Fetch
    ages: Ages
    entry: Entry | None
    use: Use
    flight: Future[Entry] | None

    def get_going(self) -> None:
        """Let the fetch send its request before this thread does other things meanwhile.

        One interpreter for all threads: else they would come first.
        """
        if self.flight is not None and self.use in _WAITING:
            concurrent.futures.wait([self.flight], HEAD_START)

    def result(self, until: float) -> tuple[Entry, str]:
        """What was found, and how, at the latest when ``time.monotonic()`` is *until*.

        Raises:
            SessionMError: SessionM failed, or is known to be away.
            TimeoutError: it is late.
        """
        if self.entry and self.use is Use.FRESH:
            return self.entry, "hit"
        if self.entry and self.use is Use.WHILE_REFRESHING:
            return self.entry, "stale"
        if self.flight is None:
            raise SessionMError(Meaning.UNREACHABLE, "it has not answered for a while")
        return self.flight.result(max(0.0, until - time.monotonic())), "miss"


class Cache:
    """Answers of SessionM, for all processes that share a database.

    Args:
        database: where they are kept (not durably: all of it can be fetched again).
        stamps: the customers' stamps.
        flights: who asks SessionM for what.
        entries: most answers held in this process's memory.
        may_ask: whether SessionM is there to be asked for a kind of answer.
    """

    def __init__(
        self,
        database: Database,
        stamps: Stamps,
        flights: Flights,
        *,
        entries: int,
        may_ask: Callable[[str], bool] = lambda _kind: True,
    ) -> None:
        self._database = database
        self._stamps = stamps
        self._leases = flights
        self._may_ask = may_ask
        self._memory = _Memory(entries, MEMORY_BYTES)
        self._memory_lock = threading.Lock()
        self._flights: dict[Key, Future[Entry]] = {}
        self._flights_lock = threading.Lock()
        self._landed: list[_Landed] = []
        self._landed_lock = threading.Lock()
        self._keeper = ThreadPoolExecutor(1, "keeper")
        # One pool for each of SessionM's systems: one that hangs must not hold up the other.
        self._core = ThreadPoolExecutor(FETCHERS, "fetcher-core")
        self._connect = ThreadPoolExecutor(FETCHERS, "fetcher-connect")

    def get(self, key: Key, fetch: Fetch, ages: Ages, until: float) -> Served:
        """`ask` and its `answer` in one."""
        return self.answer(self.ask(key, fetch, ages), until)

    def ask(self, key: Key, fetch: Fetch, ages: Ages) -> "Asked":
        """Look for the answer to *key*, and let a fetch for it begin if one is needed.

        The table may hold it up for longer than a lookup has, unless the caller is `in_time`.

        Args:
            key: what is asked.
            fetch: asks SessionM, with a time-out in seconds.
            ages: how long an answer is good for what.
        """
        entry = self._known(key, ages)
        use = ages.use(entry, time.time())
        flight = None if use is Use.FRESH else self._join(key, fetch, ages)
        return Asked(key, fetch, ages, entry, use, flight)

    def answer(self, asked: "Asked", until: float) -> Served:
        """The answer to what was *asked*, at the latest when ``time.monotonic()`` is *until*.

        It is the customer's as they are now: what has changed them since `ask` is in it.

        Raises:
            UnavailableError: SessionM failed or is late, and nothing usable is cached.
        """
        while True:
            try:
                entry, how = asked.result(until)
            except (SessionMError, TimeoutError) as error:
                return self._instead(asked, error)
            except Exception as error:
                log.exception("lookup failed", extra={"action": "lookup_failed"})
                return self._instead(asked, error)
            stamp = self.stamp(asked.key)
            # Where nothing is heard of changes, what SessionM says now is the best there is.
            if entry.stamp == stamp or (stamp < 0 and how == "miss"):
                return Served(entry, how, asked.ages.fresh_for(entry))
            # The customer changed since: what came may be from before. Ask again.
            asked = self.ask(asked.key, asked.fetch, asked.ages)

    def start(self) -> None:
        """Begin to hear what other processes change."""
        self._stamps.start()

    def stamp(self, key: Key) -> int:
        """What changes whenever what is cached under *key* gets outdated."""
        return self._stamps.get(key.kind, key.customer)

    def stamp_reader(self, key: Key) -> Callable[[], int]:
        """The same as a function, for those who ask often."""
        return self._stamps.reader(key.kind, key.customer)

    def noted(self, kinds: Collection[str], customers: Collection[Customer]) -> dict[str, Entry]:
        """What was once kept of *customers* in one of *kinds*, outdated or not, by their keys.

        Raises:
            StoreUnavailableError: the table cannot be read.
        """
        keys = [customer.key for customer in customers]
        with self._database.read() as connection:
            found = _NOTED.rows(connection, kinds=list(kinds), customers=keys)
        return {customer: Entry(*rest) for customer, *rest in found}

    def last_known(self, key: Key) -> Entry | None:
        """What was last heard, however old; SessionM is not asked."""
        return self._known(key, Ages(float("inf"), 0, 0)) or self._last_resort(key)

    def change(self, kind: str, documents: Mapping[Customer, Mapping[str, Any] | None]) -> None:
        """These customers have changed: use no older answer of that *kind* any more.

        Where there is a document, it is SessionM's answer since, and is kept.
        """
        stamps = self._stamps.change_many(kind, [customer.key for customer in documents])
        now = time.time()
        self._keep(
            {
                Key(kind, customer.key): Entry(True, _encode(document), now, stamps[customer.key])
                for customer, document in documents.items()
                if document is not None
            }
        )

    def outdate_all(self) -> None:
        """Use nothing that is older than now: somebody's tags have changed, and not told whose."""
        self._stamps.change_all()

    def keep(self, key: Key, document: Mapping[str, Any]) -> None:
        """Keep what is known of a customer as it is now."""
        stamp = self._stamps.get(key.kind, key.customer)
        self._keep({key: Entry(True, _encode(document), time.time(), stamp)})

    def erase(self, customer: Customer) -> None:
        """Keep nothing about *customer*, nor what their other identifier is."""
        self.forget(customer)
        theirs = sa.and_(
            lookups.c.kind.in_(("profile", "external")),
            Holds(lookups.c.body, json.dumps(customer.id).encode()),
        )
        with self._database.write(patience=SEARCH_PATIENCE) as connection:
            connection.execute(
                lookups.delete().where(sa.or_(theirs, lookups.c.customer == customer.key))
            )
        self._database.scrub()

    def forget(self, customer: Customer) -> None:
        """Serve nothing older than now for *customer*, in any process."""
        for kind in ("tags", "offers", "profile"):
            self._stamps.change(kind, customer.key)
        answers = sa.and_(
            lookups.c.customer == customer.key, lookups.c.kind.in_(("tags", "offers"))
        )
        with self._database.write() as connection:
            connection.execute(lookups.delete().where(answers))

    def forget_before(self, then: float) -> int:
        """Drop a batch of what was fetched before *then*; returns how much it was."""
        name = (lookups.c.kind, lookups.c.customer, lookups.c.variant)
        is_old = lookups.c.fetched_at < then
        # What is being renewed at this moment is left alone, and waits for nobody here.
        old = sa.select(*name).where(is_old).limit(BATCH).with_for_update(skip_locked=True)
        drop = lookups.delete().where(is_old, sa.tuple_(*name).in_(old))
        with self._database.write(patience=SEARCH_PATIENCE) as connection:
            return connection.execute(drop).rowcount

    def close(self) -> None:
        for fetchers in (self._core, self._connect):
            fetchers.shutdown(cancel_futures=True)
        self._keeper.shutdown()
        self._database.close()
        self._stamps.close()

    def _known(self, key: Key, ages: Ages) -> Entry | None:
        """The latest cached answer of the customer as it is now, from memory or the table."""
        stamp = self._stamps.get(key.kind, key.customer)
        if stamp < 0:
            return None
        with self._memory_lock:
            entry: Entry | None = self._memory.get(key)
        if entry and entry.stamp != stamp:
            entry = None
        if entry and ages.use(entry, time.time()) is Use.FRESH:
            return entry
        # Another process may have fetched since.
        stored = self._stored(key, entry.fetched_at if entry else 0.0)
        if stored and stored.stamp == stamp:
            entry = stored
            with self._memory_lock:
                self._memory[key] = stored
        return entry

    def _last_resort(self, key: Key, known: Entry | None = None) -> Entry | None:
        """What memory holds or was *known*, though the customer may have changed, unheard."""
        with self._memory_lock:
            entry: Entry | None = self._memory.get(key) or known
        still = entry and entry.stamp == self._stamps.last(key.kind, key.customer)
        return entry if still else None

    def _stored(self, key: Key, later_than: float) -> Entry | None:
        try:
            with self._database.read() as connection:
                found = _STORED.rows(connection, **key._asdict(), later_than=later_than)
        except StoreUnavailableError as error:
            # Lookups go on from memory and from SessionM without the table.
            log.log(error.level, "cache not read: %s", error, extra={"action": "cache_unreadable"})
            return None
        return Entry(*found[0]) if found else None

    def _keep(self, answers: Mapping[Key, Entry]) -> None:
        self._remember(answers)
        self._store(answers)

    def _remember(self, answers: Mapping[Key, Entry]) -> None:
        with self._memory_lock:
            for key, entry in answers.items():
                self._memory[key] = entry

    def _store(self, answers: Mapping[Key, Entry]) -> None:
        if not answers:
            return
        try:
            with self._database.write() as connection:
                # On one machine it is our turn to write by now: who erases a customer first changes
                # the stamp, and when it is their turn deletes what was stored before.
                rows = [
                    {
                        **key._asdict(),
                        "found": entry.found,
                        "body": entry.body,
                        "fetched_at": entry.fetched_at,
                        "stamp": entry.stamp,
                    }
                    # In one order in all processes, so that no two wait for each other.
                    for key, entry in sorted(answers.items())
                    if entry.stamp < 0 or entry.stamp == self._stamps.last(key.kind, key.customer)
                ]
                if rows:
                    insert_many(connection, _KEEP, rows)
        except StoreUnavailableError as error:
            extra = {"action": "cache_unwritable"}
            log.log(error.level, "cache not written: %s", error, extra=extra)

    def _join(self, key: Key, fetch: Fetch, ages: Ages) -> Future[Entry] | None:
        """The fetch for *key* that is under way in this process, or a new one.

        ``None`` if SessionM is known to be away: nobody waits to find that out again.
        """
        with self._flights_lock:
            if flight := self._flights.get(key):
                return flight
            if not self._may_ask(key.kind):
                return None
            fetchers = self._connect if key.kind == "offers" else self._core
            flight = Future()
            flying = fetchers.submit(self._fly, flight, key, fetch, ages, time.monotonic())
            self._flights[key] = flight
        flying.add_done_callback(partial(_cancel, flight))
        flying.add_done_callback(_log_fault)
        return flight

    def _fly(
        self, flight: Future[Entry], key: Key, fetch: Fetch, ages: Ages, asked_at: float
    ) -> None:
        """Fetch, or wait for the process that does; if it dies the next one may.

        Who waits for *flight* has the answer before the table has it.
        """
        number = lock_number(hashed(*key))
        leased = False
        kept: Entry | None = None
        try:
            leased = self._lease(number, asked_at)
            entry = self._known(key, ages) if leased else None
            if entry is None or ages.use(entry, time.time()) is not Use.FRESH:
                entry = self._fetch(key, fetch)
                # What is from before a change is of no use to anybody else.
                if entry.stamp == self.stamp(key):
                    kept = entry
                    self._remember({key: kept})
        except BaseException as error:  # noqa: BLE001 - it goes to who waits
            land = partial(flight.set_exception, error)
        else:
            land = partial(flight.set_result, entry)
        if leased and kept is None:
            # Who waits may have to ask again at once.
            self._release(number)
        # Whoever comes after it has landed finds the answer in memory.
        with self._flights_lock:
            self._flights.pop(key, None)
        land()
        if kept is not None:
            self._store_soon(_Landed(key, kept, [number] if leased else []))

    def _store_soon(self, landed: "_Landed") -> None:
        with self._landed_lock:
            waiting = len(self._landed)
            if waiting < MOST_LANDED:
                self._landed.append(landed)
        if waiting == MOST_LANDED:
            # The table takes nothing at present; memory has it.
            self._release(*landed.lease)
        elif waiting % AT_ONCE == 0:
            # The others are taken along.
            try:
                self._keeper.submit(self._store_landed).add_done_callback(_log_fault)
            except RuntimeError:
                # Python ends, and begins nothing more in threads.
                self._store_landed()

    def _store_landed(self) -> None:
        time.sleep(TOGETHER)
        with self._landed_lock:
            some, self._landed = self._landed[:AT_ONCE], self._landed[AT_ONCE:]
        try:
            self._store({one.key: one.entry for one in some})
        finally:
            self._release(*chain.from_iterable(one.lease for one in some))

    def _lease(self, number: int, asked_at: float) -> bool:
        """Whether *number* is ours; if not, each process is for itself until the database is back.

        Raises:
            SessionMError: it was *asked* for too long ago, or another process has it for too long.
        """
        if time.monotonic() - asked_at > STALE_FLIGHT:
            raise SessionMError(Meaning.UNANSWERED, "too many lookups wait for SessionM")
        until = time.monotonic() + FETCH_TIMEOUT
        try:
            while not self._leases.try_acquire(number):
                if time.monotonic() > until:
                    raise SessionMError(Meaning.UNANSWERED, "no answer in time")
                time.sleep(self._leases.peek)
        except StoreUnavailableError:
            return False
        return True

    def _release(self, *numbers: int) -> None:
        try:
            self._leases.release(*numbers)
        except StoreUnavailableError as error:
            # It runs out by itself.
            extra = {"action": "cache_unwritable"}
            log.log(error.level, "leases not given back: %s", error, extra=extra)

    def _fetch(self, key: Key, fetch: Fetch) -> Entry:
        stamp = self.stamp(key)
        asked_at = time.time()
        try:
            return Entry(True, _encode(fetch(FETCH_TIMEOUT)), asked_at, stamp)
        except SessionMError as error:
            if error.meaning is Meaning.UNKNOWN_CUSTOMER:
                return Entry(False, b"{}", asked_at, stamp)
            log.warning(
                "lookup failed: %s",
                error,
                extra={"action": "lookup_failed", "kind": key.kind, "customer": key.customer},
            )
            raise

    def _instead(self, asked: Asked, error: Exception) -> Served:
        """What can be served although SessionM failed."""
        reason = str(error) or "SessionM did not answer in time"
        key, ages = asked.key, asked.ages
        entry = self._known(key, ages) or self._last_resort(key, asked.entry)
        if entry and ages.use(entry, time.time()) is not Use.NOTHING:
            return Served(entry, "stale", ages.fresh_for(entry))
        raise UnavailableError(reason) from error


# Made once: to put them together takes longer than to carry them out.
_ENTRY = [lookups.c[name] for name in Entry.__slots__]
_STORED = Prepared(
    sa.select(*_ENTRY).where(
        lookups.c.kind == sa.bindparam("kind"),
        lookups.c.customer == sa.bindparam("customer"),
        lookups.c.variant == sa.bindparam("variant"),
        lookups.c.fetched_at > sa.bindparam("later_than"),
    )
)
_NOTED = Prepared(
    sa.select(lookups.c.customer, *_ENTRY).where(
        lookups.c.kind.in_(sa.bindparam("kinds", expanding=True)),
        lookups.c.customer.in_(sa.bindparam("customers", expanding=True)),
    )
)


def _keeping() -> sa.Insert:
    statement = insert(lookups)
    names = ["kind", "customer", "variant"]
    others = {name: statement.excluded[name] for name in Entry.__slots__}
    return statement.on_conflict_do_update(index_elements=names, set_=others)


_KEEP = _keeping()


class _Memory(LRUCache[Key, Entry]):
    """Least recently used entries go first, by number and by bytes."""

    def __init__(self, entries: int, size: int) -> None:
        super().__init__(size, getsizeof=lambda entry: len(entry.body) + _OVERHEAD)
        self._entries = entries

    def __setitem__(self, key: Key, entry: Entry) -> None:
        if len(entry.body) + _OVERHEAD > self.maxsize:
            return
        super().__setitem__(key, entry)
        while len(self) > self._entries:
            self.popitem()


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class _Landed(NamedTuple):
    """An answer that those who waited have; a *lease*, if any, is held until the table has it."""

    key: Key
    entry: Entry
    lease: Sequence[int]


def _cancel(flight: Future[Entry], flown: Future[None]) -> None:
    if flown.cancelled():
        flight.cancel()


def _log_fault(done: Future[None]) -> None:
    """Nobody waits for it: tell what nobody expects there."""
    if not done.cancelled() and (error := done.exception()):
        log.error("lookup not kept", exc_info=error, extra={"action": "lookup_failed"})
