"""Webhooks in bulk.

A send whose webhooks come far faster than SessionM takes single writes: 20 a second here. Once they
go to SessionM one by one, and once with `BRIDGE_BULK_THRESHOLD=1000`, where what waits leaves as
batch jobs. The one by one are not waited for: their time is what is left at SessionM's pace.
"""

import time
import uuid
from dataclasses import dataclass

import click

from bench.report import Table, number
from bench.rounds import Plan
from bench.services import KEYS, bridge, called, sandbox, waiting
from bench.wrk import webhooks

RPS = 20
THRESHOLD = 1000
WEBHOOKS = 100_000
QUICK_WEBHOOKS = 5000
# After so long something is wrong.
PATIENCE = 300.0


@dataclass(frozen=True)
class _Sent:
    """What came of a send: *calls* to SessionM, and when it had all, after the first webhook."""

    webhooks: int
    calls: int
    seconds: float


def run(plan: Plan) -> list[Table | str]:
    least = QUICK_WEBHOOKS if plan.quick else WEBHOOKS
    direct = _send(plan, "direct", 0, least)
    click.echo(f"  {direct.calls:,} calls", err=True)
    bulk = _send(plan, "bulk", THRESHOLD, least)
    click.echo(f"  {bulk.calls:,} calls", err=True)
    table = Table(
        ("", "webhooks", "calls to SessionM", "calls per 1,000 webhooks", "all in SessionM after")
    )
    for name, sent in {"one by one": direct, "in bulk": bulk}.items():
        per = sent.calls * 1000 / sent.webhooks
        table.add(
            name,
            f"{sent.webhooks:,}",
            f"{sent.calls:,}",
            f"{number(per)}",
            f"{sent.seconds / 60:,.1f} min",
        )
    ratio = (direct.calls / direct.webhooks) / (bulk.calls / bulk.webhooks)
    return [table, f"In bulk: **1 call where {ratio:,.0f} were**."]


def _send(plan: Plan, name: str, threshold: int, least: int) -> _Sent:
    """Send at least so many webhooks, and see what they cost."""
    settings = {"BRIDGE_SESSIONM_RPS": RPS, "BRIDGE_BULK_THRESHOLD": threshold}
    run, sent = uuid.uuid4().hex[:8], 0
    with (
        sandbox(plan.room("sandbox", name)) as sessionm,
        bridge(plan.room("bridge", name), sessionm.url, **settings) as process,
    ):
        began = time.monotonic()
        while sent < least:
            # Distinct ones each time, and a run may have some under way when it ends.
            load = webhooks(process.url, KEYS["webhook"], plan.seconds, run=run, first=sent * 2)
            sent += load.requests
        if not threshold:
            left = waiting(process)
            seconds = time.monotonic() - began + left / RPS
            return _Sent(sent, called(sessionm) + left, seconds)
        while left := waiting(process):
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"{left} writes still wait")
            time.sleep(0.2)
        return _Sent(sent, called(sessionm), time.monotonic() - began)
