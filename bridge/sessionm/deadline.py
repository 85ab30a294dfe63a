"""An end for calls that drip.

`requests` bounds each read from a socket, not the call: a server that sends a byte now and then
holds the caller for ever. So a guard notes the socket that a call reads from, and one thread
shuts it down when the call's time is up; the read then fails like any broken connection.
"""

import contextlib
import heapq
import itertools
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_local = threading.local()


class NotSentError(Exception):
    """It may not be sent any more; nothing of it was."""


class Guard:
    """Ends the call of the current thread after *seconds*; a context manager.

    Right before anything of it is sent, *may_send* is asked: between the decision to make a call
    and its first byte a process can be frozen for any length of time. *sent* tells whether any of
    it may have left.
    """

    def __init__(self, seconds: float, may_send: Callable[[], bool] = lambda: True) -> None:
        self.until = time.monotonic() + seconds
        self.may_send = may_send
        self.sent = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def __enter__(self) -> Self:
        _local.guard = self
        _watchdog.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _local.guard = None
        with self._lock:
            # From here on the connection may serve another call.
            self._over = True

    def reads_from(self, sock: socket.socket | None) -> None:
        with self._lock:
            self._socket = sock
        if time.monotonic() >= self.until:
            # Connecting took all the time, and the watchdog has been here already.
            self.end()

    def end(self) -> None:
        with self._lock:
            if self._socket is not None and not self._over:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class _Watchdog:
    """One thread that ends guards when their time is up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._guards: list[tuple[float, int, Guard]] = []
        self._thread: threading.Thread | None = None

    def add(self, guard: Guard) -> None:
        with self._changed:
            heapq.heappush(self._guards, (guard.until, next(self._order), guard))
            # A thread does not survive a fork.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif self._guards[0][2] is guard:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._guards:
                    self._changed.wait()
                until = self._guards[0][0]
                remaining = until - time.monotonic()
                if remaining > 0:
                    self._changed.wait(remaining)
                    continue
                guard = heapq.heappop(self._guards)[2]
            guard.end()


_watchdog = _Watchdog()


def _note_socket(connection: HTTPConnection) -> None:
    guard: Guard | None = getattr(_local, "guard", None)
    if guard is not None:
        guard.reads_from(connection.sock)


def _check_send() -> None:
    guard: Guard | None = getattr(_local, "guard", None)
    if guard is not None:
        if not guard.may_send():
            raise NotSentError
        guard.sent = True


class _GuardedHTTP(HTTPConnection):
    _held: list[Any] | None = None

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send head and body by one system call: a server would be woken for each."""
        self._held = []
        try:
            super().request(*arguments, **options)
            whole = b"".join(self._held)
        finally:
            self._held = None
        if self.sock is None:
            # By a proxy this sends something too, which is none of the request.
            self.connect()
        _check_send()
        self.send(whole)

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)

    def getresponse(self) -> Any:
        _note_socket(self)
        return super().getresponse()


class _GuardedHTTPS(_GuardedHTTP, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _GuardedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPS


class GuardedAdapter(HTTPAdapter):
    """The adapter whose connections tell their guard which socket they read from."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
