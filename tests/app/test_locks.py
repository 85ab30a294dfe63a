"""Numbered locks between processes, by files and by PostgreSQL."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from bridge.shared import open_outbox
from bridge.storage.locks import Locks
from tests.conftest import eventually

pytestmark = pytest.mark.both_databases
NUMBER = 2000

# Acquires a lock if it is free, says so, and waits for its end.
HOLDER = """
import sys
from bridge.shared import open_outbox
locks = open_outbox(sys.argv[1]).locks
print(locks.try_acquire(int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def locks(database: str) -> Iterator[Locks]:
    opened = open_outbox(database)
    yield opened.locks
    opened.close()


@contextmanager
def another_process(database: str) -> Iterator[tuple[subprocess.Popen[str], bool]]:
    """A process that tries to acquire the lock, and whether it did."""
    arguments = [sys.executable, "-c", HOLDER, database, str(NUMBER)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process, process.stdout.readline() == "True\n"


def test_one_process_holds_a_lock_until_it_releases_it(locks: Locks, database: str) -> None:
    assert locks.try_acquire(NUMBER)
    assert locks.is_held(NUMBER)
    assert not locks.is_held(NUMBER + 1)
    with another_process(database) as (_, acquired):
        assert not acquired
    locks.release(NUMBER)
    assert not locks.is_held(NUMBER)
    with another_process(database) as (_, acquired):
        assert acquired
        assert not locks.try_acquire(NUMBER)
        assert not locks.is_held(NUMBER)
    eventually(lambda: locks.try_acquire(NUMBER))


def test_a_killed_process_holds_no_lock(locks: Locks, database: str) -> None:
    with another_process(database) as (process, acquired):
        assert acquired
        process.send_signal(signal.SIGKILL)
        process.wait()
        eventually(lambda: locks.try_acquire(NUMBER), 2)


def test_a_store_that_is_closed_holds_no_lock(database: str) -> None:
    opened = open_outbox(database)
    assert eventually(lambda: opened.locks.try_acquire(NUMBER))
    opened.close()
    assert not opened.locks.is_held(NUMBER)


def test_one_thread_of_a_process_gets_a_lock(locks: Locks) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(NUMBER, NUMBER + 20):
            acquired = list(pool.map(locks.try_acquire, [number] * 8))
            assert sum(acquired) == 1
    held = range(NUMBER, NUMBER + 20)
    assert all(map(locks.is_held, held))
    locks.release(*held)
    assert all(map(locks.try_acquire, held))
