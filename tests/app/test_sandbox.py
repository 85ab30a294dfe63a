"""The SessionM sandbox, over real HTTP."""

import hashlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests

from bridge.sandbox import Credentials, Sandbox, SandboxServer, SeedError, load_seed, serve
from tests.conftest import at_most

DEMO = "00000000-0000-0000-0000-000000000000"
ADA = "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601"
EMPTY = "c5d3e4b6-2d70-4e81-8c93-b4d5e6f70803"
MANY = "d6c4f5a7-3e81-4f92-9da4-c5e6f7081904"
ODD = "loyal/42?é"
NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z
CORE = "/priv/v1/apps/sandbox-key"
OFFERS = "/offers/api/2.0/offers/get_user_offers"
CREDENTIALS = Credentials()
CORE_KEY = (CREDENTIALS.core_key, CREDENTIALS.core_secret)
CONNECT = (CREDENTIALS.connect_user, CREDENTIALS.connect_password)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Api:
    """SessionM's calls as a client makes them, on one connection that is kept."""

    def __init__(self, url: str, http: requests.Session) -> None:
        self.url = url
        self.http = http
        self.core = CORE_KEY
        self.connect = CONNECT

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", 10)
        options.setdefault("allow_redirects", False)
        return self.http.request(method, self.url + path, **options)

    def read(self, user_id: str = DEMO, **options: Any) -> requests.Response:
        return self.call("GET", f"{CORE}/users/{user_id}/tags", auth=self.core, **options)

    def write(self, body: Any, user_id: str = DEMO, **options: Any) -> requests.Response:
        path = f"{CORE}/users/{user_id}/tags"
        return self.call("POST", path, json=body, auth=self.core, **options)

    def offers(self, user_id: str = DEMO, **body: Any) -> requests.Response:
        body = {"retailer_id": CREDENTIALS.retailer_id, "user_id": user_id, **body}
        return self.call("POST", OFFERS, json=body, auth=self.connect)

    def wallet(self, user_id: str = DEMO, **body: Any) -> dict[str, Any]:
        payload: dict[str, Any] = self.offers(user_id, **body).json()["payload"]
        return payload

    def fault(self, **fault: Any) -> requests.Response:
        answer = self.call("POST", "/sandbox/faults", json=fault)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Sandbox:
    return Sandbox(clock=clock)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with serve(sandbox, port=0) as running:
        yield running


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def api(server: SandboxServer, http: requests.Session) -> Api:
    return Api(server.url, http)


def code(answer: requests.Response) -> tuple[int, str]:
    """Return the HTTP status and SessionM's error code, having checked the error's shape."""
    body = answer.json()
    assert body["status"] == "error"
    assert isinstance(body["errors"]["message"], str)
    return answer.status_code, body["errors"]["code"]


# what it says of itself


def test_the_root_says_that_it_is_not_sessionm_and_lists_the_routes(api: Api) -> None:
    answer = api.call("GET", "/")
    assert "It is neither SessionM nor Braze" in answer.json()["message"]
    assert f"POST {OFFERS}" in answer.json()["routes"]
    assert answer.headers["Server"] == "sessionm-sandbox"


# authentication


@pytest.mark.parametrize(
    ("path", "auth", "expected"),
    [
        (f"{CORE}/users/{DEMO}/tags", None, (401, "invalid_api_key")),
        (f"{CORE}/users/{DEMO}/tags", ("sandbox-key", "wrong"), (401, "invalid_api_key")),
        (f"{CORE}/users/{DEMO}/tags", CONNECT, (401, "invalid_api_key")),
        (f"/priv/v1/apps/other/users/{DEMO}/tags", CORE_KEY, (401, "invalid_api_key")),
        (f"{CORE}/users/nobody/tags", CORE_KEY, (404, "user_not_found")),
        (f"{CORE}/external/users/nobody", CORE_KEY, (404, "user_not_found")),
        (f"{CORE}/users/{DEMO}/tags/", CORE_KEY, (404, "not_found")),
        (f"{CORE}/batch/tags/1", CORE_KEY, (404, "not_found")),
        (OFFERS, CONNECT, (405, "not_available")),
    ],
)
def test_a_call_is_refused_in_sessionms_shape(
    api: Api, path: str, auth: tuple[str, str] | None, expected: tuple[int, str]
) -> None:
    assert code(api.call("GET", path, auth=auth)) == expected


