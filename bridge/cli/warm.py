"""`bridge warm`: a segment's lookups fetched ahead of a send.

It works on the shared cache, so that the running bridge serves what was fetched. Live lookups
come first: this one uses few connections, keeps within a rate, and halves the rate when SessionM
gets slower under it.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bridge.cli.batch import file_mistakes, id_options, opened_csv
from bridge.cli.common import connected, one_line
from bridge.customer import Customer, CustomerKind
from bridge.fields import counted
from bridge.intake.segment import Refused, Wanted, lines_of, open_segment
from bridge.locks import WARMER
from bridge.lookups.customer import Answer, Lookups
from bridge.lookups.query import Query
from bridge.parts import Parts

CONNECTIONS = 4
DEADLINE = 10.0
TRIES = 3
# So many customers in a row that fail: it is SessionM, not they.
FAILED_IN_A_ROW = 20
RETRY = 2.0
LEAST_RATE = 1.0
# SessionM is under strain when answers take so many times what they take at their best.
STRAIN, UNSTRAINED_MS = 2.0, 50.0
SAVE_EVERY = 5.0


class _AwayError(Exception):
    """SessionM does not answer; what was done so far is noted."""


class Pace:
    """When the next call may be made: at most *limit* a second, and fewer under strain."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.rate = limit
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._looked_at = time.monotonic()
        self._seconds: list[float] = []
        self._best = float("inf")

    def wait(self, calls: int) -> None:
        """Sleep until it is the turn of so many *calls*."""
        with self._lock:
            at = max(self._next_at, time.monotonic())
            self._next_at = at + calls / self.rate
        time.sleep(max(0.0, at - time.monotonic()))

    def give_back(self, calls: int) -> None:
        """So many calls were not needed."""
        with self._lock:
            self._next_at -= calls / self.rate

    def saw(self, seconds: float) -> None:
        """An answer took so long: adapt once a second."""
        with self._lock:
            self._seconds.append(seconds)
            now = time.monotonic()
            if now - self._looked_at < 1.0:
                return
            mean = sum(self._seconds) / len(self._seconds)
            self._best = min(self._best, mean)
            strained = mean > STRAIN * self._best and mean * 1000 > UNSTRAINED_MS
            rate = self.rate / 2 if strained else self.rate * 1.1
            self.rate = min(self._limit, max(min(LEAST_RATE, self._limit), rate))
            self._seconds.clear()
            self._looked_at = now


@dataclass
class _State:
    """How far a run has come; kept beside the file, so that the next one goes on there."""

    line: int = 1
    fetched: int = 0
    fresh: int = 0
    unknown: int = 0
    failed: int = 0
    began_at: float = field(default_factory=time.time)

    def saw(self, answers: list[Answer]) -> bool:
        """Count a customer; whether theirs failed."""
        statuses = {answer.status for answer in answers}
        if "unavailable" in statuses:
            self.failed += 1
        elif "not_found" in statuses:
            self.unknown += 1
        elif any(answer.how == "miss" for answer in answers):
            self.fetched += 1
        else:
            self.fresh += 1
        return "unavailable" in statuses


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tags", is_flag=True, help="Tags; both if neither is given.")
@click.option("--offers", is_flag=True, help="Offers; both if neither is given.")
@click.option("--culture", default=Query.culture, show_default=True, help="Of the offers.")
@click.option(
    "--rps",
    type=click.FloatRange(0.1, 100_000),
    help="Calls a second; BRIDGE_SESSIONM_RPS at most.",
)
@id_options
@click.option("--restart", is_flag=True, help="From the beginning, not where the last run ended.")
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
) -> None:
    """Fetch the lookups of the customers in FILE ahead of a send.

    FILE is a Braze segment export, or any CSV with user_id or external_id. What is fresh is not
    fetched again. Ended by Ctrl-C, the same command goes on where it was.
    """
    wanted = Wanted(id_column=id_column, id_kind=id_kind, customers_only=True)
    with one_line(), file_mistakes(file), connected() as parts:
        lookups = _lookups(tags=tags, offers=offers, offers_on=parts.settings.offers_on)
        limit = min(rps or parts.settings.bridge_sessionm_rps, parts.settings.bridge_sessionm_rps)
        customers = calls = 0
        for _line, customer in _customers(file, wanted, parts):
            customers += 1
            calls += sum(_calls(kind, customer) for kind in lookups)
        if not customers:
            raise click.ClickException(f"{click.format_filename(file)} names no customer")
        options = {"kinds": lookups, "culture": culture, "id": [id_column, id_kind]}
        note = _Note(file, options, restart=restart)
        click.echo(
            f"{counted(customers, 'customer')}, {' and '.join(lookups)}: at {limit:g} calls "
            f"a second {_length(calls / limit)} if nothing is cached yet."
        )
        _warn(parts, lookups, calls / limit, note.state)
        with _alone(parts):
            # What is fetched before changes are heard of would have to be fetched again.
            parts.cache.start()
            patient = parts.lookups.patient(DEADLINE)
            run = _Run(patient, lookups, culture, Pace(limit), note)
            run.run(_customers(file, wanted, parts), customers)
    _tell(note.state)


def _lookups(*, tags: bool, offers: bool, offers_on: bool) -> list[str]:
    if offers and not offers_on:
        raise click.ClickException("offers are switched off: SESSIONM_CONNECT_URL is not set")
    wanted = {"tags": tags or not offers, "offers": offers or (offers_on and not tags)}
    return [lookup for lookup, is_wanted in wanted.items() if is_wanted]


