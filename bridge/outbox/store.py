"""SQL of intake and delivery: add events, read queued writes that are due, record results."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from bridge import clock
from bridge.outbox.model import (
    AFTER_BATCH,
    CallResult,
    Direction,
    NewEvent,
    QueueDepth,
    QueuedWrite,
    State,
)
from bridge.outbox.schema import (
    QUEUED,
    SENT,
    WRITES,
    attempts,
    events,
    expiries,
    facts,
    has_direction,
    tallies,
    writes,
)
from bridge.outbox.tallies import TALLIED_EVENTS, CountChanges, counted_write, tallied_events
from bridge.storage.database import Database
from bridge.storage.expressions import among, among_selected, insert
from bridge.storage.locks import LostLockError
from bridge.storage.statements import Prepared, read_together

# Name of the shared fact that holds the current deliverer of a direction.
DELIVERER_FACT = {
    Direction.TO_SESSIONM: "deliverer",
    Direction.TO_BRAZE: "deliverer_to_braze",
}
# Writes. Most queued writes of one customer for a page or a lookup.
MOST_PER_CUSTOMER = 500
# Writes. Most rows of one query for the queues of several customers.
MOST_PER_QUERY = 2000


class Store:
    """Events, and the queue of one direction.

    Customers' queues, results, the backlog and the deliverer are those of *direction*; the rest
    concerns both directions. Methods that change something commit before they return.

    Every method raises `StoreUnavailableError` while the database cannot be used.

    Args:
        database: holds events and writes.
        direction: of the queue.
    """

    def __init__(self, database: Database, direction: Direction = Direction.TO_SESSIONM) -> None:
        self.database = database
        self.direction = direction
        self._deliverer_fact = DELIVERER_FACT[direction]

    def add(self, new: Sequence[NewEvent]) -> dict[str, str]:
        """Store *new* events in one transaction.

        Returns:
            Id of each duplicate -> id under which the event was stored before.
        """
        with self.adding() as add:
            return add(new)

    @contextmanager
    def adding(self) -> Iterator[Callable[[Sequence[NewEvent]], dict[str, str]]]:
        """Open a transaction and yield `add`: the caller chooses the events when it has begun."""
        with self.database.write() as connection:
            yield partial(_add, connection)

    def due_queues(
        self, now: float, limit: int, busy: Collection[str]
    ) -> dict[str, list[QueuedWrite]]:
        """Return the queues of customers with a write that is due, the longest due first.

        Args:
            now: seconds since the epoch.
            limit: most due writes to look at.
            busy: customers (keys) to leave out.
        """
        with self.database.read() as connection:
            rows = _DUE_QUEUES.rows(
                connection,
                now=now,
                busy=list(busy),
                most=limit,
                most_writes=MOST_PER_QUERY,
                in_direction=self.direction.value,
            )
        queued = [queued_write(row) for row in rows]
        if len(queued) == MOST_PER_QUERY:
            # The queue of the last customer may be incomplete.
            last = queued[-1].customer
            queued = [write for write in queued if write.customer != last] or queued
        due = sorted((write.next_at, write.seq, write.customer) for write in queued)
        found: dict[str, list[QueuedWrite]] = {customer: [] for _, _, customer in due}
        for write in queued:
            found[write.customer].append(write)
        return found

    def queue_of(self, customer: str) -> list[QueuedWrite]:
        """Return the queued writes of *customer*, oldest first, at most `MOST_PER_CUSTOMER`."""
        with self.database.read() as connection:
            rows = _QUEUE_OF.rows(
                connection,
                of_customer=customer,
                most=MOST_PER_CUSTOMER,
                in_direction=self.direction.value,
            )
        return [queued_write(row) for row in rows]

    def existing(self, seqs: Sequence[int]) -> set[int]:
        """Return those of *seqs* that are stored: the writes of an erased customer are deleted."""
        with self.database.read() as connection:
            return {seq for (seq,) in _STILL_THERE.rows(connection, seqs=seqs)}

    def counters_sent_since(self, customer: str, then: float) -> list[str]:
        """Return the counters of *customer* that were delivered after *then*, with repetitions."""
        chosen = (
            sa.select(writes.c.tags)
            .join(events, events.c.id == writes.c.event_id)
            .where(events.c.customer == customer, writes.c.customer == customer)
            .where(writes.c.ttl.is_(None), writes.c.state == State.DELIVERED.value)
            .where(writes.c.done_at > then)
        )
        with self.database.read() as connection:
            return [tag for tags in connection.execute(chosen).scalars() for tag in tags]

    def _fence(self, connection: sa.Connection, deliverer: str) -> None:
        """Lock the deliverer's row; raise `LostLockError` if it does not name *deliverer*."""
        _check_deliverer(_DELIVERER.rows(connection, fact=self._deliverer_fact), deliverer)

    def sent_since(self, customers: Sequence[str], then: float) -> dict[str, Counter[str]]:
        """Count the deliveries to *customers* after *then*: customer -> target -> number."""
        found: dict[str, Counter[str]] = {customer: Counter() for customer in customers}
        with self.database.read() as connection:
            for customer, target in _SENT_TO.rows(connection, customers=customers, then=then):
                found[customer][target] += 1
        return found

    def receipts_of(self, event_id: str) -> list[str]:
        """Return the destination's ids for the delivered writes of an event, each once."""
        chosen = (
            sa.select(writes.c.receipt)
            .where(writes.c.event_id == event_id, writes.c.receipt != "")
            .order_by(writes.c.seq)
        )
        with self.database.read() as connection:
            return list(dict.fromkeys(connection.execute(chosen).scalars()))

    def has_released(self, name: str) -> bool:
        """Return whether the last deliverer has released the delivery, or was *name* itself."""
        last = self.fact(self._deliverer_fact) or {"name": name}
        return last["name"] == name or bool(last.get("ended"))

    def take_over(self, name: str) -> None:
        """Make *name* the current deliverer: `record` refuses all others from now on."""
        # An open transaction of a deliverer that has died would block this one.
        self.database.end_orphaned_transactions()
        with self.database.write(exclusive=True) as connection:
            _set_fact(connection, self._deliverer_fact, {"name": name, "ended": False})

    def release_delivery(self, name: str) -> None:
        """Record that the deliverer *name* sends nothing more.

        Raises:
            LostLockError: *name* is not the current deliverer.
        """
        with self.database.write(exclusive=True) as connection:
            self._fence(connection, name)
            _set_fact(connection, self._deliverer_fact, {"name": name, "ended": True})

    def intend(self, seqs: Sequence[int], intent: Mapping[str, Any], deliverer: str) -> None:
        """Store the *intent* of a call on its writes before the call is sent.

        Raises:
            LostLockError: *deliverer* is not the current one.
        """
        with self.database.write(exclusive=True) as connection:
            self._fence(connection, deliverer)
            connection.execute(
                writes.update().where(writes.c.seq.in_(seqs)).values(intent=dict(intent))
            )

    def postpone(self, customer: str, until: float) -> None:
        """Let no queued write of *customer* be due before *until*: all keep their order."""
        with self.database.write(exclusive=True) as connection:
            _postpone(connection, customer, until, self.direction)

    def wait_for_batch(self, customer: str) -> None:
        """Let all queued writes of *customer* wait for a batch job, if one of them does."""
        one = writes.alias()
        waiting = sa.select(one.c.seq).where(
            one.c.state == QUEUED,
            one.c.customer == customer,
            one.c.direction == self.direction.value,
            one.c.next_at >= AFTER_BATCH,
        )
        with self.database.write(exclusive=True) as connection:
            connection.execute(
                writes.update()
                .where(writes.c.state == QUEUED, writes.c.customer == customer)
                .where(writes.c.direction == self.direction.value)
                .where(waiting.exists())
                .values(next_at=AFTER_BATCH)
            )

    def newest_queued_at(self) -> float | None:
        """Return when the newest queued write was accepted; ``None`` if none is queued."""
        newest = sa.select(sa.func.max(writes.c.accepted_at)).where(writes.c.state == QUEUED)
        with self.database.read() as connection:
            accepted_at: float | None = connection.execute(newest).scalar()
        return accepted_at

    def if_queue_empty(self, act: Callable[[], None]) -> None:
        """Call *act* if no write is queued, in a transaction in which none can be added."""
        first = sa.select(writes.c.seq).where(writes.c.state == QUEUED).limit(1)
        with self.database.write(exclusive=True) as connection:
            if connection.execute(first).scalar() is None:
                act()

    def make_due(self, now: float, *, unknown: bool = True) -> None:
        """Make every queued write due *now*, except those that wait for a batch.

        Args:
            now: seconds since the epoch.
            unknown: also those whose customer does not exist in SessionM yet.
        """
        later = sa.and_(writes.c.next_at > now, writes.c.next_at < AFTER_BATCH)
        if not unknown:
            later &= writes.c.unknown == sa.false()
        with self.database.write(exclusive=True) as connection:
            connection.execute(
                writes.update().where(writes.c.state == QUEUED, later).values(next_at=now)
            )

    def record(self, results: Sequence[CallResult], deliverer: str | None = None) -> Counter[State]:
        """Record the results of calls in one transaction.

        Args:
            results: of calls that have ended.
            deliverer: the loop that made the calls; ``None`` if no loop did.

        Returns:
            The number of events that changed to each state.

        Raises:
            LostLockError: *deliverer* is not the current one, which handles these writes now.
        """
        ids = sorted({w.event_id for result in results for w in result.writes})
        with counted_write(self.database) as (connection, tally):
            # One round trip for all reads: the database may be far away.
            current, *stored = read_together(
                connection,
                (_DELIVERER, {"fact": self._deliverer_fact}),
                *((one, {"event_ids": ids}) for one in _STATE_QUERIES),
            )
            if deliverer is not None:
                _check_deliverer(current, deliverer)
            states = _EventStates(*stored, direction=self.direction)
            _record(connection, results, states, tally)
            return states.update_events(connection, tally)

    def states_of(self, event_ids: Collection[str]) -> dict[str, State]:
        """Return the states of events by their ids, without events that do not exist."""
        with self.database.read() as connection:
            found = connection.execute(
                sa.select(events.c.id, events.c.state).where(events.c.id.in_(event_ids))
            )
            return {event_id: State(state) for event_id, state in found}

    def expiries_of(self, customer: str, now: float) -> dict[str, float]:
        """Return when tags that the bridge wrote for *customer* expire: tag -> epoch seconds."""
        with self.database.read() as connection:
            return dict(_EXPIRIES_OF.rows(connection, of_customer=customer, now=now))

    def backlog(self) -> QueueDepth:
        """Return the numbers of queued and dead writes, and when the oldest was accepted."""
        with self.database.read() as connection:
            backlog = _BACKLOG[self.direction]
            found = connection.execute(backlog).first() or (0, 0, None, None)
        queued, dead, oldest_at, unknown_at = found
        return QueueDepth(queued, oldest_at, dead, unknown_at)

    def count_unknown(self) -> int:
        """Count the queued writes whose customer does not exist in SessionM yet."""
        with self.database.read() as connection:
            return int(connection.execute(_UNKNOWN[self.direction]).scalar_one())

    def total_queued(self) -> int:
        """Return the number of queued writes in both directions together."""
        total = sa.select(sa.func.sum(tallies.c.queued)).where(tallies.c.kind == WRITES)
        with self.database.read() as connection:
            return int(connection.execute(total).scalar() or 0)

    def fact(self, name: str) -> Any:
        """Return the value of a fact that all processes share; ``None`` if it is not set."""
        with self.database.read() as connection:
            return connection.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar()

    def facts_named(self, prefix: str) -> dict[str, Any]:
        """Return the facts whose names begin with *prefix*, by the rest of their names."""
        chosen = sa.select(facts.c.name, facts.c.value).where(
            facts.c.name.startswith(prefix, autoescape=True)
        )
        with self.database.read() as connection:
            return {name.removeprefix(prefix): value for name, value in connection.execute(chosen)}

    def forget_facts(self, prefix: str, names: Collection[str]) -> None:
        """Delete the facts that `facts_named` returned as *names*."""
        with self.database.autocommit() as connection:
            connection.execute(facts.delete().where(facts.c.name.in_([prefix + n for n in names])))

    def set_fact(self, name: str, value: Any) -> None:
        with self.database.autocommit() as connection:
            _set_fact(connection, name, value)

    def ping(self) -> None:
        """Check that the store can be written.

        Raises:
            StoreUnavailableError: the store cannot be written.
        """
        # A small row may still fit where the next event does not.
        self.database.check_space()
        self.set_fact("ping", clock.now())


