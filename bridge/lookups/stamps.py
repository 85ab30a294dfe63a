"""Stamps: one number for each customer, which changes whenever the customer changes.

Stamps are an array of 64-bit words: on one machine a memory map that all processes share, in a
fleet a table (`bridge.lookups.fleet`). A customer's word is chosen by hash. A collision costs a
needless fetch, never a wrong answer. The stamps of the kind `OWN` have words of their own, since
they change with every webhook.
"""

import fcntl
import mmap
import os
import random
import struct
from collections.abc import Callable, Collection
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from bridge.storage.private import open_file

# The kind of the stamps that change whenever the bridge's own writes for a customer change.
OWN = "own"
# Words of the kind `OWN`, and of all other kinds (8 MB each). With 2**18 words, collisions caused
# 1 needless fetch in 150 lookups at 560 writes/s, which dominated p99.
WORDS = 1 << 20
_WORD = struct.Struct("<Q")
_SIZE = 2 * WORDS * _WORD.size
_PAGE = 1 << 16


class Stamps(Protocol):
    """The stamps. *kind* is that of a `CacheKey`, or `OWN`; *customer* is a `Customer.key`.

    In a fleet, the methods that change stamps raise `StoreUnavailableError` if the change cannot
    be stored. Those of the kind `OWN` are not stored; other processes get them a little later.
    """

    def start(self) -> None:
        """Start to receive changes; on return, earlier changes by other processes are known."""

    def get(self, kind: str, customer: str) -> int:
        """Return the present stamp.

        A negative stamp is unique and equals no other one: changes by other processes may have
        been missed, so no cached answer can be trusted.
        """

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        """Return a function that returns the present stamp, faster than `get`."""

    def last(self, kind: str, customer: str) -> int:
        """Return the last known stamp, though later changes may have been missed."""

    def change(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        """Change the stamps of *customers*, and return the new ones by key.

        This makes cached answers of these customers outdated in all processes.
        """

    def change_all(self) -> None:
        """Change all stamps, except those of the kind `OWN`."""

    def close(self) -> None: ...


class SharedStamps:
    """The array in file *path*, shared by the processes of one machine.

    A new file holds random values, so that entries cached under an earlier file are outdated.

    Raises:
        OSError: the file cannot be created or mapped.
    """

    def __init__(self, path: Path) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # If several processes start at once, only the first one creates the file.
            fcntl.flock(folder, fcntl.LOCK_EX)
            # Replace a file of another size: it was written by a version with other word numbers.
            if not path.exists() or path.stat().st_size != _SIZE:
                # Write a temporary file and rename it: the file is complete or missing.
                draft = path.with_name(f"{path.name}.{os.getpid()}")
                try:
                    with os.fdopen(open_file(draft), "wb") as file:
                        file.write(os.urandom(_SIZE))
                    draft.replace(path)
                finally:
                    # After a failed write, for example on a full disk.
                    draft.unlink(missing_ok=True)
            with path.open("r+b") as words:
                self._map = mmap.mmap(words.fileno(), _SIZE)
        finally:
            os.close(folder)

    def start(self) -> None:
        """Do nothing: changes in the memory map are visible at once."""

    def get(self, kind: str, customer: str) -> int:
        return self.reader(kind, customer)()

    last = get

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        at, words = _at(kind, customer), self._map
        # 63 bits, since SQLite's integers are signed.
        return lambda: int(_WORD.unpack_from(words, at)[0]) >> 1

    def change(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        for customer in customers:
            # A random value, not a counter: two processes may change the word at the same time. Not
            # os.urandom: it releases the GIL, for each webhook.
            _WORD.pack_into(self._map, _at(kind, customer), random.getrandbits(64))
        # Read after all changes: customers may share a word.
        return {customer: self.get(kind, customer) for customer in customers}

    def change_all(self) -> None:
        # No lock: whatever another process reads or writes meanwhile differs from the old value.
        for at in range(0, WORDS * _WORD.size, _PAGE):
            self._map[at : at + _PAGE] = os.urandom(_PAGE)

    def close(self) -> None:
        self._map.close()


def hashed(*parts: str) -> int:
    """Return a 64-bit hash of *parts*, the same in every process."""
    # A length before each part distinguishes ("a", "bc") from ("ab", "c").
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _at(kind: str, customer: str) -> int:
    """Return the place of the word of *kind* and *customer* in the map, in bytes."""
    word = hashed(kind, customer) % WORDS
    return _WORD.size * (word + WORDS if kind == OWN else word)
