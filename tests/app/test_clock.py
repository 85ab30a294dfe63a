"""A wall clock that is set back or forward stops nothing, loses nothing, and is named."""

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from bridge import clock
from bridge.outbox import accept
from bridge.outbox.accept import Acceptor, ReceivedRequest
from bridge.outbox.clocks import ClockKeeper
from bridge.outbox.delivery import DEAD_AFTER
from bridge.outbox.model import State
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from bridge.sessionm.tags import COUNT_DELAY, PROCESSING_TIME
from tests.app.test_delivery import Bridge, writes
from tests.conftest import ALICE, LetPass, MakeApp, bearer, eventually, post, send, stored_state

pytestmark = pytest.mark.both_databases

MINUTE, HOUR, DAY = 60, 3600, 86_400
SetWallClock = Callable[[float], None]
steps = pytest.mark.parametrize("step", [-HOUR, DAY], ids=["-1h", "+1d"])


@pytest.fixture
def set_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetWallClock:
    """Sets the machine's wall clock forward by seconds, as the whole process reads it."""
    path = tmp_path / "wall-clock"
    monkeypatch.setenv("BRIDGE_TEST_CLOCK", str(path))

    def set_forward(seconds: float) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(path)

    set_forward(0)
    return set_forward


def is_delivered(bridge: Bridge, event: str) -> bool:
    return stored_state(bridge.parts.store, event) is State.DELIVERED


def accepted(bridge: Bridge, campaign: str) -> str:
    """The event of a webhook; "" if it is not accepted."""
    answer = post(bridge.client, braze_campaign_id=campaign)
    return str(answer.get_json()["id"]) if answer.status_code == 202 else ""


def health(bridge: Bridge) -> dict[str, Any]:
    found: dict[str, Any] = bridge.client.get("/health", headers=bearer("admin")).get_json()
    return found


def clock_reasons(bridge: Bridge) -> list[str]:
    return [reason for reason in health(bridge)["reasons"] if "clock" in reason]


@steps
def test_deliveries_go_on_when_sessionm_is_well_again(
    make_app: MakeApp, sandbox: SandboxServer, set_wall_clock: SetWallClock, step: float
) -> None:
    sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
    bridge = Bridge(make_app)
    events = []
    for number in range(6):
        sandbox.sandbox.put_customer({"user_id": f"u{number}"})
        events.append(bridge.send(user_id=f"u{number}", braze_campaign_id="summer"))
    eventually(lambda: "is unavailable" in bridge.delivery_health()["reason"], 30)
    set_wall_clock(step)
    # Well after the step, so that a loop that waits for the old time would wait on.
    tried = len(writes(sandbox))
    eventually(lambda: len(writes(sandbox)) > tried, 40)
    sandbox.sandbox.set_faults({})
    for event in events:
        eventually(partial(is_delivered, bridge, event), 60)
    # What waited carries its TTL, less the seconds that it has really waited.
    assert all(body["ttl"] > 2_592_000 - 120 for body in writes(sandbox))


@steps
def test_a_write_in_retry_and_a_new_one_are_delivered_soon(
    make_app: MakeApp,
    sandbox: SandboxServer,
    set_wall_clock: SetWallClock,
    let_pass: LetPass,
    step: float,
) -> None:
    sandbox.sandbox.put_customer({"user_id": "another"})
    sandbox.sandbox.set_faults({"status": 503, "match": "POST", "times": 2})
    bridge = Bridge(make_app)
    event = bridge.send(tags=["visits"], dispatch_id="d1")
    eventually(partial(bridge.has_tried, event), 20)
    set_wall_clock(step)
    let_pass(PROCESSING_TIME + COUNT_DELAY)
    another = bridge.send(user_id="another", tags=["soon"], ttl=120)
    for one in (event, another):
        eventually(partial(is_delivered, bridge, one), 40)
    assert sandbox.sandbox.tags(ALICE)["visits"] == 1
    assert {body["ttl"] for body in writes(sandbox) if "soon" in body["tags"]} == {120}


@steps
def test_pause_and_resume_are_obeyed_after_a_step(
    make_app: MakeApp, sandbox: SandboxServer, set_wall_clock: SetWallClock, step: float
) -> None:
    bridge = Bridge(make_app)
    assert bridge.ends_as(bridge.send(braze_campaign_id="before"), State.DELIVERED)
    set_wall_clock(step)
    assert bridge.parts.operator.pause()
    event = bridge.send(braze_campaign_id="summer")
    assert bridge.delivery_health()["state"] == "paused"
    assert len(writes(sandbox)) == 1
    set_wall_clock(0)
    bridge.parts.operator.resume()
    assert bridge.ends_as(event, State.DELIVERED)