# tags


def test_a_counter_counts_calls_and_an_expiring_tag_is_gone_after_its_ttl(
    api: Api, clock: Clock
) -> None:
    assert api.write({"tags": ["visit", "visit"]}, EMPTY).json()["tags"] == {"visit": 1}
    assert api.write({"tags": ["visit"]}, EMPTY).json()["tags"] == {"visit": 2}
    api.write({"tags": ["promo"], "ttl": 60}, EMPTY)
    clock.now += 50
    assert api.write({"tags": ["promo"], "ttl": 60}, EMPTY).json() == api.read(EMPTY).json()
    clock.now += 59.9
    assert api.read(EMPTY).json()["tags"] == {"visit": 2, "promo": 0}
    clock.now += 0.1
    assert api.read(EMPTY).json()["tags"] == {"visit": 2}
    assert api.write({"tags": ["promo"]}, EMPTY).json()["tags"]["promo"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ("[]", 400),
        ("{}", 200),
        ('{"tags": []}', 200),
        ('{"tags": ["vip", 1]}', 200),
        ('{"tags": ["vip"], "ttl": 0}', 200),
        ('{"tags": ["vip"], "ttl": "60"}', 200),
    ],
)
def test_a_write_that_means_nothing_is_refused(api: Api, body: str, status: int) -> None:
    answer = api.call("POST", f"{CORE}/users/{EMPTY}/tags", data=body, auth=api.core)
    assert code(answer) == (status, "argument_error")
    assert api.read(EMPTY).json()["tags"] == {}


@pytest.mark.parametrize("body", [{"tags": ["new", "tag1"], "ttl": 60}, {"tags": ["new", "tag3"]}])
def test_a_tag_of_the_other_kind_is_refused_and_nothing_is_applied(api: Api, body: Any) -> None:
    assert code(api.write(body)) == (200, "validation")
    assert api.read().json()["tags"] == {"tag1": 2, "tag2": 5, "tag3": 0}


# profiles


@pytest.mark.parametrize(
    "path", [f"external/users/{quote(ODD, safe='')}", "users/{id}?user%5Buser_profile%5D=true"]
)
def test_a_profile_is_found_by_either_identifier(api: Api, path: str) -> None:
    user_id = "e7b506d8-4f92-40a3-8eb5-d6f708192a05"
    answer = api.call("GET", f"{CORE}/{path.format(id=user_id)}", auth=api.core).json()
    assert answer["status"] == "ok"
    user = answer["user"]
    assert (user["id"], user["external_id"], user["first_name"]) == (user_id, ODD, "Zoë")
    assert user["available_points"] == 640


def test_further_fields_by_a_user_id_must_be_asked_for(api: Api) -> None:
    user = api.call("GET", f"{CORE}/users/{EMPTY}", auth=api.core).json()["user"]
    assert (user["id"], "first_name" in user) == (EMPTY, False)


# offers


def test_a_wallet_has_dates_pages_and_a_culture(api: Api) -> None:
    offers = {offer["title"]: offer for offer in api.wallet(ADA)["user_offers"]}
    assert offers["Free barista coffee"]["expiration_date"] == "2026-09-23T14:13:20Z"
    assert offers["Iced tea for 1.00"]["expiration_date"] == "2026-09-18T14:13:20Z"
    assert offers["Birthday dessert, any day you like"]["expiration_date"] is None
    french = api.wallet(ADA, culture="fr-FR")["user_offers"]
    assert french[0]["title"] == "Un café barista offert"
    pages = [api.wallet(MANY, skip=skip, take=25)["user_offers"] for skip in (0, 25, 50, 75)]
    assert [len(page) for page in pages] == [25, 25, 10, 0]
    assert [one for page in pages for one in page] == api.wallet(MANY)["user_offers"]
    assert api.wallet(EMPTY)["total_records"] == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"user_id": "nobody"}, (404, "user_not_found")),
        ({"retailer_id": "another"}, (200, "argument_error")),
        ({"take": "all"}, (200, "argument_error")),
    ],
)
def test_a_wallet_is_refused(api: Api, body: dict[str, Any], expected: tuple[int, str]) -> None:
    body = {"retailer_id": CREDENTIALS.retailer_id, "user_id": DEMO} | body
    assert code(api.call("POST", OFFERS, json=body, auth=api.connect)) == expected


