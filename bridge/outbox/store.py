"""Events and their tag writes: schema and statements. The only SQL for them.

Times are seconds since the epoch. A customer is stored by its key, ``user_id:…``. A write that
waits is ``queued``; partial indexes on that word keep every question about the queue as cheap
with a million stored events as with ten.
"""

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from bridge.database import Database
from bridge.intake.rules import TagWrite


class State(StrEnum):
    """Where an event or a write stands. Only events are rejected."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    DEAD = "dead"
    REJECTED = "rejected"
    DISCARDED = "discarded"
    EXPIRED = "expired"


schema = sa.MetaData()
events = sa.Table(
    "events",
    schema,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("customer", sa.Text),
    sa.Column("campaign_id", sa.Text),
    sa.Column("canvas_id", sa.Text),
    sa.Column("test", sa.Boolean, nullable=False),
    sa.Column("dedupe", sa.String(64), unique=True),
    sa.Column("key_name", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("done_at", sa.Float),
)
writes = sa.Table(
    "writes",
    schema,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(32), sa.ForeignKey("events.id", ondelete="CASCADE")),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("ttl", sa.Integer),
    sa.Column("accepted_at", sa.Float, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("next_at", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("intent", sa.JSON(none_as_null=True)),
    sa.Column("uncertain", sa.Boolean, nullable=False),
    sa.Column("done_at", sa.Float),
    sqlite_autoincrement=True,
)
attempts = sa.Table(
    "attempts",
    schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("write_seq", sa.Integer, sa.ForeignKey("writes.seq", ondelete="CASCADE")),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("milliseconds", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)
# What the bridge knows of expiry because it wrote it; outlives the events.
expiries = sa.Table(
    "expiries",
    schema,
    sa.Column("customer", sa.Text, primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("expires_at", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
# Small facts that all processes share, such as the delivery loop's heartbeat.
facts = sa.Table(
    "facts",
    schema,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
# A literal, not a parameter: SQLite uses a partial index only where it can prove its condition.
_QUEUED: sa.ColumnElement[str] = sa.literal_column("'queued'")
_DEAD: sa.ColumnElement[str] = sa.literal_column("'dead'")
for name, columns in {
    "writes_due": (writes.c.next_at, writes.c.seq),
    "writes_waiting": (writes.c.customer, writes.c.seq),
    "writes_oldest": (writes.c.accepted_at,),
}.items():
    sa.Index(name, *columns, sqlite_where=writes.c.state == _QUEUED)
sa.Index("writes_dead", writes.c.seq, sqlite_where=writes.c.state == _DEAD)
sa.Index("writes_event", writes.c.event_id)
sa.Index("events_customer", events.c.customer, events.c.id)
sa.Index("events_state", events.c.state, events.c.id)
sa.Index("attempts_write", attempts.c.write_seq)
sa.Index("expiries_expires_at", expiries.c.expires_at)


def _first_schema(connection: sa.Connection) -> None:
    schema.create_all(connection)


MIGRATIONS = (_first_schema,)


@dataclass(frozen=True)
class NewEvent:
    """An event to be stored, with its writes; a rejected one has a *reason* and none."""

    id: str
    received_at: float
    body: bytes
    content_type: str
    key_name: str
    request_id: str
    customer: str | None = None
    campaign_id: str | None = None
    canvas_id: str | None = None
    test: bool = False
    dedupe: str | None = None
    state: State = State.QUEUED
    reason: str = ""
    writes: tuple[TagWrite, ...] = ()


@dataclass(frozen=True)
class QueuedWrite:
    """A write that waits. *intent* is what a counter's call noted down before it was sent."""

    seq: int
    event_id: str
    customer: str
    tags: tuple[str, ...]
    ttl: int | None
    accepted_at: float
    next_at: float
    attempts: int
    intent: Mapping[str, Any] | None = None

    @property
    def expires_at(self) -> float:
        """When the tags are to be gone; infinite for counters."""
        return float("inf") if self.ttl is None else self.accepted_at + self.ttl


