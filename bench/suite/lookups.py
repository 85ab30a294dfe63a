"""Cached lookups.

The tags of 1,000 cached customers, over 64 connections to two workers. "hello" answers as many
bytes without any work. nginx serves old tags for up to five minutes after a write.
"""

import json
from functools import partial
from pathlib import Path

from bench import peers
from bench.processes import Process
from bench.report import Table
from bench.rounds import Plan, Run, Service, compare, measure
from bench.services import KEYS, bridge, request, sandbox, status
from bench.wrk import lookups

CUSTOMERS = 1000
PATH = "/connected-content/tags?user_id=customer-0000001"
KEY = KEYS["content"]


def run(plan: Plan) -> list[Table | str]:
    with sandbox(plan.new_folder("sandbox")) as sessionm:
        body = _answer(plan.new_folder("sample"), sessionm.url)
        return compare(plan, services(sessionm.url, body), partial(_run, plan))


def services(sessionm: str, body: bytes) -> list[Service]:
    """The bridge and its peers; *body* is the answer of "hello"."""
    return [
        Service("bridge", lambda folder: bridge(folder, sessionm)),
        Service("gunicorn asgi, hello", peers.hello(body), goal=0.8, checks_key=False),
        Service(
            "Flask-Caching, gunicorn gthread",
            peers.flask("cached", sessionm, KEY, threads=4),
            peers.lacks("py:flask_caching", "py:gunicorn"),
            goal=4,
        ),
        Service(
            "Express, node-cache",
            peers.node("express_cached.js", sessionm, KEY),
            peers.lacks("npm:express", "npm:node-cache"),
        ),
        Service("nginx, SessionM's own answer", peers.nginx(sessionm, KEY), peers.lacks("nginx")),
    ]


def warm(process: Process, requests: int) -> None:
    """Send lookups until every worker is likely to have cached every customer."""
    done = 0
    while done < requests:
        done += lookups(process.url, KEY, 1, customers=CUSTOMERS, first=done).requests


def _answer(folder: Path, sessionm: str) -> bytes:
    """Return the bridge's answer to a cached lookup."""
    with bridge(folder, sessionm) as process:
        request(process, "GET", PATH, KEY)
        return request(process, "GET", PATH, KEY)


def _run(plan: Plan, service: Service, process: Process) -> Run:
    check(process, checks_key=service.checks_key)
    warm(process, plan.warm_requests)
    return measure(process, lambda: lookups(process.url, KEY, plan.seconds))


def check(process: Process, *, checks_key: bool) -> None:
    """Check that the service answers with SessionM's tags, and not without the key.

    Raises:
        ValueError: it does not, so the measurement would be meaningless.
    """
    if json.loads(request(process, "GET", PATH, KEY))["tags"] != {"vip": 0, "newsletter": 3}:
        raise ValueError(f"{process.url} answers other tags than SessionM's")
    if checks_key and status(process, "GET", PATH, "wrong") != 401:
        raise ValueError(f"{process.url} answers without the key")
