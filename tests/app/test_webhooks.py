"""`POST /webhooks/braze` through the application, on a real SQLite file."""

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.web.auth import scope_of
from tests.conftest import ALICE, KEYS, MakeApp, answered, bearer, rows

URL = "/webhooks/braze"
FORM = "application/x-www-form-urlencoded"
GOOD = {"braze_campaign_id": "summer", "user_id": ALICE}


def post(client: FlaskClient, body: Any = None, **more: Any) -> TestResponse:
    headers = {**bearer("webhook"), **more.pop("headers", {})}
    if isinstance(body, dict):
        return client.post(URL, json=body, headers=headers, **more)
    return client.post(URL, data=body, headers=headers, **more)


@contextmanager
def locked(database: str) -> Iterator[None]:
    """Somebody else has the events for themselves."""
    engine = sqlalchemy.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    lock = {
        "sqlite": "BEGIN EXCLUSIVE",
        "postgresql": "LOCK TABLE events IN ACCESS EXCLUSIVE MODE",
    }
    with engine.connect() as connection:
        connection.exec_driver_sql(lock[engine.dialect.name])
        yield
    engine.dispose()


@pytest.mark.both_databases
def test_an_accepted_webhook_is_in_the_database_when_it_is_answered(
    client: FlaskClient, database: str
) -> None:
    answer = post(client, GOOD)
    assert answer.status_code == 202
    body = answer.get_json()
    assert body == {
        "status": "accepted",
        "id": body["id"],
        "customer": {"user_id": ALICE},
        "writes": [{"tags": ["braze_campaign_summer"], "ttl": 30 * 86400}],
        "warnings": [],
        "test": False,
    }
    assert rows(database, "SELECT id, state FROM events") == [(body["id"], "queued")]
    [(tags, ttl)] = rows(database, "SELECT CAST(tags AS TEXT), ttl FROM writes")
    assert (tags, ttl) == ('["braze_campaign_summer"]', 30 * 86400)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("braze_campaign_id=summer&user_id=u1&tags=vip&tags=gold&ttl=3600", FORM),
        (
            "braze_campaign_id=summer&user_id=u1&tags=vip,gold&ttl=1h",
            "application/x-www-form-url-encoded",
        ),
        (
            json.dumps(
                {
                    "braze_campaign_id": "summer",
                    "campaign_name": "Summer",
                    "ttl": 3600.0,
                    "user_id": "\u200eu1",
                    "external_id": "null",
                    "tags": '["vip", "gold"]',
                }
            ),
            "application/json",
        ),
    ],
    ids=["form", "other spelling", "JSON"],
)
def test_all_ways_to_write_a_webhook_mean_the_same(
    client: FlaskClient, body: str, content_type: str
) -> None:
    answer = post(client, body.encode(), content_type=content_type)
    assert answer.status_code == 202
    assert answer.get_json()["writes"] == [
        {"tags": ["braze_campaign_summer", "vip", "gold"], "ttl": 3600}
    ]
    assert answer.get_json()["customer"] == {"user_id": "u1"}
    assert answer.get_json()["warnings"] == []


@pytest.mark.both_databases
def test_the_same_dispatch_to_the_same_customer_is_a_duplicate(client: FlaskClient) -> None:
    first = post(client, {**GOOD, "dispatch_id": "d1"}).get_json()
    again = post(client, {**GOOD, "dispatch_id": "d1"})
    assert again.status_code == 200
    assert again.get_json() == {"status": "duplicate", "id": first["id"]}


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": "somebody-else"},
        {"braze_campaign_id": "winter"},
        {"dispatch_id": "d2"},
        {"tags": ["vip"], "ttl": 60},
    ],
    ids=lambda other: next(iter(other)),
)
@pytest.mark.both_databases
def test_a_dispatch_is_no_duplicate_when_something_else_differs(
    client: FlaskClient, other: dict[str, Any]
) -> None:
    assert post(client, {**GOOD, "dispatch_id": "d1"}).status_code == 202
    assert post(client, {**GOOD, "dispatch_id": "d1", **other}).status_code == 202


@pytest.mark.both_databases
def test_an_idempotency_key_wins_over_the_dispatch_id(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "k1"}
    assert post(client, {**GOOD, "dispatch_id": "d1"}, headers=key).status_code == 202
    assert post(client, {**GOOD, "dispatch_id": "d2"}, headers=key).status_code == 200


def test_a_test_send_is_flagged_and_never_a_duplicate(client: FlaskClient) -> None:
    test_send = {**GOOD, "dispatch_id": "dispatch_id_for_unsent_campaign"}
    for _ in range(2):
        answer = post(client, test_send)
        assert (answer.status_code, answer.get_json()["test"]) == (202, True)