@dataclass(frozen=True)
class Finished:
    """What became of one call for *writes*, to be recorded.

    Attributes:
        state: ``queued`` means: try again at *next_at*.
        counted: whether the try counts against the limit of tries.
        intent: kept on the writes if the call may have worked, else ``None``.
    """

    writes: tuple[QueuedWrite, ...]
    state: State
    at: float
    outcome: str
    status: int = 0
    milliseconds: int = 0
    error: str = ""
    next_at: float = 0.0
    counted: bool = True
    intent: Mapping[str, Any] | None = None
    uncertain: bool = False


@dataclass(frozen=True)
class Backlog:
    """The queue at a glance: numbers of writes, and when the oldest waiting was accepted."""

    queued: int
    oldest_at: float | None
    dead: int


@dataclass(frozen=True)
class Story:
    """One event with everything that happened to it, as plain JSON values."""

    event: dict[str, Any]
    writes: list[dict[str, Any]] = field(default_factory=list)


class Store:
    """The statements. Methods that change something commit before they return."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, new: Sequence[NewEvent]) -> dict[str, str]:
        """Store *new* events in one transaction.

        Returns:
            For each event that is a repeat: its id -> the id under which it was stored before.
        """
        with self.database.write() as connection:
            statement = insert(events).on_conflict_do_nothing(index_elements=["dedupe"])
            stored = set(
                connection.execute(
                    statement.returning(events.c.id), [_event_row(event) for event in new]
                ).scalars()
            )
            rows = [row for event in new if event.id in stored for row in _write_rows(event)]
            if rows:
                connection.execute(writes.insert(), rows)
            repeats = {e.dedupe: e.id for e in new if e.id not in stored}
            if not repeats:
                return {}
            found = connection.execute(
                sa.select(events.c.dedupe, events.c.id).where(events.c.dedupe.in_(repeats))
            )
            known = dict(found.all())
        return {e.id: known[e.dedupe] for e in new if e.id not in stored}

    def due(self, now: float, limit: int, busy: Collection[str]) -> dict[str, list[QueuedWrite]]:
        """The waiting writes, in order, of up to *limit* customers with one that is due.

        Args:
            now: the time.
            limit: how many due writes to look at.
            busy: keys of customers to leave out.
        """
        ready = (
            sa.select(writes.c.customer)
            .where(writes.c.state == _QUEUED, writes.c.next_at <= now)
            .order_by(writes.c.next_at, writes.c.seq)
            .limit(limit)
        )
        if busy:
            ready = ready.where(writes.c.customer.not_in(busy))
        with self.database.read() as connection:
            customers = dict.fromkeys(connection.execute(ready).scalars())
            waiting: dict[str, list[QueuedWrite]] = {customer: [] for customer in customers}
            if customers:
                for write in self._waiting(connection, customers, 1000):
                    waiting[write.customer].append(write)
        return waiting

    def waiting(self, customer: str) -> list[QueuedWrite]:
        """The writes of one *customer* that are accepted and not delivered, in order."""
        with self.database.read() as connection:
            return self._waiting(connection, [customer], 1000)

    def _waiting(
        self, connection: sa.Connection, customers: Iterable[str], limit: int
    ) -> list[QueuedWrite]:
        chosen = (
            sa.select(
                writes.c.seq,
                writes.c.event_id,
                writes.c.customer,
                writes.c.tags,
                writes.c.ttl,
                writes.c.accepted_at,
                writes.c.next_at,
                writes.c.attempts,
                writes.c.intent,
            )
            .where(writes.c.state == _QUEUED, writes.c.customer.in_(list(customers)))
            .order_by(writes.c.customer, writes.c.seq)
            .limit(limit)
        )
        return [
            QueuedWrite(**{**row, "tags": tuple(row["tags"])})
            for row in connection.execute(chosen).mappings()
        ]

    def intend(self, seqs: Sequence[int], intent: Mapping[str, Any]) -> None:
        """Note down what a counter's call is about to do, before it is sent."""
        with self.database.write() as connection:
            connection.execute(
                writes.update().where(writes.c.seq.in_(seqs)).values(intent=dict(intent))
            )

    def postpone(self, customer: str, until: float) -> None:
        """Let all waiting writes of *customer* wait until then, so that their order is kept."""
        with self.database.write() as connection:
            _postpone(connection, customer, until)

    def record(self, finished: Sequence[Finished]) -> None:
        """Record what became of calls, in one transaction."""
        with self.database.write() as connection:
            for result in finished:
                _record(connection, result)
            _settle(connection, {w.event_id for result in finished for w in result.writes})

    def state_of(self, event_id: str) -> State | None:
        """Where an event stands; ``None`` if there is none of that id."""
        with self.database.read() as connection:
            state = connection.execute(
                sa.select(events.c.state).where(events.c.id == event_id)
            ).scalar()
        return None if state is None else State(state)

    def expiries_of(self, customer: str, now: float) -> dict[str, float]:
        """When the tags that the bridge wrote for *customer* expire: tag -> time."""
        chosen = sa.select(expiries.c.tag, expiries.c.expires_at).where(
            expiries.c.customer == customer, expiries.c.expires_at > now
        )
        with self.database.read() as connection:
            return dict(connection.execute(chosen).all())

    def backlog(self) -> Backlog:
        """How much waits, since when, and how much is dead."""
        queued = sa.select(sa.func.count()).select_from(writes).where(writes.c.state == _QUEUED)
        dead = sa.select(sa.func.count()).select_from(writes).where(writes.c.state == _DEAD)
        oldest = sa.select(sa.func.min(writes.c.accepted_at)).where(writes.c.state == _QUEUED)
        with self.database.read() as connection:
            return Backlog(
                queued=connection.execute(queued).scalar_one(),
                oldest_at=connection.execute(oldest).scalar(),
                dead=connection.execute(dead).scalar_one(),
            )

    def story(self, event_id: str) -> Story | None:
        """Everything about one event."""
        with self.database.read() as connection:
            row = (
                connection.execute(sa.select(events).where(events.c.id == event_id))
                .mappings()
                .first()
            )
            if row is None:
                return None
            story = Story({**row, "body": row["body"].decode(errors="replace")})
            chosen = sa.select(writes).where(writes.c.event_id == event_id).order_by(writes.c.seq)
            for write in connection.execute(chosen).mappings():
                tried = sa.select(attempts).where(attempts.c.write_seq == write["seq"])
                story.writes.append(
                    {
                        **write,
                        "tries": [
                            dict(t)
                            for t in connection.execute(tried.order_by(attempts.c.id)).mappings()
                        ],
                    }
                )
        return story

    def fact(self, name: str) -> Any:
        """A small shared value, or ``None``."""
        with self.database.read() as connection:
            return connection.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar()

    def set_fact(self, name: str, value: Any) -> None:
        statement = insert(facts).values(name=name, value=value)
        with self.database.write() as connection:
            connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
            )

    def forget_before(self, then: float, now: float, limit: int = 500) -> int:
        """Delete up to *limit* events that ended before *then*; returns how many there were.

        Dead ones stay until somebody decides. Small batches, so that intake never waits.
        """
        old = (
            sa.select(events.c.id)
            .where(events.c.state.in_(_FORGETTABLE), events.c.id < _first_id(then))
            .where(events.c.done_at < then)
            .limit(limit)
        )
        with self.database.write() as connection:
            ids = list(connection.execute(old).scalars())
            if ids:
                connection.execute(events.delete().where(events.c.id.in_(ids)))
            connection.execute(expiries.delete().where(expiries.c.expires_at < now))
        return len(ids)

    def ping(self) -> None:
        """Prove that the store can be written.

        Raises:
            StoreUnavailableError: it cannot.
        """
        self.set_fact("ping", time.time())


