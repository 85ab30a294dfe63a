"""Search of stored events. The condition with the fewest events chooses the index."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bridge.fields import TEXT_SCHEMA, FieldError, duration, instant, text
from bridge.outbox.model import Direction, State, id_prefix
from bridge.outbox.schema import HAS_REASON, SENT, events, tallies, writes
from bridge.outbox.tallies import CAMPAIGNS, events_by_state

# Events that are read at most for one page.
MOST_READ = 5_000
# Value of the filter `customer` that matches events without a readable customer. No identifier
# equals it.
NOBODY = "(none)"


@dataclass(frozen=True)
class Filter:
    """Conditions of a search. An event must meet all conditions that are set.

    Attributes:
        customer: an identifier; `NOBODY` for events without a readable one.
        campaign: ID of a campaign or Canvas.
        since: earliest time of receipt, in seconds since the epoch.
        text: part of the reason.
        uncertain: whether a dead or discarded message of the event may have been sent by Braze.
            Applies only where events are changed or counted for a change.
        kind: of the customer's identifier; "" for any.
    """

    state: State | None = None
    customer: str = ""
    campaign: str = ""
    since: float = 0.0
    text: str = ""
    direction: Direction | None = None
    uncertain: bool | None = None
    kind: str = ""


# Parameters of a filter -> JSON schema.
FILTERS: dict[str, dict[str, Any]] = {
    "state": {"enum": [*State, "", None], "description": "Of the event."},
    "customer": {
        **TEXT_SCHEMA,
        "description": f"An ID of the customer, of either kind; `{NOBODY}`: no readable ID.",
    },
    "campaign": {**TEXT_SCHEMA, "description": "An ID of a campaign or Canvas."},
    "since": {
        **TEXT_SCHEMA,
        "description": "A time such as 2026-12-01T08:00:00Z, or how long ago: 2h, 7d.",
    },
    "text": {**TEXT_SCHEMA, "description": "Words of the reason."},
    "direction": {
        "enum": [*Direction, "", None],
        "description": "`to_sessionm`: tags of Braze's webhooks; `to_braze`: SessionM's messages.",
    },
}


def read_filter(given: Mapping[str, Any], now: float) -> Filter:
    """Read a filter from the parameters ``state customer campaign since text direction``.

    ``since`` is a date and time, or a duration before *now* such as ``2h``.

    Raises:
        FieldError: a parameter is invalid or unknown.
    """
    for name in given:
        if name not in FILTERS:
            raise FieldError(f'"{name[:60]}"', "is not a filter")
    state = text(given.get("state"), "state")
    if state is not None and state not in set(State):
        raise FieldError("state", f"must be one of {', '.join(State)}")
    direction = text(given.get("direction"), "direction")
    if direction is not None and direction not in set(Direction):
        raise FieldError("direction", f"must be one of {', '.join(Direction)}")
    return Filter(
        direction=Direction(direction) if direction else None,
        state=State(state) if state else None,
        customer=text(given.get("customer"), "customer") or "",
        campaign=text(given.get("campaign"), "campaign") or "",
        since=_since(text(given.get("since"), "since"), now),
        text=text(given.get("text"), "text") or "",
    )


def _since(value: str | None, now: float) -> float:
    if value is None:
        return 0.0
    if (at := instant(value)) is not None and not value.isdecimal():
        return max(0.0, at)
    try:
        return max(0.0, now - duration(value))
    except ValueError:
        raise FieldError(
            "since", "must be a time such as 2026-12-01T08:00:00Z, or how long ago: 2h, 7d"
        ) from None


class Search:
    """One search, within a transaction.

    The leading condition is the one with the fewest events, by the tallies. It has an index that
    sorts by time; all other conditions are checked on the rows of that index. Some conditions need
    two index ranges (an ID may be of a campaign or of a Canvas). Each range is read separately:
    together the database would have to sort them.
    """

    def __init__(self, connection: sa.Connection, criteria: Filter) -> None:
        self._connection = connection
        self._criteria = criteria
        self._time = [events.c.id >= id_prefix(criteria.since)] if criteria.since else []
        leads = _leads(connection, criteria)
        lead = min(leads, key=lambda name: leads[name][0])
        self._ranges = leads[lead][1]
        # For `customer IS NULL`, PostgreSQL uses the index only if it sorts by the customer too.
        self._oldest_first = [events.c.customer] * (lead == "nobody") + [events.c.id]
        self._newest_first = [column.desc() for column in self._oldest_first]
        # The index on reasons does not contain their words: the text is always checked.
        self._checked = [
            name
            for name in _COLUMNS
            if getattr(criteria, name) and (name != lead or name == "text")
        ]

    def newest(self, before: str, limit: int) -> tuple[list[str], str]:
        """Return the newest matching events that are older than the id *before*.

        Returns:
            Up to *limit* ids, fewer if `MOST_READ` events were read first; and the value of
            *before* for the next page, "" if there is none.
        """
        found: set[str] = set()
        end = ""
        for condition in self._ranges:
            older = [condition, *self._time, *([events.c.id < before] if before else [])]
            ids = self._newest(older, limit + 1)
            found.update(ids)
            if self._checked and len(ids) <= limit:
                end = max(end, self._end(older))
        # Older events were not read in all ranges.
        matched = sorted((one for one in found if one >= end), reverse=True)
        return matched[:limit], matched[limit - 1] if len(matched) > limit else end

    def oldest(self, after: str, limit: int) -> list[str]:
        """Return the ids of the oldest events to change that are newer than the id *after*."""
        found: set[str] = set()
        for condition in self._ranges:
            conditions = [condition, events.c.id > after, *self._to_change()]
            chosen = sa.select(events.c.id).where(*conditions).order_by(*self._oldest_first)
            found.update(self._connection.execute(chosen.limit(limit)).scalars())
        return sorted(found)[:limit]

    def count(self) -> int:
        """Count all events to change."""
        conditions = [sa.or_(*self._ranges), *self._to_change()]
        counted = sa.select(sa.func.count()).select_from(events).where(*conditions)
        return self._connection.execute(counted).scalar_one()

    def _newest(self, older: list[sa.ColumnElement[bool]], limit: int) -> list[str]:
        needed = {"id": events.c.id}
        needed |= {column: events.c[column] for name in self._checked for column in _COLUMNS[name]}
        rows = sa.select(*needed.values()).where(*older).order_by(*self._newest_first)
        if not self._checked:
            return list(self._connection.execute(rows.limit(limit)).scalars())
        window = rows.limit(MOST_READ).subquery()
        chosen = (
            sa.select(window.c.id)
            .where(*self._conditions(window.c))
            .order_by(window.c.id.desc())
            .limit(limit)
        )
        return list(self._connection.execute(chosen).scalars())

    def _end(self, older: list[sa.ColumnElement[bool]]) -> str:
        """Return the last id that is read for a page; "" if no more events follow."""
        last = sa.select(events.c.id).where(*older).order_by(*self._newest_first)
        return self._connection.execute(last.limit(1).offset(MOST_READ - 1)).scalar() or ""

    def _conditions(self, columns: Any) -> list[sa.ColumnElement[bool]]:
        """Return the conditions that must be checked, on *columns* of events."""
        return [_condition(name, columns, self._criteria) for name in self._checked]

    def _to_change(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions of events that are changed with all of their customer.

        A message to several recipients is found by each of them, but is others' too.
        """
        alone = [_is_of(events.c, self._criteria)] if self._criteria.customer else []
        conditions = [*self._time, *alone, *self._conditions(events.c)]
        if self._criteria.uncertain is not None:
            conditions.append(_UNCERTAIN if self._criteria.uncertain else ~_UNCERTAIN)
        return conditions


