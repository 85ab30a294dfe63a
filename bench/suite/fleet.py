"""Fleet.

Two bridges on one PostgreSQL compared with one, each with one worker and 30 % of a core of its own.
Only one bridge delivers, so two can do more than twice the work of one.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click

from bench import postgres
from bench.processes import Process, Quota, cpu_of
from bench.report import Table, goal, number, spread
from bench.rounds import Plan
from bench.services import KEYS, bridge, sandbox
from bench.suite.lookups import warm
from bench.wrk import Load, lookups, webhooks

SHARE = 0.3
GOAL = 1.7
COLUMNS = (
    "",
    "per second",
    "min to max",
    "two / one",
    "CPU s per million: bridge",
    "PostgreSQL",
)


@dataclass(frozen=True)
class _Figures:
    """Requests a second, and processor time per request in µs."""

    rate: float
    bridge: float
    database: float


def run(plan: Plan) -> list[Table | str]:
    if missing := postgres.missing() or Quota.missing():
        return [f"Not measured: {missing}."]
    found: dict[tuple[str, int], list[_Figures]] = {}
    with sandbox(plan.new_folder("sandbox")) as sessionm:
        for round_number in range(plan.rounds):
            for bridges in (1, 2):
                folders = [plan.new_folder(round_number, bridges, at) for at in range(bridges)]
                with postgres.fresh_database() as url:
                    measured = _measure(plan, folders, sessionm.url, url)
                for name, figures in measured.items():
                    found.setdefault((name, bridges), []).append(figures)
                    click.echo(f"  {bridges}: {figures.rate:,.0f} {name} a second", err=True)
    return [_table(found)]


def _measure(plan: Plan, folders: list[Path], sessionm: str, url: str) -> dict[str, _Figures]:
    """Measure one bridge for each of *folders*, all on the database at *url*."""
    settings = {"BRIDGE_DATABASE_URL": url, "BRIDGE_SESSIONM_RPS": 1, "BRIDGE_TAGS_MAX_AGE": 3600}
    with ExitStack() as stack:
        # A group can be removed only after its processes have ended.
        quotas = [stack.enter_context(Quota(SHARE)) for _ in folders]
        bridges = [
            stack.enter_context(bridge(folder, sessionm, workers=1, **settings))
            for folder in folders
        ]
        for process, quota in zip(bridges, quotas, strict=True):
            warm(process, plan.warm_requests // 4)
            process.limit(quota)
        figures = {}
        for name, load in {"lookups": _look_up, "webhooks": _send}.items():
            _under_load(bridges, partial(load, seconds=1))
            figures[name] = _under_load(bridges, partial(load, seconds=plan.seconds))
        return figures


def _look_up(process: Process, *, seconds: int) -> Load:
    return lookups(process.url, KEYS["content"], seconds)


def _send(process: Process, *, seconds: int) -> Load:
    # Other customers than at the other bridge.
    first = process.port * 10**6
    return webhooks(process.url, KEYS["webhook"], seconds, run=uuid.uuid4().hex[:8], first=first)


def _under_load(bridges: list[Process], load: Callable[[Process], Load]) -> _Figures:
    """Run *load* against all bridges at once."""
    cpu, database = _cpu(bridges), cpu_of("postgres")
    with ThreadPoolExecutor(len(bridges)) as threads:
        loads = list(threads.map(load, bridges))
    requests = max(1, sum(one.requests for one in loads))
    return _Figures(
        sum(one.rate for one in loads),
        (_cpu(bridges) - cpu) * 1e6 / requests,
        (cpu_of("postgres") - database) * 1e6 / requests,
    )


def _cpu(bridges: list[Process]) -> float:
    return sum(process.cpu_seconds() for process in bridges)


def _table(found: dict[tuple[str, int], list[_Figures]]) -> Table:
    table = Table(COLUMNS)
    for (name, bridges), figures in sorted(found.items()):
        rates = [one.rate for one in figures]
        pairs = zip(figures, found[name, 1], strict=True)
        table.add(
            f"{name}, {'one bridge' if bridges == 1 else 'two bridges'}",
            number(median(rates)),
            spread(rates),
            goal(median(two.rate / one.rate for two, one in pairs), GOAL) if bridges > 1 else "",
            number(median(one.bridge for one in figures)),
            number(median(one.database for one in figures)),
        )
    return table
