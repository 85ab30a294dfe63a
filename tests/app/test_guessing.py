"""How long the answer to a wrong key waits on the event loop."""

from collections.abc import Callable

from flask import Flask
from werkzeug.test import EnvironBuilder

from bridge.ops.throttle import LONGEST_DELAY
from bridge.web.threads import Exchange

WRONG = {"Authorization": "Bearer wrong"}


def test_the_event_loop_learns_how_long_a_refusal_waits(app: Flask) -> None:
    environ = EnvironBuilder("/health", headers=list(WRONG.items())).get_environ()
    delays: list[float] = []
    statuses: list[str] = []

    def start(status: str, *_: object) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda _body: None

    for _ in range(10):
        exchange = Exchange()
        exchange.enter(environ)
        b"".join(app.wsgi_app(environ, start))
        delays.append(exchange.delay)
    assert delays[0] == 0
    assert delays[-1] == LONGEST_DELAY
    assert {status[:3] for status in statuses} == {"401"}
