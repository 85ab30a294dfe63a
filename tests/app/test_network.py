"""The way out: every call ends in time, is sent once, and finds the address that answers."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from bridge.network.client import (
    MAX_AGE,
    MAX_IDLE,
    UNHEALTHY_AFTER,
    HttpAnswer,
    HttpClient,
    HttpRequest,
)
from bridge.network.failure import NetworkError, NotSentError
from bridge.network.proxy import proxy_for
from tests.conftest import eventually
from tests.network import (
    BODY,
    OK,
    AddrInfo,
    Behave,
    Listener,
    Names,
    Visitor,
    dead,
    server_context,
    through,
    unwell,
    well,
)

READ = HttpRequest("GET", "/tags", None, 100_000, repeatable=True)
WRITE = HttpRequest("POST", "/tags", b"{}", 100_000, repeatable=False)
# Seconds over a deadline that a busy machine may take.
SLACK = 1.0

CLIENTS: list[HttpClient] = []


class Clock:
    """A clock that only a test moves on."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def client(port: int = 0, scheme: str = "http", **more: Any) -> HttpClient:
    """A client of host ``core.test``, which *resolve* finds, or of port *port* of this machine."""
    host = "core.test:4711" if "resolve" in more else f"127.0.0.1:{port}"
    more = {"headers": {}, "variables": {}, "setting": "SESSIONM_CORE_URL", **more}
    CLIENTS.append(HttpClient(f"{scheme}://{more.pop('host', host)}", **more))
    return CLIENTS[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close every client at the end of a test."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def fails(made: HttpClient, request: HttpRequest = READ, seconds: float = 0.5) -> NetworkError:
    """The failure of a call, which must come in time."""
    began = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        made.call(request, seconds)
    assert time.monotonic() - began < seconds + SLACK
    assert made.overdue() == 0
    return caught.value


def works(made: HttpClient, request: HttpRequest = READ, seconds: float = 1.5) -> HttpAnswer:
    """The answer to a call, which must come in time."""
    began = time.monotonic()
    answer = made.call(request, seconds)
    assert time.monotonic() - began < seconds
    assert (answer.status, answer.body) == (200, BODY)
    return answer


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def server(stack: ExitStack) -> Listener:
    return stack.enter_context(Listener())


def dead_addresses(stack: ExitStack, number: int, port: int) -> list[AddrInfo]:
    return [stack.enter_context(dead(f"127.0.0.{n}", port)) for n in range(2, 2 + number)]


# Addresses.


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_call_gets_past_dead_addresses_in_time(
    stack: ExitStack, server: Listener, number: int
) -> None:
    made = client(resolve=Names(*dead_addresses(stack, number, server.port), server.info))
    works(made)


def test_nothing_is_sent_after_the_deadline_and_the_late_connection_serves_the_next_call(
    stack: ExitStack, server: Listener
) -> None:
    made = client(resolve=Names(*dead_addresses(stack, 6, server.port), server.info))
    failed = fails(made, WRITE, 0.5)
    assert failed.sent_at is None
    assert "no answer from core.test (127.0.0.2, " in str(failed)
    eventually(lambda: server.connections)
    works(made, WRITE)
    assert (server.connections, len(server.requests)) == (1, 1)


def test_the_address_that_answered_goes_first(stack: ExitStack, server: Listener) -> None:
    made = client(resolve=Names(*dead_addresses(stack, 3, server.port), server.info))
    works(made)
    server.hang_up()
    works(made, seconds=0.5)


@pytest.mark.parametrize("kind", [READ, WRITE], ids=["read", "write"])
def test_the_next_call_after_a_change_of_address_finds_the_new_one(
    stack: ExitStack, server: Listener, kind: HttpRequest
) -> None:
    names = Names(server.info)
    made = client(resolve=names)
    works(made)
    other = stack.enter_context(Listener(host="127.0.0.9", port=server.port))
    names.addresses = [other.info]
    server.behave = lambda visitor: visitor.hold()
    fails(made, kind)
    works(made, kind)
    assert other.requests


@pytest.mark.parametrize("still_named", [False, True])
def test_an_address_that_answers_503_is_left_if_the_name_leads_elsewhere(
    stack: ExitStack, server: Listener, *, still_named: bool
) -> None:
    names = Names(server.info)
    made = client(resolve=names)
    works(made)
    other = stack.enter_context(Listener(host="127.0.0.9", port=server.port))
    names.addresses = [server.info, other.info] if still_named else [other.info]
    server.behave = unwell
    statuses = [made.call(READ, 5).status for _ in range(UNHEALTHY_AFTER + 1)]
    assert statuses == [503] * UNHEALTHY_AFTER + [200]


# Names.


def test_a_name_that_resolves_slowly_costs_the_first_call_alone(server: Listener) -> None:
    names = Names(server.info)
    names.seconds = 1.0
    made = client(resolve=names)
    failed = fails(made, WRITE, 0.3)
    assert (failed.sent_at, "still being looked up" in str(failed)) == (None, True)
    eventually(lambda: server.connections)
    works(made, WRITE)
    server.hang_up()
    works(made, seconds=0.9)
    assert len(server.requests) == 2


def test_a_name_is_remembered_while_no_name_server_answers(server: Listener) -> None:
    names = Names(server.info)
    made = client(resolve=names)
    works(made)
    names.error = socket.gaierror(socket.EAI_AGAIN, "again")
    server.hang_up()
    works(made)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (socket.EAI_NONAME, "the name core.test does not resolve"),
        (socket.EAI_AGAIN, "no name server answers for core.test"),
    ],
)
def test_a_name_without_address_is_named(code: int, words: str) -> None:
    names = Names()
    names.error = socket.gaierror(code, "no")
    failed = fails(client(resolve=names))
    assert (str(failed), failed.sent_at) == (words, None)
    assert "name servers" in failed.remedy