def _customers(file: Path, wanted: Wanted, parts: Parts) -> Iterator[tuple[int, Customer]]:
    with opened_csv(file) as (read, _size):
        for row in open_segment(lines_of(read), wanted, parts.rules):
            if not isinstance(row, Refused):
                yield row.line, row.customer


@contextmanager
def _alone(parts: Parts) -> Iterator[None]:
    """One at a time: two would be twice as fast as SessionM allows."""
    with parts.store.database.alone(WARMER) as mine:
        if not mine:
            raise click.ClickException(
                "another `bridge warm` runs on this database: let it end first"
            )
        yield


def _calls(kind: str, customer: Customer) -> int:
    """What a lookup costs: for an external id the profile tells whose offers are meant."""
    return 2 if kind == "offers" and customer.kind == "external_id" else 1


def _warn(parts: Parts, lookups: list[str], seconds: float, state: _State) -> None:
    """Tell where a run goes on, and what will be out of date before it ends."""
    if state.line > 1:
        click.echo(f"Going on behind line {state.line}, where the last run ended.")
    ages = {
        "tags": parts.settings.bridge_tags_max_age,
        "offers": parts.settings.bridge_offers_max_age,
    }
    for lookup in lookups:
        if seconds > ages[lookup]:
            click.echo(
                f"{lookup.title()} stay fresh for {_length(ages[lookup])} only: the first will "
                "be out of date before the last is fetched. For a send, raise "
                f"BRIDGE_{lookup.upper()}_MAX_AGE to {round(seconds * 1.2)} or more.",
                err=True,
            )


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class _Note:
    """The state on disk: ``FILE.warm``."""

    def __init__(self, file: Path, options: dict[str, Any], *, restart: bool) -> None:
        self._path = file.with_name(file.name + ".warm")
        known = file.stat()
        self._about = {"size": known.st_size, "changed": known.st_mtime_ns, **options}
        self.state = _State() if restart else self._read()
        self._saved_at = time.monotonic()

    def _read(self) -> _State:
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            # Of another file, or for other lookups, it says nothing about this run.
            same = kept["about"] == json.loads(json.dumps(self._about))
            return _State(**kept["state"]) if same else _State()
        except FileNotFoundError:
            return _State()
        except (ValueError, KeyError, TypeError):
            named = click.format_filename(self._path)
            raise click.ClickException(
                f"{named} is damaged: delete it, or begin again with --restart"
            ) from None

    def save(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._saved_at > SAVE_EVERY:
            self._saved_at = time.monotonic()
            draft = self._path.with_name(self._path.name + ".new")
            draft.write_text(
                json.dumps({"about": self._about, "state": vars(self.state)}), encoding="utf-8"
            )
            draft.replace(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class _Run:
    """One run: some lookups under way at once, noted in the order of the file."""

    def __init__(
        self, lookups: Lookups, kinds: list[str], culture: str, pace: Pace, note: _Note
    ) -> None:
        self._lookups = lookups
        self._kinds = kinds
        self._culture = culture
        self._pace = pace
        self._note = note
        self._under_way: deque[tuple[int, Future[list[Answer]]]] = deque()
        self._failed_in_a_row = 0
        self._pool = ThreadPoolExecutor(CONNECTIONS, "warmer")

    def run(self, customers: Iterator[tuple[int, Customer]], length: int) -> None:
        """Fetch for all *customers* behind where the last run ended.

        Raises:
            ClickException: SessionM is away.
            Abort: Ctrl-C.
        """
        try:
            with click.progressbar(length=length, label="Warming", show_pos=True) as bar:
                for line in self._lines(customers):
                    bar.update(1)
                    if line > self._note.state.line:
                        self._note.state.line = line
                        self._note.save()
        except KeyboardInterrupt:
            click.echo("\nEnded. The same command goes on from here.", err=True)
            raise click.Abort from None
        except _AwayError:
            raise click.ClickException(
                "SessionM does not answer; the same command goes on from here later"
            ) from None
        finally:
            self._note.save(at_once=True)
            self._pool.shutdown(cancel_futures=True)
        self._note.remove()

    def _lines(self, customers: Iterator[tuple[int, Customer]]) -> Iterator[int]:
        """The line of each customer when its lookups are there."""
        done = self._note.state.line
        for line, customer in customers:
            if line <= done:
                yield line
                continue
            self._under_way.append((line, self._pool.submit(self._fetch, customer)))
            if len(self._under_way) >= 2 * CONNECTIONS:
                yield self._land()
        while self._under_way:
            yield self._land()

    def _land(self) -> int:
        line, future = self._under_way[0]
        failed = self._note.state.saw(future.result())
        self._under_way.popleft()
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self._failed_in_a_row >= FAILED_IN_A_ROW:
            raise _AwayError
        return line

    def _fetch(self, customer: Customer) -> list[Answer]:
        return [self._ask(kind, customer) for kind in self._kinds]

    def _ask(self, kind: str, customer: Customer) -> Answer:
        query = Query(customer, culture=self._culture)
        calls = _calls(kind, customer)
        for left in reversed(range(TRIES)):
            self._pace.wait(calls)
            began = time.monotonic()
            answer: Answer = getattr(self._lookups, kind)(query)
            if answer.how == "hit":
                self._pace.give_back(calls)
            else:
                self._pace.saw((time.monotonic() - began) / calls)
            if answer.status != "unavailable" or not left:
                break
            time.sleep(RETRY)
        return answer


def _tell(state: _State) -> None:
    click.echo(
        f"{state.fetched} fetched, {state.fresh} were fresh, {state.unknown} are unknown to "
        f"SessionM, {state.failed} failed; {_length(time.time() - state.began_at)}."
    )
    if state.failed:
        raise click.ClickException(
            f"{counted(state.failed, 'customer')} could not be fetched: run it again"
        )