def new_event_id(now: float) -> str:
    """32 hex digits that sort by time: milliseconds, then chance."""
    return f"{_milliseconds(now)}{os.urandom(10).hex()}"


def _first_id(then: float) -> str:
    """No event that came at or after *then* has a smaller id."""
    return _milliseconds(then) + "0" * 20


def _milliseconds(at: float) -> str:
    return f"{int(at * 1000):012x}"


# Ended for good; an event that is dead or waits is never forgotten by age.
_FORGETTABLE = ("delivered", "rejected", "discarded", "expired")


def _event_row(event: NewEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "received_at": event.received_at,
        "state": event.state.value,
        "customer": event.customer,
        "campaign_id": event.campaign_id,
        "canvas_id": event.canvas_id,
        "test": event.test,
        "dedupe": event.dedupe,
        "key_name": event.key_name,
        "request_id": event.request_id,
        "content_type": event.content_type,
        "body": event.body,
        "reason": event.reason,
        "done_at": None if event.state is State.QUEUED else event.received_at,
    }


def _write_rows(event: NewEvent) -> Iterable[dict[str, Any]]:
    for write in event.writes:
        yield {
            "event_id": event.id,
            "customer": event.customer,
            "tags": list(write.tags),
            "ttl": write.ttl,
            "accepted_at": event.received_at,
            "state": State.QUEUED.value,
            "next_at": event.received_at,
            "attempts": 0,
            "reason": "",
            "intent": None,
            "uncertain": False,
        }


