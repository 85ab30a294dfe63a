"""Files of customers become SessionM's batch jobs, against the sandbox over HTTP."""

import hashlib
import io
import re
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from bridge import clock
from bridge.bulk.model import Job, JobChange, JobState, JobTimings
from bridge.bulk.schema import batch_blocks
from bridge.bulk.store import BatchStore, WithdrawnError, token_hash
from bridge.customer import Customer
from bridge.parts import Parts, parts_of
from bridge.sandbox import SandboxServer
from bridge.sandbox.batch import SandboxJob
from bridge.storage.database import StoreUnavailableError
from tests.conftest import ALICE, MakeApp, bearer, eventually, free_port

BOB = "b7d2e9f0-5c1a-4e83-9f24-1a6c7d8e9f02"
# Short where the tests wait, long where a loaded machine might.
QUICK = JobTimings(
    poll=0.02,
    quiet=0.3,
    outcome=1.0,
    first_query=0.1,
    longest_query=0.2,
    retry=0.1,
    outage=0.3,
)


class Bridge:
    """A bridge in this process that delivers, and that SessionM can reach."""

    def __init__(self, make_app: MakeApp, **more: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {"BRIDGE_PUBLIC_URL": self.url, **more}
        self.app = make_app(**settings)
        self.parts: Parts = parts_of(self.app)
        self.client: FlaskClient = self.app.test_client()
        self.batches: BatchStore = self.parts.batches
        self.wait()
        self.listen()

    def wait(self, **seconds: float) -> "Bridge":
        """Wait for these numbers of seconds, instead of those of `QUICK`."""
        self.parts.jobs.timings = replace(QUICK, **seconds)
        return self

    def listen(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self.app, threaded=True)
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def start(self) -> "Bridge":
        for delivery in self.parts.deliveries:
            delivery.start()
        return self

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def submit(self, file: str | bytes, **options: str) -> str:
        answer = self.post(file, **options)
        assert answer.status_code == 202, answer.get_json()
        batch: str = answer.get_json()["id"]
        return batch

    def post(self, file: str | bytes, **options: str) -> Any:
        return self.client.post(
            "/batches",
            data=file,
            query_string=options,
            content_type="text/csv",
            headers=bearer("admin"),
        )

    def show(self, batch: str) -> dict[str, Any]:
        found = self.batches.one(batch)
        assert found
        return found

    def ends(self, batch: str, state: str, seconds: float = 10) -> dict[str, Any]:
        eventually(lambda: self.show(batch)["state"] == state, seconds)
        return self.show(batch)


@pytest.fixture
def bridge(make_app: MakeApp, sandbox: SandboxServer) -> Iterator[Bridge]:
    sandbox.sandbox.put_customer({"user_id": BOB})
    made = Bridge(make_app)
    yield made
    made.close()


def orders(sandbox: SandboxServer) -> list[dict[str, str]]:
    """What SessionM was asked to do, in order."""
    return [c["body"]["tags"] for c in sandbox.sandbox.calls(method="POST", match="/batch/tags$")]


def questions(sandbox: SandboxServer) -> list[dict[str, Any]]:
    """How often SessionM was asked after a job."""
    return sandbox.sandbox.calls(method="GET", match="/batch/")


def fetch(url: str) -> requests.Response:
    return requests.get(url, timeout=10)


def notify(order: dict[str, str], status: str, job: int = 1) -> requests.Response:
    url = order["notify"].replace("JOB_STATUS", status).replace("JOB_ID", str(job))
    return requests.get(url, timeout=10)


FILE = f"user_id,tag,expires\n{ALICE},gold,30 days\n{BOB},gold,1 day\n{ALICE},seen,\n"


@pytest.mark.both_databases
def test_a_file_becomes_tags_in_sessionm(bridge: Bridge, sandbox: SandboxServer) -> None:
    batch = bridge.start().submit(FILE)
    done = bridge.ends(batch, "completed")
    assert (done["rows"], done["completed_rows"], done["refused"]) == (3, 3, 0)
    assert sandbox.sandbox.tags(ALICE)["gold"] == 0
    assert sandbox.sandbox.tags(ALICE)["seen"] == 1
    assert sandbox.sandbox.tags(BOB)["gold"] == 0
    [order] = orders(sandbox)
    assert fetch(order["url"]).status_code == 404


@pytest.mark.both_databases
def test_the_file_stands_at_an_unguessable_url_with_its_md5(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"delay": 60})
    bridge.start().submit(FILE)
    [order] = eventually(lambda: orders(sandbox))
    assert re.fullmatch(rf"{bridge.url}/batches/files/[\w-]{{43}}\.csv", order["url"])
    answer = fetch(order["url"])
    assert answer.text == FILE
    assert hashlib.md5(answer.content, usedforsecurity=False).hexdigest() == order["md5"]
    assert answer.headers["Content-Length"] == str(len(FILE))
    part = requests.get(order["url"], headers={"Range": "bytes=0-6"}, timeout=10)
    assert (part.status_code, part.text) == (206, "user_id")
    assert fetch(order["url"].replace(".csv", "x.csv")).status_code == 404


