"""What is counted along is what is there, whatever happens to events."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.customer import Customer
from bridge.intake.rules import TagWrite
from bridge.outbox.events import Events
from bridge.outbox.model import CallResult, NewEvent, State, new_event_id
from bridge.outbox.schema import create
from bridge.outbox.search import Filter
from bridge.outbox.store import Store
from bridge.outbox.tallies import CampaignFigures
from bridge.storage.database import Database
from bridge.storage.sqlite import SQLite

CUSTOMERS = [f"user_id:u{number}" for number in range(4)]
NOW = time.time()


def event(chance: random.Random, *, at: float = NOW, **more: object) -> NewEvent:
    rejected = chance.random() < 0.2
    fields = {
        "id": new_event_id(at),
        "received_at": at,
        "body": b"u1" if rejected else b"{}",
        "content_type": "application/json",
        "key_name": "k",
        "request_id": "r",
        "customer": chance.choice([*CUSTOMERS, None] if rejected else CUSTOMERS),
        "campaign_id": chance.choice(["summer", "winter", None]),
        "canvas_id": chance.choice(["journey", None]),
        "dedupe": chance.choice([None, f"d{chance.randrange(20)}"]),
        "state": State.REJECTED if rejected else State.QUEUED,
        "reason": "no" if rejected else "",
        "writes": () if rejected else (TagWrite(("t",), 60),) * chance.choice([1, 2]),
    }
    return NewEvent(**{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = SQLite(f"sqlite:///{tmp_path}/bridge.db", (create,), durable=True)
    yield database
    database.close()


def counted(database: Database, table: str) -> dict[str, int]:
    with database.read() as connection:
        rows = connection.exec_driver_sql(f"SELECT state, count(*) FROM {table} GROUP BY state")  # noqa: S608
        return dict(rows.all())


def ids(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT id FROM events").scalars())


def finish(chance: random.Random, store: Store) -> None:
    waiting = [w for customer in CUSTOMERS for w in store.queue_of(customer)[:2]]
    states = [State.DELIVERED, State.DEAD, State.QUEUED, State.EXPIRED]
    results = [
        CallResult((w,), chance.choice(states), NOW, "outcome", error=chance.choice(["", "why"]))
        for w in waiting
        if chance.random() < 0.7
    ]
    if results:
        store.record(results)


def step(chance: random.Random, store: Store, events: Events) -> None:
    known = ids(store.database)
    some = chance.sample(known, min(len(known), 5))
    match chance.randrange(9):
        case 0 | 1 | 2:
            store.add([event(chance) for _ in range(chance.randrange(1, 8))])
        case 3 | 4:
            finish(chance, store)
        case 5:
            events.requeue(some, NOW)
        case 6:
            events.discard(some, NOW)
        case 7:
            events.erase(Customer.from_key(chance.choice(CUSTOMERS)))
        case 8:
            for found in (events.one(one) for one in some):
                if found and found.state is State.REJECTED:
                    events.accept_rejected(
                        event(
                            chance,
                            id=found.id,
                            state=State.QUEUED,
                            customer=chance.choice(CUSTOMERS),
                            campaign_id="summer",
                        )
                    )


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_what_is_stored(database: Database, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    store, events = Store(database), Events(database)
    for _ in range(80):
        step(chance, store, events)
        assert {s: n for s, n in events.counts().items() if n} == counted(database, "events")
        stored = counted(database, "writes")
        backlog = store.backlog()
        assert (backlog.queued, backlog.dead) == (stored.get("queued", 0), stored.get("dead", 0))
        for one in events.campaigns():
            ends = one.pending + one.delivered + one.dead + one.expired + one.discarded
            assert one.accepted == ends
            assert one.rejected == events.count(Filter(campaign=one.id, state=State.REJECTED))
    assert len(events.campaigns()) == 3


def figures(events: Events) -> dict[str, CampaignFigures]:
    return {one.id: one for one in events.campaigns()}


def test_a_campaign_keeps_what_was_delivered_when_events_are_forgotten(database: Database) -> None:
    chance = random.Random(1)  # noqa: S311
    store, events = Store(database), Events(database)
    then = NOW - 100_000
    plain = {"state": State.QUEUED, "canvas_id": None, "customer": CUSTOMERS[0], "dedupe": None}
    writes = (TagWrite(("t",), 60),)
    store.add(
        [event(chance, at=then, campaign_id="summer", writes=writes, **plain) for _ in range(3)]
    )
    delivered, dead, _waits = store.queue_of(CUSTOMERS[0])
    store.record([CallResult((delivered,), State.DELIVERED, then, "delivered")])
    store.record([CallResult((dead,), State.DEAD, then, "refused")])
    before = figures(events)["summer"]
    assert (before.accepted, before.pending, before.delivered, before.dead) == (3, 1, 1, 1)
    assert before.last_seen == then
    while events.forget_before(NOW - 50_000, NOW):
        pass
    assert counted(database, "events") == {"queued": 1, "dead": 1}
    assert figures(events)["summer"] == before
    assert events.counts()[State.DELIVERED] == 0
    events.erase(Customer.from_key(CUSTOMERS[0]))
    after = figures(events)["summer"]
    assert (after.accepted, after.pending, after.dead, after.discarded) == (3, 0, 0, 2)


def test_the_campaign_that_was_seen_last_comes_first(database: Database) -> None:
    chance = random.Random(1)  # noqa: S311
    store, events = Store(database), Events(database)
    for number, campaign in enumerate(["a", "b", "c", "a"]):
        writes = (TagWrite(("t",), 60),)
        more = {"state": State.QUEUED, "customer": CUSTOMERS[0], "dedupe": None, "writes": writes}
        store.add([event(chance, at=NOW + number, campaign_id=campaign, canvas_id=None, **more)])
    assert [one.id for one in events.campaigns(2, order="seen")] == ["a", "c"]
