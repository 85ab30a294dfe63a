"""SQL of operators and retention: search, read, replay, discard, erase and delete events."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from bridge.customer import Customer, ids_of_key
from bridge.fields import iso
from bridge.intake.message import Remainder
from bridge.outbox.model import Direction, NewEvent, State, id_prefix
from bridge.outbox.schema import QUEUED, attempts, events, expiries, tallies, writes
from bridge.outbox.search import Filter, Search
from bridge.outbox.store import add_writes, clear_old_dedupe_keys, event_row, update_events
from bridge.outbox.tallies import (
    CAMPAIGNS,
    CampaignFigures,
    CountChanges,
    counted_write,
    events_by_state,
    figures_of,
    lock_events,
)
from bridge.storage.database import Database
from bridge.storage.expressions import contains

PAGE = 50
MOST_A_PAGE = 500
# Events that one transaction changes: few, so that intake does not wait for it.
BATCH = 200
# Entries. The history of an event keeps the newest ones.
HISTORY_ENTRIES = 50
# Seconds for the search of a customer in all bodies.
SEARCH_TIMEOUT = 60.0

# Name of a sort order of campaigns -> columns.
CAMPAIGN_ORDERS: dict[str, tuple[sa.ColumnElement[Any], ...]] = {
    "": (
        (tallies.c.dead + tallies.c.rejected > 0).desc(),
        tallies.c.accepted.desc(),
        tallies.c.id,
    ),
    "seen": (tallies.c.last_seen.desc(), tallies.c.id),
    "accepted": (tallies.c.accepted.desc(), tallies.c.id),
    "pending": (tallies.c.queued.desc(), tallies.c.id),
    "delivered": (tallies.c.delivered.desc(), tallies.c.id),
    "dead": (tallies.c.dead.desc(), tallies.c.id),
    "expired": (tallies.c.expired.desc(), tallies.c.id),
    "discarded": (tallies.c.discarded.desc(), tallies.c.id),
    "rejected": (tallies.c.rejected.desc(), tallies.c.id),
    "name": (sa.case((tallies.c.name == "", tallies.c.id), else_=tallies.c.name), tallies.c.id),
}
# Retention deletes only these: a queued or dead event is never deleted by age.
_FORGETTABLE = (State.DELIVERED, State.REJECTED, State.DISCARDED, State.EXPIRED)
# Texts of an event that JSON, CSV, pages and commands show as they are: name -> column
# and label.
SHOWN_TEXTS = {"key": ("key_name", "Key"), "request_id": ("request_id", "Request")}
DISCARDABLE = (State.QUEUED, State.DEAD, State.REJECTED)
REPLAYABLE = (State.DEAD, State.REJECTED, State.DISCARDED)


@dataclass(frozen=True)
class Page:
    """Events as JSON, newest first.

    A page may have fewer events than its limit, even none, and a next page: one search reads a
    limited number of events (`Search.newest`).

    Attributes:
        next: the value of *before* for the next page, "" if there is none.
    """

    events: list[dict[str, Any]]
    next: str


@dataclass(frozen=True)
class StoredEvent:
    """The columns of an event that are needed to read it again.

    Attributes:
        in_body: whether the body names the customer; otherwise the path does.
        path: the `MessagePath` of a message; "" for a webhook.
    """

    id: str
    state: State
    body: bytes
    content_type: str
    customer: str | None
    in_body: bool = True
    idempotency_key: str | None = None
    path: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether it is a message that others may get too: a broadcast, or one to several."""
        return bool(self.path) and self.customer is None

    def has_word(self, customer_id: str) -> bool:
        """Return whether the body contains the id in any encoding, not inside a longer word."""
        forms = b"|".join(re.escape(form) for form in _encodings(customer_id))
        before, after = rb"((?<![\w.@-])|(?<=%[0-9A-Fa-f]{2}))", rb"(?![\w.@-])"
        return bool(re.search(before + b"(" + forms + b")" + after, self.body))