@pytest.mark.both_databases
def test_a_file_is_split_into_jobs_of_the_wanted_size(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    rows = "".join(f"{ALICE},tag-{number},1 day\n" for number in range(10))
    batch = bridge.start().submit("user_id,tag,expires\n" + rows, split="4")
    done = bridge.ends(batch, "completed")
    assert [job["rows"] for job in done["jobs"]] == [4, 4, 2]
    assert len({order["request_id"] for order in orders(sandbox)}) == 3
    assert len(sandbox.sandbox.tags(ALICE)) >= 10


@pytest.mark.parametrize("status", [401, 404])
def test_a_notification_counts_where_sessionm_cannot_be_asked(
    bridge: Bridge, sandbox: SandboxServer, status: int
) -> None:
    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": status})
    bridge.ends(bridge.start().submit(FILE), "completed")


def test_a_job_that_sessionm_never_reports_is_flagged_and_still_followed(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": 503})
    sandbox.sandbox.set_batches({"notifications": 0})
    batch = bridge.wait(report=0.5).start().submit(FILE)
    answer = bridge.ends(batch, "failed")
    assert "has not reported" in answer["reason"]
    health = bridge.client.get("/health", headers=bearer("admin")).get_json()
    assert health["status"] == "degraded"
    assert any("batch" in reason for reason in health["reasons"])
    assert len(orders(sandbox)) == 1
    notify(orders(sandbox)[0], "completed")
    bridge.ends(batch, "completed")


def test_a_notification_that_lies_moves_nothing(bridge: Bridge, sandbox: SandboxServer) -> None:
    sandbox.sandbox.set_batches({"delay": 0.8})
    batch = bridge.start().submit(FILE)
    [order] = eventually(lambda: orders(sandbox))
    assert notify(order, "completed").status_code == 200
    asked = len(questions(sandbox))
    eventually(lambda: len(questions(sandbox)) > asked + 1)
    assert bridge.show(batch)["state"] == "running"
    bridge.ends(batch, "completed")
    assert sandbox.sandbox.tags(BOB)["gold"] == 0


def test_a_forged_notification_is_refused(bridge: Bridge, sandbox: SandboxServer) -> None:
    sandbox.sandbox.set_batches({"delay": 60})
    batch = bridge.start().submit(FILE)
    [order] = eventually(lambda: orders(sandbox))
    token = parse_qs(urlsplit(order["notify"]).query)["token"][0]
    for forged in ("", "x", token[:-1], token + "x", order["url"][-47:-4]):
        url = f"{bridge.url}/webhooks/sessionm/batch"
        answer = requests.get(url, params={"token": forged, "status": "completed"}, timeout=10)
        assert answer.status_code == 404
    assert bridge.show(batch)["jobs"][0]["state"] == "submitted"


@pytest.mark.parametrize("state", ["completed", "failed"])
@pytest.mark.both_databases
def test_a_second_notification_changes_nothing(
    bridge: Bridge, sandbox: SandboxServer, state: str
) -> None:
    sandbox.sandbox.set_batches({"notifications": 3})
    batch = bridge.start().submit(FILE)
    bridge.ends(batch, "completed")
    assert notify(orders(sandbox)[0], state).status_code == 200
    assert bridge.batches.due() == []
    assert bridge.show(batch)["state"] == "completed"
    assert sandbox.sandbox.tags(ALICE)["seen"] == 1


def test_a_notification_may_be_a_post(bridge: Bridge, sandbox: SandboxServer) -> None:
    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": 404})
    sandbox.sandbox.set_batches({"notifications": 0})
    batch = bridge.start().submit(FILE)
    [order] = eventually(lambda: orders(sandbox))
    url = order["notify"].partition("&")[0]
    assert requests.post(url, json={"id": 1, "status": "completed"}, timeout=10).ok
    bridge.ends(batch, "completed")


EXPIRING = f"user_id,tag,expires\n{ALICE},gold,30 days\n{BOB},gold,1 day\n"


def test_a_job_that_failed_once_is_submitted_again_under_another_name(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"corrupt": True, "times": 1})
    bridge.ends(bridge.start().submit(EXPIRING), "completed")
    first, second = orders(sandbox)
    assert first["request_id"] != second["request_id"]
    assert first["url"] != second["url"]
    assert notify(first, "failed").status_code == 404


@pytest.mark.both_databases
def test_a_job_that_keeps_failing_is_flagged_and_can_be_submitted_again_by_hand(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"fail": "it broke"})
    batch = bridge.start().submit(EXPIRING)
    body = bridge.ends(batch, "failed")
    assert "it broke" in body["reason"]
    assert len(orders(sandbox)) == 2
    sandbox.sandbox.set_batches({})
    answer = bridge.client.post(f"/batches/{batch}/resubmit", headers=bearer("admin"))
    assert answer.get_json() == {"status": "ok", "resubmitted": 1}
    bridge.ends(batch, "completed")


