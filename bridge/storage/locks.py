"""Locks: their interface, and locks between the processes of one machine.

Locks on one machine are POSIX record locks, ranges of one file. A forked child does not inherit
them, and the operating system frees them when the holder dies, even by SIGKILL. They belong to a
process, so ordinary locks keep threads apart. `try_acquire` never blocks.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from bridge.storage.private import open_file

# One for each direction of delivery.
DELIVERER, BRAZE_DELIVERER = 1, 3
WARMER = 2
_FIRST_FREE = 1024
_RANGE = 1 << 40


class LostLockError(Exception):
    """Another process holds the deliverer's lock now."""


class DelivererLock(Protocol):
    """The lock that allows one process, of all machines, to deliver in a direction.

    Attributes:
        grace: seconds for which the last holder may go on sending after the lock is free, unless
            that holder has signed off.
    """

    grace: float

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free; return whether this process holds it."""

    def is_held(self) -> bool:
        """Return whether this process certainly holds the lock now. Send nothing otherwise."""

    def release(self) -> None:
        """Release the lock."""


class FetchLocks(Protocol):
    """Numbered locks, each held while one process fetches one lookup from SessionM.

    Attributes:
        poll_interval: seconds to wait before another attempt to acquire a lock.
    """

    poll_interval: float

    def try_acquire(self, number: int) -> bool:
        """Acquire lock *number* if it is free, in this process and all others; never block."""

    def release(self, *numbers: int) -> None:
        """Release the locks *numbers*."""


class FileLocks:
    """Numbered locks over one file. The file stays open: closing it would free every lock."""

    poll_interval = 0.01

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._fd = -1
        self._held: set[int] = set()
        self._writer = threading.Lock()

    def try_acquire(self, number: int) -> bool:
        """Acquire lock *number* if it is free, in this process and all others.

        Raises:
            OSError: the file cannot be opened or locked.
        """
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
        """Hold the writers' lock, which is waited for without polling.

        Raises:
            OSError: the file cannot be opened or locked.
        """
        with self._writer:
            with self._guard:
                fd = self._open()
            # flock, not a record lock: if threads of two processes wait for locks on two files,
            # the kernel takes record locks for a deadlock and refuses them.
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release every lock of this process."""
        with self._guard:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = open_file(self.path)
        return self._fd


class FileLock:
    """A deliverer's lock among the processes of one machine.

    The operating system frees the lock when the holder dies, never earlier.
    """

    grace = 0.0

    def __init__(self, locks: FileLocks, number: int = DELIVERER) -> None:
        self._locks = locks
        self._number = number
        self._held = False

    def try_acquire(self) -> bool:
        self._held = self._held or self._locks.try_acquire(self._number)
        return self._held

    def is_held(self) -> bool:
        return self._held

    def release(self) -> None:
        self._held = False
        self._locks.release(self._number)


def lock_number(hashed: int) -> int:
    """Return the lock number for a 64-bit hash; never one of the named numbers above."""
    return _FIRST_FREE + hashed % _RANGE
