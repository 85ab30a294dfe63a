"""Data about one request that the event loop and Flask share."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from bridge.storage.database import StoreUnavailableError
from bridge.web.ready import ReadyAnswer

_NAME = "bridge.exchange"


@dataclass(slots=True)
class Exchange:
    """Data about one request, in its WSGI environment.

    Attributes:
        arrived: when the request arrived, by `time.monotonic`.
        failure: the reason why the event loop could not store the webhook; the view raises it.
        delay: seconds by which the event loop delays the answer.
        ready: the answer, if the event loop may send it again.
    """

    arrived: float = field(default_factory=time.monotonic)
    failure: StoreUnavailableError | None = None
    delay: float = 0.0
    ready: ReadyAnswer | None = None

    def enter(self, environ: MutableMapping[str, Any]) -> None:
        """Put this into the WSGI environment of its request."""
        environ[_NAME] = self


def exchange_of(environ: MutableMapping[str, Any]) -> Exchange:
    """Return the exchange of a request. Under plain WSGI, the first call creates it."""
    found: Exchange = environ.get(_NAME) or Exchange()
    found.enter(environ)
    return found