def _queued(
    chosen: sa.ColumnElement[Any], direction: Direction, *, unknown: bool
) -> sa.Select[tuple[Any]]:
    return sa.select(chosen).where(
        writes.c.state == QUEUED,
        writes.c.direction == direction.value,
        writes.c.unknown == (sa.true() if unknown else sa.false()),
    )


_OLDEST = sa.func.min(writes.c.accepted_at)
_BACKLOG = {
    direction: sa.select(
        tallies.c.queued,
        tallies.c.dead,
        _queued(_OLDEST, direction, unknown=False).scalar_subquery(),
        _queued(_OLDEST, direction, unknown=True).scalar_subquery(),
    ).where(tallies.c.kind == WRITES, tallies.c.id == direction.value)
    for direction in Direction
}
_UNKNOWN = {direction: _queued(sa.func.count(), direction, unknown=True) for direction in Direction}


def _add(connection: sa.Connection, new: Sequence[NewEvent]) -> dict[str, str]:
    clear_old_dedupe_keys(connection, new)
    # All processes insert in the same order: otherwise equal events could deadlock.
    rows = [event_row(event) for event in sorted(new, key=lambda event: event.dedupe or "")]
    added = _ADD_EVENT.insert(connection, rows)
    duplicates = {} if added == len(new) else _duplicates(connection, new)
    fresh = [event for event in new if event.id not in duplicates] if duplicates else new
    tally = CountChanges()
    for event in fresh:
        tally.event(event, None, event.state)
        tally.add_names(event)
    add_writes(connection, fresh, tally)
    tally.save(connection)
    return duplicates


