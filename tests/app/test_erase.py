"""`bridge erase` forgets a customer: under both identifiers, in every file, and nobody else."""

import json
import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import requests
from flask.testing import FlaskClient

from bridge.customer import Customer
from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from tests.commands import run_bridge
from tests.conftest import MakeApp, MakeService, Service, bearer, environment, eventually, rows

USER, LOYAL = "zoë/31@example.com", "loyal-zoë-31"
OTHER = "somebody-else@example.com"
CONTENT = bearer("content")


def erase(url: str, folder: Path, *arguments: str) -> str:
    environ = {**os.environ, **environment(url, folder)}
    done = run_bridge("erase", *arguments, env=environ, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def traces(folder: Path, *ids: str) -> set[tuple[str, str]]:
    """Which of *ids* stand in which of the bridge's files, in any writing."""
    forms = {form for i in ids for form in (i, json.dumps(i)[1:-1], quote_plus(i))}
    return {
        (path.name, form)
        for path in folder.glob("bridge.db*")
        for form in forms
        if form.encode() in path.read_bytes()
    }


def webhook(service: Service, body: str | bytes, kind: str = "application/json") -> int:
    headers = {**bearer("webhook"), "Content-Type": kind}
    url = f"{service.url}/webhooks/braze"
    data = body if isinstance(body, bytes) else body.encode()
    return requests.post(url, data=data, headers=headers, timeout=20).status_code


def test_a_customer_erased_is_in_no_file_under_either_identifier(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    sandbox.sandbox.put_customer({"user_id": USER, "external_id": LOYAL})
    sandbox.sandbox.put_customer({"user_id": OTHER})
    service = make_service()
    # By a lookup the bridge learns that the two are one.
    service.lookup("customer", external_id=LOYAL)
    service.lookup("tags", user_id=USER)
    service.lookup("tags", user_id=OTHER)
    assert service.webhook(user_id=USER, tags=["a"], ttl=600).status_code == 202
    assert service.webhook(external_id=LOYAL, tags=["b"]).status_code == 202
    assert service.webhook(user_id=OTHER, tags=["about " + USER], ttl=60).status_code == 202
    # Refused ones name nobody, and write the id in ways of their own.
    assert webhook(service, json.dumps({"user_id": USER, "ttl": -1})) == 422
    form = "application/x-www-form-urlencoded"
    assert webhook(service, f"user_id={quote_plus(USER)}&ttl=x", form) == 422
    assert webhook(service, f'{{"user_id": "{USER}", '.encode()) == 400
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0)
    assert traces(tmp_path, USER, LOYAL)

    answer = erase(sandbox.url, tmp_path, "--external-id", LOYAL)
    assert answer == (
        "Erased: 5 events, and what was cached. "
        "The other identifier was known, and is erased too.\n"
    )
    # Somebody else's tag is theirs.
    assert {name for name, _ in traces(tmp_path, USER, LOYAL)} <= {
        "bridge.db",
        "bridge.db.cache",
    }
    listed = requests.get(f"{service.url}/api/events", headers=bearer("admin"), timeout=10).json()
    assert [event["customer"] for event in listed["events"]] == [{"user_id": OTHER}]
    erase(sandbox.url, tmp_path, "--user-id", OTHER)
    assert traces(tmp_path, USER, LOYAL, OTHER) == set()
    assert service.lookup("tags", user_id=OTHER).json()["status"] == "ok"


def test_a_refused_event_goes_also_after_it_was_discarded(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    service = make_service()
    assert webhook(service, json.dumps({"user_id": USER, "ttl": -1})) == 422
    assert webhook(service, json.dumps({"user_id": OTHER, "tags": [USER], "ttl": -1})) == 422
    assert webhook(service, f'{{"user_id": "{USER}", '.encode()) == 400
    # Of broken JSON, the customer that can be read may not be the only one.
    assert webhook(service, f'{{"user_id": "{OTHER}", "external_id": "{USER}'.encode()) == 400
    headers = bearer("admin")
    url = f"{service.url}/api/events"
    for event in requests.get(url, headers=headers, timeout=10).json()["events"]:
        requests.delete(f"{url}/{event['id']}", headers=headers, timeout=10)
    assert "Erased: 3 events" in erase(sandbox.url, tmp_path, "--user-id", USER)
    [left] = requests.get(url, headers=headers, timeout=10).json()["events"]
    assert left["customer"] == {"user_id": OTHER}


@pytest.mark.parametrize("nobody", ["null", "nan", " "])
def test_a_word_for_no_value_erases_nobody(
    client: FlaskClient, nobody: str, tmp_path: Path
) -> None:
    client.post("/webhooks/braze", json={"user_id": OTHER, "ttl": -1}, headers=bearer("webhook"))
    path = f"/api/customers/user_id/{quote(nobody, safe='')}"
    for method in ("GET", "DELETE"):
        assert client.open(path, method=method, headers=bearer("admin")).status_code == 400
    form = {"kind": "user_id", "id": nobody, "sure": "1"}
    headers = {**bearer("admin"), "Origin": "http://localhost"}
    assert client.post("/customers/erase", data=form, headers=headers).status_code == 400
    environ = {**os.environ, **environment("http://127.0.0.1:9", tmp_path)}
    done = run_bridge("erase", "--user-id", nobody, env=environ, cwd=tmp_path)
    assert (done.returncode, "--user-id is missing" in done.stderr) == (2, True)
    [event] = client.get("/api/events", headers=bearer("admin")).get_json()["events"]
    assert event["customer"] == {"user_id": OTHER}


def test_an_event_with_both_identifiers_shows_that_they_are_one(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    service = make_service(BRIDGE_SESSIONM_RPS="0.001")
    assert service.webhook(user_id="u-771", external_id="e-771", tags=["a"]).status_code == 202
    assert service.webhook(user_id="u-771", tags=["b"]).status_code == 202
    assert service.webhook(user_id="u-7710", tags=["u-771"]).status_code == 202
    # The customer of SessionM's own path is the one in it.
    url = f"{service.url}/priv/v1/apps/bridge/users/u-7711/tags"
    body = {"tags": ["a"], "user_id": "u-771"}
    assert requests.post(url, json=body, headers=bearer("webhook"), timeout=20).status_code == 200
    assert "Erased: 2 events" in erase(sandbox.url, tmp_path, "--external-id", "e-771")
    listed = requests.get(f"{service.url}/api/events", headers=bearer("admin"), timeout=10).json()
    kept = [event["customer"]["user_id"] for event in listed["events"]]
    assert kept == ["u-7711", "u-7710"]


def test_an_identifier_that_others_may_have_too_is_only_reported(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    service = make_service(BRIDGE_SESSIONM_RPS="0.001")
    for number in range(3):
        fields = {"user_id": f"u-{number}", "external_id": "guest", "tags": ["a"]}
        assert service.webhook(**fields).status_code == 202
    shown = erase(sandbox.url, tmp_path, "--user-id", "u-0")
    assert "Erased: 1 event, and what was cached.\nNot erased: 1 identifier" in shown
    assert shown.endswith("\n  bridge erase --external-id guest\n")
    headers = {**bearer("admin"), "Origin": service.url}
    form = {"kind": "external_id", "id": "guest", "sure": "yes"}
    page = requests.post(f"{service.url}/customers/erase", data=form, headers=headers, timeout=20)
    assert "2 events are gone" in page.text
    assert re.search("Not erased.*u-1</code>.*, .*u-2</code>", page.text)
    url = f"{service.url}/api/customers/user_id/u-1"
    answer = requests.delete(url, headers=headers, timeout=20).json()
    assert answer == {"status": "ok", "events": 0, "identifiers": ["user_id"], "shared": []}


def test_an_external_id_that_was_given_to_another_customer_erases_neither(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app().test_client()
    before = {"user_id": OTHER, "external_id": LOYAL, "tags": ["a"]}
    client.post("/webhooks/braze", json=before, headers=bearer("webhook"))
    sandbox.sandbox.put_customer({"user_id": USER, "external_id": LOYAL})
    client.get("/connected-content/customer", query_string={"external_id": LOYAL}, headers=CONTENT)
    client.post("/webhooks/braze", json={"user_id": USER, "tags": ["a"]}, headers=bearer("webhook"))
    path = f"/api/customers/external_id/{quote(LOYAL)}"
    answer = client.delete(path, headers=bearer("admin")).get_json()
    assert answer["identifiers"] == ["external_id"]
    assert answer["shared"] == [{"user_id": OTHER}, {"user_id": USER}]
    left = client.get("/api/events", headers=bearer("admin")).get_json()["events"]
    assert [event["customer"] for event in left] == [{"user_id": USER}]


def test_an_erasure_that_cannot_read_the_other_identifier_changes_nothing(
    make_app: MakeApp, sandbox: SandboxServer, database: str
) -> None:
    sandbox.sandbox.put_customer({"user_id": USER, "external_id": LOYAL})
    client = make_app().test_client()
    client.get("/connected-content/customer", query_string={"external_id": LOYAL}, headers=CONTENT)
    table = f"{database}.cache"
    eventually(lambda: rows(table, "SELECT * FROM lookups WHERE kind = 'external'"))
    client.post("/webhooks/braze", json={"user_id": USER, "tags": ["a"]}, headers=bearer("webhook"))
    path = f"/api/customers/external_id/{quote(LOYAL)}"
    with closing(sqlite3.connect(table.removeprefix("sqlite:///"))) as file:
        file.execute("ALTER TABLE lookups RENAME TO hidden")
        assert client.delete(path, headers=bearer("admin")).status_code == 503
        file.execute("ALTER TABLE hidden RENAME TO lookups")
    answer = client.delete(path, headers=bearer("admin")).get_json()
    assert (answer["events"], answer["identifiers"]) == (1, ["external_id", "user_id"])


def test_what_is_fetched_while_its_customer_is_erased_is_not_kept(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    app = make_app(BRIDGE_TAGS_MAX_AGE="0")
    client, cache = app.test_client(), parts_of(app).cache
    sandbox.sandbox.set_faults({"latency_ms": 20})
    customers = [Customer("user_id", f"erased-{number}") for number in range(50)]
    erased_at = {}
    for number, customer in enumerate(customers):
        sandbox.sandbox.put_customer({"user_id": customer.id})
        for _ in range(2):
            url = f"/connected-content/tags?user_id={customer.id}"
            assert client.get(url, headers=bearer("content")).get_json()["status"] == "ok"
        # The second look has begun a refresh, which ends about now and is stored a little later.
        time.sleep(0.018 + number * 0.0004)
        erased_at[customer.key] = time.time()
        cache.erase(customer)
    time.sleep(0.2)
    kept = dict(cache.stored_for(["tags"], customers))
    # On a busy machine a refresh may begin only afterwards.
    assert not {key for key, entry in kept.items() if entry.fetched_at < erased_at[key]}


def test_an_id_in_curly_quotes_that_was_stored_is_erased(
    make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    client = make_app().test_client()
    quoted = "\u201cloyal-7\u201d"
    refused = client.post("/webhooks/braze", json={"user_id": quoted}, headers=bearer("webhook"))
    assert refused.status_code == 422
    assert erase(sandbox.url, tmp_path, "--user-id", quoted).startswith("Erased: 1 event,")
    assert client.delete(f"/api/customers/user_id/{quoted}", headers=bearer("admin")).json == {
        "status": "ok",
        "events": 0,
        "identifiers": ["user_id"],
        "shared": [],
    }
