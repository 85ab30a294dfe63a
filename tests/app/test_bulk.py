"""Backlog to batch, and jobs through crashes: real gunicorn, killed; SessionM over HTTP."""

import hashlib
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.customer import Customer
from bridge.outbox.model import AFTER_BATCH, State
from bridge.outbox.schema import writes
from bridge.sandbox import SandboxServer
from tests.app.test_batches import Bridge, orders, questions
from tests.commands import run_bridge
from tests.conftest import (
    LetPass,
    MakeApp,
    MakeService,
    Service,
    bearer,
    eventually,
    send,
    stored_state,
)

THRESHOLD = 20
CUSTOMERS = [f"customer-{number}" for number in range(60)]


@pytest.fixture
def bridge(make_app: MakeApp, sandbox: SandboxServer) -> Iterator[Bridge]:
    for customer in CUSTOMERS:
        sandbox.sandbox.put_customer({"user_id": customer})
    made = Bridge(make_app, BRIDGE_BULK_THRESHOLD=str(THRESHOLD))
    yield made
    made.close()


def webhook(bridge: Bridge, customer: str, **fields: Any) -> str:
    return send(bridge.client, user_id=customer, **fields)


def singles(sandbox: SandboxServer) -> list[dict[str, Any]]:
    """The single tag writes that SessionM was sent, in order."""
    return sandbox.sandbox.calls(method="POST", match="users/[^/]+/tags$")


def all_delivered(bridge: Bridge, events: list[str], seconds: float = 20) -> None:
    store = bridge.parts.store
    eventually(lambda: all(stored_state(store, e) is State.DELIVERED for e in events), seconds)


@pytest.mark.both_databases
def test_a_backlog_of_expiring_tags_leaves_as_one_job(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.start()
    all_delivered(bridge, events)
    assert len(orders(sandbox)) == 1
    assert singles(sandbox) == []
    for customer in CUSTOMERS:
        assert sandbox.sandbox.tags(customer)["braze_campaign_big"] == 0
    [batch] = bridge.batches.find()
    assert (batch["source"], batch["state"], batch["rows"]) == ("backlog", "completed", 60)
    answer = bridge.client.get(
        f"/connected-content/tags?user_id={CUSTOMERS[0]}", headers=bearer("content")
    ).get_json()
    assert "braze_campaign_big" in answer["names"]
    assert answer["pending"] == []
    assert "braze_campaign_big" in answer["expires"]


def test_of_several_ttls_of_a_tag_in_bulk_the_last_wins(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"delay": 60})
    for customer in CUSTOMERS:
        webhook(bridge, customer, braze_campaign_id="big")
    for ttl in ("30d", "1d", "30d"):
        webhook(bridge, CUSTOMERS[0], tags=["vip"], ttl=ttl)
    bridge.start()
    [order] = eventually(lambda: orders(sandbox))
    lines = requests.get(order["url"], timeout=5).text.splitlines()
    assert [line for line in lines if ",vip," in line] == [f"{CUSTOMERS[0]},,vip,30 days"]
    assert bridge.batches.find()[0]["rows"] == len(lines) - 1


def test_a_small_backlog_goes_singly(bridge: Bridge, sandbox: SandboxServer) -> None:
    some = CUSTOMERS[:THRESHOLD]
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in some]
    bridge.start()
    all_delivered(bridge, events)
    assert orders(sandbox) == []
    assert len(singles(sandbox)) == THRESHOLD


