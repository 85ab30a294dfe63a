"""The composition root: builds the parts and the Flask application."""

import atexit
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Collection
from functools import partial
from types import FrameType
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from bridge import clock
from bridge.braze.client import Braze
from bridge.braze.triggers import TriggerDestination, TriggerPlan
from bridge.bulk.backlog import Backlog
from bridge.bulk.driver import JobDriver
from bridge.bulk.store import BatchStore
from bridge.bulk.upload import Uploads
from bridge.calls import FinishedCall
from bridge.customer import Customer
from bridge.intake.message import MessageRules
from bridge.intake.rules import Rules, read_rules
from bridge.liquid.snippets import TEMPLATES
from bridge.lookups.cache import Cache
from bridge.lookups.customer import Freshness, Lookups
from bridge.lookups.shape import OwnWrites
from bridge.ops import files, logs
from bridge.ops.alerts import Receiver
from bridge.ops.chronicle import Chronicle
from bridge.ops.health import look
from bridge.ops.incidents import as_json
from bridge.ops.operator import Operator
from bridge.ops.probe import Probe
from bridge.ops.telemetry import Telemetry
from bridge.ops.throttle import Throttle
from bridge.ops.watch import Watch, WatchLease
from bridge.outbox.accept import Acceptor
from bridge.outbox.clocks import correct_clock, forget_clock_reports
from bridge.outbox.delivery import Delivery, Intervals, Limits, Wakeups, new_wakeups
from bridge.outbox.events import Events
from bridge.outbox.extent import Extents
from bridge.outbox.model import Direction
from bridge.outbox.store import Store
from bridge.parts import Parts, parts_of
from bridge.sessionm.client import SessionM
from bridge.sessionm.tags import TagDestination
from bridge.settings import Settings, load
from bridge.shared import open_shared
from bridge.storage.database import StoreUnavailableError
from bridge.web import connections, routes

log = logging.getLogger(__name__)

# Seconds. Braze retries for up to a day: duplicates must be recognized that long.
LEAST_RETENTION = 86400


def create_app(
    settings: Settings | None = None,
    *,
    deliver: bool = True,
    rules: Rules | None = None,
    accepted: Wakeups | None = None,
    intervals: Intervals = Intervals(),  # noqa: B008 - it is frozen
) -> Flask:
    """Create the Flask application and its background threads.

    Args:
        settings: ``None`` reads the environment and `.env`.
        deliver: whether this process may deliver.
        rules: ``None`` reads the file that the settings name.
        accepted: set when an event was accepted, shared by all processes of this machine.
        intervals: of the delivery loops.

    Raises:
        SettingsError: a setting is wrong.
        RulesError: rules.toml is wrong.
        NewerSchemaError: the database belongs to a newer version.
    """
    settings = settings or load()
    logs.install(settings)
    app = Flask(__name__, static_folder=None, template_folder=TEMPLATES)
    build_parts = partial(build, settings, rules, accepted, intervals)
    app.extensions["bridge"] = build_parts()
    background = _Background(app, build_parts, deliver=deliver)
    app.extensions["bridge.start"] = background.start
    # Braze's test dialog shows the raw answer: an ellipsis must not appear as \u2026.
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.before_request(background.start)
    routes.install(app, settings)
    if hops := settings.bridge_trusted_proxies:
        # `bridge.web.auth` reads the client's address itself.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=0, x_proto=hops, x_host=hops
        )
    return app


class _Background:
    """The background threads of an application, started once in each process.

    They must not run in gunicorn's master process under ``--preload``: a fork copies locks, but no
    threads. So they start at once only in a process with a SIGTERM handler, which a server sets in
    its workers. Otherwise they start with the first request, with ASGI's lifespan, or after a fork.
    """

    def __init__(self, app: Flask, build_parts: Callable[[], Parts], *, deliver: bool) -> None:
        self._app = weakref.ref(app)
        self._build_parts = build_parts
        self._deliver = deliver
        self._lock = threading.Lock()
        self._is_running = False
        self._handles_sigterm = False
        # Parts of the parent process: a reference, so that the child does not close them.
        self._inherited: list[Parts] = []
        os.register_at_fork(after_in_child=self._renew)
        if callable(signal.getsignal(signal.SIGTERM)):
            self.start()

    def start(self) -> None:
        """Start the threads, unless they are running."""
        if not (self._is_running and self._handles_sigterm) and (app := self._app()):
            self._start_threads(app)
            if not self._handles_sigterm and threading.current_thread() is threading.main_thread():
                self._handles_sigterm = True
                # It also ends requests that wait for a delivery by another process.
                _begin_shutdown_on_sigterm(parts_of(app))

    def _start_threads(self, app: Flask) -> None:
        with self._lock:
            if self._is_running:
                return
            if self._inherited and parts_of(app) is self._inherited[-1]:
                app.extensions["bridge"] = self._build_parts()
            parts = parts_of(app)
            parts.start(deliver=self._deliver)
            atexit.register(parts.close)
            self._is_running = True

    def _renew(self) -> None:
        """Have new parts built in a child process: threads, locks and connections are the parent's.

        In a thread: a signal that comes before `os.fork` has returned is lost, as gunicorn's worker
        has no handler yet, and the master would wait for it until its ``graceful_timeout``.
        """
        if app := self._app():
            self._inherited.append(parts_of(app))
            self._lock = threading.Lock()
            self._is_running = self._handles_sigterm = False
            threading.Thread(target=self.start).start()


