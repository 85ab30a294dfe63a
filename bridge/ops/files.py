"""The limit of open files, and the number of connections that it allows."""

import logging
import resource
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

# Files reserved for databases, SessionM and logs; at most half of the limit.
RESERVE = 512


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one, for this process and its children."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("limit of open files not raised: %s", error, extra={"action": "open_files"})
    most_connections.cache_clear()
    log.info(
        "at most %s open files (%s before) and %s connections in each process",
        limit(),
        before,
        most_connections(),
        extra={"action": "open_files"},
    )


def limit() -> int:
    """Return the maximum number of open files of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@lru_cache
def most_connections() -> int:
    """Return the maximum number of client connections of one process."""
    return limit() - min(RESERVE, limit() // 2)


def count() -> int:
    """Return the number of open files of this process; -1 if the system does not provide it."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return -1
