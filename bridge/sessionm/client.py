"""SessionM Core and Connect over HTTP: one method per documented call.

Each method returns the decoded JSON of an answer that worked and raises `SessionMError` for
everything else, time-outs included.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from bridge import clock
from bridge.calls import FinishedCall
from bridge.customer import Customer
from bridge.network.client import HttpClient, HttpRequest, MaySend
from bridge.network.failure import NetworkError
from bridge.network.proxy import Proxy
from bridge.sessionm.answers import Meaning, SessionMError, read_answer

# Bytes. A wallet of 1,000 offers is about 1 MB; a customer's tags are a few kilobytes.
MAX_ANSWER = {"core": 1024 * 1024, "connect": 8 * 1024 * 1024}

Observe = Callable[["FinishedCall"], None]


class SessionM:
    """Both of SessionM's APIs with pooled connections. Safe for use by many threads.

    Args:
        core_url: base URL of the Tags API.
        core_key: api key, also a path segment.
        core_secret: api secret.
        connect_url: base URL of the Offers API, or ``None`` where offers are off.
        connect_auth: Base64 of ``user:password`` for it.
        retailer_id: the retailer's GUID there.
        variables: proxies and certificate authorities, as `HttpClient` takes them.
        observe: called with every finished call.

    Raises:
        ValueError: a proxy or a certificate authority of *variables* cannot be used.
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
        variables: Mapping[str, str],
        observe: Observe = lambda _call: None,
    ) -> None:
        def endpoint(name: str, url: str, basic: str) -> _Endpoint:
            http = HttpClient(
                url,
                setting=f"SESSIONM_{name.upper()}_URL",
                headers={
                    "Authorization": f"Basic {basic}",
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                },
                variables=variables,
            )
            return _Endpoint(name, http, observe)

        self._core = endpoint("core", core_url, _basic(core_key, core_secret))
        self._key = core_key
        self._connect = endpoint("connect", connect_url, connect_auth) if connect_url else None
        self.retailer_id = retailer_id

    def read_tags(self, customer: Customer, timeout: float) -> dict[str, Any]:
        """``GET …/tags``: ``{"status":"ok","tags":{"name":count}}`` with all tags."""
        answer = self._core.call("GET", self._tags_path(customer), timeout)
        return _with_field("tags", answer)

    def write_tags(
        self,
        customer: Customer,
        tags: Sequence[str],
        ttl: int | None,
        timeout: float,
        may_send: MaySend = lambda: True,
    ) -> dict[str, Any]:
        """``POST …/tags``: expiring tags with a *ttl* in seconds, counters with ``None``.

        *may_send* is called right before the first byte.

        Raises:
            NotSentError: *may_send* returned false; nothing was sent.
        """
        body: dict[str, Any] = {"tags": list(tags)}
        if ttl is not None:
            body["ttl"] = ttl
        path = self._tags_path(customer)
        return self._core.call("POST", path, timeout, body, may_send, repeatable=False)

    def profile(self, customer: Customer, timeout: float) -> dict[str, Any]:
        """The standard profile: ``{"status":"ok","user":{"id":"…","external_id":"…",…}}``.

        SessionM documents a parameter for its further fields, for the path of user IDs alone.
        """
        query = "?user%5Buser_profile%5D=true" if customer.kind == "user_id" else ""
        return self._core.call("GET", self._tags_path(customer)[:-1], timeout, query=query)

    def submit_batch(self, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """``POST …/batch/tags`` with ``{"request_id","url","md5","notify"}``."""
        path = ["priv", "v1", "apps", self._key, "batch", "tags"]
        body = {"tags": dict(job)}
        return self._core.call("POST", path, timeout, body, repeatable=False)

    def read_batch(self, job_id: str, timeout: float) -> dict[str, Any]:
        """``GET …/batch/tags/ID``: the status of a job. Assumed: no document describes it."""
        path = ["priv", "v1", "apps", self._key, "batch", "tags", job_id]
        return self._core.call("GET", path, timeout)

    def offers(self, body: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """``POST get_user_offers``. A *body* without ``retailer_id`` gets the configured one."""
        if self._connect is None:
            raise SessionMError(Meaning.REFUSED, "the Offers API is not configured")
        path = ["offers", "api", "2.0", "offers", "get_user_offers"]
        full = {"retailer_id": self.retailer_id, **body}
        return _with_field("payload", self._connect.call("POST", path, timeout, full))

    def proxies(self) -> dict[str, Proxy]:
        """Return the proxies in use, by system: ``core``, ``connect``."""
        return {one.name: one.http.proxy for one in self._endpoints() if one.http.proxy}

    def overdue(self) -> int:
        """Return the number of calls that are in flight after their deadline; normally 0."""
        return sum(one.http.overdue() for one in self._endpoints())

    def close(self) -> None:
        for endpoint in self._endpoints():
            endpoint.http.close()

    def _endpoints(self) -> list["_Endpoint"]:
        return [self._core, *([self._connect] if self._connect else [])]

    def _tags_path(self, customer: Customer) -> list[str]:
        kind = ["external", "users"] if customer.kind == "external_id" else ["users"]
        return ["priv", "v1", "apps", self._key, *kind, customer.id, "tags"]


def _with_field(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return *answer* if it has the field *name*; otherwise SessionM did not send it."""
    if name not in answer:
        raise SessionMError(Meaning.GARBLED, f"the answer has no {name}", status=200)
    return answer


def encode_path(segments: Sequence[str]) -> str:
    """Return a URL path in which each of *segments* is exactly one segment.

    Raises:
        ValueError: a segment is empty, ``.`` or ``..``, which no encoding preserves.
    """
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ValueError(f"{segment!r} cannot be a segment of a path")
    return "".join("/" + quote(segment, safe="") for segment in segments)


class _Endpoint:
    """One of SessionM's hosts, and the client that calls it."""

    def __init__(self, name: str, http: HttpClient, observe: Observe) -> None:
        self.name = name
        self.http = http
        self._observe = observe

    def call(
        self,
        method: str,
        path: Sequence[str],
        timeout: float,
        body: Mapping[str, Any] | None = None,
        may_send: MaySend = lambda: True,
        *,
        query: str = "",
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """Return the JSON of a successful answer, and report the call to *observe*.

        Raises:
            SessionMError: the call failed.
            NotSentError: *may_send* returned false; nothing was sent, nothing is reported.
        """
        started = time.monotonic()
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = self._answer(
                method, path, query, content, timeout, may_send, repeatable=repeatable
            )
        except SessionMError as error:
            self._observe(FinishedCall(self.name, time.monotonic() - started, error))
            raise
        self._observe(FinishedCall(self.name, time.monotonic() - started, None))
        return answer

    def _answer(
        self,
        method: str,
        path: Sequence[str],
        query: str,
        content: bytes | None,
        timeout: float,
        may_send: MaySend,
        *,
        repeatable: bool,
    ) -> dict[str, Any]:
        encoded = encode_path(path)
        if encoded.count("/") != len(path):
            # A second check: an identifier must never change the address of the call.
            raise SessionMError(Meaning.REFUSED, "the identifier would lead to another address")
        request = HttpRequest(method, encoded + query, content, MAX_ANSWER[self.name], repeatable)
        try:
            answer = self.http.call(request, timeout, may_send)
        except NetworkError as error:
            raise SessionMError.from_network(error) from error
        try:
            return read_answer(answer.status, answer.headers, answer.body, clock.wall())
        except SessionMError as error:
            error.sent_at = answer.sent_at
            raise


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()
