"""Copy one outbox's events, with their writes and tries, into another outbox.

The service must be stopped. An event keeps its id, and an event that the target has already is not
changed, so an interrupted copy can be repeated. Writes keep their order.

Batches are not copied: SessionM fetches a job's file from a URL of the bridge that submitted it. A
write that waits for a batch is copied as an ordinary queued write.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from bridge.bulk.model import BatchState, Source
from bridge.bulk.schema import batches
from bridge.outbox.clocks import HEARTBEAT_FACTS
from bridge.outbox.delivery import PAUSE_FACT
from bridge.outbox.model import AFTER_BATCH, Direction, State
from bridge.outbox.schema import attempts, events, expiries, facts, tallies, writes
from bridge.outbox.tallies import CountChanges, TalliedEvent
from bridge.storage.database import Database
from bridge.storage.expressions import insert

# Rows that are read at a time.
PAGE = 500
# Uploaded files that are neither delivered nor discarded. Batches of the backlog do not count:
# their contents are copied as writes.
_UNFINISHED = sa.and_(
    batches.c.source != Source.BACKLOG.value,
    batches.c.state.in_((BatchState.QUEUED, BatchState.RUNNING, BatchState.FAILED)),
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class MoveCounts:
    """Numbers of events that were copied, and that the target had already."""

    copied: int = 0
    already_there: int = 0

    def __add__(self, other: "MoveCounts") -> "MoveCounts":
        return MoveCounts(self.copied + other.copied, self.already_there + other.already_there)


@dataclass(frozen=True)
class _StoredEvent:
    """A row of an event, with the rows of its writes and of each write's tries, in order."""

    event: Row
    writes: list[Row] = field(default_factory=list)
    tries: dict[int, list[Row]] = field(default_factory=dict)


class Move:
    """A copy from *source*, which is only read, to *target*."""

    def __init__(self, source: Database, target: Database) -> None:
        self._source = source
        self._target = target

    def unfinished_batches(self) -> int:
        """Return the number of unfinished batches at the source.

        Raises:
            StoreUnavailableError: the source cannot be read.
        """
        counted = sa.select(sa.func.count()).select_from(batches).where(_UNFINISHED)
        with self._source.read() as connection:
            return connection.execute(counted).scalar_one()

    def total_steps(self) -> int:
        """Return the number of steps that `run` will report.

        Raises:
            StoreUnavailableError: the source cannot be read.
        """
        with self._source.read() as connection:
            return sum(
                connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (writes, events, expiries)
            )

    def run(self, progress: Callable[[int], None]) -> MoveCounts:
        """Copy everything.

        Args:
            progress: called after each page with the number of steps done.

        Raises:
            StoreUnavailableError: one of the databases failed; the copy can be repeated.
        """
        moved = MoveCounts()
        for ids, steps in self._pages_of_writes():
            moved += self._copy(ids)
            progress(steps)
        for ids, steps in self._pages_of_events():
            # Only events without writes: the others were copied above.
            moved += self._copy(ids)
            progress(steps)
        for page in self._pages_of_expiries():
            self._copy_expiries(page)
            progress(len(page))
        self._copy_campaign_names()
        self._copy_facts()
        return moved

    def _pages_of_writes(self) -> Iterator[tuple[list[str], int]]:
        """Yield ids of events in the order of their writes, and the number of steps."""
        after = 0
        # An event whose writes are on two pages is copied with the first.
        before: dict[str, None] = {}
        while True:
            page = sa.select(writes.c.seq, writes.c.event_id).where(writes.c.seq > after)
            with self._source.read() as connection:
                found = connection.execute(page.order_by(writes.c.seq).limit(PAGE)).all()
            if not found:
                return
            after = found[-1].seq
            ids = dict.fromkeys(row.event_id for row in found)
            yield [one for one in ids if one not in before], len(found)
            before = ids

    def _pages_of_events(self) -> Iterator[tuple[list[str], int]]:
        """Yield ids of events without writes, and the number of steps."""
        after = ""
        has_writes = sa.exists().where(writes.c.event_id == events.c.id)
        while True:
            page = sa.select(events.c.id, has_writes.label("has_writes")).where(events.c.id > after)
            with self._source.read() as connection:
                found = connection.execute(page.order_by(events.c.id).limit(PAGE)).all()
            if not found:
                return
            after = found[-1].id
            yield [row.id for row in found if not row.has_writes], len(found)

    def _pages_of_expiries(self) -> Iterator[list[Row]]:
        customer, tag = "", ""
        place = sa.tuple_(expiries.c.customer, expiries.c.tag)
        while True:
            page = sa.select(expiries).where(place > sa.tuple_(customer, tag))
            ordered = page.order_by(expiries.c.customer, expiries.c.tag).limit(PAGE)
            with self._source.read() as connection:
                found: list[Row] = [dict(row) for row in connection.execute(ordered).mappings()]
            if not found:
                return
            customer, tag = found[-1]["customer"], found[-1]["tag"]
            yield found

    def _copy(self, ids: Sequence[str]) -> MoveCounts:
        if not ids:
            return MoveCounts()
        with self._source.read() as connection:
            stored = _stored_events(connection, ids)
        there = sa.select(events.c.id).where(events.c.id.in_(ids))
        with self._target.write(exclusive=True) as connection:
            known = set(connection.execute(there).scalars())
            tally = CountChanges()
            copied = sum(
                _add(connection, stored[event_id], tally)
                for event_id in ids
                if event_id in stored and event_id not in known
            )
            tally.save(connection)
        return MoveCounts(copied, len(stored) - copied)

    def _copy_expiries(self, page: list[Row]) -> None:
        with self._target.write() as connection:
            connection.execute(insert(expiries).on_conflict_do_nothing(), page)

    def _copy_campaign_names(self) -> None:
        """Copy the names that Braze gave to the campaigns and Canvases of copied events."""
        named = sa.select(
            tallies.c.kind.label("of_kind"), tallies.c.id.label("of_id"), tallies.c.name
        ).where(tallies.c.name != "")
        with self._source.read() as connection:
            found = [dict(row) for row in connection.execute(named).mappings()]
        if not found:
            return
        is_same = sa.and_(
            tallies.c.kind == sa.bindparam("of_kind"), tallies.c.id == sa.bindparam("of_id")
        )
        with self._target.write() as connection:
            connection.execute(tallies.update().where(is_same, tallies.c.name == ""), found)

    def _copy_facts(self) -> None:
        """Copy the operator's pause, and the time until which SessionM asked to wait."""
        for name in (PAUSE_FACT, *HEARTBEAT_FACTS.values()):
            chosen = sa.select(facts.c.value).where(facts.c.name == name)
            with self._source.read() as connection:
                ours = connection.execute(chosen).scalar()
            if ours is None:
                continue
            given = insert(facts).values(name=name, value=ours)
            with self._target.write(exclusive=True) as connection:
                connection.execute(given.on_conflict_do_nothing())


