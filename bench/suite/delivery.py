"""Delivery.

A backlog goes to a SessionM that takes 100 ms for each tag write, 64 writes under way at once and
no rate set but what that allows: 640 a second. One process of `bridge serve` delivers, as always,
beside two workers. Then what that costs cached lookups: with delivery paused and with delivery
running, in turn, at 1,000 lookups a second, for which all of 64 connections ask together sixteen
times a second, and as fast as 64 connections can. The 99th percentile of a run is that of its worst
moments, so each round has several pairs of runs and shows their median. SessionM runs elsewhere in
truth: here its stand-in has a lower priority than the bridge's workers, as the process that
delivers has always.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

import click

from bench.fill import add_events, opened
from bench.processes import Process
from bench.report import Table, each, number, spread, verdict
from bench.rounds import Plan
from bench.services import (
    KEYS,
    bridge,
    misbehave,
    pause_delivery,
    resume_delivery,
    sandbox,
    written,
)
from bench.suite.lookups import warm
from bench.wrk import CONNECTIONS, Load, lookups

T = TypeVar("T")

LATENCY_MS = 100
CONCURRENCY = 64
IDEAL = CONCURRENCY * 1000 // LATENCY_MS
GOAL = 0.8
# By so much may the 99th percentile of lookups rise.
P99_GOAL = 1.5
# Milliseconds that each connection rests, for about 1,000 lookups a second.
PACES = {"1,000 a second": CONNECTIONS, "as fast as it goes": 0}
# Of runs without and with delivery, at each pace, in a round.
PAIRS = 5


@dataclass
class _Figures:
    """Of each round: writes a second alone. Of each pair of runs: writes and lookups at each pace.

    *cpu* is milliseconds of processor time of the bridge for each write of those alone.
    """

    alone: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    writes: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PACES})
    paused: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in PACES})
    running: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in PACES})


def run(plan: Plan) -> list[Table | str]:
    figures = _Figures()
    for turn in range(plan.rounds):
        folder = plan.room("bridge", turn)
        with sandbox(plan.room("sandbox", turn)) as sessionm:
            misbehave(sessionm, latency_ms=LATENCY_MS)
            with opened(folder, sessionm.url) as parts:
                # All that can go out while this round lasts, customers who are not looked up.
                seconds = (len(PACES) * PAIRS + 1) * (plan.seconds + 2)
                add_events(parts, 1_000_000, 1_000_000 + IDEAL * seconds)
            _round(plan, folder, sessionm, figures)
        click.echo(f"  {figures.alone[-1]:,.0f} writes a second", err=True)
    cpu = f"{median(figures.cpu):.2f} ms of processor time for each write."
    return [_writes(figures), f"Alone: {cpu}", _lookups(figures)]


def _round(plan: Plan, folder: Path, sessionm: Process, figures: _Figures) -> None:
    pause_delivery(folder, sessionm.url)
    with bridge(
        folder,
        sessionm.url,
        BRIDGE_SESSIONM_RPS=10 * IDEAL,
        BRIDGE_DELIVERY_CONCURRENCY=CONCURRENCY,
        # What is warm stays warm while a round lasts.
        BRIDGE_TAGS_MAX_AGE=3600,
    ) as process:
        warm(process, plan.warm_requests)
        for name, pace in PACES.items():

            def look(pace: int = pace) -> Load:
                return lookups(process.url, KEYS["content"], plan.seconds, pace=pace)

            for _ in range(PAIRS):
                figures.paused[name].append(look())
                _resume(folder, sessionm)
                rate, load = _during(sessionm, look)
                figures.writes[name].append(rate)
                figures.running[name].append(load)
                _pause(folder, sessionm)
        _resume(folder, sessionm)
        before = process.cpu_seconds()
        rate, _ = _during(sessionm, lambda: time.sleep(plan.seconds))
        figures.alone.append(rate)
        used = process.cpu_seconds() - before
        figures.cpu.append(used * 1000 / max(1.0, rate * plan.seconds))


def _during(sessionm: Process, work: Callable[[], T]) -> tuple[float, T]:
    """Writes a second while *work* is done, and its result."""
    began, before = time.monotonic(), written(sessionm)
    done = work()
    return (written(sessionm) - before) / (time.monotonic() - began), done


def _resume(folder: Path, sessionm: Process) -> None:
    before = written(sessionm)
    resume_delivery(folder, sessionm.url)
    while written(sessionm) < before + CONCURRENCY * 4:
        time.sleep(0.1)


def _pause(folder: Path, sessionm: Process) -> None:
    pause_delivery(folder, sessionm.url)
    before = -1
    while (now := written(sessionm)) > before:
        before = now
        time.sleep(0.5)


def _writes(figures: _Figures) -> Table:
    table = Table(("", "writes a second", "least to most", f"of {IDEAL}", "each round", "goal"))
    ratios = [rate / IDEAL for rate in figures.alone]
    reached = verdict(met=median(ratios) >= GOAL)
    for name, rates in {"delivery alone": figures.alone, **_named(figures.writes)}.items():
        of_ideal = [rate / IDEAL for rate in rates]
        table.add(
            name,
            number(median(rates)),
            spread(rates),
            f"**{median(of_ideal):.2f}**",
            each(of_ideal if rates is figures.alone else _of_rounds(of_ideal)),
            f"{GOAL:g}: {reached}" if rates is figures.alone else "",
        )
    return table


def _of_rounds(pairs: list[float]) -> list[float]:
    return [median(pairs[at : at + PAIRS]) for at in range(0, len(pairs), PAIRS)]


def _named(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    return {f"beside lookups, {name}": values for name, values in rates.items()}


def _lookups(figures: _Figures) -> Table:
    table = Table(("", "a second", "p50 ms", "p99 ms", "p99 with / without", "each round", "goal"))
    for name in PACES:
        pairs = zip(figures.running[name], figures.paused[name], strict=True)
        ratios = [running.p99 / paused.p99 for running, paused in pairs]
        reached = verdict(met=median(ratios) <= P99_GOAL)
        sides = {"without": figures.paused[name], "with": figures.running[name]}
        for side, loads in sides.items():
            beside = side == "with"
            table.add(
                f"lookups, {name}, {side} delivery",
                number(median(load.rate for load in loads)),
                f"{median(load.p50 for load in loads):.1f}",
                f"{median(load.p99 for load in loads):.1f}",
                f"**{median(ratios):.2f}**" if beside else "",
                each(_of_rounds(ratios)) if beside else "",
                f"{P99_GOAL:g}: {reached}" if beside else "",
            )
    return table
