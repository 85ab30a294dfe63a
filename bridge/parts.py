"""The parts of the service, put together here and nowhere else."""

import importlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from flask import Flask

from bridge.bell import Bell
from bridge.customer import Customer
from bridge.database import (
    Database,
    NewerSchemaError,
    SQLite,
    StoreUnavailableError,
    sqlite_path,
)
from bridge.failures import Failures
from bridge.intake.rules import Rules, read_rules
from bridge.locks import Flights
from bridge.lookups import cache as lookups_cache
from bridge.lookups import fleet
from bridge.lookups.cache import Cache
from bridge.lookups.customer import Freshness, Lookups
from bridge.lookups.shape import OwnWrites
from bridge.lookups.stamps import SharedStamps, Stamps
from bridge.outbox import schema as outbox_schema
from bridge.outbox.accept import Acceptor
from bridge.outbox.backlog import Held
from bridge.outbox.batch import Batches
from bridge.outbox.delivery import Delivery, Limits
from bridge.outbox.events import Events
from bridge.outbox.jobs import Jobs
from bridge.outbox.operator import Operator
from bridge.outbox.probe import Probe
from bridge.outbox.store import Store
from bridge.sessionm.breaker import Breakers
from bridge.sessionm.client import Call, SessionM
from bridge.settings import Settings, SettingsError
from bridge.telemetry import Telemetry
from bridge.telemetry import first_schema as figures_schema

log = logging.getLogger(__name__)

LEAST_RETENTION = 86400
# Where it shares a database with the outbox, its schema is numbered apart.
VERSIONS_BESIDE = "cache_schema_version"
# Of what is stored beside the outbox, in the order in which they came to be.
MIGRATIONS_BESIDE = (*lookups_cache.MIGRATIONS, figures_schema, fleet.create, fleet.begin_eras)


@dataclass(frozen=True)
class Forgotten:
    """How many events of a customer were erased, and under which identifiers."""

    events: int
    names: tuple[Customer, ...]


@dataclass(frozen=True)
class Parts:
    """Everything that `create_app` has put together."""

    settings: Settings
    rules: Rules
    store: Store
    probe: Probe
    events: Events
    acceptor: Acceptor
    operator: Operator
    batches: Batches
    delivery: Delivery
    sessionm: SessionM
    cache: Cache
    lookups: Lookups
    breakers: Breakers
    telemetry: Telemetry
    auth_failures: Failures

    def erase(self, customer: Customer) -> Forgotten:
        """Forget *customer* everywhere, by both identifiers if the bridge knows them."""
        waiting, done, erased = self.lookups.names([customer])[customer], [], 0
        while waiting:
            name = waiting.pop()
            told = self.operator.erase(name)
            erased += told.events
            done.append(name)
            waiting.extend(one for one in told.others if one not in {*done, *waiting})
        for name in done:
            self.cache.erase(name)
        return Forgotten(erased, tuple(done))

    def start(self, *, deliver: bool) -> None:
        """Begin to hear what other processes change, and to deliver if this one shall."""
        self.cache.start()
        if deliver:
            self.delivery.start()

    def close(self) -> None:
        """Let what is under way finish, and give everything back."""
        self.delivery.stop()
        self.telemetry.close()
        self.lookups.close()
        self.cache.close()
        self.sessionm.close()
        self.store.database.close()


def parts_of(app: Flask) -> Parts:
    """The parts of *app*."""
    parts: Parts = app.extensions["bridge"]
    return parts


