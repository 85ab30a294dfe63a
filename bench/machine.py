"""Where, when and on what was measured."""

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

OURS = ("gunicorn", "uvloop", "gunicorn_h1c", "flask", "sqlalchemy", "requests")
PEERS = ("Flask-Caching", "huey", "gunicorn", "Flask")
NODE = ("express", "node-cache", "node-red")
COMMANDS = {"nginx": "-v", "varnishd": "-V", "node": "--version", "wrk": "-v"}


def describe(folder: Path) -> str:
    """Date, machine and versions, as a list in Markdown; *folder* holds the databases."""
    lines = {
        "Date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "Code": _said(["git", "describe", "--always", "--dirty"]) or "not from a clone",
        "Processor": f"{_cpu()}, {os.cpu_count()} cores",
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "Kernel": f"{platform.system()} {platform.release()}",
        "Busy with other things": f"{os.getloadavg()[0]:.1f} processes when this began",
        "File system of the databases": file_system(folder),
        "Python": f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "The bridge runs on": ", ".join(f"{n} {v}" for n in OURS if (v := _version(n))),
        "Peers": ", ".join(f"{n} {v}" for n, v in _peers().items()) or "none installed",
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def file_system(folder: Path) -> str:
    """The type of file system that *folder* is on, and its device."""
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
        told = _said([str(PYTHON), "-m", "pip", "list", "--format", "json"])
        versions = {each["name"]: each["version"] for each in json.loads(told or "[]")}
        found |= {name: versions[name] for name in PEERS if name in versions}
    for name in NODE:
        package = TOOLS / "node_modules" / name / "package.json"
        if package.exists():
            found[name] = json.loads(package.read_text())["version"]
    for name, option in COMMANDS.items():
        if path := shutil.which(name):
            version = re.search(r"\d+(\.\d+)+", _said([path, option]))
            found[name] = version[0] if version else "?"
    return found


def _said(command: list[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return (ended.stdout + ended.stderr).strip()
