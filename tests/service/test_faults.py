"""Faults of the store: full, locked, read-only, broken, gone. Real ones, on real processes."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeService, Service, eventually


def need_root(to: str) -> None:
    """Skip on a user's machine what only root can try; the checks of a change skip nothing."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{to} needs root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    need_root("mounting a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def send(service: Service, number: int) -> int:
    return service.webhook(user_id=ALICE, braze_campaign_id=f"c{number}").status_code


def is_ready(service: Service) -> bool:
    return requests.get(f"{service.url}/readyz", timeout=20).ok


def tags_of(sandbox: SandboxServer) -> set[str]:
    return set(sandbox.sandbox.tags(ALICE))


def test_a_full_disk_is_503_and_what_was_accepted_is_delivered(
    make_service: MakeService, sandbox: SandboxServer, small_disk: Path
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    service = make_service(BRIDGE_DATABASE_URL=f"sqlite:///{small_disk}/bridge.db")
    assert send(service, 0) == 202
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    sent = [service.webhook(user_id=ALICE, braze_campaign_id=f"c{n}") for n in range(1, 40)]
    answers = {number: answer.status_code for number, answer in enumerate(sent, 1)}
    # SQLite finds a little room again now and then.
    assert set(answers.values()) <= {202, 503}
    refused = next(answer for answer in sent if answer.status_code == 503)
    assert refused.json()["errors"]["code"] == "store_unavailable"
    assert int(refused.headers["Retry-After"]) > 0
    assert requests.post(
        f"{service.url}/webhooks/braze",
        data="{",
        headers={"Authorization": "Bearer the-webhook-secret"},
        timeout=20,
    ).status_code in {400, 503}
    ready = requests.get(f"{service.url}/readyz", timeout=20)
    assert ready.status_code == 503
    assert "full" in ready.text
    health = service.health()
    assert health["status"] == "down"
    assert "full" in " ".join(health["reasons"])
    filler.unlink()
    sandbox.sandbox.set_faults({})
    eventually(lambda: is_ready(service))
    assert send(service, 99) == 202
    accepted = {f"braze_campaign_c{n}" for n, status in answers.items() if status == 202}
    refused_tags = {f"braze_campaign_c{n}" for n, status in answers.items() if status == 503}
    arrived = accepted | {"braze_campaign_c0", "braze_campaign_c99"}
    eventually(lambda: arrived <= tags_of(sandbox), 60)
    assert not refused_tags & tags_of(sandbox)


def test_a_file_that_may_not_grow_is_503_until_it_may(
    service: Service, sandbox: SandboxServer
) -> None:
    assert send(service, 0) == 202
    eventually(lambda: "braze_campaign_c0" in tags_of(sandbox))
    limit_file_size(service, "0")
    assert send(service, 1) == 503
    assert service.health()["status"] == "down"
    limit_file_size(service, "unlimited")
    assert send(service, 2) == 202
    eventually(lambda: "braze_campaign_c2" in tags_of(sandbox), 20)


def limit_file_size(service: Service, size: str) -> None:
    """Let no process of *service* write beyond *size* of any file (RLIMIT_FSIZE)."""
    assert service.process
    for pid in (service.process.pid, *service.children()):
        subprocess.run(["prlimit", f"--fsize={size}:", "--pid", str(pid)], check=True)


def test_a_database_that_is_locked_for_long_is_503_and_then_goes_on(
    service: Service, sandbox: SandboxServer, tmp_path: Path
) -> None:
    assert send(service, 0) == 202
    other = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert send(service, 1) == 503
    assert send(service, 2) == 503
    assert time.monotonic() - began < 60
    warm = service.lookup("tags", user_id=ALICE)
    assert (warm.status_code, warm.json()["status"]) == (200, "ok")
    other.execute("ROLLBACK")
    other.close()
    assert send(service, 3) == 202
    eventually(lambda: {"braze_campaign_c0", "braze_campaign_c3"} <= tags_of(sandbox), 30)


def test_a_broken_file_at_the_start_is_503_until_it_is_taken_away(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    broken = tmp_path / "bridge.db"
    broken.write_bytes(b"this is no database\n" * 1000)
    service = make_service(wait=False)
    eventually(lambda: healthz(service), 20)
    assert send(service, 1) == 503
    assert requests.get(f"{service.url}/readyz", timeout=20).status_code == 503
    assert "database" in " ".join(service.health()["reasons"])
    assert broken.read_bytes().startswith(b"this is no database")
    broken.rename(tmp_path / "broken.db")
    assert eventually(lambda: send(service, 2) == 202)
    eventually(lambda: "braze_campaign_c2" in tags_of(sandbox), 30)


def healthz(service: Service) -> bool:
    try:
        return requests.get(f"{service.url}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_a_file_that_is_taken_away_is_not_written_to_any_more(
    service: Service, sandbox: SandboxServer, tmp_path: Path
) -> None:
    """What is accepted after it must be in the file that a restart will find."""
    assert send(service, 0) == 202
    eventually(lambda: "braze_campaign_c0" in tags_of(sandbox))
    sandbox.sandbox.set_faults({"status": 503})
    # At one moment, so that what takes its place is not taken away in half.
    assert service.process
    os.killpg(service.process.pid, signal.SIGSTOP)
    for path in tmp_path.glob("bridge.db*"):
        if path.suffix in {".db", ".db-wal", ".db-shm"}:
            path.unlink()
    os.killpg(service.process.pid, signal.SIGCONT)
    assert eventually(lambda: send(service, 1) == 202)
    service.kill()
    sandbox.sandbox.set_faults({})
    service.start()
    eventually(lambda: "braze_campaign_c1" in tags_of(sandbox), 30)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """The database file, which may be read and not written until it is unmounted."""
    need_root("mounting a file read-only")
    path = tmp_path / "bridge.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
    yield path
    subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL)


def test_a_file_that_may_not_be_written_is_503_until_it_may(
    read_only: Path, make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service(wait=False)
    eventually(lambda: healthz(service), 20)
    assert send(service, 1) == 503
    assert "readonly" in " ".join(service.health()["reasons"])

    def is_unmounted() -> bool:
        # The service tries again and again, and has the file open as long as a try takes.
        command = ["umount", str(read_only)]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    eventually(is_unmounted)
    eventually(lambda: send(service, 2) == 202)
    eventually(lambda: "braze_campaign_c2" in tags_of(sandbox), 30)