def test_the_wallet_of_the_sample_customer_is_that_of_the_partner_guide(api: Api) -> None:
    answer = api.offers(skip=0, take=1000, include_pending_extended_data=False, culture="en-US")
    document = answer.json()
    assert document["status"] == "ok"
    payload = document["payload"]
    assert payload["user_id"] == DEMO
    assert payload["user"]["opted_in"] is False
    assert payload["user"]["activated"] is False
    (offer,) = payload["user_offers"]
    assert offer["offer_id"] == "1a2b3324-1da6-4e49-b921-afc386dabb60"
    assert offer["offer_group_id"] == DEMO
    assert offer["offer_type"] == "manual_fulfillment"
    assert payload["offer_groups"] == [{"id": DEMO, "name": "All Offers", "sort_order": 0}]
    assert payload["offer_categories"] == [
        {"id": "9a82f973-aae6-4e10-839b-7117a852cf9e", "name": "All Offers", "sort_order": 0}
    ]
    assert payload["total_records"] == 1
    assert (payload["total_points"], payload["available_points"]) == (1000, 100)


# batch jobs


class Customer:
    """The machine of SessionM's customer: serves one file, and is notified."""

    def __init__(self) -> None:
        self.file = b""
        self.notified: queue.Queue[dict[str, list[str]]] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        customer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if url.path.startswith("/notify"):
                    customer.notified.put({"path": [url.path], **parse_qs(url.query)})
                missing = url.path == "/missing.csv"
                self.send_response(404 if missing else 200)
                self.end_headers()
                self.wfile.write(customer.file)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def customer() -> Iterator[Customer]:
    there = Customer()
    yield there
    there.close()


def submit(api: Api, customer: Customer, file: str, **changes: Any) -> tuple[int, Any]:
    """Submit a batch and wait for the notification; return the job's number and it."""
    customer.file = file.encode()
    notify = f"{customer.url}/notify/JOB_ID?id=JOB_ID&status=JOB_STATUS&request_id=JOB_REQUEST_ID"
    body = {
        "request_id": "917",
        "url": f"{customer.url}/tags.csv",
        "md5": hashlib.md5(customer.file, usedforsecurity=False).hexdigest(),
        "notify": notify,
    }
    answer = api.call("POST", f"{CORE}/batch/tags", json={"tags": body | changes}, auth=api.core)
    receipt = answer.json()["tags"]
    assert receipt["status"] == "created"
    return receipt["id"], customer.notified.get(timeout=10)


def job(api: Api, number: int) -> dict[str, Any]:
    answer = api.call("GET", f"{CORE}/batch/tags/{number}", auth=api.core)
    shown: dict[str, Any] = answer.json()["tags"]
    return shown


def test_a_batch_job_tags_the_rows_and_notifies(api: Api, customer: Customer, clock: Clock) -> None:
    file = f"external_id,tag,expires\nloyal-1003,foo,\nloyal-1003,bar,1 day\n{ODD},foo,\n"
    number, notified = submit(api, customer, file, request_id="a&b 1")
    assert notified["id"] == [str(number)]
    assert notified["status"] == ["completed"]
    assert notified["request_id"] == ["a&b 1"]
    assert notified["path"] == ["/notify/JOB_ID"], "the words are replaced in the query only"
    assert api.read(EMPTY).json()["tags"] == {"foo": 1, "bar": 0}
    clock.now += 86400
    assert api.read(EMPTY).json()["tags"] == {"foo": 1}
    shown = job(api, number)
    assert (shown["rows"], shown["applied"], shown["failed"]) == (3, 3, 0)


def test_a_batch_row_prefers_user_id_and_bad_rows_are_counted(api: Api, customer: Customer) -> None:
    file = (
        "\ufeffuser_id , external_id,tag,expires\r\n"
        f"{EMPTY},loyal-1001,first,30 days\r\n"
        f",loyal-1003,second,90 Minutes\r\n"
        "nobody,loyal-1003,third,\r\n"
        f"{EMPTY},,,\r\n"
        f"{EMPTY},,fourth,soon\r\n"
        f"{EMPTY},,first,\r\n"
        f"{EMPTY}\r\n"
    )
    number, _ = submit(api, customer, file)
    assert api.read(EMPTY).json()["tags"] == {"first": 0, "second": 0}
    shown = job(api, number)
    assert (shown["status"], shown["applied"], shown["failed"]) == ("completed", 2, 5)
    assert shown["errors"][0] == "row 3: There is no such customer."


