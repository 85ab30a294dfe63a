"""A bell: rung by one thread or process, heard by another that sleeps."""

import contextlib
import os
import select
import weakref
from collections.abc import Iterable


class Bell:
    """A pipe. Made before a fork, it joins the processes; ringing it is safe in signal handlers."""

    def __init__(self) -> None:
        self._hears, self._rings = ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        # Not when the process ends: some thread may ring until then.
        weakref.finalize(self, _close, *ends).atexit = False

    def ring(self) -> None:
        """Wake who sleeps, or who next would."""
        # A full pipe rings already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._rings, b"\0")

    def silence(self) -> None:
        """Forget that it was rung."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._hears, 1 << 16)

    def fileno(self) -> int:
        """What is readable when it was rung."""
        return self._hears


def sleep(seconds: float, bells: Iterable[Bell]) -> None:
    """Sleep for so long, or until one of *bells* rings."""
    listening = select.poll()
    for bell in bells:
        listening.register(bell, select.POLLIN)
    listening.poll(seconds * 1000)


def _close(*ends: int) -> None:
    for end in ends:
        os.close(end)
