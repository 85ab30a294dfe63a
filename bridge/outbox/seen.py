"""What was said of something before, for files of any length in constant memory."""

import hashlib
import sqlite3
from types import TracebackType
from typing import Self

from bridge.database import StoreUnavailableError

# Kilobytes of it that are held in memory; the rest is in a temporary file.
_CACHE = 32 * 1024

_NOTE = """
INSERT INTO seen VALUES (?, ?) ON CONFLICT (hash)
DO UPDATE SET said = excluded.said WHERE seen.said IS NOT excluded.said
"""


class Seen:
    """What was last said of each text, on disk, gone when it is closed. A context manager.

    Texts are kept as 96 bits of a hash: that two of a hundred million are taken for one has a
    chance of one in ten million millions.
    """

    def __init__(self) -> None:
        # SQLite's nameless database: a file of its own in TMPDIR, deleted by itself.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size=-{_CACHE}")
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute(
            "CREATE TABLE seen (hash BLOB PRIMARY KEY, said INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def is_news(self, said: int | None, *parts: str) -> bool:
        """Note that *said* is the last of *parts*; whether it was not so before.

        Raises:
            StoreUnavailableError: there is no room for temporary files.
        """
        text = "".join(f"{len(part)}:{part}" for part in parts)
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        try:
            noted = self._database.execute(_NOTE, (digest, said))
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"no room for temporary files: {error}") from error
        return noted.rowcount > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()
