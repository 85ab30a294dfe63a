"""The ASGI application.

It sends cached lookups from memory and stores webhooks on the event loop. Flask answers all other
requests in a thread.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Flask

from bridge import clock
from bridge.fields import FieldError
from bridge.intake.payload import MAX_BODY, RefusedError
from bridge.outbox.accept import ReceivedRequest
from bridge.parts import parts_of, start
from bridge.storage.database import StoreUnavailableError
from bridge.web.auth import Caller, Keyring, request_id
from bridge.web.counting import AnsweredRequest, count
from bridge.web.messages import MESSAGE
from bridge.web.ready import Headers, ReadyAnswers
from bridge.web.threads import Exchange, FlaskCall, LongBody, Receive, Send, environment
from bridge.web.webhooks import WEBHOOK, Deliveries, IntakePath, read_wait

T = TypeVar("T")
Scope = MutableMapping[str, Any]

# Threads for lookups, and the same number for all other requests.
THREADS = 64
# Lookups have threads of their own: each frees its thread by its deadline, so that no lookup waits
# for a thread longer than its own deadline. By POST, `/priv/` has tag writes and batch jobs.
_LOOKUPS = ("/connected-content/", "/offers/")
_LOOKUPS_BY_GET = "/priv/"
# Headers of browsers: Flask rejects webhooks that another site's page sends.
_BROWSERS = {"origin", "sec-fetch-site"}
_INTAKE = {path.path.encode(): path for path in (WEBHOOK, MESSAGE)}


@dataclass(slots=True)
class Request:
    """A request.

    Attributes:
        scope: the scope of ASGI.
        headers: value by name in lower case; repeated ones are joined by commas.
        address: the client's address.
        arrived: when the request arrived, by `time.monotonic`.
    """

    scope: Scope
    headers: dict[str, str]
    address: str
    arrived: float

    @property
    def path(self) -> bytes:
        raw: bytes = self.scope.get("raw_path") or self.scope["path"].encode()
        return raw

    @property
    def target(self) -> bytes:
        query: bytes = self.scope["query_string"]
        return self.path + b"?" + query if query else self.path

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


@dataclass(slots=True)
class EdgeAnswer:
    status: int
    headers: Headers
    body: bytes

    async def send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(head)
        await send({"type": "http.response.body", "body": self.body})


class Asgi:
    """*app* as an ASGI application.

    Args:
        app: the Flask application.
        threads: the number of threads for lookups, and again for all other requests.
    """

    def __init__(self, app: Flask, threads: int = THREADS) -> None:
        self._app = app
        settings = parts_of(app).settings
        self._keyring = Keyring(settings)
        self._braze_on = settings.braze_on
        self._ready = ReadyAnswers(settings.bridge_cache_entries)
        self._lookup_threads = ThreadPoolExecutor(threads, "lookup")
        self._threads = ThreadPoolExecutor(threads, "web")
        # One count of the queue serves all webhooks that wait for it.
        self._counting = asyncio.Lock()
        self._deliveries = Deliveries(app, self._threads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(self._request(scope), receive, send)
        else:
            await send({"type": "websocket.close"})

    def _request(self, scope: Scope) -> Request:
        headers = _read_headers(scope["headers"])
        peer = (scope.get("client") or ("",))[0]
        address = self._keyring.address_of(peer, headers.get("x-forwarded-for", ""))
        return Request(scope, headers, address, time.monotonic())

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        if request.scope["method"] == "GET" and (answer := self._from_memory(request)):
            await answer.send(send)
            return
        read = await _read_ahead(request.headers, receive)
        if read is None:
            # The client has disconnected.
            return
        body, has_more = read
        exchange = Exchange(request.arrived)
        if path := self._intake_path(request, body):
            try:
                if answer := await self._accept(path, request, body):
                    await answer.send(send)
                    return
            except StoreUnavailableError as failure:
                exchange.failure = failure
        loop = asyncio.get_running_loop()
        rest = LongBody(body, receive, loop) if has_more else None
        await self._through_flask(request, exchange, rest or body, send)

    def _from_memory(self, request: Request) -> EdgeAnswer | None:
        now = clock.now()
        ready = self._ready.get(request.target, request.headers, now)
        if ready is None:
            return None
        caller = self._keyring.authorise("content", request.authorization, request.address)
        if not isinstance(caller, Caller):
            return None
        name = request_id(request.headers.get("x-request-id", ""))
        headers = [*ready.update(now), (b"x-request-id", name.encode())]
        if "if-none-match" in request.headers:
            answer = EdgeAnswer(304, headers, b"")
        else:
            answer = EdgeAnswer(200, [*_content(ready.body), *headers], ready.body)
        answered = AnsweredRequest(
            kind=ready.kind,
            method="GET",
            route=ready.route,
            status=answer.status,
            cache_status=ready.cache_status,
            seconds=time.monotonic() - request.arrived,
            request_id=name,
            key_name=caller.key_name,
        )
        count(parts_of(self._app), answered)
        return answer

    def _intake_path(self, request: Request, body: bytes) -> IntakePath | None:
        """Return the path of a webhook or message that the event loop can store."""
        path = _INTAKE.get(request.path)
        if path is None or (path.message and not self._braze_on):
            return None
        is_plain = (
            request.scope["method"] == "POST"
            and len(body) <= MAX_BODY
            and _BROWSERS.isdisjoint(request.headers)
        )
        return path if is_plain else None

    async def _accept(self, path: IntakePath, request: Request, body: bytes) -> EdgeAnswer | None:
        """Store a webhook or message; ``None``: Flask must answer, which keeps a rejected one.

        Raises:
            StoreUnavailableError: it is not stored.
        """
        headers, parts = request.headers, parts_of(self._app)
        caller = self._keyring.authorise(path.scope, request.authorization, request.address)
        if not (isinstance(caller, Caller) and await self._has_room()):
            return None
        name = request_id(headers.get("x-request-id", ""))
        received = ReceivedRequest(
            body,
            headers.get("content-type", ""),
            headers.get("idempotency-key"),
            caller.key_name,
            name,
            message=path.message,
        )
        try:
            query = request.scope["query_string"].decode("latin-1")
            wait = read_wait(query, headers.get("prefer", ""))
            acceptance = await parts.acceptor.accept_async(received)
        except (FieldError, RefusedError):
            return None
        if wait and not acceptance.earlier and await self._deliveries.wait_for(acceptance.id, wait):
            content, status = await self._in_thread(path.delivered_answer, parts, acceptance)
        else:
            content, status = path.accepted(acceptance)
        answered = AnsweredRequest(
            kind=path.kind,
            method="POST",
            route=path.path,
            status=status,
            cache_status="",
            seconds=time.monotonic() - request.arrived,
            request_id=name,
            key_name=caller.key_name,
            waited=wait > 0,
        )
        count(parts, answered)
        return EdgeAnswer(status, [*_content(content), (b"x-request-id", name.encode())], content)

    async def _has_room(self) -> bool:
        acceptor = parts_of(self._app).acceptor
        if not acceptor.has_room():
            async with self._counting:
                await self._in_thread(acceptor.recount)
        return acceptor.has_room()

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _through_flask(
        self, request: Request, exchange: Exchange, body: "bytes | LongBody", send: Send
    ) -> None:
        loop = asyncio.get_running_loop()
        environ = environment(request.scope, request.path, request.headers, body)
        exchange.enter(environ)
        call = FlaskCall(self._app, environ, send, loop)
        path = environ["PATH_INFO"]
        is_lookup = path.startswith(_LOOKUPS) or (
            path.startswith(_LOOKUPS_BY_GET) and environ["REQUEST_METHOD"] == "GET"
        )
        await loop.run_in_executor(self._lookup_threads if is_lookup else self._threads, call.run)
        if exchange.delay:
            await asyncio.sleep(exchange.delay)
        if call.is_sent:
            return
        if exchange.ready and call.status == 200 and request.scope["method"] == "GET":
            self._ready.put(request.target, exchange.ready, call.headers)
        await EdgeAnswer(call.status, call.headers, call.body).send(send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start and end with the server (the lifespan protocol of ASGI)."""
        await receive()
        start(self._app)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        # The server may end this process as soon as the shutdown is complete.
        await asyncio.to_thread(parts_of(self._app).close)
        await send({"type": "lifespan.shutdown.complete"})


def _content(body: bytes) -> Headers:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


def _read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the values of headers by name; commas join the values of a repeated header.

    A name with an underscore is left out: in WSGI it equals the name with a hyphen.
    """
    headers: dict[str, str] = {}
    for name, value in raw:
        if b"_" in name:
            continue
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


async def _read_ahead(headers: Mapping[str, str], receive: Receive) -> tuple[bytes, bool] | None:
    """Read the body until more than `MAX_BODY` bytes are there, or its end.

    Returns:
        The bytes and whether more of the body follows; ``None`` if the client disconnected.
    """
    read = bytearray()
    has_more = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    while has_more and len(read) <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        read += message.get("body", b"")
        has_more = message.get("more_body", False)
    return bytes(read), has_more
