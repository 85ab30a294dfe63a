"""Stamps of lookups for a fleet, in PostgreSQL.

Stamps are a table of 65,536 words, of which each process holds a copy. A change writes the table
and notifies the other processes in one transaction. A process reads the table whenever its session
begins. The value of a word is the time of its last change, in microseconds by the server's clock,
and only grows. So a late or repeated notification does no harm, and no value is used twice, even
after a failover to a standby that missed the last changes. The row of a cached lookup holds the
stamp of its fetch, and is written after the stamp: a crash of the server that loses a stamp's last
changes loses such rows as well.

One more word, the generation, is added to every stamp. Changing this one row changes all stamps.
"""

import itertools
import logging
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bridge.lookups import stamps
from bridge.storage.database import Database, StoreUnavailableError

if TYPE_CHECKING:
    # Only for types: a bridge on one machine runs without psycopg.
    from bridge.storage.session import Session

log = logging.getLogger(__name__)

CHANNEL = "bridge_stamps"
# Words, up to one row each. All rows are read again after each loss of the connection.
WORDS = 1 << 16
# Index of the generation, after the words.
GENERATION = WORDS


def place(kind: str, customer: str) -> int:
    """Return the index of the stamp of *kind* and *customer*."""
    return stamps.place(kind, customer, WORDS)


