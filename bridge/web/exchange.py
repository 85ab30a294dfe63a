"""Data about one request that the event loop and Flask share."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from bridge.lookups.customer import Repeatable
from bridge.storage.database import StoreUnavailableError

_NAME = "bridge.exchange"


@dataclass(frozen=True, slots=True)
class ReusableAnswer:
    """An answer of Flask's that the event loop may send again.

    Attributes:
        repeat: how long it may be sent again.
        body: the parts before and after the age; one part if the body has no age.
        made_at: seconds since the epoch; the answer is invalid at earlier times.
        kind: as in `AnsweredRequest`.
        route: as in `AnsweredRequest`.
    """

    repeat: Repeatable
    body: tuple[bytes, ...]
    made_at: float
    kind: str
    route: str


@dataclass(slots=True)
class Exchange:
    """Data about one request, in its WSGI environment.

    Attributes:
        arrived: when the request arrived, by `time.monotonic`.
        failure: the reason why the event loop could not store the webhook; the view raises it.
        delay: seconds by which the event loop delays the answer.
        reusable: the answer, if the event loop may send it again.
    """

    arrived: float = field(default_factory=time.monotonic)
    failure: StoreUnavailableError | None = None
    delay: float = 0.0
    reusable: ReusableAnswer | None = None

    def enter(self, environ: MutableMapping[str, Any]) -> None:
        """Put this into the WSGI environment of its request."""
        environ[_NAME] = self


def exchange_of(environ: MutableMapping[str, Any]) -> Exchange:
    """Return the exchange of a request. Under plain WSGI, the first call creates it."""
    found: Exchange = environ.get(_NAME) or Exchange()
    found.enter(environ)
    return found
