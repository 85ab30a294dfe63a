"""Cold lookups.

100 customers per round who are not cached, one request at a time. Each is requested from SessionM,
which takes 20 ms, and from the bridge, in turn. "Added" is the difference.
"""

import base64
import http.client
import time
from statistics import median, quantiles

from bench.processes import HOST, Process
from bench.report import Table, verdict
from bench.rounds import Plan
from bench.services import KEYS, bridge, sandbox, set_fault
from bridge.sandbox import Credentials

LATENCY_MS = 20
GOAL_MS = 5.0


def run(plan: Plan) -> list[Table | str]:
    direct: list[float] = []
    bridged: list[float] = []
    with sandbox(plan.new_folder("sandbox")) as sessionm:
        set_fault(sessionm, latency_ms=LATENCY_MS)
        with bridge(plan.new_folder("bridge"), sessionm.url) as process:
            to_bridge = _Connection(process, f"Bearer {KEYS['content']}")
            to_sessionm = _Connection(sessionm, _basic())
            for number in range(-20, 40 if plan.quick else 100 * plan.rounds):
                at_sessionm = to_sessionm.milliseconds(_direct_path(f"cold-{number}"))
                path = f"/connected-content/tags?user_id=cold-{number}"
                at_bridge = to_bridge.milliseconds(path)
                # The first 20 open connections.
                if number >= 0:
                    direct.append(at_sessionm)
                    bridged.append(at_bridge)
    added = [ours - theirs for ours, theirs in zip(bridged, direct, strict=True)]
    table = Table(("", "p50 ms", "p90 ms", "p99 ms", "goal for p50"))
    reached = f"{GOAL_MS:g} ms: {verdict(met=median(added) <= GOAL_MS)}"
    table.add("lookup through the bridge", *_percentiles(bridged), "")
    table.add("added to SessionM's time", *_percentiles(added), reached)
    return [table]


def _percentiles(values: list[float]) -> tuple[str, ...]:
    hundredths = quantiles(values, n=100)
    return tuple(f"{hundredths[percent - 1]:.1f}" for percent in (50, 90, 99))


class _Connection:
    """A connection that stays open."""

    def __init__(self, process: Process, authorization: str) -> None:
        self._connection = http.client.HTTPConnection(HOST, process.port, timeout=30)
        self._headers = {"Authorization": authorization}

    def milliseconds(self, path: str) -> float:
        """Return the duration of a GET.

        Raises:
            ValueError: the answer is not 200 with the customer's tags.
        """
        began = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - began
        if answer.status != 200 or b"newsletter" not in body:
            raise ValueError(f"{path}: {answer.status} {body[:200]!r}")
        return took * 1000


def _basic() -> str:
    credentials = Credentials()
    pair = f"{credentials.core_key}:{credentials.core_secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _direct_path(user_id: str) -> str:
    return f"/priv/v1/apps/{Credentials().core_key}/users/{user_id}/tags"
