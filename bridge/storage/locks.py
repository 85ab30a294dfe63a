"""Locks between processes: their interface, and its implementation for one machine.

On one machine, locks are POSIX record locks, ranges of one file. A forked child does not inherit
them, and the operating system frees them when the holder dies, even by SIGKILL. They belong to a
process, so an ordinary lock keeps threads apart. `bridge.storage.session` implements the locks of a
fleet.
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

# Numbers of locks. 2 and 3 are in use in PostgreSQL, see `bridge.storage.postgres`.
DELIVERER, BRAZE_DELIVERER, WARMER = 1, 4, 5
_FIRST_HASHED = 1024
_HASHED = 1 << 40


class LostLockError(Exception):
    """Another process holds the deliverer's lock now."""


class Locks(Protocol):
    """Numbered locks, each held by one thread of one process of the machine or fleet.

    A lock is free again as soon as its holder has died.

    Attributes:
        grace: seconds for which the last holder may go on after its lock is free, unless that
            holder has signed off.
        poll_interval: seconds to wait before another attempt to acquire a lock.
    """

    grace: float
    poll_interval: float

    def try_acquire(self, number: int) -> bool:
        """Acquire lock *number* if it is free; do not wait for its holder.

        Raises:
            StoreUnavailableError: it is unknown whether the lock is free.
        """

    def is_held(self, number: int) -> bool:
        """Return whether this process certainly holds lock *number* now."""

    def release(self, *numbers: int) -> None:
        """Release the locks *numbers*, held by this process."""


class FileLocks:
    """The locks of one machine, over one file.

    The file stays open: closing it would free every lock.
    """

    grace = 0.0
    poll_interval = 0.01

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._fd = -1
        self._held: set[int] = set()
        self._writer = threading.Lock()

    def try_acquire(self, number: int) -> bool:
        """As `Locks.try_acquire`.

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

    def is_held(self, number: int) -> bool:
        return number in self._held

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
            self._held.clear()

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = open_file(self.path)
        return self._fd


def lock_number(hashed: int) -> int:
    """Return the lock number for a 64-bit hash; never one of the named numbers above."""
    return _FIRST_HASHED + hashed % _HASHED
