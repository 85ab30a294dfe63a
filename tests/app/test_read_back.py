"""A counter whose call ended early is not read back before SessionM can have finished."""

import time

from bridge.outbox.model import State
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.conftest import MakeApp, eventually, send, stored_state
from tests.network import Passage, Relay

GATEWAY_TIMEOUT = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 2\r\n\r\n{}"


# The customer whose POST is given up -> after how many seconds, and what the bridge is sent then.
GIVEN_UP = {"cut": (0.1, b""), "gateway": (1.0, GATEWAY_TIMEOUT)}


def gives_up(passage: Passage, data: bytes) -> bool:
    """A load balancer that passes each customer's POST on, and does not wait for its answer."""
    if not data.startswith(b"POST"):
        return False
    name = next(name for name in GIVEN_UP if f"/{name}/".encode() in data)
    seconds, farewell = GIVEN_UP[name]
    passage.mute = True
    passage.far.sendall(data)
    time.sleep(seconds)
    if farewell:
        passage.near.sendall(farewell)
    passage.end()
    return True


def test_a_counter_is_counted_once_where_sessionm_works_on_after_the_call(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    for name in GIVEN_UP:
        sandbox.sandbox.put_customer({"user_id": name})
    sandbox.sandbox.set_faults({"match": "POST", "latency_ms": 7000})
    with Relay(int(sandbox.url.rpartition(":")[2])) as relay:
        relay.disturb = gives_up
        app = make_app(deliver=True, SESSIONM_CORE_URL=relay.url)
        client, store = app.test_client(), parts_of(app).store
        events = [
            send(client, user_id=name, tags=["visits"], dispatch_id=f"d-{name}")
            for name in GIVEN_UP
        ]
        for event in events:
            eventually(
                lambda event=event: stored_state(store, event) is State.DELIVERED,  # type: ignore[misc]
                PROCESSING_TIME + COUNT_DELAY + 15,
            )
        parts_of(app).delivery.stop()
    for name in GIVEN_UP:
        calls = sandbox.sandbox.calls(match=f"/{name}/tags$")
        assert [call["method"] for call in calls] == ["GET", "POST", "GET"]
        assert sandbox.sandbox.tags(name)["visits"] == 1
        assert calls[2]["at"] - calls[1]["at"] > PROCESSING_TIME + COUNT_DELAY - 0.5