def _begin_shutdown_on_sigterm(parts: Parts) -> None:
    """Stop starting calls as soon as the server stops this process.

    The server waits for the requests in flight first, and some of them wait for deliveries.
    """
    server = signal.getsignal(signal.SIGTERM)
    if not callable(server):
        return

    def end(number: int, frame: FrameType | None) -> None:
        parts.begin_shutdown()
        server(number, frame)

    signal.signal(signal.SIGTERM, end)


def build(
    settings: Settings,
    rules: Rules | None = None,
    accepted: Wakeups | None = None,
    intervals: Intervals = Intervals(),  # noqa: B008 - it is frozen
    *,
    create: bool = True,
) -> Parts:
    """Build the parts; start no thread. Arguments: as for `create_app` and `open_shared`.

    Raises:
        NoDatabaseError, StoreUnavailableError: see `open_shared`.
        SettingsError: the database cannot be at the configured URL.
        RulesError: rules.toml is wrong.
        NewerSchemaError: the database belongs to a newer version.
    """
    if rules is None:
        rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
    shared = open_shared(settings, create=create)
    breakers = shared.breakers
    telemetry = Telemetry(shared.figures)

    def observe(call: FinishedCall) -> None:
        telemetry.count_call(call)
        now = clock.steady()
        breakers[call.system].record(call.error, now - call.seconds, now)

    sessionm = build_sessionm(settings, observe)
    store, events = Store(shared.outbox), Events(shared.outbox)
    try:
        correct_clock(store)
    except StoreUnavailableError:
        # The deliverer does this when the store is available again. Opening it has logged this.
        log.debug("the store's clock is not set yet")
    store_for_lookups = Store(shared.outbox_fast_fail)
    cache = Cache(
        shared.cache,
        shared.stamps,
        entries=settings.bridge_cache_entries,
        deadline=settings.bridge_lookup_deadline,
        may_call=lambda kind: breakers["connect" if kind == "offers" else "core"].may_call(
            clock.steady()
        ),
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
        lambda customer: _own_writes(store_for_lookups, customer),
        rules.braze_id,
        offers_on=settings.offers_on,
        profile_fields=settings.bridge_profile_fields,
        report=telemetry.count_unreadable,
    )
    wakeups = accepted or new_wakeups()
    messages = Store(shared.outbox, Direction.TO_BRAZE)
    braze = build_braze(settings, observe)
    batches = BatchStore(shared.outbox)
    public_url = settings.bridge_public_url
    backlog = Backlog(batches, settings.bridge_bulk_threshold if public_url else 0)
    jobs = JobDriver(batches, backlog, sessionm, public_url, outdate=lookups.outdate_tags)
    delivery = Delivery(
        store,
        TagDestination(sessionm, store, settings.bridge_max_attempts, lookups),
        Limits(
            rps=settings.bridge_sessionm_rps,
            concurrency=settings.bridge_delivery_concurrency,
        ),
        on_recorded=cache.own_writes_changed,
        clean=lambda: _clean(store, events, batches, cache, settings, freshness),
        count=telemetry.add,
        on_beat=lambda: _sample(store, telemetry),
        bulk=jobs,
        accepted=wakeups[Direction.TO_SESSIONM],
        intervals=intervals,
    )
    braze_delivery = None
    if braze is not None:
        braze_delivery = Delivery(
            messages,
            _triggers(settings, braze, messages, lookups),
            Limits(rps=settings.braze_rps, concurrency=settings.bridge_delivery_concurrency),
            count=lambda name, number: telemetry.add(_MESSAGE_COUNTS[name], number),
            accepted=wakeups[Direction.TO_BRAZE],
            intervals=intervals,
        )

    def wake(directions: Collection[Direction]) -> None:
        for direction in directions:
            wakeups[direction].set()

    acceptor = Acceptor(
        store,
        rules,
        queue_limit=settings.bridge_queue_limit,
        on_accepted=cache.own_writes_changed,
        message_rules=MessageRules(settings.braze_external_id, rules.may_broadcast),
        on_stored=wake,
        count=telemetry.count,
    )
    alert_url = settings.bridge_alert_url
    watch = Watch(
        WatchLease(shared.figures),
        look=lambda: _status(parts),
        receiver=Receiver(alert_url.get_secret_value(), settings.network) if alert_url else None,
        url=f"{public_url}/dashboard" if public_url else "",
        sample=lambda: telemetry.sample(connections=connections.count() / files.most_connections()),
    )
    parts = Parts(
        settings=settings,
        rules=rules,
        store=store,
        probe=Probe(store.ping),
        events=events,
        acceptor=acceptor,
        operator=Operator(
            store, events, acceptor, batches, cache.own_writes_changed, breakers.values()
        ),
        batches=batches,
        uploads=Uploads(batches, public_url),
        jobs=jobs,
        delivery=delivery,
        braze=braze,
        messages=messages,
        braze_delivery=braze_delivery,
        sessionm=sessionm,
        cache=cache,
        lookups=lookups,
        breakers=breakers,
        telemetry=telemetry,
        extents=Extents(shared.outbox),
        message_extents=Extents(shared.outbox, Direction.TO_BRAZE),
        chronicle=Chronicle(shared.figures),
        watch=watch,
        auth_failures=Throttle(),
    )
    return parts