def clear_old_dedupe_keys(connection: sa.Connection, new: Sequence[NewEvent]) -> None:
    """Clear dedupe keys that are older than their `NewEvent.dedupe_for`."""
    limited = [
        (event.dedupe, event.received_at - event.dedupe_for) for event in new if event.dedupe_for
    ]
    if limited:
        connection.execute(
            events.update()
            .where(
                events.c.dedupe.in_([key for key, _ in limited]),
                events.c.received_at < min(then for _, then in limited),
            )
            .values(dedupe=None)
        )


_ADD_EVENT = Prepared(insert(events).on_conflict_do_nothing(index_elements=["dedupe"]))
_ADD_WRITE = Prepared(writes.insert())
_ADD_ATTEMPT = Prepared(attempts.insert())
_BY_DEDUPE = Prepared(sa.select(events.c.dedupe, events.c.id).where(among(events.c.dedupe, "keys")))


def _duplicates(connection: sa.Connection, new: Sequence[NewEvent]) -> dict[str, str]:
    """Return the duplicates in *new*: id -> id under which the event was stored before."""
    keys = [event.dedupe for event in new if event.dedupe]
    stored = dict(_BY_DEDUPE.rows(connection, keys=keys))
    return {e.id: stored[e.dedupe] for e in new if e.dedupe and stored[e.dedupe] != e.id}


