"""What intake and delivery do with the tables: add, find what is due, record what became of it."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from bridge import chance
from bridge.database import Database
from bridge.intake.rules import TagWrite
from bridge.locks import LostLockError
from bridge.outbox.schema import (
    QUEUED,
    WRITES,
    State,
    attempts,
    events,
    expiries,
    facts,
    tallies,
    writes,
)
from bridge.outbox.tallies import COUNTED, Tally, counted
from bridge.statements import Prepared, insert, insert_many

# Name of the shared fact that tells who delivers.
DELIVERER_FACT = "deliverer"
# So many of one customer's waiting writes are looked at together; the others come later.
MOST_OF_ONE = 500
MOST_OF_MANY = 2000


class NewEvent(NamedTuple):
    """An event to be stored, with its writes; a rejected one has a *reason* and none.

    *in_body*: the body names the customer, not the path.
    """

    id: str
    received_at: float
    body: bytes
    content_type: str
    key_name: str
    request_id: str
    customer: str | None = None
    in_body: bool = True
    campaign_id: str | None = None
    canvas_id: str | None = None
    test: bool = False
    dedupe: str | None = None
    state: State = State.QUEUED
    reason: str = ""
    writes: tuple[TagWrite, ...] = ()
    ignored: tuple[str, ...] = ()
    idempotency_key: str | None = None


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
        intent_stands: leave the intent as it is stored.
        unknown: SessionM does not know the customer yet.
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
    intent_stands: bool = False
    uncertain: bool = False
    unknown: bool = False


@dataclass(frozen=True)
class Backlog:
    """The queue at a glance: numbers of writes, and when the oldest waiting was accepted.

    Those that wait for their customer to be created are not late, and so never the oldest;
    *unknown_at* is when the oldest of them was accepted.
    """

    queued: int
    oldest_at: float | None
    dead: int
    unknown_at: float | None = None

    def waits(self, now: float) -> float:
        """For how many seconds the oldest waits."""
        return max(0.0, now - self.oldest_at) if self.oldest_at else 0.0

    @property
    def waits_for_customers(self) -> bool:
        """Whether all that waits, waits for its customers to be created."""
        return self.unknown_at is not None and self.oldest_at is None


class Store:
    """The statements. Methods that change something commit before they return."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, new: Sequence[NewEvent]) -> dict[str, str]:
        """Store *new* events in one transaction.

        Returns:
            For each event that is a repeat: its id -> the id under which it was stored before.
        """
        with self.adding() as add:
            return add(new)

    @contextmanager
    def adding(self) -> Iterator[Callable[[Sequence[NewEvent]], dict[str, str]]]:
        """A transaction for one `add`, whose events need not be known before it is their turn."""
        with self.database.write() as connection:
            yield partial(_add, connection)

    def due(self, now: float, limit: int, busy: Collection[str]) -> list[str]:
        """The customers (by key) with a write that is due, the longest due first.

        Args:
            now: the time.
            limit: how many due writes to look at.
            busy: keys of customers to leave out.
        """
        if not limit:
            return []
        with self.database.read() as connection:
            found = _DUE.column(connection, now=now, busy=list(busy), most=limit)
        return list(dict.fromkeys(found))

    def waiting(self, customer: str) -> list[QueuedWrite]:
        """The oldest writes of *customer* that are accepted and not delivered, in order."""
        with self.database.read() as connection:
            rows = _WAITING_OF.rows(connection, customers=[customer], most=MOST_OF_ONE)
        return [_queued_write(*row) for row in rows]

    def waiting_of(self, customers: Sequence[str]) -> dict[str, list[QueuedWrite]]:
        """What `waiting` gives, for each of *customers*."""
        found: dict[str, list[QueuedWrite]] = {customer: [] for customer in customers}
        with self.database.read() as connection:
            rows = _WAITING_OF.rows(connection, customers=customers, most=MOST_OF_MANY)
        if len(rows) == MOST_OF_MANY:
            return {customer: self.waiting(customer) for customer in customers}
        for write in (_queued_write(*row) for row in rows):
            found[write.customer].append(write)
        return found

    def still_there(self, seqs: Sequence[int]) -> set[int]:
        """Which of these writes are stored; they go when their customer is erased."""
        with self.database.read() as connection:
            return set(_STILL_THERE.column(connection, seqs=seqs))

    def counted_since(self, customer: str, then: float) -> list[str]:
        """The counters of *customer* that were delivered after *then*, one entry for each time."""
        chosen = (
            sa.select(writes.c.tags)
            .join(events, events.c.id == writes.c.event_id)
            .where(events.c.customer == customer, writes.c.customer == customer)
            .where(writes.c.ttl.is_(None), writes.c.state == State.DELIVERED.value)
            .where(writes.c.done_at > then)
        )
        with self.database.read() as connection:
            return [tag for tags in connection.execute(chosen).scalars() for tag in tags]

    def has_signed_off(self, name: str) -> bool:
        """Whether the last deliverer has said that it sends nothing more, or was *name* itself."""
        last = self.fact(DELIVERER_FACT) or {"name": name}
        return last["name"] == name or bool(last.get("ended"))

    def take_over(self, name: str) -> None:
        """Let the deliverer *name* alone record from now on."""
        # One that was cut off while it recorded would keep the others out.
        self.database.end_cut_off()
        with self.database.write(alone=True) as connection:
            _set_fact(connection, DELIVERER_FACT, {"name": name, "ended": False})

    def sign_off(self, name: str) -> None:
        """The deliverer *name* sends nothing more; raises `LostLockError` if it is not it."""
        with self.database.write(alone=True) as connection:
            _fence(connection, name)
            _set_fact(connection, DELIVERER_FACT, {"name": name, "ended": True})

    def intend(self, seqs: Sequence[int], intent: Mapping[str, Any], deliverer: str) -> None:
        """Note down what a counter's call is about to do, before it is sent.

        Raises:
            LostLockError: another than *deliverer* delivers by now.
        """
        with self.database.write(alone=True) as connection:
            _fence(connection, deliverer)
            connection.execute(
                writes.update().where(writes.c.seq.in_(seqs)).values(intent=dict(intent))
            )

    def postpone(self, customer: str, until: float) -> None:
        """Let all waiting writes of *customer* wait until then, so that their order is kept."""
        with self.database.write(alone=True) as connection:
            _postpone(connection, customer, until)

    def record(self, finished: Sequence[Finished], deliverer: str | None = None) -> Counter[State]:
        """Record what became of calls, in one transaction.

        Args:
            finished: what.
            deliverer: who made them, if it was the delivery loop.

        Returns:
            How many events have come to which state by it.

        Raises:
            LostLockError: another than *deliverer* delivers by now, and settles them.
        """
        tally = Tally()
        with self.database.write(alone=True) as connection:
            if deliverer is not None:
                _fence(connection, deliverer)
            before = _states(connection, [w.seq for result in finished for w in result.writes])
            plain = [result for result in finished if _is_plain(result)]
            for seq in _record_delivered(connection, plain, before):
                tally.writes(before[seq], State.DELIVERED)
            for result in finished:
                if not _is_plain(result):
                    for seq in _record(connection, result):
                        tally.writes(before[seq], result.state)
            changed = settle(
                connection, {w.event_id for result in finished for w in result.writes}, tally
            )
            tally.keep(connection)
        return changed

    def state_of(self, event_id: str) -> State | None:
        """Where an event stands; ``None`` if there is none of that id."""
        with self.database.read() as connection:
            state = connection.execute(
                sa.select(events.c.state).where(events.c.id == event_id)
            ).scalar()
        return None if state is None else State(state)

    def expiries_of(self, customer: str, now: float) -> dict[str, float]:
        """When the tags that the bridge wrote for *customer* expire: tag -> time."""
        with self.database.read() as connection:
            return dict(_EXPIRIES_OF.rows(connection, whose=customer, now=now))

    def backlog(self) -> Backlog:
        """How much waits, since when, and how much is dead."""
        counted = sa.select(tallies.c.queued, tallies.c.dead).where(tallies.c.kind == WRITES)
        oldest = sa.select(sa.func.min(writes.c.accepted_at)).where(writes.c.state == QUEUED)
        with self.database.read() as connection:
            queued, dead = connection.execute(counted).first() or (0, 0)
            oldest_at, unknown_at = (
                connection.execute(oldest.where(writes.c.unknown == unknown)).scalar()
                for unknown in (sa.false(), sa.true())
            )
        return Backlog(queued, oldest_at, dead, unknown_at)

    def fact(self, name: str) -> Any:
        """A small shared value, or ``None``."""
        with self.database.read() as connection:
            return connection.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar()

    def set_fact(self, name: str, value: Any) -> None:
        with self.database.autocommit() as connection:
            _set_fact(connection, name, value)

    def ping(self) -> None:
        """Prove that the store can be written.

        Raises:
            StoreUnavailableError: it cannot.
        """
        # One small row may still find room where the next event does not.
        self.database.check_space()
        self.set_fact("ping", time.time())


