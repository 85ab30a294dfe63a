"""Serve the sandbox on a port, in a thread or as a command."""

import contextlib
import io
import shlex
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any, Self
from wsgiref.types import WSGIEnvironment

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.test import run_wsgi_app

from bridge.sandbox.application import Sandbox
from bridge.sandbox.seed import SEED, load_seed


class _Handler(WSGIRequestHandler):
    """HTTP/1.1 with keep-alive.

    Werkzeug's own handler closes the connection after every answer, and sends head and body in
    separate packets, which costs 40 ms (Nagle) on a kept connection.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 300  # seconds of silence
    reset = False

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        try:
            # Read the whole body: the rest would be parsed as the next request.
            environ["wsgi.input"] = io.BytesIO(self._body(environ))
            environ["wsgi.input_terminated"] = True
            self._answer(environ)
        except ConnectionError as hang_up:
            self.reset = isinstance(hang_up, ConnectionResetError)
            self.close_connection = True

    def _body(self, environ: WSGIEnvironment) -> bytes:
        if environ.get("wsgi.input_terminated"):  # sent in chunks, which are joined here
            return bytes(environ["wsgi.input"].read())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, environ: WSGIEnvironment) -> None:
        body, status, headers = run_wsgi_app(self.server.app, environ)
        headers["Date"] = self.date_time_string()
        headers["Connection"] = "close" if self.close_connection else "keep-alive"
        head = f"HTTP/1.1 {status}\r\n{headers}".encode("latin-1")
        self.wfile.write(head + next(iter(body), b""))
        for part in body:
            self.wfile.write(part)

    def finish(self) -> None:
        super().finish()
        if self.reset:
            # Close without lingering, so that the kernel sends RST. The server would first shut
            # the connection down with FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log(self, *args: object, **kwargs: object) -> None:
        """Log nothing: `GET /sandbox/calls` has the calls."""


class _Server(ThreadedWSGIServer):
    """A server that can close all of its open connections."""

    def __init__(self, listener: socket.socket, app: Sandbox) -> None:
        host, port = listener.getsockname()[:2]
        self._connections: set[socket.socket] = set()
        super().__init__(host, port, app, _Handler, fd=listener.fileno())

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in self._connections.copy():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class SandboxServer:
    """The sandbox on a port of this machine; it can be started and stopped repeatedly.

    `port` 0 chooses a free port, which later starts use again. `start` raises OSError if the port
    is in use.
    """

    def __init__(self, sandbox: Sandbox, host: str, port: int) -> None:
        self.sandbox = sandbox
        self.host = host
        self.port = port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> Self:
        """Serve in a thread; connections are accepted when this returns."""
        if self._server is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            address = (self.host, self.port)
            with socket.create_server(address, family=family, backlog=1024) as listener:
                self._server = _Server(listener, self.sandbox)
            self.port = self._server.port
            threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse new connections, and close open ones."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 9090) -> SandboxServer:
    """Start a server for the sandbox and return it. Raises OSError if the port is in use."""
    return SandboxServer(sandbox, host, port).start()


def run(host: str, port: int, seed: Path | None) -> None:
    """Print instructions, and serve in the foreground until Ctrl-C or SIGTERM.

    Raises SeedError for a bad seed file, OSError if the port is in use.
    """
    # A shell script starts background jobs with SIGINT ignored.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    sandbox = Sandbox(seed=load_seed(seed or SEED))
    with serve(sandbox, host, port) as server, contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(_instructions(server))
        sys.stdout.flush()
        threading.Event().wait()


def _instructions(server: SandboxServer) -> str:
    settings = server.sandbox.credentials.environment(server.url)
    lines = [
        f"SessionM sandbox on {server.url}",
        "A stand-in for demonstrations and tests: it is not SessionM.",
        "\nSettings that make it the bridge's SessionM and Braze:",
        *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
        "\nCustomers:",
        *(
            f"  {each['user_id']}  {each['external_id'] or '-'}"
            f"  (offers: {each['offers']}, tags: {', '.join(each['tags']) or 'none'})"
            for each in server.sandbox.customers(20)
        ),
        f"\nMake it fail: POST {server.url}/sandbox/faults",
        f"List received calls: GET {server.url}/sandbox/calls",
        f"List messages sent by Braze: GET {server.url}/sandbox/messages",
        "Ctrl-C ends it.\n",
    ]
    return "\n".join(lines)