class Events:
    """Stored events of both directions. Changes are made in short transactions.

    Every method raises `StoreUnavailableError` while the database cannot be used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, wanted: Filter, limit: int = PAGE, before: str = "") -> Page:
        """Return a page of at most *limit* events that are older than the id *before*."""
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
        """Count all events that `matching` yields."""
        with self._database.read() as connection:
            return Search(connection, wanted).count()

    def counts(self) -> dict[State, int]:
        """Return the number of stored events in each state."""
        with self._database.read() as connection:
            return events_by_state(connection)

    def campaigns(
        self, limit: int = PAGE, text: str = "", order: str = ""
    ) -> list[CampaignFigures]:
        """Return campaigns and Canvases whose name or ID contains *text*, ignoring case.

        Args:
            limit: most campaigns and Canvases to return.
            text: "" for all.
            order: one of `CAMPAIGN_ORDERS`; by default those with dead or rejected events first,
                then the busiest.
        """
        columns = CAMPAIGN_ORDERS.get(order, CAMPAIGN_ORDERS[""])
        chosen = tallies.select().where(*_campaigns_with(text)).order_by(*columns).limit(limit)
        with self._database.read() as connection:
            return [figures_of(row) for row in connection.execute(chosen).mappings()]

    def count_campaigns(self, text: str) -> int:
        """Count the campaigns and Canvases whose name or ID contains *text*, ignoring case."""
        counted = sa.select(sa.func.count()).select_from(tallies).where(*_campaigns_with(text))
        with self._database.read() as connection:
            return connection.execute(counted).scalar_one()

    def campaign(self, braze_id: str) -> list[CampaignFigures]:
        """Return the campaign and the Canvas with this ID: both, one or neither."""
        chosen = tallies.select().where(*_campaigns_with(""), tallies.c.id == braze_id)
        with self._database.read() as connection:
            return [figures_of(row) for row in connection.execute(chosen).mappings()]

    def campaign_names(self, ids: Collection[str]) -> dict[str, str]:
        """Return names of campaigns and Canvases by ID, without those that have no name."""
        chosen = sa.select(tallies.c.id, tallies.c.name).where(
            tallies.c.kind.in_(CAMPAIGNS), tallies.c.id.in_(ids), tallies.c.name != ""
        )
        with self._database.read() as connection:
            return {row.id: row.name for row in connection.execute(chosen)} if ids else {}

    def details(self, event_id: str) -> dict[str, Any] | None:
        """Return an event as JSON with its body, writes and their attempts; ``None`` if unknown."""
        with self._database.read() as connection:
            row = _one(connection, sa.select(events).where(events.c.id == event_id))
            if row is None:
                return None
            ordered = (
                sa.select(writes, _WAITS_FOR_CUSTOMER)
                .where(writes.c.event_id == event_id)
                .order_by(writes.c.seq)
            )
            tries = _tries_of(connection, event_id)
            return {
                **_as_json(row),
                "body": row["body"].decode(errors="replace"),
                "content_type": row["content_type"],
                "writes": [
                    _write_as_json(write, tries.get(write["seq"], []))
                    for write in connection.execute(ordered).mappings()
                ],
            }

    def matching(self, wanted: Filter) -> Iterator[list[StoredEvent]]:
        """Yield the events to change that *wanted* matches, oldest first, in batches."""
        after = ""
        while True:
            with self._database.read() as connection:
                ids = Search(connection, wanted).oldest(after, BATCH)
                chosen = _EVENTS.where(events.c.id.in_(ids)).order_by(events.c.id)
                found = [_stored_event(row) for row in connection.execute(chosen).mappings()]
            if not found:
                return
            yield found
            after = found[-1].id

    def one(self, event_id: str) -> StoredEvent | None:
        """Return an event; ``None`` if there is no such event."""
        with self._database.read() as connection:
            row = _one(connection, _EVENTS.where(events.c.id == event_id))
        return _stored_event(row) if row else None

    def requeue(self, event_ids: list[str], now: float, by: str = "") -> set[str]:
        """Queue the dead and discarded writes of these events again.

        Args:
            event_ids: of the events.
            now: seconds since the epoch.
            by: the name of the key that ordered it, for the history.

        Returns:
            The ids of the events that had such writes.
        """
        with counted_write(self._database) as (connection, tally):
            ended = (State.DEAD, State.DISCARDED)
            again = _writes_in(connection, event_ids, ended)
            connection.execute(
                writes.update()
                .where(writes.c.seq.in_([write.seq for write in again]))
                .values(state=State.QUEUED.value, attempts=0, next_at=now, done_at=None)
            )
            # The age of a message starts again; the TTL of a tag still runs from its acceptance.
            messages = [write.seq for write in again if write.direction is Direction.TO_BRAZE]
            connection.execute(
                writes.update()
                .where(writes.c.seq.in_(messages))
                .values(accepted_at=now, intent=sa.null(), uncertain=False)
            )
            changed = {write.event_id for write in again}
            for write in again:
                tally.writes(write.direction, write.state, State.QUEUED)
            update_events(connection, changed, tally)
            _note(connection, changed, "replayed", by, now)
        return changed

    def accept_rejected(self, accepted: NewEvent, by: str = "") -> str:
        """Replace a rejected event by the *accepted* one with the same id.

        If the same event was accepted before under another id, this one is discarded.

        Returns:
            Why its writes are not queued; "" if they are.
        """
        values: dict[str, Any] = {
            name: value
            for name, value in event_row(accepted).items()
            if name not in _REQUEST_COLUMNS
        }
        is_it = events.c.id == accepted.id
        same = sa.select(events.c.id).where(
            events.c.dedupe.is_not(None), events.c.dedupe == accepted.dedupe
        )
        reason = ""
        with counted_write(self._database) as (connection, tally):
            clear_old_dedupe_keys(connection, [accepted])
            earlier = connection.execute(same).scalar()
            if earlier:
                reason = f"the same event was accepted before as {earlier}"
                values = {"state": State.DISCARDED.value, "reason": reason}
            rejected = lock_events(connection, is_it, events.c.state == State.REJECTED.value)
            if not rejected:
                return "it is not rejected any more"
            connection.execute(events.update().where(is_it).values(**values))
            # More of it could be read now, perhaps other IDs.
            tally.event(rejected[0], State.REJECTED, None)
            tally.event(accepted, None, State(values["state"]))
            _note(connection, [accepted.id], "replayed", by, accepted.received_at)
            if not earlier:
                add_writes(connection, [accepted], tally)
                tally.add_names(accepted)
        return reason

    def discard(self, event_ids: list[str], now: float, by: str = "") -> set[str]:
        """Discard the queued, dead and rejected ones of these events.

        Args: as for `requeue`.

        Returns:
            The ids of the discarded events.
        """
        discarded_now = {"state": State.DISCARDED.value, "done_at": now}
        with counted_write(self._database) as (connection, tally):
            undelivered = _writes_in(connection, event_ids, (State.QUEUED, State.DEAD))
            for write in undelivered:
                tally.writes(write.direction, write.state, State.DISCARDED)
            connection.execute(
                writes.update()
                .where(writes.c.seq.in_([write.seq for write in undelivered]))
                .values(**discarded_now)
            )
            chosen = lock_events(
                connection, events.c.id.in_(event_ids), events.c.state.in_(DISCARDABLE)
            )
            for event in chosen:
                tally.event(event, event.state, State.DISCARDED)
            discarded = {event.id for event in chosen}
            connection.execute(
                events.update().where(events.c.id.in_(discarded)).values(**discarded_now)
            )
            _note(connection, discarded, "discarded", by, now)
        return discarded

    def mentioning(self, customer: Customer) -> Iterator[StoredEvent]:
        """Yield the events of *customer*, and those whose body contains the id in any encoding."""
        mentioned = [contains(events.c.body, form) for form in _encodings(customer.id)]
        chosen = _EVENTS.where(sa.or_(events.c.customer == customer.key, *mentioned))
        with self._database.read(timeout=SEARCH_TIMEOUT) as connection:
            for row in connection.execution_options(yield_per=BATCH).execute(chosen).mappings():
                yield _stored_event(row)

    def erase(self, customer: Customer, event_ids: Sequence[str] = ()) -> int:
        """Delete everything about *customer*, and the events *event_ids*.

        Returns:
            The number of deleted events.
        """
        batches = [
            events.c.id.in_(event_ids[at : at + BATCH]) for at in range(0, len(event_ids), BATCH)
        ]
        deleted = 0
        for found in (events.c.customer == customer.key, *batches):
            while batch := self._delete(found):
                deleted += batch
        with self._database.write() as connection:
            connection.execute(expiries.delete().where(expiries.c.customer == customer.key))
        self._database.scrub()
        return deleted

    def cut(self, event_id: str, without: Callable[[StoredEvent], Remainder]) -> int:
        """Remove a customer from a shared event; delete the event if nobody else gets it.

        Args:
            event_id: of the event.
            without: returns what is left of the event, which is read in the same transaction.

        Returns:
            1, or 0 if there is no such event.
        """
        with counted_write(self._database) as (connection, tally):
            is_it = events.c.id == event_id
            if (row := _one(connection, _EVENTS.where(is_it))) is None:
                return 0
            left = without(_stored_event(row))
            present = _writes_in(connection, [event_id], tuple(State))
            removed = [write for write in present if write.customer in left.removed]
            if len(removed) == len(present) and not left.has_recipients:
                return _delete(connection, tally, is_it)
            for write in removed:
                tally.writes(write.direction, write.state, None)
            seqs = [write.seq for write in removed]
            connection.execute(writes.delete().where(writes.c.seq.in_(seqs)))
            connection.execute(events.update().where(is_it).values(body=left.body))
            update_events(connection, [event_id], tally)
        return 1

    def forget_before(self, then: float, now: float) -> int:
        """Delete a batch of events that ended before *then*, and of expiry times.

        Args:
            then: seconds since the epoch.
            now: expiry times before it are deleted too.

        Returns:
            The number of deleted events and expiry times.
        """
        deleted = self._delete(
            events.c.state.in_(_FORGETTABLE),
            events.c.id < id_prefix(then),
            events.c.done_at < then,
        )
        name, is_old = (expiries.c.customer, expiries.c.tag), expiries.c.expires_at < now
        old = sa.select(*name).where(is_old).limit(BATCH).with_for_update(skip_locked=True)
        with self._database.write() as connection:
            # The time is checked again: a delivery may have set another one.
            drop = expiries.delete().where(is_old, sa.tuple_(*name).in_(old))
            return deleted + connection.execute(drop).rowcount

    def _delete(self, *conditions: sa.ColumnElement[bool]) -> int:
        with counted_write(self._database) as (connection, tally):
            return _delete(connection, tally, *conditions)


def _delete(
    connection: sa.Connection, tally: CountChanges, *conditions: sa.ColumnElement[bool]
) -> int:
    """Delete a batch of events that meet all *conditions*; return the number of events."""
    old = lock_events(connection, *conditions, limit=BATCH)
    ids = [event.id for event in old]
    for write in _writes_in(connection, ids, tuple(State)):
        tally.writes(write.direction, write.state, None)
    for event in old:
        tally.event(event, event.state, None)
    if ids:
        connection.execute(events.delete().where(events.c.id.in_(ids)))
    return len(ids)


def _campaigns_with(text: str) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of campaigns that have events, and *text* in their name or ID."""
    has_events = sa.or_(tallies.c.accepted > 0, tallies.c.rejected > 0)
    conditions: list[sa.ColumnElement[bool]] = [tallies.c.kind.in_(CAMPAIGNS), has_events]
    if text:
        columns = (tallies.c.id, tallies.c.name)
        conditions.append(sa.or_(*(one.icontains(text, autoescape=True) for one in columns)))
    return conditions


