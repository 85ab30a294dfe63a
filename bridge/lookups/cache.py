"""Cached answers of SessionM: memory over a shared table, one fetch per key, stale rules.

An entry is used only while its stamp equals the customer's present stamp. An entry whose stamp
changed during the fetch is not used either, which closes the race between a lookup and a tag write
that is delivered at the same time.
"""

import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import sqlalchemy as sa
from cachetools import LRUCache

from bridge import clock
from bridge.customer import Customer
from bridge.lookups.stamps import OWN, Stamps, hashed
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.storage.database import Database, StoreUnavailableError
from bridge.storage.expressions import among, contains, insert
from bridge.storage.locks import lock_number
from bridge.storage.statements import Prepared

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


def create(connection: sa.Connection) -> None:
    """Create the tables as they are now."""
    schema.create_all(connection)


# Seconds that "no such customer" is fresh: SessionM may create the profile soon.
UNKNOWN_MAX_AGE = 10.0
# Share of the freshness by which entries differ.
SPREAD = 0.1
# Seconds. Longer than a lookup's deadline: the answer then serves the next lookup.
FETCH_TIMEOUT = 5.0
# Threads for each of SessionM's two systems.
FETCHERS = 64
# Entries deleted in one transaction.
DELETE_BATCH = 1000
# Seconds for a statement that deletes old entries, or those of a customer.
SEARCH_TIMEOUT = 60.0
# Seconds that a lookup pauses so that the fetching thread gets the GIL and sends its request.
HEAD_START = 0.002
# Seconds. Batch cache writes so that request threads get the GIL first: +12 % cold lookups a
# second at 64 connections.
STORE_DELAY = 0.005
# Entries in one transaction: it must end within the fleet's time-out of half a second.
STORE_BATCH = 32
# Entries. With this many waiting for the table, new ones stay in memory only.
STORE_BACKLOG = 1000
# Bytes of cached answers in a process.
MEMORY_BYTES = 256 * 1024 * 1024
# Bytes of an entry beside its body (measured): the objects, the key and two dictionary slots.
_ENTRY_OVERHEAD = 560