# Pooled connections.


DEATHS: dict[str, Behave] = {
    "reset": lambda visitor: visitor.reset(),
    "closed": lambda _visitor: False,
    "half an answer": lambda visitor: visitor.say(OK[:-5]) and False,
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_read_on_a_dead_connection_is_sent_once_more(server: Listener, death: str) -> None:
    made = client(server.port)
    for _ in range(3):
        works(made)
        server.kill_connections(DEATHS[death])


@pytest.mark.parametrize("death", DEATHS)
def test_a_write_is_never_sent_twice(server: Listener, death: str) -> None:
    made = client(server.port)
    works(made, WRITE)
    server.kill_connections(DEATHS[death])
    failed = fails(made, WRITE)
    assert failed.sent_at is not None
    assert len(server.requests) == 2


def test_reads_at_once_on_dead_connections_all_get_their_answer(server: Listener) -> None:
    made = client(server.port)
    together(made, 24)
    server.kill_connections(lambda visitor: visitor.reset())
    together(made, 24)


def test_a_read_on_a_dead_connection_that_was_never_used_is_sent_once_more(
    server: Listener,
) -> None:
    names, release = Names(server.info), threading.Event()
    server.behave = lambda visitor: release.wait(20) and well(visitor)
    made = client(resolve=names)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(works, made, seconds=30)
        eventually(lambda: server.requests)
        # This call takes over the first one's connection, before its own is there.
        names.seconds = 1.0
        second = pool.submit(works, made, seconds=30)
        eventually(lambda: names.asked == 2)
        release.set()
        assert first.result().status == second.result().status == 200
    eventually(lambda: server.connections == 2)
    eventually(lambda: not any(thread.name == "dial" for thread in threading.enumerate()))
    server.kill_connections(lambda visitor: visitor.reset())
    works(made)


def together(made: HttpClient, number: int) -> None:
    """Make calls at once, all of which must work."""
    barrier = threading.Barrier(number)
    failed: list[Exception] = []

    def one() -> None:
        barrier.wait()
        try:
            works(made, seconds=10)
        except Exception as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_no_call_waits_while_no_connection_is_being_opened(server: Listener) -> None:
    closing = OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    server.behave = lambda visitor: visitor.say(closing)
    together(client(server.port, connections=1), 4)
    names = Names()
    names.seconds, names.error = 0.1, socket.gaierror(socket.EAI_NONAME, "no")
    made = client(resolve=names, connections=1)
    with ThreadPoolExecutor(4) as threads:
        failed = [threads.submit(fails, made, seconds=10) for _ in range(4)]
    assert not any(one.result().timed_out for one in failed)


def test_a_write_on_a_connection_that_was_closed_meanwhile_goes_by_a_new_one(
    server: Listener,
) -> None:
    made = client(server.port)
    works(made, WRITE)
    server.hang_up()
    works(made, WRITE)
    assert (server.connections, len(server.requests)) == (2, 2)


def test_a_read_on_a_connection_that_was_forgotten_in_silence_is_in_time(
    server: Listener,
) -> None:
    clock = Clock()
    made = client(server.port, now=clock)
    together(made, 4)
    server.kill_connections(lambda visitor: visitor.hold())
    clock.at += 10
    works(made)
    # The others were forgotten as well.
    works(made, seconds=0.5)


def test_an_answer_that_is_slow_is_waited_for(server: Listener) -> None:
    def slow(visitor: Any) -> bool:
        time.sleep(0.4)
        return well(visitor)

    made = client(server.port)
    server.behave = slow
    works(made, seconds=2)
    works(made, seconds=2)
    assert len(server.requests) == 2


@pytest.mark.parametrize(("step", "steps"), [(MAX_IDLE + 1, 1), (MAX_IDLE - 1, 12)])
def test_a_connection_is_used_neither_after_long_idleness_nor_for_ever(
    server: Listener, step: float, steps: int
) -> None:
    clock = Clock()
    made = client(server.port, now=clock)
    works(made)
    for _ in range(steps):
        clock.at += step
        works(made)
    assert server.connections == 2
    assert steps == 1 or steps * step > MAX_AGE


def test_one_connection_serves_calls_in_turn(server: Listener) -> None:
    made = client(server.port)
    for _ in range(20):
        works(made)
    made.close()
    assert server.connections == 1


# Deadlines.

ANSWERS: dict[str, Behave] = {
    "silence": lambda visitor: visitor.hold(),
    "dripping head": lambda visitor: visitor.drip(OK * 20),
    "dripping body": lambda visitor: (
        visitor.say(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n") and visitor.drip(b" " * 999)
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("request_", [READ, WRITE], ids=["read", "write"])
def test_a_call_ends_in_time_whatever_the_other_side_does(
    server: Listener, answer: str, request_: HttpRequest
) -> None:
    server.behave = ANSWERS[answer]
    made = client(server.port)
    failed = fails(made, request_)
    assert str(failed) == "no answer from 127.0.0.1 within 0.5 s"
    assert failed.timed_out
    assert failed.sent_at
    server.behave = well
    works(made, request_)


def test_what_may_not_be_sent_any_more_is_not(server: Listener) -> None:
    made = client(server.port)
    works(made)
    with pytest.raises(NotSentError):
        made.call(WRITE, 5, lambda: False)
    assert len(server.requests) == 1
    works(made)


def test_nothing_leaves_if_the_time_has_run_out_before_the_first_byte(server: Listener) -> None:
    made = client(server.port)
    works(made)

    def late() -> bool:
        time.sleep(0.3)
        return True

    with pytest.raises(NetworkError) as caught:
        made.call(WRITE, 0.2, late)
    assert caught.value.sent_at is None
    assert len(server.requests) == 1


def test_the_first_byte_is_timed(server: Listener) -> None:
    before = time.monotonic()
    answer = works(client(server.port))
    assert before < answer.sent_at < time.monotonic()


# Words.


def test_a_refused_connection_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    failed = fails(client(port))
    assert str(failed) == "127.0.0.1 refuses the connection (127.0.0.1)"
    assert "SESSIONM_CORE_URL" in failed.remedy


BROKEN: dict[str, tuple[Behave, str]] = {
    "reset": (lambda visitor: visitor.reset(), "reset the connection"),
    "closed": (lambda _visitor: False, "closed the connection without an answer"),
    "cut": (lambda visitor: visitor.say(OK[:-5]) and False, "is incomplete"),
    "garbage": (lambda visitor: visitor.say(b"SSH-2.0-x\r\n") and False, "is not HTTP"),
    "no gzip": (
        lambda visitor: visitor.say(OK.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)),
        "is not HTTP",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_connection_is_named(server: Listener, kind: str) -> None:
    server.behave, words = BROKEN[kind]
    assert words in str(fails(client(server.port), seconds=3))


def test_a_connection_that_is_reset_at_once_is_a_failed_one() -> None:
    """Some of many are reset when they count as open already, before anything is sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset_all() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    Visitor(sock, 0).reset()
                    sock.close()

        threading.Thread(target=reset_all, daemon=True).start()
        made = client(listener.getsockname()[1])
        for _ in range(300):
            fails(made, seconds=5)
        listener.shutdown(socket.SHUT_RDWR)


# Proxies.


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def proxied(
    stack: ExitStack, tmp_path: Path, authority: trustme.CA, behave: Behave, **more: Any
) -> tuple[HttpClient, Listener]:
    """A client that reaches ``https://core.test`` by a proxy, and the proxy."""
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    proxy = stack.enter_context(Listener(behave))
    variables = {
        "https_proxy": f"http://ann:s%40me@127.0.0.1:{proxy.port}",
        "ssl_cert_file": str(bundle),
    }
    return client(scheme="https", host="core.test", variables=variables, **more), proxy


def test_a_proxy_leads_to_sessionm_with_its_own_credentials(
    stack: ExitStack, tmp_path: Path, authority: trustme.CA
) -> None:
    context = server_context(authority.issue_cert("core.test"))
    server = stack.enter_context(Listener(context=context))
    made, proxy = proxied(stack, tmp_path, authority, through(server.port))
    works(made, seconds=5)
    works(made, seconds=5)
    assert len(proxy.requests) == 1
    head = proxy.requests[0].split("\r\n")
    assert head[0] == "CONNECT core.test:443 HTTP/1.1"
    assert "Proxy-Authorization: Basic YW5uOnNAbWU=" in head
    assert "Authorization" not in server.requests[0]
    assert "s@me" not in repr(made.proxy) + str(made.proxy)


REFUSALS: dict[str, tuple[Behave, str, str]] = {
    "407": (
        lambda visitor: visitor.say(b"HTTP/1.1 407 Authenticate\r\nContent-Length: 0\r\n\r\n"),
        "requires other credentials (407)",
        "put user and password into HTTPS_PROXY",
    ),
    "502": (
        lambda visitor: visitor.say(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
        "cannot reach core.test (502)",
        "NO_PROXY",
    ),
    "drips": (
        lambda visitor: visitor.drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9999),
        "has not answered",
        "NO_PROXY",
    ),
    "silent": (lambda visitor: visitor.hold(), "has not answered", "NO_PROXY"),
    "closes": (lambda _visitor: False, "broke off", "NO_PROXY"),
    "no TLS behind it": (
        lambda visitor: visitor.say(b"HTTP/1.1 200 OK\r\n\r\n") and visitor.hold(),
        "core.test has not answered the TLS handshake",
        "SESSIONM_CORE_URL",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_proxy_that_fails_is_named_in_time(
    stack: ExitStack, tmp_path: Path, authority: trustme.CA, kind: str
) -> None:
    behave, words, remedy = REFUSALS[kind]
    made, _proxy = proxied(stack, tmp_path, authority, behave)
    failed = fails(made, WRITE)
    assert words in str(failed)
    assert remedy in failed.remedy
    assert failed.sent_at is None


def test_a_proxy_that_is_away_is_named(
    stack: ExitStack, tmp_path: Path, authority: trustme.CA
) -> None:
    made, proxy = proxied(stack, tmp_path, authority, well)
    proxy.stop()
    failed = fails(made)
    assert f"the proxy http://127.0.0.1:{proxy.port} (HTTPS_PROXY) refuses" in str(failed)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "https://127.8.9.1",
        "http://localhost",
        "http://bridge.localhost:1",
        "http://[::1]:80",
    ],
)
def test_loopback_is_never_reached_through_a_proxy(url: str) -> None:
    assert proxy_for(url, {"http_proxy": "http://p:1", "all_proxy": "http://p:1"}) is None


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({"https_proxy": "http://p:1", "all_proxy": "http://p:2"}, 1),
        ({"https_proxy": "p:1"}, 1),
        ({"all_proxy": "http://p"}, 80),
        ({"http_proxy": "http://p:1"}, None),
        ({"https_proxy": "http://p:1", "no_proxy": "core.test"}, None),
        ({"https_proxy": "http://p:1", "no_proxy": ".test"}, None),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, None),
        ({"https_proxy": "http://p:1", "no_proxy": "elsewhere.test"}, 1),
    ],
)
def test_the_proxy_is_found_as_others_find_it(variables: dict[str, str], port: int | None) -> None:
    found = proxy_for("https://core.test", variables)
    assert (found and found.port) == port


# Certificates.


def issued(authority: trustme.CA, kind: str) -> trustme.LeafCert:
    names = ["other.test", "*.acme.test"] if kind == "name" else ["core.test"]
    past = datetime.now(UTC) - timedelta(days=1)
    return authority.issue_cert(*names, not_after=past if kind == "expired" else None)


CERTIFICATES = {
    "expired": ("expired on ", "clock"),
    "name": ("is for other names: other.test, *.acme.test", "check the host in SESSIONM_CORE_URL"),
    "stranger": ("is signed by an authority that is not in ", "SSL_CERT_FILE"),
}


@pytest.mark.parametrize("kind", CERTIFICATES)
@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "by proxy"])
def test_a_certificate_that_is_refused_is_described(
    stack: ExitStack, tmp_path: Path, authority: trustme.CA, kind: str, *, by_proxy: bool
) -> None:
    words, remedy = CERTIFICATES[kind]
    issuer = trustme.CA() if kind == "stranger" else authority
    context = server_context(issued(issuer, kind))
    server = stack.enter_context(Listener(context=context))
    if by_proxy:
        made, _proxy = proxied(stack, tmp_path, authority, through(server.port))
    else:
        bundle = tmp_path / "authority.pem"
        authority.cert_pem.write_to_path(str(bundle))
        variables = {"ssl_cert_file": str(bundle)}
        made = client(scheme="https", variables=variables, resolve=Names(server.info))
    failed = fails(made, seconds=5)
    assert words in str(failed)
    assert remedy in failed.remedy
    if kind == "expired":
        assert f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}" in str(failed)
    if kind == "stranger":
        assert f"{tmp_path}/authority.pem (SSL_CERT_FILE)" in str(failed)
    assert (failed.sent_at, server.requests) == (None, [])


def test_a_server_without_tls_is_named(server: Listener) -> None:
    failed = fails(client(scheme="https", resolve=Names(server.info)), seconds=5)
    assert "core.test:4711 fails the TLS handshake" in str(failed) or "ended the TLS" in str(failed)


@pytest.mark.parametrize(
    "variable", ["requests_ca_bundle", "curl_ca_bundle", "ssl_cert_file", "ssl_cert_dir"]
)
def test_each_variable_for_authorities_counts(
    stack: ExitStack, tmp_path: Path, authority: trustme.CA, variable: str
) -> None:
    # OpenSSL finds an authority in a folder by the hash of its name.
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    if variable == "ssl_cert_dir":
        hashed = _hashed(bundle)
        bundle.rename(tmp_path / f"{hashed}.0")
    where = tmp_path if variable == "ssl_cert_dir" else bundle
    context = server_context(authority.issue_cert("core.test"))
    server = stack.enter_context(Listener(context=context))
    made = client(scheme="https", variables={variable: str(where)}, resolve=Names(server.info))
    works(made, seconds=5)


def _hashed(certificate: Path) -> str:
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_without_a_variable_the_systems_authorities_count() -> None:
    made = client(scheme="https", resolve=Names())
    assert made.origin.encrypted
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED
