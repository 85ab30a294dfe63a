"""What people do with stored events: search, read, send again, discard, erase, forget."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from bridge.customer import Customer
from bridge.database import Database
from bridge.fields import TEXT_SCHEMA, FieldError, duration, instant, iso, text
from bridge.outbox.schema import State, attempts, events, expiries, writes
from bridge.outbox.store import NewEvent, add_writes, id_prefix, settle

PAGE = 50
MOST_A_PAGE = 500
# So many events are changed in one transaction: short enough that intake never waits for it.
BATCH = 200

# Ended for good; an event that is dead or waits is never forgotten by age.
_FORGETTABLE = (State.DELIVERED, State.REJECTED, State.DISCARDED, State.EXPIRED)
_DISCARDABLE = (State.QUEUED, State.DEAD, State.REJECTED)
REPLAYABLE = (State.DEAD, State.REJECTED, State.DISCARDED)


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


@dataclass(frozen=True)
class Stored:
    """An event as it came: what is needed to take it in once more."""

    id: str
    state: State
    body: bytes
    content_type: str
    customer: str | None
    idempotency_key: str | None = None


class Events:
    """The statements; all that change something do it in short transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, wanted: Filter, limit: int = PAGE, before: str = "") -> list[dict[str, Any]]:
        """Up to *limit* events, newest first, as JSON; those before the id *before*."""
        chosen = (
            sa.select(*(column for column in events.c if column.name != "body"))
            .where(*_conditions(wanted))
            .order_by(events.c.id.desc())
            .limit(min(limit, MOST_A_PAGE))
        )
        if before:
            chosen = chosen.where(events.c.id < before)
        with self._database.read() as connection:
            return [_as_json(row) for row in connection.execute(chosen).mappings()]

    def count(self, wanted: Filter) -> int:
        """How many events *wanted* matches."""
        counted = sa.select(sa.func.count()).select_from(events).where(*_conditions(wanted))
        with self._database.read() as connection:
            return connection.execute(counted).scalar_one()

    def story(self, event_id: str) -> dict[str, Any] | None:
        """Everything about one event: body, writes, and every try of each; ``None`` if unknown."""
        with self._database.read() as connection:
            row = _one(connection, sa.select(events).where(events.c.id == event_id))
            if row is None:
                return None
            ordered = writes.select().where(writes.c.event_id == event_id).order_by(writes.c.seq)
            return {
                **_as_json(row),
                "body": row["body"].decode(errors="replace"),
                "content_type": row["content_type"],
                "writes": [
                    _write_as_json(write, _tries(connection, write["seq"]))
                    for write in connection.execute(ordered).mappings().all()
                ],
            }

    def matching(self, wanted: Filter, states: tuple[State, ...]) -> Iterator[list[Stored]]:
        """The events of *states* that *wanted* matches, oldest first, a batch at a time."""
        after = ""
        while True:
            chosen = (
                _STORED.where(*_conditions(wanted), events.c.state.in_(states), events.c.id > after)
                .order_by(events.c.id)
                .limit(BATCH)
            )
            with self._database.read() as connection:
                found = [_stored(row) for row in connection.execute(chosen).mappings()]
            if not found:
                return
            yield found
            after = found[-1].id

    def one(self, event_id: str) -> Stored | None:
        """One event as it came."""
        with self._database.read() as connection:
            row = _one(connection, _STORED.where(events.c.id == event_id))
        return _stored(row) if row else None

    def queue_again(self, event_ids: list[str], now: float) -> int:
        """Let the dead and discarded writes of these events wait once more.

        Returns:
            How many events had any.
        """
        again = (
            writes.update()
            .where(writes.c.event_id.in_(event_ids))
            .where(writes.c.state.in_((State.DEAD.value, State.DISCARDED.value)))
            .values(state=State.QUEUED.value, attempts=0, next_at=now, done_at=None)
            .returning(writes.c.event_id)
        )
        with self._database.write() as connection:
            changed = set(connection.execute(again).scalars())
            settle(connection, changed)
        return len(changed)

    def take_in(self, accepted: NewEvent) -> bool:
        """Turn a rejected event into the *accepted* one of the same id.

        Returns:
            Whether it is taken in: it was still rejected, and the same event was not accepted
            before, in which case it is discarded.
        """
        values = {
            "state": State.QUEUED.value,
            "customer": accepted.customer,
            "campaign_id": accepted.campaign_id,
            "canvas_id": accepted.canvas_id,
            "test": accepted.test,
            "reason": "",
            "done_at": None,
            "dedupe": accepted.dedupe,
        }
        mended = events.update().where(
            events.c.id == accepted.id, events.c.state == State.REJECTED.value
        )
        same = sa.select(events.c.id).where(
            events.c.dedupe.is_not(None), events.c.dedupe == accepted.dedupe
        )
        with self._database.write() as connection:
            if earlier := connection.execute(same).scalar():
                connection.execute(
                    mended.values(
                        state=State.DISCARDED.value,
                        reason=f"the same event was accepted before as {earlier}",
                    )
                )
                return False
            if not connection.execute(mended.values(**values)).rowcount:
                return False
            add_writes(connection, [accepted])
        return True

    def discard(self, event_ids: list[str], now: float) -> int:
        """Give these events up, as far as they are not ended; returns how many were."""
        given_up = {"state": State.DISCARDED.value, "done_at": now}
        with self._database.write() as connection:
            connection.execute(
                writes.update()
                .where(writes.c.event_id.in_(event_ids))
                .where(writes.c.state.in_((State.QUEUED.value, State.DEAD.value)))
                .values(**given_up)
            )
            return connection.execute(
                events.update()
                .where(events.c.id.in_(event_ids), events.c.state.in_(_DISCARDABLE))
                .values(**given_up)
            ).rowcount

    def mentioning(self, customer: Customer) -> Iterator[Stored]:
        """The events whose customer *customer* is, or whose body holds the id in some writing."""
        mentioned = [sa.func.instr(events.c.body, form) > 0 for form in _written(customer.id)]
        chosen = _STORED.where(sa.or_(events.c.customer == customer.key, *mentioned))
        with self._database.read() as connection:
            for row in connection.execution_options(yield_per=BATCH).execute(chosen).mappings():
                yield _stored(row)

    def erase(self, customer: Customer, event_ids: Sequence[str] = ()) -> int:
        """Delete everything about *customer*, and the events *event_ids*.

        Returns:
            How many events there were.
        """
        gone = sa.or_(events.c.customer == customer.key, events.c.id.in_(event_ids))
        with self._database.write() as connection:
            deleted = connection.execute(events.delete().where(gone)).rowcount
            connection.execute(expiries.delete().where(expiries.c.customer == customer.key))
        self._database.scrub()
        return deleted

    def forget_before(self, then: float, now: float) -> int:
        """Delete a batch of events that ended before *then*; returns how many there were."""
        old = (
            sa.select(events.c.id)
            .where(events.c.state.in_(_FORGETTABLE), events.c.id < id_prefix(then))
            .where(events.c.done_at < then)
            .limit(BATCH)
        )
        with self._database.write() as connection:
            ids = list(connection.execute(old).scalars())
            if ids:
                connection.execute(events.delete().where(events.c.id.in_(ids)))
            connection.execute(expiries.delete().where(expiries.c.expires_at < now))
        return len(ids)


