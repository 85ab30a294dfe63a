"""Services as separate processes, and what the kernel reports about them."""

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
# Seconds.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A service did not start. The message contains the end of the log."""


class Process:
    """A service in its own process group, running inside the ``with`` block.

    Args:
        command: the command, including *port*.
        port: the port that the service listens on.
        folder: working directory and place of the log.
        environment: added to the environment of this process.
        path: path of the request that shows whether the service is ready.
        ready: status of a ready service; 0 is any status below 500.
        listeners: number of listening sockets once all workers are ready.
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
        """Start, and wait until all workers are ready.

        Sets `started_in`, the seconds to the first answer.

        Raises:
            StartError: the process has ended, or is not ready in time.
        """
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                # No new session: with autogroups, Linux compares nice values only within a session.
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
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the processor time used so far, including child processes."""
        return sum(_cpu_ticks(pid) for pid in self._tree()) / _TICKS

    def memory(self) -> float:
        """Return the memory in MB, including child processes; shared pages count once (PSS)."""
        return sum(_pss(pid) for pid in self._tree()) / 1024

    def limit(self, group: "Quota") -> None:
        """Move all processes of the service into *group*."""
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
        if self._process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
            tail = self._log.read_text(errors="replace")[-500:].strip()
            raise StartError(f"{' '.join(self._command[:4])} … did not start: {tail}")


class Quota:
    """A control group (version 1 or 2) whose processes together get *share* of one core."""

    PERIOD = 20_000
    ROOT = Path("/sys/fs/cgroup")

    def __init__(self, share: float) -> None:
        first = self.ROOT / "cpu"
        self._is_first = first.exists()
        base = first if self._is_first else self.ROOT
        self._folder = base / f"bridge-bench-{os.getpid()}-{id(self)}"
        self._share = share

    def __enter__(self) -> Self:
        """Create the group.

        Raises:
            OSError: this is not allowed here.
        """
        self._folder.mkdir()
        quota = int(self._share * self.PERIOD)
        if self._is_first:
            (self._folder / "cpu.cfs_period_us").write_text(str(self.PERIOD))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self._folder / "cpu.max").write_text(f"{quota} {self.PERIOD}")
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the group; all of its processes must have ended."""
        self._folder.rmdir()

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    @classmethod
    def missing(cls) -> str:
        """Return why control groups cannot be used here; "" if they can."""
        try:
            with cls(0.5):
                return ""
        except OSError as error:
            return f"control groups cannot be made: {error.strerror}"


def cpu_of(name: str) -> float:
    """Return the processor time in seconds that all processes called *name* have used so far.

    Ended processes count if their parent has the same name.
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
    """Return the number of sockets that listen on *port*."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


class Steal:
    """CPU steal: processor time taken by the hypervisor since this object was created."""

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
    """Return the ticks of a process, and with *ended* of the children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if ended else 13]))


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _clean_environment() -> dict[str, str]:
    """Return the environment of this process without settings of a bridge."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BRIDGE_", "SESSIONM_", "BRAZE_"))
    }