QUEUED_WRITES = sa.select(*(writes.c[name] for name in QueuedWrite.__dataclass_fields__))
_QUEUED_HERE = (writes.c.state == QUEUED, writes.c.direction == sa.bindparam("in_direction"))
# For queries by customer.
_OF_CUSTOMERS = (writes.c.state == QUEUED, has_direction(sa.bindparam("in_direction")))
_QUEUE_OF = Prepared(
    QUEUED_WRITES.where(*_OF_CUSTOMERS, writes.c.customer == sa.bindparam("of_customer"))
    .order_by(writes.c.seq)
    .limit(sa.bindparam("most"))
)
_IS_DUE = (
    *_QUEUED_HERE,
    writes.c.next_at <= sa.bindparam("now"),
    sa.not_(among(writes.c.customer, "busy")),
)
_DUE_CUSTOMERS = (
    sa.select(writes.c.customer)
    .where(*_IS_DUE)
    .order_by(writes.c.next_at, writes.c.seq)
    .limit(sa.bindparam("most"))
)
_DUE_QUEUES = Prepared(
    QUEUED_WRITES.where(*_OF_CUSTOMERS, among_selected(writes.c.customer, _DUE_CUSTOMERS))
    .order_by(writes.c.customer, writes.c.seq)
    .limit(sa.bindparam("most_writes"))
)
_STILL_THERE = Prepared(sa.select(writes.c.seq).where(among(writes.c.seq, "seqs")))


