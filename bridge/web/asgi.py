"""The Flask application for event loops.

Slow senders and slow readers cost memory here, never a thread: a body is read on the event loop,
whole, before a thread of the pool runs Flask on it.
"""

import asyncio
import contextlib
import io
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes, urlsplit

from flask import Flask

from bridge.intake.payload import MAX_BODY
from bridge.parts import parts_of
from bridge.web.arrivals import Arrivals
from bridge.web.auth import DELAY
from bridge.web.fastlane import LANE, FastLane, Offer
from bridge.web.webhooks import TAKEN

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

THREADS = 64
# So much of a body is read before Flask runs; a longer one is read by Flask, piece by piece.
READ_AHEAD = MAX_BODY + 1
# Seconds for a body, and for a piece of a long one: Braze takes milliseconds.
BODY_PATIENCE = 20.0
# So many refusals of wrong keys wait at once; who sends more of them gets theirs at once.
MOST_DELAYED = 1000
LINGER = 2.0
# Seconds in which a client must take a piece of a streamed answer.
READER_PATIENCE = 60.0


class Asgi:
    """*app* as an ASGI application; at most *threads* requests are in Flask at once.

    What it may repeat it leaves on the *lane* for the server to find there, and by *arrivals* the
    server takes in the webhooks of whom it has let in.
    """

    def __init__(self, app: Flask, threads: int = THREADS) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(threads, "web")
        self._delayed = 0
        self.arrivals = Arrivals(app)
        self.lane = FastLane(app, parts_of(app).settings.bridge_cache_entries)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._through_flask(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close"})

    def end(self) -> None:
        """Let the deliveries that are under way finish; none begins any more."""
        parts_of(self._app).delivery.stop()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Begin and end with the server (ASGI lifespan protocol)."""
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        self._pool.shutdown(wait=False)
        await send({"type": "lifespan.shutdown.complete"})

    async def _through_flask(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        body = await _body(scope["headers"], receive)
        offers: list[Offer] = []
        # A file that is asked for so many bytes has to give them all, or it is at its end.
        file = io.BufferedReader(body) if isinstance(body, _Rest) else body
        environ = _environ(scope, file, offers)
        call = _Call(self._app, environ, send, loop)
        await loop.run_in_executor(self._pool, call.run)
        if (delay := environ[DELAY]) and self._delayed < MOST_DELAYED:
            self._delayed += 1
            try:
                await asyncio.sleep(delay)
            finally:
                self._delayed -= 1
        headers = call.headers
        if (key_name := environ.get(TAKEN)) is not None:
            self.arrivals.admit(scope, key_name, headers)
        if not call.sent:
            if offers and call.status == 200 and scope["method"] == "GET":
                self.lane.keep(*_request(scope), offers[0], headers)
            # What is left of a body that is not read would be taken for the next request.
            unread = isinstance(body, _Rest) and not body.ended
            closing = [(b"Connection", b"close")] if unread else []
            await send(_start(call.status, headers + closing))
            await send({"type": "http.response.body", "body": call.body})
        if isinstance(body, _Rest) and not body.ended:
            await _drain(receive)


def _start(status: int, headers: Headers) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


@dataclass
class _Call:
    """One run of *app*. Its answer is whole in *body*, or was *sent* piece by piece."""

    app: Flask
    environ: dict[str, Any]
    send: Send
    loop: asyncio.AbstractEventLoop
    status: int = 500
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    sent: bool = False

    def run(self) -> None:
        """Run the application (in a thread of the pool)."""
        chunks: Iterable[bytes] = self.app(self.environ, self._started)
        try:
            pieces = iter(chunks)
            self.body = next(pieces, b"")
            # Whatever has no length is made while it is sent.
            streams = not any(name.lower() == b"content-length" for name, _ in self.headers)
            following = None if streams else next(pieces, None)
            if not streams and following is None:
                return
            self.sent = True
            self._send(_start(self.status, self.headers))
            self._send_piece(self.body)
            if following is not None:
                self._send_piece(following)
            for piece in pieces:
                self._send_piece(piece)
            self._send({"type": "http.response.body", "body": b""})
        finally:
            if close := getattr(chunks, "close", None):
                close()

    def _started(
        self, status: str, headers: list[tuple[str, str]], _error: object = None
    ) -> Callable[[bytes], object]:
        self.status = int(status[:3])
        self.headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        return _no_write

    def _send_piece(self, piece: bytes) -> None:
        self._send({"type": "http.response.body", "body": piece, "more_body": True})

    def _send(self, message: Message) -> None:
        sending = asyncio.run_coroutine_threadsafe(_await(self.send(message)), self.loop)
        try:
            sending.result(READER_PATIENCE)
        finally:
            sending.cancel()


async def _await(waited: Awaitable[None]) -> None:
    await waited


def _no_write(_data: bytes) -> None:
    raise NotImplementedError("answers are returned here, not written")


async def _body(headers: Headers, receive: Receive) -> "io.BytesIO | _Rest":
    """The request's body, of which `READ_AHEAD` bytes are here already if it is so long."""
    read = bytearray()
    if not any(name in _FRAMING and value != b"0" for name, value in headers):
        return io.BytesIO()
    loop = asyncio.get_running_loop()
    until = loop.time() + BODY_PATIENCE
    try:
        async with asyncio.timeout_at(until):
            while len(read) < READ_AHEAD:
                piece, goes_on = await _next(receive)
                read += piece
                if not goes_on:
                    return io.BytesIO(read)
                _check_time(until)
    except (TimeoutError, ConnectionError):
        return _Rest(bytes(read), _cut)

    def more() -> tuple[bytes, bool]:
        arriving = asyncio.run_coroutine_threadsafe(_next(receive), loop)
        try:
            return arriving.result(BODY_PATIENCE)
        finally:
            arriving.cancel()

    return _Rest(bytes(read), more)


_FRAMING = {b"content-length", b"transfer-encoding"}


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of a body, and whether more follow."""
    message = await receive()
    if message["type"] != "http.request":
        _cut()
    return message.get("body", b""), message.get("more_body", False)


async def _drain(receive: Receive) -> None:
    """Let the sender of too long a body come to read the answer.

    To close a connection with something unread on it would take the answer away again.
    """
    until = asyncio.get_running_loop().time() + LINGER
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout_at(until):
            while (await _next(receive))[1]:
                _check_time(until)


def _check_time(until: float) -> None:
    """Python 3.11 forgets that a time is up if something comes at that very moment."""
    if asyncio.get_running_loop().time() >= until:
        raise TimeoutError


def _cut() -> NoReturn:
    raise ConnectionError("the body ended before its end, or came too slowly")


class _Rest(io.RawIOBase):
    """A body as a file: what has been *read* of it, then what *more* gives, piece by piece.

    *ended* tells whether all of it has come.
    """

    def __init__(self, read: bytes, more: Callable[[], tuple[bytes, bool]]) -> None:
        self._read = read
        self._more = more
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._read and not self.ended:
            self._read, goes_on = self._more()
            self.ended = not goes_on
        size = min(len(buffer), len(self._read))
        buffer[:size] = self._read[:size]
        self._read = self._read[size:]
        return size


def _environ(scope: Scope, body: Any, offers: list[Offer]) -> dict[str, Any]:
    """*scope* as PEP 3333 has it, as gunicorn's own workers make it."""
    path = _path(scope)
    client = scope.get("client") or ("", 0)
    server = scope.get("server") or ("localhost", 80)
    query = scope["query_string"].decode("latin-1")
    raw = scope.get("raw_path", b"").decode("latin-1")
    environ: dict[str, Any] = {
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": scope.get("root_path", ""),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": f"{raw}?{query}" if query else raw,
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        LANE: offers,
        DELAY: 0.0,
    }
    for name, value in scope["headers"]:
        key, text = _variable(name), value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


def _request(scope: Scope) -> tuple[bytes, Headers, str]:
    """The target, the headers and the address of *scope*."""
    query: bytes = scope["query_string"]
    target: bytes = scope["raw_path"] + (b"?" + query if query else b"")
    return target, scope["headers"], (scope.get("client") or ("",))[0]


def _path(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    if raw.startswith(b"/"):
        return raw
    # A proxy's form of the target: http://host/path.
    return urlsplit(raw).path


@lru_cache(512)
def _variable(name: bytes) -> str:
    """A header's name in the environment of WSGI."""
    text = name.decode("latin-1").upper().replace("-", "_")
    return text if text in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{text}"
