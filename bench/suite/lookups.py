"""Cached lookups.

Tags of 1,000 customers in turn, all asked for before, over 64 connections that stay open, with a
key, two worker processes. Everyone checks the key but the two hellos, which answer bytes of the
same length from gunicorn and do nothing else: they are what gunicorn allows. nginx and Varnish
answer SessionM's own body, unshaped.
"""

import json
from functools import partial
from pathlib import Path

from bench import peers
from bench.processes import Process
from bench.report import Table, verdict
from bench.rounds import Contender, Plan, Run, compare, measure
from bench.services import KEYS, ask, bridge, sandbox, status
from bench.wrk import lookups

CUSTOMERS = 1000
PATH = "/connected-content/tags?user_id=customer-0000001"
KEY = KEYS["content"]
BRIDGE = "bridge"
FLASK_CACHING = "Flask-Caching, gunicorn gthread"
NODE_RED = "Node-RED, one process"


def run(plan: Plan) -> list[Table | str]:
    with sandbox(plan.room("sandbox")) as sessionm:
        body = _answer(plan.room("sample"), sessionm.url)
        compared = compare(plan, contenders(sessionm.url, body), partial(_turn, plan))
    theirs = min(compared.p99(FLASK_CACHING), compared.p99(NODE_RED))
    met = compared.p99(BRIDGE) <= theirs
    return [
        compared.table(),
        f"Goal: a p99 no worse than that of {FLASK_CACHING} and {NODE_RED}: {verdict(met=met)}.",
        f"An answer of the bridge has {len(body)} bytes.",
        *compared.remarks(),
    ]


def contenders(sessionm: str, body: bytes) -> list[Contender]:
    """The bridge before *sessionm*, and who else is compared; the hellos answer *body*."""
    return [
        Contender(BRIDGE, lambda folder: bridge(folder, sessionm)),
        Contender("gunicorn asgi, hello", peers.hello("asgi", body), goal=0.8, asks_for_key=False),
        Contender("gunicorn gthread, hello", peers.hello("gthread", body), asks_for_key=False),
        Contender(
            FLASK_CACHING,
            peers.flask("cached", sessionm, KEY, threads=4),
            peers.lacks("py:flask_caching", "py:gunicorn"),
            goal=4,
        ),
        Contender(
            NODE_RED,
            peers.node_red(sessionm, KEY),
            peers.lacks("npm:node-red"),
            goal=4,
        ),
        Contender(
            "Express, node-cache",
            peers.node("express_cached.js", sessionm, KEY),
            peers.lacks("npm:express", "npm:node-cache"),
        ),
        Contender("nginx proxy_cache", peers.nginx(sessionm, KEY), peers.lacks("nginx")),
        Contender("Varnish", peers.varnish(sessionm, KEY), peers.lacks("varnishd", "cc")),
    ]


def warm(process: Process, requests: int, customers: int = CUSTOMERS) -> None:
    """Look all up until every worker has had every customer, in all likelihood."""
    done = 0
    while done < requests:
        done += lookups(process.url, KEY, 1, customers=customers, first=done).requests


def _answer(folder: Path, sessionm: str) -> bytes:
    """What the bridge answers to a lookup that is cached."""
    with bridge(folder, sessionm) as process:
        ask(process, "GET", PATH, KEY)
        return ask(process, "GET", PATH, KEY)


def _turn(plan: Plan, one: Contender, process: Process, _round: int) -> Run:
    check(process, asks_for_key=one.asks_for_key)
    warm(process, plan.warm_requests)
    return measure(process, lambda: lookups(process.url, KEY, plan.seconds))


def check(process: Process, *, asks_for_key: bool) -> None:
    """See that the answer holds the tags, and that there is none without the key.

    Raises:
        ValueError: it is otherwise, so that its figures would mean nothing.
    """
    if json.loads(ask(process, "GET", PATH, KEY))["tags"] != {"vip": 0, "newsletter": 3}:
        raise ValueError(f"{process.url} answers other tags than SessionM's")
    if asks_for_key and status(process, "GET", PATH, "wrong") != 401:
        raise ValueError(f"{process.url} answers without the key")