def _status(parts: Parts) -> tuple[str, list[dict[str, Any]]]:
    """Return the status of `/health`, and the open incidents as JSON."""
    health, incidents = look(parts)
    return health["status"], [as_json(one) for one in incidents if one.until is None]


def build_sessionm(
    settings: Settings, observe: Callable[[FinishedCall], None] = lambda _call: None
) -> SessionM:
    """Return the client of both of SessionM's APIs."""
    auth = settings.sessionm_connect_auth
    return SessionM(
        core_url=settings.sessionm_core_url,
        core_key=settings.sessionm_core_key.get_secret_value(),
        core_secret=settings.sessionm_core_secret.get_secret_value(),
        connect_url=settings.sessionm_connect_url,
        connect_auth=auth.get_secret_value() if auth else "",
        retailer_id=settings.sessionm_retailer_id or "",
        variables=settings.network,
        observe=observe,
    )


def build_braze(
    settings: Settings, observe: Callable[[FinishedCall], None] = lambda _call: None
) -> Braze | None:
    """Return the client of Braze's REST API; ``None`` if it is not configured."""
    if settings.braze_rest_url is None or settings.braze_rest_key is None:
        return None
    key = settings.braze_rest_key.get_secret_value()
    return Braze(settings.braze_rest_url, key, variables=settings.network, observe=observe)


def _triggers(
    settings: Settings, braze: Braze, store: Store, lookups: Lookups
) -> TriggerDestination:
    resends = settings.braze_on_unknown == "resend"
    return TriggerDestination(
        braze,
        store,
        TriggerPlan(settings.bridge_trigger_max_age, resends),
        max_attempts=settings.bridge_max_attempts,
        canvas_properties=settings.braze_canvas_properties,
        outdate=lambda customers: lookups.outdate(customers, ("offers", "tags")),
        translate=lookups.other_id,
    )


# Counter of a delivery loop -> name of the counter for messages.
_MESSAGE_COUNTS = {
    "delivered": "messages_delivered",
    "dead": "messages_dead",
    "expired": "messages_expired",
    "writes_sent": "messages_sent",
}


def _own_writes(store: Store, customer: Customer) -> OwnWrites:
    """Return the queued tags of *customer*, and the known expiry times of tags."""
    try:
        queue = store.queue_of(customer.key)
        expires = store.expiries_of(customer.key, clock.now())
    except StoreUnavailableError as error:
        # SessionM's tags alone are better than no answer.
        extra = {"action": "own_writes_unreadable"}
        log.log(error.level, "own writes not read: %s", error, extra=extra)
        return OwnWrites()
    for write in queue:
        if write.ttl is not None:
            expires.update(dict.fromkeys(write.tags, write.expires_at))
    pending = dict.fromkeys(tag for write in queue for tag in write.tags)
    return OwnWrites(tuple(pending), expires)


def _sample(store: Store, telemetry: Telemetry) -> None:
    backlog = store.backlog()
    telemetry.sample(
        queued=backlog.queued,
        oldest_seconds=backlog.waits(clock.now()),
        dead_writes=backlog.dead,
    )


def _clean(
    store: Store,
    events: Events,
    batches: BatchStore,
    cache: Cache,
    settings: Settings,
    freshness: Freshness,
) -> None:
    """Delete old rows in small transactions, so that intake does not wait."""
    retention = max(settings.bridge_retention, LEAST_RETENTION)
    longest = max(freshness.tags, freshness.offers) + max(
        freshness.while_refreshing, freshness.if_error
    )
    try:
        before = clock.store().before
        # Expiry times are kept as long: a clock set forward by mistake must not delete them.
        while events.forget_before(before(retention), before(retention)):
            time.sleep(0.02)
        batches.forget_before(before(retention), before(LEAST_RETENTION))
        while cache.forget_before(before(max(longest, LEAST_RETENTION))):
            time.sleep(0.02)
        forget_clock_reports(store)
    except StoreUnavailableError as error:
        log.warning("old rows not deleted: %s", error, extra={"action": "not_cleaned"})
