"""State that the processes of a service share: databases, stamps, locks, breakers."""

import importlib
import logging
from contextlib import closing
from dataclasses import dataclass
from types import ModuleType

from bridge import clock
from bridge.breaker import Breaker
from bridge.bulk import schema as bulk_schema
from bridge.lookups import cache as lookups_cache
from bridge.lookups import fleet
from bridge.lookups.stamps import SharedStamps, Stamps
from bridge.ops import chronicle, telemetry, watch
from bridge.outbox import schema as outbox_schema
from bridge.settings import Settings, SettingsError
from bridge.storage.cells import shared_cells
from bridge.storage.database import (
    Database,
    NewerSchemaError,
    StoreUnavailableError,
    UnsuitableDatabaseError,
)
from bridge.storage.private import make_folder
from bridge.storage.sqlite import SQLite, sqlite_path

log = logging.getLogger(__name__)

# SessionM's two systems and Braze. Each of them can be down while the others are up.
SYSTEMS = ("core", "connect", "braze")
# Table of the schema version of the cache, where it is in the same database as the outbox.
VERSIONS_BESIDE = "cache_schema_version"
# Migrations of the outbox. Their numbers are stored: only append here. The first one creates the
# tables as they are now, and a new database runs the others too: `add_column` does nothing there.
MIGRATIONS = (outbox_schema.create, bulk_schema.create)
# Seconds. A lookup may wait this long for another process that stores a fetched answer.
CACHE_BUSY_TIMEOUT = 0.3
# Migrations of the cache and the telemetry, as above.
MIGRATIONS_BESIDE = (
    lookups_cache.create,
    telemetry.create,
    fleet.create,
    chronicle.create,
    watch.create,
)


@dataclass(frozen=True)
class Shared:
    """State that the processes of a service share, on one machine or in a fleet.

    Attributes:
        outbox: accepted events; durable.
        outbox_fast_fail: the same tables for lookups, with the cache's short time-outs.
        cache: cached lookups, which may be lost.
        figures: telemetry, in the same database as *cache*.
        stamps: change when a customer's cached answers become outdated, or the bridge's own writes
            for the customer change.
        breakers: a circuit breaker for each of `SYSTEMS`. Each records every call, and only lookups
            ask it before they call.
        clock: the store's clock, for times that are stored.
    """

    outbox: Database
    outbox_fast_fail: Database
    cache: Database
    figures: Database
    stamps: Stamps
    breakers: dict[str, Breaker]
    clock: clock.StoreClock

    def close(self) -> None:
        self.cache.close()
        self.outbox.close()


def open_shared(settings: Settings, *, create: bool = True) -> Shared:
    """Open the shared state that *settings* name, and use its clock in this process.

    Args:
        settings: name the database.
        create: whether to create a missing database.

    Raises:
        NoDatabaseError: the database is missing, and is not created.
        StoreUnavailableError: the database, which is not to be created, cannot be read.
        SettingsError: the database cannot be at the configured URL.
        NewerSchemaError: the database belongs to a newer version.
        UnsuitableDatabaseError: the bridge cannot use the database, for example for its encoding.
    """
    url = settings.bridge_database_url.get_secret_value()
    try:
        if not create:
            with closing(open_outbox(url)) as outbox:
                outbox.check_exists()
        shared = _on_one_machine(url) if url.startswith("sqlite:") else _in_a_fleet(settings, url)
    except ValueError as error:
        raise SettingsError(f"BRIDGE_DATABASE_URL {error}") from None
    clock.use(shared.clock)
    for one in (shared.outbox, shared.figures):
        try:
            one.migrate()
            one.read_clock()
        except (NewerSchemaError, UnsuitableDatabaseError):
            shared.close()
            raise
        except StoreUnavailableError as error:
            # The service starts: webhooks are answered with 503 until the store is available.
            log.error(
                "%s cannot be used: %s", one.name, error, extra={"action": "store_unavailable"}
            )
    return shared


def open_outbox(url: str) -> Database:
    """Return the outbox's database at *url*, without the cache.

    Raises:
        ValueError: *url* is not a URL of SQLite or PostgreSQL.
    """
    if url.startswith("sqlite:"):
        return SQLite(url, MIGRATIONS, durable=True)
    if not url.startswith("postgres"):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    postgres = _postgres()
    session = postgres.open_session(url)
    database: Database = postgres.Postgres(MIGRATIONS, session, durable=True)
    return database


def _on_one_machine(url: str) -> Shared:
    path = sqlite_path(url)
    try:
        make_folder(path.parent)
        stamps = SharedStamps(path.with_name(path.name + ".stamps"))
        numbers = shared_cells(
            path.with_name(path.name + ".breakers"), [0.0] * (Breaker.CELLS * len(SYSTEMS))
        )
        breakers = {
            system: Breaker(numbers[Breaker.CELLS * place : Breaker.CELLS * (place + 1)])
            for place, system in enumerate(SYSTEMS)
        }
        machine_clock = clock.MachineClock(
            shared_cells(path.with_name(path.name + ".clock"), clock.MachineClock.initial())
        )
    except OSError as error:
        raise SettingsError(
            f"BRIDGE_DATABASE_URL: nothing can be written in {path.parent}: {error.strerror}"
        ) from None
    outbox = SQLite(url, MIGRATIONS, durable=True)
    beside = SQLite(
        f"sqlite:///{path}.cache", MIGRATIONS_BESIDE, durable=False, busy_timeout=CACHE_BUSY_TIMEOUT
    )
    return Shared(
        outbox=outbox,
        outbox_fast_fail=outbox,
        cache=beside,
        figures=beside,
        stamps=stamps,
        breakers=breakers,
        clock=machine_clock,
    )


def _in_a_fleet(settings: Settings, url: str) -> Shared:
    postgres = _postgres()
    session = postgres.open_session(url)
    outbox = postgres.Postgres(MIGRATIONS, session, durable=True)
    cache = postgres.Postgres(
        MIGRATIONS_BESIDE,
        session,
        versions=VERSIONS_BESIDE,
        durable=False,
        # SessionM needs most of a lookup's deadline.
        timeout=settings.bridge_lookup_deadline / 3,
        fail_fast=True,
    )
    figures = outbox.with_schema(MIGRATIONS_BESIDE, VERSIONS_BESIDE)
    return Shared(
        outbox=outbox,
        outbox_fast_fail=cache.with_schema(MIGRATIONS),
        cache=cache,
        figures=figures,
        stamps=fleet.FleetStamps(cache, session, figures.migrate),
        # Not shared: a bridge of a fleet has no files, so each process has its own breakers.
        breakers={system: Breaker() for system in SYSTEMS},
        clock=session.clock,
    )


def _postgres() -> ModuleType:
    try:
        return importlib.import_module("bridge.storage.postgres")
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise SettingsError(
            "BRIDGE_DATABASE_URL: PostgreSQL needs psycopg: "
            "in the clone of the bridge, pip install '.[postgres]'"
        ) from None