def _note(
    connection: sa.Connection, event_ids: Collection[str], action: str, by: str, now: float
) -> None:
    """Add an action by the key *by* to the history of these events."""
    chosen = sa.select(events.c.id, events.c.history).where(events.c.id.in_(event_ids))
    entry = {"at": now, "action": action, "by": by}
    rows = [
        {"key": event_id, "history": [*(history or ()), entry][-HISTORY_ENTRIES:]}
        for event_id, history in connection.execute(chosen)
    ]
    if rows:
        noted = events.update().where(events.c.id == sa.bindparam("key"))
        connection.execute(noted.values(history=sa.bindparam("history")), rows)


class _Write(NamedTuple):
    seq: int
    event_id: str
    state: State
    direction: Direction
    customer: str


def _writes_in(
    connection: sa.Connection, event_ids: Sequence[str], states: tuple[State, ...]
) -> list[_Write]:
    """Return the writes of these events in one of *states*, locked until the end."""
    chosen = sa.select(
        writes.c.seq, writes.c.event_id, writes.c.state, writes.c.direction, writes.c.customer
    ).where(writes.c.event_id.in_(event_ids), writes.c.state.in_(states))
    rows = connection.execute(chosen.order_by(writes.c.seq).with_for_update())
    return [
        _Write(seq, event_id, State(state), Direction(way), customer)
        for seq, event_id, state, way, customer in rows
    ]


