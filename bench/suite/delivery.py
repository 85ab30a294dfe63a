"""Delivery.

A backlog is written to a SessionM that takes 100 ms per tag write, with 64 writes in flight: at
best 640 a second. Lookups are cached ones, over 64 connections, 1,000 a second.
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
from bench.report import Table, goal, number, spread
from bench.rounds import Plan
from bench.services import (
    KEYS,
    bridge,
    pause_delivery,
    resume_delivery,
    sandbox,
    set_fault,
    written,
)
from bench.suite.lookups import warm
from bench.wrk import CONNECTIONS, Load, lookups

T = TypeVar("T")

LATENCY_MS = 100
CONCURRENCY = 64
IDEAL = CONCURRENCY * 1000 // LATENCY_MS
GOAL = 0.8
P99_GOAL = 1.5
# Runs of lookups per round, without and with delivery: the p99 of a single run varies by half.
RUNS = 3
# Milliseconds of pause per connection, for about 1,000 lookups a second.
PACE = CONNECTIONS
COLUMNS = ("", "per second", "min to max", "ratio", "p50 ms", "p99 ms", "CPU s per million")


@dataclass
class _Results:
    """Writes a second alone, beside 1,000 lookups a second and beside lookups at full speed.

    *cpu* is the bridge's processor time in µs per write of those alone. *p99_ratios* has, per
    round, the p99 of lookups with delivery over that without.
    """

    alone: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    full_speed: list[float] = field(default_factory=list)
    paused: list[Load] = field(default_factory=list)
    running: list[Load] = field(default_factory=list)
    p99_ratios: list[float] = field(default_factory=list)


def run(plan: Plan) -> list[Table | str]:
    results = _Results()
    for round_number in range(plan.rounds):
        folder = plan.new_folder("bridge", round_number)
        with sandbox(plan.new_folder("sandbox", round_number)) as sessionm:
            set_fault(sessionm, latency_ms=LATENCY_MS)
            with opened(folder, sessionm.url) as parts:
                # Enough for the whole round, for customers who are not looked up.
                seconds = (RUNS + 3) * (plan.seconds + 1)
                add_events(parts, 1_000_000, 1_000_000 + IDEAL * seconds)
            _round(plan, folder, sessionm, results)
        click.echo(f"  {results.alone[-1]:,.0f} writes a second", err=True)
    return [_table(results)]


def _round(plan: Plan, folder: Path, sessionm: Process, results: _Results) -> None:
    def look_up(pace: int) -> Load:
        return lookups(process.url, KEYS["content"], plan.seconds, pace=pace)

    pause_delivery(folder, sessionm.url)
    with bridge(
        folder,
        sessionm.url,
        BRIDGE_SESSIONM_RPS=10 * IDEAL,
        BRIDGE_DELIVERY_CONCURRENCY=CONCURRENCY,
        # Cached lookups stay fresh for the whole round.
        BRIDGE_TAGS_MAX_AGE=3600,
    ) as process:
        warm(process, plan.warm_requests)
        paused = [look_up(PACE) for _ in range(RUNS)]
        _resume(folder, sessionm)
        beside = [_writes_during(sessionm, lambda: look_up(PACE)) for _ in range(RUNS)]
        running = [load for _, load in beside]
        results.paused += paused
        results.running += running
        results.beside += [rate for rate, _ in beside]
        results.p99_ratios.append(
            median(load.p99 for load in running) / median(load.p99 for load in paused)
        )
        before = process.cpu_seconds()
        rate, _ = _writes_during(sessionm, lambda: time.sleep(plan.seconds))
        used = process.cpu_seconds() - before
        results.alone.append(rate)
        results.cpu.append(used * 1e6 / max(1.0, rate * plan.seconds))
        results.full_speed.append(_writes_during(sessionm, lambda: look_up(0))[0])


def _writes_during(sessionm: Process, work: Callable[[], T]) -> tuple[float, T]:
    """Return the writes a second during *work*, and the result of *work*."""
    began, before = time.monotonic(), written(sessionm)
    done = work()
    return (written(sessionm) - before) / (time.monotonic() - began), done


def _resume(folder: Path, sessionm: Process) -> None:
    """Resume delivery, and wait until it runs at full speed."""
    before = written(sessionm)
    resume_delivery(folder, sessionm.url)
    while written(sessionm) < before + CONCURRENCY * 4:
        time.sleep(0.1)


def _table(results: _Results) -> Table:
    table = Table(COLUMNS)
    for name, rates in {
        "writes alone": results.alone,
        "writes beside 1,000 lookups a second": results.beside,
        "writes beside lookups at full speed": results.full_speed,
    }.items():
        least, cpu = None, ""
        if rates is results.alone:
            least, cpu = GOAL, number(median(results.cpu))
        ratio = f"of {IDEAL}: {goal(median(rates) / IDEAL, least)}"
        table.add(name, number(median(rates)), spread(rates), ratio, "", "", cpu)
    ratio = f"p99: {goal(median(results.p99_ratios), most=P99_GOAL)}"
    _add_lookups(table, "lookups without delivery", results.paused, "")
    _add_lookups(table, "lookups with delivery", results.running, ratio)
    return table


def _add_lookups(table: Table, name: str, loads: list[Load], ratio: str) -> None:
    rates = [load.rate for load in loads]
    p50, p99 = median(load.p50 for load in loads), median(load.p99 for load in loads)
    table.add(name, number(median(rates)), spread(rates), ratio, f"{p50:.1f}", f"{p99:.1f}", "")