def queued_write(row: Sequence[Any]) -> QueuedWrite:
    seq, event_id, customer, tags, ttl, accepted_at, next_at, tries, intent, target, content = row
    return QueuedWrite(
        seq,
        event_id,
        customer,
        tuple(tags),
        ttl,
        accepted_at,
        next_at,
        tries,
        intent,
        target,
        None if content is None else json.loads(content),
    )


_DELIVERER = Prepared(
    sa.select(facts.c.value).where(facts.c.name == sa.bindparam("fact")).with_for_update(read=True)
)
_SENT_TO = Prepared(
    sa.select(writes.c.customer, writes.c.target).where(
        SENT,
        among(writes.c.customer, "customers"),
        writes.c.done_at > sa.bindparam("then"),
        writes.c.state == State.DELIVERED.value,
    )
)


def _check_deliverer(current: Sequence[Any], deliverer: str) -> None:
    if not current or current[0][0]["name"] != deliverer:
        raise LostLockError("another process has taken over the delivery")


def _set_fact(connection: sa.Connection, name: str, value: Any) -> None:
    statement = insert(facts).values(name=name, value=value)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
    )


# Columns of an event that are fields of `NewEvent` too.
_EVENT_FIELDS = [name for name in NewEvent._fields if name in events.c]


def event_row(event: NewEvent) -> dict[str, Any]:
    return {
        **{name: getattr(event, name) for name in _EVENT_FIELDS},
        "state": event.state.value,
        "direction": event.direction.value,
        "done_at": None if event.state is State.QUEUED else event.received_at,
    }


def add_writes(
    connection: sa.Connection, accepted: Iterable[NewEvent], tally: CountChanges
) -> None:
    """Queue the writes of *accepted* events."""
    rows = []
    for event in accepted:
        rows_of_event = [*_write_rows(event)]
        if rows_of_event:
            tally.writes(event.direction, None, State.QUEUED, len(rows_of_event))
        rows += rows_of_event
    if rows:
        _ADD_WRITE.many(connection, rows)


def _write_rows(event: NewEvent) -> Iterable[dict[str, Any]]:
    for write in event.writes:
        yield _write_row(event, event.customer, tags=write.tags, ttl=write.ttl)
    for send in event.sends:
        content = json.dumps(send.content)
        yield _write_row(event, send.customer, target=send.target, content=content)


def _write_row(
    event: NewEvent,
    customer: str | None,
    tags: tuple[str, ...] = (),
    ttl: int | None = None,
    target: str = "",
    content: str | None = None,
) -> dict[str, Any]:
    return {
        "event_id": event.id,
        "customer": customer,
        "tags": tags,
        "ttl": ttl,
        "accepted_at": event.received_at,
        "state": State.QUEUED.value,
        "next_at": event.received_at,
        "attempts": 0,
        "reason": "",
        "intent": None,
        "uncertain": False,
        "unknown": False,
        "direction": event.direction.value,
        "target": target,
        "content": content,
        "receipt": "",
    }


