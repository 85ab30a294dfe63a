"""An HTTP client with one deadline for everything that a call does.

For one API on one host and many threads. Connections are kept alive. A call uses an idle connection
or the first one that becomes idle or is opened.
"""

import http.client
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from urllib.parse import urlsplit

from bridge import __version__
from bridge.network.authorities import authorities
from bridge.network.dial import (
    DIAL_TIMEOUT,
    Attempt,
    Dialer,
    Opened,
    Origin,
    Resolve,
    resolve_name,
)
from bridge.network.failure import (
    NetworkError,
    NotSentError,
    OversizeAnswerError,
    seconds_shown,
)
from bridge.network.proxy import proxy_for
from bridge.network.timed import TimedSocket

# Connections kept, and opened at the same time, by default.
CONNECTIONS = 64
# Seconds without use. Load balancers and firewalls drop idle connections after 60 s or more.
MAX_IDLE = 30.0
# Seconds after which a connection is replaced, so that a change of the host's addresses is noticed.
MAX_AGE = 300.0
# Seconds without use after which a connection may be dead. A read on it gets half of the time, so
# that the other half is left for a new connection.
SUSPECT_AFTER = 5.0
# Consecutive answers of 500 and above after which an address counts as unhealthy.
UNHEALTHY_AFTER = 5
# Seconds past its deadline after which a call counts as overdue.
GRACE = 1.0

MaySend = Callable[[], bool]