def _add(connection: sa.Connection, new: Sequence[NewEvent]) -> dict[str, str]:
    # In one order in all processes: two that bring the same events would else wait for each other.
    rows = [_event_row(event) for event in sorted(new, key=lambda event: event.dedupe or "")]
    added = insert_many(connection, _ADD_EVENT, rows)
    repeats = {} if added == len(new) else _repeats(connection, new)
    fresh = [event for event in new if event.id not in repeats] if repeats else new
    tally = Tally()
    for event in fresh:
        tally.event(event, None, event.state)
    add_writes(connection, fresh, tally)
    tally.keep(connection)
    return repeats


_ADD_EVENT = insert(events).on_conflict_do_nothing(index_elements=["dedupe"])
_ADD_WRITE = writes.insert()
_ADD_ATTEMPT = attempts.insert()
_SAME = Prepared(
    sa.select(events.c.dedupe, events.c.id).where(
        events.c.dedupe.in_(sa.bindparam("keys", expanding=True))
    )
)


def _repeats(connection: sa.Connection, new: Sequence[NewEvent]) -> dict[str, str]:
    """Those of *new*, just added, that are stored under another id: their id -> that one."""
    keys = [event.dedupe for event in new if event.dedupe]
    stored = dict(_SAME.rows(connection, keys=keys))
    return {e.id: stored[e.dedupe] for e in new if e.dedupe and stored[e.dedupe] != e.id}


