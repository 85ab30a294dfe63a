"""The event-loop edge: what holds through Flask holds for what is answered before Flask."""

import http.client
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from bridge.sandbox import Sandbox, SandboxServer, serve
from tests.conftest import (
    ALICE,
    KEYS,
    MakeService,
    Service,
    at_most,
    bearer,
    environment,
    eventually,
    free_port,
)

ROOT = Path(__file__).parents[2]

TAGS = f"/connected-content/tags?user_id={ALICE}"
CONTENT = bearer("content")
JSON = {"Content-Type": "application/json"}
GOOD = {"user_id": ALICE, "tags": ["a"], "ttl": 60}


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
            with at_most(1):
                for connection in open_ones:
                    assert connection.get(TAGS)[0].status == 200
                assert not held.done()
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


def test_a_repeat_has_its_age_and_ends_with_its_freshness(
    connect: Connect, make_service: MakeService
) -> None:
    service = make_service("--workers", "1", BRIDGE_TAGS_MAX_AGE="3")
    connection = connect(service)
    connection.get(TAGS)
    ages = set()
    until = time.monotonic() + 6
    while time.monotonic() < until:
        answer, body = connection.get(TAGS)
        found = json.loads(body)
        assert answer.getheader("Age") == str(found["age"])
        assert int(answer.getheader("Content-Length") or 0) == len(body)
        if "; hit" in (answer.getheader("Cache-Status") or "") and not found["stale"]:
            ages.add(found["age"])
        time.sleep(0.05)
    assert ages == {0, 1, 2}


def test_a_client_that_has_it_gets_304(connect: Connect, service: Service) -> None:
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
    answer = service.health()["checks"]["cache"]
    assert (answer["lookups"], answer["hit"], answer["hit_ratio"]) == (10, 9, 0.9)


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


class Sender:
    """One kept-alive connection that sends webhooks."""

    def __init__(self, service: Service) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, fields: object, **headers: str) -> tuple[int, dict[str, Any]]:
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        given = {
            **JSON,
            **bearer("webhook"),
            **{n.replace("_", "-"): v for n, v in headers.items()},
        }
        self._http.request("POST", "/webhooks/braze", body=body, headers=given)
        answer = self._http.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_known_connection_still_needs_the_key(make_service: MakeService) -> None:
    service = make_service(
        "--workers", "1", BRIDGE_ALLOWED_IPS="10.0.0.0/8", BRIDGE_TRUSTED_PROXIES="1"
    )
    good = {"user_id": ALICE, "tags": ["a"], "ttl": 60}
    with Sender(service) as sender:
        for _ in range(3):
            assert sender.send(good, X_Forwarded_For="10.1.1.1")[0] == 202
            assert sender.send(good, X_Forwarded_For="192.0.2.1")[0] == 403
            assert sender.send(good)[0] == 403
            for key, status in ((KEYS["content"], 403), ("guessed", 401)):
                given = {"X_Forwarded_For": "10.1.1.1", "Authorization": f"Bearer {key}"}
                assert sender.send(good, **given)[0] == status


def test_what_many_send_at_once_is_stored_once_each(make_service: MakeService) -> None:
    service = make_service("--workers", "2")
    taken: list[str] = []
    lock = threading.Lock()

    def send(number: int) -> None:
        with Sender(service) as sender:
            for count in range(40):
                fields = {"user_id": ALICE, "tags": [f"t{number // 2}"], "ttl": 60}
                # Everything is sent by two of the senders.
                status, answer = sender.send({**fields, "dispatch_id": f"{number // 2}-{count}"})
                assert status in {200, 202}, answer
                if status == 202:
                    with lock:
                        taken.append(answer["id"])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(16)))
    assert len(set(taken)) == 8 * 40
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0, 30)


def test_a_full_queue_is_503_on_the_loop_too(make_service: MakeService) -> None:
    service = make_service("--workers", "1", BRIDGE_QUEUE_LIMIT="5", BRIDGE_SESSIONM_RPS="0.01")
    with Sender(service) as sender:
        good = {"user_id": ALICE, "tags": ["a"], "ttl": 60}
        statuses = [sender.send(good)[0] for _ in range(9)]
    assert statuses == [202] * 5 + [503] * 4