@steps
def test_a_loop_that_has_ended_is_reported(
    make_app: MakeApp, set_wall_clock: SetWallClock, let_pass: LetPass, step: float
) -> None:
    bridge = Bridge(make_app)
    eventually(lambda: bridge.delivery_health()["state"] == "running")
    bridge.parts.delivery.stop()
    set_wall_clock(step)
    let_pass(DEAD_AFTER)
    eventually(lambda: bridge.delivery_health()["state"] == "stopped", 5)


@steps
def test_a_queue_that_is_not_full_takes_webhooks(
    make_app: MakeApp, set_wall_clock: SetWallClock, step: float
) -> None:
    bridge = Bridge(make_app, BRIDGE_QUEUE_LIMIT="10")
    assert bridge.ends_as(bridge.send(braze_campaign_id="before"), State.DELIVERED)
    set_wall_clock(step)
    for number in range(15):
        # At most what came within the second for which a count holds is counted too much.
        event = eventually(partial(accepted, bridge, f"c{number}"), 5)
        assert bridge.ends_as(event, State.DELIVERED)


def deliver_ten(make_app: MakeApp, sandbox: SandboxServer, between: Callable[[], None]) -> None:
    """Accept ten events, and deliver them, whole, by a service that is started after *between*."""
    client = make_app().test_client()
    events = [send(client, braze_campaign_id=f"c{number}") for number in range(10)]
    between()
    bridge = Bridge(make_app)
    for event in events:
        assert bridge.ends_as(event, State.DELIVERED)
    assert {tag for body in writes(sandbox) for tag in body["tags"]} == {
        f"braze_campaign_c{number}" for number in range(10)
    }
    assert all(body["ttl"] > 2_592_000 - 120 for body in writes(sandbox))


@steps
def test_what_waits_over_a_restart_is_delivered(
    make_app: MakeApp, sandbox: SandboxServer, set_wall_clock: SetWallClock, step: float
) -> None:
    deliver_ten(make_app, sandbox, lambda: set_wall_clock(step))


@pytest.mark.parametrize("step", [-MINUTE, -DAY])
def test_what_waits_over_a_start_of_the_machine_is_delivered(
    make_app: MakeApp,
    sandbox: SandboxServer,
    set_wall_clock: SetWallClock,
    tmp_path: Path,
    step: float,
) -> None:
    def start_anew() -> None:
        set_wall_clock(step)
        # Nothing is known of what the clock was before.
        (tmp_path / "bridge.db.clock").unlink(missing_ok=True)

    deliver_ten(make_app, sandbox, start_anew)


@pytest.mark.parametrize("undone", [True, False])
def test_a_step_forward_lets_nothing_expire_early(
    make_app: MakeApp, sandbox: SandboxServer, set_wall_clock: SetWallClock, *, undone: bool
) -> None:
    sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
    bridge = Bridge(make_app)
    event = bridge.send(tags=["flash"], ttl=300)
    eventually(lambda: writes(sandbox), 20)
    set_wall_clock(HOUR)
    tried = len(writes(sandbox))
    eventually(lambda: len(writes(sandbox)) > tried, 20)
    if undone:
        set_wall_clock(0)
    sandbox.sandbox.set_faults({})
    eventually(partial(is_delivered, bridge, event), 60)
    assert "flash" in sandbox.sandbox.tags(ALICE)


@pytest.mark.parametrize(
    ("step", "words"), [(-HOUR, "was set back by 3"), (HOUR, "was set forward by 3")]
)
def test_one_machines_clock_is_named_while_writes_wait(
    make_app: MakeApp,
    sandbox: SandboxServer,
    set_wall_clock: SetWallClock,
    database: str,
    step: float,
    words: str,
) -> None:
    if database.startswith("postgresql"):
        words = "behind the database's" if step < 0 else "ahead of the database's"
    sandbox.sandbox.set_faults({"status": 503, "match": "POST"})
    bridge = Bridge(make_app)
    event = bridge.send(braze_campaign_id="summer")
    assert clock_reasons(bridge) == []
    set_wall_clock(step)
    [named] = eventually(lambda: clock_reasons(bridge))
    assert words in named
    found = health(bridge)
    assert (found["status"], found["checks"]["clocks"]["state"]) == ("degraded", "differ")
    sandbox.sandbox.set_faults({})
    eventually(partial(is_delivered, bridge, event), 60)
    if database.startswith("postgresql"):
        set_wall_clock(0)
    eventually(lambda: not clock_reasons(bridge), 20)


