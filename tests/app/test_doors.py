"""Who gets in: keys, scopes and addresses, over every route that the application has."""

import base64
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from bridge.web.auth import scope_of
from tests.conftest import ALICE, KEYS, MakeApp, bearer

SCOPES = list(KEYS)


def basic(name: str, secret: str) -> dict[str, str]:
    token = base64.b64encode(f"{name}:{secret}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def routes(app: Flask) -> list[tuple[str, str, str]]:
    """Every (method, path, scope), with the placeholders of a path filled in."""
    found: list[tuple[str, str, str]] = []
    with app.app_context():
        for rule in app.url_map.iter_rules():
            path = rule.rule
            for argument in rule.arguments - set(rule.defaults or {}):
                value = "bridge" if argument == "api_key" else ALICE
                path = path.replace(f"<path:{argument}>", value).replace(f"<{argument}>", value)
            found += [
                (method, path, scope_of(rule.endpoint))
                for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
            ]
    return found


JUNK: list[dict[str, str]] = [
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "Basic"},
    {"Authorization": "Basic !!!"},
    {"Authorization": "Basic Og=="},
    {"Authorization": "Digest username=test"},
    {"Authorization": KEYS["webhook"]},
    {"Authorization": "Bearer " + "x" * 5000},
    {"Authorization": "Bearer é\xff"},
    basic("test", "wrong"),
    basic("somebody", KEYS["webhook"]),
    basic("", KEYS["webhook"]),
]


def test_each_route_opens_to_its_own_scope_alone(app: Flask) -> None:
    client = app.test_client()
    for method, path, scope in routes(app):
        for headers in ({}, bearer_of("wrong"), *JUNK):
            status = client.open(path, method=method, headers=headers).status_code
            assert (status == 401) == (scope != "open"), (method, path, headers)
        for other in SCOPES:
            for headers in (bearer(other), basic("test", KEYS[other])):
                status = client.open(path, method=method, headers=headers).status_code
                # What a viewer may see, an admin may see.
                allowed = scope in {"open", other} or (scope, other) == ("viewer", "admin")
                assert (status == 403) == (not allowed), (method, path, other, status)
                assert status != 401, (method, path, other)


def bearer_of(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_refusal_says_what_to_send_and_never_a_secret(client: FlaskClient) -> None:
    for headers in ({}, bearer_of("wrong"), bearer("admin")):
        answer = client.post("/webhooks/braze", json={}, headers=headers)
        assert answer.get_json()["status"] == "error"
        assert answer.get_json()["errors"]["message"]
        for secret in KEYS.values():
            assert secret not in answer.text


def test_several_keys_of_a_scope_are_live_at_once(make_app: MakeApp) -> None:
    client = make_app(BRIDGE_CONTENT_KEYS="old:first-secret, new:second-secret").test_client()
    path = f"/connected-content/tags?user_id={ALICE}"
    for headers in (
        bearer_of("first-secret"),
        bearer_of("second-secret"),
        basic("new", "second-secret"),
    ):
        assert client.get(path, headers=headers).status_code == 200
    assert client.get(path, headers=basic("old", "second-secret")).status_code == 401


def test_keys_in_the_query_are_refused_loudly(client: FlaskClient) -> None:
    answer = client.get(
        f"/connected-content/tags?user_id={ALICE}&token=x", headers=bearer("content")
    )
    assert answer.status_code == 400
    assert "token" in answer.get_json()["errors"]["message"]


@pytest.mark.parametrize(
    ("allowed", "address", "status"),
    [
        ("10.0.0.0/8", "10.1.2.3", 200),
        ("10.0.0.0/8", "11.1.2.3", 403),
        ("10.0.0.0/8", "::ffff:10.1.2.3", 200),
        ("2001:db8::/32", "2001:db8::7", 200),
        ("2001:db8::/32", "2001:db9::7", 403),
        ("192.0.2.7, 10.0.0.0/8,", "192.0.2.7", 200),
        ("braze-eu", "52.58.142.242", 200),
        ("braze-eu", "23.21.118.191", 403),
        ("braze-us,braze-eu", "23.21.118.191", 200),
    ],
)
def test_only_allowed_addresses_may_look_up(
    make_app: MakeApp, allowed: str, address: str, status: int
) -> None:
    client = make_app(BRIDGE_ALLOWED_IPS=allowed).test_client()
    answer = client.get(
        f"/connected-content/tags?user_id={ALICE}",
        headers=bearer("content"),
        environ_base={"REMOTE_ADDR": address},
    )
    assert answer.status_code == status
    # Probes and people come from elsewhere.
    for path in ("/healthz", "/health"):
        seen: Any = client.get(path, headers=bearer("admin"), environ_base={"REMOTE_ADDR": address})
        assert seen.status_code == 200


@pytest.mark.parametrize(
    ("proxies", "forwarded", "status"),
    [
        ("0", "10.1.2.3", 403),
        ("1", "10.1.2.3", 200),
        ("1", "10.1.2.3, 203.0.113.9", 403),
        ("1", "203.0.113.9, 10.1.2.3", 200),
        ("2", "10.1.2.3, 192.0.2.1", 200),
        ("2", "10.1.2.3", 403),
        ("1", "", 403),
    ],
)
def test_forwarded_addresses_count_for_as_many_proxies_as_are_trusted(
    make_app: MakeApp, proxies: str, forwarded: str, status: int
) -> None:
    client = make_app(BRIDGE_ALLOWED_IPS="10.0.0.0/8", BRIDGE_TRUSTED_PROXIES=proxies).test_client()
    answer = client.get(
        f"/connected-content/tags?user_id={ALICE}",
        headers={**bearer("content"), "X-Forwarded-For": forwarded},
        environ_base={"REMOTE_ADDR": "192.0.2.1"},
    )
    assert answer.status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "/connected-content/tags?user_id=%ff",
        "/connected-content/tags?user_id=a%C0%AFb",
        "/connected-content/tags?external_id=%ED%A0%80",
        "/api/events?customer=%e9",
    ],
)
def test_what_is_no_text_is_not_taken_for_another_customer(client: FlaskClient, path: str) -> None:
    key = bearer("admin" if path.startswith("/api") else "content")
    answer = client.get(path, headers=key)
    assert (answer.status_code, answer.get_json()["status"]) == (400, "error")
    assert "UTF-8" in answer.get_json()["errors"]["message"]


def test_a_path_that_is_no_text_is_refused(client: FlaskClient) -> None:
    # As a server hands the path /priv/v1/apps/bridge/users/%ff/tags over.
    path = "/priv/v1/apps/bridge/users/\xff/tags"
    answer = client.get("/", headers=bearer("content"), environ_overrides={"PATH_INFO": path})
    assert (answer.status_code, answer.get_json()["errors"]["code"]) == (400, "invalid_encoding")
