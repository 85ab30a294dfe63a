"""SessionM's own paths on the bridge."""

import json
import re
import secrets
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.liquid.render import render
from bridge.sandbox import SandboxServer
from tests.conftest import (
    ALICE,
    KEYS,
    SEED_CUSTOMER,
    MakeApp,
    MakeService,
    bearer,
    eventually,
    free_port,
    rows,
)
from tests.samples import BRAZE_GUIDE, TAGS_API

TAGS = f"/priv/v1/apps/bridge/users/{ALICE}/tags"
OFFERS = "/offers/api/2.0/offers/get_user_offers"


def test_a_tag_write_is_stored_and_answered_in_sessionms_shape(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    answer = client.post(TAGS, json={"tags": ["x"], "ttl": 60}, headers=bearer("webhook"))
    assert answer.status_code == 200
    body = answer.get_json()
    assert body["status"] == "ok"
    assert body["id"]
    assert isinstance(body["tags"], dict)
    eventually(lambda: "x" in sandbox.sandbox.tags(ALICE))
    assert "x" in client.get(f"{TAGS}/", headers=bearer("content")).get_json()["tags"]
    assert client.post(f"{TAGS}/", json={"tags": "y"}, headers=bearer("webhook")).status_code == 200


@pytest.mark.parametrize(
    ("tags", "stored"), [(r'"[\"x\", \"y\"]"', ["x", "y"]), ('"[]"', None)], ids=["Liquid", "none"]
)
def test_a_list_printed_by_liquid_is_a_list_here_too(
    client: FlaskClient, database: str, tags: str, stored: list[str] | None
) -> None:
    body = f'{{"tags":{tags},"ttl":60.0}}'.encode()
    answer = client.post(
        TAGS, data=body, content_type="application/json", headers=bearer("webhook")
    )
    assert answer.status_code == (200 if stored else 422)
    written = rows(database, "SELECT tags, ttl FROM writes")
    assert [(json.loads(found), ttl) for found, ttl in written] == (
        [(stored, 60)] if stored else []
    )


@pytest.mark.parametrize(
    ("path", "name"), [("users/null", "user_id"), ("external/users/NaN", "external_id")]
)
def test_a_word_for_no_value_is_no_customer(
    client: FlaskClient, sandbox: SandboxServer, path: str, name: str
) -> None:
    path = f"/priv/v1/apps/bridge/{path}/tags"
    write = client.post(path, json={"tags": ["x"]}, headers=bearer("webhook"))
    assert (write.status_code, write.get_json()["errors"]["code"]) == (422, "no_customer")
    read = client.get(path, headers=bearer("content"))
    assert read.status_code == 400
    assert read.get_json()["errors"]["message"].startswith(f"{name} is ")
    wallet = {"user_id": "null", "culture": "en-US"}
    offers = client.post(OFFERS, json=wallet, headers=bearer("content"))
    assert (offers.status_code, "user_id" in offers.get_json()["errors"]["message"]) == (400, True)
    assert not any(sandbox.sandbox.counts().values())


def test_a_wallet_is_asked_for_by_a_number_as_by_its_text(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.put_customer({"user_id": "1234567890123456789012"})
    body = b'{"user_id":1234567890123456789012}'
    answer = client.post(
        OFFERS, data=body, content_type="application/json", headers=bearer("content")
    )
    assert answer.status_code == 200


def test_tags_are_read_from_the_cache(client: FlaskClient, sandbox: SandboxServer) -> None:
    for _ in range(3):
        answer = client.get(TAGS, headers=bearer("content")).get_json()
    assert answer["status"] == "ok"
    assert answer["tags"]["vip"] == 1
    assert sandbox.sandbox.counts()["tags_read"] == 1


def test_an_external_id_with_a_slash_is_one_segment(client: FlaskClient) -> None:
    path = "/priv/v1/apps/bridge/external/users/loyal%2F42%3F%C3%A9/tags"
    assert client.get(path, headers=bearer("content")).get_json()["tags"] == {"newsletter": 1}


@pytest.mark.parametrize("key", ["bridge", "sandbox-key"])
def test_the_path_takes_the_configured_key_or_the_word_bridge(
    client: FlaskClient, key: str
) -> None:
    path = f"/priv/v1/apps/{key}/users/{ALICE}/tags"
    assert client.get(path, headers=bearer("content")).status_code == 200


def test_another_api_key_in_the_path_is_refused(client: FlaskClient) -> None:
    path = f"/priv/v1/apps/other/users/{ALICE}/tags"
    assert client.get(path, headers=bearer("content")).status_code == 403


def test_reading_and_writing_tags_need_different_keys(client: FlaskClient) -> None:
    assert client.get(TAGS, headers=bearer("webhook")).status_code == 403
    body = {"tags": ["x"], "ttl": 60}
    assert client.post(TAGS, json=body, headers=bearer("content")).status_code == 403


def test_an_unknown_customer_is_404_as_at_sessionm(client: FlaskClient) -> None:
    answer = client.get("/priv/v1/apps/bridge/users/nobody/tags", headers=bearer("content"))
    assert answer.status_code == 404
    assert answer.get_json()["errors"]["code"] == "user_not_found"


def test_a_wallet_comes_as_sessionm_sends_it_and_is_cached(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    body = {"user_id": SEED_CUSTOMER, "skip": 0, "take": 1000, "culture": "en-US"}
    path = "/offers/api/2.0/offers/get_user_offers"
    for _ in range(3):
        answer = client.post(path, json=body, headers=bearer("content")).get_json()
    assert answer["payload"]["available_points"] == 100
    assert answer["payload"]["user_offers"][0]["offer_type"] == "manual_fulfillment"
    assert sandbox.sandbox.counts()["offers"] == 1


def test_a_body_that_is_no_object_is_refused_as_by_other_lookups(client: FlaskClient) -> None:
    for path in (OFFERS, "/connected-content/offers"):
        answer = client.post(path, json=[SEED_CUSTOMER], headers=bearer("content"))
        assert (answer.status_code, answer.get_json()["errors"]["code"]) == (400, "not_an_object")


@pytest.mark.both_databases
def test_a_wallet_that_was_asked_for_at_length_is_there_for_other_processes(
    make_app: MakeApp, sandbox: SandboxServer, database: str
) -> None:
    first, second = (make_app().test_client() for _ in range(2))
    table = database if database.startswith("postgresql:") else f"{database}.cache"
    # More than PostgreSQL takes into an index.
    body = {"user_id": SEED_CUSTOMER, "note": secrets.token_hex(20_000)}
    path = "/offers/api/2.0/offers/get_user_offers"
    assert first.post(path, json=body, headers=bearer("content")).status_code == 200
    # Answers come before they are stored.
    eventually(lambda: rows(table, "SELECT count(*) FROM lookups") == [(1,)])
    assert second.post(path, json=body, headers=bearer("content")).status_code == 200
    assert sandbox.sandbox.counts()["offers"] == 1


def test_a_failing_sessionm_is_an_error_that_braze_does_not_count(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    assert client.get(TAGS, headers=bearer("content")).status_code == 500


def submit_job(client: FlaskClient, sandbox: SandboxServer) -> TestResponse:
    job = {
        "request_id": "917",
        "url": f"{sandbox.url}/none.csv",
        "md5": "0" * 32,
        "notify": f"{sandbox.url}/done?id=JOB_ID",
    }
    return client.post(
        "/priv/v1/apps/bridge/batch/tags", json={"tags": job}, headers=bearer("webhook")
    )


def test_a_batch_job_is_passed_on(client: FlaskClient, sandbox: SandboxServer) -> None:
    answer = submit_job(client, sandbox)
    assert answer.status_code == 200
    assert answer.get_json()["tags"]["request_id"] == "917"


@pytest.mark.parametrize("fault", [{"drop": "after"}, {"status": 503}, {"garbage": True}], ids=str)
def test_a_job_that_sessionm_may_have_taken_is_followed_and_braze_submits_it_no_more(
    client: FlaskClient, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    sandbox.sandbox.set_faults({**fault, "match": "^POST .*/batch/tags$", "times": 1})
    answer = submit_job(client, sandbox)
    body = answer.get_json()
    assert (answer.status_code, body["status"]) == (202, "uncertain")
    assert "may have accepted" in body["message"]
    listed = client.get(f"/batches/{body['id']}", headers=bearer("admin")).get_json()["batch"]
    assert (listed["source"], listed["name"], listed["state"]) == ("dropin", "917", "running")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"status": 429, "retry_after": 7}, 429, "too_many_requests"),
        ({"status": 401}, 500, "sessionm_unavailable"),
        (None, 500, "sessionm_unavailable"),
        ({"status": 404, "code": "NOT_FOUND"}, 404, "not_found"),
        ({"ok_error": True, "code": "VALIDATION"}, 422, "validation"),
    ],
    ids=str,
)
def test_why_sessionm_did_not_take_a_job_reaches_who_submitted_it(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any] | None, status: int, code: str
) -> None:
    """Without a *fault* SessionM is not there at all."""
    away = {"SESSIONM_CORE_URL": f"http://127.0.0.1:{free_port()}"}
    sandbox.sandbox.set_faults({**(fault or {}), "match": "^POST .*/batch/tags$"})
    client = make_app(**({} if fault else away)).test_client()
    answer = submit_job(client, sandbox)
    assert (answer.status_code, answer.get_json()["errors"]["code"]) == (status, code)
    assert answer.headers.get("Retry-After") == ("7" if status == 429 else None)
    assert client.get("/batches", headers=bearer("admin")).get_json()["batches"] == []


