"""Locks: what they promise, and those between the processes of one machine, ranges of one file.

POSIX record locks suit gunicorn: a forked child does not inherit them, and the operating
system frees them when their holder dies, however it dies. They belong to the process, so
threads are kept apart by ordinary locks in front of them. Nobody ever waits for one.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

DELIVERER = 1
WARMER = 2
_FIRST_FREE = 1024
_RANGE = 1 << 40


class LostLockError(Exception):
    """The deliverer's lock is another's by now."""


class DelivererLock(Protocol):
    """The lock of which there is one for all processes of all machines.

    Attributes:
        grace: so many seconds the last holder may go on sending after the lock is free, unless
            it said that it has ended.
    """

    grace: float

    def try_acquire(self) -> bool:
        """Take it if nobody has it; asked again, whether it is ours."""

    def is_held(self) -> bool:
        """Whether it is ours for certain, at this moment: only then may anything be sent."""

    def release(self) -> None:
        """Let another have it."""


class Flights(Protocol):
    """Numbered locks, each held while one process asks SessionM for one thing.

    Attributes:
        peek: seconds after which it pays to try again.
    """

    peek: float

    def try_acquire(self, number: int) -> bool:
        """Take it if nobody, here or elsewhere, has it; nobody waits."""

    def release(self, *numbers: int) -> None:
        """Give them back."""


class FileLocks:
    """Numbered locks over one file. The file stays open: closing it would free every lock."""

    peek = 0.01

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._fd = -1
        self._held: set[int] = set()
        self._writer = threading.Lock()

    def try_acquire(self, number: int) -> bool:
        """Take lock *number* if nobody, here or in another process, has it."""
        with self._guard:
            fd = self._open()
            if number in self._held:
                return False
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError as error:
                if error.errno in {errno.EACCES, errno.EAGAIN}:
                    return False
                raise
            self._held.add(number)
            return True

    def release(self, *numbers: int) -> None:
        with self._guard:
            for number in numbers:
                self._held.discard(number)
                fcntl.lockf(self._open(), fcntl.LOCK_UN, 1, number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait in line for the right to write; waiting costs no processor time."""
        with self._writer:
            with self._guard:
                fd = self._open()
            # Not a record lock: for those the kernel sees a deadlock where threads of two
            # processes wait for each other's *other* file, and refuses.
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back every lock of this process."""
        with self._guard:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._fd


class FileLock:
    """The deliverer's lock among the processes of one machine.

    The operating system frees it when its holder is dead, and never before.
    """

    grace = 0.0

    def __init__(self, locks: FileLocks) -> None:
        self._locks = locks
        self._held = False

    def try_acquire(self) -> bool:
        self._held = self._held or self._locks.try_acquire(DELIVERER)
        return self._held

    def is_held(self) -> bool:
        return self._held

    def release(self) -> None:
        self._held = False
        self._locks.release(DELIVERER)


def lock_number(hashed: int) -> int:
    """A lock number for any *hashed* 64-bit value, apart from the numbers that have names."""
    return _FIRST_FREE + hashed % _RANGE