def new_event_id(now: float) -> str:
    """32 hex digits that sort by time: milliseconds, then chance."""
    return f"{id_prefix(now)}{chance.digits(20)}"


def id_prefix(at: float) -> str:
    """What the id of an event of that time begins with."""
    return f"{int(at * 1000):012x}"


# What a `QueuedWrite` is made of.
QUEUED_WRITES = sa.select(
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
_WAITING_OF = Prepared(
    QUEUED_WRITES.where(
        writes.c.state == QUEUED,
        writes.c.customer.in_(sa.bindparam("customers", expanding=True)),
    )
    .order_by(writes.c.seq)
    .limit(sa.bindparam("most"))
)
_DUE = Prepared(
    sa.select(writes.c.customer)
    .where(
        writes.c.state == QUEUED,
        writes.c.next_at <= sa.bindparam("now"),
        writes.c.customer.not_in(sa.bindparam("busy", expanding=True)),
    )
    .order_by(writes.c.next_at, writes.c.seq)
    .limit(sa.bindparam("most"))
)
_SEQS = writes.c.seq.in_(sa.bindparam("seqs", expanding=True))
_STILL_THERE = Prepared(sa.select(writes.c.seq).where(_SEQS))
_STATES = Prepared(
    sa.select(writes.c.seq, writes.c.state).where(_SEQS).order_by(writes.c.seq).with_for_update()
)


def _queued_write(
    seq: int, event_id: str, customer: str, tags: list[str], *rest: Any
) -> QueuedWrite:
    return QueuedWrite(seq, event_id, customer, tuple(tags), *rest)


_DELIVERER = Prepared(
    sa.select(facts.c.value).where(facts.c.name == DELIVERER_FACT).with_for_update(read=True)
)


def _fence(connection: sa.Connection, deliverer: str) -> None:
    """See that *deliverer* is the one that delivers, until the transaction ends."""
    # The row is held, so that nobody takes over in between.
    present = _DELIVERER.column(connection)
    if not present or present[0]["name"] != deliverer:
        raise LostLockError("another process delivers by now")


def _set_fact(connection: sa.Connection, name: str, value: Any) -> None:
    statement = insert(facts).values(name=name, value=value)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
    )


