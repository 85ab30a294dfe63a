"""Stores with much in them, filled by the bridge's own methods and tables."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.services import environment
from bridge.customer import Customer
from bridge.database import SQLite, sqlite_path
from bridge.intake.payload import DEDUPE_DIGITS
from bridge.intake.rules import TagWrite
from bridge.lookups.cache import lookups
from bridge.lookups.customer import tags_key
from bridge.outbox.schema import State, events, expiries, recount, writes
from bridge.outbox.store import NewEvent, new_event_id
from bridge.parts import MIGRATIONS_BESIDE, Parts, build
from bridge.settings import load

BATCH = 5000
TAGS = {"vip": 0, "newsletter": 3}
TTL = 2592000


@contextmanager
def opened(folder: Path, sessionm: str) -> Iterator[Parts]:
    """The parts of a bridge on the store in *folder*, at rest."""
    parts = build(load(environment(folder, sessionm), folder / "none"))
    try:
        yield parts
    finally:
        parts.close()


def customer(number: int) -> Customer:
    """The one whom wrk asks for by that number."""
    return Customer("user_id", f"customer-{number:07d}")


def add_events(parts: Parts, first: int, end: int) -> None:
    """Events that wait, one for each customer of these numbers."""
    for start in range(first, end, BATCH):
        parts.store.add([event(number) for number in range(start, min(end, start + BATCH))])


def mark_delivered(parts: Parts) -> None:
    """Let all that waits be delivered; one by one, as delivery does it, would take minutes."""
    now = time.time()
    done = {"state": State.DELIVERED.value, "done_at": now}
    with parts.store.database.write() as connection:
        waited = writes.c.state == State.QUEUED.value
        connection.execute(
            expiries.insert()
            .prefix_with("OR IGNORE")
            .from_select(
                ["customer", "tag", "expires_at"],
                writes.select()
                .with_only_columns(
                    writes.c.customer, writes.c.event_id, writes.c.accepted_at + writes.c.ttl
                )
                .where(waited),
            )
        )
        connection.execute(writes.update().where(waited).values(attempts=1, **done))
        connection.execute(
            events.update().where(events.c.state == State.QUEUED.value).values(**done)
        )
        recount(connection)


def add_lookups(parts: Parts, first: int, end: int) -> None:
    """Cached tags, for each customer of these numbers; the bridge keeps one at a time."""
    path = sqlite_path(parts.settings.bridge_database_url.get_secret_value())
    database = SQLite(f"sqlite:///{path}.cache", MIGRATIONS_BESIDE, durable=False)
    body = json.dumps({"status": "ok", "tags": TAGS}, separators=(",", ":")).encode()
    for start in range(first, end, BATCH):
        keys = [tags_key(customer(number)) for number in range(start, min(end, start + BATCH))]
        known = {"found": True, "body": body, "fetched_at": time.time()}
        rows = [{**key._asdict(), **known, "stamp": parts.cache.stamp(key)} for key in keys]
        with database.write() as connection:
            connection.execute(lookups.insert(), rows)
    database.close()


def event(number: int) -> NewEvent:
    """One that waits, of the customer of that number."""
    now = time.time()
    key = customer(number).key
    body = {
        "braze_campaign_id": "0d2f6f5e-summer",
        "user_id": f"customer-{number:07d}",
        "dispatch_id": f"fill-{number}",
    }
    return NewEvent(
        id=new_event_id(now),
        received_at=now,
        body=json.dumps(body).encode(),
        content_type="application/json",
        key_name="bench",
        request_id=f"fill-{number}",
        customer=key,
        campaign_id="0d2f6f5e-summer",
        dedupe=f"fill-{number}".rjust(DEDUPE_DIGITS, "0"),
        writes=(TagWrite(("braze_campaign_0d2f6f5e-summer",), TTL),),
    )
