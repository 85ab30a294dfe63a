"""How many events and writes there are, kept up by the transactions that change them.

So nobody has to count, however many there are. One row for each campaign and Canvas, one for the
stored events, one for the writes.

A campaign's figures are those of all time: *accepted* is every event that was taken in (no
duplicates; a rejected one when it is replayed), and each of them is pending (queued), delivered,
dead, expired or discarded. Forgetting an old event changes none of these; an event that is erased
before it has ended counts as discarded. The row of the stored events tells what can be found now.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from bridge.outbox.schema import NUMBERS, STORED, WRITES, State, events, tallies
from bridge.statements import insert, insert_many

CAMPAIGNS = ("campaign", "canvas")
_ENDED = (State.DELIVERED, State.EXPIRED, State.DISCARDED)


@dataclass(frozen=True)
class CampaignFigures:
    """What became of one campaign's or Canvas's events; *last_seen*: the latest acceptance.

    *kind* is ``campaign`` or ``canvas``.
    """

    kind: str
    id: str
    accepted: int
    pending: int
    delivered: int
    dead: int
    expired: int
    discarded: int
    last_seen: float


class OfCampaign(Protocol):
    """An event, as far as counting it goes."""

    @property
    def campaign_id(self) -> str | None: ...
    @property
    def canvas_id(self) -> str | None: ...
    @property
    def received_at(self) -> float: ...


class Counted(NamedTuple):
    """A stored event that is about to change."""

    id: str
    state: State
    campaign_id: str | None
    canvas_id: str | None
    received_at: float


def about_to_change(
    connection: sa.Connection, *conditions: sa.ColumnElement[bool], limit: int | None = None
) -> list[Counted]:
    """The events of which all *conditions* hold; nobody else changes them before the end."""
    chosen = COUNTED.where(*conditions).limit(limit)
    return counted(connection.execute(chosen.with_for_update()).all())


# What a `Counted` is made of.
COUNTED = sa.select(*(events.c[name] for name in Counted._fields))


def counted(rows: Iterable[Sequence[Any]]) -> list[Counted]:
    """What `COUNTED` has found."""
    return [Counted(*row)._replace(state=State(row[_STATE])) for row in rows]


_STATE = Counted._fields.index("state")


class Tally:
    """What one transaction changes; `keep` writes it, as the last thing that is done there.

    Last, because from then on others who count the same campaign wait for the commit.
    """

    def __init__(self) -> None:
        self._events: Counter[_Change] = Counter()
        self._writes: Counter[tuple[State | None, State | None]] = Counter()
        self._seen_at = 0.0

    def event(self, event: OfCampaign, before: State | None, after: State | None) -> None:
        """An event goes from one state to another; ``None``: it is not stored."""
        # Aggregated as it comes: of a batch most are alike.
        self._events[event.campaign_id, event.canvas_id, before, after] += 1
        self._seen_at = max(self._seen_at, event.received_at)

    def writes(self, before: State | None, after: State | None, number: int = 1) -> None:
        """So many writes go from one state to another; ``None``: they are not stored."""
        self._writes[before, after] += number

    def keep(self, connection: sa.Connection) -> None:
        rows = [
            {
                "kind": kind,
                "id": name,
                "last_seen": self._seen_at if change["accepted"] else 0.0,
                **{column: change[column] for column in NUMBERS},
            }
            # In one order, so that no two wait for each other.
            for (kind, name), change in sorted(self._changes().items())
            if any(change.values())
        ]
        if rows:
            insert_many(connection, _ADD, rows)

    def _changes(self) -> dict[tuple[str, str], Counter[str]]:
        """By how much which numbers of which row change."""
        changes: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for (before, after), number in self._writes.items():
            _move(changes[WRITES, ""], before, after, number)
        for (campaign, canvas, before, after), number in self._events.items():
            _move(changes[STORED, ""], before, after, number)
            known = before not in {None, State.REJECTED}
            if not (known or after is State.QUEUED):
                continue
            # An erased or forgotten event stays where it ended.
            stands = after or (before if before in _ENDED else State.DISCARDED)
            for kind, name in (("campaign", campaign), ("canvas", canvas)):
                if name:
                    _move(changes[kind, name], before if known else None, stands, number)
                    changes[kind, name]["accepted"] += 0 if known else number
        return changes


_Change = tuple[str | None, str | None, State | None, State | None]


def _move(change: Counter[str], before: State | None, after: State | None, number: int) -> None:
    if before is not None:
        change[before] -= number
    if after is not None:
        change[after] += number


def _adding() -> sa.Insert:
    statement = insert(tallies)
    given = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["kind", "id"],
        set_={
            **{name: tallies.c[name] + given[name] for name in NUMBERS},
            "last_seen": sa.case(
                (given.last_seen > tallies.c.last_seen, given.last_seen),
                else_=tallies.c.last_seen,
            ),
        },
    )


_ADD = _adding()


def stored(connection: sa.Connection) -> dict[State, int]:
    """How many stored events there are in each state."""
    chosen = tallies.select().where(tallies.c.kind == STORED, tallies.c.id == "")
    row = connection.execute(chosen).mappings().first()
    return {state: row[state] if row else 0 for state in State}


def figures_of(row: sa.RowMapping) -> CampaignFigures:
    """A campaign's row as its figures."""
    same = {name: row[name] for name in CampaignFigures.__dataclass_fields__ if name != "pending"}
    return CampaignFigures(**same, pending=row[State.QUEUED])
