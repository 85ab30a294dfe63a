"""`bridge warm`: fetch the lookups of a segment before a send.

The lookups go into the shared cache, which the running bridge uses. Live lookups have priority:
this command uses few connections and a limited rate, and halves the rate when SessionM gets slower.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bridge.bulk.segment import Refused, SegmentOptions, lines_of, open_segment
from bridge.cli.batch import file_mistakes, id_options, opened_csv
from bridge.cli.common import EXISTING_FILE, connected, one_line
from bridge.cli.output import Form, dump, forms
from bridge.customer import Customer, CustomerKind
from bridge.fields import counted
from bridge.lookups.customer import LookupAnswer, Lookups
from bridge.lookups.query import Query, read_culture
from bridge.parts import Parts
from bridge.storage.locks import WARMER

CONNECTIONS = 4
# Seconds for one lookup, and between two attempts.
DEADLINE = 10.0
RETRY = 2.0
ATTEMPTS = 3
# Consecutive failed customers after which SessionM counts as down.
FAILED_IN_A_ROW = 20
# Calls a second: the minimum rate.
LEAST_RATE = 1.0
# SessionM is overloaded if the mean time of an answer is this multiple of its best mean, and more
# than this number of seconds.
OVERLOAD, LEAST_OVERLOAD = 2.0, 0.05
# Seconds between two writes of the progress file.
SAVE_EVERY = 5.0


class _DownError(Exception):
    """SessionM does not answer."""


class WarmRate:
    """A rate limit that adapts to SessionM's latency. Thread-safe.

    Args:
        limit: the maximum number of calls a second.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.rate = limit
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._adapted_at = time.monotonic()
        self._seconds: list[float] = []
        self._best = float("inf")

    def wait(self, calls: int) -> None:
        """Sleep until *calls* calls are allowed."""
        with self._lock:
            at = max(self._next_at, time.monotonic())
            self._next_at = at + calls / self.rate
        time.sleep(max(0.0, at - time.monotonic()))

    def give_back(self, calls: int) -> None:
        """Return *calls* calls that were not needed."""
        with self._lock:
            self._next_at -= calls / self.rate

    def observe(self, seconds: float) -> None:
        """Record the time of an answer; once a second, adapt the rate."""
        with self._lock:
            self._seconds.append(seconds)
            now = time.monotonic()
            if now - self._adapted_at < 1.0:
                return
            mean = sum(self._seconds) / len(self._seconds)
            self._best = min(self._best, mean)
            overloaded = mean > OVERLOAD * self._best and mean > LEAST_OVERLOAD
            rate = self.rate / 2 if overloaded else self.rate * 1.1
            self.rate = min(self._limit, max(min(LEAST_RATE, self._limit), rate))
            self._seconds.clear()
            self._adapted_at = now


@dataclass
class WarmProgress:
    """The progress of all runs on one file, up to *line*.

    Attributes:
        line: the number of the last completed line.
        fetched, fresh, unknown, failed: numbers of customers.
        seconds: the total time of the runs.
    """

    line: int = 1
    fetched: int = 0
    fresh: int = 0
    unknown: int = 0
    failed: int = 0
    seconds: float = 0.0

    def count(self, answers: list[LookupAnswer]) -> bool:
        """Count a customer by the answers to its lookups; if one failed, only return True."""
        statuses = {answer.status for answer in answers}
        if "unavailable" in statuses:
            return True
        if "not_found" in statuses:
            self.unknown += 1
        elif any(answer.how == "miss" for answer in answers):
            self.fetched += 1
        else:
            self.fresh += 1
        return False


