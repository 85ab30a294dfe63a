"""What people do with stored events: search, read, send again, discard, erase, forget."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from bridge.customer import Customer
from bridge.database import Database
from bridge.fields import iso
from bridge.outbox.schema import State, attempts, events, expiries, tallies, writes
from bridge.outbox.search import Filter, Search
from bridge.outbox.store import NewEvent, add_writes, id_prefix, settle
from bridge.outbox.tallies import (
    CAMPAIGNS,
    CampaignFigures,
    Tally,
    about_to_change,
    figures_of,
    stored,
)
from bridge.statements import Holds

PAGE = 50
MOST_A_PAGE = 500
# So many events are changed in one transaction: short enough that intake never waits for it.
BATCH = 200
# To find a customer in the bodies of rejected events may take a while.
SEARCH_PATIENCE = 60.0

# Ended for good; an event that is dead or waits is never forgotten by age.
_FORGETTABLE = (State.DELIVERED, State.REJECTED, State.DISCARDED, State.EXPIRED)
_DISCARDABLE = (State.QUEUED, State.DEAD, State.REJECTED)
REPLAYABLE = (State.DEAD, State.REJECTED, State.DISCARDED)


@dataclass(frozen=True)
class Page:
    """Events as JSON, newest first; *next* is the id before which to go on, "" at the end.

    Only so many events are looked at for a page (`Search.newest`), so that it is quick however
    much is stored: it may hold fewer than were asked for, even none, and still have a next.
    """

    events: list[dict[str, Any]]
    next: str


@dataclass(frozen=True)
class Stored:
    """An event as it came: what is needed to take it in once more.

    *in_body*: the body names the customer, not the path.
    """

    id: str
    state: State
    body: bytes
    content_type: str
    customer: str | None
    in_body: bool = True
    idempotency_key: str | None = None


class Events:
    """The statements; all that change something do it in short transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, wanted: Filter, limit: int = PAGE, before: str = "") -> Page:
        """A page of up to *limit* events, those before the id *before*."""
        with self._database.read() as connection:
            search = Search(connection, wanted)
            ids, following = search.newest(before, min(limit, MOST_A_PAGE))
            chosen = (
                sa.select(*(column for column in events.c if column.name != "body"))
                .where(events.c.id.in_(ids))
                .order_by(events.c.id.desc())
            )
            rows = connection.execute(chosen).mappings()
            return Page([_as_json(row) for row in rows], following)

    def count(self, wanted: Filter) -> int:
        """How many events *wanted* matches; all of them are looked at."""
        with self._database.read() as connection:
            return Search(connection, wanted).count()

    def counts(self) -> dict[State, int]:
        """How many stored events there are in each state."""
        with self._database.read() as connection:
            return stored(connection)

    def campaigns(self, limit: int = PAGE) -> list[CampaignFigures]:
        """The campaigns and Canvases that were seen last, the latest first."""
        chosen = (
            tallies.select()
            .where(tallies.c.kind.in_(CAMPAIGNS))
            .order_by(tallies.c.last_seen.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [figures_of(row) for row in connection.execute(chosen).mappings()]

    def story(self, event_id: str) -> dict[str, Any] | None:
        """Everything about one event: body, writes, and every try of each; ``None`` if unknown."""
        with self._database.read() as connection:
            row = _one(connection, sa.select(events).where(events.c.id == event_id))
            if row is None:
                return None
            ordered = writes.select().where(writes.c.event_id == event_id).order_by(writes.c.seq)
            return {
                **_as_json(row),
                "body": row["body"].decode(errors="replace"),
                "content_type": row["content_type"],
                "writes": [
                    _write_as_json(write, _tries(connection, write["seq"]))
                    for write in connection.execute(ordered).mappings().all()
                ],
            }

    def matching(self, wanted: Filter) -> Iterator[list[Stored]]:
        """The events that *wanted* matches, oldest first, a batch at a time."""
        after = ""
        while True:
            with self._database.read() as connection:
                ids = Search(connection, wanted).oldest(after, BATCH)
                chosen = _STORED.where(events.c.id.in_(ids)).order_by(events.c.id)
                found = [_stored(row) for row in connection.execute(chosen).mappings()]
            if not found:
                return
            yield found
            after = found[-1].id

    def one(self, event_id: str) -> Stored | None:
        """One event as it came."""
        with self._database.read() as connection:
            row = _one(connection, _STORED.where(events.c.id == event_id))
        return _stored(row) if row else None

    def queue_again(self, event_ids: list[str], now: float) -> set[str]:
        """Let the dead and discarded writes of these events wait once more.

        Returns:
            The events that had any.
        """
        tally = Tally()
        with self._database.write(alone=True) as connection:
            ended = (State.DEAD, State.DISCARDED)
            again = _writes_in(connection, event_ids, ended)
            connection.execute(
                writes.update()
                .where(writes.c.seq.in_([write.seq for write in again]))
                .values(state=State.QUEUED.value, attempts=0, next_at=now, done_at=None)
            )
            changed = {write.event_id for write in again}
            for write in again:
                tally.writes(write.state, State.QUEUED)
            settle(connection, changed, tally)
            tally.keep(connection)
        return changed

    def take_in(self, accepted: NewEvent) -> bool:
        """Turn a rejected event into the *accepted* one of the same id.

        Returns:
            Whether it is taken in: it was still rejected, and the same event was not accepted
            before, in which case it is discarded.
        """
        values: dict[str, Any] = {
            "state": State.QUEUED.value,
            "customer": accepted.customer,
            "campaign_id": accepted.campaign_id,
            "canvas_id": accepted.canvas_id,
            "test": accepted.test,
            "reason": "",
            "done_at": None,
            "dedupe": accepted.dedupe,
        }
        mended = events.update().where(
            events.c.id == accepted.id, events.c.state == State.REJECTED.value
        )
        same = sa.select(events.c.id).where(
            events.c.dedupe.is_not(None), events.c.dedupe == accepted.dedupe
        )
        tally = Tally()
        with self._database.write(alone=True) as connection:
            earlier = connection.execute(same).scalar()
            if earlier:
                values = {
                    "state": State.DISCARDED.value,
                    "reason": f"the same event was accepted before as {earlier}",
                }
            if not connection.execute(mended.values(**values)).rowcount:
                return False
            tally.event(accepted, State.REJECTED, State(values["state"]))
            if not earlier:
                add_writes(connection, [accepted], tally)
            tally.keep(connection)
        return not earlier

    def discard(self, event_ids: list[str], now: float) -> set[str]:
        """Give these events up, as far as they are not ended; returns those that were."""
        given_up = {"state": State.DISCARDED.value, "done_at": now}
        tally = Tally()
        with self._database.write(alone=True) as connection:
            undelivered = _writes_in(connection, event_ids, (State.QUEUED, State.DEAD))
            for write in undelivered:
                tally.writes(write.state, State.DISCARDED)
            connection.execute(
                writes.update()
                .where(writes.c.seq.in_([write.seq for write in undelivered]))
                .values(**given_up)
            )
            chosen = about_to_change(
                connection, events.c.id.in_(event_ids), events.c.state.in_(_DISCARDABLE)
            )
            for event in chosen:
                tally.event(event, event.state, State.DISCARDED)
            discarded = {event.id for event in chosen}
            connection.execute(events.update().where(events.c.id.in_(discarded)).values(**given_up))
            tally.keep(connection)
        return discarded

    def mentioning(self, customer: Customer) -> Iterator[Stored]:
        """The events whose customer *customer* is, or whose body holds the id in some writing."""
        mentioned = [Holds(events.c.body, form) for form in _written(customer.id)]
        chosen = _STORED.where(sa.or_(events.c.customer == customer.key, *mentioned))
        with self._database.read(patience=SEARCH_PATIENCE) as connection:
            for row in connection.execution_options(yield_per=BATCH).execute(chosen).mappings():
                yield _stored(row)

    def erase(self, customer: Customer, event_ids: Sequence[str] = ()) -> int:
        """Delete everything about *customer*, and the events *event_ids*.

        Returns:
            How many events there were.
        """
        batches = [
            events.c.id.in_(event_ids[at : at + BATCH]) for at in range(0, len(event_ids), BATCH)
        ]
        deleted = 0
        for theirs in (events.c.customer == customer.key, *batches):
            while batch := self._delete(theirs):
                deleted += batch
        with self._database.write() as connection:
            connection.execute(expiries.delete().where(expiries.c.customer == customer.key))
        self._database.scrub()
        return deleted

    def forget_before(self, then: float, now: float) -> int:
        """Delete a batch of events that ended before *then*; returns how many there were."""
        deleted = self._delete(
            events.c.state.in_(_FORGETTABLE),
            events.c.id < id_prefix(then),
            events.c.done_at < then,
        )
        with self._database.write() as connection:
            connection.execute(expiries.delete().where(expiries.c.expires_at < now))
        return deleted

    def _delete(self, *conditions: sa.ColumnElement[bool]) -> int:
        """Delete a batch of events of which all *conditions* hold; returns how many."""
        tally = Tally()
        with self._database.write(alone=True) as connection:
            old = about_to_change(connection, *conditions, limit=BATCH)
            ids = [event.id for event in old]
            for write in _writes_in(connection, ids, tuple(State)):
                tally.writes(write.state, None)
            for event in old:
                tally.event(event, event.state, None)
            if ids:
                connection.execute(events.delete().where(events.c.id.in_(ids)))
            tally.keep(connection)
        return len(ids)


class _Write(NamedTuple):
    seq: int
    event_id: str
    state: State


def _writes_in(
    connection: sa.Connection, event_ids: Sequence[str], states: tuple[State, ...]
) -> list[_Write]:
    """The writes of these events that are in one of *states*, about to change."""
    chosen = sa.select(writes.c.seq, writes.c.event_id, writes.c.state).where(
        writes.c.event_id.in_(event_ids), writes.c.state.in_(states)
    )
    rows = connection.execute(chosen.order_by(writes.c.seq).with_for_update())
    return [_Write(seq, event_id, State(state)) for seq, event_id, state in rows]


_STORED = sa.select(
    events.c.id,
    events.c.state,
    events.c.body,
    events.c.content_type,
    events.c.customer,
    events.c.in_body,
    events.c.idempotency_key,
)


def _written(customer_id: str) -> set[bytes]:
    """The ways in which a JSON or form body may hold an id, as far as programs write them."""
    escaped = json.dumps(customer_id)[1:-1]
    forms = {customer_id, escaped, escaped.replace("/", "\\/")}
    forms |= {quote(customer_id, safe=""), quote_plus(customer_id), quote(customer_id)}
    lower = {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in forms}
    return {form.encode() for form in forms | lower}


def _stored(row: sa.RowMapping) -> Stored:
    return Stored(**{**row, "state": State(row["state"])})


def _one(connection: sa.Connection, chosen: sa.Select[Any]) -> sa.RowMapping | None:
    return connection.execute(chosen).mappings().first()


def _tries(connection: sa.Connection, seq: int) -> list[dict[str, Any]]:
    tried = attempts.select().where(attempts.c.write_seq == seq).order_by(attempts.c.id)
    return [
        {
            "at": iso(row["at"]),
            "status": row["status"],
            "milliseconds": row["milliseconds"],
            "outcome": row["outcome"],
            "error": row["error"],
        }
        for row in connection.execute(tried).mappings()
    ]


def _as_json(row: sa.RowMapping) -> dict[str, Any]:
    customer = row["customer"]
    return {
        "id": row["id"],
        "state": row["state"],
        "received_at": iso(row["received_at"]),
        "done_at": _iso_or_blank(row["done_at"]),
        "customer": Customer.from_key(customer).ids if customer else {},
        "campaign_id": row["campaign_id"] or "",
        "canvas_id": row["canvas_id"] or "",
        "test": row["test"],
        "reason": row["reason"],
        "key": row["key_name"],
        "request_id": row["request_id"],
    }


def _write_as_json(row: sa.RowMapping, tries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tags": row["tags"],
        "ttl": row["ttl"],
        "state": row["state"],
        "attempts": row["attempts"],
        "next_at": iso(row["next_at"]) if row["state"] == State.QUEUED.value else "",
        "done_at": _iso_or_blank(row["done_at"]),
        "reason": row["reason"],
        "uncertain": row["uncertain"],
        "tries": tries,
    }


def _iso_or_blank(at: float | None) -> str:
    return "" if at is None else iso(at)
