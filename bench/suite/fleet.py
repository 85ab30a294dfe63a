"""Fleet.

Two bridges on one PostgreSQL against one, in turn. A machine with few cores cannot show that: the
load and the database take their part of them. So every bridge, one worker each, has a fixed share
of a core here, as if it were a machine of its own; the database and the load have what is left.
What two do is compared with what one does, and with what is predicted: their shares divided by the
processor time that one bridge takes for a request.

Then processes that do nothing but store events, eight in a transaction, on one database at once:
whatever they have to wait for each other for shows here. At last, from the same figures, fifty
bridges of two cores and a send to ten million customers: calculated, not measured.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import click

from bench import postgres
from bench.capacity import Costs, Fleet, Send
from bench.fill import event
from bench.processes import Process, Quota, cpu_of
from bench.report import Table, each, number, verdict
from bench.rounds import Plan
from bench.services import KEYS, bridge, environment, sandbox
from bench.suite.lookups import warm
from bench.wrk import Load, lookups, webhooks
from bridge.parts import build
from bridge.settings import load

SHARE = 0.3
GOAL = 1.7
WRITERS = (1, 2, 4, 8)
AT_ONCE = 8
BIG = Send(customers=10_000_000, lookups=3, rps=640)
FIFTY = Fleet(bridges=50, cores=2, workers=2, database_cores=8)


@dataclass(frozen=True)
class _Figures:
    """Requests a second, and µs of processor time for each, in the bridges and in PostgreSQL."""

    rate: float
    bridge: float
    database: float


_Work = Callable[[Process], Load]


def run(plan: Plan) -> list[Table | str]:
    if missing := postgres.missing() or Quota.missing():
        return [f"Left out: {missing}."]
    found: dict[tuple[str, int], list[_Figures]] = {}
    event_bytes = 0.0
    with sandbox(plan.room("sandbox")) as sessionm:
        for turn in range(plan.rounds):
            for bridges in (1, 2):
                room = plan.room(bridges, turn)
                with postgres.fresh_database() as url:
                    figures, event_bytes = _measure(plan, room, sessionm.url, url, bridges)
                for name, one in figures.items():
                    found.setdefault((name, bridges), []).append(one)
                    click.echo(f"  {bridges}: {one.rate:,.0f} {name}", err=True)
    writers, commits = _writers(plan)
    costs = _costs(found, event_bytes, commits)
    return [
        _two(found, costs),
        writers,
        _big(costs),
        _bottleneck(costs),
    ]


def _measure(
    plan: Plan, room: Path, sessionm: str, url: str, bridges: int
) -> tuple[dict[str, _Figures], float]:
    """Lookups and webhooks of so many bridges; and bytes of the database for each event."""
    settings = {"BRIDGE_DATABASE_URL": url, "BRIDGE_SESSIONM_RPS": 1, "BRIDGE_TAGS_MAX_AGE": 3600}
    with ExitStack() as stack:
        # The groups are left when their processes have ended.
        quotas = [stack.enter_context(Quota(SHARE)) for _ in range(bridges)]
        running = [
            stack.enter_context(bridge(_room(room, number), sessionm, workers=1, **settings))
            for number in range(bridges)
        ]
        for process in running:
            warm(process, plan.warm_requests // 4)
        for process, quota in zip(running, quotas, strict=True):
            process.limit(quota)
        looked_up = _under_load(running, lambda p: lookups(p.url, KEYS["content"], plan.seconds))
        before = postgres.size(url)
        name = uuid.uuid4().hex[:6]
        accepted = _under_load(
            running,
            lambda p: webhooks(
                p.url, KEYS["webhook"], plan.seconds, run=f"{name}-{p.port}", first=p.port * 10**6
            ),
        )
        events = accepted.rate * plan.seconds
        size = (postgres.size(url) - before) / max(1.0, events)
    return {"lookups": looked_up, "webhooks": accepted}, size


def _room(room: Path, number: int) -> Path:
    made = room / str(number)
    made.mkdir()
    return made


def _under_load(running: list[Process], work: _Work) -> _Figures:
    """Do *work* at all of them at once."""
    bridges, database = _cpu(running), cpu_of("postgres")
    with ThreadPoolExecutor(len(running)) as threads:
        loads = list(threads.map(work, running))
    requests = max(1, sum(one.requests for one in loads))
    return _Figures(
        sum(one.rate for one in loads),
        (_cpu(running) - bridges) * 1e6 / requests,
        (cpu_of("postgres") - database) * 1e6 / requests,
    )


def _cpu(running: list[Process]) -> float:
    return sum(process.cpu_seconds() for process in running)


def _costs(
    found: dict[tuple[str, int], list[_Figures]], event_bytes: float, commits: float
) -> Costs:
    """As one bridge has them."""

    def middle(name: str, of: Callable[[_Figures], float]) -> float:
        return median(map(of, found[name, 1]))

    return Costs(
        lookup=middle("lookups", lambda one: one.bridge),
        lookup_database=middle("lookups", lambda one: one.database),
        webhook=middle("webhooks", lambda one: one.bridge),
        webhook_database=middle("webhooks", lambda one: one.database),
        event_bytes=event_bytes,
        commits=commits,
    )


def _two(found: dict[tuple[str, int], list[_Figures]], costs: Costs) -> Table:
    table = Table(
        (
            f"{SHARE * 100:.0f} % of a core each",
            "a second",
            "two / one",
            "each round",
            "goal",
            "predicted",
            "measured / predicted",
            "CPU µs, bridge",
            "CPU µs, PostgreSQL",
        )
    )
    cost = {"lookups": costs.lookup, "webhooks": costs.webhook}
    for (name, bridges), figures in sorted(found.items()):
        rate = median(one.rate for one in figures)
        pairs = zip(figures, found[name, 1], strict=True)
        ratios = [two.rate / one.rate for two, one in pairs]
        predicted = Fleet(bridges, SHARE, 1, 1).rate(cost[name], 0)
        several = bridges > 1
        table.add(
            f"{name}, {'two bridges' if several else 'one bridge'}",
            number(rate),
            f"**{median(ratios):.2f}**" if several else "",
            each(ratios) if several else "",
            f"{GOAL:g}: {verdict(met=median(ratios) >= GOAL)}" if several else "",
            number(predicted),
            f"{rate / predicted:.2f}",
            number(median(one.bridge for one in figures)),
            number(median(one.database for one in figures)),
        )
    return table


def _writers(plan: Plan) -> tuple[Table, float]:
    """Processes that store events at once, on one database; the most transactions a second."""
    most = 0.0
    columns = ("processes that store", "events a second", "each", "transactions a second")
    table = Table((*columns, "PostgreSQL, µs an event"))
    for writers in WRITERS[:2] if plan.quick else WRITERS:
        with postgres.fresh_database() as url, _pool(writers) as pool:
            # Connected, and the tables made, before the time is taken.
            list(pool.map(partial(_store, url, 0.2), range(writers)))
            before = cpu_of("postgres")
            stored = list(pool.map(partial(_store, url, plan.seconds), range(writers)))
            used = cpu_of("postgres") - before
        events = sum(stored)
        rate = events / plan.seconds
        most = max(most, rate / AT_ONCE)
        table.add(
            str(writers),
            number(rate),
            number(rate / writers),
            number(rate / AT_ONCE),
            number(used * 1e6 / max(1, events)),
        )
    return table, most


@contextmanager
def _pool(writers: int) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(writers, mp_context=get_context("spawn")) as pool:
        yield pool


def _store(url: str, seconds: float, writer: int) -> int:
    """Store events for so long, each of another customer; returns how many."""
    settings = environment(Path.cwd(), "http://127.0.0.1:9", BRIDGE_DATABASE_URL=url)
    parts = build(load(settings, Path.cwd() / "none"))
    try:
        parts.store.ping()
        until, done = time.monotonic() + seconds, 0
        first = time.time_ns() // 1000 % 10**9 * 100 + writer
        while time.monotonic() < until:
            parts.store.add([event(first + number * 10) for number in range(done, done + AT_ONCE)])
            done += AT_ONCE
        return done
    finally:
        parts.close()


def _bottleneck(costs: Costs) -> str:
    webhook = costs.webhook_database
    return (
        f"PostgreSQL here allows {postgres.most_connections()} connections; the fifty want "
        f"{FIFTY.connections:,}. What bounds them first is PostgreSQL: a webhook takes "
        f"{webhook:.0f} µs of its processors, so each of its cores takes {1e6 / webhook:,.0f} "
        "webhooks a second."
    )


def _big(costs: Costs) -> Table:
    table = Table(("10 million customers, 50 bridges", "calculated"))
    for name, seconds in BIG.seconds(FIFTY, costs).items():
        rate = BIG.customers / seconds
        long = f"{seconds:,.0f} s" if seconds < 300 else f"{seconds / 60:,.0f} min"
        table.add(name, f"{long}, {rate:,.0f} customers a second")
    table.add("the same tags by batch job", f"{BIG.jobs} jobs")
    table.add("a webhook waits for its turn to commit", f"up to {FIFTY.turn(costs) * 1000:.0f} ms")
    table.add("connections to PostgreSQL", f"{FIFTY.connections:,}")
    table.add("database", f"{BIG.customers * costs.event_bytes / 1e9:,.0f} GB")
    return table
