"""The database's files on one machine: locked by others, private, and no larger than needed."""

import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from bridge.application import build
from bridge.lookups.cache import CacheKey
from bridge.sandbox import SandboxServer
from bridge.settings import load
from bridge.shared import MIGRATIONS
from bridge.storage.sqlite import LOG_PAGES, PAGE, SQLite
from tests.conftest import ALICE, MakeService, Service, bearer, environment, eventually, machine_lag

HOLD = """
import sqlite3, sys
databases = [sqlite3.connect(path, isolation_level=None) for path in sys.argv[1:]]
for one in databases:
    one.execute("PRAGMA busy_timeout=10000")
    one.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(*databases: Path) -> Iterator[None]:
    """Another process has the write locks of *databases*."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *databases],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate("")


def seconds_of(service: Service, path: str, scope: str) -> tuple[float, requests.Response]:
    began = time.monotonic()
    answer = requests.get(f"{service.url}{path}", headers=bearer(scope), timeout=30)
    return time.monotonic() - began, answer


def is_hit(service: Service, path: str) -> bool:
    return "; hit" in seconds_of(service, path, "content")[1].headers["Cache-Status"]


def test_a_lock_on_the_databases_holds_up_neither_hits_nor_pages(
    make_service: MakeService, tmp_path: Path
) -> None:
    # On a busy machine an answer may come after the usual deadline, which is not asked here.
    service = make_service(BRIDGE_LOOKUP_DEADLINE="10")
    assert service.webhook(user_id=ALICE, braze_campaign_id="summer").status_code == 202
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0)
    hit = f"/connected-content/tags?user_id={ALICE}"
    eventually(lambda: all(is_hit(service, hit) for _ in range(8)))
    database = tmp_path / "bridge.db"
    with (
        held(database, database.with_name("bridge.db.cache")),
        ThreadPoolExecutor(4) as others,
        machine_lag() as lag,
    ):
        webhooks = [
            others.submit(service.webhook, user_id=ALICE, braze_campaign_id=f"c{number}")
            for number in range(4)
        ]
        misses = [seconds_of(service, f"{hit}-{number % 3}", "content") for number in range(12)]
        assert max(seconds for seconds, _ in misses) < 1.5 + 2 * lag.worst
        assert {answer.json()["status"] for _, answer in misses} == {"not_found"}
        for _ in range(12):
            seconds, answer = seconds_of(service, hit, "content")
            assert (answer.status_code, answer.json()["status"]) == (200, "ok")
            assert seconds < 0.5 + 2 * lag.worst
            for path in ("/health", "/dashboard", "/readyz"):
                seconds, answer = seconds_of(service, path, "admin")
                assert seconds < 2.5 + 2 * lag.worst, path
        assert answer.status_code == 503
        assert "summer" in seconds_of(service, "/dashboard", "admin")[1].text
        assert {one.result().status_code for one in webhooks} == {503}
    eventually(lambda: service.health()["checks"]["store"]["state"] == "ok")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_what_the_bridge_creates_is_for_its_own_user_alone(
    sandbox: SandboxServer, tmp_path: Path, umask: int
) -> None:
    folder = tmp_path / "new" / "var"
    more = {"BRIDGE_DATABASE_URL": f"sqlite:///{folder}/bridge.db"}
    settings = load(environment(sandbox.url, tmp_path, **more), tmp_path / "none")
    before = os.umask(umask)
    try:
        parts = build(settings)
        assert parts.cache.last_known(CacheKey("tags", "user_id:none")) is None
        parts.telemetry.count("webhooks_accepted")
        parts.telemetry.flush()
        parts.store.ping()
        made = modes(folder)
        parts.close()
    finally:
        os.umask(before)
    assert {"bridge.db", "bridge.db-wal", "bridge.db-shm", "bridge.db.locks"} <= set(made)
    assert set(made.values()) == {0o600}
    assert {stat.S_IMODE(one.stat().st_mode) for one in (folder, folder.parent)} == {0o700}


def test_the_log_shrinks_after_a_long_reader(tmp_path: Path) -> None:
    database = SQLite(f"sqlite:///{tmp_path}/bridge.db", MIGRATIONS, durable=True)
    log = tmp_path / "bridge.db-wal"
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE filler (body BLOB)")
    reader = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM filler").fetchall()
    most = LOG_PAGES * PAGE
    while log.stat().st_size < 2 * most:
        with database.write() as connection:
            connection.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(1000000))")
    reader.close()

    def shrinks() -> bool:
        with database.write() as connection:
            connection.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(1))")
        return log.stat().st_size <= most + PAGE

    eventually(shrinks, 10)
    database.close()


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
