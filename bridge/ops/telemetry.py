"""Counters, histograms and gauges of all processes.

Each process counts in a dictionary, which takes about a microsecond. Once a second it adds its
figures, in one transaction, to three kinds of rows: the present minute, the present second (only
what Braze counts in its moving minute), and the totals. So readers see the figures of all
processes, also of ended ones, and totals never decrease. A killed process loses its last second.
While the store is unavailable, figures stay in the process and are added later.

Once a minute, the minutes of each past quarter of an hour are summed in one row, which is kept for
a month.
"""

import logging
import math
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

from bridge import clock
from bridge.calls import FinishedCall, Meaning
from bridge.storage.database import Database, NewerSchemaError, StoreUnavailableError
from bridge.storage.expressions import insert

log = logging.getLogger(__name__)

# Counted as ``lookups_…``: answers to lookups.
LOOKUP_OUTCOMES = ("hit", "stale", "miss", "not_found", "unavailable")
# `bridge.ops.metrics` says what they count.
COUNTS = (
    "webhooks_accepted",
    "webhooks_duplicate",
    "webhooks_rejected",
    "webhooks_failed",
    "messages_accepted",
    "messages_duplicate",
    "messages_rejected",
    "messages_failed",
    *(f"lookups_{outcome}" for outcome in LOOKUP_OUTCOMES),
    "lookups_late",
    "delivered",
    "dead",
    "expired",
    "writes_sent",
    "messages_delivered",
    "messages_dead",
    "messages_expired",
    "messages_sent",
    # Calls; refused ones, such as a tag that SessionM does not take, are no errors.
    "braze_calls",
    "braze_errors",
    "braze_refused",
    "core_calls",
    "core_errors",
    "core_refused",
    "connect_calls",
    "connect_errors",
    "connect_refused",
    "values_not_understood",
    "braze_webhook_failures",
    "braze_content_failures",
    "braze_content_calls",
    "auth_failures",
    # Webhooks and messages among `auth_failures`.
    "webhooks_not_let_in",
    "messages_not_let_in",
)
HISTOGRAMS = ("lookup", "webhook", "message", "core", "connect", "braze")
# *connections* is the share of a process's maximum, 0 to 1.
GAUGES = ("queued", "oldest_seconds", "dead_writes", "connections")

# Braze counts answers with a status of BRAZE_COUNTS per host in a moving minute. Above
# `planner.FAILURE_BUDGET`, Braze stops calling the host for a minute; Connected Content stops only
# if BRAZE_CONTENT_SHARE (0 to 1) of its calls has failed too (Braze documentation, "unhealthy host
# detection").
BRAZE_COUNTS = frozenset({408, 429, 502, 503, 504, 529})
BRAZE_CONTENT_SHARE = 0.9
_MOVING = ("braze_webhook_failures", "braze_content_failures", "braze_content_calls")

# Milliseconds: upper bounds of the buckets of a histogram. One more bucket has the longer times.
BOUNDS: tuple[float, ...] = (
    *(0.25, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150),
    *(200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000),
)
_BUCKETS = {
    name: tuple(f"{name}:{place}" for place in range(len(BOUNDS) + 1)) for name in HISTOGRAMS
}
# The end of the name of a figure that is a maximum.
_MOST = ":most"
_SECONDS = {name: f"{name}:seconds" for name in HISTOGRAMS}

# Seconds between two flushes.
EVERY = 1.0
# Seconds without another try after the store was unavailable, so that readers do not wait for it.
AGAIN = 2.0
# Seconds for which a reader waits for the flush of its own process.
CATCH_UP = 0.25
# Formats of unreadable values that are logged, once each.
MOST_LOGGED_FORMS = 100
# Minutes for which their rows are kept.
KEPT_MINUTES = 26 * 60
# Seconds of a quarter of an hour.
QUARTER = 900
# Spans (minutes; quarters in `quarters`) after the end of a span in which its row may still change.
_SETTLED = 2

