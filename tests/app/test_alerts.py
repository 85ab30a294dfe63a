"""Alerts to a real receiver: from one process, once for one change, never in the way."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bridge import clock
from bridge.ops.alerts import Receiver
from bridge.ops.watch import LEASE, Watch, WatchLease, create
from bridge.parts import parts_of
from bridge.storage.database import Database
from bridge.storage.sqlite import SQLite
from tests.conftest import MakeApp, eventually


class Inbox:
    """A receiver of alerts. *status* is what it answers; without *go* it hangs."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.go = threading.Event()
        self.go.set()
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.go.wait(30)
                inbox.bodies.append(json.loads(body))
                self.send_response(inbox.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_what: object) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/the-secret?sig=1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.go.set()
    made.server.shutdown()
    made.server.server_close()


class Times:
    """A steady clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    made = Times()
    monkeypatch.setattr(clock, "steady", made)
    monkeypatch.setattr(clock, "now", made)
    return made


def watch_of(lease: WatchLease, inbox: Inbox, status: list[str]) -> Watch:
    receiver = Receiver(inbox.url, {})
    return Watch(lease, lambda: (status[0], [{"reason": "R.", "do": "D."}]), receiver, "https://b")


def rounds(watch: Watch, lease: WatchLease, times: Times, seconds: float) -> None:
    """What the thread of one process does in these seconds."""
    for _ in range(round(seconds)):
        if lease.acquire():
            watch.round()
        times.now += 1.0


@pytest.fixture
def figures(tmp_path: Path) -> Iterator[Database]:
    """A database that nobody else watches by."""
    made = SQLite(f"sqlite:///{tmp_path}/figures.db", (create,), durable=False)
    yield made
    made.close()


def test_a_change_that_stays_is_posted_once_with_the_open_incidents(
    figures: Database, inbox: Inbox, times: Times
) -> None:
    lease = WatchLease(figures)
    status = ["ok"]
    watch = watch_of(lease, inbox, status)
    rounds(watch, lease, times, 30)
    assert inbox.bodies == []
    status[0] = "degraded"
    rounds(watch, lease, times, 10)
    status[0] = "ok"
    rounds(watch, lease, times, 25)
    assert inbox.bodies == []
    status[0] = "degraded"
    rounds(watch, lease, times, 40)
    [body] = eventually(lambda: inbox.bodies)
    assert (body["status"], body["was"], body["url"]) == ("degraded", "ok", "https://b")
    assert body["incidents"] == [{"reason": "R.", "do": "D."}]
    rounds(watch, lease, times, 700)
    assert len(inbox.bodies) == 1
    watch.stop()


def test_of_several_processes_one_posts_and_another_takes_over_what_it_knows(
    figures: Database, inbox: Inbox, times: Times
) -> None:
    status = ["degraded"]
    first, second = WatchLease(figures), WatchLease(figures)
    one, two = watch_of(first, inbox, status), watch_of(second, inbox, status)
    for _ in range(40):
        rounds(one, first, times, 1)
        if second.acquire():
            two.round()
    eventually(lambda: len(inbox.bodies) == 1)
    rounds(one, first, times, 1)
    # The first one dies without a word; the other one needs to see that.
    rounds(two, second, times, LEASE - 1)
    assert not second.acquire()
    times.now += 2.0
    assert second.acquire()
    rounds(two, second, times, 60)
    assert len(inbox.bodies) == 1
    status[0] = "ok"
    rounds(two, second, times, 60)
    eventually(lambda: [body["was"] for body in inbox.bodies] == ["ok", "degraded"])
    assert not first.acquire()
    one.stop()
    two.stop()


def test_a_process_that_ends_hands_over_at_once(figures: Database) -> None:
    first, second = WatchLease(figures), WatchLease(figures)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()


def test_a_receiver_that_fails_is_tried_again(
    figures: Database, inbox: Inbox, times: Times
) -> None:
    lease = WatchLease(figures)
    watch = watch_of(lease, inbox, ["degraded"])
    inbox.status = 500
    rounds(watch, lease, times, 25)
    eventually(lambda: inbox.bodies)

    def tries() -> int:
        rounds(watch, lease, times, 1)
        return len(inbox.bodies)

    eventually(lambda: tries() > 2)
    inbox.status = 200
    before = len(inbox.bodies)
    eventually(lambda: tries() > before and not lease.pending.status)
    after = len(inbox.bodies)
    rounds(watch, lease, times, 300)
    assert len(inbox.bodies) == after
    watch.stop()


def test_a_receiver_that_hangs_holds_up_nothing(
    figures: Database, inbox: Inbox, times: Times
) -> None:
    lease = WatchLease(figures)
    watch = watch_of(lease, inbox, ["down"])
    inbox.go.clear()
    rounds(watch, lease, times, 60)
    assert lease.acquire()
    assert inbox.bodies == []
    inbox.go.set()
    eventually(lambda: len(inbox.bodies) == 1)
    watch.stop()


def test_the_status_of_a_real_bridge_is_watched(make_app: MakeApp, inbox: Inbox) -> None:
    """Nothing delivers here, which is posted; the address of the receiver is logged nowhere."""
    parts = parts_of(make_app(BRIDGE_ALERT_URL=inbox.url, BRIDGE_PUBLIC_URL="https://b.acme.com"))
    [body] = eventually(lambda: inbox.bodies, 60)
    assert (body["status"], body["was"]) == ("degraded", "ok")
    assert body["incidents"][0]["code"] == "delivery_stopped"
    assert body["url"] == "https://b.acme.com/dashboard"
    assert "the-secret" not in repr(parts.settings)
