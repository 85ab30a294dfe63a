"""Through Flask.

What is neither a repeated lookup nor a webhook passes from the event loop to Flask in a thread. The
same small answer (`/healthz`) of the same application, two worker processes, over 64 connections:
once as `bridge serve` runs it, once under gunicorn's own thread worker.
"""

import sys
from pathlib import Path

from bench.processes import HOST, Process, free_port
from bench.report import Table
from bench.rounds import Contender, Plan, Run, compare, measure
from bench.services import WORKERS, bridge, environment, sandbox
from bench.wrk import repeated

PATH = "/healthz"
ROOT = Path(__file__).parents[2]


def run(plan: Plan) -> list[Table | str]:
    with sandbox(plan.room("sandbox")) as sessionm:

        def threads(folder: Path) -> Process:
            return _threads(folder, sessionm.url)

        contenders = [
            Contender("bridge serve", lambda folder: bridge(folder, sessionm.url)),
            Contender("gunicorn gthread, the same application", threads, goal=1),
        ]

        def turn(_one: Contender, process: Process, _round: int) -> Run:
            repeated(process.url, PATH, 1)
            return measure(process, lambda: repeated(process.url, PATH, plan.seconds))

        compared = compare(plan, contenders, turn)
    return [compared.table(), *compared.remarks()]


def _threads(folder: Path, sessionm: str) -> Process:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "app:app", "--chdir", str(ROOT)]
    options = ["-k", "gthread", "--threads", "8", "-w", str(WORKERS), "-b", f"{HOST}:{port}"]
    return Process(
        command + options, port=port, folder=folder, environment=environment(folder, sessionm)
    )
