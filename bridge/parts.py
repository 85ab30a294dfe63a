"""The parts of the service, put together here and nowhere else."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask

from bridge.customer import Customer
from bridge.database import Database, StoreUnavailableError, sqlite_path
from bridge.failures import Failures
from bridge.intake.rules import Rules, read_rules
from bridge.lookups import cache as lookups_cache
from bridge.lookups.cache import Cache
from bridge.lookups.customer import Freshness, Lookups
from bridge.lookups.shape import OwnWrites
from bridge.lookups.stamps import Stamps
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
# Of what is stored beside the outbox, in the order in which they came to be.
MIGRATIONS_BESIDE = (*lookups_cache.MIGRATIONS, figures_schema)


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
        waiting, done, erased = self.lookups.names(customer), [], 0
        while waiting:
            name = waiting.pop()
            told = self.operator.erase(name)
            erased += told.events
            done.append(name)
            waiting.extend(one for one in told.others if one not in {*done, *waiting})
        for name in done:
            self.cache.erase(name)
        return Forgotten(erased, tuple(done))

    def close(self) -> None:
        """Let what is under way finish, and give everything back."""
        self.delivery.stop()
        self.telemetry.close()
        self.cache.close()
        self.sessionm.close()
        self.store.database.close()


def parts_of(app: Flask) -> Parts:
    """The parts of *app*."""
    parts: Parts = app.extensions["bridge"]
    return parts


def build(settings: Settings, rules: Rules | None = None) -> Parts:
    """The parts, connected and at rest; *rules* are read from their file when ``None``.

    Raises:
        SettingsError: the database cannot be where it is said to be.
        RulesError: rules.toml is wrong.
        NewerSchemaError: the database belongs to a newer version.
    """
    if rules is None:
        rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
    database, cache_database, stamps, own_stamps, breakers = _databases(settings)
    telemetry = Telemetry(cache_database)

    def observe(call: Call) -> None:
        telemetry.called(call)
        breakers.saw(call.system, call.error, time.time() - call.seconds)

    sessionm = build_sessionm(settings, observe)
    store, events = Store(database), Events(database)
    cache = Cache(
        cache_database,
        stamps,
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
        lambda customer: _own_writes(store, customer),
        own_stamps,
        rules.braze_id,
        offers_on=settings.offers_on,
    )
    batches = Batches(
        Jobs(database),
        Held(database),
        sessionm,
        public_url=settings.bridge_public_url,
        backlog_threshold=settings.bridge_bulk_threshold,
        outdate=lookups.outdate_tags,
        record=lambda finished: delivery.record(list(finished)),
        nudge=lambda: delivery.nudge(None),
    )
    delivery = Delivery(
        store,
        sessionm,
        Limits(
            rps=settings.bridge_sessionm_rps,
            concurrency=settings.bridge_delivery_concurrency,
            max_tries=settings.bridge_max_attempts,
        ),
        on_write=lookups.tag_write,
        on_recorded=lookups.own_writes_changed,
        clean=lambda: _clean(events, batches.jobs, cache, settings, freshness),
        count=telemetry.add,
        on_beat=lambda: _sample(store, telemetry),
        batches=batches,
    )

    def accepted(customer: Customer) -> None:
        lookups.own_writes_changed(customer.key)
        delivery.nudge()

    acceptor = Acceptor(
        store,
        rules,
        queue_limit=settings.bridge_queue_limit,
        on_accepted=accepted,
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


def _databases(settings: Settings) -> tuple[Database, Database, Stamps, Stamps, Breakers]:
    """The outbox, and beside it what may be lost: cache and figures, stamps, breakers."""
    url = settings.bridge_database_url.get_secret_value()
    if not url.startswith("sqlite:"):
        raise SettingsError(
            "BRIDGE_DATABASE_URL: this version stores in SQLite only; "
            "for example BRIDGE_DATABASE_URL=sqlite:///var/bridge.db"
        )
    try:
        path = sqlite_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        stamps = Stamps(path.with_name(path.name + ".stamps"))
        # Apart from those of lookups: where many writes come in, these change all the time.
        own_stamps = Stamps(path.with_name(path.name + ".own-stamps"))
        breakers = Breakers(path.with_name(path.name + ".breakers"))
    except ValueError as error:
        raise SettingsError(f"BRIDGE_DATABASE_URL {error}") from None
    except OSError as error:
        raise SettingsError(
            f"BRIDGE_DATABASE_URL: nothing can be written in {path.parent}: {error.strerror}"
        ) from None
    database = Database(url, outbox_schema.MIGRATIONS, durable=True)
    beside = Database(f"sqlite:///{path}.cache", MIGRATIONS_BESIDE, durable=False)
    for one in (database, beside):
        try:
            one.migrate()
        except StoreUnavailableError as error:
            # Not the end: webhooks are answered 503 until the store is back.
            log.error(
                "%s cannot be used: %s", one.path, error, extra={"action": "store_unavailable"}
            )
    return database, beside, stamps, own_stamps, breakers


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
        log.warning("own writes not read: %s", error, extra={"action": "own_writes_unreadable"})
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
        cache.forget_before(now - max(longest, LEAST_RETENTION))
    except StoreUnavailableError as error:
        log.warning("not cleaned: %s", error, extra={"action": "not_cleaned"})