def _postpone(connection: sa.Connection, customer: str, until: float, direction: Direction) -> None:
    row = {"of_customer": customer, "until": until, "in_direction": direction.value}
    _UPDATE_NEXT_AT.many(connection, [row])


_head = writes.alias("head")
_UPDATE_NEXT_AT = Prepared(
    writes.update()
    .where(
        *_OF_CUSTOMERS,
        writes.c.customer == sa.bindparam("of_customer"),
        writes.c.next_at < sa.bindparam("until"),
    )
    .values(
        next_at=sa.bindparam("until"),
        # What waits behind a write for its customer to be created waits for the same.
        unknown=sa.select(_head.c.unknown)
        .where(
            _head.c.state == QUEUED,
            _head.c.direction == sa.bindparam("in_direction"),
            _head.c.customer == sa.bindparam("of_customer"),
        )
        .order_by(_head.c.seq)
        .limit(1)
        .scalar_subquery(),
    )
)


class _WriteState(NamedTuple):
    """The columns of a write that decide the state of its event."""

    event_id: str
    state: str
    reason: str
    done_at: float | None


class _EventStates:
    """Events and the states of their writes, in one transaction that changes them.

    Args:
        found_events: rows of `_EVENTS_OF`.
        found_writes: rows of `_WRITES_OF`.
        direction: of the writes that change.
    """

    def __init__(
        self,
        found_events: Sequence[Sequence[Any]],
        found_writes: Sequence[Sequence[Any]],
        *,
        direction: Direction = Direction.TO_SESSIONM,
    ) -> None:
        self.direction = direction
        self._events = {event.id: event for event in tallied_events(found_events)}
        self.writes = {seq: _WriteState(*rest) for seq, *rest in found_writes}

    def set_state(self, seq: int, result: CallResult, tally: CountChanges) -> None:
        before = self.writes[seq]
        done_at = None if result.state is State.QUEUED else result.at
        self.writes[seq] = _WriteState(before.event_id, result.state.value, result.error, done_at)
        tally.writes(self.direction, State(before.state), result.state)

    def update_events(self, connection: sa.Connection, tally: CountChanges) -> Counter[State]:
        """Store the state of each event, and return how many events changed to each state."""
        by_event: dict[str, dict[str, _WriteState]] = {}
        for write in self.writes.values():
            by_event.setdefault(write.event_id, {})[write.state] = write
        rows = []
        changed: Counter[State] = Counter()
        for event_id, states in by_event.items():
            state = next(s for s in _BY_PRIORITY if s in states)
            _, _, reason, done_at = states[state]
            rows.append({"key": event_id, "state": state, "reason": reason, "done_at": done_at})
            event = self._events[event_id]
            if event.state is not state:
                tally.event(event, event.state, state)
                changed[state] += 1
        if rows:
            _UPDATE_EVENT.many(connection, rows)
        return changed


def _record(
    connection: sa.Connection,
    results: Sequence[CallResult],
    states: _EventStates,
    tally: CountChanges,
) -> None:
    """Record the results of their writes: one statement for many rows costs less time."""
    ended = [
        (write, result)
        for result in results
        for write in result.writes
        # Writes of an erased customer are not stored. One that was discarded during its call stays
        # discarded, unless it was delivered.
        if (before := states.writes.get(write.seq))
        and (result.state is State.DELIVERED or before.state == State.QUEUED)
    ]
    if not ended:
        return
    _UPDATE_WRITE.many(connection, [_result_of(write.seq, result) for write, result in ended])
    _ADD_ATTEMPT.many(connection, [_attempt(write.seq, result) for write, result in ended])
    retries = {w.customer: r.next_at for w, r in ended if r.state is State.QUEUED}
    for customer, next_at in retries.items():
        _postpone(connection, customer, next_at, states.direction)
    _store_expiries(connection, [w for w, r in ended if r.state is State.DELIVERED])
    for write, result in ended:
        states.set_state(write.seq, result, tally)


