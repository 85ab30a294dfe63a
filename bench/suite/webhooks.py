"""Webhooks accepted.

Each is a different event of a different customer, over 64 connections to two workers, answered once
it is on disk (fsync). The bridge also delivers 20 a second; the peers only store.
"""

import uuid
from functools import partial

from bench import peers
from bench.processes import Process
from bench.report import Table
from bench.rounds import Plan, Run, Service, compare, measure
from bench.services import KEYS, bridge, sandbox, set_fault, status
from bench.wrk import webhooks

KEY = KEYS["webhook"]
EVENT = '{"braze_campaign_id":"c","user_id":"customer-0000001","dispatch_id":"first"}'


def run(plan: Plan) -> list[Table | str]:
    with sandbox(plan.new_folder("sandbox")) as sessionm:
        set_fault(sessionm, latency_ms=100)
        return compare(plan, services(sessionm.url), partial(_run, plan))


def services(sessionm: str) -> list[Service]:
    """The bridge and its peers."""
    return [
        Service("bridge", lambda folder: bridge(folder, sessionm)),
        Service(
            "Flask, a SQLite commit each",
            peers.flask("committed", sessionm, KEY, threads=16),
            peers.lacks("py:flask", "py:gunicorn"),
            goal=4,
        ),
        Service(
            "Express, grouped fdatasync",
            peers.node("express_log.js", sessionm, KEY),
            peers.lacks("npm:express"),
            goal=0.75,
        ),
    ]


def _run(plan: Plan, _service: Service, process: Process) -> Run:
    if status(process, "POST", "/webhooks/braze", "wrong", EVENT) != 401:
        raise ValueError(f"{process.url} answers without the key")
    name = uuid.uuid4().hex[:8]
    # Requests under way at the end of the warm-up are events too: leave a gap.
    first = webhooks(process.url, KEY, 1, run=name).requests + 1000
    return measure(process, lambda: webhooks(process.url, KEY, plan.seconds, run=name, first=first))
