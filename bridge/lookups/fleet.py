"""Stamps of lookups for a fleet, in PostgreSQL.

A table has 65,536 words, of which each process holds a copy. A change writes the table and notifies
the other processes in one transaction; a process reads the table when its session begins. A word is
the time of its last change, in microseconds by the server's clock, and only grows: a late or
repeated notification does no harm, and no value is used twice, even after a failover to a standby
that missed changes. A cached lookup is written after the stamp that its row holds: a crash of the
server that loses the stamp loses the row too.

The generation, one more word, is added to every stamp: changing this one row changes all stamps.

The words of the kind `OWN` are not in the table, since they change with every webhook. Each process
counts for itself, and sends its changes in batches. A process that may have missed a notification
changes all of these stamps, by a generation of its own.
"""

import itertools
import logging
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bridge.lookups.stamps import OWN, hashed
from bridge.storage.database import Database, StoreUnavailableError

if TYPE_CHECKING:
    # Only for types: a bridge on one machine runs without psycopg.
    from bridge.storage.session import Session

log = logging.getLogger(__name__)

# Channels of notifications, whose payload is "index value", or the indexes of `OWN` stamps.
CHANNEL, OWN_CHANNEL = "bridge_stamps", "bridge_own_stamps"
# Words, up to one row each. All rows are read again after each loss of the connection.
WORDS = 1 << 16
# Indexes: of the table's generation, after its words; of the first word of the kind `OWN`; and of
# their generation, after their words.
GENERATION = WORDS
FIRST_OWN = GENERATION + 1
OWN_GENERATION = FIRST_OWN + WORDS
# Indexes in a notification, whose payload is 8,000 bytes at most (PostgreSQL, NOTIFY).
NOTIFICATION_LIMIT = 1000
# Seconds between two notifications of changes of the kind `OWN`: every process of the fleet
# receives each of them.
NOTIFY_INTERVAL = 0.02
# Seconds until another attempt to send such a notification.
RETRY_INTERVAL = 0.2
# Seconds that the start of the service may wait for the session.
START_TIMEOUT = 2.0


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
    """Create the tables as they are now, on PostgreSQL only."""
    if connection.dialect.name == "postgresql":
        schema.create_all(connection)


class FleetStamps:
    """The fleet's stamps, as a copy in this process.

    Args:
        database: for writing changes, with short time-outs.
        session: receives the notifications.
        migrate: creates the table if it is missing.
    """

    def __init__(self, database: Database, session: "Session", migrate: Callable[[], None]) -> None:
        self._database = database
        self._session = session
        self._migrate = migrate
        self._values = array("q", bytes(8 * (OWN_GENERATION + 1)))
        self._changing = threading.Condition()
        self._never = itertools.count(-1, -1)
        # Indexes of the kind `OWN` that changed, for the other processes.
        self._unsent: set[int] = set()
        self._sender: threading.Thread | None = None
        self._closed = False
        session.listen(CHANNEL, self._reload, self._on_change)
        session.listen(OWN_CHANNEL, self._change_all_own, self._on_own_changes)

    def start(self) -> None:
        self._session.start()
        try:
            # Connect now, so that the first lookup does not have to.
            self._database.migrate()
        except StoreUnavailableError as error:
            log.warning("the cache is unavailable: %s", error, extra={"action": "cache_unreadable"})
            return
        self._session.start(START_TIMEOUT)

    def get(self, kind: str, customer: str) -> int:
        return self.reader(kind, customer)()

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        index, generation = _indexes(kind, customer)
        values, is_complete, never = self._values, self._session.is_complete, self._never
        # Both only grow, so the sum is unchanged only if both are.
        return lambda: values[index] + values[generation] if is_complete() else next(never)

    def last(self, kind: str, customer: str) -> int:
        return sum(self._values[index] for index in _indexes(kind, customer))

    def change(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        places = {customer: _indexes(kind, customer)[0] for customer in customers}
        if kind == OWN:
            self._change_own(places.values())
            return {customer: self.last(kind, customer) for customer in customers}
        # Read first: if the generation changes meanwhile, the returned stamps are outdated.
        generation = self._values[GENERATION]
        changed = self._change(list(places.values()))
        return {customer: changed[index] + generation for customer, index in places.items()}

    def change_all(self) -> None:
        self._change([GENERATION])

    def _change(self, places: list[int]) -> dict[int, int]:
        with self._database.autocommit() as connection:
            rows = connection.execute(_CHANGE, {"places": places})
            changed = {index: int(value) for index, value, _ in rows}
        for index, value in changed.items():
            self._put(index, value)
        return changed

    def _reload(self, connection: Any) -> None:
        self._migrate()
        values = array("q", bytes(8 * (GENERATION + 1)))
        for index, value in connection.execute("SELECT place, value FROM stamps"):
            values[index] = value
        with self._changing:
            self._values[: GENERATION + 1] = values

    def _on_change(self, payload: str) -> None:
        index, _, value = payload.partition(" ")
        self._put(int(index), int(value))

    def _put(self, index: int, value: int) -> None:
        with self._changing:
            self._values[index] = max(value, self._values[index])

    def _change_own(self, places: Iterable[int]) -> None:
        with self._changing:
            for index in places:
                self._values[index] += 1
                self._unsent.add(index)
            if self._sender is None:
                self._sender = threading.Thread(target=self._send, name="stamps", daemon=True)
                self._sender.start()
            self._changing.notify()

    def _change_all_own(self, _connection: object) -> None:
        # By more than any counted value, so that no stamp repeats.
        self._values[OWN_GENERATION] += 1 << 40

    def _on_own_changes(self, payload: str) -> None:
        with self._changing:
            for index in map(int, payload.split()):
                self._values[index] += 1

    def _send(self) -> None:
        while True:
            with self._changing:
                self._changing.wait_for(lambda: self._unsent or self._closed)
                if self._closed:
                    return
                number = min(len(self._unsent), NOTIFICATION_LIMIT)
                some = [self._unsent.pop() for _ in range(number)]
            try:
                with self._database.autocommit() as connection:
                    values = {"channel": OWN_CHANNEL, "places": " ".join(map(str, some))}
                    connection.execute(sa.text("SELECT pg_notify(:channel, :places)"), values)
            except StoreUnavailableError:
                with self._changing:
                    self._unsent.update(some)
                time.sleep(RETRY_INTERVAL)
            time.sleep(NOTIFY_INTERVAL)

    def close(self) -> None:
        """Stop the thread. Changes that were not sent are lost with this process."""
        with self._changing:
            self._closed = True
            self._changing.notify()
        if self._sender is not None:
            self._sender.join(RETRY_INTERVAL)


def _indexes(kind: str, customer: str) -> tuple[int, int]:
    """Return the indexes of a customer's word and of its generation."""
    word = hashed(kind, customer) % WORDS
    return (FIRST_OWN + word, OWN_GENERATION) if kind == OWN else (word, GENERATION)