@pytest.mark.parametrize(
    ("file", "changes", "why"),
    [
        ("external_id,tag\nloyal-1003,foo\n", {"md5": "0" * 32}, "md5"),
        ("external_id,tag\nloyal-1003,foo\n", {"url": "http://127.0.0.1:1/x.csv"}, "refused"),
        ("external_id,tag\nloyal-1003,foo\n", {"url": "file:///etc/hosts"}, "file:"),
        ("external_id,label\nloyal-1003,foo\n", {}, "header"),
    ],
)
def test_a_batch_job_fails_as_a_whole_and_says_why(
    api: Api, customer: Customer, file: str, changes: dict[str, Any], why: str
) -> None:
    number, notified = submit(api, customer, file, **changes)
    assert notified["status"] == ["failed"]
    assert why in job(api, number)["message"]
    assert api.read(EMPTY).json()["tags"] == {}


# faults


@pytest.mark.parametrize(
    ("fault", "status", "kind", "words"),
    [
        ({"status": 503, "code": "not_available"}, 503, "json", '"not_available"'),
        ({"error_rate": 1, "error_status": 502}, 502, "json", "error"),
        ({"error_rate": 0}, 200, "json", "tag1"),
        ({"drop": "before", "drop_rate": 0}, 200, "json", "tag1"),
        ({"ok_error": True, "code": "REQUIRES_USER"}, 200, "json", '"REQUIRES_USER"'),
        ({"garbage": True, "redirect": "https://x/", "status": 502}, 502, "html", "<"),
        ({"match": "^POST", "status": 500}, 200, "json", "tag1"),
        ({"where": "connect", "status": 500}, 200, "json", "tag1"),
        ({"faults": [{"status": 500, "match": ADA}, {"status": 504}]}, 504, "json", "error"),
    ],
)
def test_a_fault_answers_as_it_says(
    api: Api, fault: dict[str, Any], status: int, kind: str, words: str
) -> None:
    api.fault(**fault)
    answer = api.read()
    assert answer.status_code == status
    assert kind in answer.headers.get("Content-Type", "")
    assert words in answer.text


def test_faults_garble_redirect_or_slow_an_answer(api: Api) -> None:
    api.fault(garbage="json")
    with pytest.raises(requests.JSONDecodeError):
        api.read().json()
    api.fault(redirect="https://x/", status=502)
    answer = api.read()
    assert (answer.status_code, answer.headers["Location"]) == (302, "https://x/")
    api.fault(drip=0.005)
    began = time.monotonic()
    dripped = api.read()
    assert "tag1" in dripped.text
    assert time.monotonic() - began >= 0.005 * (len(dripped.content) - 1)


def test_a_failed_write_applies_nothing_and_a_fault_with_times_clears_itself(api: Api) -> None:
    fault = {"status": 429, "retry_after": "http-date:+90", "times": 2}
    api.fault(**fault)
    answer = api.write({"tags": ["vip"]}, EMPTY)
    assert answer.headers["Retry-After"] == "Mon, 21 Sep 2026 14:14:50 GMT"
    shown = api.call("GET", "/sandbox/faults").json()["faults"]
    assert shown == [{**fault, "times": 1}]
    assert [api.read(EMPTY).status_code for _ in range(2)] == [429, 200]
    assert api.read(EMPTY).json()["tags"] == {}
    assert api.call("GET", "/sandbox/faults").json()["faults"] == []


