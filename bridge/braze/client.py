"""Braze's REST API over HTTP: the two trigger endpoints."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from bridge import clock
from bridge.braze.answers import BrazeError, BrazeReceipt, Quota, read_quota, read_receipt
from bridge.calls import FinishedCall, Meaning
from bridge.network.client import HttpAnswer, HttpClient, HttpRequest, MaySend
from bridge.network.failure import NetworkError
from bridge.network.proxy import Proxy

MAX_ANSWER = 1024 * 1024
PATHS: dict[Literal["campaign", "canvas"], str] = {
    "campaign": "/campaigns/trigger/send",
    "canvas": "/canvas/trigger/send",
}


class Braze:
    """Braze's REST API with pooled connections. Safe for use by many threads.

    Args:
        url: base URL of the instance's REST endpoint.
        key: an API key with ``campaigns.trigger.send`` and ``canvas.trigger.send``.
        variables: proxies and certificate authorities, as `HttpClient` takes them.
        observe: called with every finished call.

    Attributes:
        quota: the hourly limit by the last answer, and the time of that answer by `clock.steady`.
        has_quota: whether answers are expected to carry the hourly limit.

    Raises:
        ValueError: a proxy or a certificate authority of *variables* cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        variables: Mapping[str, str] | None = None,
        observe: Callable[[FinishedCall], None] = lambda _call: None,
    ) -> None:
        self._http = HttpClient(
            url,
            setting="BRAZE_REST_URL",
            headers={
                "Authorization": f"Bearer {key}",
                "Accept": "application/json",
                "Content-Type": "application/json",
            },
            variables=variables or {},
        )
        self._observe = observe
        self.quota: tuple[Quota, float] | None = None
        self.has_quota = True

    def trigger(
        self,
        kind: Literal["campaign", "canvas"],
        body: Mapping[str, Any],
        recipients: Sequence[str],
        timeout: float,
        may_send: MaySend = lambda: True,
    ) -> BrazeReceipt:
        """``POST /campaigns/trigger/send`` or ``/canvas/trigger/send``.

        Args:
            kind: selects the endpoint.
            body: the JSON of the request.
            recipients: their identifiers, to match Braze's warnings with recipients.
            timeout: seconds for the whole call.
            may_send: called right before the first byte.

        Raises:
            BrazeError: the call failed, or its effect is unknown.
            NotSentError: *may_send* returned false; nothing was sent.
        """
        started = time.monotonic()
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        request = HttpRequest("POST", PATHS[kind], content, MAX_ANSWER, repeatable=False)

        def observe(failure: BrazeError | None) -> None:
            self._observe(FinishedCall("braze", time.monotonic() - started, failure))

        try:
            answer = self._http.call(request, timeout, may_send)
            self._update_quota(answer)
            receipt = read_receipt(
                answer.status, answer.headers, answer.body, clock.wall(), recipients
            )
        except NetworkError as error:
            failure = BrazeError.from_network(error)
            observe(failure)
            raise failure from error
        except BrazeError as error:
            observe(error)
            raise
        observe(None)
        return receipt

    def _update_quota(self, answer: HttpAnswer) -> None:
        quota = read_quota(answer.headers, clock.wall())
        self.has_quota = quota is not None
        if quota is not None:
            self.quota = quota, clock.steady()

    def try_key(self, kind: Literal["campaign", "canvas"], timeout: float) -> None:
        """Check that Braze accepts the key, by a call without an ID, which sends nothing.

        Raises:
            BrazeError: Braze refuses the key, or is unreachable.
        """
        try:
            self.trigger(kind, {}, (), timeout)
        except BrazeError as error:
            # Refused for its missing ID: the key was accepted.
            if error.meaning is not Meaning.REFUSED or error.is_foreign:
                raise

    def calls_left(self) -> Quota | None:
        """Return the hourly limit; ``None`` if it is unknown or was reset since the last answer."""
        if self.quota is None:
            return None
        quota, at = self.quota
        seconds = at + quota.seconds - clock.steady()
        return Quota(quota.limit, quota.left, seconds) if seconds > 0 else None

    def proxy(self) -> Proxy | None:
        """Return the proxy in use, if any."""
        return self._http.proxy

    def overdue(self) -> int:
        """Return the number of calls that are in flight after their deadline; normally 0."""
        return self._http.overdue()

    def close(self) -> None:
        self._http.close()
