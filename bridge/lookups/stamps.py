"""Stamps: one number for each customer, which changes whenever the customer changes.

An array of 64-bit words: on one machine a memory map that all its processes share, in a fleet
what `bridge.lookups.fleet` keeps. Customers share words by hash: a collision costs a needless
fetch, never a wrong answer.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Collection
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from bridge import chance

# Of the map, 8 MB. While 560 writes a second were delivered, one lookup in 150 was made anew for
# nothing with 2**18 words, and that set the 99th percentile of all.
WORDS = 1 << 20
_WORD = struct.Struct("<Q")
_SIZE = WORDS * _WORD.size
_PAGE = 1 << 16


class Stamps(Protocol):
    """The numbers. *kind* is what is cached, *customer* whose, by key."""

    def start(self) -> None:
        """Begin to hear of changes; what was changed elsewhere is known when this returns."""

    def get(self, kind: str, customer: str) -> int:
        """The present stamp.

        A negative one is given only once and so equals none: changes elsewhere may have been
        missed, and nothing that was known before can be trusted.
        """

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        """`get` as a function, for those who ask often."""

    def last(self, kind: str, customer: str) -> int:
        """The last stamp that was heard of, though changes may have been missed since."""

    def change(self, kind: str, customer: str) -> int:
        """Give it another stamp; what was cached before is used no more, by any process."""

    def change_many(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        """Give each of them another stamp; returns them."""

    def change_all(self) -> None:
        """Give everybody another stamp."""

    def close(self) -> None: ...


class SharedStamps:
    """The array in file *path*, for the processes of one machine.

    A new one holds chance values, so that what was cached under the stamps of an earlier file
    is not mistaken for current.
    """

    def __init__(self, path: Path) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # Of several processes that start at once the first makes it.
            fcntl.flock(folder, fcntl.LOCK_EX)
            # Another version's would be read at the wrong places.
            if not path.exists() or path.stat().st_size != _SIZE:
                # Whole or not at all.
                draft = path.with_name(f"{path.name}.{os.getpid()}")
                try:
                    draft.write_bytes(os.urandom(_SIZE))
                    draft.replace(path)
                finally:
                    # On a full disk its beginning would stay.
                    draft.unlink(missing_ok=True)
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), _SIZE)
        finally:
            os.close(folder)

    def start(self) -> None:
        """Changes are seen as they are made."""

    def get(self, kind: str, customer: str) -> int:
        (word,) = _WORD.unpack_from(self._map, _WORD.size * place(kind, customer, WORDS))
        # SQLite's integers have a sign.
        return int(word) >> 1

    last = get

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        at, words = _WORD.size * place(kind, customer, WORDS), self._map
        return lambda: int(_WORD.unpack_from(words, at)[0]) >> 1

    def change(self, kind: str, customer: str) -> int:
        # Chance rather than counting up: two processes may change it at once.
        at = _WORD.size * place(kind, customer, WORDS)
        word = chance.bits(64)
        _WORD.pack_into(self._map, at, word)
        return word >> 1

    def change_many(self, kind: str, customers: Collection[str]) -> dict[str, int]:
        for customer in customers:
            self.change(kind, customer)
        # Read when all are changed: some may share a word.
        return {customer: self.get(kind, customer) for customer in customers}

    def change_all(self) -> None:
        # Others read, and change, meanwhile: whatever they find is not what was there before.
        for at in range(0, _SIZE, _PAGE):
            self._map[at : at + _PAGE] = os.urandom(_PAGE)

    def close(self) -> None:
        self._map.close()


def hashed(*parts: str) -> int:
    """The same 64 bits in every process for the same *parts*."""
    # A length before each part keeps ("a", "bc") and ("ab", "c") apart.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def place(kind: str, customer: str, words: int) -> int:
    """Which one of so many words is that of *kind* and *customer*."""
    return hashed(kind, customer) % words