def test_hang_answers_late_and_applies_no_write(api: Api) -> None:
    api.fault(hang=0.2)
    began = time.monotonic()
    assert code(api.write({"tags": ["vip"]}, EMPTY)) == (500, "internal_server_error")
    assert time.monotonic() - began >= 0.2
    assert api.read(EMPTY).json()["tags"] == {}, "a read is only late"


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"latency": 5}, "latency"),
        ({"latency_ms": [1]}, "latency_ms"),
        ({"error_rate": 1.5}, "error_rate"),
        ({"status": "500"}, "status"),
        ({"status": 429, "retry_after": "soon"}, "retry_after"),
        ({"drop": "maybe"}, "drop"),
        ({"redirect": "https://x/\r\nSet-Cookie: a"}, "redirect"),
        ({"match": "("}, "match"),
        ({"faults": [5]}, "faults[0]"),
    ],
)
def test_a_fault_that_is_not_understood_is_refused_by_name(
    api: Api, fault: Any, named: str
) -> None:
    api.fault(status=503)
    answer = api.call("POST", "/sandbox/faults", json=fault)
    assert code(answer) == (400, "argument_error")
    assert named in answer.json()["errors"]["message"]
    assert api.read().status_code == 503, "the present fault stays"


@pytest.mark.parametrize(("drop", "tags"), [("before", {}), ("after", {"vip": 1}), ("reset", {})])
def test_a_dropped_call_gets_no_answer(api: Api, sandbox: Sandbox, drop: str, tags: Any) -> None:
    api.fault(drop=drop)
    with pytest.raises(requests.ConnectionError):
        api.write({"tags": ["vip"]}, EMPTY)
    assert sandbox.tags(EMPTY) == tags
    (call,) = sandbox.calls()
    assert (call["status"], call["applied"]) == (None, bool(tags))


def test_hang_after_applies_the_write_and_holds_up_nobody_else(api: Api, sandbox: Sandbox) -> None:
    api.fault(hang_after=5, match="^POST")
    with pytest.raises(requests.Timeout):
        api.write({"tags": ["vip"]}, EMPTY, timeout=0.3)
    with at_most(2):
        assert api.read(EMPTY).json()["tags"] == {"vip": 1}
    first = sandbox.calls()[0]
    assert (first["applied"], first["status"]) == (True, None), "it is under way still"


# what it received


def test_calls_are_listed_counted_and_filtered(api: Api, clock: Clock) -> None:
    path = f"{CORE}/external/users/{quote(ODD, safe='')}/tags"
    api.call("POST", path, json={"tags": ["vip"]}, auth=api.core)
    api.call("POST", path, data="{oops", auth=("sandbox-key", "a-private-secret"))
    clock.now += 10
    api.call("GET", f"{CORE}/users/{DEMO}")

    def calls(**filters: Any) -> list[dict[str, Any]]:
        answer = api.call("GET", "/sandbox/calls", params=filters)
        assert "a-private-secret" not in answer.text
        found: list[dict[str, Any]] = answer.json()["calls"]
        return found

    good, bad, last = calls()
    assert (good["method"], good["path"], good["at"]) == ("POST", path, NOW)
    assert (good["body"], good["status"], good["applied"]) == ({"tags": ["vip"]}, 200, True)
    assert (bad["body"], bad["status"], bad["applied"]) == ("{oops", 401, False)
    assert [one["authorization"] for one in (good, bad, last)] == ["ok", "wrong", "missing"]
    assert calls(method="get") == calls(match=f"GET .*{DEMO}") == calls(since=NOW + 10) == [last]
    assert calls(limit=1) == [last]
    assert code(api.call("GET", "/sandbox/calls?match=(")) == (400, "argument_error")
    counts = api.call("GET", "/sandbox/calls").json()["counts"]
    assert (counts["tags_write"], counts["profile"], counts["offers"]) == (2, 1, 0)
    api.call("DELETE", "/sandbox/calls")
    assert calls() == []


# customers


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "user_id"),
        ({"user_id": "u", "external_id": "loyal-1001"}, ADA),
        ({"user_id": "u", "name": "x"}, "name"),
        ({"user_id": "u", "tags": {"a": 0}}, "tags.a"),
        ({"user_id": "u", "offers": [{"use": "nothing"}]}, "nothing"),
        ({"user_id": "u", "offers": [{"acquire_date_in_days": 1e11}]}, "acquire_date_in_days"),
    ],
)
def test_a_customer_that_makes_no_sense_is_refused_by_name(
    api: Api, given: Any, named: str
) -> None:
    answer = api.call("POST", "/sandbox/customers", json=given)
    assert code(answer) == (400, "argument_error")
    assert named in answer.json()["errors"]["message"]