def _event_row(event: NewEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "received_at": event.received_at,
        "state": event.state.value,
        "customer": event.customer,
        "in_body": event.in_body,
        "campaign_id": event.campaign_id,
        "canvas_id": event.canvas_id,
        "test": event.test,
        "dedupe": event.dedupe,
        "key_name": event.key_name,
        "request_id": event.request_id,
        "idempotency_key": event.idempotency_key,
        "content_type": event.content_type,
        "body": event.body,
        "reason": event.reason,
        "done_at": None if event.state is State.QUEUED else event.received_at,
    }


def add_writes(connection: sa.Connection, accepted: Iterable[NewEvent], tally: Tally) -> None:
    """Let the writes of *accepted* events wait, from their acceptance on."""
    rows = [row for event in accepted for row in _write_rows(event)]
    if rows:
        tally.writes(None, State.QUEUED, len(rows))
        insert_many(connection, _ADD_WRITE, rows)


def _write_rows(event: NewEvent) -> Iterable[dict[str, Any]]:
    for write in event.writes:
        yield {
            "event_id": event.id,
            "customer": event.customer,
            "tags": write.tags,
            "ttl": write.ttl,
            "accepted_at": event.received_at,
            "state": State.QUEUED.value,
            "next_at": event.received_at,
            "attempts": 0,
            "reason": "",
            "intent": None,
            "uncertain": False,
            "unknown": False,
        }


def _postpone(connection: sa.Connection, customer: str, until: float) -> None:
    connection.execute(
        writes.update()
        .where(writes.c.state == QUEUED, writes.c.customer == customer, writes.c.next_at < until)
        .values(next_at=until)
    )


def _states(connection: sa.Connection, seqs: Sequence[int]) -> dict[int, State]:
    """The states of writes, which nobody else changes before the transaction ends."""
    return {seq: State(state) for seq, state in _STATES.rows(connection, seqs=seqs)}


def _is_plain(result: Finished) -> bool:
    """Whether *result* is like nearly all of them: delivered, and nothing more to be said."""
    more = result.uncertain or result.unknown or result.intent or result.intent_stands
    return result.state is State.DELIVERED and result.counted and not more


def _record_delivered(
    connection: sa.Connection, results: Iterable[Finished], there: Container[int]
) -> Sequence[int]:
    """As `_record` for many plain results at once: it is the statements that cost time.

    *there* are the writes (by seq) that are stored: one whose customer was erased has no story.
    """
    ended = [(w, result) for result in results for w in result.writes if w.seq in there]
    if not ended:
        return []
    _DELIVERED.many(connection, [{"key": write.seq, "at": result.at} for write, result in ended])
    insert_many(connection, _ADD_ATTEMPT, [_attempt(w.seq, result) for w, result in ended])
    _remember_expiries(connection, [write for write, _ in ended])
    return [write.seq for write, _ in ended]


_DELIVERED = Prepared(
    writes.update()
    .where(writes.c.seq == sa.bindparam("key"))
    .values(
        state=State.DELIVERED.value,
        attempts=writes.c.attempts + 1,
        reason="",
        unknown=False,
        intent=sa.null(),
        done_at=sa.bindparam("at"),
    )
)


def _attempt(seq: int, result: Finished) -> dict[str, Any]:
    return {
        "write_seq": seq,
        "at": result.at,
        "status": result.status,
        "milliseconds": result.milliseconds,
        "outcome": result.outcome,
        "error": result.error,
    }