class CacheKey(NamedTuple):
    """The key of an answer.

    Attributes:
        kind: ``tags``, ``offers``, ``profile`` (the other identifier, and fields of the profile) or
            ``external`` (an external ID of a user ID); `OWN` for a stamp without an answer.
        customer: `Customer.key`.
        variant: of ``offers``, the culture, or a hash of a request in SessionM's own form; of
            ``external``, the external ID, which is personal data; otherwise "".
    """

    kind: str
    customer: str
    variant: str = ""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One answer.

    Attributes:
        found: whether SessionM knows the customer.
        body: SessionM's JSON.
        fetched_at: seconds since the epoch by the store's clock.
        stamp: the customer's stamp when the fetch began.
    """

    found: bool
    body: bytes
    fetched_at: float
    stamp: int


class Use(Enum):
    """What a cached answer may be used for, by its age."""

    FRESH = "fresh"
    WHILE_REFRESHING = "while refreshing"
    IF_ERROR = "if error"
    NOTHING = "nothing"


# With these, a lookup waits for SessionM.
_WAITING = {Use.IF_ERROR, Use.NOTHING}


@dataclass(frozen=True)
class Ages:
    """Limits of age, in seconds.

    Attributes:
        fresh: age up to which an answer is fresh.
        while_refreshing: seconds beyond *fresh* in which it may be served during a refresh.
        if_error: seconds beyond *fresh* in which it may be served if SessionM fails.
    """

    fresh: float
    while_refreshing: float
    if_error: float

    def fresh_for(self, entry: CacheEntry) -> float:
        """Return the seconds for which *entry* is fresh after it was fetched.

        The value varies by up to a tenth between entries, so that entries fetched together for one
        send do not expire together.
        """
        most = self.fresh if entry.found else min(UNKNOWN_MAX_AGE, self.fresh)
        return most * (1 - SPREAD * (entry.fetched_at * 997 % 1))

    def use(self, entry: CacheEntry | None, now: float) -> Use:
        if entry is None:
            return Use.NOTHING
        age = now - entry.fetched_at
        if age < -clock.TOLERANCE:
            # The clock was set back since the fetch, so the age is unknown.
            return Use.IF_ERROR if entry.found else Use.NOTHING
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
    """An answer for a lookup.

    Attributes:
        how: ``hit``, ``stale``, ``miss`` (fetched for this lookup) or ``collapsed`` (fetched for
            another lookup, for which this one waited).
        ages: limits of its age.
    """

    entry: CacheEntry
    how: str
    ages: Ages

    @property
    def fresh_until(self) -> float:
        """When the answer becomes stale, in seconds since the epoch."""
        return self.entry.fetched_at + self.ages.fresh_for(self.entry)


class UnavailableError(Exception):
    """SessionM failed and nothing usable is cached; ``str()`` is a sentence for Braze."""


Fetch = Callable[[float], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class PendingLookup:
    """A lookup in the cache that may wait for a fetch.

    Attributes:
        entry: the cached answer, if any.
        use: what *entry* may be used for.
        answered: the fetch in progress; ``None`` if the entry is fresh or SessionM is down.
        joined: whether another lookup started that fetch.
    """

    key: CacheKey
    fetch: Fetch
    ages: Ages
    entry: CacheEntry | None
    use: Use
    answered: "Future[Served] | None"
    joined: bool = False

    def let_fetch_start(self) -> None:
        """Give the fetching thread the GIL, so that it sends its request before this one works."""
        if self.answered is not None and self.use in _WAITING:
            concurrent.futures.wait([self.answered], HEAD_START)

    def result(self, until: float) -> Served:
        """Return the cached or fetched answer; wait until *until* (``time.monotonic()``) at most.

        Raises:
            SessionMError: SessionM failed, or is known to be down.
            TimeoutError: the fetch did not end in time.
        """
        if self.entry and self.use in {Use.FRESH, Use.WHILE_REFRESHING}:
            how = "hit" if self.use is Use.FRESH else "stale"
            return Served(self.entry, how, self.ages)
        if self.answered is None:
            raise SessionMError(Meaning.UNREACHABLE, "it has not answered for a while")
        served = self.answered.result(max(0.0, until - time.monotonic()))
        waited = self.joined and served.how == "miss"
        return replace(served, how="collapsed") if waited else served


class Cache:
    """Cached answers of SessionM, shared by all processes that use the database.

    Args:
        database: holds the table of entries. It need not be durable: entries can be fetched again.
            Its locks prevent two processes from fetching the same key.
        stamps: the customers' stamps.
        entries: the maximum number of entries in this process's memory.
        deadline: seconds that a fetch may wait for a thread; later its lookups have timed out.
        may_call: returns whether a kind of answer may be fetched now; true may reserve the probe.
    """

    def __init__(
        self,
        database: Database,
        stamps: Stamps,
        *,
        entries: int,
        deadline: float,
        may_call: Callable[[str], bool] = lambda _kind: True,
    ) -> None:
        self._database = database
        self._stamps = stamps
        self._locks = database.locks
        self._may_call = may_call
        self._deadline = deadline
        self._memory = _Memory(entries, MEMORY_BYTES)
        self._memory_lock = threading.Lock()
        self._fetches: dict[CacheKey, Future[Served]] = {}
        self._fetches_lock = threading.Lock()
        self._unstored: list[_Fetched] = []
        self._unstored_lock = threading.Lock()
        self._storer = ThreadPoolExecutor(1, "storer")
        # A pool for each of SessionM's systems: a hanging one must not delay the other.
        self._core = ThreadPoolExecutor(FETCHERS, "fetcher-core")
        self._connect = ThreadPoolExecutor(FETCHERS, "fetcher-connect")

    def begin(self, key: CacheKey, fetch: Fetch, ages: Ages) -> "PendingLookup":
        """Look *key* up, and start a fetch if one is needed.

        Reading the table is bounded only by the caller's `in_time`.

        Args:
            key: the key of the answer.
            fetch: asks SessionM; its argument is a time-out in seconds.
            ages: limits of age.
        """
        entry = self._known(key, ages)
        use = ages.use(entry, clock.now())
        if use is Use.FRESH:
            return PendingLookup(key, fetch, ages, entry, use, None)
        answered, joined = self._join_or_start(key, fetch, ages)
        return PendingLookup(key, fetch, ages, entry, use, answered, joined)

    def answer(self, pending: "PendingLookup", until: float) -> Served:
        """Wait for the answer until *until* (``time.monotonic()``) at most.

        A fetched or fresh answer includes every change of the customer that this process knows of.
        A stale answer after a failure may lack changes by other processes.

        Raises:
            UnavailableError: SessionM failed or is late, and nothing usable is cached.
        """
        while True:
            try:
                served = pending.result(until)
            except (SessionMError, TimeoutError) as error:
                return self._fallback(pending, error)
            except Exception as error:
                log.exception("lookup failed", extra={"action": "lookup_failed"})
                return self._fallback(pending, error)
            stamp = self.stamp(pending.key)
            # Without notifications of changes (stamp < 0), a new answer of SessionM has to do.
            if served.entry.stamp == stamp or (stamp < 0 and served.how in {"miss", "collapsed"}):
                return served
            # The customer has changed, and the answer may be older: ask again.
            pending = self.begin(pending.key, pending.fetch, pending.ages)

    def start(self) -> None:
        """Start to receive changes by other processes."""
        self._stamps.start()

    def stamp(self, key: CacheKey) -> int:
        """Return the stamp of *key*; entries with another stamp are outdated."""
        return self._stamps.get(key.kind, key.customer)

    def stamp_reader(self, key: CacheKey) -> Callable[[], int]:
        """Return a function that returns the stamp of *key*, faster than `stamp`."""
        return self._stamps.reader(key.kind, key.customer)

    def stored_for(
        self, kinds: Collection[str], customers: Collection[Customer]
    ) -> list[tuple[str, CacheEntry]]:
        """Read the entries of *customers*, of one of *kinds*, outdated or not.

        Returns:
            Pairs of `Customer.key` and entry; several for a customer with several variants. Of the
            entries that this process has not stored yet, only those without a variant, unless they
            are outdated.

        Raises:
            StoreUnavailableError: the table cannot be read.
        """
        keys = [customer.key for customer in customers]
        with self._database.read() as connection:
            found = _BY_CUSTOMER.rows(connection, kinds=list(kinds), customers=keys)
        in_memory = [
            (customer, entry)
            for customer in keys
            for kind in kinds
            if (entry := self._unconfirmed(CacheKey(kind, customer)))
        ]
        return [*((customer, CacheEntry(*rest)) for customer, *rest in found), *in_memory]

    def last_known(self, key: CacheKey) -> CacheEntry | None:
        """Return the cached entry of any age; do not ask SessionM."""
        return self._known(key, Ages(float("inf"), 0, 0)) or self._unconfirmed(key)

    def change(self, kind: str, documents: Mapping[Customer, Mapping[str, Any] | None]) -> None:
        """Make older entries of changed customers outdated, in all processes.

        Args:
            kind: of the entries.
            documents: for each customer, SessionM's answer after the change, which is cached, or
                ``None``.

        Raises:
            StoreUnavailableError: other processes cannot be notified.
        """
        stamps = self._stamps.change(kind, [customer.key for customer in documents])
        now = clock.now()
        for customer, document in documents.items():
            if document is not None:
                key = CacheKey(kind, customer.key)
                entry = CacheEntry(True, _encode(document), now, stamps[customer.key])
                self._remember(key, entry)
                # In the background: the deliverer does not wait for the table.
                self._store_soon(_Fetched(key, entry, []))

    def own_writes_changed(self, customer: str) -> None:
        """Note that the tags that the bridge is writing for *customer* (a key) have changed."""
        self._stamps.change(OWN, [customer])

    def outdate_all(self) -> None:
        """Make all entries outdated, since unknown customers have changed.

        Raises:
            StoreUnavailableError: other processes cannot be notified.
        """
        self._stamps.change_all()

    def put(self, key: CacheKey, document: Mapping[str, Any]) -> None:
        """Cache *document* under the present stamp."""
        entry = CacheEntry(True, _encode(document), clock.now(), self.stamp(key))
        self._remember(key, entry)
        self._store({key: entry})

    def erase(self, customer: Customer) -> None:
        """Delete all rows about *customer*, including the link to the other identifier.

        Copies in memory stay until they are evicted; no lookup returns them.

        Raises:
            StoreUnavailableError: the table cannot be written; call this again.
        """
        self.forget(customer)
        theirs = sa.and_(
            lookups.c.kind.in_(("profile", "external")),
            contains(lookups.c.body, json.dumps(customer.id).encode()),
        )
        with self._database.write(timeout=SEARCH_TIMEOUT) as connection:
            connection.execute(
                lookups.delete().where(sa.or_(theirs, lookups.c.customer == customer.key))
            )
        self._database.scrub()

    def forget(self, customer: Customer) -> None:
        """Make tags, offers and profile of *customer* outdated; delete the tags and offers.

        Raises:
            StoreUnavailableError: the table cannot be written; call this again.
        """
        for kind in ("tags", "offers", "profile"):
            self._stamps.change(kind, [customer.key])
        answers = sa.and_(
            lookups.c.customer == customer.key, lookups.c.kind.in_(("tags", "offers"))
        )
        with self._database.write() as connection:
            connection.execute(lookups.delete().where(answers))

    def forget_before(self, then: float) -> int:
        """Delete up to `DELETE_BATCH` entries fetched before *then*, and return their number.

        Raises:
            StoreUnavailableError: the table cannot be written.
        """
        name = (lookups.c.kind, lookups.c.customer, lookups.c.variant)
        is_old = lookups.c.fetched_at < then
        # Skip rows that another process is writing now.
        old = sa.select(*name).where(is_old).limit(DELETE_BATCH).with_for_update(skip_locked=True)
        drop = lookups.delete().where(is_old, sa.tuple_(*name).in_(old))
        with self._database.write(timeout=SEARCH_TIMEOUT) as connection:
            return connection.execute(drop).rowcount

    def close(self) -> None:
        for fetchers in (self._core, self._connect):
            fetchers.shutdown(cancel_futures=True)
        self._storer.shutdown()
        self._stamps.close()
        self._database.close()

    def _known(self, key: CacheKey, ages: Ages) -> CacheEntry | None:
        """Return the newest entry with the present stamp, from memory or the table."""
        stamp = self.stamp(key)
        if stamp < 0:
            return None
        with self._memory_lock:
            entry: CacheEntry | None = self._memory.get(key)
        if entry and entry.stamp != stamp:
            entry = None
        if entry and ages.use(entry, clock.now()) is Use.FRESH:
            return entry
        # Another process may have fetched a newer answer.
        stored = self._stored(key, entry.fetched_at if entry else 0.0)
        if stored and stored.stamp == stamp:
            entry = stored
            self._remember(key, stored)
        return entry

    def _unconfirmed(self, key: CacheKey, known: CacheEntry | None = None) -> CacheEntry | None:
        """Return the entry with the last known stamp, though changes may have been missed."""
        with self._memory_lock:
            entry: CacheEntry | None = self._memory.get(key) or known
        still = entry and entry.stamp == self._stamps.last(key.kind, key.customer)
        return entry if still else None

    def _stored(self, key: CacheKey, later_than: float) -> CacheEntry | None:
        try:
            with self._database.read() as connection:
                found = _STORED.rows(connection, **key._asdict(), later_than=later_than)
        except StoreUnavailableError as error:
            # Without the table, lookups use memory and SessionM.
            log.log(error.level, "cache not read: %s", error, extra={"action": "cache_unreadable"})
            return None
        return CacheEntry(*found[0]) if found else None

    def _remember(self, key: CacheKey, entry: CacheEntry) -> None:
        with self._memory_lock:
            self._memory[key] = entry

    def _store(self, answers: Mapping[CacheKey, CacheEntry]) -> None:
        try:
            with self._database.write() as connection:
                # Check stamps inside the transaction: on one machine it holds the writers' lock,
                # and `forget` changes the stamp before it waits for that lock to delete.
                rows = [
                    {**key._asdict(), **asdict(entry)}
                    # The same order in all processes prevents deadlocks.
                    for key, entry in sorted(answers.items())
                    if entry.stamp < 0 or entry.stamp == self._stamps.last(key.kind, key.customer)
                ]
                if rows:
                    _UPSERT.many(connection, rows)
        except StoreUnavailableError as error:
            extra = {"action": "cache_unwritable"}
            log.log(error.level, "cache not written: %s", error, extra=extra)

    def _join_or_start(
        self, key: CacheKey, fetch: Fetch, ages: Ages
    ) -> "tuple[Future[Served] | None, bool]":
        """Return this process's fetch for *key*, and whether another lookup started it.

        The fetch is ``None`` if SessionM is known to be down.
        """
        with self._fetches_lock:
            if running_fetch := self._fetches.get(key):
                return running_fetch, True
            if not self._may_call(key.kind):
                return None, False
            fetchers = self._connect if key.kind == "offers" else self._core
            answered: Future[Served] = Future()
            running = fetchers.submit(self._run, answered, key, fetch, ages, time.monotonic())
            self._fetches[key] = answered
        running.add_done_callback(partial(_cancel, answered))
        running.add_done_callback(_log_fault)
        return answered, False

    def _run(
        self, answered: "Future[Served]", key: CacheKey, fetch: Fetch, ages: Ages, asked_at: float
    ) -> None:
        """Fetch, or wait for another process's fetch of the same key.

        Waiting lookups get the answer before it is stored in the table.
        """
        number = lock_number(hashed(*key))
        locked = False
        cached: CacheEntry | None = None
        try:
            locked, waited = self._lock(number, asked_at)
            entry = self._known(key, ages) if locked else None
            if entry and ages.use(entry, clock.now()) is Use.FRESH:
                how = "collapsed" if waited else "hit"
            else:
                entry, how = self._fetch(key, fetch), "miss"
                # Do not cache an answer that may be older than a change.
                if entry.stamp == self.stamp(key):
                    cached = entry
                    self._remember(key, cached)
            served = Served(entry, how, ages)
        except BaseException as error:  # noqa: BLE001 - it goes to the lookups that wait
            finish = partial(answered.set_exception, error)
        else:
            finish = partial(answered.set_result, served)
        if locked and cached is None:
            # Release first: the waiting lookups may have to ask again at once.
            self._locks.release(number)
        # From here on, new lookups find the answer in memory.
        with self._fetches_lock:
            self._fetches.pop(key, None)
        finish()
        if cached is not None:
            self._store_soon(_Fetched(key, cached, [number] if locked else []))

    def _store_soon(self, fetched: "_Fetched") -> None:
        with self._unstored_lock:
            waiting = len(self._unstored)
            if waiting < STORE_BACKLOG:
                self._unstored.append(fetched)
        if waiting == STORE_BACKLOG:
            # The table cannot be written now; the answer stays in memory.
            self._locks.release(*fetched.locks)
        elif waiting % STORE_BATCH == 0:
            # One task stores STORE_BATCH entries.
            try:
                self._storer.submit(self._store_fetched).add_done_callback(_log_fault)
            except RuntimeError:
                # The interpreter is shutting down and accepts no more tasks.
                self._store_fetched()

    def _store_fetched(self) -> None:
        time.sleep(STORE_DELAY)
        with self._unstored_lock:
            some, self._unstored = self._unstored[:STORE_BATCH], self._unstored[STORE_BATCH:]
        try:
            self._store({one.key: one.entry for one in some})
        finally:
            self._locks.release(*chain.from_iterable(one.locks for one in some))

    def _lock(self, number: int, asked_at: float) -> tuple[bool, bool]:
        """Acquire lock *number*.

        Returns:
            Whether it was acquired (not if the database is unavailable: then each process fetches
            for itself), and whether another process held it before.

        Raises:
            SessionMError: the lookups have timed out: the fetch waited too long for a thread, or
                another process holds the lock for too long.
        """
        if time.monotonic() - asked_at > self._deadline:
            raise SessionMError(Meaning.UNANSWERED, "too many lookups wait for SessionM")
        until = time.monotonic() + FETCH_TIMEOUT
        waited = False
        try:
            while not self._locks.try_acquire(number):
                if time.monotonic() > until:
                    raise SessionMError(Meaning.UNANSWERED, "no answer in time")
                waited = True
                time.sleep(self._locks.poll_interval)
        except StoreUnavailableError:
            return False, waited
        return True, waited

    def _fetch(self, key: CacheKey, fetch: Fetch) -> CacheEntry:
        stamp = self.stamp(key)
        asked_at = clock.now()
        try:
            return CacheEntry(True, _encode(fetch(FETCH_TIMEOUT)), asked_at, stamp)
        except SessionMError as error:
            if error.meaning is Meaning.UNKNOWN_CUSTOMER:
                return CacheEntry(False, b"{}", asked_at, stamp)
            log.warning(
                "lookup failed: %s",
                error,
                extra={"action": "lookup_failed", "kind": key.kind, "customer": key.customer},
            )
            raise

    def _fallback(self, pending: PendingLookup, error: Exception) -> Served:
        """Return a stale answer after SessionM failed.

        Raises:
            UnavailableError: no usable answer is cached.
        """
        reason = str(error) or "SessionM did not answer in time"
        key, ages = pending.key, pending.ages
        entry = self._known(key, ages) or self._unconfirmed(key, pending.entry)
        if entry and ages.use(entry, clock.now()) is not Use.NOTHING:
            return Served(entry, "stale", ages)
        raise UnavailableError(reason) from error


# Built once: building a statement takes longer than executing it.
_ENTRY = [lookups.c[name] for name in CacheEntry.__slots__]
_STORED = Prepared(
    sa.select(*_ENTRY).where(
        lookups.c.kind == sa.bindparam("kind"),
        lookups.c.customer == sa.bindparam("customer"),
        lookups.c.variant == sa.bindparam("variant"),
        lookups.c.fetched_at > sa.bindparam("later_than"),
    )
)
_BY_CUSTOMER = Prepared(
    sa.select(lookups.c.customer, *_ENTRY).where(
        among(lookups.c.kind, "kinds"),
        among(lookups.c.customer, "customers"),
    )
)


_ADD = insert(lookups)
_UPSERT = Prepared(
    _ADD.on_conflict_do_update(
        index_elements=CacheKey._fields,
        set_={name: _ADD.excluded[name] for name in CacheEntry.__slots__},
    )
)


class _Memory(LRUCache[CacheKey, CacheEntry]):
    """An LRU cache that is limited both by number of entries and by bytes."""

    def __init__(self, entries: int, size: int) -> None:
        super().__init__(size, getsizeof=lambda entry: len(entry.body) + _ENTRY_OVERHEAD)
        self._entries = entries

    def __setitem__(self, key: CacheKey, entry: CacheEntry) -> None:
        if len(entry.body) + _ENTRY_OVERHEAD > self.maxsize:
            return
        super().__setitem__(key, entry)
        while len(self) > self._entries:
            self.popitem()


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class _Fetched(NamedTuple):
    """A fetched answer to store; *locks* (no or one number) are held until it is stored."""

    key: CacheKey
    entry: CacheEntry
    locks: Sequence[int]


def _cancel(answered: "Future[Served]", run: Future[None]) -> None:
    if run.cancelled():
        answered.cancel()


def _log_fault(done: Future[None]) -> None:
    """Log an unexpected exception of a background task, whose result is not read."""
    if not done.cancelled() and (error := done.exception()):
        log.error("lookup not stored", exc_info=error, extra={"action": "lookup_failed"})