@click.command()
@click.argument("file", type=EXISTING_FILE)
@click.option("--tags", is_flag=True, help="Fetch tags; by default tags and offers.")
@click.option("--offers", is_flag=True, help="Fetch offers; by default tags and offers.")
@click.option("--culture", default=Query.culture, show_default=True, help="Language of the offers.")
@click.option(
    "--rps",
    type=click.FloatRange(0.1, 100_000),
    help="Maximum calls a second, up to BRIDGE_SESSIONM_RPS.",
)
@id_options
@click.option("--restart", is_flag=True, help="Begin with the first line again.")
@forms
def warm(
    file: Path,
    *,
    tags: bool,
    offers: bool,
    culture: str,
    rps: float | None,
    id_column: str,
    id_kind: CustomerKind | None,
    restart: bool,
    form: Form,
) -> None:
    """Fetch the lookups of a segment before a send.

    FILE is a Braze segment export, or any CSV with user_id or external_id. Fresh lookups are not
    fetched again. After Ctrl-C, the same command continues at the same line.
    """
    columns = SegmentOptions(id_column=id_column, id_kind=id_kind, customers_only=True)
    with one_line():
        culture = read_culture(culture)
    with one_line(), file_mistakes(file), connected() as parts:
        lookups = _lookups(tags=tags, offers=offers, offers_on=parts.settings.offers_on)
        limit = min(rps or parts.settings.bridge_sessionm_rps, parts.settings.bridge_sessionm_rps)
        customers = calls = 0
        refused: list[Refused] = []
        for _line, customer in _customers(file, columns, parts, refused.append):
            customers += 1
            calls += sum(_calls(kind, customer) for kind in lookups)
        if refused:
            click.echo(
                f"{counted(len(refused), 'line')} refused; line {refused[0].line}: "
                f"{refused[0].reason}",
                err=True,
            )
        if not customers:
            raise click.ClickException(f"{click.format_filename(file)} names no customer")
        options = {"kinds": lookups, "culture": culture, "id": [id_column, id_kind]}
        progress_file = WarmProgressFile(file, options, restart=restart)
        click.echo(
            f"{counted(customers, 'customer')}, {' and '.join(lookups)}: at {limit:g} calls "
            f"a second {_duration(calls / limit)} if nothing is cached yet.",
            err=bool(form),
        )
        if progress_file.progress.line > 1:
            line = progress_file.progress.line
            click.echo(f"Continuing after line {line}, where the last run ended.", err=bool(form))
        _warn(parts, lookups, calls / limit)
        # Watch for changes first: lookups fetched before would be fetched again.
        parts.cache.start()
        with _only_run(parts):
            fresh_lookups = parts.lookups.without_stale(DEADLINE)
            run = WarmRun(fresh_lookups, lookups, culture, WarmRate(limit), progress_file)
            run.run(_customers(file, columns, parts), customers, quiet=bool(form))
    _report(progress_file.progress, form)


def _lookups(*, tags: bool, offers: bool, offers_on: bool) -> list[str]:
    if offers and not offers_on:
        raise click.ClickException("offers are switched off: SESSIONM_CONNECT_URL is not set")
    chosen = {"tags": tags or not offers, "offers": offers or (offers_on and not tags)}
    return [lookup for lookup, is_chosen in chosen.items() if is_chosen]


def _customers(
    file: Path,
    columns: SegmentOptions,
    parts: Parts,
    on_refused: Callable[[Refused], None] = lambda _line: None,
) -> Iterator[tuple[int, Customer]]:
    with opened_csv(file) as (read, _size):
        for row in open_segment(lines_of(read), columns, parts.rules):
            if isinstance(row, Refused):
                on_refused(row)
            else:
                yield row.line, row.customer


@contextmanager
def _only_run(parts: Parts) -> Iterator[None]:
    """Allow one run at a time, since two would exceed SessionM's rate limit together."""
    locks = parts.store.database.locks
    if not locks.try_acquire(WARMER):
        raise click.ClickException("another `bridge warm` runs on this database: let it end first")
    try:
        yield
    finally:
        locks.release(WARMER)


def _calls(kind: str, customer: Customer) -> int:
    """Return the calls of one lookup; offers of an external id need its user_id first."""
    return 2 if kind == "offers" and customer.kind == "external_id" else 1


