"""A map of any size in constant memory, to find repeated rows of a file."""

import hashlib
import sqlite3
from types import TracebackType
from typing import Self

from bridge.storage.database import StoreUnavailableError

_STORE = """
INSERT INTO last VALUES (?, ?) ON CONFLICT (hash)
DO UPDATE SET value = excluded.value WHERE last.value IS NOT excluded.value
"""


class LastValues:
    """The last value of each key, in a temporary file. A context manager that deletes the file.

    Keys are stored as 96-bit hashes: the probability of a collision among 10**8 keys is 10**-13.

    Args:
        memory: KiB held in memory; the rest is in the file.
    """

    def __init__(self, memory: int = 32 * 1024) -> None:
        # The empty name means a temporary file in TMPDIR, which SQLite deletes.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size=-{memory}")
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute(
            "CREATE TABLE last (hash BLOB PRIMARY KEY, value INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def changes(self, value: int | None, *key: str) -> bool:
        """Store *value* for *key*; return whether this changes the stored value.

        Raises:
            StoreUnavailableError: there is no room for temporary files.
        """
        text = "".join(f"{len(part)}:{part}" for part in key)
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        try:
            stored = self._database.execute(_STORE, (digest, value))
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"no room for temporary files: {error}") from error
        return stored.rowcount > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()
