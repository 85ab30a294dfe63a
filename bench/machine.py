"""The machine and the versions of everything that is measured."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

from bench.peers import PYTHON, TOOLS

BRIDGE = ("gunicorn", "uvicorn", "uvloop", "httptools", "flask", "sqlalchemy", "requests")
PEERS = ("Flask-Caching", "gunicorn", "Flask")
NODE = ("express", "node-cache")
COMMANDS = {"nginx": "-v", "node": "--version", "wrk": "-v"}


def describe(folder: Path) -> str:
    """Return date, machine and versions as a list in Markdown; *folder* is for the databases."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = {
        "Code": f"{_output(['git', 'describe', '--always', '--dirty']) or 'not from a clone'}, "
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        "Machine": f"{_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB, {file_system(folder)}, "
        f"{platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.1f}",
        "Bridge": ", ".join(
            [
                f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
                *(f"{name} {version}" for name in BRIDGE if (version := _version(name))),
            ]
        ),
        "Peers": ", ".join(f"{n} {v}" for n, v in _peers().items()) or "none installed",
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def file_system(folder: Path) -> str:
    """Return the type of the file system of *folder*, and its device."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    device, _, kind, *_ = max(around, key=lambda mount: len(mount[1]))
    return f"{kind} on {device}"


def _cpu() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _peers() -> dict[str, str]:
    found: dict[str, str] = {}
    if PYTHON.exists():
        listed = _output([str(PYTHON), "-m", "pip", "list", "--format", "json"])
        versions = {package["name"]: package["version"] for package in json.loads(listed or "[]")}
        found |= {name: versions[name] for name in PEERS if name in versions}
    for name in NODE:
        package = TOOLS / "node_modules" / name / "package.json"
        if package.exists():
            found[name] = json.loads(package.read_text())["version"]
    for name, option in COMMANDS.items():
        if path := shutil.which(name):
            version = re.search(r"\d+(\.\d+)+", _output([path, option]))
            found[name] = version[0] if version else "?"
    return found


def _output(command: list[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return (ended.stdout + ended.stderr).strip()
