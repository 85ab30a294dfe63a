"""Stamps: one number for each customer, which changes whenever the customer changes.

A small array of 64-bit words in a memory map that all processes of the machine share. Customers
share words by hash: a collision costs a needless fetch, never a wrong answer.
"""

import mmap
import os
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

WORDS = 1 << 16
_WORD = struct.Struct("<Q")
_SIZE = WORDS * _WORD.size


class Stamps:
    """The array in file *path*.

    A new one holds chance values, so that what was cached under the stamps of an earlier file
    is not mistaken for current.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            # Whole or not at all, and the first of several processes wins.
            draft = path.with_name(f"{path.name}.{os.getpid()}")
            draft.write_bytes(os.urandom(_SIZE))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)

    def get(self, kind: str, customer: str) -> int:
        """The stamp of what is cached of *kind* for *customer* (a key)."""
        (word,) = _WORD.unpack_from(self._map, _place(kind, customer))
        # SQLite's integers have a sign.
        return int(word) >> 1

    def reader(self, kind: str, customer: str) -> Callable[[], int]:
        """A function that gives the same at each call, for those who ask often."""
        place, words = _place(kind, customer), self._map
        return lambda: int(_WORD.unpack_from(words, place)[0]) >> 1

    def change(self, kind: str, customer: str) -> int:
        """Give it another stamp; what was cached before is used no more."""
        # Chance rather than counting up: two processes may change it at once.
        _WORD.pack_into(self._map, _place(kind, customer), int.from_bytes(os.urandom(8)))
        return self.get(kind, customer)

    def change_all(self) -> None:
        """Give everybody another stamp."""
        # Word by word: others read, and change, meanwhile.
        for place in range(0, _SIZE, _WORD.size):
            _WORD.pack_into(self._map, place, int.from_bytes(os.urandom(8)))

    def close(self) -> None:
        self._map.close()


def hashed(*parts: str) -> int:
    """The same 64 bits in every process for the same *parts*."""
    # A length before each part keeps ("a", "bc") and ("ab", "c") apart.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _place(kind: str, customer: str) -> int:
    return hashed(kind, customer) % WORDS * _WORD.size