def _stored_events(connection: sa.Connection, ids: Sequence[str]) -> dict[str, _StoredEvent]:
    chosen = connection.execute(events.select().where(events.c.id.in_(ids))).mappings()
    found = {row["id"]: _StoredEvent(dict(row)) for row in chosen}
    ordered = writes.select().where(writes.c.event_id.in_(ids)).order_by(writes.c.seq)
    by_seq: dict[int, _StoredEvent] = {}
    for row in connection.execute(ordered).mappings():
        stored = found[row["event_id"]]
        in_batch = row["next_at"] >= AFTER_BATCH
        stored.writes.append({**row, "next_at": row["accepted_at"] if in_batch else row["next_at"]})
        by_seq[row["seq"]] = stored
    tried = (
        attempts.select()
        .join(writes, writes.c.seq == attempts.c.write_seq)
        .where(writes.c.event_id.in_(ids))
        .order_by(attempts.c.write_seq, attempts.c.id)
    )
    rows = [dict(row) for row in connection.execute(tried).mappings()]
    for seq, of_one in groupby(rows, key=lambda row: row["write_seq"]):
        by_seq[seq].tries[seq] = list(of_one)
    return found


def _add(connection: sa.Connection, stored: _StoredEvent, tally: CountChanges) -> bool:
    """Add an event; return false if the target has the same event under another id."""
    added = insert(events).on_conflict_do_nothing().returning(events.c.id)
    if connection.execute(added, [dict(stored.event)]).scalar() is None:
        return False
    event, state = _counted(stored.event), State(stored.event["state"])
    if stored.writes:
        # Count it as accepted first, as the source did.
        tally.event(event, None, State.QUEUED)
        tally.event(event, State.QUEUED, state)
    else:
        tally.event(event, None, state)
    _add_writes(connection, stored, tally)
    return True


def _counted(event: Row) -> TalliedEvent:
    return TalliedEvent(**{name: event[name] for name in TalliedEvent._fields})


def _add_writes(connection: sa.Connection, stored: _StoredEvent, tally: CountChanges) -> None:
    for write in stored.writes:
        tally.writes(Direction(write["direction"]), None, State(write["state"]))
        values = {name: value for name, value in write.items() if name != "seq"}
        seq = connection.execute(
            writes.insert().returning(writes.c.seq).values(**values)
        ).scalar_one()
        _add_tries(connection, stored.tries.get(write["seq"], []), seq)


def _add_tries(connection: sa.Connection, tries: Sequence[Row], seq: int) -> None:
    if tries:
        rows = [{**row, "write_seq": seq} for row in tries]
        for row in rows:
            del row["id"]
        connection.execute(attempts.insert(), rows)