def _postpone(connection: sa.Connection, customer: str, until: float) -> None:
    connection.execute(
        writes.update()
        .where(writes.c.state == _QUEUED, writes.c.customer == customer, writes.c.next_at < until)
        .values(next_at=until)
    )


def _record(connection: sa.Connection, result: Finished) -> None:
    seqs = [write.seq for write in result.writes]
    waits = result.state is State.QUEUED
    connection.execute(
        writes.update()
        .where(writes.c.seq.in_(seqs))
        .values(
            state=result.state.value,
            attempts=writes.c.attempts + int(result.counted),
            reason=result.error,
            intent=dict(result.intent) if result.intent else None,
            uncertain=writes.c.uncertain | result.uncertain,
            done_at=None if waits else result.at,
            **({"next_at": result.next_at} if waits else {}),
        )
    )
    connection.execute(
        attempts.insert(),
        [
            {
                "write_seq": seq,
                "at": result.at,
                "status": result.status,
                "milliseconds": result.milliseconds,
                "outcome": result.outcome,
                "error": result.error,
            }
            for seq in seqs
        ],
    )
    if waits:
        _postpone(connection, result.writes[0].customer, result.next_at)
    if result.state is State.DELIVERED:
        _remember_expiries(connection, result.writes)


def _remember_expiries(connection: sa.Connection, delivered: Iterable[QueuedWrite]) -> None:
    rows = [
        {"customer": write.customer, "tag": tag, "expires_at": write.expires_at}
        for write in delivered
        if write.ttl is not None
        for tag in write.tags
    ]
    if rows:
        statement = insert(expiries)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["customer", "tag"],
                set_={"expires_at": statement.excluded.expires_at},
            ),
            rows,
        )


def _settle(connection: sa.Connection, event_ids: Collection[str]) -> None:
    """Give events the state that follows from their writes'."""
    chosen = sa.select(writes.c.event_id, writes.c.state, writes.c.reason, writes.c.done_at).where(
        writes.c.event_id.in_(event_ids)
    )
    by_event: dict[str, dict[str, tuple[str, float | None]]] = {}
    for event_id, state, reason, done_at in connection.execute(chosen):
        by_event.setdefault(event_id, {})[state] = (reason, done_at)
    rows = []
    for event_id, states in by_event.items():
        state = next(s for s in _BY_WEIGHT if s in states)
        reason, done_at = states[state]
        rows.append({"key": event_id, "state": state, "reason": reason, "done_at": done_at})
    if rows:
        connection.execute(
            events.update()
            .where(events.c.id == sa.bindparam("key"))
            .values(
                state=sa.bindparam("state"),
                reason=sa.bindparam("reason"),
                done_at=sa.bindparam("done_at"),
            ),
            rows,
        )


# An event is what the weightiest of its writes is.
_BY_WEIGHT = (State.QUEUED, State.DEAD, State.DISCARDED, State.DELIVERED, State.EXPIRED)
