"""The way to SessionM: nobody is led elsewhere, no stranger answers, no answer is too much."""

import gzip
import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.customer import Customer
from bridge.fields import FieldError, identifier
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM

OK = b'{"status":"ok","tags":{"vip":1}}'
Answer = Callable[[socket.socket], object]


def whole(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"", body])


class Peer:
    """A server of a few lines, with prepared answers; *asked* are the request lines."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._context:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection:
                    if request := connection.recv(65536):
                        self.asked.append(request.split(b"\r\n")[0].decode())
                        self._answer(connection)
            except OSError:
                # It hung up on us, as it may.
                continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def peer(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[Peer]:
    made = Peer(answer, context)
    try:
        yield made
    finally:
        made.close()


def sessionm(url: str, **variables: str) -> SessionM:
    return SessionM(core_url=url, core_key="the key", core_secret="s", variables=variables)


def fine(connection: socket.socket) -> None:
    connection.sendall(whole(OK))


@pytest.fixture(scope="module")
def echo() -> Iterator[Peer]:
    with peer(fine) as made:
        yield made


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
@example("..")
@example("../../admin")
@example("a/../b")
@example("..\\x")
@example("%2e%2e%2fadmin")
@example("a;b?c=d#e")
@example("é\u2028\U0001f600")
@example("x HTTP/1.1\r\nHost: evil")
@example("@evil.example/")
def test_an_identifier_is_one_segment_of_the_path_or_refused(echo: Peer, given: str) -> None:
    try:
        read = identifier(given, "user_id")
    except FieldError:
        return
    if read is None:
        return
    client = sessionm(f"http://127.0.0.1:{echo.port}/base")
    client.read_tags(Customer("user_id", read), 5)
    client.close()
    method, target, version = echo.asked.pop().split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    head, segment, tail = target.rsplit("/", 2)
    assert (head, tail) == ("/base/priv/v1/apps/the%20key/users", "tags")
    assert unquote(segment, errors="strict") == read


def test_a_url_that_a_library_would_change_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Should encoding ever fail, the address that results is not the one that was meant.
    monkeypatch.setattr("bridge.sessionm.client.quote", lambda segment, safe: segment)  # noqa: ARG005
    with peer(fine) as made:
        client = sessionm(f"http://127.0.0.1:{made.port}/base")
        for hostile in ("../../../../../admin", "a/../../b"):
            with pytest.raises(SessionMError) as refused:
                client.read_tags(Customer("user_id", hostile), 5)
            assert refused.value.meaning is Meaning.REFUSED
    assert made.asked == []


def tls(*, name: str, folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS under *name*, and the file of the authority that vouches for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    bundle = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return context, bundle


def test_a_proxy_that_passes_requests_on_is_asked_for_the_whole_url() -> None:
    with peer(fine) as proxy:
        way = {"http_proxy": f"http://127.0.0.1:{proxy.port}"}
        client = sessionm("http://sessionm.example/base", **way)
        assert client.read_tags(Customer("user_id", "alice"), 5)["tags"] == {"vip": 1}
    path = "http://sessionm.example/base/priv/v1/apps/the%20key/users/alice/tags"
    assert proxy.asked == [f"GET {path} HTTP/1.1"]


def test_an_answer_that_tls_cannot_read_may_have_worked(tmp_path: Path) -> None:
    def forge(connection: socket.socket) -> None:
        # A record that nobody has encrypted, beneath the connection's own.
        os.write(connection.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))

    context, bundle = tls(name="127.0.0.1", folder=tmp_path)
    alice = Customer("user_id", "alice")
    with peer(forge, context) as made:
        client = sessionm(f"https://127.0.0.1:{made.port}", ssl_cert_file=str(bundle))
        with pytest.raises(SessionMError) as broken:
            client.write_tags(alice, ["visits"], None, 5)
    # A counter that were sent again as if nothing had been sent would count twice.
    assert (len(made.asked), broken.value.meaning) == (1, Meaning.UNANSWERED)
    assert broken.value.may_have_worked


def endless(start: bytes, more: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(more)

    return answer


ENDLESS = {
    "headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-More: of the same\r\n"),
    "one header": endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096),
    "a status line": endless(b"HTTP/1.1 200 ", b"O" * 4096),
    "interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
    "chunks": endless(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 9999
    ),
    "a chunk's length": endless(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 4096
    ),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_without_end_is_a_failure_in_time(kind: str) -> None:
    with peer(ENDLESS[kind]) as made:
        client = sessionm(f"http://127.0.0.1:{made.port}")
        with pytest.raises(SessionMError) as failed:
            client.read_tags(Customer("user_id", "alice"), 3)
    assert failed.value.meaning in {Meaning.GARBLED, Meaning.UNANSWERED}


@pytest.mark.parametrize("encoding", [b"gzip", b"gzip, gzip"])
def test_what_unpacks_to_a_gigabyte_is_not_unpacked(encoding: bytes) -> None:
    bomb = gzip.compress(OK + b" " * 300_000_000, 9)
    for _ in range(encoding.count(b",")):
        bomb = gzip.compress(bomb, 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with peer(lambda c: c.sendall(whole(bomb, b"Content-Encoding: " + encoding))) as made:
        client = sessionm(f"http://127.0.0.1:{made.port}")
        with pytest.raises(SessionMError, match=r"too large|no SessionM answer"):
            client.read_tags(Customer("user_id", "alice"), 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_credentials_go_to_no_other_host(echo: Peer) -> None:
    elsewhere = f"Location: http://127.0.0.1:{echo.port}/".encode()
    moved = b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nConnection: close\r\n" + elsewhere
    with peer(lambda c: c.sendall(moved + b"\r\n\r\n")) as made:
        client = sessionm(f"http://127.0.0.1:{made.port}")
        with pytest.raises(SessionMError) as failed:
            client.read_tags(Customer("user_id", "alice"), 5)
    assert failed.value.status == 307
    assert echo.asked == []


def test_the_peer_is_real(echo: Peer) -> None:
    assert requests.get(f"http://127.0.0.1:{echo.port}/x", timeout=5).content == OK
    echo.asked.clear()
