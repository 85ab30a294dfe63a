"""A socket with a deadline, with the methods that `http.client` uses."""

import io
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from bridge.network.failure import NotSentError


class TimedSocket:
    """A connected socket with one deadline for all operations of a request.

    Data is buffered until `flush`, so that head and body of a request leave in one packet.
    *sent_at* is when the first byte of the last request was sent; ``None`` if nothing was sent.
    Times are by `time.monotonic`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffered: list[bytes] = []
        self._until = 0.0
        self._may_send: Callable[[], bool] = lambda: True
        self.sent_at: float | None = None

    def begin(self, until: float, may_send: Callable[[], bool] = lambda: True) -> None:
        """Begin a request with the deadline *until*; `flush` sends only if *may_send* allows."""
        self._until, self._may_send = until, may_send
        self._buffered.clear()
        self.sent_at = None

    def sendall(self, data: bytes) -> None:
        """Buffer *data* until `flush`."""
        self._buffered.append(data)

    def flush(self) -> None:
        """Send the buffered data.

        Raises:
            NotSentError: *may_send* returned false.
            TimeoutError: the deadline has passed; if *sent_at* is ``None``, nothing was sent.
            OSError: the connection is broken; if *sent_at* is ``None``, nothing was sent.
        """
        if not self._may_send():
            raise NotSentError
        data = memoryview(b"".join(self._buffered))
        self._buffered.clear()
        while data:
            self._limit()
            first, self.sent_at = self.sent_at, self.sent_at or time.monotonic()
            try:
                data = data[self._sock.send(data) :]
            except ConnectionError:
                # The kernel has accepted no byte of this piece.
                self.sent_at = first
                raise

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file to read the answer from."""
        return io.BufferedReader(_Incoming(self), 65536)

    def receive(self, buffer: Any) -> int:
        """Read at least one byte into *buffer*; return the number of bytes, 0 at the end.

        Raises:
            TimeoutError: the deadline has passed.
            OSError: the connection is broken.
        """
        self._limit()
        return self._sock.recv_into(buffer)

    def is_quiet(self) -> bool:
        """Return whether there is nothing to read: a readable idle connection has been closed."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Do nothing: `http.client` calls this early; `end` closes the socket."""

    def end(self) -> None:
        self._sock.close()

    def _limit(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)


class _Incoming(io.RawIOBase):
    def __init__(self, timed: TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive(buffer)
