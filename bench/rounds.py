"""Rounds: everybody once, then everybody once more, so that a noisy machine is unfair to all."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from bench.processes import Process, Steal
from bench.report import Table, each, number, spread, verdict
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


@dataclass(frozen=True)
class Comparison:
    """The runs of each contender by name, a run a round; the first contender is the bridge."""

    contenders: Sequence[Contender]
    runs: Mapping[str, Sequence[Run]]

    def p99(self, name: str) -> float:
        """Its median in milliseconds; infinite for who is missing."""
        runs = self.runs.get(name, ())
        return median(run.load.p99 for run in runs) if runs else float("inf")

    def table(self) -> Table:
        table = Table(_COLUMNS)
        ours = next(iter(self.runs.values()))
        for one in self.contenders:
            if runs := self.runs.get(one.name):
                table.add(one.name, *_cells(one, runs, None if runs is ours else ours))
        return table

    def remarks(self) -> list[str]:
        """Who is left out, who failed, how much the machine was disturbed."""
        missing = [one for one in self.contenders if one.missing]
        found = [f"Left out: {one.name} ({one.missing})." for one in missing]
        for name, runs in self.runs.items():
            refused = sum(run.load.refused for run in runs)
            broken = sum(run.load.broken for run in runs)
            if refused or broken:
                found.append(f"{name}: {refused:,} refused and {broken:,} broken requests.")
        most = max(run.steal for runs in self.runs.values() for run in runs)
        found.append(f"In single runs the hypervisor took up to {most:.0f} % of the processors.")
        return found


def compare(
    plan: Plan, contenders: Sequence[Contender], run: Callable[[Contender, Process, int], Run]
) -> Comparison:
    """Let each contender have its turn in each round; the first one is the bridge.

    Args:
        plan: how many rounds.
        contenders: who takes part.
        run: one contender's turn, given its service and the round.
    """
    present = [one for one in contenders if not one.missing]
    runs: dict[str, list[Run]] = {one.name: [] for one in present}
    for turn in range(plan.rounds):
        for one in present:
            with one.start(plan.room(one.name, turn)) as process:
                runs[one.name].append(run(one, process, turn))
            told = runs[one.name][-1].load
            click.echo(f"  {one.name}: {told.rate:,.0f} a second, p99 {told.p99:.1f} ms", err=True)
    return Comparison(contenders, runs)


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
    "CPU, it / bridge",
    "MB",
)


def _cells(one: Contender, runs: Sequence[Run], ours: Sequence[Run] | None) -> list[str]:
    """Its row after the name; *ours* are the bridge's runs, ``None`` for the bridge itself."""
    rates = [run.load.rate for run in runs]
    faster, cheaper = _ratios(runs, ours or runs)
    return [
        number(median(rates)),
        spread(rates),
        f"**{median(faster):.2f}**" if ours else "",
        each(faster) if ours else "",
        "" if one.goal is None else _goal(one.goal, median(faster)),
        f"{median(run.load.p50 for run in runs):.1f}",
        f"{median(run.load.p99 for run in runs):.1f}",
        number(median(run.cpu for run in runs)),
        f"{median(cheaper):.2f}" if ours else "",
        number(median(run.memory for run in runs)),
    ]


def _ratios(runs: Sequence[Run], ours: Sequence[Run]) -> tuple[list[float], list[float]]:
    """Of each round: how much faster the bridge is, and how much less processor it takes."""
    pairs = list(zip(ours, runs, strict=True))
    faster = [our.load.rate / its.load.rate for our, its in pairs]
    return faster, [its.cpu / our.cpu for our, its in pairs]


def _goal(goal: float, reached: float) -> str:
    return f"{goal:g}: {verdict(met=reached >= goal)}"
