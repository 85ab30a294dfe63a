"""SessionM's own paths on the bridge."""

import re
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from bridge.liquid import render
from bridge.sessionm.sandbox import SandboxServer
from tests.conftest import ALICE, KEYS, SEED_CUSTOMER, MakeApp, MakeService, bearer, eventually
from tests.samples import BRAZE_GUIDE, TAGS_API

TAGS = f"/priv/v1/apps/bridge/users/{ALICE}/tags"


def test_a_tag_write_is_stored_and_answered_in_sessionms_shape(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    answer = client.post(TAGS, json={"tags": ["x"], "ttl": 60}, headers=bearer("webhook"))
    assert answer.status_code == 200
    told = answer.get_json()
    assert told["status"] == "ok"
    assert told["id"]
    assert isinstance(told["tags"], dict)
    eventually(lambda: "x" in sandbox.sandbox.tags(ALICE))


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


def test_a_failing_sessionm_is_an_error_that_braze_does_not_count(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    assert client.get(TAGS, headers=bearer("content")).status_code == 500


def test_a_batch_job_is_passed_on(client: FlaskClient, sandbox: SandboxServer) -> None:
    job = {
        "request_id": "917",
        "url": f"{sandbox.url}/none.csv",
        "md5": "0" * 32,
        "notify": f"{sandbox.url}/done?id=JOB_ID",
    }
    answer = client.post(
        "/priv/v1/apps/bridge/batch/tags", json={"tags": job}, headers=bearer("webhook")
    )
    assert answer.status_code == 200
    assert answer.get_json()["tags"]["request_id"] == "917"


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