_STORED = sa.select(
    events.c.id,
    events.c.state,
    events.c.body,
    events.c.content_type,
    events.c.customer,
    events.c.idempotency_key,
)


def _written(customer_id: str) -> set[bytes]:
    """The ways in which a JSON or form body may hold an id, as far as programs write them."""
    escaped = json.dumps(customer_id)[1:-1]
    forms = {customer_id, escaped, escaped.replace("/", "\\/")}
    forms |= {quote(customer_id, safe=""), quote_plus(customer_id), quote(customer_id)}
    lower = {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in forms}
    return {form.encode() for form in forms | lower}


def _stored(row: sa.RowMapping) -> Stored:
    return Stored(**{**row, "state": State(row["state"])})


def _conditions(wanted: Filter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if wanted.state:
        found.append(events.c.state == wanted.state.value)
    if wanted.customer:
        keys = [f"user_id:{wanted.customer}", f"external_id:{wanted.customer}"]
        found.append(events.c.customer.in_(keys))
    if wanted.campaign:
        found.append(
            sa.or_(events.c.campaign_id == wanted.campaign, events.c.canvas_id == wanted.campaign)
        )
    if wanted.since:
        found.append(events.c.id >= id_prefix(wanted.since))
    if wanted.text:
        found.append(events.c.reason.icontains(wanted.text, autoescape=True))
    return found


def _one(connection: sa.Connection, chosen: sa.Select[Any]) -> sa.RowMapping | None:
    return connection.execute(chosen).mappings().first()


def _tries(connection: sa.Connection, seq: int) -> list[dict[str, Any]]:
    tried = attempts.select().where(attempts.c.write_seq == seq).order_by(attempts.c.id)
    return [
        {
            "at": iso(row["at"]),
            "status": row["status"],
            "milliseconds": row["milliseconds"],
            "outcome": row["outcome"],
            "error": row["error"],
        }
        for row in connection.execute(tried).mappings()
    ]


def _as_json(row: sa.RowMapping) -> dict[str, Any]:
    customer = row["customer"]
    return {
        "id": row["id"],
        "state": row["state"],
        "received_at": iso(row["received_at"]),
        "done_at": _iso_or_blank(row["done_at"]),
        "customer": Customer.from_key(customer).ids if customer else {},
        "campaign_id": row["campaign_id"] or "",
        "canvas_id": row["canvas_id"] or "",
        "test": row["test"],
        "reason": row["reason"],
        "key": row["key_name"],
        "request_id": row["request_id"],
    }


def _write_as_json(row: sa.RowMapping, tries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tags": row["tags"],
        "ttl": row["ttl"],
        "state": row["state"],
        "attempts": row["attempts"],
        "next_at": iso(row["next_at"]) if row["state"] == State.QUEUED.value else "",
        "done_at": _iso_or_blank(row["done_at"]),
        "reason": row["reason"],
        "uncertain": row["uncertain"],
        "tries": tries,
    }


def _iso_or_blank(at: float | None) -> str:
    return "" if at is None else iso(at)
