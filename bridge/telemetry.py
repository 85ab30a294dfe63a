"""Figures: counted in every process, added up for all of them once a second.

Counting touches a dictionary of the process and takes about a microsecond. Once a second each
process adds its share, in one transaction, to three kinds of rows: the present minute's, the
present second's (only what Braze's moving minute needs), and the totals since the table was made.
So all who read see all processes, whether they still live or not, and totals never go back. A
process that is killed takes the figures of its last second along; one that ends writes them first.

Figures that cannot be written are kept in the process, and added when the store is back; nobody
who counts ever notices. That is told in the log once.

For readers: ``minutes(since)`` gives one `Minute` for each minute, gaps included, the present one
last; `together` makes one of several.
"""

import logging
import sys
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from bridge.database import Database, NewerSchemaError, StoreUnavailableError
from bridge.sessionm.answers import Meaning
from bridge.sessionm.client import Call
from bridge.statements import insert

log = logging.getLogger(__name__)

COUNTS = (
    # Webhooks by what became of them; failed ones were answered 5xx.
    "webhooks_accepted",
    "webhooks_duplicate",
    "webhooks_rejected",
    "webhooks_failed",
    # Lookups by what was served; those answered after more than Braze's two seconds are also late.
    "lookups_hit",
    "lookups_stale",
    "lookups_miss",
    "lookups_unavailable",
    "lookups_not_found",
    "lookups_late",
    # Events that came to this end, and writes that SessionM took.
    "delivered",
    "dead",
    "expired",
    "writes_sent",
    "core_calls",
    "core_errors",
    "connect_calls",
    "connect_errors",
    # As Braze counts them, see `BRAZE_COUNTS`.
    "braze_webhook_failures",
    "braze_content_failures",
    "braze_content_calls",
    "auth_failures",
)
HISTOGRAMS = ("lookup", "webhook", "core", "connect")
GAUGES = ("queued", "oldest_seconds", "dead_writes")

# Braze counts these statuses per host in a moving minute, and stops calling for a minute when
# there are more of them than this; for Connected Content only if they are also over this share of
# its calls (Braze documentation, "unhealthy host detection").
BRAZE_COUNTS = frozenset({408, 429, 502, 503, 504, 529})
BRAZE_LIMIT = 3000
BRAZE_CONTENT_SHARE = 0.9
_MOVING = ("braze_webhook_failures", "braze_content_failures", "braze_content_calls")

# Upper bounds of a histogram's buckets, in milliseconds; one more bucket holds what took longer.
BOUNDS: tuple[float, ...] = (
    *(0.25, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150),
    *(200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000),
)
_BUCKETS = {
    name: tuple(f"{name}:{place}" for place in range(len(BOUNDS) + 1)) for name in HISTOGRAMS
}
_SECONDS = {name: f"{name}:seconds" for name in HISTOGRAMS}

EVERY = 1.0
# A store that is away is not tried again for so long: who reads the figures shall not wait for it.
AGAIN = 2.0
KEPT_MINUTES = 26 * 60
KEPT_SECONDS = 180
# Nobody adds to a minute that ended so many minutes ago.
_SETTLED = 2

# Kinds of rows.
_TOTAL, _SECOND, _MINUTE = 0, 1, 60

