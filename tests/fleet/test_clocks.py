"""Bridges whose clocks differ: the database's clock decides, and who is off is named."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridge.outbox.model import State
from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from tests.conftest import (
    ALICE,
    MakeApp,
    MakeService,
    Service,
    bearer,
    environment,
    eventually,
    post,
    rows,
    stored_state,
)
from tests.postgres import fresh_database

APART = 300.0
SetApart = Callable[[float], Path]


@pytest.fixture
def database() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
def set_apart(tmp_path: Path) -> SetApart:
    """Makes a file for `BRIDGE_TEST_CLOCK`, for a machine whose clock is ahead by seconds."""

    def make(seconds: float) -> Path:
        path = tmp_path / f"clock{seconds:+.0f}"
        path.write_text(str(seconds))
        return path

    return make


def tag_writes(sandbox: SandboxServer) -> dict[str, Any]:
    """The TTL with which each tag was sent."""
    calls = sandbox.sandbox.calls(method="POST", match="/tags$")
    return {tag: call["body"]["ttl"] for call in calls for tag in call["body"]["tags"]}


def is_delivered(parts: Parts, event: str) -> bool:
    return stored_state(parts.store, event) is State.DELIVERED


def age(database: str, event: str) -> float:
    """Seconds since an event was accepted, as the database sees it."""
    aged = "extract(epoch FROM clock_timestamp()) - received_at"
    [[seconds]] = rows(database, f"SELECT {aged} FROM events WHERE id = '{event}'")  # noqa: S608
    return float(seconds)


@pytest.mark.parametrize("delivers", ["early", "late"])
def test_the_databases_clock_decides(
    make_app: MakeApp,
    make_service: MakeService,
    sandbox: SandboxServer,
    set_apart: SetApart,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    delivers: str,
) -> None:
    """One bridge of each kind, ten minutes apart; either of them delivers what the other takes."""
    ahead = APART if delivers == "early" else -APART
    deliverer: Service = make_service("--workers", "1", BRIDGE_TEST_CLOCK=str(set_apart(ahead)))
    eventually(lambda: deliverer.health()["checks"]["delivery"]["state"] == "running", 30)
    monkeypatch.setenv("BRIDGE_TEST_CLOCK", str(set_apart(-ahead)))
    app = make_app()
    client, parts = app.test_client(), parts_of(app)
    for event in (
        str(post(client, tags=["other"], ttl=120).get_json()["id"]),
        str(deliverer.webhook(user_id=ALICE, tags=["own"], ttl=120).json()["id"]),
    ):
        eventually(partial(is_delivered, parts, event), 30)
        assert abs(age(database, event)) < 60
    assert tag_writes(sandbox) == {"other": 120, "own": 120}
    host = socket.gethostname()

    def here() -> Any:
        return client.get("/health", headers=bearer("admin")).get_json()

    for look in (deliverer.health, here):
        # Either loop may have begun a moment ago.
        eventually(lambda look=look: not [r for r in look()["reasons"] if "Delivery" in r], 30)  # type: ignore[misc]
        health = look()
        assert health["checks"]["delivery"]["state"] == "running"
        assert health["status"] == "degraded"
        [named] = [r for r in health["reasons"] if "clock" in r]
        assert re.search(rf"The clock of {host} is 300(\.\d)? seconds", named)
        assert host in health["checks"]["clocks"]["bridges"]


def test_a_bridge_names_another_ones_clock(
    make_app: MakeApp, make_service: MakeService, set_apart: SetApart
) -> None:
    late = make_service("--workers", "1", BRIDGE_TEST_CLOCK=str(set_apart(-APART)))
    client = make_app().test_client()

    def reasons() -> list[str]:
        answer = client.get("/health", headers=bearer("admin")).get_json()
        return [reason for reason in answer["reasons"] if "clock" in reason]

    [named] = eventually(reasons, 30)
    assert re.search(r"is 300(\.\d)? seconds behind the database's", named)
    late.stop()


def test_check_names_a_clock_that_differs(
    make_app: MakeApp, database: str, sandbox: SandboxServer, set_apart: SetApart, tmp_path: Path
) -> None:
    make_app()

    def findings(seconds: float) -> dict[str, dict[str, Any]]:
        more = {
            "BRIDGE_DATABASE_URL": database,
            "BRIDGE_TEST_CLOCK": str(set_apart(seconds)),
        }
        done = subprocess.run(
            [sys.executable, "-m", "bridge", "check", "--json"],
            env={**os.environ, **environment(sandbox.url, tmp_path, **more)},
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return {line["name"]: line for line in json.loads(done.stdout)["checks"]}

    assert findings(0)["clock"]["ok"]
    off = findings(-APART)["clock"]
    assert not off["ok"]
    assert "300 seconds behind the database's" in off["result"]
    assert "NTP" in off["remedy"]
