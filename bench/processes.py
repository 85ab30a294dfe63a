"""Services as processes of their own, and what the kernel tells of them."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
PATIENCE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A service did not start; the message holds the end of its log."""


class Process:
    """A service in a process group of its own, from `start` to the end of the ``with`` block.

    Args:
        command: what to run; *port* stands in it already.
        port: where it will listen.
        folder: where it runs and logs.
        environment: what it shall know beside this process's environment.
        path: what is asked to find out whether it serves.
        ready: the status that says so; any below 500 if it is 0.
        listeners: how many sockets listen when all of its workers serve.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        path: str = "/healthz",
        ready: int = 0,
        listeners: int = 1,
    ) -> None:
        self._command = command
        self._folder = folder
        self._environment = {**_clean_environment(), **(environment or {})}
        self._path = path
        self._ready = ready
        self._listeners = listeners
        self._log = folder / f"{port}.log"
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self.started_in = 0.0

    def __enter__(self) -> Self:
        """Start, and wait until all workers serve; `started_in`: seconds to the first answer."""
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            while not self._answers():
                self._expect_alive(began)
                time.sleep(0.005)
            self.started_in = time.monotonic() - began
            while listeners(self.port) < self._listeners:
                self._expect_alive(began)
                time.sleep(0.02)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Processor time used so far, children included."""
        return sum(_cpu_ticks(pid) for pid in self._tree()) / _TICKS

    def memory(self) -> float:
        """MB held now (PSS: pages that processes share count once), children included."""
        return sum(_pss(pid) for pid in self._tree()) / 1024

    def _tree(self) -> list[int]:
        found = [self._process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", self._path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return status == self._ready if self._ready else status < 500

    def _expect_alive(self, began: float) -> None:
        if self._process.poll() is not None or time.monotonic() - began > PATIENCE:
            tail = self._log.read_text(errors="replace")[-500:].strip()
            raise StartError(f"{' '.join(self._command[:4])} … does not serve: {tail}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def listeners(port: int) -> int:
    """How many sockets listen on *port*, as the kernel tells."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


class Steal:
    """How much of the processors the hypervisor has taken away since this was made."""

    def __init__(self) -> None:
        self._before = _stat()

    def percent(self) -> float:
        now = _stat()
        spent = [new - old for new, old in zip(now, self._before, strict=True)]
        return 100 * spent[7] / max(1, sum(spent))


def _stat() -> list[int]:
    line = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(field) for field in line.split()[1:9]]


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _clean_environment() -> dict[str, str]:
    """This process's environment without any settings of a real bridge."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BRIDGE_", "SESSIONM_"))
    }