# The direction comes first, so that nothing is looked up for webhooks.
_UNCERTAIN = (events.c.direction == Direction.TO_BRAZE.value) & sa.exists().where(
    writes.c.event_id == events.c.id,
    writes.c.uncertain,
    writes.c.state.in_((State.DEAD.value, State.DISCARDED.value)),
)


def _leads(
    connection: sa.Connection, criteria: Filter
) -> dict[str, tuple[float, list[sa.ColumnElement[bool]]]]:
    """Return possible leading conditions: name -> estimate of its events, index ranges."""
    known = events_by_state(connection)
    leads: dict[str, tuple[float, list[sa.ColumnElement[bool]]]] = {"": (math.inf, [sa.true()])}
    if criteria.text:
        leads["text"] = sum(known.values()) - known[State.DELIVERED], [HAS_REASON]
    if criteria.state:
        leads["state"] = known[criteria.state], [events.c.state == criteria.state.value]
    if criteria.campaign:
        counted = sa.select(sa.func.sum(tallies.c.accepted + tallies.c.rejected)).where(
            tallies.c.kind.in_(CAMPAIGNS), tallies.c.id == criteria.campaign
        )
        ranges = [
            events.c.campaign_id == criteria.campaign,
            events.c.canvas_id == criteria.campaign,
        ]
        # The tally does not count events that were rejected and then discarded.
        most = (connection.execute(counted).scalar() or 0) + known[State.DISCARDED]
        leads["campaign"] = most, ranges
    if criteria.customer == NOBODY:
        unnamed = events.c.customer.is_(None)
        some = sa.select(events.c.id).where(unnamed).order_by(events.c.customer, events.c.id)
        counted = sa.select(sa.func.count()).select_from(some.limit(MOST_READ).subquery())
        leads["nobody"] = connection.execute(counted).scalar_one(), [unnamed]
    elif criteria.customer:
        # A customer has few events.
        ranges = [events.c.customer == key for key in _keys(criteria)]
        leads["customer"] = 0, [*ranges, _gets(events.c, criteria)]
    return leads


