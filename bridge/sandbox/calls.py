"""The log of received calls."""

import re
import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass

from pydantic_core import from_json

from bridge.sandbox.messages import Json

_REMEMBERED = 200_000
_KINDS = ("tags_write", "tags_read", "profile", "offers", "batch", "trigger")


@dataclass(slots=True)
class RecordedCall:
    """One received call; `status` is None until it is answered."""

    at: float
    method: str
    path: str
    body: bytes
    authorization: str = "missing"
    status: int | None = None
    applied: bool = False
    answered_at: float | None = None

    def as_json(self) -> Json:
        try:
            body = from_json(self.body, allow_inf_nan=False) if self.body else None
        except ValueError:
            body = self.body.decode("utf-8", "replace")
        return asdict(self) | {"body": body}


class CallLog:
    """The latest calls, and the number of calls of each kind since `clear`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._calls: deque[RecordedCall] = deque(maxlen=_REMEMBERED)
            self._counts = Counter(dict.fromkeys(_KINDS, 0))

    def add(self, call: RecordedCall, kind: str = "") -> None:
        with self._lock:
            self._calls.append(call)
            if kind:
                self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Return the number of calls of each kind since `clear`."""
        with self._lock:
            return dict(self._counts)

    def select(
        self, method: str | None = None, match: str | None = None, since: float | None = None
    ) -> list[RecordedCall]:
        """Return the calls, oldest first; `match` is searched in "METHOD path"."""
        with self._lock:
            calls = list(self._calls)
        wanted = re.compile(match or "")
        return [
            call
            for call in calls
            if (method is None or call.method == method.upper())
            and (since is None or call.at >= since)
            and wanted.search(f"{call.method} {call.path}")
        ]
