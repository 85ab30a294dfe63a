"""Webhooks that are taken in on the event loop: what holds through Flask holds for them."""

import http.client
import json
import re
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import requests

from tests.conftest import ALICE, KEYS, MakeService, Service, bearer, eventually

JSON = {"Content-Type": "application/json"}


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


def test_whoever_was_let_in_once_still_needs_the_key(make_service: MakeService) -> None:
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


def test_what_is_refused_is_kept_and_told_as_ever(make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    good = {"user_id": ALICE, "tags": ["a"], "ttl": 60}
    with Sender(service) as sender:
        for number in range(3):
            assert sender.send({**good, "dispatch_id": f"d{number}"})[0] == 202
            assert sender.send({**good, "dispatch_id": f"d{number}"})[1]["status"] == "duplicate"
            assert sender.send(b"nonsense")[0] == 400
            assert sender.send({"tags": ["a"]})[0] == 422
            assert sender.send(b" " * 300_000)[0] == 413
            assert sender.send({**good, "tags": [f"k{number}"]}, Idempotency_Key="k")[0] == 202
            assert sender.send({**good, "tags": [f"k{number}"]}, Idempotency_Key="k")[0] == 200
        status, told = sender.send({**good, "ttl": 61}, Prefer="wait=20")
        assert (status, told["status"]) == (200, "delivered")
    listed = requests.get(
        f"{service.url}/api/events?state=rejected", headers=bearer("admin"), timeout=10
    ).json()["events"]
    assert len(listed) == 9


def test_what_many_send_at_once_is_stored_once_each(make_service: MakeService) -> None:
    service = make_service("--workers", "2")
    taken: list[str] = []
    lock = threading.Lock()

    def send(number: int) -> None:
        with Sender(service) as sender:
            for count in range(40):
                fields = {"user_id": ALICE, "tags": [f"t{number // 2}"], "ttl": 60}
                # Everything is sent by two of the senders.
                status, told = sender.send({**fields, "dispatch_id": f"{number // 2}-{count}"})
                assert status in {200, 202}, told
                if status == 202:
                    with lock:
                        taken.append(told["id"])

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
    """A connection of somebody whom Flask has let in, and knows to have room for."""
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
    while len(told := re.findall(answer, found)) < answers:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return told


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


def test_who_closes_their_side_is_told_that_the_webhook_is_stored(
    make_service: MakeService,
) -> None:
    with dial(make_service("--workers", "1")) as connection:
        connection.sendall(raw("last"))
        connection.shutdown(socket.SHUT_WR)
        assert read(connection, 1) == [202]
        assert connection.recv(100) == b""


def test_half_a_webhook_is_refused_and_kept_as_refused(make_service: MakeService) -> None:
    service = make_service("--workers", "1", BRIDGE_SESSIONM_RPS="0.01")
    with dial(service) as connection:
        connection.sendall(raw("half", length=500))
        connection.shutdown(socket.SHUT_WR)
        assert read(connection, 1) == [400]
    assert service.health()["checks"]["store"]["events"]["queued"] <= 1


def test_a_webhook_whose_sender_left_is_stored_all_the_same(make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    for number in range(20):
        with dial(service) as connection:
            connection.sendall(raw(f"left-{number}"))
    # One to be let in and one more on each connection.
    eventually(lambda: service.health()["checks"]["store"]["events"]["delivered"] == 40, 30)


def known(service: Service) -> socket.socket:
    """A connection whose webhooks have a head that is known, as long as `raw` makes them."""
    connection = dial(service)
    connection.sendall(raw("other"))
    assert read(connection, 1) == [202]
    connection.sendall(raw("again"))
    assert read(connection, 1) == [202]
    return connection


def test_a_head_that_is_known_lets_nobody_else_in(make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    health = b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"
    good = raw("fives")
    head, _, body = good.partition(b"\r\n\r\n")
    guessed = good.replace(KEYS["webhook"].encode(), b"g" * len(KEYS["webhook"]))
    with known(service) as connection:
        for _ in range(3):
            # Whatever a head is known from, and whatever stands around it.
            connection.sendall(health + good + guessed)
            assert read(connection, 3) == [200, 202, 401]
            connection.sendall(good + guessed)
            assert read(connection, 2) == [202, 401]
            connection.sendall(guessed)
            assert read(connection, 1) == [401]
            connection.sendall(b"\r\n" + good)
            assert read(connection, 1) == [202]
            connection.sendall(good)
            assert read(connection, 1) == [202]
    keyless = good.split(b"\r\nAuthorization")[0]
    with known(service) as connection:
        # What came first of a head is not the whole of it.
        connection.sendall(keyless)
        time.sleep(0.2)
        connection.sendall(good[len(keyless) :])
        assert read(connection, 1) == [202]
        connection.sendall(good)
        assert read(connection, 1) == [202]
        connection.sendall(keyless + b"\r\n\r\n" + body)
        assert 202 not in read(connection, 1)
    for before in (
        b"\r\n\r\n",
        health,
        b"POST /webhooks/braze HTTP/1.1\r\n\r\n",
        b"\r\n\r\n" + head,
    ):
        with known(service) as connection:
            connection.sendall(b"\r\n" + good)
            assert read(connection, 1) == [202]
            connection.sendall(before + body)
            assert 202 not in read(connection, 1)


def test_each_of_several_heads_is_known_for_its_own(make_service: MakeService) -> None:
    one, other = (
        raw("fives").replace(b"Host: b", b"Host: b\r\nIdempotency-Key: %d" % number)
        for number in (1, 2)
    )
    with known(make_service("--workers", "1")) as connection:
        connection.sendall(one + other)
        (_, first), (_, second) = read_all(connection, 2)
        assert first != second
        for _ in range(3):
            connection.sendall(one)
            assert read_all(connection, 1) == [(b"200", first)]
            connection.sendall(other)
            assert read_all(connection, 1) == [(b"200", second)]


def test_what_is_wrong_under_a_known_head_is_refused_and_kept(make_service: MakeService) -> None:
    service = make_service("--workers", "1")
    wrong = raw("fives").replace(b'["fives"]', b'["{{x}}"]')
    with known(service) as connection:
        for _ in range(2):
            connection.sendall(wrong)
            assert read(connection, 1) == [422]
            connection.sendall(raw("right"))
            assert read(connection, 1) == [202]
            connection.sendall(raw("right") + raw("after"))
            assert read(connection, 2) == [202, 202]
    assert service.health()["checks"]["store"]["events"]["rejected"] == 2


def test_a_database_that_is_held_is_503_under_a_known_head(
    make_service: MakeService, tmp_path: Path
) -> None:
    service = make_service("--workers", "1", BRIDGE_SESSIONM_RPS="0.01")
    with known(service) as connection:
        with closing(sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            connection.sendall(raw("stuck"))
            assert read(connection, 1) == [503]
        connection.sendall(raw("stuck"))
        assert read(connection, 1) == [202]
