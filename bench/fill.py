"""Fill databases with the bridge's own methods and tables."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.services import environment
from bridge.application import build
from bridge.customer import Customer
from bridge.intake.payload import DEDUPE_DIGITS
from bridge.intake.rules import TagWrite
from bridge.lookups.cache import lookups
from bridge.lookups.customer import tags_key
from bridge.outbox.model import NewEvent, State, new_event_id
from bridge.outbox.schema import NUMBERS, STORED, WRITES, events, expiries, tallies, writes
from bridge.parts import Parts
from bridge.settings import load
from bridge.shared import MIGRATIONS_BESIDE
from bridge.storage.sqlite import SQLite, sqlite_path

BATCH = 5000
TAGS = {"vip": 0, "newsletter": 3}
TTL = 2592000


@contextmanager
def opened(folder: Path, sessionm: str) -> Iterator[Parts]:
    """Open the database in *folder* without starting any background work."""
    parts = build(load(environment(folder, sessionm), folder / "none"))
    try:
        yield parts
    finally:
        parts.close()


def _customer(number: int) -> Customer:
    """Return the customer with this number in wrk's scripts."""
    return Customer("user_id", f"customer-{number:07d}")


def add_events(parts: Parts, first: int, end: int) -> None:
    """Add waiting events, one for each of the customers *first* to *end*."""
    for start in range(first, end, BATCH):
        parts.store.add([_event(number) for number in range(start, min(end, start + BATCH))])


def mark_delivered(parts: Parts) -> None:
    """Mark all waiting events as delivered, in bulk: one by one takes minutes."""
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
        _recount(connection)


def add_lookups(parts: Parts, first: int, end: int) -> None:
    """Add cached tags, for each of the customers *first* to *end*."""
    path = sqlite_path(parts.settings.bridge_database_url.get_secret_value())
    database = SQLite(f"sqlite:///{path}.cache", MIGRATIONS_BESIDE, durable=False)
    body = json.dumps({"status": "ok", "tags": TAGS}, separators=(",", ":")).encode()
    for start in range(first, end, BATCH):
        keys = [tags_key(_customer(number)) for number in range(start, min(end, start + BATCH))]
        known = {"found": True, "body": body, "fetched_at": time.time()}
        rows = [{**key._asdict(), **known, "stamp": parts.cache.stamp(key)} for key in keys]
        with database.write() as connection:
            connection.execute(lookups.insert(), rows)
    database.close()


def _event(number: int) -> NewEvent:
    """Return a waiting event of the customer with this number."""
    now = time.time()
    key = _customer(number).key
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


def _recount(connection: sa.Connection) -> None:
    """Replace the tallies by counts of what is stored."""
    connection.execute(tallies.delete())
    # A discarded event without writes was rejected before.
    written = sa.exists().where(writes.c.event_id == events.c.id)
    accepted = sa.and_(
        events.c.state != State.REJECTED, sa.or_(events.c.state != State.DISCARDED, written)
    )
    for kind, column in (("campaign", events.c.campaign_id), ("canvas", events.c.canvas_id)):
        _count(connection, kind, events, [column], sa.and_(column.is_not(None), accepted))
    _count(connection, STORED, events, [])
    _count(connection, WRITES, writes, [])


def _count(
    connection: sa.Connection,
    kind: str,
    table: sa.Table,
    group: list[sa.Column[str]],
    where: sa.ColumnElement[bool] | None = None,
) -> None:
    """Count the rows of *table* that match *where*, by state and *group*."""
    last_at = sa.func.max(table.c.received_at if group else sa.literal(0.0))
    counted = sa.select(table.c.state, sa.func.count(), last_at, *group)
    counted = counted.group_by(table.c.state, *group)
    if where is not None:
        counted = counted.where(where)
    rows: dict[str, dict[str, Any]] = {}
    for state, number, last, *name in connection.execute(counted):
        row = rows.setdefault("".join(name), {**dict.fromkeys(NUMBERS, 0), "last_seen": 0.0})
        row[state] = number
        row["accepted"] += number if group else 0
        row["last_seen"] = max(row["last_seen"], last)
    if rows:
        connection.execute(
            tallies.insert(), [{"kind": kind, "id": name, **row} for name, row in rows.items()]
        )
