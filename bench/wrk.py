"""Load from wrk: 64 connections that stay open, each with one request at a time."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "load"
CONNECTIONS = 64


@dataclass(frozen=True)
class Load:
    """The result of a run of wrk; latencies are in milliseconds.

    *refused* counts answers with a status above 399, *broken* requests without an answer.
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
    """Look up the tags of customers in turn.

    Args:
        url: the service.
        key: a secret with the scope content.
        seconds: duration.
        customers: number of customers; after the last one, the first one follows.
        first: number of the customer to begin with.
        pace: pause of each connection before a request, in milliseconds.

    Raises:
        LoadError: wrk is missing or has failed.
    """
    return _run(url, "lookups.lua", seconds, key, customers, first, pace)


def webhooks(url: str, key: str, seconds: int, *, run: str, first: int = 0, pace: int = 0) -> Load:
    """Send webhooks. Each is a different event if the runs differ in *run* or *first*.

    Raises:
        LoadError: wrk is missing or has failed.
    """
    return _run(url, "webhooks.lua", seconds, key, run, first, pace)


def _run(url: str, script: str, seconds: int, *arguments: object) -> Load:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadError("wrk is not installed: run bench/setup")
    # One thread of wrk sends over 40,000 requests a second; a second thread would take processor
    # time from the service.
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
    """Read the last line of wrk's *output*, written by `report.lua`.

    Raises:
        LoadError: there is no such line.
    """
    line = output.rstrip().rpartition("\n")[2]
    if not line.startswith("{"):
        raise LoadError(f"wrk reported nothing: {line}")
    return Load(**json.loads(line))