schema = sa.MetaData()
figures = sa.Table(
    "figures",
    schema,
    sa.Column("span", sa.Integer, primary_key=True),
    # In units of the span since the epoch.
    sa.Column("at", sa.BigInteger, primary_key=True),
    sa.Column("figures", sa.JSON, nullable=False),
)
last_errors = sa.Table(
    "last_errors",
    schema,
    sa.Column("system", sa.Text, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)


def first_schema(connection: sa.Connection) -> None:
    """The tables, as they were first made."""
    schema.create_all(connection)


@dataclass(frozen=True)
class Minute:
    """What all processes counted in the minute that began *at* (seconds since the epoch)."""

    at: float
    figures: Mapping[str, float] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """How often *name*, one of `COUNTS`, was counted."""
        return int(self.figures.get(_one_of(COUNTS, name), 0))

    def gauge(self, name: str) -> float | None:
        """The mean of the samples of *name*, one of `GAUGES`; ``None`` if there are none."""
        samples = self.figures.get(f"{_one_of(GAUGES, name)}:samples", 0)
        return self.figures[f"{name}:sum"] / samples if samples else None

    def percentile(self, name: str, share: float) -> float | None:
        """Milliseconds within which that *share* (0 to 1) of *name*, one of `HISTOGRAMS`, ended.

        Estimated within a bucket; ``None`` if there was nothing.
        """
        buckets = [self.figures.get(bucket, 0) for bucket in _BUCKETS[name]]
        wanted = share * sum(buckets)
        if not any(buckets):
            return None
        below = 0.0
        for place, number in enumerate(buckets[:-1]):
            if number and below + number >= wanted:
                lower = BOUNDS[place - 1] if place else 0.0
                return round(lower + (BOUNDS[place] - lower) * (wanted - below) / number, 2)
            below += number
        return BOUNDS[-1]

    def buckets(self, name: str) -> list[int]:
        """How many of *name* fell into each bucket: one for each of `BOUNDS`, and the rest."""
        return [int(self.figures.get(bucket, 0)) for bucket in _BUCKETS[name]]

    def seconds(self, name: str) -> float:
        """How long all of *name*, one of `HISTOGRAMS`, took together."""
        return self.figures.get(_SECONDS[name], 0.0)


def together(minutes: Sequence[Minute]) -> Minute:
    """*minutes* as one that begins with the first of them."""
    return Minute(minutes[0].at if minutes else 0.0, _summed(one.figures for one in minutes))


@dataclass(frozen=True)
class LastError:
    """The last failure of one of SessionM's systems: *text* names no customer."""

    at: float
    text: str


class Telemetry:
    """The figures of this process, and the reading of everybody's.

    Args:
        database: where they are added up, beside what may not be held up.
        now: the time.
    """

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._counting = threading.Lock()
        self._share: defaultdict[str, float] = defaultdict(float)
        self._errors: dict[str, LastError] = {}
        self._flushing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._told = False
        self._away_at = 0.0
        self._cleaned = 0
        self._seen = _Seen()

    def count(self, *names: str) -> None:
        """Count one of each of *names*, all of `COUNTS`."""
        with self._counting:
            for name in names:
                self._share[name] += 1
        self._ensure_thread()

    def add(self, name: str, number: float) -> None:
        """Count *number* of *name*."""
        with self._counting:
            self._share[name] += number
        self._ensure_thread()

    def took(self, name: str, seconds: float, *counted: str) -> None:
        """Count one of *name*, of `HISTOGRAMS`, that took so many *seconds*; and what `count` does.

        In one go, since this stands in the way of every lookup.
        """
        bucket = _BUCKETS[name][bisect_left(BOUNDS, seconds * 1000)]
        with self._counting:
            share = self._share
            share[bucket] += 1
            share[_SECONDS[name]] += seconds
            for one in counted:
                share[one] += 1
        self._ensure_thread()

    def sample(self, **gauges: float) -> None:
        """Take note of how high *gauges*, of `GAUGES`, are now."""
        with self._counting:
            for name, value in gauges.items():
                self._share[f"{name}:sum"] += value
                self._share[f"{name}:samples"] += 1
        self._ensure_thread()

    def called(self, call: Call) -> None:
        """Count a finished *call* to SessionM."""
        counted = [f"{call.system}_calls"]
        if call.error is not None and call.error.meaning not in _ANSWERS:
            counted.append(f"{call.system}_errors")
            with self._counting:
                self._errors[call.system] = LastError(self._now(), call.error.brief)
        self.took(call.system, call.seconds, *counted)

    def minutes(self, since: float) -> list[Minute]:
        """Every minute since then, oldest first, the present one last; 26 hours at most."""
        self.flush()
        present = int(self._now() // 60)
        first = max(int(since // 60), present - KEPT_MINUTES)
        rows = self._seen.since(first, present, self._read_minutes)
        pending = Minute(present * 60.0, self._pending())
        past = [Minute(at * 60.0, rows.get(at, {})) for at in range(first, present)]
        return [*past, together([Minute(present * 60.0, rows.get(present, {})), pending])]

    def moving_minute(self) -> Minute:
        """What Braze counts (`BRAZE_COUNTS`) in the 60 seconds before now."""
        self.flush()
        now = self._now()
        chosen = sa.select(figures.c.figures).where(
            figures.c.span == _SECOND, figures.c.at > int(now) - 60
        )
        try:
            with self._reading() as connection:
                rows = list(connection.execute(chosen).scalars())
        except StoreUnavailableError:
            # It was told when the figures could not be added.
            rows = []
        return Minute(now - 60, _summed([*rows, self._pending()]))

    def totals(self) -> Minute:
        """Everything since the table was made.

        Raises:
            StoreUnavailableError: it cannot be read; part of it would be a step back.
        """
        self.flush()
        chosen = sa.select(figures.c.figures).where(figures.c.span == _TOTAL)
        with self._reading() as connection:
            return Minute(0.0, connection.execute(chosen).scalar() or {})

    def last_error(self, system: str) -> LastError | None:
        """The last failure of *system*, ``core`` or ``connect``, in any process."""
        self.flush()
        chosen = sa.select(last_errors.c.at, last_errors.c.text).where(
            last_errors.c.system == system
        )
        try:
            with self._reading() as connection:
                row = connection.execute(chosen).first()
        except StoreUnavailableError:
            row = None
        return LastError(*row) if row else self._errors.get(system)

    def flush(self) -> None:
        """Add this process's share to everybody's; it is kept if that cannot be."""
        with self._flushing:
            if self._is_away():
                return
            with self._counting:
                share, self._share = self._share, defaultdict(float)
                errors, self._errors = self._errors, {}
            if not share:
                return
            try:
                self._write(share, errors)
            except (StoreUnavailableError, NewerSchemaError) as error:
                self._away_at = self._now()
                with self._counting:
                    for name, number in share.items():
                        self._share[name] += number
                    self._errors = {**errors, **self._errors}
                if not self._told:
                    log.warning("no figures: %s", error, extra={"action": "figures_unwritable"})
                self._told = True
            else:
                self._told = False

    def _is_away(self) -> bool:
        return 0 <= self._now() - self._away_at < AGAIN

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        if self._is_away():
            raise StoreUnavailableError("it was away a moment ago")
        try:
            with self._database.read() as connection:
                yield connection
        except StoreUnavailableError:
            self._away_at = self._now()
            raise

    def close(self) -> None:
        """Add the last share, and end."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._away_at = 0.0
        self.flush()

    def _ensure_thread(self) -> None:
        # Begun with the first figure: commands that count nothing need none.
        if self._thread is None:
            with self._counting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(EVERY):
            self.flush()

    def _write(self, share: Mapping[str, float], errors: Mapping[str, LastError]) -> None:
        now = self._now()
        shares = {(_TOTAL, 0): share, (_MINUTE, int(now // 60)): share}
        if moving := {name: share[name] for name in _MOVING if name in share}:
            shares[_SECOND, int(now)] = moving
        with self._database.write() as connection:
            _add(connection, shares)
            for system, error in errors.items():
                _remember(connection, system, error)
            if int(now // 60) != self._cleaned:
                _forget(connection, now)
        self._cleaned = int(now // 60)

    def _read_minutes(self, first: int) -> dict[int, Mapping[str, float]]:
        chosen = sa.select(figures.c.at, figures.c.figures).where(
            figures.c.span == _MINUTE, figures.c.at >= first
        )
        with self._reading() as connection:
            return dict(connection.execute(chosen).all())

    def _pending(self) -> dict[str, float]:
        """What could not be added yet."""
        with self._counting:
            return dict(self._share)


# Failures that are SessionM at work: it answered, if not as wished.
_ANSWERS = {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER}


class _Seen:
    """Minutes that were read before: those that have ended do not change any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[int, Mapping[str, float]] = {}
        # All from the first of these minutes to before the second is known for good.
        self._from, self._until = sys.maxsize, 0

    def since(
        self, first: int, present: int, read: Callable[[int], dict[int, Mapping[str, float]]]
    ) -> dict[int, Mapping[str, float]]:
        """The rows since *first*, only those read anew that may have changed."""
        with self._lock:
            known = self._from <= first <= self._until
            try:
                rows = read(self._until if known else first)
            except StoreUnavailableError:
                # It was told when the figures could not be added; what was read stands.
                return self._rows
            if known or first < self._from:
                self._from = min(first, self._from)
                self._until = max(self._from, present - _SETTLED)
            self._rows.update(rows)
            oldest = present - KEPT_MINUTES
            self._rows = {at: row for at, row in self._rows.items() if at >= oldest}
            return self._rows


def _add(connection: sa.Connection, shares: Mapping[tuple[int, int], Mapping[str, float]]) -> None:
    """Add to rows, which other processes do at the same time."""
    connection.execute(
        insert(figures).on_conflict_do_nothing(),
        [{"span": span, "at": at, "figures": {}} for span, at in sorted(shares)],
    )
    mine = sa.or_(*(sa.and_(figures.c.span == span, figures.c.at == at) for span, at in shares))
    present = connection.execute(
        sa.select(figures).where(mine).order_by(figures.c.span).with_for_update()
    ).all()
    connection.execute(
        figures.update()
        .where(figures.c.span == sa.bindparam("of_span"), figures.c.at == sa.bindparam("of_at"))
        .values(figures=sa.bindparam("sum")),
        [
            {"of_span": span, "of_at": at, "sum": _summed([before, shares[span, at]])}
            for span, at, before in present
        ],
    )


def _remember(connection: sa.Connection, system: str, error: LastError) -> None:
    statement = insert(last_errors).values(system=system, at=error.at, text=error.text)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["system"],
            set_={"at": error.at, "text": error.text},
            where=last_errors.c.at <= error.at,
        )
    )


def _forget(connection: sa.Connection, now: float) -> None:
    for span, most in ((_MINUTE, KEPT_MINUTES), (_SECOND, KEPT_SECONDS)):
        oldest = int(now // span) - most
        connection.execute(figures.delete().where(figures.c.span == span, figures.c.at < oldest))


def _summed(several: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for one in several:
        for name, number in one.items():
            found[name] += number
    return dict(found)


def _one_of(names: Sequence[str], name: str) -> str:
    if name not in names:
        raise KeyError(name)
    return name
