"""A counter whose deliverer was killed is read back only when SessionM can have finished."""

from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.conftest import ALICE, MakeService, eventually


def test_the_next_deliverer_waits_until_sessionm_can_have_finished(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service()
    sandbox.sandbox.set_faults({"match": "POST", "latency_ms": 8000, "times": 1})
    service.webhook(user_id=ALICE, tags=["visits"], dispatch_id="d1")
    eventually(lambda: sandbox.sandbox.calls(method="POST", match="/tags$"))
    service.kill()
    service.start()
    eventually(lambda: len(sandbox.sandbox.calls(match="/tags$")) > 2, 60)
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0)
    first, sent, *read = sandbox.sandbox.calls(match="/tags$")
    assert [first["method"], sent["method"]] == ["GET", "POST"]
    assert [call["method"] for call in read] == ["GET"]
    assert read[0]["at"] - sent["at"] > PROCESSING_TIME + COUNT_DELAY
    assert sandbox.sandbox.tags(ALICE)["visits"] == 1
