"""Numbers in a memory map, shared by all processes of one machine until it restarts."""

import fcntl
import mmap
import os
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from bridge.storage.private import open_file

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_WIDTH = array("d").itemsize


def shared_cells(path: Path, initial: Sequence[float]) -> "memoryview[float]":
    """Return the shared numbers in file *path*, one double for each number in *initial*.

    In a new file, and after a restart of the machine, the numbers are *initial*: times by
    `bridge.clock.steady` mean nothing after a restart. Reading or writing one number is atomic.

    Raises:
        OSError: the file cannot be created or written.
    """
    boot = _boot()
    size = _WIDTH * (1 + len(initial))
    descriptor = open_file(path)
    try:
        # If several processes start at once, only the first one writes.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        stored = os.pread(descriptor, size, 0)
        if not boot or len(stored) < size or array("d", stored)[0] != boot:
            # Write the bytes, do not just extend the file: on a full disk, a write into a hole of
            # a memory map kills the process.
            os.pwrite(descriptor, array("d", [boot, *initial]).tobytes(), 0)
        # Unlock explicitly: the map keeps the file open, and with it the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return memoryview(mmap.mmap(descriptor, size)).cast("d")[1:]
    finally:
        os.close(descriptor)


def _boot() -> float:
    """Return a number that identifies the machine's current boot; 0 if it is unknown."""
    try:
        digest = blake2b(_BOOT_ID.read_bytes(), digest_size=6).digest()
    except OSError:
        return 0.0
    # 48 bits: a double holds them exactly.
    return float(int.from_bytes(digest))
