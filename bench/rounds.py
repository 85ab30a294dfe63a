"""Comparisons in rounds: each round runs every service once, so that noise affects all alike."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from bench.processes import Process
from bench.report import Table, goal, number, spread
from bench.wrk import Load

COLUMNS = (
    "",
    "per second",
    "min to max",
    "bridge / peer",
    "p50 ms",
    "p99 ms",
    "CPU s per million",
)


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: runs of each service.
        seconds: duration of a run.
        warm_requests: requests before a run.
        quick: only check that everything works, with small databases.
        folder: an empty folder on a real disk.
    """

    rounds: int
    seconds: int
    warm_requests: int
    quick: bool
    folder: Path

    def new_folder(self, *names: object) -> Path:
        """Create a folder with these *names* joined."""
        folder = self.folder / re.sub(r"\W+", "-", "-".join(map(str, names)))
        folder.mkdir(parents=True)
        return folder


@dataclass(frozen=True)
class Service:
    """The bridge, or a peer: a service that the bridge is compared with.

    Attributes:
        name: as shown in the table.
        start: starts the service in an empty folder.
        missing: why the service cannot run here; "" if it can.
        goal: smallest accepted ratio of the bridge's rate to the rate of this service.
        checks_key: whether the service refuses a wrong key.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Process]]
    missing: str = ""
    goal: float | None = None
    checks_key: bool = True


@dataclass(frozen=True)
class Run:
    """One run of a service: load and processor time, in µs per answer."""

    load: Load
    cpu: float


def measure(process: Process, load: Callable[[], Load]) -> Run:
    """Run *load* against *process*."""
    before = process.cpu_seconds()
    done = load()
    return Run(done, (process.cpu_seconds() - before) * 1e6 / max(1, done.requests))


def compare(
    plan: Plan, services: Sequence[Service], run: Callable[[Service, Process], Run]
) -> list[Table | str]:
    """Compare the first of *services*, the bridge, with the others.

    Args:
        plan: the number of rounds.
        services: the bridge and its peers; those that are missing are skipped.
        run: measures one started service.

    Returns:
        The table, and a remark for each missing service and each with failed requests.
    """
    runs: dict[str, list[Run]] = {one.name: [] for one in services if not one.missing}
    for round_number in range(plan.rounds):
        for one in services:
            if one.missing:
                continue
            with one.start(plan.new_folder(one.name, round_number)) as process:
                done = run(one, process)
            runs[one.name].append(done)
            click.echo(
                f"  {one.name}: {done.load.rate:,.0f} per second, p99 {done.load.p99:.1f} ms",
                err=True,
            )
    table = Table(COLUMNS)
    bridge = runs[services[0].name]
    for one in services:
        if one.name in runs:
            table.add(one.name, *_cells(one, runs[one.name], bridge))
    return [table, *_remarks(services, runs)]


def _cells(one: Service, runs: Sequence[Run], bridge: Sequence[Run]) -> list[str]:
    rates = [run.load.rate for run in runs]
    ratio = median(ours.load.rate / run.load.rate for ours, run in zip(bridge, runs, strict=True))
    return [
        number(median(rates)),
        spread(rates),
        "" if runs is bridge else goal(ratio, one.goal),
        f"{median(run.load.p50 for run in runs):.1f}",
        f"{median(run.load.p99 for run in runs):.1f}",
        number(median(run.cpu for run in runs)),
    ]


def _remarks(services: Sequence[Service], runs: dict[str, list[Run]]) -> list[str]:
    remarks = [f"Not measured: {one.name} ({one.missing})." for one in services if one.missing]
    for name, done in runs.items():
        refused = sum(run.load.refused for run in done)
        broken = sum(run.load.broken for run in done)
        if refused or broken:
            remarks.append(f"{name}: {refused:,} refused and {broken:,} broken requests.")
    return remarks
