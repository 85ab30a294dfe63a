"""Batch jobs: download, check and apply a CSV file of tags, then notify the client."""

import csv
import hashlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import quote

import requests
from pydantic import Field

from bridge.sandbox.messages import Body, Count, Given, Json, Text

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_TIMEOUT = (5, 30)  # seconds to connect, seconds between two bytes
_SHOWN_ERRORS = 10

Row = Mapping[str, str]


class Behaviour(Given):
    """How jobs fail, set with `POST /sandbox/batches`.

    Attributes:
        fail: the job fails with this message after downloading its file.
        corrupt: whether the file is damaged in transit, so that the MD5 does not match.
        fetch: whether the file is downloaded; if not, the job stays in its first state.
        notifications: number of notifications of the job's end.
        delay: seconds before the download.
        times: number of jobs to which this applies; all if left out.
    """

    fail: str = ""
    corrupt: bool = False
    fetch: bool = True
    notifications: Annotated[int, Field(ge=0, le=10)] = 1
    delay: Annotated[float, Field(ge=0, le=3600)] = 0
    times: Count | None = None


class Behaviours:
    """The present behaviour. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = Behaviour()

    def replace(self, given: Behaviour) -> None:
        with self._lock:
            self._set = given

    def take(self) -> Behaviour:
        """Return the behaviour of the next job, and count it."""
        with self._lock:
            found = self._set
            if found.times is not None:
                found.times -= 1
                if not found.times:
                    self._set = Behaviour()
            return found.model_copy()


class Order(Body):
    """The order of a job; `notify` may be left out (assumed)."""

    request_id: Text
    url: Text
    md5: Text
    notify: Text = ""


@dataclass(slots=True)
class SandboxJob:
    """A CSV file of tags. States: created, processing, completed, failed (assumed)."""

    id: int
    order: Order
    status: str = "created"
    rows: int = 0
    failed: int = 0
    message: str = ""
    errors: list[str] = field(default_factory=list)
    behaviour: Behaviour = field(default_factory=Behaviour)

    def receipt(self) -> Json:
        return {"id": self.id, "request_id": self.order.request_id, "status": self.status}

    def as_json(self) -> Json:
        counts = {"rows": self.rows, "applied": self.rows - self.failed, "failed": self.failed}
        return self.receipt() | counts | {"message": self.message, "errors": self.errors[:]}

    def run(self, tag: Callable[[Row], object]) -> None:
        """Run the job; `tag` applies one row, and raises ValueError if it cannot be applied."""
        if not self.behaviour.fetch:
            return
        time.sleep(self.behaviour.delay)
        self.status = "processing"
        with requests.Session() as http:
            http.trust_env = False  # no proxy between the sandbox and the bridge
            try:
                file = self._download(http)
                if self.behaviour.fail:
                    raise ValueError(self.behaviour.fail)  # noqa: TRY301 - as a real one would
                for row in _rows(file):
                    self._apply(row, tag)
                self.status = "completed"
            except (ValueError, OSError, csv.Error) as error:
                self.message, self.status = str(error), "failed"
            for _ in range(self.behaviour.notifications):
                self._notify(http)

    def _download(self, http: requests.Session) -> bytes:
        """Raises ValueError or an OSError of requests."""
        answer = http.get(self.order.url, timeout=_TIMEOUT)
        answer.raise_for_status()
        damage = b"?" if self.behaviour.corrupt else b""
        md5 = hashlib.md5(answer.content + damage, usedforsecurity=False).hexdigest()
        if md5 != self.order.md5.lower():
            raise ValueError(f"md5 is {md5}, not {self.order.md5}")
        return answer.content

    def _apply(self, row: Row, tag: Callable[[Row], object]) -> None:
        self.rows += 1
        try:
            tag(row)
        except ValueError as error:
            self.failed += 1
            if self.failed <= _SHOWN_ERRORS:
                self.errors.append(f"row {self.rows}: {error}")

    def _notify(self, http: requests.Session) -> None:
        """Call `notify`, with its three placeholders replaced in the query."""
        if not self.order.notify:
            return
        words = {"JOB_ID": str(self.id), "JOB_STATUS": self.status}
        words["JOB_REQUEST_ID"] = self.order.request_id
        base, mark, query = self.order.notify.partition("?")
        query = re.sub("|".join(words), lambda word: quote(words[word[0]], safe=""), query)
        try:
            http.get(base + mark + query, timeout=_TIMEOUT)
        except requests.RequestException as error:
            self.message = f"{self.message} (not notified: {error})".strip()


def seconds(expires: str) -> int:
    """Read `1 day` or `12 hours`; blank is 0, a counter. Raises ValueError."""
    if not expires:
        return 0
    found = re.fullmatch(r"(\d{1,6}) ?(second|minute|hour|day|week)s?", expires, re.IGNORECASE)
    if not found or not int(found[1]):
        raise ValueError(f"expires {expires!r} is not like '1 day' or '12 hours'")
    return int(found[1]) * _UNITS[found[2].lower()]


def _rows(file: bytes) -> Iterator[Row]:
    """Yield the rows, trimmed. Raises ValueError (bad header, not UTF-8) or csv.Error."""
    reader = csv.DictReader(io.StringIO(file.decode("utf-8-sig"), newline=""), restval="")
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    header = set(reader.fieldnames)
    if "tag" not in header or not header & {"user_id", "external_id"}:
        raise ValueError("the header must have tag, and user_id or external_id")
    for row in reader:
        yield {name: value.strip() for name, value in row.items() if name}