def test_a_failed_job_with_counters_is_not_repeated(bridge: Bridge, sandbox: SandboxServer) -> None:
    sandbox.sandbox.set_batches({"fail": "it broke half way"})
    answer = bridge.ends(bridge.start().submit(FILE), "failed")
    assert "counters" in answer["reason"]
    assert len(orders(sandbox)) == 1


def test_a_job_whose_file_is_never_fetched_is_flagged_with_what_to_look_at(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"fetch": False})
    answer = bridge.ends(bridge.wait(fetch=0.2).start().submit(FILE), "failed")
    assert "BRIDGE_PUBLIC_URL" in answer["reason"]
    for order in orders(sandbox):
        assert fetch(order["url"]).status_code == 404


@pytest.mark.both_databases
def test_an_answer_that_is_lost_does_not_double_a_counter(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    """SessionM took the job: that it fetched the file shows it."""
    sandbox.sandbox.set_faults({"match": "POST .*/batch/", "drop": "after", "times": 1})
    batch = bridge.start().submit(FILE)
    bridge.ends(batch, "completed")
    assert len(orders(sandbox)) == 1
    assert sandbox.sandbox.tags(ALICE)["seen"] == 1


@pytest.mark.both_databases
def test_counters_whose_file_was_cut_off_are_counted_without_a_person(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    """SessionM had the beginning of the file, so it failed, and can have counted nothing."""
    customers = [f"cut-{number}" for number in range(5000)]
    for customer in customers:
        sandbox.sandbox.put_customer({"user_id": customer})
    sandbox.sandbox.set_batches({"delay": 0.5})
    batch = bridge.start().submit("user_id\n" + "\n".join(customers), tag="seen")
    [order] = eventually(lambda: orders(sandbox))
    bridge.close()
    cut = bridge.client.get(urlsplit(order["url"]).path)
    beginning = [piece for piece, _ in zip(cut.response, range(2), strict=False)]
    assert b"cut-0" in beginning[1]
    cut.close()
    eventually(lambda: len(orders(sandbox)) == 2)
    bridge.listen()
    bridge.ends(batch, "completed")
    assert fetch(order["url"]).status_code == 404
    assert {sandbox.sandbox.tags(customer)["seen"] for customer in customers} == {1}


@pytest.mark.both_databases
def test_a_file_that_is_withdrawn_on_its_way_ends_before_its_end(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"fetch": False})
    batch = bridge.start().submit(FILE)
    [order] = eventually(lambda: orders(sandbox))
    pieces = iter(bridge.client.get(urlsplit(order["url"]).path).response)
    assert next(pieces)
    bridge.batches.discard(batch)
    with pytest.raises(WithdrawnError):
        list(pieces)


@pytest.mark.both_databases
def test_a_submission_that_never_arrived_is_made_again(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"match": "POST .*/batch/", "drop": "before", "times": 1})
    bridge.ends(bridge.start().submit(FILE), "completed")
    first, second = orders(sandbox)
    assert first["request_id"] == second["request_id"]
    assert fetch(first["url"]).status_code == 404
    assert sandbox.sandbox.tags(ALICE)["seen"] == 1