def raw(tag: str, *, length: int | None = None) -> bytes:
    """A webhook as it is sent; *length* is announced in place of the body's own."""
    body = json.dumps({"user_id": ALICE, "tags": [tag], "ttl": 60}).encode()
    announced = len(body) if length is None else length
    head = (
        "POST /webhooks/braze HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEYS['webhook']}\r\nContent-Length: {announced}\r\n\r\n"
    )
    return head.encode() + body


def dial(service: Service) -> socket.socket:
    """A connection whose first request Flask has answered."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(raw("first"))
    assert read(connection, 1) == [202]
    return connection


def read(connection: socket.socket, answers: int) -> list[int]:
    """The statuses of the next answers, none of which may be followed by anything else."""
    return [int(status) for status, _ in read_all(connection, answers)]


def read_all(connection: socket.socket, answers: int) -> list[tuple[bytes, bytes]]:
    """Status and id of the next answers; no id where there is none."""
    found = b""
    answer = rb'HTTP/1.1 (\d+) [^{]*{[^}]*?(?:"id":"(\w+)"[^}]*)?}'
    while len(body := re.findall(answer, found)) < answers:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return body


def test_a_webhook_may_come_in_pieces_and_slowly(make_service: MakeService) -> None:
    sent = raw("pieces")
    with dial(make_service("--workers", "1")) as connection:
        for at in range(len(sent)):
            connection.sendall(sent[at : at + 1])
        assert read(connection, 1) == [202]
        connection.sendall(sent[:-20])
        # Longer than anybody is waited for outside Flask.
        time.sleep(2.2)
        connection.sendall(sent[-20:])
        assert read(connection, 1) == [202]
        connection.sendall(sent)
        assert read(connection, 1) == [202]


def test_requests_behind_a_webhook_are_answered_after_it(make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    health = b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"
    refused = raw("wrong").replace(b'"ttl"', b'"tll"').replace(b'["wrong"]', b'["{{x}}"]')
    with dial(service) as connection:
        connection.sendall(raw("a") + raw("b") + health + refused + raw("c") + health)
        assert read(connection, 6) == [202, 202, 200, 422, 202, 200]
    assert eventually(lambda: service.health()["checks"]["store"]["events"]["delivered"] == 4)


def test_a_webhook_whose_sender_left_is_stored_all_the_same(make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    for number in range(20):
        with dial(service) as connection:
            connection.sendall(raw(f"left-{number}"))
    # One to be let in and one more on each connection.
    eventually(lambda: service.health()["checks"]["store"]["events"]["delivered"] == 40, 30)


def test_a_database_that_is_held_is_503_under_a_known_head(
    make_service: MakeService, tmp_path: Path
) -> None:
    service = make_service("--workers", "1", BRIDGE_SESSIONM_RPS="0.01")
    with dial(service) as connection:
        with closing(sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            connection.sendall(raw("stuck"))
            assert read(connection, 1) == [503]
        connection.sendall(raw("stuck"))
        assert read(connection, 1) == [202]


def test_cold_lookups_are_answered_within_the_deadline_however_many_wait_for_a_thread(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "1", "--threads", "8")
    sandbox.sandbox.set_faults({"hang": 20})

    def look(number: int) -> tuple[float, int, str]:
        parameters = {"user_id": f"cold-{number}"}
        if number % 2:
            parameters["on_error"] = "retry"
        began = time.monotonic()
        answer = service.lookup("tags", **parameters)
        return time.monotonic() - began, answer.status_code, answer.json()["status"]

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(look, range(40)))
    assert [answer[1:] for answer in answers] == [(200, "unavailable"), (503, "unavailable")] * 20
    # A deadline of 1.5 s, and what 40 answers take on a busy machine. One by one they took 7.5 s.
    assert max(answer[0] for answer in answers) < 4.5
    cache = service.health()["checks"]["cache"]
    assert (cache["unavailable"], cache["lookups"]) == (40, 40)
    # Measured from arrival: none can have taken less.
    assert cache["p50_ms"] >= 1000


def test_batch_jobs_that_hang_hold_up_no_lookup(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "1", "--threads", "8")
    sandbox.sandbox.set_faults({"hang": 10, "match": "POST .*batch"})
    url = f"{service.url}/priv/v1/apps/bridge/batch/tags"

    def submit(number: int) -> requests.Response:
        job = {"request_id": f"r{number}", "url": "https://files.test/f", "md5": "0" * 32}
        return requests.post(url, json={"tags": job}, headers=bearer("webhook"), timeout=60)

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(submit, number) for number in range(8)]
        eventually(lambda: sandbox.sandbox.counts().get("batch") == 8)
        answers = [service.lookup("tags", user_id=f"cold-{number}").json() for number in range(3)]
        assert not any(job.done() for job in jobs)
    assert [answer["status"] for answer in answers] == ["not_found"] * 3


def test_webhooks_that_wait_for_delivery_hold_no_thread(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service("--workers", "1", "--threads", "8")
    for number in range(24):
        sandbox.sandbox.put_customer({"user_id": f"u{number}"})
    with connections(service, 1) as (connection,):
        sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
        with ThreadPoolExecutor(24) as pool:
            waiting = [pool.submit(wait_for_delivery, service, n) for n in range(24)]
            eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 24, 20)
            with at_most(2):
                for _ in range(5):
                    assert requests.get(f"{service.url}/healthz", timeout=5).ok
                    assert connection.get(TAGS)[0].status == 200
            assert not any(one.done() for one in waiting)
            sandbox.sandbox.set_faults({})
            answers = [one.result() for one in waiting]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["status"] for answer in answers} == {"delivered"}


def wait_for_delivery(service: Service, number: int) -> requests.Response:
    return requests.post(
        f"{service.url}/webhooks/braze",
        json={"user_id": f"u{number}", "tags": ["w"], "ttl": 600},
        headers={**bearer("webhook"), "Prefer": "wait=60"},
        timeout=90,
    )


def test_a_refused_guess_waits_without_a_thread(make_service: MakeService) -> None:
    service = make_service("--workers", "1", "--threads", "1")
    guess = {"Authorization": "Bearer guessed"}

    def refused(_: int) -> float:
        began = time.monotonic()
        answer = requests.get(f"{service.url}/health", headers=guess, timeout=20)
        assert answer.status_code == 401
        return time.monotonic() - began

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(refused, range(12)))
        with at_most(1.5):
            delayed = [pool.submit(refused, number) for number in range(12)]
            assert requests.get(f"{service.url}/healthz", timeout=5).ok
        assert min(one.result() for one in delayed) > 1.9


ADDRESSES = {
    "52.58.142.5": 200,
    "52.58.142.5:51234": 200,
    "[2001:db8::1]": 200,
    "[2001:db8::1]:443": 200,
    '"[2001:db8::1]:443"': 200,
    "2001:db8::1": 200,
    "::ffff:52.58.142.5": 200,
    "[::ffff:52.58.142.5]:80": 200,
    "192.0.2.1, 52.58.142.5:51234": 200,
    "52.58.142.5, 192.0.2.1:51234": 403,
    "192.0.2.1:52": 403,
    "[2001:db8:1::1]:443": 403,
    "[52.58.142.5": 403,
    "52.58.142.5:port": 403,
    "unknown": 403,
    "": 403,
}


@contextmanager
def both_ways(folder: Path) -> Iterator[dict[str, str]]:
    """Two services with an allow list behind one proxy: by `bridge serve`, and as plain WSGI."""
    commands = {
        "loop": ["bridge", "serve", "--workers", "1", "--bind"],
        "wsgi": ["gunicorn", "--chdir", str(ROOT), "app:app", "--threads", "4", "--bind"],
    }
    more = {"BRIDGE_ALLOWED_IPS": "52.58.142.0/24,2001:db8::/48", "BRIDGE_TRUSTED_PROXIES": "1"}
    with ExitStack() as stack:
        sandbox = stack.enter_context(serve(Sandbox(), port=0))
        urls = {}
        for way, command in commands.items():
            own, port = folder / way, free_port()
            own.mkdir()
            urls[way] = f"http://127.0.0.1:{port}"
            process = subprocess.Popen(
                [sys.executable, "-m", *command, f"127.0.0.1:{port}"],
                env={**environment(sandbox.url, own, **more), "PATH": ""},
                cwd=own,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 35)
            stack.callback(process.terminate)
            eventually(partial(is_up, urls[way]), 90)
        yield urls


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=5).ok
    except requests.RequestException:
        return False


CREDENTIALS = {
    "the first empty": (["", f"Bearer {KEYS['content']}"], 401),
    "the second empty": ([f"Bearer {KEYS['content']}", ""], 401),
    "twice the same": ([f"Bearer {KEYS['content']}"] * 2, 401),
    "one": ([f"Bearer {KEYS['content']}"], 200),
    "one empty": ([""], 401),
    "none": ([], 401),
}


def test_addresses_of_proxies_may_have_ports_and_several_credentials_get_one_answer(
    tmp_path: Path,
) -> None:
    with both_ways(tmp_path) as urls:
        for url in urls.values():
            for forwarded, expected in ADDRESSES.items():
                check_address(url, forwarded, expected)
            for given, expected in CREDENTIALS.values():
                check_credentials(url, given, expected)


def check_address(url: str, forwarded: str, expected: int) -> None:
    headers = {"X-Forwarded-For": forwarded}
    # The second time the loop answers from memory.
    for _ in range(2):
        answer = requests.get(f"{url}{TAGS}", headers={**headers, **CONTENT}, timeout=10)
        assert answer.status_code == expected, (url, forwarded)
    sent = requests.post(
        f"{url}/webhooks/braze", json=GOOD, headers={**headers, **bearer("webhook")}, timeout=10
    )
    assert sent.status_code == {200: 202, 403: 403}[expected], (url, forwarded)


def check_credentials(url: str, given: list[str], expected: int) -> None:
    port = int(url.rpartition(":")[2])
    for what in (TAGS, "/connected-content/tags?user_id=other", TAGS):
        lines = [f"GET {what} HTTP/1.1", "Host: b", "X-Forwarded-For: 52.58.142.5"]
        lines += [f"Authorization: {one}" for one in given]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            assert int(connection.recv(65536).split()[1]) == expected, (url, given)


def test_idle_clients_do_not_keep_a_webhook_out(sandbox: SandboxServer, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    limited = 'ulimit -Sn 200; ulimit -Hn 256; exec "$0" "$@"'
    serve = [sys.executable, "-m", "bridge", "serve", "--workers", "1", "--threads", "8", "--bind"]
    log = tmp_path / "log"
    with ExitStack() as stack:
        process = subprocess.Popen(
            ["/bin/sh", "-c", limited, *serve, f"127.0.0.1:{port}"],
            env={**environment(sandbox.url, tmp_path), "PATH": ""},
            cwd=tmp_path,
            stderr=stack.enter_context(log.open("wb")),
        )
        stack.callback(process.wait, 35)
        stack.callback(process.terminate)
        eventually(partial(is_up, url), 90)
        assert "256 open files (200 before)" in log.read_text()
        for _ in range(600):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        for number in range(20):
            event = {**GOOD, "user_id": f"u{number}"}
            headers = bearer("webhook")
            sent = requests.post(f"{url}/webhooks/braze", json=event, headers=headers, timeout=9)
            assert sent.status_code == 202
        answer = requests.get(f"{url}/health", headers=bearer("admin"), timeout=9)
        found = answer.json()["checks"]["files"]
        assert (found["limit"], found["most_connections"]) == (256, 128)
        assert 100 < found["connections"] <= 128
        assert found["open"] < 256
    assert "connections_closed" in log.read_text()
