"""Alerts: post a lasting change of the status to ``BRIDGE_ALERT_URL``.

`Pending` decides what to post and when, without I/O; `Receiver` posts.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from bridge.network.client import HttpClient, HttpRequest
from bridge.network.failure import NetworkError

log = logging.getLogger(__name__)

# Seconds for which a status must last before it is posted, and for which a post is retried.
STABLE = 20.0
RETRIED_FOR = 600.0
# Seconds between two attempts.
FIRST_WAIT, LONGEST_WAIT = 5.0, 60.0
# Seconds: the time limit of one attempt.
TIMEOUT = 15.0
# Bytes of the receiver's answer.
MOST_ANSWER = 64 * 1024


@dataclass(frozen=True)
class Pending:
    """The last posted status and the one to post next. Times are seconds since the epoch. Pure.

    Attributes:
        posted_status: the last posted status.
        status: the status to post; "" for none.
        id: identifies this change of the status.
        at: when the change had lasted for `STABLE` seconds.
        tries: the number of failed attempts.
        next_at: the time of the next attempt.
    """

    posted_status: str = "ok"
    status: str = ""
    id: str = ""
    at: float = 0.0
    tries: int = 0
    next_at: float = 0.0

    def with_status(self, stable: str, now: float) -> "Pending":
        """Return the alert that is pending when the lasting status is *stable*."""
        if self.status and now - self.at > RETRIED_FOR:
            # Give up, and count the change as posted, so that the next change is posted.
            return Pending(posted_status=self.status).with_status(stable, now)
        if stable == (self.status or self.posted_status):
            return self
        if stable == self.posted_status:
            # The status changed back before it was posted.
            return Pending(posted_status=self.posted_status)
        return Pending(self.posted_status, stable, uuid.uuid4().hex, at=now, next_at=now)

    def is_due(self, now: float) -> bool:
        """Return whether the status must be posted at *now*."""
        return bool(self.status) and now >= self.next_at

    def posted(self, *, worked: bool, now: float) -> "Pending":
        """Return what is pending after an attempt that ended at *now*."""
        if worked:
            return Pending(posted_status=self.status)
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0**self.tries)
        return replace(self, tries=self.tries + 1, next_at=now + wait)


class Steady:
    """Finds a status that has lasted for `STABLE` seconds. Pure."""

    def __init__(self) -> None:
        self._status = ""
        self._since = 0.0

    def update(self, status: str, now: float) -> str:
        """Set the *status* at *now* (seconds); return it if it has lasted, otherwise ""."""
        if status != self._status:
            self._status, self._since = status, now
        return status if now - self._since >= STABLE else ""


def message(pending: Pending, incidents: Sequence[Mapping[str, Any]], url: str) -> dict[str, Any]:
    """Return the body of an alert, whose ``text`` Slack and Microsoft Teams show.

    Args:
        pending: the status to post.
        incidents: the open ones in the JSON of ``/health``.
        url: of the dashboard, or "".
    """
    words = {"ok": "is healthy again", "degraded": "is degraded", "down": "is down"}
    lines = [
        f"The Braze to SessionM bridge {words[pending.status]} (it was {pending.posted_status})."
    ]
    lines += [f"• {one['reason']} {one['do']}" for one in incidents[:5]]
    if len(incidents) > 5:
        lines.append(f"• and {len(incidents) - 5} more")
    if url:
        lines.append(url)
    return {
        "text": "\n".join(lines),
        "status": pending.status,
        "was": pending.posted_status,
        "incidents": list(incidents),
        "url": url,
    }


class Receiver:
    """Posts to one URL, which may hold a secret and is never logged."""

    def __init__(self, url: str, variables: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        self._http = HttpClient(
            f"{parts.scheme}://{parts.netloc}",
            setting="BRIDGE_ALERT_URL",
            headers={"Content-Type": "application/json", "Accept": "*/*"},
            variables=variables,
            connections=1,
        )

    def post(self, body: Mapping[str, Any]) -> bool:
        """Post *body* once; return whether the answer is 2xx."""
        request = HttpRequest(
            "POST", self._path, json.dumps(body).encode(), MOST_ANSWER, repeatable=False
        )
        try:
            status = self._http.call(request, TIMEOUT).status
        except NetworkError as error:
            log.warning("alert not posted: %s", error, extra={"action": "alert_failed"})
            return False
        worked = 200 <= status < 300
        log.log(
            logging.INFO if worked else logging.WARNING,
            "alert answered HTTP %s",
            status,
            extra={"action": "alert_posted" if worked else "alert_failed", "status": status},
        )
        return worked

    def close(self) -> None:
        self._http.close()