def test_counters_and_ttls_that_days_cannot_say_go_singly(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    events = []
    for customer in CUSTOMERS:
        events.append(webhook(bridge, customer, braze_campaign_id="big", tags=["visits"]))
        events.append(webhook(bridge, customer, tags=["short"], ttl=5400))
    bridge.start()
    all_delivered(bridge, events, 30)
    assert len(orders(sandbox)) == 1
    bodies = [call["body"] for call in singles(sandbox)]
    assert {tag for body in bodies for tag in body["tags"]} == {"visits", "short"}
    for customer in CUSTOMERS:
        tags = sandbox.sandbox.tags(customer)
        assert (tags["visits"], tags["short"], tags["braze_campaign_big"]) == (1, 0, 0)


@pytest.mark.both_databases
def test_an_event_is_delivered_only_when_sessionm_has_completed_the_job(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": 503})
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.wait(outage=60).start()
    eventually(lambda: len(questions(sandbox)) >= 2)
    assert {stored_state(bridge.parts.store, event) for event in events} == {State.QUEUED}
    sandbox.sandbox.set_faults({})
    all_delivered(bridge, events)


@pytest.mark.both_databases
def test_later_writes_of_a_customer_wait_for_the_job(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": 503})
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.wait(outage=60).start()
    eventually(lambda: orders(sandbox))
    later = webhook(bridge, CUSTOMERS[0], braze_campaign_id="big", ttl=7200, tags=["x"])
    other = webhook(bridge, "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601", tags=["elsewhere"])
    all_delivered(bridge, [other])
    assert stored_state(bridge.parts.store, later) is State.QUEUED
    sandbox.sandbox.set_faults({})
    all_delivered(bridge, [*events, later])
    mine = [call for call in singles(sandbox) if CUSTOMERS[0] in call["path"]]
    assert mine
    assert all(call["at"] > questions(sandbox)[-1]["at"] for call in mine)


@pytest.mark.parametrize(
    "wrong", [{"fail": "it broke"}, {"corrupt": True}, {"fetch": False}], ids=str
)
def test_the_writes_of_a_failed_job_go_singly(
    bridge: Bridge, sandbox: SandboxServer, wrong: dict[str, Any]
) -> None:
    bridge.wait(report_backlog=1.0)
    sandbox.sandbox.set_batches(wrong)
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.start()
    all_delivered(bridge, events, 30)
    assert len(orders(sandbox)) == 1
    assert len(singles(sandbox)) == len(CUSTOMERS)
    [batch] = bridge.batches.find()
    assert (batch["state"], batch["completed_rows"]) == ("released", 0)
    for order in orders(sandbox):
        assert requests.get(order["url"], timeout=5).status_code == 404
    health = bridge.client.get("/health", headers=bearer("admin")).get_json()
    assert health["checks"]["delivery"]["batches"]["flagged"] == 0


def test_webhooks_in_bulk_do_not_wait_for_the_jobs_of_a_file(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    for customer in CUSTOMERS:
        sandbox.sandbox.put_customer({"user_id": customer})
    bridge = Bridge(make_app, BRIDGE_BULK_THRESHOLD=str(THRESHOLD), BRIDGE_SESSIONM_RPS="4")
    sandbox.sandbox.set_batches({"delay": 3600, "times": 4})
    file = "user_id\n" + "".join(f"{customer}\n" for customer in CUSTOMERS[:30])
    bridge.start().submit(file, tag="segment", split="1")
    eventually(lambda: len(orders(sandbox)) == 4)
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    all_delivered(bridge, events)
    assert len(orders(sandbox)) == 5
    bridge.close()


def test_webhooks_in_bulk_go_singly_in_time_whatever_wait_sessionm_asks_for(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    bridge.wait(submit_backlog=2.0)
    sandbox.sandbox.set_faults({"match": "POST .*/batch/", "status": 429, "retry_after": 3600})
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.start()
    all_delivered(bridge, events)
    assert len(singles(sandbox)) == len(CUSTOMERS)


@pytest.mark.both_databases
def test_the_writes_of_a_job_that_sessionm_never_reports_go_singly(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    bridge.wait(report_backlog=1.0)
    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": 401})
    sandbox.sandbox.set_batches({"notifications": 0})
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.start()
    all_delivered(bridge, events)
    assert len(singles(sandbox)) == len(CUSTOMERS)


def test_what_sessionm_says_of_a_job_stands_in_no_log(
    bridge: Bridge, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.sandbox.set_batches({"fail": "row 3: zoe@example.com is odd"})
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.start()
    all_delivered(bridge, events, 30)
    [batch] = bridge.batches.find()
    assert "zoe@example.com" in batch["reason"]
    assert "zoe@example.com" not in "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.both_databases
def test_a_write_of_an_unknown_customer_is_not_reported_delivered(
    bridge: Bridge, sandbox: SandboxServer, let_pass: LetPass
) -> None:
    sandbox.sandbox.remove_customer(CUSTOMERS[7])
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.start()
    known = [event for event, customer in zip(events, CUSTOMERS, strict=True)]
    stranger = known.pop(7)
    all_delivered(bridge, known, 30)
    assert stored_state(bridge.parts.store, stranger) is State.QUEUED
    sandbox.sandbox.put_customer({"user_id": CUSTOMERS[7]})
    let_pass(60)
    all_delivered(bridge, [stranger], 30)


@pytest.mark.both_databases
def test_webhooks_leave_in_bulk_beyond_32_bits(bridge: Bridge, sandbox: SandboxServer) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    with bridge.parts.store.database.write() as connection:
        connection.execute(writes.update().values(seq=writes.c.seq + 2**31))
    bridge.start()
    all_delivered(bridge, events)
    assert singles(sandbox) == []


@pytest.mark.both_databases
def test_where_nothing_can_be_gathered_webhooks_go_singly(
    bridge: Bridge, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    with bridge.parts.store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE batch_blocks RENAME TO batch_blocks_away")
    bridge.start()
    all_delivered(bridge, events)
    assert len(singles(sandbox)) == len(CUSTOMERS)
    assert "gathering_failed" in {getattr(r, "action", "") for r in caplog.records}


@pytest.mark.both_databases
def test_what_was_gathered_before_a_failure_is_not_held(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS[1:]]
    backlog, database = bridge.parts.jobs.backlog, bridge.parts.store.database

    def gather_until(happened: Callable[[], bool]) -> None:
        def gather() -> bool:
            backlog.gather((), 60)
            return happened()

        eventually(gather)

    gather_until(lambda: bool(bridge.batches.find()))
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE batch_blocks RENAME TO batch_blocks_away")
    events.append(webhook(bridge, CUSTOMERS[0], braze_campaign_id="big"))
    gather_until(lambda: "gathering_failed" in {getattr(r, "action", "") for r in caplog.records})
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE batch_blocks_away RENAME TO batch_blocks")
    gather_until(lambda: bridge.batches.find()[0]["state"] == "queued")
    [batch] = bridge.batches.find()
    assert batch["rows"] == len(CUSTOMERS) - 1
    bridge.start()
    all_delivered(bridge, events)


def test_writes_that_are_late_carry_what_is_left_and_so_go_singly(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    with bridge.parts.store.database.write() as connection:
        connection.execute(writes.update().values(accepted_at=writes.c.accepted_at - 3600))
    bridge.start()
    all_delivered(bridge, events, 30)
    assert orders(sandbox) == []
    assert all(call["body"]["ttl"] < 2592000 - 3500 for call in singles(sandbox))


@pytest.mark.both_databases
def test_a_steady_overload_leaves_in_bulk_as_far_as_it_is_not_late(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    late = [webhook(bridge, customer, tags=["old"], ttl=86400) for customer in CUSTOMERS[:30]]
    with bridge.parts.store.database.write() as connection:
        connection.execute(writes.update().values(accepted_at=writes.c.accepted_at - 3600))
    fresh = [webhook(bridge, customer, tags=["new"], ttl=86400) for customer in CUSTOMERS[30:40]]
    bridge.start()
    all_delivered(bridge, [*late, *fresh], 30)
    assert {call["body"]["tags"][0] for call in singles(sandbox)} == {"old"}
    assert len(orders(sandbox)) == 1


@pytest.mark.both_databases
def test_what_waits_for_no_job_any_more_goes_on_when_delivery_starts(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    event = webhook(bridge, CUSTOMERS[0], tags=["lost"], ttl=86400)
    with bridge.parts.store.database.write() as connection:
        connection.execute(writes.update().values(next_at=AFTER_BATCH))
    bridge.start()
    all_delivered(bridge, [event])
    assert len(singles(sandbox)) == 1


@pytest.mark.both_databases
def test_nobody_is_held_for_a_job_that_is_over(bridge: Bridge) -> None:
    """The job ended between the look at the queue and the decision to wait for it."""
    event = webhook(bridge, CUSTOMERS[0], tags=["new"], ttl=86400)
    bridge.parts.store.wait_for_batch(f"user_id:{CUSTOMERS[0]}")
    bridge.start()
    all_delivered(bridge, [event])


@pytest.mark.both_databases
def test_later_writes_are_held_with_those_of_a_job_that_is_not_over(bridge: Bridge) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.parts.jobs.backlog.gather((), 60)
    events.append(webhook(bridge, CUSTOMERS[0], tags=["new"], ttl=5400))
    store = bridge.parts.store
    store.wait_for_batch(f"user_id:{CUSTOMERS[0]}")
    waiting = [write.next_at for write in store.queue_of(f"user_id:{CUSTOMERS[0]}")]
    assert waiting == [AFTER_BATCH, AFTER_BATCH]
    bridge.start()
    all_delivered(bridge, events)


@pytest.mark.both_databases
def test_an_erased_customer_leaves_a_job_that_has_not_gone(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    events = [webhook(bridge, customer, braze_campaign_id="big") for customer in CUSTOMERS]
    bridge.parts.jobs.backlog.gather((), 60)
    bridge.parts.operator.erase(Customer("user_id", CUSTOMERS[3]))
    bridge.start()
    all_delivered(bridge, [event for event in events if event != events[3]])
    assert "braze_campaign_big" not in sandbox.sandbox.tags(CUSTOMERS[3])


@pytest.mark.both_databases
def test_kill_9_at_any_step_neither_loses_nor_doubles(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    """A file of counters, which would count twice, while everything is killed again and again."""
    customers = [f"crash-{number}" for number in range(300)]
    for customer in customers:
        sandbox.sandbox.put_customer({"user_id": customer})
    service = make_service(public=True)
    file = "user_id,tag,expires\n" + "".join(f"{customer},seen,\n" for customer in customers)
    sandbox.sandbox.set_batches({"delay": 0.3})
    answer = requests.post(
        f"{service.url}/batches?split=50", data=file, headers=bearer("admin"), timeout=30
    )
    assert answer.status_code == 202
    batch = answer.json()["id"]
    # Moments of a crash, in seconds after the start: they are not waited for anything.
    for moment in (0.5, 0.2, 0.8, 0.4, 1.0):
        time.sleep(moment)
        service.kill()
        service.start()

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = requests.get(
            f"{service.url}/batches/{batch}", headers=bearer("admin"), timeout=10
        ).json()["batch"]
        return found

    def counted() -> Counter[int]:
        return Counter(sandbox.sandbox.tags(customer).get("seen", 0) for customer in customers)

    eventually(lambda: shown()["state"] in {"completed", "failed"}, 150)
    assert max(counted()) <= 1
    if shown()["state"] == "failed":
        # Killed between noting that a file goes out whole and its last byte: only a person can
        # see that nothing was counted.
        assert "may have been counted" in shown()["reason"]
        again = f"{service.url}/batches/{batch}/resubmit"
        requests.post(again, headers=bearer("admin"), timeout=10).raise_for_status()
        eventually(lambda: shown()["state"] == "completed", 60)
    assert counted() == {1: 300}


@pytest.mark.both_databases
def test_kill_9_while_a_backlog_leaves_in_bulk_loses_no_event(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    for customer in CUSTOMERS:
        sandbox.sandbox.put_customer({"user_id": customer})
    service = make_service(public=True, BRIDGE_BULK_THRESHOLD="10", BRIDGE_SESSIONM_RPS="5")
    sandbox.sandbox.set_batches({"delay": 0.5})
    for round_ in range(5):
        for customer in CUSTOMERS:
            answer = service.webhook(user_id=customer, braze_campaign_id=f"round-{round_}")
            assert answer.status_code == 202
        time.sleep(0.7 * round_)
        service.kill()
        service.start()
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0, 150)
    wanted = {f"braze_campaign_round-{number}" for number in range(5)}
    for customer in CUSTOMERS:
        assert wanted <= set(sandbox.sandbox.tags(customer))
    events = service.health()["checks"]["store"]["events"]
    assert events["delivered"] == 5 * len(CUSTOMERS)


@pytest.mark.both_databases
def test_a_long_file_passes_through_the_real_server(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service(public=True, BRIDGE_LOG_LEVEL="debug")
    sandbox.sandbox.set_batches({"fetch": False})
    file = "user_id,notes\n" + "".join(f"customer-{n},{'x' * 100}\n" for n in range(30_000))
    answer = requests.post(
        f"{service.url}/batches?tag=t&ttl=1d",
        data=file,
        headers={**bearer("admin"), "Content-Type": "text/csv"},
        timeout=15,
    )
    assert (answer.status_code, answer.json()["rows"]) == (202, 30_000)
    [order] = eventually(lambda: orders(sandbox))
    fetched = requests.get(order["url"], timeout=10)
    assert hashlib.md5(fetched.content, usedforsecurity=False).hexdigest() == order["md5"]
    assert fetched.text.count("\n") == 30_001
    requests.get(order["notify"], timeout=10)
    log = service.log.read_text()
    for url in (order["url"], order["notify"]):
        assert re.findall(r"[\w-]{43}", url)[0] not in log


def command(service: Service, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`bridge batch` beside *service*."""
    return run_bridge("batch", *arguments, env=service.environ, cwd=service.folder)


@pytest.mark.both_databases
def test_the_command_submits_and_waits(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    sandbox.sandbox.put_customer({"user_id": "one"})
    service = make_service(public=True)
    file = tmp_path / "segment.csv"
    file.write_text("Braze ID,user_id\n1,one\n2,\n3,one\n")

    def run(*options: str) -> "subprocess.CompletedProcess[str]":
        return command(service, "submit", str(file), "--tag", "t", *options)

    tried = run("--ttl", "30d", "--dry-run")
    assert tried.returncode == 0
    assert "user_id,tag,expires\none,t,30 days\n" in tried.stdout
    assert (tmp_path / "segment.csv.refused.csv").read_text().splitlines()[1].startswith("3,")
    done = run("--ttl", "30d", "--wait")
    assert done.returncode == 0, done.stderr
    assert "3 rows in the file: 1 to be sent, 1 refused, 1 repeat left out." in done.stdout
    assert "is submitted as 1 job." in done.stdout
    assert "Completed: 1/1 row done, 1 refused." in done.stdout
    assert sandbox.sandbox.tags("one") == {"t": 0} | sandbox.sandbox.tags("one")
    wrong = run("--ttl", "90m")
    assert wrong.returncode == 1
    assert "whole days" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_command_shows_that_no_row_of_a_batch_worked(
    make_service: MakeService, tmp_path: Path
) -> None:
    service = make_service(public=True)
    file = tmp_path / "segment.csv"
    file.write_text("Email,user_id\nanne@acme.com,\nzoe@acme.com,\n,\n")
    done = command(
        service,
        *("submit", str(file), "--tag", "t", "--ttl", "30d", "--wait"),
        *("--id-column", "Email", "--id-kind", "external_id"),
    )
    assert done.returncode == 1
    assert "Completed: 0/2 rows done, 2 failed, 1 refused." in done.stdout
    assert "SessionM could not do 2 of 2 rows" in done.stderr
    assert "it may not know these customers by external_id" in done.stderr
    [batch] = re.findall(r"`bridge batch status (\w+)`", done.stderr)
    answer = command(service, "status", batch)
    assert answer.returncode == 0
    assert "0/2 rows done, 2 failed, 1 refused" in answer.stdout
    assert "not_found means" in answer.stdout
    again = command(service, "resubmit", batch)
    assert again.returncode == 1
    assert "Every job of this batch is completed; why 2 rows failed" in again.stderr
    assert service.health()["reasons"] == [
        f"SessionM could not do 2 of 2 rows of batch {batch}: see `bridge batch status {batch}`."
    ]


def test_a_file_waits_for_the_running_bridge_to_have_a_public_url(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    sandbox.sandbox.put_customer({"user_id": "one"})
    service = make_service()
    file = tmp_path / "segment.csv"
    file.write_text("user_id\none\n")
    submit = ("submit", str(file), "--tag", "t", "--ttl", "1d")
    tried = command(service, *submit, "--dry-run")
    assert tried.returncode == 0
    assert "BRIDGE_PUBLIC_URL is not set" in tried.stderr
    (tmp_path / ".env").write_text(f"BRIDGE_PUBLIC_URL={service.url}\n")
    assert command(service, *submit).returncode == 0
    reason = "the running bridge was started without BRIDGE_PUBLIC_URL"
    eventually(lambda: reason in command(service, "status").stdout, 20)
    assert service.process
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: "t" in sandbox.sandbox.tags("one"), 10)
    eventually(lambda: "1/1 row done" in command(service, "status").stdout, 20)