def _keys(criteria: Filter) -> list[str]:
    customer = criteria.customer
    if criteria.kind:
        return [f"{criteria.kind}:{customer}"]
    kinds = ("user_id", "external_id", "braze_id", "user_alias")
    return [*(f"{kind}:{customer}" for kind in kinds), f"email:{customer.lower()}"]


def _is_of(columns: Any, criteria: Filter) -> sa.ColumnElement[bool]:
    """Return the condition that the event is of the customer alone."""
    column: sa.ColumnElement[Any] = columns.customer
    if criteria.customer != NOBODY:
        return column.in_(_keys(criteria))
    # A message to several recipients has writes. An EXISTS could read the whole table of writes.
    write = sa.select(writes.c.seq).where(writes.c.event_id == columns.id).limit(1)
    return column.is_(None) & write.scalar_subquery().is_(None)


def _gets(columns: Any, criteria: Filter) -> sa.ColumnElement[bool]:
    """Return the condition that the customer is a recipient, perhaps one of several."""
    sent = sa.select(writes.c.event_id).where(SENT, writes.c.customer.in_(_keys(criteria)))
    gets: sa.ColumnElement[bool] = columns.id.in_(sent)
    return gets


# Columns of each condition.
_COLUMNS = {
    "state": ("state",),
    "customer": ("customer",),
    "campaign": ("campaign_id", "canvas_id"),
    "text": ("reason",),
    "direction": ("direction",),
}


def _condition(name: str, columns: Any, criteria: Filter) -> sa.ColumnElement[bool]:
    held: sa.ColumnElement[bool]
    if name == "state":
        held = columns.state == criteria.state
    elif name == "customer":
        held = _is_of(columns, criteria)
        if criteria.customer != NOBODY:
            held |= _gets(columns, criteria)
    elif name == "campaign":
        held = sa.or_(
            columns.campaign_id == criteria.campaign, columns.canvas_id == criteria.campaign
        )
    elif name == "direction":
        held = columns.direction == criteria.direction
    else:
        held = columns.reason.icontains(criteria.text, autoescape=True)
    return held
