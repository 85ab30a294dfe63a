"""What is answered is on disk: seen in the system calls that the service makes.

A kill -9 cannot show it, since what a process has written outlives it; a power cut does not leave
what was never synced.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ALICE, MakeService, eventually, rows
from tests.service.test_edge import dial, raw, read

CALLS = "pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg"
WAL = "/bridge.db-wal>"


@dataclass(frozen=True)
class Call:
    """A system call; *began* and *ended* are its places among all."""

    text: str
    began: int
    ended: int


@contextmanager
def traced(pids: Sequence[int], file: Path, *more: str) -> Iterator[None]:
    """Note the system calls of these processes in *file*; *more* is for strace."""
    if shutil.which("strace") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("strace is not installed")
    attached = [argument for pid in pids for argument in ("-p", str(pid))]
    command = ["strace", "-f", "-y", "-s", "9000", "-e", f"trace={CALLS}", "-o", str(file)]
    with subprocess.Popen(
        [*command, *more, *attached], stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr
        for line in strace.stderr:
            if "Operation not permitted" in line:
                (pytest.fail if os.environ.get("CI") else pytest.skip)("nothing may be traced")
            if f"Process {pids[-1]} attached" in line:
                break
        try:
            yield
        finally:
            strace.terminate()


def calls(file: Path) -> list[Call]:
    """The lines of *file*, in the order in which the calls ended."""
    found = []
    begun: dict[str, tuple[str, int]] = {}
    for place, line in enumerate(file.read_text(errors="replace").splitlines()):
        thread, _, answer = line.partition(" ")
        answer = answer.strip()
        if answer.endswith("<unfinished ...>"):
            begun[thread] = answer, place
        elif answer.startswith("<..."):
            text, began = begun.pop(thread, ("", place))
            found.append(Call(text + answer, began, place))
        else:
            found.append(Call(answer, place, place))
    return found


def test_a_webhook_is_on_disk_before_it_is_answered(
    make_service: MakeService, tmp_path: Path
) -> None:
    service = make_service(BRIDGE_SESSIONM_RPS="0.01")
    trace = tmp_path / "trace"
    names = [f"synced-{number}" for number in range(8)]
    with dial(service) as connection, traced(service.workers(), trace):
        for name in names:
            event = raw(name).replace(b'"ttl"', b'"dispatch_id": "once", "ttl"')
            length = len(event.partition(b"\r\n\r\n")[2])
            event = re.sub(rb"Length: \d+", b"Length: %d" % length, event)
            connection.sendall(event)
            assert read(connection, 1) == [202]
            # A duplicate is as good as stored: what it repeats has to be on disk as well.
            connection.sendall(event)
            assert read(connection, 1) == [200]
        eventually(lambda: len(_answers(calls(trace))) == 2 * len(names))
    made = calls(trace)
    syncs = [call for call in made if re.match(r"f(data)?sync\(", call.text) and WAL in call.text]
    answers = _answers(made)
    for name, accepted, repeated in zip(names, answers[::2], answers[1::2], strict=True):
        written = max(
            call.ended
            for call in made
            if call.text.startswith("pwrite64(") and WAL in call.text and name in call.text
            if call.began < accepted.began
        )
        assert any(written < sync.began <= sync.ended < accepted.began for sync in syncs), name
        assert any(accepted.ended < sync.began <= sync.ended < repeated.began for sync in syncs)


def test_a_disk_that_fails_once_stores_a_webhook_once(
    make_service: MakeService, tmp_path: Path, database: str
) -> None:
    service = make_service("--workers", "1", BRIDGE_SESSIONM_RPS="0.01")
    fails = ("-e", "inject=fdatasync:error=EIO:when=1")
    with dial(service) as connection:
        with traced(service.workers(), tmp_path / "trace", *fails):
            connection.sendall(raw("bad-1"))
            assert read(connection, 1) == [202]
        connection.sendall(raw("bad-2"))
        assert read(connection, 1) == [202]
    assert "Input/output error" in service.log.read_text()
    stored = rows(database, "SELECT tags FROM writes WHERE tags LIKE '%bad-%' ORDER BY tags")
    assert stored == [('["bad-1"]',), ('["bad-2"]',)]


def test_a_process_without_free_descriptors_stores_a_webhook_once(
    make_service: MakeService, database: str
) -> None:
    service = make_service("--workers", "1", BRIDGE_SESSIONM_RPS="0.01")
    (worker,) = service.workers()
    with dial(service) as connection:
        held = {int(file.name) for file in Path(f"/proc/{worker}/fd").iterdir()}
        free = next(number for number in range(4096) if number not in held)
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (free, before[1]))
        for number in range(3):
            connection.sendall(raw(f"few-{number}"))
        answers = read(connection, 3)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
    stored = rows(database, "SELECT count(*) FROM writes WHERE tags LIKE '%few-%'")
    assert (answers, stored) == ([202] * 3, [(3,)])


def test_a_database_behind_a_link_is_as_good_as_any(
    make_service: MakeService, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "bridge.db").symlink_to(tmp_path / "disk" / "data.db")
    service = make_service("--workers", "1")
    assert service.webhook(user_id=ALICE, tags="a", ttl="1d").status_code == 202
    assert rows(f"sqlite:///{tmp_path}/disk/data.db", "SELECT count(*) FROM events") == [(1,)]


def test_processes_that_make_a_new_database_at_once_do_not_fail(tmp_path: Path) -> None:
    script = (
        "import sys, time; from bridge.shared import open_outbox\n"
        "for number in range(40):\n"
        "    time.sleep(max(0, float(sys.argv[1]) + number * 0.1 - time.time()))\n"
        "    with open_outbox(f'sqlite:///{number}.db').write(): pass"
    )
    begin = str(time.time() + 1.5)
    made = [subprocess.Popen([sys.executable, "-c", script, begin], cwd=tmp_path) for _ in range(3)]
    assert [process.wait(30) for process in made] == [0, 0, 0]


def _answers(made: Sequence[Call]) -> list[Call]:
    return [call for call in made if re.search(r'"HTTP/1.1 20[02] ', call.text)]
