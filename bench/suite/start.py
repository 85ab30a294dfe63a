"""Start.

From the command to the first 200 of `/healthz`, with two workers.
"""

from statistics import median

from bench.report import Table, spread, verdict
from bench.rounds import Plan
from bench.services import bridge, sandbox

GOAL = 2.0


def run(plan: Plan) -> list[Table | str]:
    seconds: dict[str, list[float]] = {"on an empty folder": [], "on an existing database": []}
    with sandbox(plan.new_folder("sandbox")) as sessionm:
        # Read the program from disk.
        with bridge(plan.new_folder("bridge"), sessionm.url):
            pass
        for number in range(plan.rounds):
            folder = plan.new_folder("bridge", number)
            for values in seconds.values():
                with bridge(folder, sessionm.url) as process:
                    values.append(process.started_in)
    table = Table(("", "seconds", "min to max", "goal"))
    for name, values in seconds.items():
        reached = f"{GOAL:g} s: {verdict(met=median(values) <= GOAL)}"
        table.add(name, f"{median(values):.2f}", spread(values), reached)
    return [table]
