"""Storage of incidents, so that they survive restarts and are the same in all processes.

The process that first notices a change of an incident writes it. While the table is unavailable, a
process uses the incidents that it knows, and writes them later.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa

from bridge import clock
from bridge.ops.incidents import KEPT_DAYS, Cause, Incident, follow
from bridge.outbox.model import Extent
from bridge.storage.database import Database, StoreUnavailableError
from bridge.storage.expressions import insert

log = logging.getLogger(__name__)

# Incidents that are read, of the open and of the closed ones.
MOST = 500
# Seconds without another try after the table was unavailable, so that readers do not wait for it.
AGAIN = 2.0
# The value of `until` for an open incident.
_OPEN = 0.0

schema = sa.MetaData()
incidents = sa.Table(
    "incidents",
    schema,
    # Code and subject of the cause: one incident of each cause is open.
    sa.Column("cause", sa.Text, primary_key=True),
    sa.Column("until", sa.Float, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("story", sa.JSON, nullable=False),
)


def create(connection: sa.Connection) -> None:
    """Create the table as it is now."""
    schema.create_all(connection)


class Chronicle:
    """Stores and reads incidents. Thread-safe.

    Args:
        database: the database of the figures, with connections of its own.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lock = threading.Lock()
        self._known: list[Incident] = []
        self._is_stored = True
        # No try before this time, by `clock.steady`.
        self._retry_at = 0.0

    def follow(
        self,
        found: Sequence[Cause],
        add_numbers: Callable[[Incident], Incident] = lambda one: one,
        *,
        store_is_up: bool,
    ) -> list[Incident]:
        """Update the stored incidents for the present causes; return them as `incidents.follow`.

        Args:
            found: the present causes.
            add_numbers: returns an incident with the numbers of its calls.
            store_is_up: as for `incidents.follow`.
        """
        with self._lock:
            known = self._read()
            followed = follow(known, found, clock.now(), store_is_up=store_is_up)
            self._known = [add_numbers(one) for one in followed]
            self._is_stored = self._known == known or self._write(known, self._known)
            return self._known

    def delivery_reasons(self) -> list[str]:
        """Return the sentences of the open incidents that delay writes."""
        with self._lock:
            return [
                one.cause.reason
                for one in self._read()
                if one.until is None and one.cause.search.get("state") == "queued"
            ]

    def _read(self) -> list[Incident]:
        if clock.steady() < self._retry_at:
            return self._known
        chosen = incidents.select().order_by(incidents.c.since.desc()).limit(MOST)
        try:
            with self.database.read() as connection:
                rows = [
                    *connection.execute(chosen.where(incidents.c.until == _OPEN)),
                    *connection.execute(chosen.where(incidents.c.until != _OPEN)),
                ]
        except StoreUnavailableError:
            self._retry_at = clock.steady() + AGAIN
            return self._known
        stored = [_incident(row) for row in rows]
        if self._is_stored:
            return stored
        # Add the open incidents that could not be written.
        known = _open(stored)
        return stored + [
            one for one in self._known if one.until is None and one.cause.key not in known
        ]

    def _write(self, before: Sequence[Incident], after: Sequence[Incident]) -> bool:
        """Store the changes; return whether they are stored."""
        if clock.steady() < self._retry_at:
            return False
        kept = {_id(one) for one in after}
        gone = [one for one in before if _id(one) not in kept]
        try:
            with self.database.write() as connection:
                ended = {one.cause.key for one in gone if _delete(connection, *_id(one))}
                for one in after:
                    key = one.cause.key
                    # If nothing was deleted, another process has closed it already.
                    is_mine = one.until is None or key in ended or key not in _open(before)
                    if one not in before and is_mine:
                        connection.execute(_upsert(one))
                old = clock.now() - KEPT_DAYS * 86400
                connection.execute(incidents.delete().where(incidents.c.until.between(1.0, old)))
        except StoreUnavailableError as error:
            self._retry_at = clock.steady() + AGAIN
            extra = {"action": "incidents_unwritable"}
            log.log(error.level, "incidents not stored: %s", error, extra=extra)
            return False
        return True


def _open(several: Sequence[Incident]) -> set[tuple[str, str]]:
    return {one.cause.key for one in several if one.until is None}


def _delete(connection: sa.Connection, cause: str, until: float) -> bool:
    there = (incidents.c.cause == cause, incidents.c.until == until)
    return connection.execute(incidents.delete().where(*there)).rowcount == 1


def _id(one: Incident) -> tuple[str, float]:
    return f"{one.cause.code}\t{one.cause.subject}", one.until or _OPEN


def _upsert(one: Incident) -> sa.Insert:
    cause, until = _id(one)
    details = {
        "cause": asdict(one.cause),
        "most": asdict(one.most),
        "worst_cause": asdict(one.worst or one.cause),
        "errors": one.errors,
    }
    values = {"cause": cause, "until": until, "since": one.since, "story": details}
    statement = insert(incidents).values(**values)
    return statement.on_conflict_do_update(
        index_elements=["cause", "until"],
        # The earliest start of several processes is the right one.
        set_={
            "since": sa.case(
                (incidents.c.since < statement.excluded.since, incidents.c.since),
                else_=statement.excluded.since,
            ),
            "story": statement.excluded.story,
        },
    )


def _incident(row: sa.Row[Any]) -> Incident:
    details = row.story
    until = None if row.until == _OPEN else row.until
    cause, worst = _cause(details["cause"]), _cause(details["worst_cause"])
    errors = tuple(details.get("errors", ()))
    return Incident(cause, row.since, until, _extent(details["most"]), worst, errors)


def _cause(stored: Mapping[str, Any]) -> Cause:
    known = _known(Cause, stored)
    return Cause(**{**known, "extent": _extent(known["extent"])})


def _extent(stored: Mapping[str, Any]) -> Extent:
    known = _known(Extent, stored)
    return Extent(**{**known, "campaigns": tuple(known["campaigns"])})


def _known(kind: type[Cause | Extent], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what *kind* knows of *stored*: a newer version beside this one may know more."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