def test_counters_without_a_dispatch_id_come_with_a_warning(client: FlaskClient) -> None:
    assert post(client, {"user_id": "u1", "tags": ["visits"]}).get_json()["warnings"]
    safe = {"user_id": "u1", "tags": ["visits"], "dispatch_id": "d1"}
    assert post(client, safe).get_json()["warnings"] == []


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b"{not json", "application/json", 400, "line 1"),
        (b"\xff\xfe{}", "application/json", 400, "UTF-8"),
        (b"[" * 200_000, "application/json", 400, "nested"),
        (b"<x/>", "application/xml", 415, "application/json"),
        (b'{"user_id":{{${user_id}}}}', "application/json", 400, "Liquid"),
        (b'{"user_id":"u1"}', "application/json", 422, "Nothing to tag"),
        (b'{"user_id":"null","tags":["a"]}', "application/json", 422, 'user_id is "null"'),
        (b"external_id=M&Ms-77&tags=a", FORM, 400, 'external_id is followed by "Ms-77"'),
        (b'{"user_id":"u1","x":"' + b"x" * 262_144 + b'"}', "application/json", 413, "256 KB"),
    ],
)
@pytest.mark.both_databases
def test_what_cannot_be_an_event_is_refused_in_words_and_kept(
    client: FlaskClient, database: str, body: bytes, content_type: str, status: int, words: str
) -> None:
    answer = answered(lambda: post(client, body, content_type=content_type))
    assert answer.status_code == status
    found = answer.get_json()
    assert found["status"] == "error"
    assert words in found["errors"]["message"]
    [(state, kept, reason)] = rows(database, "SELECT state, body, reason FROM events")
    assert state == "rejected"
    assert body.startswith(kept)
    assert reason == found["errors"]["message"]


def test_the_rules_decide_what_is_written(make_app: MakeApp, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[defaults]\nunknown = "reject"\n'
        '[campaigns.summer]\ntags = ["summer_promo"]\nttl = "14d"\ncounters = ["touches"]\n'
    )
    client = make_app(BRIDGE_RULES=str(rules)).test_client()
    assert post(client, {**GOOD, "dispatch_id": "d1"}).get_json()["writes"] == [
        {"tags": ["summer_promo"], "ttl": 14 * 86400},
        {"tags": ["touches"], "ttl": None},
    ]
    unlisted = post(client, {**GOOD, "braze_campaign_id": "winter"})
    assert unlisted.status_code == 422
    assert "winter" in unlisted.get_json()["errors"]["message"]


@pytest.mark.both_databases
def test_a_full_queue_answers_503_and_keeps_nothing(make_app: MakeApp, database: str) -> None:
    client = make_app(BRIDGE_QUEUE_LIMIT="2").test_client()
    answers = [post(client, {**GOOD, "user_id": f"u{i}"}) for i in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 503]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert len(rows(database, "SELECT 1 FROM events")) == 2


@pytest.mark.both_databases
def test_a_store_that_cannot_be_written_answers_503(app: Flask, database: str) -> None:
    client = app.test_client()
    assert post(client, GOOD).status_code == 202
    with locked(database):
        blocked = post(client, {**GOOD, "user_id": "u2"})
    assert blocked.status_code == 503
    assert int(blocked.headers["Retry-After"]) > 0
    assert post(client, {**GOOD, "user_id": "u3"}).status_code == 202


@pytest.mark.parametrize("path", [URL, URL + "/"])
def test_no_slash_causes_a_redirect(client: FlaskClient, path: str) -> None:
    assert client.post(path, json=GOOD, headers=bearer("webhook")).status_code == 202


def test_basic_credentials_open_as_bearer_does(client: FlaskClient) -> None:
    basic = base64.b64encode(f"test:{KEYS['webhook']}".encode()).decode()
    answer = client.post(URL, json=GOOD, headers={"Authorization": f"Basic {basic}"})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        (bearer("content"), 403),
    ],
)
def test_other_credentials_do_not_open(
    client: FlaskClient, database: str, headers: dict[str, str], status: int
) -> None:
    answer = client.post(URL, json=GOOD, headers=headers)
    assert answer.status_code == status
    assert (answer.headers.get("WWW-Authenticate") is not None) == (status == 401)
    assert rows(database, "SELECT 1 FROM events") == []


def test_a_key_in_a_misspelt_header_is_named(client: FlaskClient) -> None:
    answer = client.post(URL, json=GOOD, headers={"Authorisation": "Bearer x"})
    assert answer.status_code == 401
    assert "a header Authorisation: name it Author" in answer.get_json()["errors"]["message"]


def test_a_sane_request_id_is_echoed_and_another_replaced(client: FlaskClient) -> None:
    given = uuid.uuid4().hex
    assert post(client, GOOD, headers={"X-Request-Id": given}).headers["X-Request-Id"] == given
    odd = post(client, GOOD, headers={"X-Request-Id": "a b;c"}).headers["X-Request-Id"]
    assert odd
    assert " " not in odd


def test_every_route_has_a_scope(app: Flask) -> None:
    with app.app_context():
        scopes = {rule.rule: scope_of(rule.endpoint) for rule in app.url_map.iter_rules()}
    assert {path for path, scope in scopes.items() if scope == "open"} == {
        "/healthz",
        "/readyz",
        "/assets/<name>",
        "/openapi.json",
        "/docs",
        "/docs/marketers",
        # Their URLs hold a token of a batch job's.
        "/batches/files/<token>.csv",
        "/webhooks/sessionm/batch",
    }