@pytest.mark.parametrize(
    "fault",
    [{"status": 429, "retry_after": 1}, {"status": 401}, {"garbage": True}],
    ids=str,
)
def test_a_sessionm_that_cannot_now_gets_the_job_later(
    bridge: Bridge, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "match": "POST .*/batch/", "times": 2})
    bridge.ends(bridge.start().submit(FILE), "completed", 20)
    assert sandbox.sandbox.tags(ALICE)["seen"] == 1


@pytest.mark.both_databases
def test_jobs_that_wait_their_turn_hide_none_that_sessionm_has(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    def counters(number: int) -> str:
        return "user_id\n" + "".join(f"c-{row}\n" for row in range(number))

    sandbox.sandbox.set_faults(
        {"match": "POST .*/batch/", "ok_error": True, "code": "validation", "times": 24}
    )
    refused = bridge.start().submit(counters(24), tag="seen", split="1")
    bridge.ends(refused, "failed", 20)
    sandbox.sandbox.set_batches({"delay": 1})
    later = bridge.submit(counters(4), tag="seen", split="1")
    eventually(lambda: len(orders(sandbox)) == 28)
    assert bridge.batches.resubmit(refused) == 24
    bridge.ends(later, "completed")
    sandbox.sandbox.set_batches({})
    bridge.ends(refused, "completed", 30)


def test_a_refused_job_is_flagged_at_once(bridge: Bridge, sandbox: SandboxServer) -> None:
    sandbox.sandbox.set_faults({"match": "POST .*/batch/", "ok_error": True, "code": "validation"})
    answer = bridge.ends(bridge.start().submit(FILE), "failed")
    assert "VALIDATION" in answer["reason"]
    assert len(orders(sandbox)) == 1


@pytest.mark.both_databases
def test_lookups_of_the_customers_are_not_from_before_the_job(bridge: Bridge) -> None:
    def names(**customer: str) -> list[str]:
        answer = bridge.client.get(
            "/connected-content/tags", query_string=customer, headers=bearer("content")
        )
        found: list[str] = answer.get_json()["names"]
        return found

    by_other_name = {"external_id": "loyal-1001"}
    bridge.client.get(
        "/connected-content/customer", query_string=by_other_name, headers=bearer("content")
    )
    assert "gold" not in names(user_id=ALICE)
    assert "gold" not in names(**by_other_name)
    bridge.ends(bridge.start().submit(FILE), "completed")
    assert "gold" in names(user_id=ALICE)
    assert "gold" in names(**by_other_name)


@pytest.mark.both_databases
def test_refused_rows_are_listed_with_their_lines(bridge: Bridge) -> None:
    rows = [f"{ALICE},gold,1 day", ",gold,1 day", f"{BOB},gold,1 month", f"{ALICE},gold,1 day"]
    answer = bridge.post("\n".join(["user_id,tag,expires", *rows]))
    body = answer.get_json()
    assert (body["rows"], body["refused"], body["repeated"]) == (1, 2, 1)
    listed = bridge.client.get(f"/batches/{body['id']}/refused", headers=bearer("admin"))
    assert [line.split(",")[0] for line in listed.text.splitlines()] == ["line", "3", "4", "5"]


def test_of_several_ttls_of_a_tag_the_last_is_written_last(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"delay": 60})
    said = ["30 days", "30 days", "1 day", "30 days"]
    batch = bridge.start().submit(
        "user_id,tag,expires\n" + "".join(f"{ALICE},t,{days}\n" for days in said)
    )
    [order] = eventually(lambda: orders(sandbox))
    assert fetch(order["url"]).text.splitlines()[1:] == [
        f"{ALICE},t,{days}" for days in ("30 days", "1 day", "30 days")
    ]
    assert bridge.show(batch)["repeated"] == 1


