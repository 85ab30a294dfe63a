"""The worker class of `bridge serve`: uvicorn's worker with a limit on connections.

Each connection is an open file, and a process has a limit of those. uvicorn closes connections that
are idle after an answer, but not those without any request: a few hundred of them would block all
webhooks.
"""

import asyncio
import logging
import time
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

from bridge.ops import files

log = logging.getLogger(__name__)

# Seconds between two log lines about closed connections.
LOG_EVERY = 60.0


class _Connections:
    """The open connections of this process, least recently used first."""

    def __init__(self) -> None:
        self._open: dict[HttpToolsProtocol, None] = {}
        self._logged_at = -LOG_EVERY

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: HttpToolsProtocol) -> None:
        """Add a connection; at the limit, close the least recently used one.

        If a request is in progress on that one, uvicorn closes it after the answer.
        """
        while len(self._open) >= files.most_connections():
            oldest = next(iter(self._open))
            self.discard(oldest)
            oldest.shutdown()
            self._log()
        self._open[connection] = None

    def touch(self, connection: HttpToolsProtocol) -> None:
        """Mark a connection as the most recently used one."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def discard(self, connection: HttpToolsProtocol) -> None:
        self._open.pop(connection, None)

    def _log(self) -> None:
        if time.monotonic() >= self._logged_at + LOG_EVERY:
            self._logged_at = time.monotonic()
            log.warning(
                "over %s connections: idle ones are closed",
                files.most_connections(),
                extra={"action": "connections_closed"},
            )


_connections = _Connections()


def count() -> int:
    """Return the number of open connections of this process; 0 except under `bridge serve`."""
    return len(_connections)


class BoundedProtocol(HttpToolsProtocol):
    """One connection of uvicorn's, registered in `_Connections`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _connections.add(self)

    def data_received(self, data: bytes) -> None:
        _connections.touch(self)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        _connections.discard(self)
        super().connection_lost(exc)


class Worker(UvicornWorker):  # type: ignore[misc]
    """uvicorn's worker with `BoundedProtocol`."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": BoundedProtocol,
        "ws": "none",
        # `bridge.web.auth` reads X-Forwarded-For.
        "proxy_headers": False,
    }
