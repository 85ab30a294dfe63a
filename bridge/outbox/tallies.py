"""Numbers of events and writes, updated in the transactions that change events and writes.

So no query has to count rows. There is one row for each campaign and Canvas, one for the stored
events, and one for the writes of each direction.

A campaign's figures are for all time. *accepted* is the number of accepted events (no duplicates; a
rejected event when it is replayed). Each of them is pending (queued), delivered, dead, expired or
discarded. The deletion of an old event changes none of these; an event that is erased before it has
ended counts as discarded. Only *rejected*, and the row of the stored events, count what is still
stored.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from bridge.outbox.model import Direction, NewEvent, State
from bridge.outbox.schema import NUMBERS, STORED, WRITES, events, tallies
from bridge.storage.database import Database
from bridge.storage.expressions import insert
from bridge.storage.statements import Prepared

CAMPAIGNS = ("campaign", "canvas")
_ENDED = (State.DELIVERED, State.EXPIRED, State.DISCARDED)


@dataclass(frozen=True)
class CampaignFigures:
    """Numbers of events of one campaign or Canvas.

    Attributes:
        kind: ``campaign`` or ``canvas``.
        rejected: of the events that are stored.
        last_seen: when the newest of its events was received, in seconds since the epoch.
        name: the latest name that Braze sent, or "".
    """

    kind: str
    id: str
    accepted: int
    pending: int
    delivered: int
    dead: int
    expired: int
    discarded: int
    rejected: int
    last_seen: float
    name: str = ""


class HasCampaign(Protocol):
    """The columns of an event that decide which rows count it."""

    @property
    def campaign_id(self) -> str | None: ...
    @property
    def canvas_id(self) -> str | None: ...
    @property
    def received_at(self) -> float: ...


class TalliedEvent(NamedTuple):
    """A stored event, as `CountChanges.event` needs it."""

    id: str
    state: State
    campaign_id: str | None
    canvas_id: str | None
    received_at: float


def lock_events(
    connection: sa.Connection, *conditions: sa.ColumnElement[bool], limit: int | None = None
) -> list[TalliedEvent]:
    """Return the events that meet all *conditions*, locked until the transaction ends."""
    chosen = TALLIED_EVENTS.where(*conditions).limit(limit)
    return tallied_events(connection.execute(chosen.with_for_update()).all())


TALLIED_EVENTS = sa.select(*(events.c[name] for name in TalliedEvent._fields))


def tallied_events(rows: Iterable[Sequence[Any]]) -> list[TalliedEvent]:
    return [TalliedEvent(*row)._replace(state=State(row[_STATE])) for row in rows]


_STATE = TalliedEvent._fields.index("state")


class CountChanges:
    """Changes of the numbers by one transaction.

    `save` must be its last statement: it locks rows that other transactions also update.
    """

    def __init__(self) -> None:
        self._events: Counter[_Change] = Counter()
        self._writes: Counter[tuple[Direction, State | None, State | None]] = Counter()
        self._names: dict[tuple[str, str], str] = {}
        self._seen_at = 0.0

    def event(self, event: HasCampaign, before: State | None, after: State | None) -> None:
        """Count an event that changes from one state to another; ``None``: it is not stored."""
        self._events[event.campaign_id, event.canvas_id, before, after] += 1
        self._seen_at = max(self._seen_at, event.received_at)

    def add_names(self, event: NewEvent) -> None:
        """Set the names of an accepted event's campaign and Canvas, if Braze sent names."""
        if event.campaign_name and event.campaign_id:
            self._names["campaign", event.campaign_id] = event.campaign_name
        if event.canvas_name and event.canvas_id:
            self._names["canvas", event.canvas_id] = event.canvas_name

    def writes(
        self, direction: Direction, before: State | None, after: State | None, number: int = 1
    ) -> None:
        """Count *number* writes that change from one state to another; ``None``: not stored."""
        self._writes[direction, before, after] += number

    def save(self, connection: sa.Connection) -> None:
        rows = [
            {
                "kind": kind,
                "id": name,
                "last_seen": self._seen_at if _has_new(change) else 0.0,
                "name": self._names.get((kind, name), ""),
                **{column: change[column] for column in NUMBERS},
            }
            # All transactions update rows in the same order: otherwise they could deadlock.
            for (kind, name), change in sorted(self._changes().items())
            if any(change.values())
        ]
        if rows:
            _ADD.many(connection, rows)

    def _changes(self) -> dict[tuple[str, str], Counter[str]]:
        """Return the changes: (kind, id) of a row -> column -> difference."""
        changes: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for (direction, before, after), number in self._writes.items():
            _move(changes[WRITES, direction.value], before, after, number)
        for (campaign, canvas, before, after), number in self._events.items():
            _move(changes[STORED, ""], before, after, number)
            for kind, name in (("campaign", campaign), ("canvas", canvas)):
                if name:
                    _change_campaign(changes[kind, name], before, after, number)
        return changes


def _change_campaign(
    change: Counter[str], before: State | None, after: State | None, number: int
) -> None:
    change[State.REJECTED] += number * ((after is State.REJECTED) - (before is State.REJECTED))
    known = before not in {None, State.REJECTED}
    if known or after is State.QUEUED:
        # A deleted event stays counted in its last state.
        last = after or (before if before in _ENDED else State.DISCARDED)
        _move(change, before if known else None, last, number)
        change["accepted"] += 0 if known else number


def _has_new(change: Counter[str]) -> bool:
    return change["accepted"] > 0 or change[State.REJECTED] > 0


@contextmanager
def counted_write(database: Database) -> Iterator[tuple[sa.Connection, CountChanges]]:
    """Open an exclusive transaction, and yield it with changes that are saved at its end.

    Raises:
        StoreUnavailableError: the transaction failed.
    """
    changes = CountChanges()
    with database.write(exclusive=True) as connection:
        yield connection, changes
        changes.save(connection)


_Change = tuple[str | None, str | None, State | None, State | None]


def _move(change: Counter[str], before: State | None, after: State | None, number: int) -> None:
    if before is not None:
        change[before] -= number
    if after is not None:
        change[after] += number


_INSERT = insert(tallies)
_GIVEN = _INSERT.excluded
_ADD = Prepared(
    _INSERT.on_conflict_do_update(
        index_elements=["kind", "id"],
        set_={
            **{name: tallies.c[name] + _GIVEN[name] for name in NUMBERS},
            "last_seen": sa.case(
                (_GIVEN.last_seen > tallies.c.last_seen, _GIVEN.last_seen),
                else_=tallies.c.last_seen,
            ),
            # A literal, since an insert has no parameters except its rows.
            "name": sa.case(
                (_GIVEN.name != sa.literal_column("''"), _GIVEN.name), else_=tallies.c.name
            ),
        },
    )
)


def events_by_state(connection: sa.Connection) -> dict[State, int]:
    """Return the number of stored events in each state."""
    chosen = tallies.select().where(tallies.c.kind == STORED, tallies.c.id == "")
    row = connection.execute(chosen).mappings().first()
    return {state: row[state] if row else 0 for state in State}


def figures_of(row: sa.RowMapping) -> CampaignFigures:
    """Convert the row of a campaign or Canvas."""
    same = {name: row[name] for name in CampaignFigures.__dataclass_fields__ if name != "pending"}
    return CampaignFigures(**same, pending=row[State.QUEUED])
