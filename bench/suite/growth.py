"""Growth.

The same work with few and with many events and customers stored. The deliverer's steps (in ms) are
timed with all events waiting, the rest with all events delivered. A warmed segment is a send after
`bridge warm`: each customer is looked up once, and found in the shared table.
"""

import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click

from bench.fill import add_events, add_lookups, mark_delivered, opened
from bench.report import Table, goal, number
from bench.rounds import Plan
from bench.services import KEYS, bridge, sandbox
from bench.suite.lookups import CUSTOMERS, warm
from bench.wrk import lookups, webhooks
from bridge.outbox.model import CallResult, State
from bridge.outbox.store import Store
from bridge.parts import Parts

SIZES = (1_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)
DUE = 256
CALLS = 64
REPEATS = 50
MEMORY = f"lookups a second, {CUSTOMERS:,} customers, from memory"
SEGMENT = "lookups a second, warmed segment, from the table"
SEGMENT_GOAL = 0.06
SEGMENT_AIM = 0.15

Figures = dict[str, float]


def run(plan: Plan) -> list[Table | str]:
    sizes = QUICK_SIZES if plan.quick else SIZES
    folders = {size: plan.new_folder(size) for size in sizes}
    found: dict[int, list[Figures]] = {size: [] for size in sizes}
    with sandbox(plan.new_folder("sandbox")) as sessionm:
        stored = {size: _fill(folders[size], size, sessionm.url) for size in sizes}
        for round_number in range(plan.rounds):
            for size in sizes:
                click.echo(f"  {size:,}, round {round_number + 1}", err=True)
                found[size].append(stored[size] | _serve(plan, folders[size], size, sessionm.url))
    return [_table(sizes[0], found[sizes[0]], sizes[-1], found[sizes[-1]])]


def _table(few: int, with_few: list[Figures], many: int, with_many: list[Figures]) -> Table:
    table = Table(("events and customers", f"{few:,}", f"{many:,}", "many / few"))
    for name in with_few[0]:
        pairs = [(first[name], last[name]) for first, last in zip(with_few, with_many, strict=True)]
        table.add(
            name,
            number(median(first for first, _ in pairs)),
            number(median(last for _, last in pairs)),
            goal(median(last / first for first, last in pairs)),
        )
    segment = median(figures[SEGMENT] for figures in with_many)
    table.add(SEGMENT, "", number(segment), "")
    ratio = median(figures[SEGMENT] / figures[MEMORY] for figures in with_many)
    shown = f"{goal(ratio, SEGMENT_GOAL)}, aim {SEGMENT_AIM:g}"
    table.add("warmed segment / memory", "", shown, "")
    return table


def _fill(folder: Path, size: int, sessionm: str) -> Figures:
    """Fill the database in *folder*, and time the deliverer's steps while all events wait."""
    click.echo(f"  filling {size:,}", err=True)
    with opened(folder, sessionm) as parts:
        add_events(parts, 0, size)
        figures = _steps(parts)
        mark_delivered(parts)
        add_lookups(parts, 0, size)
    return figures | {"database, MB": _megabytes(folder / "bridge.db")}


def _steps(parts: Parts) -> Figures:
    store, now = parts.store, time.time()
    return {
        "count the backlog, ms": _milliseconds(store.backlog),
        "find due customers, ms": _milliseconds(lambda: store.due_queues(now, DUE, [])),
        f"record {CALLS} deliveries, ms": _record(store, now),
    }


def _record(store: Store, now: float) -> float:
    queues = list(store.due_queues(now, DUE, []).values())
    took = []
    for start in range(0, len(queues), CALLS):
        results = [
            CallResult(tuple(queue), State.DELIVERED, now, "delivered", 200, 100)
            for queue in queues[start : start + CALLS]
        ]
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
    """Start a bridge on the filled database, and measure it."""
    segment: Figures = {}
    # The lookups stay fresh for the whole bench.
    with bridge(folder, sessionm, BRIDGE_TAGS_MAX_AGE=86400) as process:
        key = KEYS["content"]
        if size > CUSTOMERS:
            # Nothing is in memory yet, and a run is too short to look up a customer twice.
            first = random.randrange(size)  # noqa: S311
            warmed = lookups(process.url, key, plan.seconds, customers=size, first=first)
            segment = {SEGMENT: warmed.rate}
        warm(process, plan.warm_requests)
        memory = lookups(process.url, key, plan.seconds, customers=CUSTOMERS)
        run_name = uuid.uuid4().hex[:8]
        accepted = webhooks(process.url, KEYS["webhook"], plan.seconds, run=run_name)
        held = process.memory()
    return {
        "webhooks a second": accepted.rate,
        "memory, MB": held,
        MEMORY: memory.rate,
        **segment,
    }


def _megabytes(path: Path) -> float:
    """Return the size of a database file and its log."""
    log = path.with_name(path.name + "-wal")
    return sum(file.stat().st_size for file in (path, log) if file.exists()) / 1e6
