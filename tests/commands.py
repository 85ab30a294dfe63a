"""`bridge` commands, each in a process of its own.

To import the bridge is most of what a command costs: 1 s of CPU, several hundred times. So one
process for all tests of a worker imports it, and forks for each command.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
# Bytes: what the arguments and the environment of a command may take.
LARGEST = 1 << 17


class Command:
    """A running `bridge` command, the leader of its own session. As `subprocess.Popen`.

    Args:
        arguments: what stands behind ``bridge``.
        env: its whole environment.
        cwd: its folder.
        stdin, stdout, stderr: open files.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str],
        cwd: Path,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        self.returncode: int | None = None
        self._status, status = os.pipe()
        self.pid = _forks().fork(
            {"arguments": arguments, "env": dict(env), "cwd": str(cwd)},
            [stdin.fileno(), stdout.fileno(), stderr.fileno(), status],
        )
        os.close(status)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not _readable([self._status], timeout):
                raise subprocess.TimeoutExpired("bridge", timeout or 0.0)
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_bridge(
    *arguments: str, env: Mapping[str, str], cwd: Path, given: str = "", timeout: float = 60.0
) -> "subprocess.CompletedProcess[str]":
    """Run a `bridge` command to its end, with *given* on its standard input.

    Raises:
        subprocess.TimeoutExpired: it took longer than *timeout* seconds.
    """
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(given.encode())
        stdin.seek(0)
        command = Command(*arguments, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
        try:
            status = command.wait(timeout)
        finally:
            command.kill()
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(
            ["bridge", *arguments], status, stdout.read().decode(), stderr.read().decode()
        )


class _Forks:
    """The process that forks; it ends when this one does."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.commands", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self._close)

    def fork(self, order: Mapping[str, object], files: Sequence[int]) -> int:
        """Return the id of a process that does what *order* says, with *files* as its own."""
        with self._lock:
            socket.send_fds(self._orders, [json.dumps(order).encode()], files)
            return int(self._orders.recv(16))

    def _close(self) -> None:
        self._orders.close()
        self._process.wait()


_forks = cache(_Forks)


def _readable(files: Iterable[int], timeout: float | None = None) -> list[int]:
    """Return those of *files* that can be read, after *timeout* seconds at most."""
    # select.select() takes no file above 1023.
    waiting = select.poll()
    for file in files:
        waiting.register(file, select.POLLIN)
    return [file for file, _ in waiting.poll(None if timeout is None else timeout * 1000)]


def _fork_on_demand(orders: socket.socket) -> bool:
    """Fork for each order; returns in every child (true), and when there are no more (false)."""
    waiting: dict[int, int] = {}
    signalled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = _readable([orders.fileno(), signalled])
        if signalled in ready:
            os.read(signalled, 4096)
            _report_ended(waiting)
        if orders.fileno() not in ready:
            continue
        message, files, _, _ = socket.recv_fds(orders, LARGEST, 4)
        if not message:
            return False
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(json.loads(message), files)
            return True
        orders.send(str(pid).encode())
        waiting[pid] = files.pop()
        for file in files:
            os.close(file)


def _report_ended(waiting: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while ended := os.waitpid(-1, os.WNOHANG):
            pid, status = ended
            if not pid:
                return
            pipe = waiting.pop(pid)
            # A test that does not ask any more has closed its end.
            with suppress(BrokenPipeError):
                os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(pipe)


def _become(order: dict[str, object], files: list[int]) -> None:
    """Make this process what a shell would have started."""
    os.setsid()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(str(order["cwd"]))
    os.environ.clear()
    os.environ.update(order["env"])  # type: ignore[call-overload]
    time.tzset()
    sys.argv = ["bridge", *order["arguments"]]  # type: ignore[misc]


def _run_and_leave(run: Callable[[], None]) -> None:
    """End with the status of *run*, after all threads and functions of `atexit`.

    Not by destroying all objects: each page that they are on is shared with the process that forked
    and would be copied, which takes 0.1 s of CPU time.
    """
    status = 0

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    # Registered first, so that it runs last.
    atexit.register(leave)
    try:
        run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        status = 1
        raise


if __name__ == "__main__":
    # Whatever a command needs, before any fork.
    import bridge.cli.server
    import bridge.storage.postgres  # noqa: F401
    from bridge.cli import run

    gc.freeze()
    if _fork_on_demand(socket.socket(fileno=int(sys.argv[1]))):
        _run_and_leave(run)
