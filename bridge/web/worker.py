"""gunicorn's `asgi` worker as the bridge runs it.

It adds what that one lacks: an end for clients that send or read too slowly and for idle
connections of a worker that is to stop, an answer for those who close their side when they have
asked, and gunicorn's own refusals in the shape of all others.
"""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from bridge.web.arrivals import Arrivals, Visit
from bridge.web.asgi import Asgi
from bridge.web.auth import request_id
from bridge.web.errors import error_body
from bridge.web.fastlane import FastLane

# Seconds from the beginning of a request, or of a connection, to the end of its headers.
HEADERS_PATIENCE = 15.0
# Seconds in which a client has to take what was written.
READER_PATIENCE = 20.0
# How often all connections are looked at: cheaper than a timer for each of them.
ROUND = 1.0
# So many objects more than before are no sign of garbage.
UNDER_WAY = 20_000

_REFUSALS = {
    400: ("bad_request", "This is no HTTP request that the bridge understands."),
    414: ("uri_too_long", "The URL is too long."),
    431: ("headers_too_large", "The headers are too large, or too many."),
    501: ("not_implemented", "The Transfer-Encoding is not understood: send chunked, or none."),
}
_FAULT = ("internal_error", "A fault of the bridge; its log says more.")


# What is used of it is not all in its published types.
_Connection: Any = ASGIProtocol


class Protocol(_Connection):  # type: ignore[misc]
    """One connection."""

    worker: "Worker"

    def __init__(self, worker: "Worker") -> None:
        super().__init__(worker)
        # When the client is late with its headers, and with reading; 0: it owes nothing.
        self._headers_due = 0.0
        self._reader_due = 0.0
        self._ended = False
        self._held = b""
        self._lane: FastLane | None = getattr(worker.asgi, "lane", None)
        self._arrivals: Arrivals | None = getattr(worker.asgi, "arrivals", None)
        # A webhook that is taken in here, until it is answered.
        self._visit: Visit | None = None
        # Whether the parser has nothing of the next request yet, and what came first of it.
        self._parser_rests = False
        self._came = b""
        self._for_flask = False
        self._address = ""
        self._repeat: bytes | None = None
        self._repeated_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._headers_due = time.monotonic() + HEADERS_PATIENCE
        self.worker.connections.add(self)
        self._address = (transport.get_extra_info("peername") or ("",))[0]
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._held or (self._is_busy and self._is_whole):
            # The next request, before this one is done with. The parser in C keeps a little of
            # it only, and the connection would be closed.
            self._held += data
            self._pause_reading()
            return
        if not self._is_busy and not self._headers_due:
            self._headers_due = time.monotonic() + HEADERS_PATIENCE
        # Asked first, since lookups are far more, and cost little more than this would.
        is_new_post = self._parser_rests and data.startswith(b"POST ")
        if is_new_post and self._is_recognised(data):
            return
        self._came = data if is_new_post else b""
        self._parser_rests = False
        super().data_received(data)
        while self._repeat is not None:
            self._send(self._repeat)

    @property
    def _is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._current_request is not None or self._visit is not None

    @property
    def _is_whole(self) -> bool:
        """Whether all of the request under way is here."""
        if self._visit is not None:
            return self._visit.is_stored
        return bool(self._callback_parser and self._callback_parser.is_complete)

    @property
    def _is_open(self) -> bool:
        """Whether one more request may be taken in here."""
        return self.worker.alive and not (self._closed or self._flow_control.write_paused)

    def _is_recognised(self, data: bytes) -> bool:
        """Whether *data* is a webhook that is taken in unparsed."""
        if self._arrivals is None or not self._is_open:
            return False
        self._visit = self._arrivals.recognise(data, self._address, self._answer)
        if self._visit is None:
            return False
        if self._arrivals.take(self._visit):
            self._headers_due = 0.0
            return True
        self._visit = None
        return False

    def _resume_reading(self) -> None:
        if self._held:
            # Once the parser is ready for it.
            asyncio.get_running_loop().call_soon(self._take_held)
        else:
            super()._resume_reading()

    def _take_held(self) -> None:
        held, self._held = self._held, b""
        if held and not self._closed:
            super()._resume_reading()
            self.data_received(held)

    def _on_headers_complete(self) -> Any:
        self._headers_due = 0.0
        # Of what came only the first head is known to stand at its beginning.
        came, self._came = self._came, b""
        parser = self._callback_parser
        # Only where nothing else is under way on this connection, and where it stays open.
        if (
            self._awaiting_request
            and self._lane is not None
            and self._arrivals is not None
            and parser.http_version == (1, 1)
            and parser.should_keep_alive
            and self._is_open
            and not self._for_flask
        ):
            headers = getattr(parser, "asgi_headers", None) or parser.headers
            if parser.method == b"GET":
                self._repeat = self._lane.repeat(parser.path, headers, self._address)
            elif parser.method == b"POST":
                self._visit = self._arrivals.expect(
                    parser.path, headers, self._address, self._answer, came
                )
            if self._repeat is not None or self._visit is not None:
                return False
        return super()._on_headers_complete()

    def _on_body(self, chunk: bytes) -> None:
        if self._visit is None:
            super()._on_body(chunk)
        else:
            self._visit.body += chunk

    def _on_message_complete(self) -> None:
        if self._visit is not None and self._arrivals is not None:
            if not self._arrivals.take(self._visit):
                self._leave_to_flask(whole=True)
        elif self._repeat is None:
            super()._on_message_complete()

    def _leave_to_flask(self, *, whole: bool) -> None:
        """Let the present webhook go on as a request like any other."""
        visit, self._visit = self._visit, None
        if visit is None:
            return
        if visit.unparsed:
            self._for_flask, self._parser_rests = True, False
            super().data_received(visit.unparsed)
            self._for_flask = False
            return
        super()._on_headers_complete()
        super()._on_body(visit.body)
        if whole:
            super()._on_message_complete()

    def _answer(self, answer: bytes | None) -> None:
        """Answer the webhook that was taken in; ``None`` leaves it to Flask after all."""
        if self._closed:
            self._visit = None
        elif answer is None:
            self._leave_to_flask(whole=True)
        else:
            self._visit = None
            self._send(answer)
            while self._repeat is not None:
                self._send(self._repeat)
            if not self._is_busy:
                self._resume_reading()

    def _send(self, answer: bytes) -> None:
        """Answer, and make ready for the next request, which may be here already."""
        self._repeat = None
        self._repeated_at = time.monotonic()
        self._safe_write(answer)
        if self._parser_rests:
            return
        parser = self._callback_parser
        if getattr(parser, "remaining_truncated", False):
            # More came behind it than the parser holds.
            self._close_transport()
            return
        following = parser.remaining()
        parser.reset()
        self._parser_rests = not following
        if following:
            self._feed_callback_parser(following)

    def pause_writing(self) -> None:
        self._reader_due = time.monotonic() + READER_PATIENCE
        super().pause_writing()

    def resume_writing(self) -> None:
        self._reader_due = 0.0
        super().resume_writing()

    def eof_received(self) -> bool:
        """The client sends no more; if it has asked it may still want the answer."""
        self._ended = True
        if self._visit is not None and not self._visit.is_stored:
            self._leave_to_flask(whole=False)
        if self._visit is not None:
            return True
        if self._current_request is None:
            return False
        if not self._body_receiver._complete:  # noqa: SLF001 - it tells nobody else
            self._body_receiver.signal_disconnect()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    def look_after(self, now: float) -> None:
        """Close the connection if its client is late, or if it serves no purpose any more."""
        if self._reader_due and now > self._reader_due:
            self.transport.abort()
        elif self._closed:
            # It ends when the client has read the rest.
            self._reader_due = self._reader_due or now + READER_PATIENCE
        elif self._visit is not None:
            if not self._visit.is_stored or self._visit.take_back(now):
                # A slow sender, or a slow database: whoever waits for them, waits there.
                self._leave_to_flask(whole=self._visit.is_stored)
        elif self._current_request is None and not self._finishing_calls:
            if self._headers_due:
                over = now > self._headers_due
            elif self._keepalive_handle is None:
                over = now > self._repeated_at + self._keepalive
            else:
                over = False
            if over or (not self._headers_due and (self._ended or not self.worker.alive)):
                self._close_transport()

    def _keepalive_timeout(self) -> None:
        # It is set by what Flask answers; what is answered without it leaves it alone.
        since = time.monotonic() if self._visit is not None else self._repeated_at
        remaining = since + self._keepalive - time.monotonic()
        if remaining > 0:
            loop = asyncio.get_running_loop()
            self._keepalive_handle = loop.call_later(remaining, self._keepalive_timeout)
        else:
            super()._keepalive_timeout()

    def _is_websocket_upgrade(self, request: object) -> bool:  # noqa: ARG002
        return False

    def _send_error_response(
        self,
        status: int,
        message: str,  # noqa: ARG002 - it may quote the request
        extra_headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        body = error_body(*_REFUSALS.get(status, _FAULT))
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"X-Request-Id: {request_id('')}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in extra_headers)
            + "Connection: close\r\n\r\n"
        )
        self._safe_write(head.encode() + body)