def _result_of(seq: int, result: CallResult) -> dict[str, Any]:
    """Return the values of `_UPDATE_WRITE`."""
    is_retry = result.state is State.QUEUED
    return {
        "key": seq,
        "new_state": result.state.value,
        "counted": int(result.counts_attempt),
        "error": result.error,
        "may_have_worked": result.uncertain,
        "is_unknown": result.unknown,
        "new_receipt": result.receipt,
        "at": None if is_retry else result.at,
        "due_at": result.next_at if is_retry else None,
        "keeps_intent": result.keep_intent,
        "new_intent": dict(result.intent) if result.intent else None,
    }


_UPDATE_WRITE = Prepared(
    writes.update()
    .where(writes.c.seq == sa.bindparam("key"))
    .values(
        state=sa.bindparam("new_state"),
        attempts=writes.c.attempts + sa.bindparam("counted"),
        reason=sa.bindparam("error"),
        uncertain=sa.or_(writes.c.uncertain, sa.bindparam("may_have_worked", type_=sa.Boolean)),
        unknown=sa.bindparam("is_unknown"),
        receipt=sa.bindparam("new_receipt"),
        done_at=sa.bindparam("at"),
        next_at=sa.func.coalesce(sa.bindparam("due_at", type_=sa.Float), writes.c.next_at),
        intent=sa.case(
            (sa.bindparam("keeps_intent", type_=sa.Boolean), writes.c.intent),
            else_=sa.bindparam("new_intent", type_=writes.c.intent.type),
        ),
    )
)


def _attempt(seq: int, result: CallResult) -> dict[str, Any]:
    return {
        "write_seq": seq,
        "at": result.at,
        "status": result.status,
        "milliseconds": result.milliseconds,
        "outcome": result.outcome,
        "error": result.error,
    }


_EXPIRIES_OF = Prepared(
    sa.select(expiries.c.tag, expiries.c.expires_at).where(
        expiries.c.customer == sa.bindparam("of_customer"),
        expiries.c.expires_at > sa.bindparam("now"),
    )
)


def _store_expiries(connection: sa.Connection, delivered: Iterable[QueuedWrite]) -> None:
    rows = [
        {"customer": write.customer, "tag": tag, "expires_at": write.expires_at}
        for write in delivered
        if write.ttl is not None
        for tag in write.tags
    ]
    if rows:
        _ADD_EXPIRIES.many(connection, rows)


_INSERT_EXPIRY = insert(expiries)
_ADD_EXPIRIES = Prepared(
    _INSERT_EXPIRY.on_conflict_do_update(
        index_elements=["customer", "tag"], set_={"expires_at": _INSERT_EXPIRY.excluded.expires_at}
    )
)


def update_events(
    connection: sa.Connection, event_ids: Collection[str], tally: CountChanges
) -> Counter[State]:
    """Store the state of each event by its writes; return how many changed to each state."""
    ids = {"event_ids": list(event_ids)}
    states = _EventStates(*read_together(connection, *((one, ids) for one in _STATE_QUERIES)))
    return states.update_events(connection, tally)


_EVENTS_OF = Prepared(TALLIED_EVENTS.where(among(events.c.id, "event_ids")).with_for_update())
_WRITES_OF = Prepared(
    sa.select(writes.c.seq, writes.c.event_id, writes.c.state, writes.c.reason, writes.c.done_at)
    .where(among(writes.c.event_id, "event_ids"))
    .order_by(writes.c.seq)
    .with_for_update()
)
_STATE_QUERIES = (_EVENTS_OF, _WRITES_OF)
_UPDATE_EVENT = Prepared(
    events.update()
    .where(events.c.id == sa.bindparam("key"))
    .values({name: sa.bindparam(name) for name in ("state", "reason", "done_at")})
)


# The state of an event is the first of these that one of its writes has.
_BY_PRIORITY = (State.QUEUED, State.DEAD, State.DISCARDED, State.DELIVERED, State.EXPIRED)
