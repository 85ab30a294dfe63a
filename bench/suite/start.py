"""Start-up.

From the command to the first 200 of `/healthz`, two workers: on an empty folder, on the store that
the first start left, and, to compare, a small Flask application under gunicorn. The disk has been
read before.
"""

from statistics import median

from bench import peers
from bench.processes import Process
from bench.report import Table, spread, verdict
from bench.rounds import Plan
from bench.services import bridge, sandbox

GOAL = 2.0
REPEATS = 3


def run(plan: Plan) -> list[Table | str]:
    flask = peers.flask("committed", "http://127.0.0.1:1", "secret", threads=16)
    lacking = peers.lacks("py:flask", "py:gunicorn")
    seconds: dict[str, list[float]] = {}
    with sandbox(plan.room("sandbox")) as sessionm:
        for turn in range(1 if plan.quick else plan.rounds * REPEATS):
            folder = plan.room("bridge", turn)
            starts = {"bridge, first start": bridge(folder, sessionm.url)}
            starts["bridge, further starts"] = bridge(folder, sessionm.url)
            if not lacking:
                starts["Flask, gunicorn gthread"] = flask(plan.room("flask", turn))
            for name, process in starts.items():
                seconds.setdefault(name, []).append(_started_in(process))
    table = Table(("", "seconds", "least to most", "goal"))
    for name, values in seconds.items():
        reached = f"{GOAL:g} s: {verdict(met=median(values) <= GOAL)}"
        goal = reached if name.startswith("bridge") else ""
        table.add(name, f"{median(values):.2f}", spread(values), goal)
    return [table, *([f"Left out: Flask ({lacking})."] if lacking else [])]


def _started_in(process: Process) -> float:
    with process:
        return process.started_in
