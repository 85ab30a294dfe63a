"""SessionM Core and Connect over `requests`: one method per documented call.

Each method returns the decoded JSON of an answer that worked and raises `SessionMError` for
everything else, time-outs included.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

import requests
import urllib3
from requests.utils import default_headers, get_environ_proxies, should_bypass_proxies

from bridge.customer import Customer
from bridge.sessionm.answers import Meaning, SessionMError, read_answer
from bridge.sessionm.deadline import Guard, GuardedAdapter, NotSentError

# A wallet of 1,000 offers is about 1 MB; a customer's tags are a few kilobytes.
MAX_ANSWER = {"core": 1024 * 1024, "connect": 8 * 1024 * 1024}
CONNECT_TIMEOUT = 3.05

Observe = Callable[["Call"], None]


class Call:
    """One finished call, for health figures: which system, how long, what went wrong."""

    __slots__ = ("error", "seconds", "system")

    def __init__(self, system: str, seconds: float, error: SessionMError | None) -> None:
        self.system = system
        self.seconds = seconds
        self.error = error


class SessionM:
    """Both of SessionM's APIs with pooled connections. Safe for use by many threads.

    Args:
        core_url: base URL of the Tags API.
        core_key: api key, also a path segment.
        core_secret: api secret.
        connect_url: base URL of the Offers API, or ``None`` where offers are off.
        connect_auth: Base64 of ``user:password`` for it.
        retailer_id: the retailer's GUID there.
        connections: how many connections are kept open.
        observe: told of every finished call.
    """

    def __init__(
        self,
        *,
        core_url: str,
        core_key: str,
        core_secret: str,
        connect_url: str | None = None,
        connect_auth: str = "",
        retailer_id: str = "",
        connections: int = 64,
        observe: Observe | None = None,
    ) -> None:
        self._core = _Endpoint("core", core_url, _basic(core_key, core_secret), connections)
        self._key = core_key
        self._connect = (
            _Endpoint("connect", connect_url, connect_auth, connections) if connect_url else None
        )
        self.retailer_id = retailer_id
        self._observe = observe or (lambda _call: None)

    def read_tags(self, customer: Customer, timeout: float) -> dict[str, Any]:
        """``GET …/tags``: ``{"status":"ok","tags":{"name":count}}``, all of the customer's."""
        answer = self._ask(self._core, "GET", self._tags_path(customer), None, timeout)
        return _having("tags", answer)

    def write_tags(
        self,
        customer: Customer,
        tags: Sequence[str],
        ttl: int | None,
        timeout: float,
        may_send: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        """``POST …/tags``; *ttl* in seconds makes them expire, ``None`` counts them.

        Raises:
            NotSentError: *may_send*, asked right before the first byte, said no.
        """
        body: dict[str, Any] = {"tags": list(tags)}
        if ttl is not None:
            body["ttl"] = ttl
        return self._ask(self._core, "POST", self._tags_path(customer), body, timeout, may_send)

    def profile(self, external_id: str, timeout: float) -> dict[str, Any]:
        """The standard profile: ``{"status":"ok","user":{"id":"…",…}}``."""
        path = ["priv", "v1", "apps", self._key, "external", "users", external_id]
        return self._ask(self._core, "GET", path, None, timeout)

    def submit_batch(self, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """``POST …/batch/tags`` with ``{"request_id","url","md5","notify"}``."""
        path = ["priv", "v1", "apps", self._key, "batch", "tags"]
        return self._ask(self._core, "POST", path, {"tags": dict(job)}, timeout)

    def read_batch(self, job_id: str, timeout: float) -> dict[str, Any]:
        """``GET …/batch/tags/ID``: a job as it stands. No document names this call: assumed."""
        path = ["priv", "v1", "apps", self._key, "batch", "tags", job_id]
        return self._ask(self._core, "GET", path, None, timeout)

    def offers(self, body: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """``POST get_user_offers``; the retailer is put in where *body* has none."""
        if self._connect is None:
            raise SessionMError(Meaning.REFUSED, "the Offers API is not configured")
        path = ["offers", "api", "2.0", "offers", "get_user_offers"]
        full = {"retailer_id": self.retailer_id, **body}
        return _having("payload", self._ask(self._connect, "POST", path, full, timeout))

    def close(self) -> None:
        for endpoint in (self._core, self._connect):
            if endpoint is not None:
                endpoint.close()

    def _tags_path(self, customer: Customer) -> list[str]:
        kind = ["external", "users"] if customer.kind == "external_id" else ["users"]
        return ["priv", "v1", "apps", self._key, *kind, customer.id, "tags"]

    def _ask(
        self,
        endpoint: "_Endpoint",
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any] | None,
        timeout: float,
        may_send: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        started = time.monotonic()
        try:
            answer = endpoint.ask(method, path, body, timeout, may_send)
        except SessionMError as error:
            self._observe(Call(endpoint.name, time.monotonic() - started, error))
            raise
        self._observe(Call(endpoint.name, time.monotonic() - started, None))
        return answer


def _having(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """*answer*, if it holds what was asked for; "ok" without it is none of SessionM's."""
    if name not in answer:
        raise SessionMError(Meaning.GARBLED, f"the answer has no {name}", status=200)
    return answer


def encode_path(segments: Sequence[str]) -> str:
    """Each of *segments* as exactly one segment of a URL's path.

    Raises:
        ValueError: a segment is empty, ``.`` or ``..``: no encoding keeps it one segment.
    """
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ValueError(f"{segment!r} cannot be a segment of a path")
    return "".join("/" + quote(segment, safe="") for segment in segments)


class _Endpoint:
    """One of SessionM's hosts: base URL, credentials, connections.

    Calls go to the pool of connections that `requests` makes for it, settings of the environment
    included. What `requests` does for each call is not wanted: cookies, redirects, settings merged
    anew; it takes longer than all the rest.
    """

    def __init__(self, name: str, base_url: str, basic: str, connections: int) -> None:
        self.name = name
        self._base = requests.Request("GET", base_url).prepare()
        self._headers = {
            **default_headers(),
            "Authorization": f"Basic {basic}",
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        self._proxies = (
            {} if should_bypass_proxies(base_url, None) else get_environ_proxies(base_url)
        )
        self._adapter = GuardedAdapter(pool_connections=1, pool_maxsize=connections)
        # The path before all others; for some proxies the host too.
        self._root = self._adapter.request_url(self._base, self._proxies).rstrip("/")

    @cached_property
    def _pool(self) -> urllib3.HTTPConnectionPool:
        verify = _ca_bundle()
        # Not all of it is in its published types.
        adapter: Any = self._adapter
        pool: urllib3.HTTPConnectionPool = adapter.get_connection_with_tls_context(
            self._base, verify, proxies=self._proxies
        )
        adapter.cert_verify(pool, self._base.url, verify, None)
        return pool

    def close(self) -> None:
        # What is open is closed when nobody holds the pool any more.
        self.__dict__.pop("_pool", None)
        self._adapter.close()

    def ask(
        self,
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any] | None,
        timeout: float,
        may_send: Callable[[], bool],
    ) -> dict[str, Any]:
        encoded = encode_path(path)
        if encoded.count("/") != len(path):
            # Should encoding ever fail, the address is not the one that was meant.
            raise SessionMError(Meaning.REFUSED, "the identifier would lead to another address")
        content = None if body is None else json.dumps(body).encode()
        guard = Guard(timeout, may_send)
        try:
            with (
                guard,
                self._pool.urlopen(
                    method,
                    self._root + encoded,
                    content,
                    self._headers,
                    retries=self._adapter.max_retries,
                    redirect=False,
                    # By a proxy that forwards, the pool's host is the proxy.
                    assert_same_host=False,
                    timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout),
                    preload_content=False,
                    decode_content=False,
                ) as response,
            ):
                answer = _read(response, MAX_ANSWER[self.name])
                return read_answer(response.status, response.headers, answer, time.time())
        except (SessionMError, NotSentError):
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _failure(error, sent=guard.sent) from error
        except Exception as error:
            # Whatever an answer can make the libraries raise is no fault of ours.
            told = f"the answer cannot be read: {type(error).__name__}"
            raise SessionMError(Meaning.GARBLED, told) from error


def _read(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """The whole body, but no more than *most* bytes of it."""
    read = bytearray()
    while chunk := response.read1(65536, decode_content=True):
        read += chunk
        if len(read) > most:
            raise SessionMError(Meaning.GARBLED, "the answer is too large", status=response.status)
    return bytes(read)


def _failure(error: Exception, *, sent: bool) -> SessionMError:
    """A failure without an answer. The libraries' text may hold the URL, and so the api key."""
    if not sent:
        return SessionMError(Meaning.UNREACHABLE, f"no connection: {_root_cause(error)}")
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return SessionMError(Meaning.UNANSWERED, "no answer in time")
    return SessionMError(Meaning.UNANSWERED, f"the connection broke: {_root_cause(error)}")


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        inner = getattr(current, "reason", None) or (current.args[0] if current.args else None)
        current = inner if isinstance(inner, BaseException) else current.__cause__
    return found


def _root_cause(error: BaseException) -> str:
    """The name of what went wrong at the bottom, such as ``ConnectionRefusedError``."""
    last = _causes(error)[-1]
    return getattr(last, "strerror", None) or type(last).__name__


def _ca_bundle() -> str | bool:
    with requests.Session() as session:
        merged = session.merge_environment_settings("https://", {}, None, None, None)
    return merged["verify"] if merged["verify"] is not None else True


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()
