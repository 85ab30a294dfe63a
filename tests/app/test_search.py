"""Events are found by any filter, a page at a time, without looking at all that is stored."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bridge.intake.message import Send
from bridge.intake.rules import TagWrite
from bridge.outbox import search
from bridge.outbox.events import Events
from bridge.outbox.model import CallResult, Direction, NewEvent, State, new_event_id
from bridge.outbox.schema import create
from bridge.outbox.search import NOBODY, Filter
from bridge.outbox.store import Store
from bridge.storage.database import Database
from bridge.storage.sqlite import SQLite

NOW = time.time()
MADE: dict[State, tuple[int, str]] = {
    # Of a hundred: so many, with that reason.
    State.DELIVERED: (90, ""),
    State.DEAD: (4, "HTTP 422: VALIDATION the tag is bad"),
    State.QUEUED: (3, "HTTP 503"),
    State.REJECTED: (3, "No customer: 100% blank."),
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = SQLite(f"sqlite:///{tmp_path}/bridge.db", (create,), durable=False)
    yield database
    database.close()


def fill(database: Database, number: int) -> None:
    """Store so many events, one a second, the last of them now."""
    store = Store(database)
    states = [state for state, (share, _reason) in MADE.items() for _ in range(share)]
    # 37 and 100 have no common factor: states and campaigns come in all combinations.
    kinds = [(states[n * 37 % 100], n) for n in range(number)]
    for batch in _batches(kinds, 500):
        new = [_event(state, n, NOW - number + n) for state, n in batch]
        store.add([*new, *(_message_to_two(NOW - number + n) for _, n in batch if n % 10 == 0)])
        for state in (State.DELIVERED, State.DEAD, State.QUEUED):
            customers = {e.customer for e, (s, _) in zip(new, batch, strict=True) if s is state}
            ids = {e.id for e, (s, _) in zip(new, batch, strict=True) if s is state}
            writes = [w for c in customers for w in store.queue_of(c or "") if w.event_id in ids]
            reason = MADE[state][1]
            store.record([CallResult((w,), state, NOW, "x", error=reason) for w in writes])


def _batches(kinds: list[tuple[State, int]], size: int) -> Iterator[list[tuple[State, int]]]:
    for start in range(0, len(kinds), size):
        yield kinds[start : start + size]


def _event(state: State, number: int, at: float) -> NewEvent:
    rejected = state is State.REJECTED
    return NewEvent(
        id=new_event_id(at),
        received_at=at,
        body=b"{}",
        content_type="application/json",
        key_name="k",
        request_id="r",
        customer=None
        if rejected and number % 3 == 0
        else f"{('user_id', 'external_id')[number % 2]}:u{number % 50}",
        campaign_id=("summer", "winter", "rare")[_campaign(number)],
        canvas_id="summer" if number % 10 == 3 else None,
        state=State.REJECTED if rejected else State.QUEUED,
        reason=MADE[state][1] if rejected else "",
        writes=() if rejected else (TagWrite(("t",), 60),),
    )


def _message_to_two(at: float) -> NewEvent:
    sends = tuple(Send("campaign", "summer", f"user_id:y{n}", {}) for n in (1, 2))
    message = _event(State.QUEUED, 0, at)
    return message._replace(
        customer=None, writes=(), sends=sends, direction=Direction.TO_BRAZE, path="campaign"
    )


def _campaign(number: int) -> int:
    return 2 if number % 97 == 0 else number % 2


FILTERS: list[dict[str, Any]] = [
    {},
    {"state": State.DEAD},
    {"state": State.DELIVERED},
    {"campaign": "summer"},
    {"campaign": "rare"},
    {"campaign": "nowhere"},
    {"customer": "u7"},
    {"text": "VALIDATION"},
    {"text": "100% b"},
    {"text": "1_0%"},
    {"since": NOW - 300},
    {"state": State.DEAD, "campaign": "summer"},
    {"state": State.DELIVERED, "campaign": "rare"},
    {"state": State.REJECTED, "campaign": "summer"},
    {"state": State.DEAD, "customer": "u7"},
    {"customer": NOBODY},
    {"state": State.REJECTED, "customer": NOBODY},
    {"state": State.QUEUED, "customer": NOBODY},
    {"campaign": "winter", "text": "503"},
    {"campaign": "summer", "since": NOW - 300, "state": State.QUEUED, "text": "http"},
]


def every_page(events: Events, wanted: Filter, limit: int) -> list[str]:
    found: list[str] = []
    before = ""
    for _page in range(1000):
        page = events.find(wanted, limit, before)
        found += [event["id"] for event in page.events]
        assert len(page.events) <= limit
        if not page.next:
            return found
        assert not before or page.next < before
        before = page.next
    raise AssertionError("the pages do not end")


def truth(database: Database, wanted: Filter) -> list[str]:
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM events ORDER BY id DESC").mappings().all()
    return [
        row["id"]
        for row in rows
        if (not wanted.state or row["state"] == wanted.state)
        and (not wanted.campaign or wanted.campaign in {row["campaign_id"], row["canvas_id"]})
        and (
            not wanted.customer
            or (row["customer"] or "").endswith(f":{wanted.customer}")
            or (wanted.customer == NOBODY and row["state"] == "rejected" and not row["customer"])
        )
        and row["received_at"] >= wanted.since
        and wanted.text.lower() in row["reason"].lower()
    ]


@pytest.mark.parametrize("given", FILTERS)
def test_all_pages_together_hold_what_matches_once(
    database: Database, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_READ", 40)
    fill(database, 600)
    events, wanted = Events(database), Filter(**given)
    expected = truth(database, wanted)
    assert every_page(events, wanted, 7) == expected
    assert every_page(events, wanted, 500) == expected
    assert events.count(wanted) == len(expected)
    oldest_first = [one.id for batch in events.matching(wanted) for one in batch]
    assert oldest_first == expected[::-1]


def test_events_without_a_customer_are_found_behind_many_with_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_READ", 40)
    rejected = [_event(State.REJECTED, n, NOW + n) for n in range(100)]
    named = [one._replace(customer="user_id:u") for one in rejected[5:]]
    Store(database).add([*(one._replace(customer=None) for one in rejected[:5]), *named])
    found = Events(database).find(Filter(State.REJECTED, NOBODY))
    assert [one["id"] for one in found.events] == [one.id for one in rejected[4::-1]]


class Work:
    """How many steps SQLite takes."""

    def __init__(self) -> None:
        self._steps = 0
        sa.event.listen(sa.pool.Pool, "connect", self._watch)

    def _watch(self, connection: sqlite3.Connection, _record: object) -> None:
        def step() -> None:
            self._steps += 1

        connection.set_progress_handler(step, 10)

    def of(self, look: Callable[[], object]) -> int:
        look()
        before = self._steps
        look()
        return self._steps - before

    def end(self) -> None:
        sa.event.remove(sa.pool.Pool, "connect", self._watch)


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.end()


def costs(database: Database, work: Work) -> dict[str, int]:
    events, store = Events(database), Store(database)
    cost = {str(given): work.of(partial(events.find, Filter(**given), 5)) for given in FILTERS}
    cost["counts"] = work.of(events.counts)
    cost["backlog"] = work.of(store.backlog)
    cost["campaigns"] = work.of(events.campaigns)
    return cost


def test_no_figure_and_no_page_costs_more_when_much_more_is_stored(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_READ", 10)
    found = []
    for number in (1000, 6000):
        database = SQLite(f"sqlite:///{tmp_path}/{number}.db", (create,), durable=False)
        fill(database, number)
        found.append(costs(database, work))
        database.close()
    few, many = found
    # They may differ by the depth of trees only.
    assert {name: (few[name], many[name]) for name in few if many[name] > few[name] + 30} == {}