# Kinds of rows: the span in seconds, 0 for the totals.
_TOTAL, _SECOND, _MINUTE, _QUARTER = 0, 1, 60, QUARTER
# Rows that are kept of each kind: for 3 minutes, 26 hours and 32 days.
_KEPT = {_SECOND: 180, _MINUTE: KEPT_MINUTES, _QUARTER: 32 * 96}

schema = sa.MetaData()
figures = sa.Table(
    "figures",
    schema,
    sa.Column("span", sa.Integer, primary_key=True),
    # The number of spans since the epoch.
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


def create(connection: sa.Connection) -> None:
    """Create the tables as they are now."""
    schema.create_all(connection)


@dataclass(frozen=True)
class Period:
    """The figures of all processes for a minute, a quarter of an hour, or another period.

    *at* is the start in seconds since the epoch.
    """

    at: float
    figures: Mapping[str, float] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """Return the value of *name*, one of `COUNTS`."""
        return int(self.figures.get(_one_of(COUNTS, name), 0))

    def gauge(self, name: str) -> float | None:
        """Return the mean of the samples of *name*, one of `GAUGES`; ``None`` without samples."""
        samples = self.figures.get(f"{_one_of(GAUGES, name)}:samples", 0)
        return self.figures[f"{name}:sum"] / samples if samples else None

    def most(self, name: str) -> float | None:
        """Return the largest sample of *name*, one of `GAUGES`; ``None`` without samples."""
        return self.figures.get(f"{_one_of(GAUGES, name)}:most")

    def percentile(self, name: str, share: float) -> float | None:
        """Return a percentile of a histogram in milliseconds, interpolated within its bucket.

        Args:
            name: one of `HISTOGRAMS`.
            share: 0.5 for the median, 0.99 for p99.

        Returns:
            ``None`` without observations.
        """
        buckets = self.buckets(name)
        rank = share * sum(buckets)
        if not any(buckets):
            return None
        below = 0
        for place, number in enumerate(buckets[:-1]):
            if number and below + number >= rank:
                lower = BOUNDS[place - 1] if place else 0.0
                return round(lower + (BOUNDS[place] - lower) * (rank - below) / number, 2)
            below += number
        return BOUNDS[-1]

    def buckets(self, name: str) -> list[int]:
        """Return the number of observations per bucket: one for each of `BOUNDS`, and the rest."""
        return [int(self.figures.get(bucket, 0)) for bucket in _BUCKETS[name]]

    def seconds(self, name: str) -> float:
        """Return the sum of all observations of *name*, one of `HISTOGRAMS`, in seconds."""
        return self.figures.get(_SECONDS[name], 0.0)


def together(periods: Sequence[Period]) -> Period:
    """Return the sum of *periods*, which begins with the first of them."""
    return Period(periods[0].at if periods else 0.0, _summed(one.figures for one in periods))


@dataclass(frozen=True)
class LastError:
    """The last failure of a system, without any customer's name.

    *at* is in seconds since the epoch.
    """

    at: float
    text: str


class Telemetry:
    """Counts in this process, and reads the figures of all processes. Thread-safe.

    Args:
        database: the store of the figures, with connections of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counting = threading.Lock()
        self._share: defaultdict[str, float] = defaultdict(float)
        self._errors: dict[str, LastError] = {}
        self._flushing = threading.Lock()
        self._is_wanted = threading.Event()
        # The number of ended flushes, and the start of the present one by `time.monotonic`.
        self._flushes = threading.Condition()
        self._flushed = 0
        self._began_at = math.inf
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._warned = False
        self._logged_forms: set[str] = set()
        # When the table could not be written or read, by `clock.steady`.
        self._write_failed_at = self._read_failed_at = -math.inf
        self._cleaned = 0
        self._past = {span: _Past(span, self._read_rows) for span in (_MINUTE, _QUARTER)}

    def count(self, *names: str) -> None:
        """Add 1 to each of *names*, all of `COUNTS`."""
        with self._counting:
            for name in names:
                self._share[name] += 1
        self._ensure_thread()

    def add(self, name: str, number: float) -> None:
        """Add *number* to *name*, one of `COUNTS`."""
        with self._counting:
            self._share[name] += number
        self._ensure_thread()

    def observe(self, name: str, seconds: float, *counted: str) -> None:
        """Add an observation to *name*, one of `HISTOGRAMS`, and 1 to each of *counted*.

        Both under one lock, since every lookup does this.
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
        """Add a sample of each of *gauges*, all of `GAUGES`."""
        with self._counting:
            for name, value in gauges.items():
                self._share[f"{name}:sum"] += value
                self._share[f"{name}:samples"] += 1
                most = f"{name}{_MOST}"
                self._share[most] = max(self._share[most], value)
        self._ensure_thread()

    def count_call(self, call: FinishedCall) -> None:
        """Count a finished call to SessionM or Braze, and keep its error as the last one.

        A refusal is kept, and counted by itself.
        """
        counted = [f"{call.system}_calls"]
        if call.error is not None and call.error.meaning is not Meaning.UNKNOWN_CUSTOMER:
            self.keep_error(call.system, call.error.brief)
            is_refused = call.error.meaning is Meaning.REFUSED
            counted.append(f"{call.system}_{'refused' if is_refused else 'errors'}")
        self.observe(call.system, call.seconds, *counted)

    def keep_error(self, system: str, text: str) -> None:
        """Keep *text*, without any customer's name, as the last error of *system*."""
        with self._counting:
            self._errors[system] = LastError(clock.now(), text)

    def count_unreadable(self, form: str) -> None:
        """Count a value of SessionM's in an unknown format; log each format once.

        Args:
            form: the format of the value without its content.
        """
        with self._counting:
            self._errors["offers"] = LastError(clock.now(), form)
            is_new = form not in self._logged_forms and len(self._logged_forms) < MOST_LOGGED_FORMS
            if is_new:
                self._logged_forms.add(form)
        if is_new:
            log.warning("not understood: %s", form, extra={"action": "value_not_understood"})
        self.count("values_not_understood")

    def minutes(self, since: float) -> list[Period]:
        """Return each minute since *since*, also empty ones, oldest first; at most 26 hours.

        Args:
            since: seconds since the epoch.
        """
        self._catch_up()
        present = int(clock.now() // 60)
        first = max(int(since // 60), present - _KEPT[_MINUTE])
        rows = self._past[_MINUTE].since(first, present)
        pending = Period(present * 60.0, self._pending())
        past = [Period(at * 60.0, rows.get(at, {})) for at in range(first, present)]
        return [*past, together([Period(present * 60.0, rows.get(present, {})), pending])]

    def quarters(self, since: float) -> list[Period]:
        """Return each quarter of an hour since *since*, oldest first; at most 32 days.

        Args:
            since: seconds since the epoch.
        """
        present = int(clock.now() // QUARTER)
        first = max(int(since // QUARTER), present - _KEPT[_QUARTER])
        rows = dict(self._past[_QUARTER].since(first, present))
        # The latest quarters are not rolled up yet.
        latest: defaultdict[int, list[Period]] = defaultdict(list)
        for minute in self.minutes((present - 4) * QUARTER):
            latest[int(minute.at // QUARTER)].append(minute)
        for at, minutes in latest.items():
            rows[at] = rows.get(at) or together(minutes).figures
        return [Period(float(at * QUARTER), rows.get(at, {})) for at in range(first, present + 1)]

    def moving_minute(self) -> Period:
        """Return the figures that Braze counts, for the last 60 seconds."""
        self._catch_up()
        now = clock.now()
        chosen = sa.select(figures.c.figures).where(
            # Without later rows, from before the clock was set back.
            figures.c.span == _SECOND,
            figures.c.at.between(int(now) - 59, int(now) + 1),
        )
        try:
            with self._reading() as connection:
                rows = list(connection.execute(chosen).scalars())
        except StoreUnavailableError:
            # `_flush` logs this, as soon as this process has figures to store.
            rows = []
        return Period(now - 60, _summed([*rows, self._pending()]))

    def totals(self) -> Period:
        """Return all figures since the table was created.

        Raises:
            StoreUnavailableError: the store cannot be read; partial totals would be a decrease.
        """
        self.flush()
        chosen = sa.select(figures.c.figures).where(figures.c.span == _TOTAL)
        with self._reading() as connection:
            return Period(0.0, connection.execute(chosen).scalar() or {})

    def last_error(self, system: str) -> LastError | None:
        """Return the last failure of *system* in any process; ``None`` without one.

        Args:
            system: ``core``, ``connect`` or ``braze``; ``offers`` for unreadable values;
                ``webhooks``, ``messages`` or ``content`` for rejected calls to the bridge;
                ``failed_webhooks``, ``failed_messages`` or ``failed_lookups`` for failed ones.
        """
        self._catch_up()
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
        """Add this process's figures to the store, or keep them if it is unavailable."""
        with self._flushing:
            self._began_at = time.monotonic()
            try:
                self._flush()
            finally:
                with self._flushes:
                    self._began_at = math.inf
                    self._flushed += 1
                    self._flushes.notify_all()

    def _catch_up(self) -> None:
        """Wait up to `CATCH_UP` seconds for a flush, so that a reader sees its own figures."""
        with self._counting:
            has_figures = bool(self._share or self._errors)
        if not has_figures and self._began_at == math.inf:
            return
        self._ensure_thread()
        with self._flushes:
            if self._is_away() or time.monotonic() - self._began_at > CATCH_UP:
                return
            # The next flush adds the figures that are counted during this one.
            flushes = self._flushed + (1 if self._began_at == math.inf else 2)
            self._is_wanted.set()
            self._flushes.wait_for(lambda: self._flushed >= flushes, CATCH_UP)

    def _flush(self) -> None:
        if self._is_away():
            return
        with self._counting:
            share, self._share = self._share, defaultdict(float)
            errors, self._errors = self._errors, {}
        if not share and not errors:
            return
        try:
            self._write(share, errors)
        except (StoreUnavailableError, NewerSchemaError) as error:
            self._write_failed_at = clock.steady()
            with self._counting:
                self._share = defaultdict(float, _summed([share, self._share]))
                self._errors = {**errors, **self._errors}
            if not self._warned:
                log.warning("figures not stored: %s", error, extra={"action": "figures_unwritable"})
            self._warned = True
        else:
            self._warned = False

    def _is_away(self) -> bool:
        return clock.steady() - self._write_failed_at < AGAIN

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        if clock.steady() - self._read_failed_at < AGAIN:
            raise StoreUnavailableError("it was unavailable a moment ago")
        try:
            with self._database.read() as connection:
                yield connection
        except StoreUnavailableError:
            self._read_failed_at = clock.steady()
            raise

    def close(self) -> None:
        """Flush and end the thread."""
        self._ending.set()
        self._is_wanted.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._write_failed_at = -math.inf
        self.flush()

    def _ensure_thread(self) -> None:
        # Started with the first figure, since most commands count nothing.
        if self._thread is None:
            with self._counting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._is_wanted.wait(EVERY)
            self._is_wanted.clear()
            if not self._ending.is_set():
                self.flush()

    def _write(self, share: Mapping[str, float], errors: Mapping[str, LastError]) -> None:
        now = clock.now()
        shares = {(_TOTAL, 0): share, (_MINUTE, int(now // 60)): share}
        if moving := {name: share[name] for name in _MOVING if name in share}:
            shares[_SECOND, int(now)] = moving
        with self._database.write() as connection:
            _add(connection, shares)
            for system, error in errors.items():
                _remember(connection, system, error)
            if int(now // 60) != self._cleaned:
                _roll_up(connection, now)
                _forget(connection, now)
        self._cleaned = int(now // 60)

    def _read_rows(self, span: int, first: int) -> dict[int, Mapping[str, float]]:
        chosen = sa.select(figures.c.at, figures.c.figures).where(
            figures.c.span == span, figures.c.at >= first
        )
        with self._reading() as connection:
            return dict(connection.execute(chosen).all())

    def _pending(self) -> dict[str, float]:
        """Return the figures that are not stored yet."""
        with self._counting:
            return dict(self._share)


class _Past:
    """A cache of the rows of one *span*, since rows of past periods do not change.

    Args:
        span: the kind of rows.
        read: returns the rows of *span* from a place on.
    """

    def __init__(
        self, span: int, read: Callable[[int, int], dict[int, Mapping[str, float]]]
    ) -> None:
        self._span = span
        self._read = read
        self._lock = threading.Lock()
        self._rows: dict[int, Mapping[str, float]] = {}
        # All rows from `_from` to before `_until` are cached.
        self._from, self._until = sys.maxsize, 0

    def since(self, first: int, present: int) -> dict[int, Mapping[str, float]]:
        """Return the cached rows, with all since *first*; those that may change are read."""
        with self._lock:
            if present + _SETTLED < self._until:
                # The clock was set back.
                self._rows, self._from, self._until = {}, sys.maxsize, 0
            known = self._from <= first <= self._until
            try:
                rows = self._read(self._span, self._until if known else first)
            except StoreUnavailableError:
                # `_flush` logs this, as soon as this process has figures to store.
                return self._rows
            if known or first < self._from:
                self._from = min(first, self._from)
                self._until = max(self._from, present - _SETTLED)
            self._rows.update(rows)
            oldest = present - _KEPT[self._span]
            self._rows = {at: row for at, row in self._rows.items() if at >= oldest}
            return self._rows


def _add(connection: sa.Connection, shares: Mapping[tuple[int, int], Mapping[str, float]]) -> None:
    """Add to rows; other processes may do so at the same time."""
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
        )
    )


def _roll_up(connection: sa.Connection, now: float) -> None:
    """Sum the minutes of each past quarter that has no row yet."""
    ended = int((now - _SETTLED * 60) // QUARTER)
    newest = sa.select(sa.func.max(figures.c.at)).where(
        figures.c.span == _QUARTER, figures.c.at < ended
    )
    first = max((connection.execute(newest).scalar() or 0) + 1, ended - KEPT_MINUTES // 15)
    if first >= ended:
        return
    chosen = sa.select(figures.c.at, figures.c.figures).where(
        figures.c.span == _MINUTE, figures.c.at.between(first * 15, ended * 15 - 1)
    )
    quarters: defaultdict[int, list[Mapping[str, float]]] = defaultdict(list)
    for at, counted in connection.execute(chosen):
        quarters[at // 15].append(counted)
    # A row for the last quarter even if it is empty, so that it is not searched again.
    quarters.setdefault(ended - 1, [])
    connection.execute(
        insert(figures).on_conflict_do_nothing(),
        [
            {"span": _QUARTER, "at": at, "figures": _summed(several)}
            for at, several in sorted(quarters.items())
        ],
    )


def _forget(connection: sa.Connection, now: float) -> None:
    for span, most in _KEPT.items():
        present = int(now // span)
        # Later rows are from before the clock was set back.
        kept = figures.c.at.between(present - most, present + _SETTLED * 60)
        connection.execute(figures.delete().where(figures.c.span == span, ~kept))


def _summed(several: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the sum of counts, and the largest of maxima."""
    found: defaultdict[str, float] = defaultdict(float)
    for one in several:
        for name, number in one.items():
            if name.endswith(_MOST):
                found[name] = max(found[name], number)
            else:
                found[name] += number
    return dict(found)


def _one_of(names: Sequence[str], name: str) -> str:
    if name not in names:
        raise KeyError(name)
    return name