@pytest.mark.both_databases
def test_rows_that_sessionm_could_not_do_are_counted_apart_from_refused_ones(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    strangers = "".join(f"stranger-{number},gold,1 day\n" for number in range(3))
    file = f"user_id,tag,expires\n{ALICE},gold,1 day\n{strangers},gold,1 day\n"
    batch = bridge.start().submit(file)
    bridge.ends(batch, "completed")
    [body] = bridge.client.get("/batches", headers=bearer("admin")).get_json()["batches"]
    assert (body["rows"], body["done_rows"], body["failed_rows"], body["refused"]) == (4, 1, 3, 1)
    assert body["reason"] == (
        "SessionM could not do 3 of 4 rows: it may not know these customers by user_id"
    )
    health = bridge.client.get("/health", headers=bearer("admin")).get_json()
    assert health["status"] == "degraded"
    assert [batch in reason for reason in health["reasons"]] == [True]
    answer = bridge.client.post(f"/batches/{batch}/resubmit", headers=bearer("admin"))
    assert answer.status_code == 409
    assert "why 3 rows failed only SessionM can say" in answer.get_json()["errors"]["message"]
    for customer in range(3):
        sandbox.sandbox.put_customer({"user_id": f"stranger-{customer}"})
    again = bridge.ends(bridge.submit(file), "completed")
    assert (again["done_rows"], again["failed_rows"], again["reason"]) == (4, 0, "")


def test_a_few_rows_that_failed_need_no_person(bridge: Bridge) -> None:
    batch = bridge.start().submit(f"user_id\n{ALICE}\n{BOB}\nstranger\n", tag="t", ttl="1d")
    answer = bridge.ends(batch, "completed")
    assert (answer["done_rows"], answer["reason"]) == (2, "SessionM could not do 1 of 3 rows")
    health = bridge.client.get("/health", headers=bearer("admin")).get_json()
    assert health["status"] == "ok"


@pytest.mark.both_databases
def test_the_same_counters_are_taken_once_unless_they_are_meant_again(bridge: Bridge) -> None:
    batch = bridge.submit(FILE, split="2")
    refused = bridge.post(FILE, split="2")
    answer = refused.get_json()["errors"]
    assert (refused.status_code, answer["code"]) == (409, "same_rows")
    assert batch in answer["message"]
    assert answer["message"].endswith("say so by the parameter again.")
    assert len(bridge.batches.find()) == 1
    bridge.submit(FILE, split="2", again="true")
    assert len(bridge.batches.find()) == 2


@pytest.mark.both_databases
def test_counters_that_were_not_counted_are_taken_once_more(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    file = "user_id\nstranger\n"
    bridge.batches.discard(bridge.submit(file, tag="seen"))
    failed = bridge.start().submit(file, tag="seen")
    assert bridge.ends(failed, "completed")["failed_rows"] == 1
    sandbox.sandbox.put_customer({"user_id": "stranger"})
    bridge.ends(bridge.submit(file, tag="seen"), "completed")
    assert sandbox.sandbox.tags("stranger")["seen"] == 1


def test_the_same_expiring_tags_are_taken_with_a_warning(bridge: Bridge) -> None:
    batch = bridge.submit(EXPIRING)
    answer = bridge.post(EXPIRING)
    assert answer.status_code == 202
    [warning] = answer.get_json()["warnings"]
    assert f"Batch {batch} of the last 12 hours has the same rows" in warning
    assert bridge.post(EXPIRING.replace("gold", "silver")).get_json()["warnings"] == []


def test_a_multipart_form_is_taken_too(bridge: Bridge) -> None:
    answer = bridge.client.post(
        "/batches",
        data={"file": (io.BytesIO(b"User ID,email\nu1,a@b\n"), "segment.csv"), "tag": "t"},
        headers=bearer("admin"),
    )
    assert answer.status_code == 202
    assert bridge.show(answer.get_json()["id"])["name"] == "segment.csv"


@pytest.mark.both_databases
def test_batches_are_listed_in_pages(bridge: Bridge) -> None:
    newest_first = [bridge.submit(EXPIRING, name=f"{n}") for n in range(4)][::-1]

    def listed(query: str) -> Any:
        return bridge.client.get(f"/batches?{query}", headers=bearer("viewer"))

    page = listed("limit=2").get_json()
    assert [one["id"] for one in page["batches"]] == newest_first[:2]
    page = listed(f"limit=2&before={page['next']}").get_json()
    assert ([one["id"] for one in page["batches"]], page["next"]) == (newest_first[2:], "")
    assert listed("state=failed").status_code == 400


def test_a_dry_run_stores_nothing(bridge: Bridge) -> None:
    answer = bridge.post(FILE, dry_run="1", split="2").get_json()
    assert (answer["rows"], answer["jobs"]) == (3, 2)
    assert answer["first_rows"][0] == {"user_id": ALICE, "tag": "gold", "expires": "30 days"}
    assert [row["expires"] for row in answer["first_rows"]] == ["30 days", "1 day", ""]
    assert bridge.batches.find() == []


@pytest.mark.parametrize(
    ("file", "options", "status", "code"),
    [
        ("user_id,email\nu1,x\n", {}, 422, "invalid_file"),
        ("user_id,email\n,x\n", {"tag": "t"}, 422, "nothing_to_tag"),
        ("user_id\nu1\n", {"tag": "t", "split": "0"}, 400, "invalid_parameter"),
        ("user_id\nu1\n", {"tag": "t", "split": "000000001" + "0" * 14}, 400, "invalid_parameter"),
        ("user_id\nu1\n", {"tag": "t", "colour": "red"}, 400, "invalid_parameter"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_whole(
    bridge: Bridge, file: str, options: dict[str, str], status: int, code: str
) -> None:
    answer = bridge.post(file, **options)
    assert (answer.status_code, answer.get_json()["errors"]["code"]) == (status, code)
    assert bridge.batches.find() == []


@pytest.mark.parametrize("query", ["tag=a&tag=b", "tag=caf%E9", "tag=%ff", "tag=a%00"])
def test_options_that_could_be_read_as_others_are_refused(bridge: Bridge, query: str) -> None:
    headers = bearer("admin")
    file = "user_id\nu1\n"
    answer = bridge.client.post(f"/batches?{query}", data=file, headers=headers)
    assert (answer.status_code, "tag" in answer.get_json()["errors"]["message"]) == (400, True)
    form = {"file": (io.BytesIO(file.encode()), "a.csv"), "tag": ["a", "b"]}
    assert bridge.client.post("/batches", data=form, headers=headers).status_code == 400
    assert bridge.batches.find() == []


@pytest.mark.parametrize("path", ["/batches/%00", "/batches/%00/refused", "/batches?before=%00"])
@pytest.mark.both_databases
def test_what_no_database_takes_is_the_callers_mistake(bridge: Bridge, path: str) -> None:
    assert bridge.client.get(path, headers=bearer("admin")).status_code == 400


@pytest.mark.parametrize("status", ["a\0b", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}" * 20])
@pytest.mark.both_databases
def test_a_notification_of_any_words_is_taken(
    bridge: Bridge, sandbox: SandboxServer, status: str
) -> None:
    sandbox.sandbox.set_batches({"delay": 0.5})
    batch = bridge.start().submit(FILE)
    [order] = eventually(lambda: orders(sandbox))
    url = order["notify"].partition("&")[0]
    answer = requests.get(url, params={"status": status, "id": "\0" * 99}, timeout=10)
    assert answer.status_code == 200
    bridge.ends(batch, "completed")


def test_without_a_public_url_a_file_is_refused_with_what_to_set(make_app: MakeApp) -> None:
    client = make_app().test_client()
    answer = client.post(
        "/batches?tag=t", data="user_id\nu1\n", content_type="text/csv", headers=bearer("admin")
    )
    assert answer.status_code == 409
    assert "BRIDGE_PUBLIC_URL" in answer.get_json()["errors"]["message"]
    tried = client.post("/batches?tag=t&dry_run=1", data="user_id\nu1\n", headers=bearer("admin"))
    assert tried.status_code == 200
    assert "BRIDGE_PUBLIC_URL" in tried.get_json()["warnings"][0]


def test_what_would_mend_the_call_is_named_as_http_calls_it(bridge: Bridge) -> None:
    answer = bridge.post("user_id\nu1\n").get_json()["errors"]["message"]
    assert answer.endswith("say which tag its customers get by the parameter tag.")
    answer = bridge.post("customer\nu1\n", tag="t").get_json()["errors"]["message"]
    assert answer.endswith("Say which one holds the customer by the parameter id_column.")


@pytest.mark.both_databases
def test_a_batch_that_is_discarded_goes_out_no_more(bridge: Bridge, sandbox: SandboxServer) -> None:
    batch = bridge.submit(FILE)
    answer = bridge.client.delete(f"/batches/{batch}", headers=bearer("admin"))
    assert answer.get_json()["discarded"] == 1
    bridge.start().ends(bridge.submit(EXPIRING), "completed")
    assert len(orders(sandbox)) == 1
    assert bridge.show(batch)["state"] == "discarded"


@pytest.mark.parametrize("customer", ["", "u1"], ids=["no row is read yet", "rows are read"])
@pytest.mark.both_databases
def test_a_batch_that_is_discarded_while_it_is_uploaded_is_refused(
    bridge: Bridge, sandbox: SandboxServer, customer: str
) -> None:
    def upload() -> Iterator[bytes]:
        notes = "x" * 10_000
        yield f"user_id,notes\n{customer},{notes}\n".encode()
        # More than the server reads at once.
        yield b"".join(f",{notes}\n".encode() for _ in range(30))
        [batch] = eventually(bridge.batches.find)
        eventually(lambda: bridge.show(batch["id"])["job_count"] == len(customer[:1]))
        url = f"/batches/{batch['id']}"
        answer = bridge.client.delete(url, headers=bearer("admin"))
        assert answer.get_json()["discarded"] == 1
        yield b"u2,\nu3,\n"

    bridge.start()
    answer = requests.post(
        f"{bridge.url}/batches?tag=t&split=1",
        data=upload(),
        headers={**bearer("admin"), "Content-Type": "text/csv"},
        timeout=20,
    )
    assert (answer.status_code, answer.json()["errors"]["code"]) == (409, "discarded")
    [batch] = bridge.batches.find()
    assert batch["state"] == "discarded"
    assert bridge.batches.to_submit(of_backlog=False) == []
    assert orders(sandbox) == []


@pytest.mark.both_databases
def test_a_job_that_cannot_be_ended_now_holds_up_no_other(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    def store(body: bytes) -> None:
        with bridge.parts.store.database.write() as connection:
            connection.execute(batch_blocks.update().values(body=body))

    sandbox.sandbox.set_faults({"match": "GET .*/batch/", "status": 503})
    first = bridge.wait(outage=60).start().submit(f"user_id\n{ALICE}\n", tag="gold", ttl="1d")
    eventually(lambda: bridge.show(first)["jobs"][0]["fetched_at"])
    # Whose lookups it outdates cannot be read.
    store(b"damaged")
    sandbox.sandbox.set_faults({})
    bridge.ends(bridge.submit(f"user_id\n{BOB}\n", tag="gold", ttl="1d"), "completed")
    assert bridge.show(first)["state"] == "running"
    store(zlib.compress(f"{ALICE},gold,1 day\n".encode()))
    bridge.ends(first, "completed")


def test_an_outage_of_the_store_is_no_fault_and_puts_no_job_off(
    bridge: Bridge,
    sandbox: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        monkeypatch.undo()
        raise StoreUnavailableError("the disk is full")

    monkeypatch.setattr(bridge.batches, "transition", fail)
    bridge.wait(retry=60).start().ends(bridge.submit(FILE), "completed")
    assert len(orders(sandbox)) == 1
    assert "batch jobs paused: the disk is full" in caplog.messages
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def submitting(bridge: Bridge, token: str = "t") -> Job:  # noqa: S107 - of a test
    """The only job of a file, as SessionM was just asked to do it."""
    bridge.submit(FILE)
    [job] = bridge.batches.to_submit(of_backlog=False)
    tokens = {
        "file_token": token_hash(f"file-{token}"),
        "notify_token": token_hash(f"notify-{token}"),
    }
    values = {**tokens, "submitted_at": clock.now()}
    change = JobChange(JobState.SUBMITTING, next_at=clock.now() + 60, values=values)
    moved = bridge.batches.transition(job, change)
    assert moved
    return moved


@pytest.mark.both_databases
def test_a_job_that_was_moved_meanwhile_stays_where_it_is(bridge: Bridge) -> None:
    job = submitting(bridge)
    stale = replace(job, state=JobState.QUEUED)
    assert bridge.batches.transition(stale, JobChange(JobState.FAILED)) is None
    assert bridge.show(job.batch_id)["jobs"][0]["state"] == "submitting"


@pytest.mark.both_databases
def test_a_file_is_withdrawn_only_if_it_did_not_go_out(bridge: Bridge) -> None:
    job = submitting(bridge)
    withdraw = JobChange(JobState.QUEUED, only_unserved=True)
    assert bridge.client.get("/batches/files/file-t.csv").text == FILE
    assert bridge.batches.transition(job, withdraw) is None
    assert bridge.batches.transition(job, replace(withdraw, only_unserved=False))
    assert bridge.client.get("/batches/files/file-t.csv").status_code == 404


@pytest.mark.both_databases
def test_a_notification_makes_a_job_due_whatever_is_decided_at_that_moment(bridge: Bridge) -> None:
    job = submitting(bridge)
    assert bridge.batches.due() == []
    assert bridge.client.get(
        "/webhooks/sessionm/batch?token=notify-t&status=completed&id=9"
    ).get_json() == {"status": "ok"}
    later = JobChange(JobState.SUBMITTED, next_at=clock.now() + 60)
    assert bridge.batches.transition(job, later)
    [due] = bridge.batches.due()
    assert (due.state, due.notified, due.sessionm_id) == (JobState.SUBMITTED, "completed", "9")


@pytest.mark.both_databases
def test_jobs_that_end_at_the_same_moment_end_their_batch(bridge: Bridge) -> None:
    rows = "".join(f"{ALICE},tag-{number},1 day\n" for number in range(8))
    batch = bridge.submit("user_id,tag,expires\n" + rows, split="1")
    jobs = bridge.batches.to_submit(of_backlog=False)
    with ThreadPoolExecutor(len(jobs)) as threads:
        ends = [
            threads.submit(bridge.batches.transition, job, JobChange(JobState.COMPLETED))
            for job in jobs
        ]
    assert all(end.result() for end in ends)
    assert bridge.show(batch)["state"] == "completed"


@pytest.mark.both_databases
def test_an_erased_customer_leaves_the_files_too(bridge: Bridge, sandbox: SandboxServer) -> None:
    batch = bridge.submit(FILE)
    bridge.parts.operator.erase(Customer("user_id", ALICE))
    bridge.start().ends(batch, "completed")
    assert sandbox.sandbox.tags(BOB)["gold"] == 0
    assert "gold" not in sandbox.sandbox.tags(ALICE)


@pytest.mark.parametrize("name", ['u "one"', "u,two", '"'])
def test_an_erased_customer_leaves_the_files_however_csv_writes_the_id(
    bridge: Bridge, sandbox: SandboxServer, name: str
) -> None:
    for customer in (name, BOB):
        sandbox.sandbox.put_customer({"user_id": customer})
    quoted = name.replace('"', '""')
    batch = bridge.submit(f'user_id,tag,expires\n"{quoted}",gold,1 day\n{BOB},gold,1 day\n')
    bridge.parts.operator.erase(Customer("user_id", name))
    bridge.start().ends(batch, "completed")
    assert "gold" not in sandbox.sandbox.tags(name)
    assert "gold" in sandbox.sandbox.tags(BOB)


@pytest.mark.both_databases
def test_counters_that_sessionm_has_are_submitted_anew_when_a_customer_is_erased(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_batches({"delay": 8, "times": 1})
    batch = bridge.start().submit(FILE)
    [first] = eventually(lambda: orders(sandbox))
    bridge.parts.operator.erase(Customer("user_id", BOB))
    done = bridge.ends(batch, "completed")
    assert (done["rows"], done["completed_rows"]) == (2, 2)
    assert fetch(first["url"]).status_code == 404
    assert sandbox.sandbox.tags(ALICE)["seen"] == 1
    assert "gold" not in sandbox.sandbox.tags(BOB)
    assert len({order["request_id"] for order in orders(sandbox)}) == 2


def test_reasons_hold_no_token_that_sessionm_was_given(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ""

    def as_json(job: SandboxJob) -> dict[str, Any]:
        nonlocal given
        given = f"{job.order.url} {job.order.notify} {job.order.url[:-20]}"
        words = f"cannot read {given} {quote(given, safe='')}"
        return {**job.receipt(), "status": "failed", "message": words}

    monkeypatch.setattr(SandboxJob, "as_json", as_json)
    answer = bridge.ends(bridge.start().submit(EXPIRING), "failed")
    assert "cannot read" in answer["reason"]
    for token in re.findall(r"(?:files/|token=)([\w-]+)", given):
        assert token not in answer["reason"]


def test_a_job_through_sessionms_own_path_is_followed(
    bridge: Bridge, sandbox: SandboxServer
) -> None:
    job = {"request_id": "917", "url": f"{sandbox.url}/none.csv", "md5": "0" * 32}
    answer = bridge.client.post(
        "/priv/v1/apps/bridge/batch/tags", json={"tags": job}, headers=bearer("webhook")
    )
    assert answer.get_json()["tags"]["status"] == "created"
    bridge.start()
    [batch] = bridge.client.get("/batches", headers=bearer("admin")).get_json()["batches"]
    assert (batch["source"], batch["name"]) == ("dropin", "917")
    bridge.ends(batch["id"], "failed")
    health = bridge.client.get("/health", headers=bearer("admin")).get_json()
    assert not [reason for reason in health["reasons"] if "batch" in reason]