@dataclass(frozen=True)
class HttpAnswer:
    """A complete answer.

    Attributes:
        status: the HTTP status.
        headers: values by name in lower case.
        body: the body, decompressed.
        sent_at: when the first byte of the request was sent (`time.monotonic`).
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_at: float


@dataclass(frozen=True)
class HttpRequest:
    """A request.

    *path* is percent-encoded. *most* is the largest answer in bytes, decompressed. *repeatable*
    says whether the request may be sent again after getting no answer.
    """

    method: str
    path: str
    body: bytes | None
    most: int
    repeatable: bool


class HttpClient:
    """A client for one API. Thread-safe.

    Args:
        base_url: the URL before every path.
        setting: the name of the setting that holds *base_url*, for messages.
        headers: sent with every request.
        variables: proxies and certificate authorities, by the names in `proxy.VARIABLES` and
            `authorities.VARIABLES`.
        connections: the maximum number of kept connections, and of those opened at the same time.
        resolve: resolves a host name, like `socket.getaddrinfo`.
        now: the clock for the age of connections, in seconds. Deadlines use `time.monotonic`.

    Raises:
        ValueError: a proxy or an authority in *variables* cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        setting: str,
        headers: Mapping[str, str],
        variables: Mapping[str, str],
        connections: int = CONNECTIONS,
        resolve: Resolve = resolve_name,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(base_url)
        encrypted = parts.scheme == "https"
        port = parts.port or (443 if encrypted else 80)
        self.origin = Origin(parts.hostname or "", port, encrypted, setting)
        self.proxy = proxy_for(base_url, variables)
        trusted = authorities(variables) if encrypted else None
        self._headers = {
            "Host": parts.netloc,
            "User-Agent": f"braze-sessionm-bridge/{__version__}",
            "Accept-Encoding": "gzip",
            **headers,
        }
        # For plain HTTP, a proxy forwards requests, which then hold the whole URL.
        forwards = self.proxy is not None and not encrypted
        self._root = (base_url if forwards else parts.path).rstrip("/")
        if self.proxy and forwards and self.proxy.authorization:
            self._headers["Proxy-Authorization"] = self.proxy.authorization
        self._dialer = Dialer(self.origin, self.proxy, trusted, resolve)
        self._connections = connections
        self._now = now
        self._lock = threading.Lock()
        # The most recently used connection is at the right, and is used next.
        self._idle: deque[_Link] = deque()
        # Calls that wait for a connection, oldest first.
        self._waiting: dict[Future[_Link], None] = {}
        self._opening = 0
        self._server_errors = 0
        self._closed = False
        self._deadlines: dict[object, float] = {}

    def call(
        self,
        request: HttpRequest,
        seconds: float,
        may_send: MaySend = lambda: True,
    ) -> HttpAnswer:
        """Send *request* and read the whole answer within *seconds*.

        Args:
            request: the request.
            seconds: the time limit for name look-up, connection, proxy, TLS, request and answer.
            may_send: called right before the first byte is sent, since the process may have been
                frozen after the decision to make the call.

        Raises:
            NetworkError: there is no answer; `sent_at` says whether anything was sent.
            NotSentError: *may_send* returned false; nothing was sent.
        """
        began = time.monotonic()
        until = began + seconds
        mark = object()
        self._deadlines[mark] = until
        try:
            return self._call(request, until, seconds, may_send)
        finally:
            del self._deadlines[mark]

    def overdue(self) -> int:
        """Return the number of calls past their deadline; any is a fault of the bridge."""
        latest = time.monotonic() - GRACE
        return sum(until < latest for until in list(self._deadlines.values()))

    def close(self) -> None:
        """Close idle connections; calls in progress close theirs when they end."""
        with self._lock:
            self._closed = True
        self._drop_idle()

    def _call(
        self, request: HttpRequest, until: float, seconds: float, may_send: MaySend
    ) -> HttpAnswer:
        link = self._take(until, seconds)
        kept, first_until = not link.is_new, until
        if kept and request.repeatable and self._now() - link.used_at > SUSPECT_AFTER:
            first_until -= (until - time.monotonic()) / 2
        try:
            return self._exchange(link, request, first_until, seconds, may_send)
        except OversizeAnswerError:
            raise
        except NetworkError as error:
            again = request.repeatable or error.sent_at is None
            if not (kept and again) or time.monotonic() >= until:
                raise
        # The connection was dead. The failure closed all idle connections, so this one is new.
        return self._exchange(self._take(until, seconds), request, until, seconds, may_send)

    def _exchange(
        self,
        link: "_Link",
        request: HttpRequest,
        until: float,
        seconds: float,
        may_send: MaySend,
    ) -> HttpAnswer:
        """Send a request on *link* and read the answer; then keep or close *link*."""
        link.timed.begin(until, may_send)
        healthy = False
        try:
            link.http.request(
                request.method, self._root + request.path, request.body, self._headers
            )
            link.timed.flush()
            with link.http.getresponse() as response:
                body = _read(response, request.most)
                healthy = self._may_reuse(link, response.status)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpAnswer(response.status, headers, body, link.timed.sent_at or 0.0)
        except NotSentError:
            raise
        except OversizeAnswerError as error:
            error.sent_at = link.timed.sent_at
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: a malformed answer can make the parser raise it.
            self._dialer.avoid(link.address)
            self._drop_idle()
            raise self._failure(error, link.timed.sent_at, seconds) from error
        finally:
            if healthy and link.http.sock is not None:
                self._keep(link)
            else:
                link.timed.end()

    def _may_reuse(self, link: "_Link", status: int) -> bool:
        """Return whether *link* may be used again after an answer of *status*.

        A load balancer that was taken out of service may keep answering 503, while the host name
        resolves to another address already.
        """
        if status < 500:
            self._server_errors = 0
            self._dialer.stop_avoiding(link.address)
            return True
        self._server_errors += 1
        if self._server_errors < UNHEALTHY_AFTER:
            return True
        self._dialer.avoid(link.address)
        self._drop_idle()
        return False

    def _failure(self, error: Exception, sent_at: float | None, seconds: float) -> NetworkError:
        host = self.origin.host
        if isinstance(error, TimeoutError) and sent_at is None:
            what = f"the {seconds_shown(seconds)} of the call were over before anything was sent"
            return NetworkError(what, "check the load of this machine", timed_out=True)
        if isinstance(error, TimeoutError):
            what = f"no answer from {host} within {seconds_shown(seconds)}"
            remedy = f"{host} is slow, or a firewall drops packets"
            return NetworkError(what, remedy, sent_at=sent_at, timed_out=True)
        if isinstance(error, http.client.RemoteDisconnected):
            what = f"{host}, or a device on the way, closed the connection without an answer"
        elif isinstance(error, ConnectionResetError):
            what = f"{host}, or a device on the way, reset the connection"
        elif isinstance(error, http.client.IncompleteRead):
            what = f"the answer of {host} is incomplete"
        elif isinstance(error, OSError):
            what = f"the connection to {host} broke ({error.strerror or type(error).__name__})"
        else:
            what = f"the answer of {host} is not HTTP ({type(error).__name__})"
        remedy = f"check {self.origin.setting}, and load balancers and firewalls on the way"
        return NetworkError(what, remedy, sent_at=sent_at)

    # Connections.

    def _take(self, until: float, seconds: float) -> "_Link":
        """Return an idle connection, or wait until *until* for one that is freed or opened.

        Raises:
            NetworkError: no connection was available in time, or none can be opened.
        """
        with self._lock:
            while self._idle:
                link = self._idle.pop()
                if link.is_usable(self._now()):
                    return link
                link.timed.end()
            waiter: Future[_Link] = Future()
            self._waiting[waiter] = None
            attempt = Attempt(time.monotonic() + DIAL_TIMEOUT)
            if starts := self._opening < self._connections:
                self._opening += 1
        if starts:
            threading.Thread(
                target=self._open, args=[attempt, waiter], name="dial", daemon=True
            ).start()
        try:
            return waiter.result(max(0.0, until - time.monotonic()))
        except FutureTimeoutError:
            with self._lock:
                if waiter not in self._waiting:
                    # A connection was assigned between the time-out and the lock.
                    return waiter.result()
                del self._waiting[waiter]
        what = f"no connection to {self.origin.host} within {seconds_shown(seconds)}"
        stage = attempt.stage or f"{self._opening} connections are being opened"
        raise NetworkError(f"{what}: {stage}", attempt.remedy, timed_out=True)

    def _open(self, attempt: Attempt, waiter: "Future[_Link]") -> None:
        """Open a connection for *waiter*, or for the call that waits longest by then.

        Then open the next one if fewer are being opened than calls wait.
        """
        while True:
            try:
                self._keep(_Link(self._dialer.open(attempt), self.origin.host, self._now()))
            except Exception as error:  # noqa: BLE001 - raised in the waiting call
                with self._lock:
                    if waiter in self._waiting:
                        del self._waiting[waiter]
                        waiter.set_exception(error)
            with self._lock:
                if len(self._waiting) < self._opening:
                    self._opening -= 1
                    return
                waiter = next(iter(self._waiting))
            attempt = Attempt(time.monotonic() + DIAL_TIMEOUT)

    def _keep(self, link: "_Link") -> None:
        """Hand *link* to the call that has waited longest, or keep it as idle."""
        with self._lock:
            link.used_at = now = self._now()
            if self._waiting:
                waiter = next(iter(self._waiting))
                del self._waiting[waiter]
                waiter.set_result(link)
                return
            surplus = []
            if self._closed:
                surplus.append(link)
            else:
                link.was_idle = True
                self._idle.append(link)
            while self._idle and (
                len(self._idle) > self._connections or now - self._idle[0].used_at > MAX_IDLE
            ):
                surplus.append(self._idle.popleft())
        for one in surplus:
            one.timed.end()

    def _drop_idle(self) -> None:
        """Close every idle connection: the cause of a failure may affect all of them."""
        with self._lock:
            dropped = list(self._idle)
            self._idle.clear()
        for link in dropped:
            link.timed.end()


