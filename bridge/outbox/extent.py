"""Numbers of customers and campaigns of the queued and of the dead writes.

At most `COUNTED_WRITES` writes are read, so that a long queue does not slow the query down.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from bridge import clock
from bridge.outbox.model import MOST_CAMPAIGNS, DeadGroup, Direction, Extent, State, id_prefix
from bridge.outbox.schema import DEAD, QUEUED, WRITES, events, tallies, writes
from bridge.storage.database import Database

# Writes, or events, that one query reads at most.
COUNTED_WRITES = 5_000
# Groups of dead writes; the last one holds the rest.
MOST_GROUPS = 20
# Seconds for which the extent of the queue is cached.
CACHED_FOR = 2.0

# Parts that differ between reasons of the same kind: quoted words, e-mail addresses, and words with
# three digits or more, except the status of an answer.
_VARYING = re.compile(
    r"""'[^']*'|"[^"]*"|“[^”]*”|\S+@\S+|(?<!\bHTTP )[\w.@%+-]*(?:\d[\w.@%+-]*){3,}"""
)
# Reasons that do not depend on the write: SessionM was unreachable or too busy.
_PASSING = re.compile(
    r"HTTP (?:408|425|429|5\d\d)|no connection|no answer|connection broke|timed? ?out"
    r"|no SessionM answer",
    re.IGNORECASE,
)


class Extents:
    """Extents of one direction. Results are cached for `CACHED_FOR`, or until they change."""

    def __init__(self, database: Database, direction: Direction = Direction.TO_SESSIONM) -> None:
        self._database = database
        self._direction = direction
        self._lock = threading.Lock()
        self._queue: tuple[float, Extent] | None = None
        self._dead: tuple[Any, list[DeadGroup]] | None = None

    def queue(self) -> Extent:
        """Return the extent of the queued writes."""
        with self._lock:
            now = clock.steady()
            if self._queue is None or now - self._queue[0] > CACHED_FOR:
                self._queue = (now, self._count_queue())
            return self._queue[1]

    def dead(self) -> list[DeadGroup]:
        """Return the dead writes by reason, the largest group first."""
        with self._lock, self._database.read() as connection:
            state = self._dead_state(connection)
            # Not cached: `mended` can change while the dead writes do not.
            if self._dead is None or self._dead[0] != state:
                self._dead = (state, self._dead_groups(connection, state[0]))
            return [replace(group, mended=_is_mended(connection, group)) for group in self._dead[1]]

    def _count_queue(self) -> Extent:
        with self._database.read() as connection:
            rows = self._rows(connection, QUEUED, writes.c.next_at)
            queued = self._total(connection, tallies.c.queued)
        return _extent(queued, rows)

    def _total(self, connection: sa.Connection, column: "sa.Column[int]") -> int:
        chosen = sa.select(column).where(tallies.c.kind == WRITES, tallies.c.id == self._direction)
        return connection.execute(chosen).scalar() or 0

    def _dead_state(self, connection: sa.Connection) -> tuple[Any, ...]:
        """Return their number, and values that change whenever the dead writes change."""
        read = (
            sa.select(writes.c.seq, writes.c.done_at)
            .where(writes.c.state == DEAD, writes.c.direction == self._direction)
            .order_by(writes.c.seq.desc())
            .limit(COUNTED_WRITES)
            .subquery()
        )
        # A write that was replayed and died again may have another reason.
        newest = sa.select(sa.func.max(read.c.seq), sa.func.max(read.c.done_at))
        return self._total(connection, tallies.c.dead), *connection.execute(newest).one()

    def _rows(
        self,
        connection: sa.Connection,
        state: sa.ColumnElement[str],
        order: sa.ColumnElement[Any],
    ) -> list[Any]:
        chosen = (
            sa.select(
                writes.c.event_id,
                writes.c.customer,
                events.c.campaign_id,
                events.c.canvas_id,
                writes.c.reason,
                writes.c.uncertain,
                writes.c.done_at,
            )
            .join(events, events.c.id == writes.c.event_id)
            .where(writes.c.state == state, writes.c.direction == self._direction)
            .order_by(order)
            .limit(COUNTED_WRITES)
        )
        return list(connection.execute(chosen))

    def _dead_groups(self, connection: sa.Connection, number: int) -> list[DeadGroup]:
        rows = self._rows(connection, DEAD, writes.c.seq.desc()) if number else []
        groups: dict[str, list[Any]] = {}
        for row in rows:
            groups.setdefault(kind_of(row.reason), []).append(row)
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        if len(ordered) > MOST_GROUPS:
            rest = [row for _, several in ordered[MOST_GROUPS - 1 :] for row in several]
            ordered = [*ordered[: MOST_GROUPS - 1], ("other reasons", rest)]
        left = number - len(rows)
        return [
            DeadGroup(
                reason=reason,
                text=text_of(reason) if reason != "other reasons" else "",
                since=min(row.done_at or 0.0 for row in several),
                until=max(row.done_at or 0.0 for row in several),
                # Writes that were not read count with the largest group.
                extent=replace(
                    _extent(len(several) + (left if place == 0 else 0), several),
                    is_minimum=left > 0,
                ),
                passing=all(_PASSING.search(row.reason) for row in several),
                uncertain=any(row.uncertain for row in several),
            )
            for place, (reason, several) in enumerate(ordered)
        ]


def _extent(number: int, rows: Sequence[Any]) -> Extent:
    named = Counter(one for row in rows for one in (row.campaign_id, row.canvas_id) if one)
    # In a stable order where numbers are equal.
    largest = sorted(named, key=lambda name: (-named[name], name))
    return Extent(
        number,
        len({row.customer for row in rows}),
        tuple(largest[:MOST_CAMPAIGNS]),
        is_minimum=number > len(rows),
        events=len({row.event_id for row in rows}),
    )


def _is_mended(connection: sa.Connection, group: DeadGroup) -> bool:
    """Return whether the main campaign has a delivered event after the group's last dead write."""
    for campaign in group.extent.campaigns[:1]:
        for column in (events.c.campaign_id, events.c.canvas_id):
            newest = (
                sa.select(events.c.state)
                .where(column == campaign, events.c.id >= id_prefix(group.until))
                .order_by(events.c.id.desc())
                .limit(COUNTED_WRITES)
                .subquery()
            )
            delivered = sa.select(newest).where(newest.c.state == State.DELIVERED).limit(1)
            if connection.execute(delivered).first():
                return True
    return False


def kind_of(reason: str) -> str:
    """Replace the parts of a reason that differ between writes by "…"."""
    return _VARYING.sub("…", reason).strip().rstrip(".") or "no reason"


def text_of(kind: str) -> str:
    """Return the longest part of a result of `kind_of` that all such reasons share."""
    return max(_parts(kind), key=len, default="")


def _parts(kind: str) -> Iterable[str]:
    parts = (part.strip(" ,;:") for part in kind.split("…") if kind != "no reason")
    return filter(None, parts)