class Worker(gasgi.ASGIWorker):
    """The worker with these connections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connections: set[Protocol] = set()

    def init_process(self) -> None:
        # Looked up by the class, and noted there, where its subclasses find it.
        _Connection._check_h1c_protocol_available()  # noqa: SLF001
        # The worker takes the class of its connections from there.
        gasgi.ASGIProtocol = Protocol  # type: ignore[attr-defined]
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        # uvloop forgets a signal that comes before it runs, and the worker would live on.
        signal.signal(signal.SIGTERM, lambda *_: self.handle_exit_signal())

    def load_wsgi(self) -> None:
        super().load_wsgi()
        # What is loaded stays: looking through it for garbage took 100 ms now and then.
        gc.collect()
        gc.freeze()
        # What is under way at once is far more than the 700 objects after which Python looks.
        gc.set_threshold(UNDER_WAY, 20)

    def run(self) -> None:
        try:
            super().run()
        finally:
            # While Python still lets it send what it is about to send.
            if isinstance(self.asgi, Asgi):
                self.asgi.end()

    async def _serve(self) -> None:
        looking = asyncio.create_task(self._look_after())
        try:
            if self.sockets:
                await super()._serve()  # type: ignore[misc]
            else:
                await self._live()
        finally:
            looking.cancel()

    async def _live(self) -> None:
        """What delivers has no socket, and shows gunicorn only that it lives."""
        while self.alive and self.ppid == os.getppid():
            self.notify()
            await asyncio.sleep(ROUND)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(ROUND)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.look_after(now)
