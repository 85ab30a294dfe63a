"""Run Flask in a thread for the event loop: WSGI (PEP 3333) over ASGI, and the data both share.

The package `a2wsgi` does the same, but it changes paths that are not UTF-8, and it has no limit for
the part of a body in memory.
"""

import asyncio
import io
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Flask

from bridge.storage.database import StoreUnavailableError
from bridge.web.ready import ReadyAnswer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_EXCHANGE = "bridge.exchange"
# Seconds in which a client must send a part of a long body, or receive a part of an answer.
CLIENT_TIMEOUT = 60.0


@dataclass(slots=True)
class Exchange:
    """Data about one request that the event loop and Flask share, in its WSGI environment.

    Attributes:
        arrived: when the request arrived, by `time.monotonic`.
        failure: the reason why the event loop could not store the webhook; the view raises it.
        delay: seconds by which the event loop delays the answer.
        ready: the answer, if the event loop may send it again.
    """

    arrived: float = field(default_factory=time.monotonic)
    failure: StoreUnavailableError | None = None
    delay: float = 0.0
    ready: ReadyAnswer | None = None

    def enter(self, environ: MutableMapping[str, Any]) -> None:
        """Put this into the WSGI environment of its request."""
        environ[_EXCHANGE] = self


def exchange_of(environ: MutableMapping[str, Any]) -> Exchange:
    """Return the exchange of a request. Under plain WSGI, the first call creates it."""
    found: Exchange = environ.get(_EXCHANGE) or Exchange()
    found.enter(environ)
    return found


class FlaskCall:
    """One call of Flask for one request.

    Attributes:
        status, headers, body: the answer.
        is_sent: whether the answer was sent in parts already; *body* is then only the first part.
    """

    def __init__(
        self,
        app: Flask,
        environ: dict[str, Any],
        send: Send,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._app = app
        self._environ = environ
        self._send_message = send
        self._loop = loop
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.is_sent = False

    def run(self) -> None:
        """Call the application; runs in a thread.

        Raises:
            TimeoutError: the client does not send or receive in time.
            ConnectionError: the client disconnected before the end of its body.
        """
        answer: Iterable[bytes] = self._app(self._environ, self._start)
        try:
            chunks = iter(answer)
            self.body = next(chunks, b"")
            # An answer without a length is generated while it is sent.
            streams = not any(name.lower() == b"content-length" for name, _ in self.headers)
            second = None if streams else next(chunks, None)
            if streams or second is not None:
                self._stream(self.body, second or b"", chunks)
        finally:
            if close := getattr(answer, "close", None):
                close()

    def _stream(self, first: bytes, second: bytes, others: Iterable[bytes]) -> None:
        self.is_sent = True
        head = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        self._send(head)
        for chunk in (first, second, *others):
            if chunk:
                self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._send({"type": "http.response.body", "body": b""})

    def _start(
        self, status: str, headers: list[tuple[str, str]], _error: object = None
    ) -> Callable[[bytes], object]:
        self.status = int(status[:3])
        # uvicorn adds its own Date.
        self.headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in headers
            if name != "Date"
        ]
        return _write

    def _send(self, message: Message) -> None:
        _await_on(self._loop, self._send_message(message))


def _write(_data: bytes) -> None:
    raise RuntimeError("WSGI's write() is not supported: return the body instead")


def _await_on(loop: asyncio.AbstractEventLoop, awaited: Awaitable[Any]) -> Any:
    """Await on *loop* and return the result; called in a thread.

    Raises:
        TimeoutError: it takes longer than `CLIENT_TIMEOUT`.
    """

    async def run() -> Any:
        return await awaited

    future = asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        return future.result(CLIENT_TIMEOUT)
    finally:
        future.cancel()


class LongBody(io.RawIOBase):
    """A request body as a file: the part that was *read* already, then the rest by *receive*."""

    def __init__(
        self,
        read: bytes,
        receive: Receive,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._read = read
        self._receive = receive
        self._loop = loop
        self._has_more = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._read and self._has_more:
            message = _await_on(self._loop, self._receive())
            if message["type"] != "http.request":
                raise ConnectionError("the client disconnected before the end of its body")
            self._read = message.get("body", b"")
            self._has_more = message.get("more_body", False)
        size = min(len(buffer), len(self._read))
        buffer[:size] = self._read[:size]
        self._read = self._read[size:]
        return size


def environment(
    scope: Mapping[str, Any], path: bytes, headers: Mapping[str, str], body: bytes | LongBody
) -> dict[str, Any]:
    """Return the WSGI environment of a request.

    Args:
        scope: the scope of ASGI.
        path: the percent-encoded path.
        headers: values by name in lower case.
        body: the complete body, or a file.
    """
    root: str = scope.get("root_path", "")
    client = scope.get("client") or ("", 0)
    server = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        # Buffered: readers expect the requested number of bytes except at the end.
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else io.BufferedReader(body),
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": unquote_to_bytes(path.removeprefix(root.encode())).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
    }
    for name, value in headers.items():
        environ[_variable(name)] = value
    return environ


@lru_cache(512)
def _variable(name: str) -> str:
    """Return the WSGI name of a header."""
    text = name.upper().replace("-", "_")
    return text if text in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{text}"
