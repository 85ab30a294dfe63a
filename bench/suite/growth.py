"""Growth.

The same with little and with much stored: so many events, delivered, and so many customers'
cached tags. Statements of the delivery loop are timed by themselves, once with all of the events
still waiting and once with all but a thousand delivered. Lookups are of 1,000 customers asked for
before, and of all in turn, where most come from the shared table rather than from memory. Where
the last column says 1, it is flat.
"""

import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click

from bench.fill import add_events, add_lookups, mark_delivered, opened
from bench.processes import Process
from bench.report import Table, number
from bench.rounds import Plan
from bench.services import KEYS, bridge, sandbox
from bench.suite.lookups import warm
from bench.wrk import lookups, webhooks
from bridge.outbox.schema import State
from bridge.outbox.store import Finished, Store
from bridge.parts import Parts

SIZES = (1_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)
# So many writes wait beside what is delivered.
WAITING = 1000
DUE = 256
CALLS = 64
REPEATS = 50

Figures = dict[str, float]


def run(plan: Plan) -> list[Table | str]:
    sizes = QUICK_SIZES if plan.quick else SIZES
    folders = {size: plan.room(size) for size in sizes}
    found: dict[int, list[Figures]] = {size: [] for size in sizes}
    with sandbox(plan.room("sandbox")) as sessionm:
        stored = {size: _fill(folders[size], size, sessionm.url) for size in sizes}
        for turn in range(plan.rounds):
            for size in sizes:
                click.echo(f"  {size:,}, round {turn + 1}", err=True)
                found[size].append(stored[size] | _serve(plan, folders[size], size, sessionm.url))
    return [_table(sizes, found)]


def _table(sizes: tuple[int, ...], found: dict[int, list[Figures]]) -> Table:
    table = Table(("", *(f"{size:,}" for size in sizes), "last / first"))
    for name in found[sizes[0]][0]:
        values = {size: [figures[name] for figures in found[size]] for size in sizes}
        pairs = zip(values[sizes[-1]], values[sizes[0]], strict=True)
        ratio = median(last / first for last, first in pairs)
        cells = [number(median(values[size])) for size in sizes]
        table.add(name, *cells, f"**{ratio:.2f}**")
    return table


def _fill(folder: Path, size: int, sessionm: str) -> Figures:
    """Fill the store in *folder*, and time the delivery loop's statements meanwhile."""
    click.echo(f"  filling {size:,}", err=True)
    with opened(folder, sessionm) as parts:
        add_events(parts, 0, size)
        figures = _statements(parts, "all waiting")
        mark_delivered(parts)
        add_events(parts, size, size + WAITING)
        figures |= _statements(parts, "all but 1,000 delivered")
        mark_delivered(parts)
        add_lookups(parts, 0, size)
    return figures | {
        "database, MB": _megabytes(folder / "bridge.db"),
        "cached lookups on disk, MB": _megabytes(folder / "bridge.db.cache"),
    }


def _statements(parts: Parts, when: str) -> Figures:
    """Milliseconds of what each step of the delivery loop asks of the store."""
    store, now = parts.store, time.time()
    customers = store.due(now, DUE, [])
    backlog = _milliseconds(store.backlog)
    due = _milliseconds(lambda: store.due(now, DUE, customers[:CALLS]))
    waiting = _milliseconds(lambda: store.waiting(random.choice(customers)))  # noqa: S311
    return {
        f"due customers, {when}, ms": due,
        f"a customer's writes, {when}, ms": waiting,
        f"recording {CALLS} calls, {when}, ms": _record(store, customers),
        f"counting the backlog, {when}, ms": backlog,
    }


def _record(store: Store, customers: list[str]) -> float:
    took = []
    for start in range(0, len(customers) - CALLS, CALLS):
        chosen = [tuple(store.waiting(name)) for name in customers[start : start + CALLS]]
        now = time.time()
        results = [Finished(queue, State.DELIVERED, now, "delivered", 200, 100) for queue in chosen]
        began = time.perf_counter()
        store.record(results)
        took.append(time.perf_counter() - began)
    return median(took) * 1000


def _milliseconds(call: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return median(took) * 1000


def _serve(plan: Plan, folder: Path, size: int, sessionm: str) -> Figures:
    """What a bridge on that store does."""
    # What was filled in at the beginning shall still be fresh at the end.
    with bridge(folder, sessionm, BRIDGE_TAGS_MAX_AGE=86400) as process:
        started_in = process.started_in
        everyone = lookups(
            process.url,
            KEYS["content"],
            plan.seconds,
            customers=size,
            first=random.randrange(size),  # noqa: S311
        )
        warm(process, 4000)
        hot = lookups(process.url, KEYS["content"], plan.seconds)
        intake = _intake(plan, process)
        memory = process.memory()
    return {
        "lookups a second, 1,000 customers": hot.rate,
        "lookups p99, 1,000 customers, ms": hot.p99,
        "lookups a second, all customers": everyone.rate,
        "lookups p99, all customers, ms": everyone.p99,
        **intake,
        "start-up, s": started_in,
        "memory, MB": memory,
    }


def _intake(plan: Plan, process: Process) -> Figures:
    load = webhooks(process.url, KEYS["webhook"], plan.seconds, run=uuid.uuid4().hex[:8])
    return {"webhooks a second": load.rate, "webhooks p99, ms": load.p99}


def _megabytes(path: Path) -> float:
    """The size of a database file with what is still in its log."""
    log = path.with_name(path.name + "-wal")
    return sum(file.stat().st_size for file in (path, log) if file.exists()) / 1e6
