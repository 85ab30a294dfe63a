"""What the bridges on several machines share of lookups, in PostgreSQL: stamps and flights.

Stamps are a table of 65,536 words. Each process holds a copy: a change writes the table and
notifies, in one transaction, and a process that begins to listen, or has lost its session and has
it back, reads the table. A word only ever grows (it is the time of its change, in microseconds by
the server's clock), so that what is heard late or twice changes nothing; and no value is ever used
again, not even after a failover to a standby that had not heard of the last changes. Since the
rows of cached lookups carry the stamp that they were fetched under, and the table is written
before them, a crash of the server that loses the last changes loses these rows as well.

One more word is the era, which is part of every stamp: where it changes, everybody's stamp has
changed, for the price of one row. A process of a version that does not know it cannot read its
place: it ends its session, and trusts nothing that it has in memory from then on.

Flights are leases. A lease whose holder's session has ended counts for nothing, so a process that
is killed holds nobody up; the table is unlogged, since it means nothing after a restart.
"""

import itertools
import logging
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bridge.database import Database, StoreUnavailableError
from bridge.lookups import stamps

if TYPE_CHECKING:
    # Not at run time: one machine does without psycopg.
    from bridge.postgres import Session

log = logging.getLogger(__name__)

CHANNEL = "bridge_stamps"
# Of stamps, each of which may be a row: all are read whenever the connection was lost.
WORDS = 1 << 16
# Behind the words. Not before them: -1 is a place too, the last one, to who does not know the era.
ERA = WORDS
# No fetch takes longer.
LEASE = 6.0


def place(kind: str, customer: str) -> int:
    """The number of the stamp of *kind* and *customer*."""
    return stamps.place(kind, customer, WORDS)


schema = sa.MetaData()
sa.Table(
    "stamps",
    schema,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
)
flights = sa.Table(
    "flights",
    schema,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.Integer, nullable=False),
    sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    prefixes=["UNLOGGED"],
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
_ACQUIRE = sa.text("""
    INSERT INTO flights (number, holder, until)
    VALUES (:number, :holder, clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (number) DO UPDATE SET holder = excluded.holder, until = excluded.until
    WHERE flights.until < clock_timestamp()
        OR NOT EXISTS (SELECT FROM pg_stat_get_activity(flights.holder))
    RETURNING number
""")


def create(connection: sa.Connection) -> None:
    """The tables; a database of one machine needs none of them."""
    if connection.dialect.name == "postgresql":
        schema.create_all(connection)


def begin_eras(_connection: sa.Connection) -> None:
    """Nothing to add: its number keeps versions that do not know the era from starting."""


