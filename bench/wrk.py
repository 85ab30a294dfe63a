"""Load, made by wrk: many connections that stay open, each asking again once it is answered."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "load"
CONNECTIONS = 64


@dataclass(frozen=True)
class Load:
    """What a run of wrk saw: answers a second, latency in milliseconds, failures.

    *refused* answers had a status above 399; *broken* ones never came.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    refused: int
    broken: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


class LoadError(Exception):
    """wrk is missing or has failed."""


def lookups(
    url: str, key: str, seconds: int, *, customers: int = 1000, first: int = 0, pace: int = 0
) -> Load:
    """Look up the tags of so many customers in turn.

    Args:
        url: the service.
        key: a secret of scope content.
        seconds: how long.
        customers: how many.
        first: the number of the first.
        pace: milliseconds that each connection rests after an answer.
    """
    return _run(url, "lookups.lua", seconds, key, customers, first, pace)


def webhooks(url: str, key: str, seconds: int, *, run: str, first: int = 0, pace: int = 0) -> Load:
    """Send webhooks, each a distinct event as long as *run* and *first* are."""
    return _run(url, "webhooks.lua", seconds, key, run, first, pace)


def repeated(url: str, path: str, seconds: int) -> Load:
    """Get the same path again and again."""
    return _run(url, "path.lua", seconds, path)


def _run(url: str, script: str, seconds: int, *arguments: object) -> Load:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadError("wrk is not installed: run bench/setup")
    # One thread of wrk makes 40,000 requests a second; a second one would only take processor.
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-s", script]
    ended = subprocess.run(  # noqa: S603 - our own scripts
        [*command, url, "--", *map(str, arguments)],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise LoadError(f"wrk failed: {ended.stderr.strip() or ended.stdout.strip()}")
    return read(ended.stdout)


def read(output: str) -> Load:
    """The last line of wrk's *output*, which `report.lua` has written.

    Raises:
        LoadError: it is not there.
    """
    line = output.rstrip().rpartition("\n")[2]
    if not line.startswith("{"):
        raise LoadError(f"wrk reported nothing: {line}")
    return Load(**json.loads(line))
