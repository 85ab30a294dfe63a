"""The bridge and its SessionM, started as a user starts them."""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.processes import HOST, Process, free_port
from bridge.sessionm.sandbox import Credentials

KEYS = {scope: f"the-{scope}-secret" for scope in ("webhook", "content", "admin")}
WORKERS = 2
NICE = ("nice", "-n", "10")
# Whoever is asked for is a customer, with two tags.
SEED = {"any_customer": True, "new_customer": {"tags": {"vip": {"ttl": 2592000}, "newsletter": 3}}}


def sandbox(folder: Path) -> Process:
    """`bridge sandbox`.

    SessionM runs elsewhere: where the processors do not suffice, it gives way to what is measured.
    """
    seed = folder / "seed.json"
    seed.write_text(json.dumps(SEED))
    port = free_port()
    return Process(
        [
            *NICE,
            sys.executable,
            "-m",
            "bridge",
            "sandbox",
            "--port",
            f"{port}",
            "--seed",
            f"{seed}",
        ],
        port=port,
        folder=folder,
        path="/sandbox/calls?limit=0",
    )


def bridge(folder: Path, sessionm: str, *, workers: int = WORKERS, **settings: object) -> Process:
    """`bridge serve` on the database in *folder*, before the SessionM at that URL."""
    port = free_port()
    return Process(
        [
            sys.executable,
            "-m",
            "bridge",
            "serve",
            "--bind",
            f"{HOST}:{port}",
            "--workers",
            str(workers),
        ],
        port=port,
        folder=folder,
        environment=environment(
            folder, sessionm, BRIDGE_PUBLIC_URL=f"http://{HOST}:{port}", **settings
        ),
        ready=200,
        listeners=workers,
    )


def environment(folder: Path, sessionm: str, **settings: object) -> dict[str, str]:
    """What the bridge is told; *settings* are named as in the README."""
    return {
        **Credentials().environment(sessionm),
        **{f"BRIDGE_{scope.upper()}_KEYS": f"bench:{key}" for scope, key in KEYS.items()},
        "BRIDGE_DATABASE_URL": f"sqlite:///{folder}/bridge.db",
        "BRIDGE_LOG_LEVEL": "warning",
        **{name: str(value) for name, value in settings.items()},
    }


def pause_delivery(folder: Path, sessionm: str) -> None:
    """`bridge queue pause`; the loop hears of it within two seconds."""
    _queue("pause", folder, sessionm)


def resume_delivery(folder: Path, sessionm: str) -> None:
    """`bridge queue resume`."""
    _queue("resume", folder, sessionm)


def _queue(order: str, folder: Path, sessionm: str) -> None:
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "bridge", "queue", order],
        cwd=folder,
        env={**os.environ, **environment(folder, sessionm)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def misbehave(sessionm: Process, **fault: Any) -> None:
    """Set the sandbox's fault, such as ``latency_ms=100``."""
    ask(sessionm, "POST", "/sandbox/faults", body=json.dumps(fault))


def written(sessionm: Process) -> int:
    """How many tag writes the sandbox has been sent."""
    counts = json.loads(ask(sessionm, "GET", "/sandbox/calls?limit=0"))["counts"]
    return int(counts.get("tags_write", 0))


def called(sessionm: Process) -> int:
    """How many calls of any kind the sandbox has been sent."""
    counts = json.loads(ask(sessionm, "GET", "/sandbox/calls?limit=0"))["counts"]
    return sum(map(int, counts.values()))


def waiting(process: Process) -> int:
    """How many writes wait for SessionM, by `/health`."""
    health = json.loads(ask(process, "GET", "/health", KEYS["admin"]))
    return int(health["checks"]["delivery"]["queued"])


def ask(process: Process, method: str, path: str, key: str = "", body: str = "") -> bytes:
    """The answer's body; anything but 2xx is a `UnexpectedAnswerError`."""
    status, read = _exchange(process, method, path, key, body)
    if status // 100 != 2:
        raise UnexpectedAnswerError(f"{method} {path}: {status} {read[:200]!r}")
    return read


def status(process: Process, method: str, path: str, key: str = "", body: str = "") -> int:
    """The answer's status."""
    return _exchange(process, method, path, key, body)[0]


class UnexpectedAnswerError(Exception):
    """A service answered otherwise than it ought to."""


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
