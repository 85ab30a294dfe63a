"""Ends of connections that behave badly: servers, proxies, relays, addresses that drop packets."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import trustme

BODY = b'{"status":"ok","tags":{"vip":1}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
UNWELL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"

_CLIENT_HELLO = b"\x16\x03"

# What a server does with a request that has come whole: true to go on with the connection.
Behave = Callable[["Visitor"], bool]
AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]


@dataclass
class Visitor:
    """Connection *number* at a server; *request* is the head of what was asked last."""

    sock: socket.socket
    number: int
    request: str = ""

    def say(self, data: bytes) -> bool:
        self.sock.sendall(data)
        return True

    def drip(self, data: bytes, pause: float = 0.05) -> bool:
        """Send *data* a byte at a time, for as long as the other side listens."""
        for one in data:
            self.sock.sendall(bytes([one]))
            time.sleep(pause)
        return True

    def reset(self) -> bool:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def hold(self) -> bool:
        """Say nothing until the other side gives up."""
        with suppress(OSError):
            while self.sock.recv(65536):
                pass
        return False


def well(visitor: Visitor) -> bool:
    return visitor.say(OK)


def unwell(visitor: Visitor) -> bool:
    return visitor.say(UNWELL)


class Listener:
    """A server of a few lines: *requests* are the heads that came, *connections* how many.

    *behave* may be replaced at any time.
    """

    def __init__(
        self,
        behave: Behave = well,
        host: str = "127.0.0.1",
        port: int = 0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.behave = behave
        self.requests: list[str] = []
        self.connections = 0
        self._context = context
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, port))
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def info(self) -> AddrInfo:
        return info(self.host, self.port)

    def hang_up(self) -> None:
        """Close every connection, as a load balancer does with idle ones."""
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on, and close those that are open."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def kill_connections(self, how: Behave) -> None:
        """Do *how* with the next request on each connection that was made until now."""
        last = self.connections
        self.behave = lambda visitor: how(visitor) if visitor.number <= last else well(visitor)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[sock, self.connections], daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        self._open.add(sock)
        with suppress(OSError):
            if self._context:
                self._open.discard(sock)
                sock = self._context.wrap_socket(sock, server_side=True)
                self._open.add(sock)
            visitor = Visitor(sock, number)
            while self._receive(visitor) and self.behave(visitor):
                pass
        self._open.discard(sock)
        sock.close()

    def _receive(self, visitor: Visitor) -> bool:
        data = b""
        while b"\r\n\r\n" not in data and not data.startswith(_CLIENT_HELLO):
            if not (more := visitor.sock.recv(65536)):
                return False
            data += more
        visitor.request = data.partition(b"\r\n\r\n")[0].decode(errors="replace")
        self.requests.append(visitor.request)
        return True


def info(host: str, port: int) -> AddrInfo:
    return (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))


@contextmanager
def dead(host: str, port: int) -> Iterator[AddrInfo]:
    """An address that answers no packet: its queue of connections is full, so Linux drops them."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        queued = [socket.socket() for _ in range(4)]
        for one in queued:
            one.setblocking(False)
            one.connect_ex((host, port))
        try:
            yield info(host, port)
        finally:
            for one in queued:
                one.close()


class Names:
    """A name server: *addresses* are its answer after *seconds*, or *error* is."""

    def __init__(self, *addresses: AddrInfo) -> None:
        self.addresses: Sequence[AddrInfo] = addresses
        self.seconds = 0.0
        self.error: OSError | None = None
        self.asked = 0

    def __call__(self, _host: str, _port: int) -> Sequence[Any]:
        self.asked += 1
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return self.addresses


def through(target: int) -> Behave:
    """A proxy that connects to port *target* of this machine, whatever it is asked for."""

    def behave(visitor: Visitor) -> bool:
        with socket.create_connection(("127.0.0.1", target)) as other:
            visitor.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=[other, visitor.sock], daemon=True)
            back.start()
            pump(visitor.sock, other)
            back.join()
        return False

    return behave


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


class Relay:
    """Something between the bridge and port *target* of this machine, which can be disturbed.

    *disturb* is asked about every piece that the bridge sends: it returns true if it has dealt
    with that piece itself, and false to have it passed on. *passages* are all that were made.
    """

    def __init__(self, target: int) -> None:
        self.passages: list[Passage] = []
        self.disturb: Disturb = passes
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for passage in self.passages:
            passage.end()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
                other = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            passage = Passage(sock, other)
            self.passages.append(passage)
            threading.Thread(target=self._forth, args=[passage], daemon=True).start()
            threading.Thread(target=passage.back, daemon=True).start()

    def _forth(self, passage: "Passage") -> None:
        with suppress(OSError):
            while data := passage.near.recv(65536):
                if not self.disturb(passage, data):
                    passage.far.sendall(data)
        passage.near.close()
        with suppress(OSError):
            passage.far.shutdown(socket.SHUT_WR)


class Passage:
    """A connection through a relay: *near* is the bridge's side, *far* that of SessionM."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.mute = False
        # When it was made, so that a disturbance may strike older connections alone.
        self.at = time.monotonic()

    def back(self) -> None:
        with suppress(OSError):
            while data := self.far.recv(65536):
                if not self.mute:
                    self.near.sendall(data)
        self.far.close()
        self.end()

    def end(self) -> None:
        """Close the bridge's side; SessionM may go on with what it has."""
        with suppress(OSError):
            self.near.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.near.close()


Disturb = Callable[[Passage, bytes], bool]


def passes(_passage: Passage, _data: bytes) -> bool:
    return False