_ahead = writes.alias("ahead")
# Whether a queued write, or one before it in its customer's queue, waits for SessionM to create
# the customer.
_WAITS_FOR_CUSTOMER = sa.and_(
    writes.c.state == QUEUED,
    sa.exists().where(
        _ahead.c.state == QUEUED,
        _ahead.c.customer == writes.c.customer,
        _ahead.c.direction == writes.c.direction,
        _ahead.c.seq <= writes.c.seq,
        _ahead.c.unknown,
    ),
).label("waits_for_customer")
_EVENTS = sa.select(*(events.c[name] for name in StoredEvent.__dataclass_fields__))
# Columns of the request itself: they stay when a rejected event is read again and accepted.
_REQUEST_COLUMNS = {
    *("id", "received_at", "key_name", "request_id", "idempotency_key"),
    *("content_type", "body", "in_body", "direction", "path"),
}


def _encodings(customer_id: str) -> set[bytes]:
    """Return the encodings of an id that programs use in JSON, JSON text in JSON, and forms."""
    escaped = json.dumps(customer_id)[1:-1]
    plain = {customer_id, escaped, escaped.replace("/", "\\/"), json.dumps(escaped)[1:-1]}
    forms = plain.union(*({quote(one, safe=""), quote_plus(one), quote(one)} for one in plain))
    lower = {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in forms}
    return {form.encode() for form in forms | lower}


def _stored_event(row: sa.RowMapping) -> StoredEvent:
    return StoredEvent(**{**row, "state": State(row["state"])})


def _one(connection: sa.Connection, chosen: sa.Select[Any]) -> sa.RowMapping | None:
    return connection.execute(chosen).mappings().first()


def _tries_of(connection: sa.Connection, event_id: str) -> dict[int, list[dict[str, Any]]]:
    """Return the attempts of an event, as JSON: seq of the write -> attempts, oldest first."""
    tried = attempts.select().join(writes).where(writes.c.event_id == event_id)
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(tried.order_by(attempts.c.id)).mappings():
        as_json = {name: row[name] for name in ("status", "milliseconds", "outcome", "error")}
        found.setdefault(row["write_seq"], []).append({"at": iso(row["at"]), **as_json})
    return found


def _as_json(row: sa.RowMapping) -> dict[str, Any]:
    return {
        "id": row["id"],
        "direction": row["direction"],
        "state": row["state"],
        "received_at": iso(row["received_at"]),
        "done_at": _iso_or_blank(row["done_at"]),
        "customer": ids_of_key(row["customer"]),
        "campaign_id": row["campaign_id"] or "",
        "canvas_id": row["canvas_id"] or "",
        "test": row["test"],
        "reason": row["reason"],
        **{name: row[column] or "" for name, (column, _) in SHOWN_TEXTS.items()},
        "history": [{**one, "at": iso(one["at"])} for one in row["history"] or ()],
    }


def _write_as_json(row: sa.RowMapping, tries: list[dict[str, Any]]) -> dict[str, Any]:
    content = json.loads(row["content"] or "{}")
    return {
        "tags": row["tags"],
        "ttl": row["ttl"],
        "target": row["target"],
        "recipient": content.get("recipient") or {},
        "properties": content.get("properties") or {},
        "dispatch_id": row["receipt"],
        "state": row["state"],
        "attempts": row["attempts"],
        "next_at": iso(row["next_at"]) if row["state"] == State.QUEUED.value else "",
        "done_at": _iso_or_blank(row["done_at"]),
        "waits_for_customer": bool(row["waits_for_customer"]),
        "reason": row["reason"],
        "uncertain": row["uncertain"],
        "tries": tries,
    }


def _iso_or_blank(at: float | None) -> str:
    return "" if at is None else iso(at)
