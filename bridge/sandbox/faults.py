"""Injected faults, set with `POST /sandbox/faults`."""

import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from werkzeug.wrappers import Response

from bridge.sandbox.messages import Count, Given, Json, SandboxRefusedError, Text, check

_CODES = {
    400: "argument_error",
    401: "invalid_api_key",
    403: "access_denied",
    404: "not_found",
    405: "not_available",
    422: "validation",
    503: "not_available",
}
_HTML = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1><p>An HTML page.</p></body></html>"
_CUT_JSON = b'{"status":"ok","tags":{"tag1":2,"ta'


def _pair(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def _retry_after(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"http-date:\+[0-9]{1,9}", value):
        return value
    if isinstance(value, int | float) and 0 <= value <= 1e9:
        return value
    raise ValueError('must be seconds or "http-date:+SECONDS"')


Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Seconds = Annotated[float, Field(ge=0, le=3600)]
Rate = Annotated[float, Field(ge=0, le=1)]
Status = Annotated[int, Field(ge=400, le=599)]


class Fault(Given):
    """One fault. Times are in seconds, except `latency_ms`.

    Of exclusive outcomes, the first applies: drop, garbage, redirect, status, ok_error, error_rate.
    A fault with `match` and without an effect exempts calls from later faults.
    """

    latency_ms: Annotated[tuple[Milliseconds, Milliseconds], BeforeValidator(_pair)] = (0, 0)
    error_rate: Rate = 0
    error_status: Status = 500
    status: Status | None = None
    code: Text | None = None
    retry_after: Annotated[Any, AfterValidator(_retry_after)] = None
    ok_error: bool = False
    drop: Literal["before", "after", "reset"] | None = None
    drop_rate: Rate | None = None
    garbage: bool | Literal["json"] = False
    hang: Seconds = 0
    hang_after: Seconds = 0
    drip: Seconds = 0
    huge: Annotated[int, Field(ge=1, le=10**9)] = 0
    redirect: Annotated[str, StringConstraints(pattern="^[!-~]+$")] | None = None
    match: re.Pattern[str] = re.compile("")
    times: Count | None = None
    where: Literal["core", "connect", "braze", "both"] = "both"

    def strikes(self, side: str, line: str) -> bool:
        """Return whether this fault applies to the call `line` ("METHOD path") to `side`."""
        return self.where in ("both", side) and self.match.search(line) is not None

    def around(
        self, perform: Callable[[], Response], clock: Callable[[], float], *, writes: bool
    ) -> Response:
        """Perform the call with this fault. Raises ConnectionError to close the connection."""
        _pause(random.uniform(*self.latency_ms) / 1000)  # noqa: S311 - a delay, not a secret
        drop = self._dropped()
        if drop == "after":
            perform()
        if drop:
            raise ConnectionResetError if drop == "reset" else ConnectionAbortedError
        response = self._instead(clock(), writes=writes)
        _pause(self.hang)
        response = response or perform()
        _pause(self.hang_after)
        return self._deform(response)

    def _dropped(self) -> str | None:
        rate = self.drop_rate if self.drop_rate is not None else float(self.drop is not None)
        return (self.drop or "before") if _happens(rate) else None

    def _instead(self, now: float, *, writes: bool) -> Response | None:
        """Return the answer that replaces SessionM's own answer, if any."""
        if self.garbage == "json":
            return Response(_CUT_JSON, self.status or 200, mimetype="application/json")
        if self.garbage:
            return Response(_HTML, self.status or 200, mimetype="text/html")
        if self.redirect:
            return Response(b"", 302, {"Location": self.redirect})
        if self.status or self.ok_error:
            return self._error(self.status or 200, now)
        if _happens(self.error_rate):
            return self._error(self.error_status, now)
        # `hang` delays a read; a write also fails.
        return self._error(500, now) if self.hang and writes else None

    def _error(self, status: int, now: float) -> Response:
        code = self.code or _CODES.get(status, "internal_server_error")
        why = "The sandbox fails on request (POST /sandbox/faults)."
        response = SandboxRefusedError(status, code, why).reply()
        if self.retry_after is not None:
            response.headers["Retry-After"] = self._wait(now)
        return response

    def _wait(self, now: float) -> str:
        if isinstance(self.retry_after, str):
            ahead = int(self.retry_after.removeprefix("http-date:+"))
            return email.utils.formatdate(now + ahead, usegmt=True)
        return f"{self.retry_after:.12g}"

    def _deform(self, response: Response) -> Response:
        """Make the answer large or slow."""
        if self.huge and response.is_json:
            response.set_data(_padded(response.get_data(), self.huge))
        if self.drip:
            body = response.get_data()
            response.response = _drips(body, self.drip)
            response.headers["Content-Length"] = str(len(body))
        return response


def _happens(rate: float) -> bool:
    return random.random() < rate  # noqa: S311 - dice, not a secret


def _pause(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def _padded(body: bytes, size: int) -> bytes:
    """Extend a JSON object to `size` bytes with one more key."""
    head, tail = body.rstrip()[:-1] + b',"padding":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


def _drips(body: bytes, seconds: float) -> Iterator[bytes]:
    for byte in body:
        yield bytes([byte])
        _pause(seconds)


class _FaultList(Given):
    faults: list[Fault]


_NO_FAULT = Fault()


class Faults:
    """The present faults. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def replace(self, given: Mapping[str, Any]) -> None:
        """Set the faults: one fault, `{"faults": [...]}`, or `{}` for none.

        Raises ValueError that names the key.
        """
        several = given if "faults" in given else {"faults": [given] if given else []}
        faults = check(_FaultList, several).faults
        with self._lock:
            self._faults = faults

    def as_json(self) -> list[Json]:
        with self._lock:
            return [fault.model_dump(mode="json", exclude_unset=True) for fault in self._faults]

    def take(self, side: str, line: str) -> Fault:
        """Return the first fault that applies, and count it."""
        with self._lock:
            fault = next((each for each in self._faults if each.strikes(side, line)), _NO_FAULT)
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
            return fault