def test_the_seeds_curl_works_with_only_host_and_credentials_changed(
    make_service: MakeService, sandbox: SandboxServer
) -> None:
    service = make_service()
    sample = BRAZE_GUIDE.read_text()
    path = re.search(r"\{\{endpoint_core\}\}(\S+)'", sample)
    body = re.search(r"--data-raw '(\{.*?\})'", sample, re.DOTALL)
    assert path
    assert body
    url = path[1].replace("{{apikey_core}}", "bridge").replace("{{user_id}}", ALICE)
    answer = requests.post(
        service.url + url,
        data=body[1],
        headers={"Content-Type": "application/json", **bearer("webhook")},
        timeout=10,
    )
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    eventually(lambda: {"tagname1", "tagname2"} <= set(sandbox.sandbox.tags(ALICE)))


def test_the_documents_own_write_and_answer_shapes_hold(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    request = re.search(r'\{\s*"tags":\[\s*"tag1".*?\}', TAGS_API.read_text(), re.DOTALL)
    assert request
    client = make_app(deliver=True).test_client()
    answer: Any = client.post(
        TAGS, data=request[0], content_type="application/json", headers=bearer("webhook")
    )
    assert answer.status_code == 200
    eventually(lambda: {"tag1", "tag2"} <= set(sandbox.sandbox.tags(ALICE)))


def test_the_seeds_liquid_renders_100_points_through_the_bridge(
    make_service: MakeService,
) -> None:
    service = make_service()
    snippet = re.search(r"\{% capture postbody %\}.*?%\}\n```", BRAZE_GUIDE.read_text(), re.DOTALL)
    assert snippet
    source = (
        snippet[0]
        .removesuffix("```")
        .replace("Basic YOUR-BASE64-ENCODED-KEY", f"Bearer {KEYS['content']}")
    )
    rendered = render(
        source + "{{wallet.payload.available_points}}",
        attributes={"user_id": SEED_CUSTOMER},
        variables={"endpoint_connect": service.url},
    )
    assert rendered.text.strip() == "100"