def build(settings: Settings, rules: Rules | None = None, accepted: Bell | None = None) -> Parts:
    """The parts, connected and at rest.

    Args:
        settings: where everything is.
        rules: read from their file when ``None``.
        accepted: a bell of all processes that is to ring when something was accepted.

    Raises:
        SettingsError: the database cannot be where it is said to be.
        RulesError: rules.toml is wrong.
        NewerSchemaError: the database belongs to a newer version.
    """
    if rules is None:
        rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
    shared = _shared(settings)
    breakers = shared.breakers
    telemetry = Telemetry(shared.figures)

    def observe(call: Call) -> None:
        telemetry.called(call)
        breakers.saw(call.system, call.error, time.time() - call.seconds)

    sessionm = build_sessionm(settings, observe)
    store, events = Store(shared.outbox), Events(shared.outbox)
    waiting = Store(shared.glance)
    cache = Cache(
        shared.cache,
        shared.stamps,
        shared.flights,
        entries=settings.bridge_cache_entries,
        may_ask=lambda kind: breakers.allows("connect" if kind == "offers" else "core"),
    )
    freshness = Freshness(
        tags=settings.bridge_tags_max_age,
        offers=settings.bridge_offers_max_age,
        while_refreshing=settings.bridge_stale_while_revalidate,
        if_error=settings.bridge_stale_if_error,
        deadline=settings.bridge_lookup_deadline,
    )
    lookups = Lookups(
        sessionm,
        cache,
        freshness,
        lambda customer: _own_writes(waiting, customer),
        shared.own_stamps,
        rules.braze_id,
        offers_on=settings.offers_on,
    )
    bell = accepted or Bell()
    batches = Batches(
        Jobs(shared.outbox),
        Held(shared.outbox),
        sessionm,
        public_url=settings.bridge_public_url,
        backlog_threshold=settings.bridge_bulk_threshold,
        outdate=lookups.outdate_tags,
        record=lambda finished: delivery.record(list(finished)),
        nudge=bell.ring,
    )
    delivery = Delivery(
        store,
        sessionm,
        Limits(
            rps=settings.bridge_sessionm_rps,
            concurrency=settings.bridge_delivery_concurrency,
            max_tries=settings.bridge_max_attempts,
        ),
        begin_writes=lookups.begin_writes,
        end_writes=lookups.end_writes,
        on_recorded=lookups.own_writes_changed,
        clean=lambda: _clean(events, batches.jobs, cache, settings, freshness),
        count=telemetry.add,
        on_beat=lambda: _sample(store, telemetry),
        batches=batches,
        accepted=bell,
    )
    acceptor = Acceptor(
        store,
        rules,
        queue_limit=settings.bridge_queue_limit,
        on_accepted=lambda customer: lookups.own_writes_changed(customer.key),
        on_stored=bell.ring,
        count=telemetry.count,
    )
    return Parts(
        settings=settings,
        rules=rules,
        store=store,
        probe=Probe(store.ping),
        events=events,
        acceptor=acceptor,
        operator=Operator(store, events, acceptor, batches.jobs, lookups.own_writes_changed),
        batches=batches,
        delivery=delivery,
        sessionm=sessionm,
        cache=cache,
        lookups=lookups,
        breakers=breakers,
        telemetry=telemetry,
        auth_failures=Failures(),
    )


@dataclass(frozen=True)
class _Shared:
    """What processes have in common, on one machine or in a fleet.

    Attributes:
        outbox: what was accepted: nothing of it may be lost.
        glance: the same for lookups, which would rather go without than wait.
        cache: what may be lost, as it can be fetched again.
        figures: where the figures are added up; it migrates what stands beside the outbox.
        stamps: which of the cached answers are outdated.
        own_stamps: which of those that tell what the bridge is writing are.
        flights: who fetches what.
        breakers: whether SessionM is away.
    """

    outbox: Database
    glance: Database
    cache: Database
    figures: Database
    stamps: Stamps
    own_stamps: Stamps
    flights: Flights
    breakers: Breakers

    def close(self) -> None:
        self.cache.close()
        self.outbox.close()


def _shared(settings: Settings) -> _Shared:
    url = settings.bridge_database_url.get_secret_value()
    try:
        shared = _on_one_machine(url) if url.startswith("sqlite:") else _in_a_fleet(settings, url)
    except ValueError as error:
        raise SettingsError(f"BRIDGE_DATABASE_URL {error}") from None
    for one in (shared.outbox, shared.figures):
        try:
            one.migrate()
        except StoreUnavailableError as error:
            # Not the end: webhooks are answered 503 until the store is back.
            log.error(
                "%s cannot be used: %s", one.name, error, extra={"action": "store_unavailable"}
            )
        except NewerSchemaError:
            shared.close()
            raise
    return shared


def open_outbox(url: str) -> Database:
    """The outbox's database at *url*, without anything beside it.

    Raises:
        ValueError: *url* is none of a database of ours.
    """
    if url.startswith("sqlite:"):
        return SQLite(url, outbox_schema.MIGRATIONS, durable=True)
    if not url.startswith("postgres"):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    postgres = _postgres()
    session = postgres.Session(postgres.conninfo(url))
    database: Database = postgres.Postgres(url, outbox_schema.MIGRATIONS, session, durable=True)
    return database


