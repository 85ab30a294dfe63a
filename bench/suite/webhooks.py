"""Webhooks accepted.

Each is a distinct event of a distinct customer, over 64 connections that stay open, with a key, two
worker processes, beside which the bridge has one that delivers. The bridge checks it against the
rules and for duplicates, answers 202 when it is on disk (fsync), and delivers meanwhile to a
SessionM that takes 100 ms; the table says how many writes a second. The others store, and deliver
nothing; the last one only delivers.
"""

import uuid
from functools import partial
from pathlib import Path

from bench import peers
from bench.processes import Process
from bench.report import Table, verdict
from bench.rounds import Contender, Plan, Run, compare, measure
from bench.services import KEYS, bridge, misbehave, sandbox, status
from bench.wrk import webhooks

KEY = KEYS["webhook"]
P99_GOAL = 100.0
EVENT = '{"braze_campaign_id":"c","user_id":"customer-0000001","dispatch_id":"first"}'


def run(plan: Plan) -> list[Table | str]:
    with sandbox(plan.room("sandbox")) as sessionm:
        misbehave(sessionm, latency_ms=100)
        compared = compare(plan, contenders(sessionm.url), partial(_turn, plan))
    most = max(compared.p99(one.name) for one in compared.contenders[:2])
    return [
        compared.table(),
        f"Goal: the bridge's p99 under {P99_GOAL:g} ms: {verdict(met=most < P99_GOAL)}.",
        *compared.remarks(),
    ]


def contenders(sessionm: str) -> list[Contender]:
    """The bridge before *sessionm*, with delivery at its usual and at a high rate, and others."""
    needs = peers.lacks("py:flask", "py:gunicorn")

    def at(rate: int) -> Contender:
        def start(folder: Path) -> Process:
            return bridge(
                folder, sessionm, BRIDGE_SESSIONM_RPS=rate, BRIDGE_DELIVERY_CONCURRENCY=64
            )

        return Contender(f"bridge, delivering {rate} a second", start)

    return [
        at(20),
        at(200),
        Contender(
            "Flask, a SQLite commit each",
            peers.flask("committed", sessionm, KEY, threads=16),
            needs,
            goal=4,
        ),
        Contender(
            "Flask, huey on SQLite",
            peers.flask("huey_queue", sessionm, KEY, threads=16),
            needs or peers.lacks("py:huey"),
        ),
        Contender(
            "Express, grouped fdatasync",
            peers.node("express_log.js", sessionm, KEY),
            peers.lacks("npm:express"),
            goal=1,
        ),
        Contender(
            "Flask, passed through",
            peers.flask("passed_through", sessionm, KEY, threads=32),
            needs or peers.lacks("py:requests"),
        ),
    ]


def _turn(plan: Plan, _one: Contender, process: Process, _round: int) -> Run:
    if status(process, "POST", "/webhooks/braze", "wrong", EVENT) != 401:
        raise ValueError(f"{process.url} answers without the key")
    name = uuid.uuid4().hex[:8]
    first = webhooks(process.url, KEY, 1, run=name).requests + 1000
    return measure(process, lambda: webhooks(process.url, KEY, plan.seconds, run=name, first=first))
