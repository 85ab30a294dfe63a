"""Repeats of a lookup, answered before Flask: everything that holds for lookups holds for them."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from bridge.lookups.customer import Repeatable
from bridge.parts import parts_of
from bridge.sessionm.sandbox import SandboxServer
from bridge.web.fastlane import FastLane, Offer
from tests.conftest import ALICE, KEYS, MakeApp, MakeService, Service, bearer, eventually

TAGS = f"/connected-content/tags?user_id={ALICE}"
CONTENT = bearer("content")


class Connection:
    """One kept-alive connection, and so one worker."""

    def __init__(self, service: Service) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)

    def get(self, target: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        self._http.request("GET", target, headers={**CONTENT, **headers})
        answer = self._http.getresponse()
        return answer, answer.read()

    def tags(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(TAGS)[1])
        return found

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Service], Connection]]:
    made: list[Connection] = []

    def connect(service: Service) -> Connection:
        made.append(Connection(service))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


Connect = Callable[[Service], Connection]


@contextmanager
def connections(service: Service, number: int) -> Iterator[list[Connection]]:
    """So many connections that each worker has some; the lookup is repeated on all of them."""
    made = [Connection(service) for _ in range(number)]
    for connection in made * 3:
        assert connection.get(TAGS)[0].status == 200
    yield made
    for connection in made:
        connection.close()


def send(service: Service, **fields: Any) -> requests.Response:
    return service.webhook(user_id=ALICE, **fields)


def test_a_repeat_is_what_flask_has_answered(connect: Connect, service: Service) -> None:
    connection = connect(service)
    first, body = connection.get(TAGS)
    again, same = connection.get(TAGS)
    assert (again.status, again.reason) == (200, "OK")
    assert json.loads(body) == json.loads(same)
    assert {name.lower() for name in again.headers} == {name.lower() for name in first.headers}
    for name in ("Content-Type", "Cache-Control", "ETag"):
        assert again.getheader(name) == first.getheader(name)
    assert "; hit; ttl=" in (again.getheader("Cache-Status") or "")
    assert again.getheader("X-Request-Id") != first.getheader("X-Request-Id")


def test_a_repeat_is_answered_while_flask_has_no_thread_left(
    connect: Connect, make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "1", "--threads", "1")
    with connections(service, 2) as open_ones:
        sandbox.sandbox.set_faults({"latency_ms": 3000})
        slow = connect(service)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(slow.get, "/connected-content/tags?user_id=another")
            time.sleep(0.3)
            began = time.monotonic()
            for connection in open_ones:
                assert connection.get(TAGS)[0].status == 200
            assert not held.done()
            assert time.monotonic() - began < 1
            assert held.result()[0].status == 200


def test_no_worker_repeats_what_was_before_a_delivered_write(make_service: MakeService) -> None:
    service = make_service("--workers", "3")
    with connections(service, 12) as open_ones:
        for number in range(5):
            delivered = requests.post(
                f"{service.url}/webhooks/braze?wait=20",
                json={"user_id": ALICE, "tags": [f"new-{number}"], "ttl": 600},
                headers=bearer("webhook"),
                timeout=30,
            )
            assert delivered.json()["status"] == "delivered"
            for connection in open_ones:
                assert f"new-{number}" in connection.tags()["names"]
        for connection in open_ones:
            eventually(lambda: not connection.tags()["pending"])  # noqa: B023 - called at once
            assert f"new-{number}" in connection.tags()["expires"]


def test_every_worker_shows_at_once_what_was_accepted(make_service: MakeService) -> None:
    service = make_service("--workers", "3", BRIDGE_SESSIONM_RPS="0.02")
    admin = bearer("admin")
    with connections(service, 12) as open_ones:
        for number in range(5):
            accepted = send(service, tags=[f"mine-{number}"], ttl=600)
            assert accepted.status_code == 202
            for connection in open_ones:
                assert f"mine-{number}" in connection.tags()["pending"]
        gone = f"{service.url}/api/events/{accepted.json()['id']}"
        requests.delete(gone, headers=admin, timeout=10)
        for connection in open_ones:
            assert "mine-4" not in connection.tags()["pending"]


def test_a_repeat_needs_the_key_and_the_address(
    connect: Connect, make_service: MakeService
) -> None:
    service = make_service(
        "--workers", "1", BRIDGE_ALLOWED_IPS="10.0.0.0/8", BRIDGE_TRUSTED_PROXIES="1"
    )
    connection = connect(service)
    braze = {"X-Forwarded-For": "10.1.1.1"}
    for _ in range(3):
        assert connection.get(TAGS, **braze)[0].status == 200

    def status(**headers: str) -> int:
        return connection.get(TAGS, **{**braze, **headers})[0].status

    assert status(Authorization="") == 401
    assert status(Authorization="Bearer guessed") == 401
    assert status(Authorization=f"Bearer {KEYS['webhook']}") == 403
    assert status(**{"X-Forwarded-For": "192.0.2.1"}) == 403
    assert status(**{"X-Forwarded-For": "10.1.1.1, 192.0.2.1"}) == 403
    assert status(**{"X-Forwarded-For": ""}) == 403
    for _ in range(2):
        assert status() == 200
        assert status(**{"X-Forwarded-For": "192.0.2.1, 10.1.1.1"}) == 200


def test_a_repeat_tells_its_age_and_ends_with_its_freshness(
    connect: Connect, make_service: MakeService
) -> None:
    service = make_service("--workers", "1", BRIDGE_TAGS_MAX_AGE="3")
    connection = connect(service)
    connection.get(TAGS)
    ages = set()
    until = time.monotonic() + 6
    while time.monotonic() < until:
        answer, body = connection.get(TAGS)
        told = json.loads(body)
        assert answer.getheader("Age") == str(told["age"])
        assert int(answer.getheader("Content-Length") or 0) == len(body)
        if "; hit" in (answer.getheader("Cache-Status") or "") and not told["stale"]:
            ages.add(told["age"])
        time.sleep(0.05)
    assert ages == {0, 1, 2}


def test_who_has_it_already_is_told_so(connect: Connect, service: Service) -> None:
    connection = connect(service)
    etag = connection.get(TAGS)[0].getheader("ETag") or ""
    for asked in (etag, etag, f'W/"other", {etag}', "*"):
        answer, body = connection.get(TAGS, **{"If-None-Match": asked})
        assert (answer.status, body) == (304, b"")
        assert answer.getheader("ETag") == etag
        assert answer.getheader("Age") is not None
        assert answer.getheader("Content-Type") is None
    for asked in ('W/"other"', "nonsense"):
        assert connection.get(TAGS, **{"If-None-Match": asked})[0].status == 200
    assert connection.get(TAGS, **{"If-Match": '"other"'})[0].status == 412


def test_a_repeat_has_the_name_that_it_is_given(connect: Connect, service: Service) -> None:
    connection = connect(service)
    for _ in range(3):
        answer, _ = connection.get(TAGS, **{"X-Request-Id": "braze:1"})
        assert answer.getheader("X-Request-Id") == "braze:1"
        answer, _ = connection.get(TAGS, **{"X-Request-Id": "no name\tat all"})
        assert "no" not in (answer.getheader("X-Request-Id") or "no")


def test_repeats_are_counted(connect: Connect, make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    connection = connect(service)
    for _ in range(10):
        connection.get(TAGS)
    told = service.health()["checks"]["cache"]
    assert (told["lookups"], told["hit"], told["hit_ratio"]) == (10, 9, 0.9)


def test_sessionms_own_path_is_repeated_too(
    connect: Connect, make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "1", "--threads", "1")
    connection = connect(service)
    path = f"/priv/v1/apps/bridge/users/{ALICE}/tags"
    first = connection.get(path)[1]
    assert json.loads(first)["status"] == "ok"
    assert connection.get(path)[1] == first
    send(service, tags=["vip2"], ttl=600)
    eventually(lambda: b"vip2" in connection.get(path)[1])
    sandbox.sandbox.set_faults({"status": 500})
    assert connection.get(path)[0].status == 200


def test_idle_and_busy_connections_end_with_their_worker(service: Service) -> None:
    """Repeats keep a connection open, and a worker that is to end does not wait for it."""
    with connections(service, 8) as open_ones:
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 10
        with pytest.raises((http.client.HTTPException, OSError)):
            open_ones[0].get(TAGS)


def test_the_lane_keeps_no_more_than_it_may(make_app: MakeApp) -> None:
    app = make_app()
    lane = FastLane(app, entries=2)
    now = time.time()
    valid = [True]
    repeat = Repeatable(now, now + 60, now + 60, lambda: valid[0])
    offer = Offer(repeat, (b'{"age":', b"}"), now, "content", "content", "/r", "key")
    for target in (b"/1", b"/2", b"/3"):
        lane.keep(target, [], "127.0.0.1", offer, [(b"etag", b'W/"1"'), (b"cache-status", b"x")])
    kept = {t: lane.repeat(t, [], "127.0.0.1") is not None for t in (b"/1", b"/2", b"/3")}
    assert kept == {b"/1": False, b"/2": True, b"/3": True}
    assert lane.repeat(b"/3", [], "127.0.0.2") is None
    assert lane.repeat(b"/3", [(b"range", b"bytes=1-2")], "127.0.0.1") is None
    assert parts_of(app).telemetry.minutes(now)[-1].count("lookups_hit") == 2
    valid[0] = False
    assert lane.repeat(b"/3", [], "127.0.0.1") is None


def test_requests_behind_each_other_are_all_answered_in_order(
    connect: Connect, service: Service
) -> None:
    """Repeats, others and a webhook in one go, then the sender closes its side."""
    connection = connect(service)
    for _ in range(2):
        connection.get(TAGS)
    key = f"Authorization: Bearer {KEYS['content']}\r\n"
    body = b'{"user_id":"x","tags":["y"],"ttl":60}'
    tags = f"GET {TAGS} HTTP/1.1\r\nHost: b\r\n{key}X-Request-Id: %s\r\n\r\n"
    webhook = (
        f"POST /webhooks/braze HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEYS['webhook']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-Request-Id: %s\r\n\r\n"
    )
    asked = b"".join(
        [
            *((tags % f"r{number}").encode() for number in range(5)),
            (webhook % "r5").encode() + body,
            *((tags % f"r{number}").encode() for number in range(6, 9)),
        ]
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sender:
        sender.sendall(asked)
        sender.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sender.recv(65536):
            answer += piece
    names = [
        line.split(b": ")[1] for line in answer.lower().split(b"\r\n") if b"x-request-id" in line
    ]
    assert names == [f"r{number}".encode() for number in range(9)]
    assert answer.count(b"HTTP/1.1 200 OK") == 8
    assert answer.count(b"HTTP/1.1 202 Accepted") == 1
