"""A database far away: few round trips for a webhook and for a group of deliveries."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from bridge import clock
from bridge.intake.rules import TagWrite
from bridge.outbox import store as statements
from bridge.outbox.model import CallResult, NewEvent, QueuedWrite, State, new_event_id
from bridge.outbox.store import Store
from bridge.shared import open_outbox
from tests.conftest import stored_state
from tests.postgres import Proxy

MOST = 3


@pytest.fixture
def store(proxy: Proxy) -> Iterator[Store]:
    """A store behind *proxy*, with a connection that has been used."""
    database = open_outbox(proxy.url)
    store = Store(database)
    store.take_over("me")
    for _ in range(7):
        # psycopg prepares what it has seen five times.
        finish(store, accept(store, 2))
    yield store
    database.close()


def accept(store: Store, number: int) -> list[NewEvent]:
    now = clock.now()
    new = [
        NewEvent(
            new_event_id(now),
            now,
            b"{}",
            "application/json",
            "test",
            "r1",
            customer=f"user_id:u{place}",
            campaign_id="summer",
            dedupe=new_event_id(now)[:24],
            writes=(TagWrite(("summer",), 3600),),
        )
        for place in range(number)
    ]
    assert store.add(new) == {}
    return new


def queues_of(store: Store, events: list[NewEvent]) -> dict[str, list[QueuedWrite]]:
    return {event.customer: store.queue_of(event.customer) for event in events if event.customer}


def finish(store: Store, events: list[NewEvent]) -> None:
    queues = queues_of(store, events)
    done = [
        CallResult(tuple(queue), State.DELIVERED, clock.now(), "delivered", 200)
        for queue in queues.values()
    ]
    assert store.record(done, "me")[State.DELIVERED] == len(events)


@pytest.mark.parametrize("number", [1, 64])
def test_webhooks_are_stored_in_three_round_trips(store: Store, proxy: Proxy, number: int) -> None:
    before = proxy.round_trips
    store.backlog()
    new = accept(store, number)
    assert proxy.round_trips - before <= MOST
    before = proxy.round_trips
    again = [event._replace(id=new_event_id(clock.now())) for event in new]
    assert len(store.add(again)) == number
    assert proxy.round_trips - before <= MOST


@pytest.mark.parametrize("number", [1, 16])
def test_a_group_of_deliveries_is_recorded_in_three_round_trips(
    store: Store, proxy: Proxy, number: int
) -> None:
    events = accept(store, number)
    queues = queues_of(store, events)
    before = proxy.round_trips
    failed, *delivered = queues.values()
    results = [
        CallResult(tuple(queue), State.DELIVERED, clock.now(), "delivered", 200)
        for queue in delivered
    ]
    later = CallResult(
        tuple(failed), State.QUEUED, clock.now(), "unreachable", next_at=clock.now(), error="away"
    )
    store.record([*results, later], "me")
    assert proxy.round_trips - before <= MOST
    assert stored_state(store, events[0].id) is State.QUEUED


def test_a_backlog_that_has_just_grown_is_read_by_customer(store: Store) -> None:
    """Without statistics of it, PostgreSQL expects one row, and chooses quadratic joins."""
    accept(store, 500)
    queues = vars(statements)["_DUE_QUEUES"]
    given = {"now": clock.now(), "busy": [], "most": 64, "most_writes": 1000}
    with store.database.read() as connection:
        sql, values = queues.compiled(connection).named(
            {**given, "in_direction": store.direction.value}
        )
        driver: Any = connection.connection.driver_connection
        plan = [step for (step,) in driver.execute(f"EXPLAIN ANALYZE {sql}", values)]
    loops = [int(number) for number in re.findall(r"loops=(\d+)", str(plan))]
    assert len(loops) > 2
    assert max(loops) == 1