class FleetStamps:
    """The stamps as this process knows them.

    Args:
        database: where changes are written, and not waited for long.
        session: by which they are heard of.
        migrate: makes sure that the table is there.
    """

    # At the start something may be amiss, but the service is not to wait for it for long.
    PATIENCE = 2.0

    def __init__(self, database: Database, session: "Session", migrate: Callable[[], None]) -> None:
        self._database = database
        self._session = session
        self._migrate = migrate
        self._values = array("q", bytes(8 * (WORDS + 1)))
        self._changing = threading.Lock()
        self._never = itertools.count(-1, -1)
        session.listen(CHANNEL, self._renew, self._heard)

    def start(self) -> None:
        self._session.start()
        try:
            # The first connection takes longest: not the first lookup is to wait for it.
            self._database.migrate()
        except StoreUnavailableError as error:
            log.warning("the cache is away: %s", error, extra={"action": "cache_unreadable"})
            # Nor is there anything to wait for.
            return
        self._session.start(self.PATIENCE)

    def get(self, kind: str, customer: str) -> int:
        value = self.last(kind, customer)
        return value if self._session.is_complete() else next(self._never)

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        where, is_complete = place(kind, customer), self._session.is_complete
        return lambda: self._stamp(where) if is_complete() else next(self._never)

    def last(self, kind: str, customer: str) -> int:
        return self._stamp(place(kind, customer))

    def change(self, kind: str, customer: str) -> int:
        return self.change_many(kind, [customer])[customer]

    def change_many(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        places = {customer: place(kind, customer) for customer in customers}
        # From before: what an era outdates that begins meanwhile stays outdated.
        era = self._values[ERA]
        changed = self._change(list(places.values()))
        return {customer: changed[where] + era for customer, where in places.items()}

    def change_all(self) -> None:
        self._change([ERA])

    def _stamp(self, where: int) -> int:
        # Neither ever falls, so their sum is what it was only while both are.
        values = self._values
        return values[where] + values[ERA]

    def _change(self, places: list[int]) -> dict[int, int]:
        with self._database.autocommit() as connection:
            rows = connection.execute(_CHANGE, {"places": places})
            changed = {where: int(value) for where, value, _ in rows}
        for where, value in changed.items():
            self._put(where, value)
        return changed

    def close(self) -> None:
        """The session is its database's to close."""

    def _renew(self, connection: Any) -> None:
        self._migrate()
        values = array("q", bytes(8 * (WORDS + 1)))
        for where, value in connection.execute("SELECT place, value FROM stamps"):
            values[where] = value
        with self._changing:
            self._values = values

    def _heard(self, payload: str) -> None:
        where, _, value = payload.partition(" ")
        self._put(int(where), int(value))

    def _put(self, where: int, value: int) -> None:
        with self._changing:
            self._values[where] = max(value, self._values[where])


class PassingStamps:
    """Stamps that no two processes compare: each has its own, and hears that they changed.

    They change with every webhook, so others are told a moment later, of many changes at once. A
    process that may have missed some gives all of them other values.
    """

    CHANNEL = "bridge_passing_stamps"
    # A notification holds 8,000 bytes at most.
    MOST_AT_ONCE = 1000
    AGAIN = 0.2
    TOGETHER = 0.02

    def __init__(self, database: Database, session: "Session") -> None:
        self._database = database
        self._session = session
        self._values = array("q", bytes(8 * WORDS))
        self._era = 0
        self._changing = threading.Condition()
        self._untold: set[int] = set()
        self._teller: threading.Thread | None = None
        self._closed = False
        self._never = itertools.count(-1, -1)
        session.listen(self.CHANNEL, self._renew, self._heard)

    def start(self) -> None:
        self._session.start()

    def get(self, kind: str, customer: str) -> int:
        return self.reader(kind, customer)()

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        where, is_complete = place(kind, customer), self._session.is_complete
        return lambda: self._values[where] + self._era if is_complete() else next(self._never)

    def last(self, kind: str, customer: str) -> int:
        return self._values[place(kind, customer)] + self._era

    def change(self, kind: str, customer: str) -> int:
        self._change([place(kind, customer)])
        return self.last(kind, customer)

    def change_many(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        self._change([place(kind, customer) for customer in customers])
        return {customer: self.last(kind, customer) for customer in customers}

    def change_all(self) -> None:
        self._change(range(WORDS))

    def _change(self, places: Iterable[int]) -> None:
        with self._changing:
            for where in places:
                self._values[where] += 1
                self._untold.add(where)
            if self._teller is None:
                self._teller = threading.Thread(target=self._tell, name="stamps", daemon=True)
                self._teller.start()
            self._changing.notify()

    def close(self) -> None:
        """What is untold is told by the next who changes it, or was seen by nobody else."""
        with self._changing:
            self._closed = True
            self._changing.notify()
        if self._teller is not None:
            self._teller.join(self.AGAIN)

    def _renew(self, _connection: object) -> None:
        # More than any value has risen by.
        self._era += 1 << 40

    def _heard(self, payload: str) -> None:
        with self._changing:
            for where in map(int, payload.split()):
                self._values[where] += 1

    def _tell(self) -> None:
        while True:
            with self._changing:
                while not self._untold and not self._closed:
                    self._changing.wait()
                if self._closed:
                    return
                some = [
                    self._untold.pop() for _ in range(min(len(self._untold), self.MOST_AT_ONCE))
                ]
            try:
                with self._database.autocommit() as connection:
                    told = {"channel": self.CHANNEL, "places": " ".join(map(str, some))}
                    connection.execute(sa.text("SELECT pg_notify(:channel, :places)"), told)
            except StoreUnavailableError:
                with self._changing:
                    self._untold.update(some)
                time.sleep(self.AGAIN)
            # Every process of the fleet hears it: rather seldom and of many.
            time.sleep(self.TOGETHER)


class FleetFlights:
    """One flight for each thing that is asked, in the whole fleet."""

    peek = 0.03

    def __init__(self, database: Database, session: "Session") -> None:
        self._database = database
        self._session = session
        self._holders: dict[int, int] = {}

    def try_acquire(self, number: int) -> bool:
        self._session.start()
        # Without a session nobody can tell whether we live: then everybody may ask.
        holder = self._session.backend
        given = {"number": number, "holder": holder, "seconds": LEASE}
        with self._database.autocommit() as connection:
            mine = connection.execute(_ACQUIRE, given).scalar() is not None
        if mine:
            self._holders[number] = holder
        return mine

    def release(self, *numbers: int) -> None:
        # What is not there ran out while another thread held it anew, who has given it back.
        held = [
            (number, holder)
            for number in numbers
            if (holder := self._holders.pop(number, None)) is not None
        ]
        if held:
            ours = sa.tuple_(flights.c.number, flights.c.holder).in_(held)
            with self._database.autocommit() as connection:
                connection.execute(flights.delete().where(ours))
