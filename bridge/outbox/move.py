"""Moving house: one outbox's events, with their writes and tries, into another's.

Nothing is ever copied twice, however often it is run: an event keeps its id. In a further run, what
has happened at the source since the last one is brought up to date, as far as the target has not
gone on by itself. The writes arrive in the order in which they waited.

Batches stay behind: SessionM knows a job's file by a URL of the bridge that it was submitted by. So
no write waits for one any more where it arrives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from bridge.database import Database
from bridge.outbox.delivery import HEARTBEAT_FACT, PAUSE_FACT
from bridge.outbox.jobs import BatchState, Source
from bridge.outbox.schema import HELD, State, attempts, batches, events, expiries, facts, writes
from bridge.outbox.store import settle
from bridge.outbox.tallies import Counted, Tally
from bridge.statements import insert

BATCH = 500
_OPEN = {State.QUEUED.value, State.DEAD.value}
# Files that were taken in, and are neither done nor given up. What the backlog's batches hold is
# moved as writes.
_LEFT_BEHIND = sa.and_(
    batches.c.source != Source.BACKLOG.value,
    batches.c.state.in_((BatchState.QUEUED, BatchState.RUNNING, BatchState.FAILED)),
)
# What changes in a write while it waits and when it ends.
_PROGRESS = (
    "state",
    "next_at",
    "attempts",
    "reason",
    "intent",
    "uncertain",
    "unknown",
    "done_at",
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Moved:
    """How many events were copied, brought up to date, or there already."""

    copied: int = 0
    renewed: int = 0
    known: int = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(
            self.copied + other.copied, self.renewed + other.renewed, self.known + other.known
        )


@dataclass(frozen=True)
class _Story:
    """An event as it is stored, with its writes in order, and each write's tries in order."""

    event: Row
    writes: list[Row] = field(default_factory=list)
    tries: dict[int, list[Row]] = field(default_factory=dict)


class Move:
    """From *source* to *target*.

    Args:
        source: is read only.
        target: what is copied to.
        alone: nobody delivers from the target meanwhile, so that what waits there may be changed.
    """

    def __init__(self, source: Database, target: Database, *, alone: bool) -> None:
        self._source = source
        self._target = target
        self._alone = alone

    def left_behind(self) -> int:
        """How many batches at the source are not over."""
        counted = sa.select(sa.func.count()).select_from(batches).where(_LEFT_BEHIND)
        with self._source.read() as connection:
            return connection.execute(counted).scalar_one()

    def length(self) -> int:
        """How many steps `run` takes, as it tells them."""
        with self._source.read() as connection:
            return sum(
                connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (writes, events, expiries)
            )

    def run(self, told: Callable[[int], None]) -> Moved:
        """Copy everything; *told* hears after each batch how many steps it was.

        Raises:
            StoreUnavailableError: one of the databases failed; run it again.
        """
        moved = Moved()
        for ids, steps in self._pages_of_writes():
            moved += self._copy(ids)
            told(steps)
        for ids, steps in self._pages_of_events():
            # Those with writes have been copied above.
            moved += self._copy(ids)
            told(steps)
        for page in self._pages_of_expiries():
            self._copy_expiries(page)
            told(len(page))
        self._copy_facts()
        return moved

    def _pages_of_writes(self) -> Iterator[tuple[list[str], int]]:
        """Events in the order in which their writes wait."""
        after = 0
        while True:
            page = sa.select(writes.c.seq, writes.c.event_id).where(writes.c.seq > after)
            with self._source.read() as connection:
                found = connection.execute(page.order_by(writes.c.seq).limit(BATCH)).all()
            if not found:
                return
            after = found[-1].seq
            yield list(dict.fromkeys(row.event_id for row in found)), len(found)

    def _pages_of_events(self) -> Iterator[tuple[list[str], int]]:
        """The events that have no writes."""
        after = ""
        has_writes = sa.exists().where(writes.c.event_id == events.c.id)
        while True:
            page = sa.select(events.c.id, has_writes.label("has_writes")).where(events.c.id > after)
            with self._source.read() as connection:
                found = connection.execute(page.order_by(events.c.id).limit(BATCH)).all()
            if not found:
                return
            after = found[-1].id
            yield [row.id for row in found if not row.has_writes], len(found)

    def _pages_of_expiries(self) -> Iterator[list[Row]]:
        customer, tag = "", ""
        place = sa.tuple_(expiries.c.customer, expiries.c.tag)
        while True:
            page = sa.select(expiries).where(place > sa.tuple_(customer, tag))
            ordered = page.order_by(expiries.c.customer, expiries.c.tag).limit(BATCH)
            with self._source.read() as connection:
                found: list[Row] = [dict(row) for row in connection.execute(ordered).mappings()]
            if not found:
                return
            customer, tag = found[-1]["customer"], found[-1]["tag"]
            yield found

    def _copy(self, ids: Sequence[str]) -> Moved:
        if not ids:
            return Moved()
        with self._source.read() as connection:
            stories = _stories(connection, ids)
        with self._target.write(alone=True) as connection:
            theirs = _stories(connection, ids)
            moved, tally = Moved(), Tally()
            fresh = [stories[i] for i in ids if i in stories and i not in theirs]
            for story in fresh:
                moved += Moved(copied=1) if _add(connection, story, tally) else Moved(known=1)
            renewed = [
                event_id
                for event_id in theirs
                if event_id in stories
                and self._renew(connection, stories[event_id], theirs[event_id], tally)
            ]
            settle(connection, renewed, tally)
            tally.keep(connection)
            return moved + Moved(renewed=len(renewed), known=len(theirs) - len(renewed))

    def _renew(self, connection: sa.Connection, ours: _Story, theirs: _Story, tally: Tally) -> bool:
        """Bring an event of the target's up to date; whether anything had changed."""
        if ours.writes and not theirs.writes:
            # It was rejected, and has been taken in since.
            values = {name: ours.event[name] for name in ours.event if name != "id"}
            same = events.c.id == ours.event["id"]
            connection.execute(
                events.update().where(same).values(**{**values, "state": State.QUEUED.value})
            )
            tally.event(_counted(ours.event), State(theirs.event["state"]), State.QUEUED)
            _add_writes(connection, ours, tally)
            return True
        changed = False
        for mine, other in zip(ours.writes, theirs.writes, strict=False):
            progress = {name: mine[name] for name in _PROGRESS}
            ended = mine["state"] not in _OPEN
            if (
                other["state"] in _OPEN
                and (ended or self._alone)
                and any(other[name] != value for name, value in progress.items())
            ):
                changed = True
                tally.writes(State(other["state"]), State(mine["state"]))
                connection.execute(
                    writes.update().where(writes.c.seq == other["seq"]).values(**progress)
                )
                done = len(theirs.tries.get(other["seq"], []))
                _add_tries(connection, ours.tries.get(mine["seq"], [])[done:], other["seq"])
        return changed

    def _copy_expiries(self, page: list[Row]) -> None:
        statement = insert(expiries)
        if self._alone:
            statement = statement.on_conflict_do_update(
                index_elements=["customer", "tag"],
                set_={"expires_at": statement.excluded.expires_at},
            )
        else:
            statement = statement.on_conflict_do_nothing()
        with self._target.write() as connection:
            connection.execute(statement, page)

    def _copy_facts(self) -> None:
        """Whether it is paused by hand, and until when SessionM asked to wait."""
        for name in (PAUSE_FACT, HEARTBEAT_FACT):
            chosen = sa.select(facts.c.value).where(facts.c.name == name)
            with self._source.read() as connection:
                ours = connection.execute(chosen).scalar()
            if ours is None:
                continue
            with self._target.write(alone=True) as connection:
                theirs = connection.execute(chosen).scalar()
                if theirs is None:
                    connection.execute(facts.insert().values(name=name, value=ours))
                elif theirs.get("at", 0.0) < ours.get("at", 0.0):
                    same = facts.c.name == name
                    connection.execute(facts.update().where(same).values(value=ours))