def test_a_step_forward_makes_no_event_old(
    make_app: MakeApp, sandbox: SandboxServer, set_wall_clock: SetWallClock, database: str
) -> None:
    """Events are the memory of what was counted: a repeat by Braze must stay a duplicate."""
    bridge = Bridge(make_app)
    event = bridge.send(tags=["visits"], dispatch_id="d1")
    assert bridge.ends_as(event, State.DELIVERED)
    set_wall_clock(30 * DAY)
    if database.startswith("sqlite"):
        # Nothing waits, so the clock follows.
        eventually(lambda: not clock_reasons(bridge))
    bridge.parts.delivery.stop()
    # A deliverer begins by forgetting what is too old to keep.
    again = Bridge(make_app)
    assert again.ends_as(again.send(braze_campaign_id="later"), State.DELIVERED)
    eventually(lambda: not any(thread.name == "cleaner" for thread in threading.enumerate()))
    send(again.client, again=True, tags=["visits"], dispatch_id="d1")
    assert sandbox.sandbox.tags(ALICE)["visits"] == 1


@pytest.mark.parametrize("ahead", [MINUTE, DAY])
def test_what_another_clock_dated_is_delivered(
    make_app: MakeApp, sandbox: SandboxServer, database: str, ahead: int
) -> None:
    """As after a failover, or in a database that was moved: its times lie ahead of the clock."""
    event = send(make_app().test_client(), braze_campaign_id="summer")
    times = f"accepted_at = accepted_at + {ahead}, next_at = next_at + {ahead}"
    change(database, f"UPDATE writes SET {times}")  # noqa: S608 - a test's own numbers
    bridge = Bridge(make_app)
    assert bridge.ends_as(event, State.DELIVERED)
    [body] = writes(sandbox)
    assert body["ttl"] == 2_592_000


def test_the_clock_follows_a_step_back_by_half_its_speed_however_often_the_loop_beats(
    make_app: MakeApp, set_wall_clock: SetWallClock
) -> None:
    keeper = ClockKeeper(parts_of(make_app()).store)
    before = clock.now()
    keeper.adjust(2.0, is_idle=False)
    set_wall_clock(-MINUTE + 10)
    for _ in range(8):
        keeper.adjust(2.0, is_idle=False)
    assert clock.now() > before


def change(database: str, statement: str) -> None:
    """What another program does in the database."""
    engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_after_a_step_back_of_the_databases_clock_no_write_waits_for_the_old_time(
    make_app: MakeApp,
) -> None:
    app = make_app()
    event = send(app.test_client(), braze_campaign_id="summer")
    store = parts_of(app).store
    store.postpone(f"user_id:{ALICE}", clock.now() + HOUR)
    assert not store.due_queues(clock.now(), 10, [])
    store.make_due(clock.now())
    assert [*store.due_queues(clock.now(), 10, [])] == [f"user_id:{ALICE}"]
    assert stored_state(store, event) is State.QUEUED


def test_an_event_that_comes_while_the_clock_jumps_waits_for_no_other_time(
    make_app: MakeApp, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is from before the jump, and it is stored after it."""
    bridge = Bridge(make_app)
    ahead = [MINUTE - 0.01, HOUR, -MINUTE + 0.01, -HOUR]
    for number, seconds in enumerate(ahead):
        at = clock.now() + seconds
        parts = bridge.parts
        times = SimpleNamespace(now=partial(float, at), steady=clock.steady)
        monkeypatch.setattr(accept, "clock", times)
        acceptor = Acceptor(parts.store, parts.rules, queue_limit=10)
        body = json.dumps({"user_id": ALICE, "tags": [f"t{number}"], "ttl": 120}).encode()
        receipt = acceptor.accept(ReceivedRequest(body, "application/json"))
        assert bridge.ends_as(receipt.id, State.DELIVERED)
    assert {body["ttl"] for body in writes(sandbox)} == {120}
