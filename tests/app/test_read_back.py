"""A counter whose call ended early is not read back before SessionM can have finished."""

import time
from collections.abc import Callable

import pytest

from bridge.outbox.model import State
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.conftest import ALICE, MakeApp, eventually, send, stored_state
from tests.network import Passage, Relay

GATEWAY_TIMEOUT = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 2\r\n\r\n{}"


def gives_up(farewell: bytes, seconds: float) -> Callable[[Passage, bytes], bool]:
    """A load balancer that passes the first POST on, and does not wait for its answer."""
    left = [seconds]

    def disturb(passage: Passage, data: bytes) -> bool:
        if not data.startswith(b"POST") or not left:
            return False
        passage.mute = True
        passage.far.sendall(data)
        time.sleep(left.pop())
        if farewell:
            passage.near.sendall(farewell)
        passage.end()
        return True

    return disturb


@pytest.mark.parametrize(
    "disturb",
    [gives_up(b"", 0.1), gives_up(GATEWAY_TIMEOUT, 1.0)],
    ids=["cut after 0.1 s", "504 after 1 s"],
)
def test_a_counter_is_counted_once_where_sessionm_works_on_after_the_call(
    make_app: MakeApp, sandbox: SandboxServer, disturb: Callable[[Passage, bytes], bool]
) -> None:
    sandbox.sandbox.set_faults({"match": "POST", "latency_ms": 7000, "times": 1})
    with Relay(int(sandbox.url.rpartition(":")[2])) as relay:
        relay.disturb = disturb
        app = make_app(deliver=True, SESSIONM_CORE_URL=relay.url)
        event = send(app.test_client(), tags=["visits"], dispatch_id="d1")
        store = parts_of(app).store
        eventually(
            lambda: stored_state(store, event) is State.DELIVERED,
            PROCESSING_TIME + COUNT_DELAY + 15,
        )
        calls = sandbox.sandbox.calls(match="/tags$")
        parts_of(app).delivery.stop()
    assert [call["method"] for call in calls] == ["GET", "POST", "GET"]
    assert sandbox.sandbox.tags(ALICE)["visits"] == 1
    assert calls[2]["at"] - calls[1]["at"] > PROCESSING_TIME + COUNT_DELAY - 0.5
