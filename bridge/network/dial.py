"""Opening a connection: name look-up, addresses, proxy and TLS under one deadline.

No request is sent here, so opening may continue after its call has timed out. The connection then
serves the next call.
"""

import asyncio
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohappyeyeballs import AddrInfoType, start_connection

from bridge import clock
from bridge.network.authorities import Authorities, client_context, lenient_context
from bridge.network.failure import NetworkError
from bridge.network.proxy import Proxy
from bridge.network.timed import TimedSocket

# Seconds before the next address is tried in parallel (RFC 8305, "Connection Attempt Delay"), and
# before the last known addresses are used instead of waiting for the name server.
HEAD_START = 0.25
# Seconds for which a working address is tried first, and a failed one last.
PREFERRED = 60.0
# Seconds to open a connection; no call lasts longer.
DIAL_TIMEOUT = 10.0
# TCP keepalive: probes start after 15 s without traffic, and 3 probes fail within 15 s.
_KEEPALIVE = ((socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_KEEPIDLE = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)

Resolve = Callable[[str, int], Sequence[AddrInfoType]]


def resolve_name(host: str, port: int) -> Sequence[AddrInfoType]:
    """Ask the operating system for the addresses of *host*; this has no time-out.

    Raises:
        OSError: the name cannot be resolved.
    """
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


@dataclass(frozen=True)
class Origin:
    """The host and port of an API, and whether it uses TLS.

    *setting* is the name of the setting to correct if they are wrong.
    """

    host: str
    port: int
    encrypted: bool
    setting: str


@dataclass
class Attempt:
    """The opening of a connection: its deadline, its present stage, and a remedy for that stage.

    *until* is by `time.monotonic`.
    """

    until: float
    stage: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Opened:
    """An open connection and its peer's address."""

    sock: socket.socket
    address: str


class Dialer:
    """Opens connections to one origin. Thread-safe.

    The dialer remembers the host's addresses in case the name server is slow or down, and which
    addresses worked or failed.
    """

    def __init__(
        self,
        origin: Origin,
        proxy: Proxy | None,
        trusted: Authorities | None,
        resolve: Resolve,
    ) -> None:
        self._origin = origin
        self._proxy = proxy
        self._trusted = trusted
        self._resolve = resolve
        self._lock = threading.Lock()
        self._known: Sequence[AddrInfoType] = ()
        self._resolving: Future[Sequence[AddrInfoType]] | None = None
        self._preferred = ("", 0.0)
        self._avoided: dict[str, float] = {}

    def avoid(self, address: str) -> None:
        """Try *address* last for the next `PREFERRED` seconds: it does not answer or is failing."""
        self._avoided[address] = time.monotonic() + PREFERRED

    def stop_avoiding(self, address: str) -> None:
        """Try *address* last no longer: it has answered."""
        self._avoided.pop(address, None)

    def open(self, attempt: Attempt) -> Opened:
        """Open a connection before `attempt.until`.

        Raises:
            NetworkError: with the reason and a remedy.
        """
        opened = self._connect(attempt)
        try:
            if self._proxy and self._origin.encrypted:
                self._tunnel(opened.sock, self._proxy, attempt)
            if self._origin.encrypted:
                return Opened(self._secure(opened.sock, attempt), opened.address)
        except BaseException:
            opened.sock.close()
            raise
        return opened

    # Name and addresses.

    def _connect(self, attempt: Attempt) -> Opened:
        """Open a TCP connection to the first address that answers."""
        host, what, where = self._peer()
        attempt.stage = f"the name {host} is still being looked up"
        attempt.remedy = "check this machine's name servers"
        addresses = self._in_order(self._addresses(attempt))
        shown = ", ".join(dict.fromkeys(str(one[4][0]) for one in addresses))
        attempt.stage = f"no answer from {what} ({shown})"
        attempt.remedy = f"check {where}, and that a firewall lets the bridge connect"
        try:
            sock = asyncio.run(_race(addresses, _left(attempt)))
        except (OSError, RuntimeError) as error:
            raise _not_connected(error, what, shown, attempt) from error
        try:
            _tune(sock)
            address = str(sock.getpeername()[0])
        except OSError as error:
            # The peer has reset the connection already.
            sock.close()
            raise _not_connected(error, what, shown, attempt) from error
        self._preferred = (address, time.monotonic() + PREFERRED)
        return Opened(sock, address)

    def _peer(self) -> tuple[str, str, str]:
        """Return the host to connect to, a description of it, and the setting that names it."""
        if self._proxy:
            return self._proxy.host, f"the proxy {self._proxy}", self._proxy.variable
        return self._origin.host, self._origin.host, self._origin.setting

    def _addresses(self, attempt: Attempt) -> Sequence[AddrInfoType]:
        """Return the host's addresses: new ones, or the last known if the look-up is slow or fails.

        Raises:
            NetworkError: the look-up failed or is late, and no address is known.
        """
        host, _what, where = self._peer()
        try:
            return self._start_resolving().result(HEAD_START if self._known else _left(attempt))
        except FutureTimeoutError:
            if self._known:
                return self._known
            raise NetworkError(attempt.stage, attempt.remedy, timed_out=True) from None
        except (OSError, UnicodeError) as error:
            if self._known:
                return self._known
            if getattr(error, "errno", None) == socket.EAI_AGAIN:
                what, remedy = f"no name server answers for {host}", attempt.remedy
            else:
                what = f"the name {host} does not resolve"
                remedy = f"check {where}, and this machine's name servers"
            raise NetworkError(what, remedy) from error

    def _start_resolving(self) -> "Future[Sequence[AddrInfoType]]":
        """Return the look-up in progress, or start one: one at a time."""
        with self._lock:
            if self._resolving is not None:
                return self._resolving
            result: Future[Sequence[AddrInfoType]] = Future()
            self._resolving = result
        threading.Thread(target=self._look_up, args=[result], name="name", daemon=True).start()
        return result

    def _look_up(self, result: "Future[Sequence[AddrInfoType]]") -> None:
        host, _what, _where = self._peer()
        port = self._proxy.port if self._proxy else self._origin.port
        try:
            found = self._resolve(host, port)
        except Exception as error:  # noqa: BLE001 - raised in the waiting threads
            self._resolving = None
            result.set_exception(error)
        else:
            self._known, self._resolving = found, None
            result.set_result(found)

    def _in_order(self, addresses: Sequence[AddrInfoType]) -> list[AddrInfoType]:
        """Sort *addresses*: the one that worked last comes first, recently failed ones last."""
        now = time.monotonic()
        preferred, until = self._preferred
        avoided = {address for address, until in list(self._avoided.items()) if now < until}

        def rank(one: AddrInfoType) -> tuple[bool, bool]:
            address = one[4][0]
            return address in avoided, not (address == preferred and now < until)

        return sorted(addresses, key=rank)

    # Proxy.

    def _tunnel(self, sock: socket.socket, proxy: Proxy, attempt: Attempt) -> None:
        """Ask *proxy* to connect to the origin (CONNECT, RFC 9110 9.3.6)."""
        attempt.stage = f"the proxy {proxy} has not answered"
        attempt.remedy = f"check the proxy, or add {self._origin.host} to NO_PROXY"
        status, reason = self._ask_proxy(sock, proxy, attempt)
        if 200 <= status < 300:
            return
        host = self._origin.host
        if status == 407:
            what = f"the proxy {proxy} requires other credentials (407)"
            remedy = f"put user and password into {proxy.variable}: http://USER:PASSWORD@HOST:PORT"
        elif status >= 500:
            what = f"the proxy {proxy} cannot reach {host} ({status})"
            remedy = f"check that the proxy can reach it, or add {host} to NO_PROXY"
        else:
            what = f"the proxy {proxy} refuses to connect to {host} ({status} {reason})".rstrip()
            remedy = f"allow {host} in the proxy, or add it to NO_PROXY"
        raise NetworkError(what, remedy)

    def _ask_proxy(self, sock: socket.socket, proxy: Proxy, attempt: Attempt) -> tuple[int, str]:
        timed = TimedSocket(sock)
        timed.begin(attempt.until)
        connection = http.client.HTTPConnection(proxy.host, proxy.port)
        connection.sock = timed
        target = f"{_bracketed(self._origin.host)}:{self._origin.port}"
        headers = {"Host": target}
        if proxy.authorization:
            headers["Proxy-Authorization"] = proxy.authorization
        try:
            connection.request("CONNECT", target, headers=headers)
            timed.flush()
            answer = connection.getresponse()
        except TimeoutError:
            raise NetworkError(attempt.stage, attempt.remedy, timed_out=True) from None
        except (OSError, http.client.HTTPException) as error:
            what = f"the proxy {proxy} broke off ({type(error).__name__})"
            raise NetworkError(what, attempt.remedy) from error
        return answer.status, answer.reason[:60]

    # TLS.

    def _secure(self, sock: socket.socket, attempt: Attempt) -> ssl.SSLSocket:
        host = self._origin.host
        attempt.stage = f"{host} has not answered the TLS handshake"
        attempt.remedy = f"check {self._origin.setting}, and firewalls on the way"
        try:
            return self._wrap(sock, client_context(self._authorities()), attempt)
        except ssl.SSLCertVerificationError as error:
            raise self._refused_certificate(error, attempt) from error
        except TimeoutError:
            raise NetworkError(attempt.stage, attempt.remedy, timed_out=True) from None
        except ssl.SSLError as error:
            reason = (error.reason or "no reason given").lower().replace("_", " ")
            what = f"{host}:{self._origin.port} fails the TLS handshake ({reason})"
            remedy = f"check host, port and https:// in {self._origin.setting}"
            raise NetworkError(what, remedy) from error
        except OSError as error:
            what = f"{host} ended the TLS handshake ({_cause(error)})"
            raise NetworkError(what, attempt.remedy) from error

    def _wrap(
        self, sock: socket.socket, context: ssl.SSLContext, attempt: Attempt
    ) -> ssl.SSLSocket:
        # Python applies a socket's time-out to the whole handshake.
        sock.settimeout(_left(attempt))
        return context.wrap_socket(sock, server_hostname=self._origin.host)

    def _authorities(self) -> Authorities:
        assert self._trusted is not None  # noqa: S101 - an encrypted origin has them
        return self._trusted

    def _refused_certificate(
        self, error: ssl.SSLCertVerificationError, attempt: Attempt
    ) -> NetworkError:
        host, setting = self._origin.host, self._origin.setting
        certificate = f"the certificate of {host}"
        if error.verify_code in _DATES | _NAMES:
            decoded = self._read_certificate(attempt)
            if error.verify_code in _NAMES:
                names = ", ".join(value for _kind, value in decoded.get("subjectAltName", ()))
                what = f"{certificate} is for other names: {names or 'unknown'}"
                return NetworkError(what, f"check the host in {setting}")
            return NetworkError(
                f"{certificate} {_dates(decoded, expired=error.verify_code == _EXPIRED)}",
                "have it renewed; if it is valid, check this machine's clock",
            )
        if error.verify_code in _UNKNOWN_AUTHORITY:
            return NetworkError(
                f"{certificate} is signed by an authority that is not in {self._authorities()}",
                f"if {setting} is right, name a file with that authority in SSL_CERT_FILE",
            )
        return NetworkError(f"{certificate} is refused: {error.verify_message}", f"check {setting}")

    def _read_certificate(self, attempt: Attempt) -> dict[str, Any]:
        """Read a certificate that was refused for its dates or names; {} if that fails.

        OpenSSL decodes a certificate only after accepting it, so this connects once more with
        `lenient_context`. No request is sent on that connection.
        """
        try:
            again = self._connect(attempt)
            with again.sock:
                if self._proxy:
                    self._tunnel(again.sock, self._proxy, attempt)
                lenient = lenient_context(self._authorities())
                with self._wrap(again.sock, lenient, attempt) as encrypted:
                    return encrypted.getpeercert() or {}
        except (OSError, NetworkError):
            return {}


# OpenSSL's X509_V_ERR_… codes: expired or not yet valid; wrong host name or address; self-signed,
# self-signed in the chain, issuer not found, first certificate not verified.
_EXPIRED = 10
_DATES = {9, _EXPIRED}
_NAMES = {62, 64}
_UNKNOWN_AUTHORITY = {18, 19, 20, 21}


def _dates(certificate: dict[str, Any], *, expired: bool) -> str:
    words = "expired on" if expired else "is not valid before"
    text = certificate.get("notAfter" if expired else "notBefore")
    if not text:
        return "has expired" if expired else "is not valid yet"
    at = ssl.cert_time_to_seconds(text)
    if (at < clock.wall()) is not expired:
        return "is valid, but that of an authority above it is not valid now"
    return f"{words} {datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


async def _race(addresses: Sequence[AddrInfoType], seconds: float) -> socket.socket:
    async with asyncio.timeout(seconds):
        return await start_connection(addresses, happy_eyeballs_delay=HEAD_START)


def _tune(sock: socket.socket) -> None:
    """Send without delay, and detect a dead peer. Raises OSError if the connection is broken."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _KEEPIDLE is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _KEEPIDLE, 15)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _not_connected(error: Exception, what: str, shown: str, attempt: Attempt) -> NetworkError:
    if isinstance(error, TimeoutError):
        return NetworkError(attempt.stage, attempt.remedy, timed_out=True)
    if isinstance(error, ConnectionRefusedError):
        sentence = f"{what} refuses the connection ({shown})"
    else:
        sentence = f"{what} cannot be reached ({shown}: {_cause(error)})"
    return NetworkError(sentence, attempt.remedy)


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _left(attempt: Attempt) -> float:
    """Return the seconds until the attempt's deadline; never 0, which means non-blocking."""
    return max(0.001, attempt.until - time.monotonic())


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
