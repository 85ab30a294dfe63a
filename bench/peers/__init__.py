"""What a user would pick instead, each as a user would write it, and how it is started.

The services in this folder do as much of the bridge's work as is usual in their kind: they check
the key, cache or store, and answer. They are told by the environment: ``UPSTREAM`` (SessionM's
base URL), ``UPSTREAM_AUTH`` (its Authorization), ``UPSTREAM_KEY``, ``SECRET`` (the key to ask
for), ``DATA`` (a folder on disk), ``PORT``.
"""

import base64
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.processes import HOST, Process, free_port
from bridge.sessionm.sandbox import Credentials

HERE = Path(__file__).parent
TOOLS = HERE.parent / ".peers"
PYTHON = TOOLS / "venv" / "bin" / "python"
WORKERS = 2
SETUP = "not installed: run bench/setup"

Start = Callable[[Path], Process]


def hello(worker: str, body: bytes) -> Start:
    """The bridge's own gunicorn, answering *body* and doing nothing else."""

    def start(folder: Path) -> Process:
        (folder / "body").write_bytes(body)
        application = "hello:asgi" if worker == "asgi" else "hello:wsgi"
        threads = 1 if worker == "asgi" else 4
        return _gunicorn(Path(sys.executable), application, folder, {}, threads, worker)

    return start


def flask(application: str, sessionm: str, secret: str, *, threads: int) -> Start:
    """A Flask application of this folder under gunicorn's threads."""

    def start(folder: Path) -> Process:
        told = _environment(folder, sessionm, secret)
        return _gunicorn(PYTHON, f"{application}:app", folder, told, threads)

    return start


def node(script: str, sessionm: str, secret: str) -> Start:
    """A script of this folder, which starts two processes by Node's cluster module."""

    def start(folder: Path) -> Process:
        port = free_port()
        told = {**_environment(folder, sessionm, secret), "PORT": str(port)}
        command = [_which("node"), str(HERE / script)]
        return Process(command, port=port, folder=folder, environment=told)

    return start


def node_red(sessionm: str, secret: str) -> Start:
    """Node-RED with the flow of this folder; it is one process by design."""

    def start(folder: Path) -> Process:
        port = free_port()
        shutil.copy(HERE / "node_red_flow.json", folder / "flow.json")
        shutil.copy(HERE / "node_red_settings.js", folder / "settings.js")
        command = [_which("node"), str(TOOLS / "node_modules" / "node-red" / "red.js")]
        return Process(
            [*command, "--userDir", str(folder), "--port", str(port), "flow.json"],
            port=port,
            folder=folder,
            environment=_environment(folder, sessionm, secret),
            # It serves before it has its flow, and asks for the key once it has.
            path="/connected-content/tags",
            ready=401,
        )

    return start


def nginx(sessionm: str, secret: str) -> Start:
    """Two workers of nginx with proxy_cache."""

    def start(folder: Path) -> Process:
        port = free_port()
        config = _filled("nginx.conf", folder, port, sessionm, secret)
        return Process([_which("nginx"), "-c", str(config)], port=port, folder=folder)

    return start


def varnish(sessionm: str, secret: str) -> Start:
    """Varnish with its default threads."""

    def start(folder: Path) -> Process:
        port = free_port()
        config = _filled("varnish.vcl", folder, port, sessionm, secret)
        command = [_which("varnishd"), "-F", "-j", "none", "-n", str(folder / "varnish")]
        command += ["-a", f"{HOST}:{port}", "-f", str(config), "-s", "malloc,256m"]
        return Process(command, port=port, folder=folder)

    return start


def lacks(*needed: str) -> str:
    """Why a peer that needs these cannot run here; "" if it can.

    A name with ``py:`` is a Python package, with ``npm:`` one of Node's, else a command.
    """
    missing = [name for name in needed if not _has(name)]
    return f"{', '.join(name.split(':')[-1] for name in missing)} {SETUP}" if missing else ""


def _has(name: str) -> bool:
    kind, _, package = name.rpartition(":")
    if kind == "py":
        return any((TOOLS / "venv").glob(f"lib/python*/site-packages/{package}"))
    if kind == "npm":
        return (TOOLS / "node_modules" / package).is_dir() and _has("node")
    if kind == "ours":
        return importlib.util.find_spec(package) is not None
    return bool(_which(name))


def _which(name: str) -> str:
    # Debian's servers are outside of an ordinary user's path.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or ""


def _gunicorn(
    python: Path,
    application: str,
    folder: Path,
    told: Mapping[str, str],
    threads: int,
    worker: str = "gthread",
) -> Process:
    port = free_port()
    command = [str(python), "-m", "gunicorn", "--chdir", str(HERE), "--bind", f"{HOST}:{port}"]
    command += ["--workers", str(WORKERS), "--worker-class", worker, "--threads", str(threads)]
    # As the bridge does: without the first all connections often land on one worker.
    command += ["--reuse-port", "--keep-alive", "75", "--no-control-socket"]
    command += ["--log-level", "error", application]
    environment = {"BODY": str(folder / "body"), **told}
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


def _filled(name: str, folder: Path, port: int, sessionm: str, secret: str) -> Path:
    """The configuration *name* with ``@PORT@`` and the like filled in, in *folder*."""
    host, _, upstream_port = sessionm.removeprefix("http://").partition(":")
    told = {**_environment(folder, sessionm, secret), "PORT": str(port)}
    told |= {"UPSTREAM_HOST": host, "UPSTREAM_PORT": upstream_port}
    text = (HERE / name).read_text()
    for key, value in told.items():
        text = text.replace(f"@{key}@", value)
    filled = folder / name
    filled.write_text(text)
    return filled