class _Link:
    """One connection and when it was opened and last used."""

    def __init__(self, opened: Opened, host: str, now: float) -> None:
        self.address = opened.address
        self.timed = TimedSocket(opened.sock)
        self.http = http.client.HTTPConnection(host)
        self.http.sock = self.timed
        self.opened_at = self.used_at = now
        self.was_idle = False

    @property
    def is_new(self) -> bool:
        """Whether it was opened just now: no request was sent on it, and it was never idle."""
        return self.timed.sent_at is None and not self.was_idle

    def is_usable(self, now: float) -> bool:
        young = now - self.used_at < MAX_IDLE and now - self.opened_at < MAX_AGE
        return young and self.timed.is_quiet()


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    """Read and decompress the whole body.

    Raises:
        OversizeAnswerError: the body has more than *most* bytes.
        http.client.HTTPException: the body is incomplete, or is not gzip.
    """
    body = response.read(most + 1)
    if len(body) <= most and response.length:
        raise http.client.IncompleteRead(b"", response.length)
    if response.headers.get("Content-Encoding", "").strip().lower() in {"gzip", "x-gzip"}:
        body = _gunzip(body, most)
    if len(body) > most:
        raise OversizeAnswerError(f"the answer is too large: over {most} bytes")
    return body


def _gunzip(packed: bytes, most: int) -> bytes:
    """Decompress *packed*, up to *most* + 1 bytes."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        return decompressor.decompress(packed, most + 1)
    except zlib.error as error:
        raise http.client.HTTPException("the body is not gzip") from error