def _stories(connection: sa.Connection, ids: Sequence[str]) -> dict[str, _Story]:
    chosen = connection.execute(events.select().where(events.c.id.in_(ids))).mappings()
    found = {row["id"]: _Story(dict(row)) for row in chosen}
    ordered = writes.select().where(writes.c.event_id.in_(ids)).order_by(writes.c.seq)
    by_seq: dict[int, _Story] = {}
    for row in connection.execute(ordered).mappings():
        story = found[row["event_id"]]
        held = row["next_at"] >= HELD
        story.writes.append({**row, "next_at": row["accepted_at"] if held else row["next_at"]})
        by_seq[row["seq"]] = story
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


def _add(connection: sa.Connection, story: _Story, tally: Tally) -> bool:
    """Add a story that is not there; false if the same event has come under another id."""
    added = insert(events).on_conflict_do_nothing().returning(events.c.id)
    if connection.execute(added, [dict(story.event)]).scalar() is None:
        return False
    event, state = _counted(story.event), State(story.event["state"])
    if story.writes:
        # It was accepted once, and is counted so.
        tally.event(event, None, State.QUEUED)
        tally.event(event, State.QUEUED, state)
    else:
        tally.event(event, None, state)
    _add_writes(connection, story, tally)
    return True


def _counted(event: Row) -> Counted:
    return Counted(**{name: event[name] for name in Counted._fields})


def _add_writes(connection: sa.Connection, story: _Story, tally: Tally) -> None:
    for write in story.writes:
        tally.writes(None, State(write["state"]))
        values = {name: value for name, value in write.items() if name != "seq"}
        seq = connection.execute(
            writes.insert().returning(writes.c.seq).values(**values)
        ).scalar_one()
        _add_tries(connection, story.tries.get(write["seq"], []), seq)


def _add_tries(connection: sa.Connection, tries: Sequence[Row], seq: int) -> None:
    if tries:
        rows = [{**row, "write_seq": seq} for row in tries]
        for row in rows:
            del row["id"]
        connection.execute(attempts.insert(), rows)
