"""A template rendered in a process of its own, which cannot harm the service.

Whoever may see the setup page may type any template into it: one that loops for hours, or that
doubles a text until the memory is full. A thread cannot be ended and shares its memory; so a
child process renders, under the system's limits, and is killed when its time is up. The child
calls nobody: each Connected Content call comes back over its output, as a line of JSON, and the
service answers it from within.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import requests
from requests.adapters import BaseAdapter

from bridge.liquid import LiquidError, render

LARGEST_TEMPLATE = 100_000
LARGEST_TEXT = 500_000
SECONDS = 12.0
MEMORY = 512 * 1024 * 1024
# Renders under way in one process of the service.
AT_ONCE = 2


@dataclass(frozen=True)
class Asked:
    """A Connected Content call that a template wants to make; *place*: how many it made before."""

    place: int
    method: str
    url: str
    headers: Mapping[str, str]
    body: str


@dataclass(frozen=True)
class Answered:
    """What it gets; *status* 0: it is not made, and *body* says why."""

    status: int
    body: str


@dataclass(frozen=True)
class Made:
    """A call that was made; *unused*: why its answer was not used, "" if it was."""

    method: str
    url: str
    unused: str


@dataclass(frozen=True)
class Preview:
    """What became of a template.

    Attributes:
        text: the message.
        aborted: why it would not be sent, ``None`` if it would.
        problem: why there is neither, "" if there is.
        calls: every call in the order made, also those that nobody was asked for.
    """

    text: str = ""
    aborted: str | None = None
    problem: str = ""
    calls: tuple[Made, ...] = ()


log = logging.getLogger(__name__)

_places = threading.BoundedSemaphore(AT_ONCE)


def preview(
    source: str, variables: Mapping[str, Any], answer: Callable[[Asked], Answered]
) -> Preview:
    """Render *source*; *variables* are those of `bridge.liquid.render`, *answer* makes its calls.

    Never raises for a template's faults, and is done within `SECONDS` and what one more
    *answer* takes.
    """
    if len(source) > LARGEST_TEMPLATE:
        return Preview(problem=f"The template is longer than {LARGEST_TEMPLATE:,} characters.")
    if not _places.acquire(timeout=2):
        return Preview(problem="Other previews are being rendered: try again in a moment.")
    try:
        return _in_a_child({"source": source, **variables}, answer)
    finally:
        _places.release()


def _in_a_child(job: Mapping[str, Any], answer: Callable[[Asked], Answered]) -> Preview:
    cwd = str(Path.cwd())
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "bridge.preview"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        # Nothing of the service's environment: its secrets stand there.
        env={"PYTHONPATH": os.pathsep.join(path or cwd for path in sys.path)},
        cwd="/",
    ) as child:
        watch = threading.Timer(SECONDS, child.kill)
        watch.start()
        try:
            return _converse(child, job, answer)
        except BrokenPipeError:
            return _ended(child)
        finally:
            watch.cancel()
            child.kill()


def _converse(
    child: "subprocess.Popen[str]", job: Mapping[str, Any], answer: Callable[[Asked], Answered]
) -> Preview:
    assert child.stdin  # noqa: S101 - asked for above
    assert child.stdout  # noqa: S101
    _write(child.stdin, job)
    while line := child.stdout.readline():
        told = json.loads(line)
        if "asked" not in told:
            return Preview(**{**told, "calls": tuple(Made(**made) for made in told["calls"])})
        _write(child.stdin, asdict(answer(Asked(**told["asked"]))))
    return _ended(child)


def _ended(child: "subprocess.Popen[str]") -> Preview:
    """Why the child said nothing."""
    status = child.wait()
    if status < 0:
        return Preview(
            problem=f"The template took more than {SECONDS:.0f} seconds: look for a loop that "
            "goes on too long."
        )
    log.error("preview ended with %s", status, extra={"action": "preview_failed"})
    return Preview(problem=f"The template takes more than {MEMORY // 1024**2} MB of memory.")


def _write(stream: IO[str], document: Mapping[str, Any]) -> None:
    stream.write(json.dumps(document) + "\n")
    stream.flush()


# --- The child --------------------------------------------------------------------------------


class _Session(requests.Session):
    """Counts the calls: one that cannot be made at all never comes to the adapter."""

    made = 0

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        self.made += 1
        return super().request(*arguments, **options)


class _Upward(BaseAdapter):
    """Lets the parent answer; one call at a time, as Liquid makes them."""

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self._session = session
        self._turn = threading.Lock()

    def send(
        self, request: requests.PreparedRequest, *_ignored: Any, **_options: Any
    ) -> requests.Response:
        body = request.body or b""
        asked = Asked(
            place=self._session.made - 1,
            method=request.method or "",
            url=request.url or "",
            headers=dict(request.headers),
            body=body if isinstance(body, str) else bytes(body).decode(errors="replace"),
        )
        with self._turn:
            _write(sys.stdout, {"asked": asdict(asked)})
            answered = Answered(**json.loads(sys.stdin.readline()))
        if not answered.status:
            raise requests.ConnectionError(answered.body)
        response = requests.Response()
        response.status_code = answered.status
        response.raw = BytesIO(answered.body.encode())
        response.url = asked.url
        return response

    def close(self) -> None:
        """Nothing to close."""


def _child() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    os.nice(10)
    job = json.loads(sys.stdin.readline())
    session = _Session()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Upward(session))
    try:
        # Waiting between the tries of a :retry would teach nobody anything.
        done = render(**job, session=session, pause=lambda _seconds: None)
    except (LiquidError, MemoryError, RecursionError) as error:
        _write(sys.stdout, asdict(Preview(problem=_told(error))))
        return
    text = done.text[:LARGEST_TEXT]
    calls = tuple(Made(call.method, call.url, call.error) for call in done.calls)
    _write(sys.stdout, asdict(Preview(text, done.aborted, calls=calls)))


def _told(error: Exception) -> str:
    if isinstance(error, LiquidError):
        return f"{str(error)[:1].upper()}{str(error)[1:]}"
    return f"The template needs more than {MEMORY // 1024**2} MB of memory, or nests too deep."


if __name__ == "__main__":
    _child()
