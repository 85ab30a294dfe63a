"""The bridge and its SessionM, started as a user starts them."""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.processes import HOST, Process, free_port
from bridge.sandbox import Credentials

KEYS = {scope: f"the-{scope}-secret" for scope in ("webhook", "content", "admin")}
WORKERS = 2
# SessionM runs elsewhere in production: here it gets the processor time that the bridge leaves.
NICE = ("nice", "-n", "10")
# Every identifier is a customer with two tags.
SEED = {"any_customer": True, "new_customer": {"tags": {"vip": {"ttl": 2592000}, "newsletter": 3}}}


def sandbox(folder: Path) -> Process:
    """`bridge sandbox`, the stand-in for SessionM."""
    seed = folder / "seed.json"
    seed.write_text(json.dumps(SEED))
    port = free_port()
    command = [*NICE, sys.executable, "-m", "bridge", "sandbox"]
    return Process(
        [*command, "--port", f"{port}", "--seed", f"{seed}"],
        port=port,
        folder=folder,
        path="/sandbox/calls?limit=0",
    )


def bridge(folder: Path, sessionm: str, *, workers: int = WORKERS, **settings: object) -> Process:
    """`bridge serve` with its database in *folder*; *sessionm* is SessionM's base URL."""
    port = free_port()
    command = [sys.executable, "-m", "bridge", "serve"]
    return Process(
        [*command, "--bind", f"{HOST}:{port}", "--workers", f"{workers}"],
        port=port,
        folder=folder,
        environment=environment(folder, sessionm, **settings),
        ready=200,
        listeners=workers,
    )


def environment(folder: Path, sessionm: str, **settings: object) -> dict[str, str]:
    """The environment of the bridge; *settings* are named as in docs/settings.md."""
    return {
        **Credentials().environment(sessionm),
        **{f"BRIDGE_{scope.upper()}_KEYS": f"bench:{key}" for scope, key in KEYS.items()},
        "BRIDGE_DATABASE_URL": f"sqlite:///{folder}/bridge.db",
        "BRIDGE_LOG_LEVEL": "warning",
        **{name: str(value) for name, value in settings.items()},
    }


def pause_delivery(folder: Path, sessionm: str) -> None:
    """`bridge queue pause`; it takes effect within two seconds."""
    _queue("pause", folder, sessionm)


def resume_delivery(folder: Path, sessionm: str) -> None:
    """`bridge queue resume`."""
    _queue("resume", folder, sessionm)


def _queue(command: str, folder: Path, sessionm: str) -> None:
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "bridge", "queue", command],
        cwd=folder,
        env={**os.environ, **environment(folder, sessionm)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def set_fault(sessionm: Process, **fault: Any) -> None:
    """Set a fault of the sandbox, for example ``latency_ms=100``."""
    request(sessionm, "POST", "/sandbox/faults", body=json.dumps(fault))


def written(sessionm: Process) -> int:
    """Return the number of tag writes that the sandbox has received."""
    counts = json.loads(request(sessionm, "GET", "/sandbox/calls?limit=0"))["counts"]
    return int(counts.get("tags_write", 0))


def request(process: Process, method: str, path: str, key: str = "", body: str = "") -> bytes:
    """Send a request and return the body of the answer.

    Raises:
        UnexpectedAnswerError: the status is not 2xx.
    """
    code, read = _exchange(process, method, path, key, body)
    if code // 100 != 2:
        raise UnexpectedAnswerError(f"{method} {path}: {code} {read[:200]!r}")
    return read


def status(process: Process, method: str, path: str, key: str = "", body: str = "") -> int:
    """Send a request and return the status of the answer."""
    return _exchange(process, method, path, key, body)[0]


class UnexpectedAnswerError(Exception):
    """The status of an answer is not 2xx."""


def _exchange(process: Process, method: str, path: str, key: str, body: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, process.port, timeout=30)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if body:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
