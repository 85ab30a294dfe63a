"""Which events a filter matches, found by way of the rarest of its conditions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bridge.fields import TEXT_SCHEMA, FieldError, duration, instant, text
from bridge.outbox.schema import HAS_REASON, State, events, tallies
from bridge.outbox.store import id_prefix
from bridge.outbox.tallies import CAMPAIGNS, stored

# So many events are looked at for one page.
LOOKED_AT = 5_000


@dataclass(frozen=True)
class Filter:
    """Which events: all conditions that are set must hold.

    Attributes:
        state: the event's.
        customer: an id, SessionM's or the retailer's.
        campaign: a campaign's or Canvas's id.
        since: received then or later, seconds since the epoch.
        text: stands in the reason.
    """

    state: State | None = None
    customer: str = ""
    campaign: str = ""
    since: float = 0.0
    text: str = ""


# What a filter may say: parameter -> JSON schema.
FILTERS: dict[str, dict[str, Any]] = {
    "state": {"enum": [*State, "", None]},
    "customer": TEXT_SCHEMA,
    "campaign": TEXT_SCHEMA,
    "since": {**TEXT_SCHEMA, "description": "2026-12-01T08:00:00Z, or how long ago: 2h, 7d"},
    "text": {**TEXT_SCHEMA, "description": "stands in the reason"},
}


def read_filter(given: Mapping[str, Any], now: float) -> Filter:
    """Read a filter out of the parameters ``state customer campaign since text``.

    ``since`` is a date and time, or a length of time before *now* such as ``2h``.

    Raises:
        FieldError: one of them is bad or unknown.
    """
    for name in given:
        if name not in FILTERS:
            raise FieldError(f'"{name[:60]}"', "is not a filter")
    state = text(given.get("state"), "state")
    if state is not None and state not in set(State):
        raise FieldError("state", f"must be one of {', '.join(State)}")
    return Filter(
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
        return at
    try:
        return max(0.0, now - duration(value))
    except ValueError:
        raise FieldError(
            "since", "must be a time such as 2026-12-01T08:00:00Z, or how long ago: 2h, 7d"
        ) from None


class Search:
    """One search, within a transaction.

    The rarest condition leads: it has an index by time, and the others are tried on what it
    leads to. How rare each is, is known from the tallies. A lead may have two ways (an id may be a
    campaign's or a Canvas's), each followed on its own: together they would have to be sorted.
    """

    def __init__(self, connection: sa.Connection, wanted: Filter) -> None:
        self._connection = connection
        self._wanted = wanted
        self._time = [events.c.id >= id_prefix(wanted.since)] if wanted.since else []
        leads = _leads(connection, wanted)
        lead = min(leads, key=lambda name: leads[name][0])
        self._ways = leads[lead][1]
        # The index leads to what has a reason, not to the words in it: those are always tried.
        self._tried = [
            name for name in _COLUMNS if getattr(wanted, name) and (name != lead or name == "text")
        ]

    def newest(self, before: str, limit: int) -> tuple[list[str], str]:
        """The ids of the newest events that match and are older than the id *before*.

        Returns:
            Up to *limit* ids, fewer if no more are found among the next `LOOKED_AT` events; and
            the id before which to go on, "" if there is nothing more.
        """
        found: set[str] = set()
        end = ""
        for way in self._ways:
            older = [way, *self._time, *([events.c.id < before] if before else [])]
            ids = self._newest(older, limit + 1)
            found.update(ids)
            if self._tried and len(ids) <= limit:
                end = max(end, self._end(older))
        # Further back than that, not all was looked at.
        matched = sorted((one for one in found if one >= end), reverse=True)
        return matched[:limit], matched[limit - 1] if len(matched) > limit else end

    def oldest(self, after: str, limit: int) -> list[str]:
        """The ids of the oldest events that match and are newer than the id *after*."""
        found: set[str] = set()
        for way in self._ways:
            conditions = [way, *self._time, events.c.id > after, *self._conditions(events.c)]
            chosen = sa.select(events.c.id).where(*conditions).order_by(events.c.id)
            found.update(self._connection.execute(chosen.limit(limit)).scalars())
        return sorted(found)[:limit]

    def count(self) -> int:
        """How many events match; all of them are looked at."""
        conditions = [sa.or_(*self._ways), *self._time, *self._conditions(events.c)]
        counted = sa.select(sa.func.count()).select_from(events).where(*conditions)
        return self._connection.execute(counted).scalar_one()

    def _newest(self, older: list[sa.ColumnElement[bool]], limit: int) -> list[str]:
        needed = {"id": events.c.id}
        needed |= {column: events.c[column] for name in self._tried for column in _COLUMNS[name]}
        window = sa.select(*needed.values()).where(*older).order_by(events.c.id.desc())
        if not self._tried:
            return list(self._connection.execute(window.limit(limit)).scalars())
        looked = window.limit(LOOKED_AT).subquery()
        chosen = (
            sa.select(looked.c.id)
            .where(*self._conditions(looked.c))
            .order_by(looked.c.id.desc())
            .limit(limit)
        )
        return list(self._connection.execute(chosen).scalars())

    def _end(self, older: list[sa.ColumnElement[bool]]) -> str:
        """The last id that is looked at for a page; "" if the page is the last."""
        last = sa.select(events.c.id).where(*older).order_by(events.c.id.desc())
        return self._connection.execute(last.limit(1).offset(LOOKED_AT - 1)).scalar() or ""

    def _conditions(self, columns: Any) -> list[sa.ColumnElement[bool]]:
        """The conditions that do not lead, on *columns* of events."""
        return [_condition(name, columns, self._wanted) for name in self._tried]


def _leads(
    connection: sa.Connection, wanted: Filter
) -> dict[str, tuple[float, list[sa.ColumnElement[bool]]]]:
    """What may lead: its name -> how many events there are, at most, and the ways to them."""
    known = stored(connection)
    leads: dict[str, tuple[float, list[sa.ColumnElement[bool]]]] = {"": (math.inf, [sa.true()])}
    if wanted.text:
        leads["text"] = sum(known.values()) - known[State.DELIVERED], [HAS_REASON]
    if wanted.state:
        leads["state"] = known[wanted.state], [events.c.state == wanted.state.value]
    if wanted.campaign:
        accepted = sa.select(sa.func.sum(tallies.c.accepted)).where(
            tallies.c.kind.in_(CAMPAIGNS), tallies.c.id == wanted.campaign
        )
        ways = [events.c.campaign_id == wanted.campaign, events.c.canvas_id == wanted.campaign]
        # What was refused is in no campaign's tally, and may be of any.
        refused = known[State.REJECTED] + known[State.DISCARDED]
        leads["campaign"] = (connection.execute(accepted).scalar() or 0) + refused, ways
    if wanted.customer:
        # Nobody has more than a few.
        leads["customer"] = 0, [events.c.customer == key for key in _keys(wanted.customer)]
    return leads


def _keys(customer: str) -> list[str]:
    return [f"user_id:{customer}", f"external_id:{customer}"]


# The columns that a condition is tried on, and how.
_COLUMNS = {
    "state": ("state",),
    "customer": ("customer",),
    "campaign": ("campaign_id", "canvas_id"),
    "text": ("reason",),
}


def _condition(name: str, columns: Any, wanted: Filter) -> sa.ColumnElement[bool]:
    held: sa.ColumnElement[bool]
    if name == "state":
        held = columns.state == wanted.state
    elif name == "customer":
        held = columns.customer.in_(_keys(wanted.customer))
    elif name == "campaign":
        held = sa.or_(columns.campaign_id == wanted.campaign, columns.canvas_id == wanted.campaign)
    else:
        held = columns.reason.icontains(wanted.text, autoescape=True)
    return held