def _on_one_machine(url: str) -> _Shared:
    path = sqlite_path(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stamps = SharedStamps(path.with_name(path.name + ".stamps"))
        # Apart from those of lookups: where many writes come in, these change all the time.
        own_stamps = SharedStamps(path.with_name(path.name + ".own-stamps"))
        breakers = Breakers(path.with_name(path.name + ".breakers"))
    except OSError as error:
        raise SettingsError(
            f"BRIDGE_DATABASE_URL: nothing can be written in {path.parent}: {error.strerror}"
        ) from None
    outbox = SQLite(url, outbox_schema.MIGRATIONS, durable=True)
    beside = SQLite(f"sqlite:///{path}.cache", MIGRATIONS_BESIDE, durable=False)
    return _Shared(
        outbox=outbox,
        glance=outbox,
        cache=beside,
        figures=beside,
        stamps=stamps,
        own_stamps=own_stamps,
        flights=beside.locks,
        breakers=breakers,
    )


def _in_a_fleet(settings: Settings, url: str) -> _Shared:
    postgres = _postgres()
    session = postgres.Session(postgres.conninfo(url))
    outbox = postgres.Postgres(url, outbox_schema.MIGRATIONS, session, durable=True)
    cache = postgres.Postgres(
        url,
        MIGRATIONS_BESIDE,
        session,
        versions=VERSIONS_BESIDE,
        durable=False,
        # Of the time that a lookup has, most is SessionM's.
        patience=settings.bridge_lookup_deadline / 3,
        hasty=True,
    )
    patient = outbox.also(MIGRATIONS_BESIDE, VERSIONS_BESIDE)
    return _Shared(
        outbox=outbox,
        glance=cache.also(outbox_schema.MIGRATIONS),
        cache=cache,
        figures=patient,
        stamps=fleet.FleetStamps(cache, session, patient.migrate),
        own_stamps=fleet.PassingStamps(cache, session),
        flights=fleet.FleetFlights(cache, session),
        # Files of their own would be all that a bridge has on disk: each process finds out.
        breakers=Breakers(None),
    )


def _postgres() -> ModuleType:
    try:
        return importlib.import_module("bridge.postgres")
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise SettingsError(
            "BRIDGE_DATABASE_URL: PostgreSQL needs psycopg: "
            "in the clone of the bridge, pip install '.[postgres]'"
        ) from None


def build_sessionm(settings: Settings, observe: Callable[[Call], None] | None = None) -> SessionM:
    """The client of both of SessionM's APIs."""
    auth = settings.sessionm_connect_auth
    return SessionM(
        core_url=settings.sessionm_core_url,
        core_key=settings.sessionm_core_key.get_secret_value(),
        core_secret=settings.sessionm_core_secret.get_secret_value(),
        connect_url=settings.sessionm_connect_url,
        connect_auth=auth.get_secret_value() if auth else "",
        retailer_id=settings.sessionm_retailer_id or "",
        observe=observe,
    )


def _own_writes(store: Store, customer: Customer) -> OwnWrites:
    """What waits for *customer*, and when its tags end as far as the bridge knows."""
    try:
        waiting = store.waiting(customer.key)
        expires = store.expiries_of(customer.key, time.time())
    except StoreUnavailableError as error:
        # SessionM's tags are worth more to a message than no answer at all.
        extra = {"action": "own_writes_unreadable"}
        log.log(error.level, "own writes not read: %s", error, extra=extra)
        return OwnWrites()
    for write in waiting:
        if write.ttl is not None:
            expires.update(dict.fromkeys(write.tags, write.expires_at))
    pending = dict.fromkeys(tag for write in waiting for tag in write.tags)
    return OwnWrites(tuple(pending), expires)


def _sample(store: Store, telemetry: Telemetry) -> None:
    backlog = store.backlog()
    telemetry.sample(
        queued=backlog.queued,
        oldest_seconds=backlog.waits(time.time()),
        dead_writes=backlog.dead,
    )


def _clean(
    events: Events, jobs: Jobs, cache: Cache, settings: Settings, freshness: Freshness
) -> None:
    """Forget what is older than it is kept, a little at a time so that intake never waits."""
    now = time.time()
    # Braze retries for up to a day: so long an event must be remembered to be a duplicate.
    kept = max(settings.bridge_retention, LEAST_RETENTION)
    longest = max(freshness.tags, freshness.offers) + max(
        freshness.while_refreshing, freshness.if_error
    )
    try:
        while events.forget_before(now - kept, now):
            time.sleep(0.02)
        jobs.forget_before(now - kept, now - LEAST_RETENTION)
        while cache.forget_before(now - max(longest, LEAST_RETENTION)):
            time.sleep(0.02)
    except StoreUnavailableError as error:
        log.warning("not cleaned: %s", error, extra={"action": "not_cleaned"})
