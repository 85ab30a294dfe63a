"""Services as processes of their own, and what the kernel tells of them."""

import contextlib
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
                # No session: Linux shares the processors among sessions first, and a priority
                # counts only within one.
                process_group=0,
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

    def limit(self, group: "Quota") -> None:
        """Let all its processes share the processor time of *group*."""
        for pid in self._tree():
            group.add(pid)

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


class Quota:
    """So much processor time for some processes: *share* of one core. A context manager.

    It is a control group of the kernel, of the first or the second version.
    """

    PERIOD = 20_000
    ROOT = Path("/sys/fs/cgroup")

    def __init__(self, share: float) -> None:
        first = self.ROOT / "cpu"
        self._is_first = first.exists()
        base = first if self._is_first else self.ROOT
        self._folder = base / f"bridge-bench-{os.getpid()}-{id(self)}"
        self._share = share

    def __enter__(self) -> Self:
        """Make the group; raises OSError where that is not allowed."""
        self._folder.mkdir()
        quota = int(self._share * self.PERIOD)
        if self._is_first:
            (self._folder / "cpu.cfs_period_us").write_text(str(self.PERIOD))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self._folder / "cpu.max").write_text(f"{quota} {self.PERIOD}")
        return self

    def __exit__(self, *_: object) -> None:
        """Its processes must have ended."""
        self._folder.rmdir()

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    @classmethod
    def missing(cls) -> str:
        """Why there are none here; "" if there are."""
        try:
            with cls(0.5):
                return ""
        except OSError as error:
            return f"control groups cannot be made: {error.strerror}"


def cpu_of(name: str) -> float:
    """Processor time in seconds that all processes of that *name* have used so far.

    Those that have ended are counted with their parents, if these have that name.
    """
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == name:
                ticks += _cpu_ticks(int(folder.name), ended=True)
    return ticks / _TICKS


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


def _cpu_ticks(pid: int, *, ended: bool = False) -> int:
    """Of a process, and of its children that have *ended* if so wished."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if ended else 13]))


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
