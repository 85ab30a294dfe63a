"""Rounds: everybody once, then everybody once more, so that a noisy machine is unfair to all."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from bench.processes import Process, Steal
from bench.report import Table, each, number, spread
from bench.wrk import Load


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, seconds of a run, and requests before it.

    *folder* is empty and on a real disk.
    """

    rounds: int
    seconds: int
    warm_requests: int
    quick: bool
    folder: Path

    def room(self, *names: object) -> Path:
        """A fresh folder."""
        room = self.folder / re.sub(r"\W+", "-", "-".join(map(str, names)))
        room.mkdir(parents=True)
        return room


@dataclass(frozen=True)
class Contender:
    """Somebody who takes part.

    Attributes:
        name: as the table shows it.
        start: the service, given a fresh folder.
        missing: why it cannot run here, if so.
        goal: how many times its rate the bridge's ought to be at least.
        asks_for_key: whether it refuses a wrong key.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Process]]
    missing: str = ""
    goal: float | None = None
    asks_for_key: bool = True


@dataclass(frozen=True)
class Run:
    """One run: the load, processor time (µs an answer), memory (MB), what was stolen (%)."""

    load: Load
    cpu: float
    memory: float
    steal: float


def measure(process: Process, load: Callable[[], Load]) -> Run:
    """Put *load* on *process* and see what it costs."""
    steal, before = Steal(), process.cpu_seconds()
    done = load()
    cpu = (process.cpu_seconds() - before) * 1e6 / max(1, done.requests)
    return Run(done, cpu, process.memory(), steal.percent())


def compare(
    plan: Plan, contenders: Sequence[Contender], run: Callable[[Contender, Process, int], Run]
) -> tuple[Table, list[str]]:
    """Let each contender have its turn in each round; the first one is the bridge.

    Args:
        plan: how many rounds.
        contenders: who takes part.
        run: one contender's turn, given its service and the round.

    Returns:
        The table, and remarks about it.
    """
    present = [one for one in contenders if not one.missing]
    runs: dict[str, list[Run]] = {one.name: [] for one in present}
    for turn in range(plan.rounds):
        for one in present:
            with one.start(plan.room(one.name, turn)) as process:
                runs[one.name].append(run(one, process, turn))
            told = runs[one.name][-1].load
            click.echo(f"  {one.name}: {told.rate:,.0f} a second, p99 {told.p99:.1f} ms", err=True)
    return _table(present, runs), _remarks(contenders, runs)


_COLUMNS = (
    "",
    "a second",
    "least to most",
    "bridge / it",
    "each round",
    "goal",
    "p50 ms",
    "p99 ms",
    "CPU s a million",
    "MB",
)


def _table(present: Sequence[Contender], runs: dict[str, list[Run]]) -> Table:
    table = Table(_COLUMNS)
    rates = {name: [run.load.rate for run in done] for name, done in runs.items()}
    ours = rates[present[0].name]
    for one in present:
        ratios = [our / its for our, its in zip(ours, rates[one.name], strict=True)]
        first = one is present[0]
        table.add(
            one.name,
            number(median(rates[one.name])),
            spread(rates[one.name]),
            "" if first else f"**{median(ratios):.2f}**",
            "" if first else each(ratios),
            "" if one.goal is None else _goal(one.goal, median(ratios)),
            *(f"{median(column):.1f}" for column in _latencies(runs[one.name])),
            number(median(run.cpu for run in runs[one.name])),
            number(median(run.memory for run in runs[one.name])),
        )
    return table


def _latencies(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    return [run.load.p50 for run in runs], [run.load.p99 for run in runs]


def _goal(goal: float, reached: float) -> str:
    return f"{goal:g}: {'met' if reached >= goal else 'missed'}"


def _remarks(contenders: Sequence[Contender], runs: dict[str, list[Run]]) -> list[str]:
    found = [f"Left out: {one.name} ({one.missing})." for one in contenders if one.missing]
    for name, done in runs.items():
        refused = sum(run.load.refused for run in done)
        broken = sum(run.load.broken for run in done)
        if refused or broken:
            found.append(f"{name}: {refused:,} refused and {broken:,} broken requests.")
    most = max(run.steal for done in runs.values() for run in done)
    found.append(f"In single runs the hypervisor took up to {most:.0f} % of the processors.")
    return found