def test_a_customer_can_be_created_and_replaced_while_it_runs(api: Api) -> None:
    given = {
        "user_id": "u-1",
        "external_id": "e-1",
        "tags": {"vip": 3, "promo": {"ttl": 60}},
        "offers": [{"use": "free-coffee", "title": "Mine"}, {"expiration_date_in_days": 1}],
        "total_points": 80,
        "available_points": 70,
    }
    assert api.call("POST", "/sandbox/customers", json=given).status_code == 200
    assert api.call("GET", "/sandbox/customers").json()["count"] == 7
    assert api.read("u-1").json()["tags"] == {"vip": 3, "promo": 0}
    wallet = api.wallet("u-1")
    assert [offer["title"] for offer in wallet["user_offers"]] == ["Mine", "An offer"]
    assert wallet["user_offers"][1]["expiration_date"] == "2026-09-22T14:13:20Z"
    assert (wallet["total_points"], wallet["available_points"]) == (80, 70)
    api.call("POST", "/sandbox/customers", json={"user_id": "u-1", "tags": {"plain": 1}})
    assert api.read("u-1").json()["tags"] == {"plain": 1}
    answer = api.call("GET", f"{CORE}/external/users/e-1", auth=api.core)
    assert answer.status_code == 404, "the old external id is gone with the old customer"


def test_a_removed_customer_leaves_no_external_id_and_takes_none_of_another(
    api: Api, sandbox: Sandbox
) -> None:
    for name in ("x", "y"):
        given = {"user_id": name, "external_id": f"{name}-1"}
        assert api.call("POST", "/sandbox/customers", json=given).status_code == 200
    sandbox.add_external_id("x", "x-2")
    sandbox.add_external_id("x", "moved")
    sandbox.add_external_id("y", "moved")

    def found() -> set[str]:
        paths = {name: f"{CORE}/external/users/{name}" for name in ("x-1", "x-2", "moved", "y-1")}
        return {name for name, path in paths.items() if api.call("GET", path, auth=api.core).ok}

    assert api.call("DELETE", "/sandbox/customers/x").ok
    assert found() == {"moved", "y-1"}
    assert api.call("DELETE", "/sandbox/customers/y").ok
    assert found() == set()


def test_with_any_customer_unknown_identifiers_become_customers(http: requests.Session) -> None:
    with serve(Sandbox(seed={**load_seed(), "any_customer": True}), port=0) as server:
        api = Api(server.url, http)
        assert api.write({"tags": ["vip"]}, "new-1").json()["tags"] == {"vip": 1}
        assert api.wallet("new-2")["total_records"] == 2
        path = f"{CORE}/external/users/new-3"
        user = api.call("GET", path, auth=api.core).json()["user"]
        assert user["external_id"] == "new-3"
        tags = api.call("POST", f"{path}/tags", json={"tags": ["vip"]}, auth=api.core).json()
        assert api.read(user["id"]).json() == tags


# the seed


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "seed.json"),
        ("\xff", "seed.json"),
        ('{"people": []}', "people"),
        ('{"customers": [{"user_id": "a"}, {}]}', "customers[1].user_id"),
        ('{"customers": [{"user_id": "a"}, {"user_id": "a"}]}', "user_id is there twice"),
        ('{"customers": [{"user_id": "a", "offers": [{"use": "b"}]}]}', "no offer 'b'"),
    ],
)
def test_a_seed_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "seed.json"
    file.write_text(text, "latin-1")
    with pytest.raises(SeedError) as refused:
        Sandbox(seed=load_seed(file))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_seed_file_of_ones_own_takes_the_place_of_the_built_in_one(
    tmp_path: Path, http: requests.Session
) -> None:
    file = tmp_path / "seed.json"
    file.write_text(json.dumps({"customers": [{"user_id": "only", "tags": {"a": 2}}]}))
    with serve(Sandbox(seed=load_seed(file)), port=0) as server:
        api = Api(server.url, http)
        assert api.read("only").json()["tags"] == {"a": 2}
        assert api.read(DEMO).status_code == 404


# the server


