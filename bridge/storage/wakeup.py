"""Wake-ups: one thread or process ends the wait of another."""

import contextlib
import os
import select
import weakref
from collections.abc import Iterable
from typing import Protocol


class Wakeup:
    """A flag that can be waited for, kept in a pipe.

    Processes forked after its creation share the flag. `set` may be called in signal handlers.
    """

    def __init__(self) -> None:
        self._reader, self._writer = ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        # Stay open until the process ends: a thread may call `set` during interpreter shutdown.
        weakref.finalize(self, _close, *ends).atexit = False

    def set(self) -> None:
        """Set the flag: end a wait under way, or else the next one."""
        # A full pipe means that the flag is set already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 1 << 16)

    def fileno(self) -> int:
        """Return the file descriptor that is readable while the flag is set."""
        return self._reader


class Readable(Protocol):
    """A `Wakeup`, or a connection on which something may be received."""

    def fileno(self) -> int: ...


def wait(seconds: float, inputs: Iterable[Readable]) -> None:
    """Wait until there is something to read on one of *inputs*, *seconds* at most."""
    poll = select.poll()
    for one in inputs:
        poll.register(one, select.POLLIN)
    poll.poll(max(0.0, seconds) * 1000)


def _close(*ends: int) -> None:
    for end in ends:
        os.close(end)
