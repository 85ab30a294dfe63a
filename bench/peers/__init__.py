"""Peers: what a user could run instead of the bridge, and how each is started.

The peers in this folder do what is usual for their kind: they check the key, cache or store, and
answer. Their environment: ``UPSTREAM`` (SessionM's base URL), ``UPSTREAM_AUTH`` (SessionM's
``Authorization``), ``UPSTREAM_KEY``, ``SECRET`` (the key that callers need), ``DATA`` (a folder on
disk), ``PORT``.
"""

import base64
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.processes import HOST, Process, free_port
from bridge.sandbox import Credentials

HERE = Path(__file__).parent
TOOLS = HERE.parent / ".peers"
PYTHON = TOOLS / "venv" / "bin" / "python"
WORKERS = 2
SETUP = "not installed: run bench/setup"

Start = Callable[[Path], Process]


def hello(body: bytes) -> Start:
    """The bridge's version of gunicorn, which answers *body* without any work."""

    def start(folder: Path) -> Process:
        (folder / "body").write_bytes(body)
        environment = {"BODY": str(folder / "body")}
        return _gunicorn(Path(sys.executable), "hello:asgi", folder, environment, 1, "asgi")

    return start


def flask(application: str, sessionm: str, secret: str, *, threads: int) -> Start:
    """A Flask application of this folder under gunicorn with threads."""

    def start(folder: Path) -> Process:
        environment = _environment(folder, sessionm, secret)
        return _gunicorn(PYTHON, f"{application}:app", folder, environment, threads)

    return start


def node(script: str, sessionm: str, secret: str) -> Start:
    """A script of this folder, which starts two processes by Node's cluster module."""

    def start(folder: Path) -> Process:
        port = free_port()
        environment = {**_environment(folder, sessionm, secret), "PORT": str(port)}
        command = [_which("node"), str(HERE / script)]
        return Process(command, port=port, folder=folder, environment=environment)

    return start


def nginx(sessionm: str, secret: str) -> Start:
    """Two workers of nginx with proxy_cache."""

    def start(folder: Path) -> Process:
        port = free_port()
        config = folder / "nginx.conf"
        host, _, upstream_port = sessionm.removeprefix("http://").partition(":")
        values = {
            **_environment(folder, sessionm, secret),
            "PORT": str(port),
            "UPSTREAM_HOST": host,
            "UPSTREAM_PORT": upstream_port,
        }
        text = (HERE / config.name).read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        config.write_text(text)
        return Process([_which("nginx"), "-c", str(config)], port=port, folder=folder)

    return start


def lacks(*needed: str) -> str:
    """Return which of the *needed* packages and commands are missing; "" if none is.

    A name with ``py:`` is a Python package, one with ``npm:`` a Node package, else a command.
    """
    missing = [name for name in needed if not _has(name)]
    return f"{', '.join(name.split(':')[-1] for name in missing)} {SETUP}" if missing else ""


def _has(name: str) -> bool:
    kind, _, package = name.rpartition(":")
    if kind == "py":
        return any((TOOLS / "venv").glob(f"lib/python*/site-packages/{package}"))
    if kind == "npm":
        return (TOOLS / "node_modules" / package).is_dir() and _has("node")
    return bool(_which(name))


def _which(name: str) -> str:
    # Debian's servers are not in the path of an ordinary user.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or ""


def _gunicorn(
    python: Path,
    application: str,
    folder: Path,
    environment: Mapping[str, str],
    threads: int,
    worker: str = "gthread",
) -> Process:
    port = free_port()
    command = [str(python), "-m", "gunicorn", "--chdir", str(HERE), "--bind", f"{HOST}:{port}"]
    command += ["--workers", str(WORKERS), "--worker-class", worker, "--threads", str(threads)]
    # Without --reuse-port most connections often land on one worker.
    command += ["--reuse-port", "--keep-alive", "75", "--no-control-socket"]
    command += ["--log-level", "error", application]
    return Process(command, port=port, folder=folder, environment=environment, listeners=WORKERS)


def _environment(folder: Path, sessionm: str, secret: str) -> dict[str, str]:
    credentials = Credentials()
    pair = f"{credentials.core_key}:{credentials.core_secret}".encode()
    return {
        "UPSTREAM": sessionm,
        "UPSTREAM_KEY": credentials.core_key,
        "UPSTREAM_AUTH": f"Basic {base64.b64encode(pair).decode()}",
        "SECRET": secret,
        "DATA": str(folder),
        "NODE_PATH": str(TOOLS / "node_modules"),
        "NODE_ENV": "production",
    }