def test_a_connection_is_kept_and_answers_come_without_delay(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "urllib3")
    # Nagle and delayed ACK would cost 40 ms each.
    with at_most(20 * 0.03):
        for _ in range(20):
            api.write({"tags": ["vip"]}, EMPTY)
    assert caplog.text.count("Starting new HTTP connection") == 1
    assert "Resetting dropped connection" not in caplog.text


def test_a_stopped_server_refuses_connections_and_can_be_started_again(api: Api) -> None:
    with serve(Sandbox(), port=0) as server:
        url, port = server.url, server.port
        api.call("GET", "/")
        with requests.Session() as http:
            other = Api(url, http)
            other.write({"tags": ["vip"]}, EMPTY).raise_for_status()
            server.stop()
            with pytest.raises(requests.ConnectionError):
                other.read(EMPTY)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
            server.start()
            assert (server.url, server.port) == (url, port)
            assert other.read(EMPTY).json()["tags"] == {"vip": 1}, "what it knows it keeps"


def test_the_sandbox_needs_neither_flask_nor_the_rest_of_the_bridge() -> None:
    script = "import sys, bridge.sandbox; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert not loaded & {"flask", "sqlalchemy"}
    of_the_bridge = {name.split(".")[1] for name in loaded if name.startswith("bridge.")}
    assert of_the_bridge == {"sandbox", "clock"}


def test_the_command_says_how_to_use_it_and_ends_cleanly() -> None:
    script = "from bridge.sandbox.server import run; run('127.0.0.1', 0, None)"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            said = ""
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                said += line
            settings = dict(line.split(" ", 1)[1].split("=", 1) for line in exports(said))
            url = settings["SESSIONM_CORE_URL"]
            assert requests.get(url, timeout=30).headers["Server"] == "sessionm-sandbox"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert "it is not SessionM" in said
    assert settings == CREDENTIALS.environment(url)
    assert DEMO in said


def exports(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("export ")]


BRAZE_KEY = {"Authorization": "Bearer sandbox-braze-key"}
PERSON = {"external_user_id": "ann"}


def trigger(api_url: str, body: Any, path: str = "campaigns", **headers: str) -> Any:
    url = f"{api_url}/{path}/trigger/send"
    return requests.post(url, json=body, headers={**BRAZE_KEY, **headers}, timeout=10)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"recipients": [PERSON]}, "Invalid Campaign ID"),
        ({"campaign_id": "c", "recipients": [PERSON] * 51}, "50"),
        ({"campaign_id": "c", "recipients": [PERSON], "broadcast": True}, "broadcast"),
        ({"campaign_id": "c", "recipients": [{"email": "a@b.c"}]}, "prioritization"),
    ],
    ids=str,
)
def test_brazes_part_refuses_as_braze_does(body: Any, says: str) -> None:
    with serve(Sandbox(), port=0) as server:
        answer = trigger(server.url, body)
        assert answer.status_code == 400
        assert says in answer.json()["message"]
        assert server.sandbox.braze.sent() == []


def test_brazes_part_sends_one_message_to_one_person() -> None:
    with serve(Sandbox(), port=0) as server:
        answer = trigger(server.url, {"canvas_id": "v", "recipients": [PERSON, PERSON]}, "canvas")
        assert (answer.status_code, answer.json()["message"]) == (201, "success")
        assert answer.headers["X-RateLimit-Remaining"] == "249999"
        shown = requests.get(f"{server.url}/sandbox/messages", timeout=10).json()["messages"]
        assert [one["recipient"] for one in shown] == [PERSON]
        wrong = trigger(server.url, {}, Authorization="Bearer other")
        assert (wrong.status_code, "message" in wrong.json()) == (401, True)


def test_brazes_part_has_an_hourly_limit_and_the_same_faults() -> None:
    with serve(Sandbox(), port=0) as server:
        url = f"{server.url}/sandbox/braze"
        assert requests.post(url, json={"limit": 1, "reset_in": 60}, timeout=10).ok
        body = {"campaign_id": "c", "recipients": [PERSON]}
        assert trigger(server.url, body).status_code == 201
        refused = trigger(server.url, body)
        assert (refused.status_code, refused.headers["X-RateLimit-Remaining"]) == (429, "0")
        server.sandbox.set_faults({"status": 503, "where": "braze"})
        failed = trigger(server.url, body)
        assert (failed.status_code, list(failed.json())) == (503, ["message"])
