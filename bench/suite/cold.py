"""Cold lookups.

Customers never asked for before, at low load: one connection, one request at a time. Each is asked
for from SessionM itself, which takes 20 ms, and through the bridge, in turn; the difference is
what the bridge adds.
"""

import base64
import http.client
import time
from statistics import median, quantiles

from bench.processes import HOST, Process
from bench.report import Table, verdict
from bench.rounds import Plan
from bench.services import KEYS, bridge, misbehave, sandbox
from bridge.sessionm.sandbox import Credentials

LATENCY_MS = 20
GOAL_MS = 5.0


def run(plan: Plan) -> list[Table | str]:
    direct: list[float] = []
    through: list[float] = []
    with sandbox(plan.room("sandbox")) as sessionm:
        misbehave(sessionm, latency_ms=LATENCY_MS)
        with bridge(plan.room("bridge"), sessionm.url) as process:
            ours = _Asker(process, f"Bearer {KEYS['content']}")
            theirs = _Asker(sessionm, _basic())
            for number in range(-20, 40 if plan.quick else 100 * plan.rounds):
                at_sessionm = theirs.seconds(_direct_path(f"cold-{number}"))
                at_bridge = ours.seconds(f"/connected-content/tags?user_id=cold-{number}")
                # The first ones open connections.
                if number >= 0:
                    direct.append(at_sessionm * 1000)
                    through.append(at_bridge * 1000)
    added = [ours - theirs for ours, theirs in zip(through, direct, strict=True)]
    table = Table(("", "median ms", "p90 ms", "p99 ms", f"goal: {GOAL_MS:g} ms"))
    for name, values in {"SessionM": direct, "through the bridge": through, "added": added}.items():
        reached = verdict(met=median(added) <= GOAL_MS) if values is added else ""
        tenths, hundredths = quantiles(values, n=10), quantiles(values, n=100)
        cells = (median(values), tenths[-1], hundredths[-1])
        table.add(name, *(f"{value:.1f}" for value in cells), reached)
    return [table, f"{len(direct)} customers."]


class _Asker:
    """One connection that stays open."""

    def __init__(self, process: Process, authorization: str) -> None:
        self._connection = http.client.HTTPConnection(HOST, process.port, timeout=30)
        self._headers = {"Authorization": authorization}

    def seconds(self, path: str) -> float:
        """How long the answer takes; it must be 200."""
        began = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - began
        if answer.status != 200 or b"newsletter" not in body:
            raise ValueError(f"{path}: {answer.status} {body[:200]!r}")
        return took


def _basic() -> str:
    credentials = Credentials()
    pair = f"{credentials.core_key}:{credentials.core_secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _direct_path(user_id: str) -> str:
    return f"/priv/v1/apps/{Credentials().core_key}/users/{user_id}/tags"