schema = sa.MetaData()
sa.Table(
    "stamps",
    schema,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_CHANGE = sa.text(f"""
    WITH moment AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now),
    changed AS (
        INSERT INTO stamps (place, value)
        SELECT DISTINCT place, now FROM moment, unnest(CAST(:places AS integer[])) AS place
        ORDER BY place
        ON CONFLICT (place) DO UPDATE SET value = greatest(stamps.value + 1, excluded.value)
        RETURNING place, value)
    SELECT place, value, pg_notify('{CHANNEL}', place || ' ' || value) FROM changed
""")  # noqa: S608 - a constant


def create(connection: sa.Connection) -> None:
    """Create the tables, on PostgreSQL only."""
    if connection.dialect.name == "postgresql":
        schema.create_all(connection)


class FleetStamps:
    """The fleet's stamps, as a copy in this process.

    Args:
        database: for writing changes, with short time-outs.
        session: receives the notifications.
        migrate: creates the table if it is missing.
    """

    # Seconds that the start of the service may wait for the session.
    START_TIMEOUT = 2.0

    def __init__(self, database: Database, session: "Session", migrate: Callable[[], None]) -> None:
        self._database = database
        self._session = session
        self._migrate = migrate
        self._values = array("q", bytes(8 * (WORDS + 1)))
        self._changing = threading.Lock()
        self._never = itertools.count(-1, -1)
        session.listen(CHANNEL, self._reload, self._on_notification)

    def start(self) -> None:
        self._session.start()
        try:
            # Connect now, so that the first lookup does not have to.
            self._database.migrate()
        except StoreUnavailableError as error:
            log.warning("the cache is unavailable: %s", error, extra={"action": "cache_unreadable"})
            return
        self._session.start(self.START_TIMEOUT)

    def get(self, kind: str, customer: str) -> int:
        value = self.last(kind, customer)
        return value if self._session.is_complete() else next(self._never)

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        index, is_complete = place(kind, customer), self._session.is_complete
        return lambda: self._stamp(index) if is_complete() else next(self._never)

    def last(self, kind: str, customer: str) -> int:
        return self._stamp(place(kind, customer))

    def change(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        places = {customer: place(kind, customer) for customer in customers}
        # Read first: if the generation changes meanwhile, the returned stamps are outdated.
        generation = self._values[GENERATION]
        changed = self._change(list(places.values()))
        return {customer: changed[index] + generation for customer, index in places.items()}

    def change_all(self) -> None:
        self._change([GENERATION])

    def _stamp(self, index: int) -> int:
        # Both only grow, so the sum is unchanged only if both are.
        values = self._values
        return values[index] + values[GENERATION]

    def _change(self, places: list[int]) -> dict[int, int]:
        with self._database.autocommit() as connection:
            rows = connection.execute(_CHANGE, {"places": places})
            changed = {index: int(value) for index, value, _ in rows}
        for index, value in changed.items():
            self._put(index, value)
        return changed

    def close(self) -> None:
        """Do nothing: the database closes the session."""

    def _reload(self, connection: Any) -> None:
        self._migrate()
        values = array("q", bytes(8 * (WORDS + 1)))
        for index, value in connection.execute("SELECT place, value FROM stamps"):
            values[index] = value
        with self._changing:
            self._values = values

    def _on_notification(self, payload: str) -> None:
        index, _, value = payload.partition(" ")
        self._put(int(index), int(value))

    def _put(self, index: int, value: int) -> None:
        with self._changing:
            self._values[index] = max(value, self._values[index])


class LocalStamps:
    """Stamps whose values are local to each process; only the changes are shared.

    They change with every webhook, so changes are sent to other processes in batches. A process
    that may have missed a notification changes all of its stamps.
    """

    CHANNEL = "bridge_local_stamps"
    # Indexes in a notification, whose payload is 8,000 bytes at most (PostgreSQL, NOTIFY).
    NOTIFICATION_LIMIT = 1000
    RETRY_INTERVAL = 0.2
    NOTIFY_INTERVAL = 0.02

    def __init__(self, database: Database, session: "Session") -> None:
        self._database = database
        self._session = session
        self._values = array("q", bytes(8 * WORDS))
        self._generation = 0
        self._changing = threading.Condition()
        self._unsent: set[int] = set()
        self._notifier: threading.Thread | None = None
        self._closed = False
        self._never = itertools.count(-1, -1)
        session.listen(self.CHANNEL, self._reload, self._on_notification)

    def start(self) -> None:
        self._session.start()

    def get(self, kind: str, customer: str) -> int:
        return self.reader(kind, customer)()

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        index, is_complete = place(kind, customer), self._session.is_complete
        return lambda: (
            self._values[index] + self._generation if is_complete() else next(self._never)
        )

    def last(self, kind: str, customer: str) -> int:
        return self._values[place(kind, customer)] + self._generation

    def change(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        self._change([place(kind, customer) for customer in customers])
        return {customer: self.last(kind, customer) for customer in customers}

    def change_all(self) -> None:
        self._change(range(WORDS))

    def _change(self, places: Iterable[int]) -> None:
        with self._changing:
            for index in places:
                self._values[index] += 1
                self._unsent.add(index)
            if self._notifier is None:
                self._notifier = threading.Thread(target=self._notify, name="stamps", daemon=True)
                self._notifier.start()
            self._changing.notify()

    def close(self) -> None:
        """Stop the thread. Changes that were not sent are lost with this process."""
        with self._changing:
            self._closed = True
            self._changing.notify()
        if self._notifier is not None:
            self._notifier.join(self.RETRY_INTERVAL)

    def _reload(self, _connection: object) -> None:
        # Larger than any counted value, so that no stamp repeats.
        self._generation += 1 << 40

    def _on_notification(self, payload: str) -> None:
        with self._changing:
            for index in map(int, payload.split()):
                self._values[index] += 1

    def _notify(self) -> None:
        while True:
            with self._changing:
                while not self._unsent and not self._closed:
                    self._changing.wait()
                if self._closed:
                    return
                some = [
                    self._unsent.pop()
                    for _ in range(min(len(self._unsent), self.NOTIFICATION_LIMIT))
                ]
            try:
                with self._database.autocommit() as connection:
                    values = {"channel": self.CHANNEL, "places": " ".join(map(str, some))}
                    connection.execute(sa.text("SELECT pg_notify(:channel, :places)"), values)
            except StoreUnavailableError:
                with self._changing:
                    self._unsent.update(some)
                time.sleep(self.RETRY_INTERVAL)
            # Every process of the fleet receives each notification: send few, with many changes.
            time.sleep(self.NOTIFY_INTERVAL)