def _warn(parts: Parts, lookups: list[str], seconds: float) -> None:
    """Warn about lookups that expire before the run ends."""
    ages = {
        "tags": parts.settings.bridge_tags_max_age,
        "offers": parts.settings.bridge_offers_max_age,
    }
    for lookup in lookups:
        if seconds > ages[lookup]:
            click.echo(
                f"{lookup.title()} stay fresh for {_duration(ages[lookup])} only: the first will "
                "be out of date before the last is fetched. For a send, raise "
                f"BRIDGE_{lookup.upper()}_MAX_AGE to {round(seconds * 1.2)} or more.",
                err=True,
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class WarmProgressFile:
    """The saved progress, ``FILE.warm``, with which the next run continues."""

    def __init__(self, file: Path, options: dict[str, Any], *, restart: bool) -> None:
        self._path = file.with_name(file.name + ".warm")
        known = file.stat()
        self._about = {"size": known.st_size, "changed": known.st_mtime_ns, **options}
        self.progress = WarmProgress() if restart else self._read()
        self._saved_at = time.monotonic()

    def _read(self) -> WarmProgress:
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            # The progress on another file or of other lookups is ignored.
            same = saved["about"] == json.loads(json.dumps(self._about))
            return WarmProgress(**saved["progress"]) if same else WarmProgress()
        except FileNotFoundError:
            return WarmProgress()
        except (ValueError, KeyError, TypeError):
            named = click.format_filename(self._path)
            raise click.ClickException(
                f"{named} is damaged: delete it, or begin again by --restart"
            ) from None

    def save(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._saved_at > SAVE_EVERY:
            self.progress.seconds += now - self._saved_at
            self._saved_at = now
            draft = self._path.with_name(self._path.name + ".new")
            draft.write_text(
                json.dumps({"about": self._about, "progress": vars(self.progress)}),
                encoding="utf-8",
            )
            draft.replace(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class WarmRun:
    """One run: several customers are fetched at once, and counted in the order of the file."""

    def __init__(
        self,
        lookups: Lookups,
        kinds: list[str],
        culture: str,
        rate: WarmRate,
        progress_file: WarmProgressFile,
    ) -> None:
        self._lookups = lookups
        self._kinds = kinds
        self._culture = culture
        self._rate = rate
        self._file = progress_file
        self._in_flight: deque[tuple[int, Future[list[LookupAnswer]]]] = deque()
        self._failed_in_a_row = 0
        self._pool = ThreadPoolExecutor(CONNECTIONS, "warmer")

    def run(
        self, customers: Iterator[tuple[int, Customer]], length: int, *, quiet: bool = False
    ) -> None:
        """Fetch the lookups of all *customers* after the last completed line.

        Args:
            customers: numbers of lines and their customers.
            length: the number of customers.
            quiet: whether to hide the progress bar.

        Raises:
            click.ClickException: SessionM is down.
            click.Abort: after Ctrl-C.
        """
        try:
            with click.progressbar(
                length=length, label="Warming", show_pos=True, hidden=quiet
            ) as bar:
                for line in self._lines(customers):
                    bar.update(1)
                    if line > self._file.progress.line and not self._failed_in_a_row:
                        self._file.progress.line = line
                        self._file.save()
        except KeyboardInterrupt:
            click.echo("\nEnded. The same command continues from here.", err=True)
            raise click.Abort from None
        except _DownError:
            raise click.ClickException(
                "SessionM does not answer; the same command continues from here later"
            ) from None
        finally:
            self._file.save(at_once=True)
            self._pool.shutdown(cancel_futures=True)
        self._file.remove()

    def _lines(self, customers: Iterator[tuple[int, Customer]]) -> Iterator[int]:
        """Yield the line of each customer after its lookups."""
        done = self._file.progress.line
        for line, customer in customers:
            if line <= done:
                yield line
                continue
            self._in_flight.append((line, self._pool.submit(self._fetch, customer)))
            if len(self._in_flight) >= 2 * CONNECTIONS:
                yield self._finish_next()
        while self._in_flight:
            yield self._finish_next()
        self._file.progress.failed += self._failed_in_a_row

    def _finish_next(self) -> int:
        """Wait for the oldest customer in flight, and count it; return its line.

        Failed customers are counted when one after them does not fail: until then, a run that ends
        leaves them to the next run.
        """
        line, future = self._in_flight[0]
        failed = self._file.progress.count(future.result())
        self._in_flight.popleft()
        if failed:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILED_IN_A_ROW:
                raise _DownError
        else:
            self._file.progress.failed += self._failed_in_a_row
            self._failed_in_a_row = 0
        return line

    def _fetch(self, customer: Customer) -> list[LookupAnswer]:
        return [self._look_up(kind, customer) for kind in self._kinds]

    def _look_up(self, kind: str, customer: Customer) -> LookupAnswer:
        query = Query(customer, culture=self._culture)
        calls = _calls(kind, customer)
        for left in reversed(range(ATTEMPTS)):
            self._rate.wait(calls)
            began = time.monotonic()
            answer: LookupAnswer = getattr(self._lookups, kind)(query)
            if answer.how == "hit":
                self._rate.give_back(calls)
            else:
                self._rate.observe((time.monotonic() - began) / calls)
            if answer.status != "unavailable" or not left:
                break
            time.sleep(RETRY)
        return answer


def _report(progress: WarmProgress, form: Form) -> None:
    if form:
        counts = ("fetched", "fresh", "unknown", "failed")
        seconds = round(progress.seconds, 1)
        dump(form, {**{name: getattr(progress, name) for name in counts}, "seconds": seconds})
    else:
        click.echo(
            f"{progress.fetched} fetched, {progress.fresh} were fresh, {progress.unknown} are "
            f"unknown to SessionM, {progress.failed} failed; {_duration(progress.seconds)}."
        )
    if progress.failed:
        raise click.ClickException(
            f"{counted(progress.failed, 'customer')} could not be fetched: run the command again"
        )