def _record(connection: sa.Connection, result: Finished) -> Sequence[int]:
    """Record one result; returns the writes (by seq) that it holds for."""
    seqs = [write.seq for write in result.writes]
    waits = result.state is State.QUEUED
    values: dict[str, Any] = {
        "state": result.state.value,
        "attempts": writes.c.attempts + int(result.counted),
        "reason": result.error,
        "uncertain": writes.c.uncertain | result.uncertain,
        "unknown": result.unknown,
        "done_at": None if waits else result.at,
    }
    if not result.intent_stands:
        values["intent"] = dict(result.intent) if result.intent else None
    if waits:
        values["next_at"] = result.next_at
    ended = writes.update().where(writes.c.seq.in_(seqs)).returning(writes.c.seq)
    if result.state is not State.DELIVERED:
        # Discarded while the call was under way: that stands, unless SessionM has it.
        ended = ended.where(writes.c.state == QUEUED)
    updated = connection.execute(ended.values(**values))
    # A write whose customer was erased meanwhile has no story any more.
    kept = updated.scalars().all()
    if not kept:
        return kept
    insert_many(connection, _ADD_ATTEMPT, [_attempt(seq, result) for seq in kept])
    if waits:
        _postpone(connection, result.writes[0].customer, result.next_at)
    if result.state is State.DELIVERED:
        _remember_expiries(connection, result.writes)
    return kept


_EXPIRIES_OF = Prepared(
    sa.select(expiries.c.tag, expiries.c.expires_at).where(
        expiries.c.customer == sa.bindparam("whose"), expiries.c.expires_at > sa.bindparam("now")
    )
)


def _remember_expiries(connection: sa.Connection, delivered: Iterable[QueuedWrite]) -> None:
    rows = [
        {"customer": write.customer, "tag": tag, "expires_at": write.expires_at}
        for write in delivered
        if write.ttl is not None
        for tag in write.tags
    ]
    if rows:
        insert_many(connection, _REMEMBER, rows)


def _remembering() -> sa.Insert:
    statement = insert(expiries)
    return statement.on_conflict_do_update(
        index_elements=["customer", "tag"], set_={"expires_at": statement.excluded.expires_at}
    )


_REMEMBER = _remembering()


def settle(connection: sa.Connection, event_ids: Collection[str], tally: Tally) -> Counter[State]:
    """Give events the state that follows from their writes'; returns how many took which."""
    ids = list(event_ids)
    before = {event.id: event for event in counted(_EVENTS.rows(connection, event_ids=ids))}
    by_event: dict[str, dict[str, tuple[str, float | None]]] = {}
    for event_id, state, reason, done_at in _WRITES_OF.rows(connection, event_ids=ids):
        by_event.setdefault(event_id, {})[state] = (reason, done_at)
    rows = []
    changed: Counter[State] = Counter()
    for event_id, states in by_event.items():
        state = next(s for s in _BY_WEIGHT if s in states)
        reason, done_at = states[state]
        rows.append({"key": event_id, "state": state, "reason": reason, "done_at": done_at})
        event = before[event_id]
        if event.state is not state:
            tally.event(event, event.state, state)
            changed[state] += 1
    if rows:
        _SETTLED.many(connection, rows)
    return changed


_EVENTS = Prepared(
    COUNTED.where(events.c.id.in_(sa.bindparam("event_ids", expanding=True))).with_for_update()
)
_WRITES_OF = Prepared(
    sa.select(writes.c.event_id, writes.c.state, writes.c.reason, writes.c.done_at).where(
        writes.c.event_id.in_(sa.bindparam("event_ids", expanding=True))
    )
)
_SETTLED = Prepared(
    events.update()
    .where(events.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(name) for name in ("state", "reason", "done_at")})
)


# An event is what the weightiest of its writes is.
_BY_WEIGHT = (State.QUEUED, State.DEAD, State.DISCARDED, State.DELIVERED, State.EXPIRED)
