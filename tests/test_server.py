"""gunicorn's event loop as the bridge runs it, over raw sockets: slow, odd and broken clients."""

import contextlib
import json
import re
import select
import socket
import threading
import time
from typing import Any

from tests.conftest import ALICE, KEYS, MakeService, Service, eventually

CONTENT, WEBHOOK = (f"Authorization: Bearer {KEYS[name]}\r\n" for name in ("content", "webhook"))
TAGS = f"GET /connected-content/tags?user_id={ALICE} HTTP/1.1\r\nHost: b\r\n{CONTENT}"
POST = f"POST /webhooks/braze HTTP/1.1\r\nHost: b\r\n{WEBHOOK}Content-Type: application/json\r\n"


def dial(service: Service, timeout: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=timeout)


def exchange(service: Service, *pieces: str | bytes, shut: bool = False) -> bytes:
    """All that the bridge says until it closes; it must, within ten seconds."""
    with dial(service) as connection:
        for piece in pieces:
            # It may have answered and closed before all was said.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(piece.encode("latin-1") if isinstance(piece, str) else piece)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def error_of(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert re.search(rb"x-request-id: [0-9a-f]{32}", head.lower())
    told = json.loads(body)
    assert set(told) == {"status", "errors"}
    assert set(told["errors"]) == {"code", "message"}
    return int(head.split()[1]), told["errors"]["code"]


REFUSED: dict[str, tuple[bytes, int | tuple[int, ...]]] = {
    "no http": (b"nonsense\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n", 400),
    "raw utf-8": (b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    "two lengths": (f"{POST}Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc".encode(), 400),
    "length and chunks": (
        f"{POST}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        400,
    ),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "bare name": (b"GET / HTTP/1.1\r\nHost: b\r\nname\r\n\r\n", 400),
    "space in a name": (b"GET / HTTP/1.1\r\nHost : b\r\n\r\n", 400),
    "nul in a value": (b"GET / HTTP/1.1\r\nHost: b\r\nX-A: a\x00b\r\n\r\n", 400),
    "bad chunk": (f"{POST}Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc".encode(), 400),
    "long line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: b\r\n\r\n", 414),
    "large header": (b"GET / HTTP/1.1\r\nHost: b\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: b\r\n" + b"X-A: a\r\n" * 500 + b"\r\n", (400, 431)),
}


def test_what_is_no_http_is_refused_like_everything_else(service: Service) -> None:
    for name, (sent, status) in REFUSED.items():
        answer = exchange(service, sent)
        assert error_of(answer)[0] in (status if isinstance(status, tuple) else (status,)), name
        assert answer.count(b"HTTP/1.1") == 1, name
    assert b" 200 OK" in exchange(service, f"{TAGS}Connection: close\r\n\r\n")


def test_too_large_a_body_is_refused_before_it_is_read(service: Service) -> None:
    """Also where it never ends, and where nothing of it has come yet."""
    endless = f"{POST}Content-Length: 10000000000\r\n\r\n"
    assert error_of(exchange(service, endless, b" " * 300_000)) == (413, "too_large")
    chunks = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    answer = exchange(service, f"{POST}Transfer-Encoding: chunked\r\n\r\n", chunks * 17)
    assert error_of(answer) == (413, "too_large")


def test_a_body_that_was_cut_short_is_refused(service: Service) -> None:
    for sent in (
        f'{POST}Content-Length: 60\r\n\r\n{{"user_id":"a","tags":["b"]}}',
        f'{POST}Transfer-Encoding: chunked\r\n\r\n1c\r\n{{"user_id":"a","tags":["b"]}}\r\n',
        f"{POST}Content-Length: 60\r\n\r\n",
    ):
        assert error_of(exchange(service, sent, shut=True))[0] == 400
    assert service.health()["checks"]["delivery"]["queued"] == 0


def test_who_closes_their_side_is_answered_still(service: Service) -> None:
    for _ in range(3):
        assert b" 200 OK" in exchange(service, f"{TAGS}\r\n", shut=True)
    body = '{"user_id":"a","tags":["b"]}'
    answer = exchange(service, f"{POST}Content-Length: {len(body)}\r\n\r\n{body}", shut=True)
    assert b" 202 " in answer


def test_a_sender_may_wait_to_be_asked_for_the_body(service: Service) -> None:
    body = b'{"user_id":"a","tags":["b"],"ttl":60}'
    with dial(service) as connection:
        head = f"{POST}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202")


def test_pieces_of_a_request_make_a_request(service: Service) -> None:
    body = b'{"user_id":"a","tags":["b"],"ttl":60}'
    sent = f"{POST}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    with dial(service) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(sent)):
            connection.sendall(sent[i : i + 1])
        assert connection.recv(65536).startswith(b"HTTP/1.1 202")
    repeat = f"{TAGS}\r\n".encode()
    with dial(service) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            for i in range(len(repeat)):
                connection.sendall(repeat[i : i + 1])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


class Drip:
    """Many connections that never come to an end; one byte a second keeps them going."""

    def __init__(self, service: Service, heads: list[bytes]) -> None:
        self._connections = []
        for head in heads:
            connection = dial(service)
            connection.sendall(head)
            self._connections.append(connection)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        self._thread.start()

    def _drip(self) -> None:
        while not self._over.wait(1):
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    def open(self) -> int:
        """How many the bridge still bears with."""
        return sum(not _is_closed(connection) for connection in self._connections)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it; nothing is read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def test_slow_senders_and_readers_hold_nobody_up_and_are_let_go(make_service: MakeService) -> None:
    service = make_service("--threads", "4")
    service.lookup("tags", user_id=ALICE)
    slow = [
        b"",
        b"GET /connected-content/tags HTTP/1.1\r\nX-Slow: ",
        f"{POST}Content-Length: 200000\r\n\r\n".encode(),
        f"{POST}Transfer-Encoding: chunked\r\n\r\n20000\r\n".encode(),
        # Asks and asks, and reads nothing.
        f"{TAGS}\r\n".encode() * 20_000,
    ]
    drip = Drip(service, [head for head in slow for _ in range(3 if len(head) > 9000 else 125)])
    try:
        slowest = 0.0
        until = time.monotonic() + 5
        while time.monotonic() < until:
            began = time.monotonic()
            assert service.webhook(user_id="a", tags=["b"], ttl=60).status_code == 202
            assert service.lookup("tags", user_id=ALICE).json()["status"] == "ok"
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2
        eventually(lambda: drip.open() == 0, 60)
    finally:
        drip.close()
    assert service.webhook(user_id="a", tags=["b"], ttl=60).status_code == 202
