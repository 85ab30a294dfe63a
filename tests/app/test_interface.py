"""openapi.json and /docs: every operation is described, and its example works as it says."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import jsonschema_rs
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.lookups.models import ANSWERS
from bridge.lookups.query import LOOKUPS
from bridge.sandbox import SandboxServer
from bridge.web.openapi import DescribedRoute, describe, operations, path_of
from bridge.web.operation import operation_of, path_example
from bridge.web.shapes import ErrorCode
from tests.app.test_batches import orders
from tests.conftest import ALICE, KEYS, MakeApp, eventually

Document = dict[str, Any]
# One key that opens everything.
EVERYTHING = "the-key-to-everything"
HEADERS = {"Authorization": f"Bearer {EVERYTHING}"}
PUBLIC = "https://bridge.example.com"


@pytest.fixture
def open_app(make_app: MakeApp) -> Flask:
    keys = {f"BRIDGE_{scope.upper()}_KEYS": f"test:{EVERYTHING}" for scope in KEYS}
    return make_app(deliver=True, BRIDGE_PUBLIC_URL=PUBLIC, **keys)


@pytest.fixture
def document(client: FlaskClient) -> Document:
    answer: Document = client.get("/openapi.json").get_json()
    return answer


def described(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


# --- What is said -----------------------------------------------------------------------------


def test_every_operation_has_a_description_and_an_example(document: Document) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    assert all(tag["description"] for tag in document["tags"])
    titles = Counter(one["summary"] for _, one in described(document) if one["tags"] != ["Pages"])
    assert max(titles.values()) == 1, titles
    for where, operation in described(document):
        assert operation["summary"], where
        assert " " in operation["summary"], where
        assert len(operation["description"]) > 15, where
        assert set(operation["tags"]) <= tags, where
        [sample] = operation["x-codeSamples"]
        assert sample["source"].startswith("curl 'http://localhost/"), where
        for one in operation["parameters"]:
            assert one["description"], (where, one["name"])
            assert one["in"] == "query" or one["example"], (where, one["name"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for name, schema in content["schema"].get("properties", {}).items():
                assert name == "file" or "description" in schema, (where, name)


def test_every_answer_of_a_model_is_shown_by_a_right_example(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for where, operation in described(document):
        for status, answer in operation["responses"].items():
            assert answer["description"], (where, status)
            content = answer.get("content", {}).get("application/json", {}).get("schema", {})
            for one in content.get("anyOf", [content]):
                if "$ref" in one:
                    assert schemas[one["$ref"].rpartition("/")[2]]["examples"], one
    for schema in schemas.values():
        validator = jsonschema_rs.Draft202012Validator(
            {"components": document["components"], **schema}
        )
        for example in schema.get("examples", []):
            validator.validate(example)


def test_every_field_of_an_answer_says_what_it_means(document: Document) -> None:
    schemas = document["components"]["schemas"]
    fields = [
        (name, field, schema)
        for name, one in schemas.items()
        for field, schema in one.get("properties", {}).items()
    ]
    assert len(fields) > 200
    assert [(name, field) for name, field, schema in fields if not schema.get("description")] == []


def test_every_code_of_an_error_is_listed() -> None:
    """`not_…` of an event is put together, and HTTP's own names are werkzeug's."""
    source = "".join(path.read_text() for path in Path("bridge").glob("[!s]*/*.py"))
    given = re.findall(r'(?:RefusedError|Refusal|\berror)\(\s*[\w.]+,\s*"([a-z_]+)"', source)
    assert {*given, "too_many_requests"} - {*get_args(ErrorCode)} == set()
    others = {"not_replayed", "bad_request", "not_found", "method_not_allowed"}
    others |= {"requested_range_not_satisfiable"}
    assert {*get_args(ErrorCode)} - {*given} == others


def test_the_document_says_where_the_bridge_is_and_who_may_use_it(make_app: MakeApp) -> None:
    document = make_app(BRIDGE_PUBLIC_URL=PUBLIC).test_client().get("/openapi.json").get_json()
    assert document["servers"] == [{"url": PUBLIC}]
    assert document["info"]["license"]["name"] == "MIT"
    assert document["info"]["contact"]["name"]
    curl = document["paths"]["/webhooks/braze"]["post"]["x-codeSamples"][0]["source"]
    assert f"{PUBLIC}/webhooks/braze" in curl


def test_rules_of_text_are_said_in_words_not_in_patterns(document: Document) -> None:
    assert "pattern" not in str(document["paths"])
    assert "Unrendered Liquid" in document["info"]["description"]


def test_forms_are_named_where_they_are_taken(client: FlaskClient, document: Document) -> None:
    taking = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if "application/x-www-form-urlencoded"
        in operation.get("requestBody", {}).get("content", {})
    }
    assert {"/webhooks/braze", *(f"/connected-content/{name}" for name in LOOKUPS)} <= taking
    for name in LOOKUPS:
        answer = client.post(
            f"/connected-content/{name}",
            data={"user_id": ALICE},
            headers={"Authorization": f"Bearer {KEYS['content']}"},
        )
        assert answer.get_json()["status"] == "ok"


def test_pages_stand_apart(document: Document) -> None:
    for where, operation in described(document):
        is_page = "text/html" in operation["responses"].get("200", {}).get("content", {})
        assert (operation["tags"] == ["Pages"]) == is_page, where


def test_every_route_but_those_of_pages_is_described(app: Flask) -> None:
    rules = list(app.url_map.iter_rules())
    undescribed = {rule.endpoint for rule in rules if operation_of(app, rule) is None}
    assert undescribed == OF_PAGES
    with app.app_context():
        paths = describe(app)["paths"]
    ids = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert len(set(ids)) == len(ids)


# What only the pages themselves lead to.
OF_PAGES = {
    *("pages.assets", "dashboard.order_delivery"),
    *("setup.preview", "setup.frame", "setup.show_progress", "setup.begin_anew"),
    *("events.show", "events.order_one", "events.order_all"),
    *("campaigns.show", "campaigns.show_all", "customers.erase"),
}
# The last two have a job's token in their URL.
OPEN = {
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/marketers",
    "/batches/files/{token}.csv",
    "/webhooks/sessionm/batch",
}


def test_every_guarded_route_names_its_refusals(app: Flask) -> None:
    with app.app_context():
        document = describe(app)
    error = {"$ref": "#/components/schemas/Error"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path in OPEN:
                assert "security" not in operation
                continue
            assert operation["security"] == [{"bearer": []}, {"basic": []}], (path, method)
            for status in ("401", "403"):
                refusal = operation["responses"][status]
                assert refusal["content"]["application/json"]["schema"] == error
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


# --- Each example, run ------------------------------------------------------------------------


def run(client: FlaskClient, route: DescribedRoute, known: dict[str, str]) -> TestResponse:
    """Send the example of *route*; *known* are values that no example can know."""
    rule, method, operation = route

    def expected(given: Any) -> dict[str, Any]:
        return {name: known.get(name, value) for name, value in dict(given or {}).items()}

    body: dict[str, Any] = {}
    if operation.takes_file:
        body = {"data": operation.example.text, "content_type": "text/csv"}
    elif (fields := operation.body_example(method)) is not None and method == "POST":
        body = {"json": expected(fields)}
    return client.open(
        path_of(rule).format_map(expected(path_example(operation, rule))),
        method=method,
        query_string=expected(operation.query_example(method)),
        headers=HEADERS,
        **body,
    )


def _event(client: FlaskClient, _sandbox: SandboxServer) -> dict[str, str]:
    fields = {"user_id": "nobody-yet", "braze_campaign_id": "c1"}
    return {
        "event_id": client.post("/webhooks/braze", json=fields, headers=HEADERS).get_json()["id"]
    }


def _discarded_event(client: FlaskClient, sandbox: SandboxServer) -> dict[str, str]:
    event = _event(client, sandbox)
    assert client.delete(f"/api/events/{event['event_id']}", headers=HEADERS).status_code == 200
    return event


def _delivered_event(client: FlaskClient, _sandbox: SandboxServer) -> dict[str, str]:
    fields = {"user_id": ALICE, "braze_campaign_id": "summer-sale"}
    answer = client.post("/webhooks/braze?wait=30", json=fields, headers=HEADERS)
    assert answer.status_code == 200
    return {}


def _batch(client: FlaskClient, sandbox: SandboxServer) -> dict[str, str]:
    # SessionM has the job for as long as this test runs.
    sandbox.sandbox.set_batches({"delay": 600})
    answer = client.post("/batches", data=f"user_id,tag\n{ALICE},x\n", headers=HEADERS)
    assert answer.status_code == 202
    return {"batch_id": answer.get_json()["id"]}


def _failed_batch(client: FlaskClient, sandbox: SandboxServer) -> dict[str, str]:
    sandbox.sandbox.set_faults({"ok_error": True, "code": "validation", "match": "/batch/"})
    batch = _batch(client, sandbox)

    def has_failed() -> bool:
        shown = client.get(f"/batches/{batch['batch_id']}", headers=HEADERS).get_json()
        return bool(shown["batch"]["state"] == "failed")

    eventually(has_failed)
    return batch


def _order(client: FlaskClient, sandbox: SandboxServer) -> dict[str, str]:
    _batch(client, sandbox)
    [order] = eventually(partial(orders, sandbox))
    return order


def _file(client: FlaskClient, sandbox: SandboxServer) -> dict[str, str]:
    return {"token": Path(urlsplit(_order(client, sandbox)["url"]).path).stem}


def _notification(client: FlaskClient, sandbox: SandboxServer) -> dict[str, str]:
    return {"token": parse_qs(urlsplit(_order(client, sandbox)["notify"]).query)["token"][0]}


# What has to be there before an example can work: view -> what makes it.
BEFORE: dict[str, Callable[[FlaskClient, SandboxServer], dict[str, str]]] = {
    "admin.list_events": _delivered_event,
    "admin.show_event": _event,
    "admin.replay_event": _discarded_event,
    "admin.discard_event": _event,
    "batches.list_batches": _batch,
    "batches.show": _batch,
    "batches.refused": _batch,
    "batches.resubmit": _failed_batch,
    "batches.discard": _batch,
    "batches.file": _file,
    "batches.notification": _notification,
}


def test_the_examples_that_need_no_more_than_the_demo_work(
    open_app: Flask, document: Document
) -> None:
    client = open_app.test_client()
    ran = 0
    for route in _routes(open_app):
        if route.rule.endpoint not in BEFORE:
            _check(run(client, route, {}), route, document)
            ran += 1
    assert ran > 20


@pytest.mark.parametrize("endpoint", BEFORE)
def test_an_example_about_something_works(
    open_app: Flask, sandbox: SandboxServer, document: Document, endpoint: str
) -> None:
    client = open_app.test_client()
    known = BEFORE[endpoint](client, sandbox)
    found = [route for route in _routes(open_app) if route.rule.endpoint == endpoint]
    assert found
    for route in found:
        _check(run(client, route, known), route, document)


def _routes(app: Flask) -> list[DescribedRoute]:
    with app.app_context():
        return list(operations(app))


def _check(answer: TestResponse, route: DescribedRoute, document: Document) -> None:
    """Hold *answer* against the status and the keys of the example that the document shows."""
    where = f"{route.method} {route.rule.rule}"
    assert answer.status_code == route.operation.example.status, (where, answer.text)
    shown = document["paths"][path_of(route.rule)][route.method.lower()]["responses"]
    content = shown[str(answer.status_code)]["content"]
    assert answer.mimetype in content, where
    schema = content[answer.mimetype]["schema"]
    for one in schema.get("anyOf", [schema]):
        if "$ref" in one:
            model = document["components"]["schemas"][one["$ref"].rpartition("/")[2]]
            assert any(set(answer.get_json()) == set(example) for example in model["examples"]), (
                where
            )


# --- /docs ------------------------------------------------------------------------------------


def test_docs_shows_every_operation_and_asks_no_other_host(
    client: FlaskClient, document: Document
) -> None:
    answer = client.get("/docs")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    for _, operation in described(document):
        assert f'id="{operation["operationId"]}"' in answer.text
        assert operation["summary"].replace("'", "&#39;") in answer.text
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in answer.text
    anchors = set(re.findall(r'href="#([^"]+)"', answer.text))
    assert anchors <= set(re.findall(r'id="([^"]+)"', answer.text))
    assert not re.search(r'(src|href)="(https?:)?//', answer.text)
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "<script>" not in answer.text
    assert "style=" not in answer.text


def test_the_page_for_marketers_names_every_field_and_is_reached(client: FlaskClient) -> None:
    page = client.get("/docs/marketers")
    assert page.status_code == 200
    for model in ANSWERS.values():
        for name in model.model_fields:
            assert f"<code>wallet.{name}</code>" in page.text, name
    row = "<code>wallet.first.days_left</code></th><td>Whole days; 9999 without an expiry"
    assert row in page.text
    # The errors are in the words that Braze shows.
    answer = client.post(
        "/webhooks/braze",
        json={"braze_campaign_id": "summer", "userid": "42"},
        headers={"Authorization": f"Bearer {KEYS['webhook']}"},
    )
    assert answer.get_json()["errors"]["message"] in unescape(page.text)
    for path in ("/docs", "/setup"):
        seen = client.get(path, headers={"Authorization": f"Bearer {KEYS['admin']}"}).text
        assert 'href="/docs/marketers"' in seen[seen.index("<main") : seen.index("</main>")]


# --- Lookup names stand in one place ----------------------------------------------------------


def test_lookups_have_the_same_names_everywhere(app: Flask, client: FlaskClient) -> None:
    routes = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("content")}
    assert routes == {f"/connected-content/{name}" for name in LOOKUPS}
    assert set(ANSWERS) == set(LOOKUPS)
    sentence = client.get("/nothing").get_json()["errors"]["message"]
    assert all(f"/connected-content/{name}" in sentence for name in LOOKUPS)
    nginx = (Path(__file__).parents[2] / "deploy/nginx/bridge.conf").read_text()
    [logged] = re.findall(r"connected-content/\(([a-z|]+)\)", nginx)
    assert logged.split("|") == list(LOOKUPS)


# --- Errors for browsers ----------------------------------------------------------------------


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
REFUSED = {
    401: ("/dashboard", {}, "BRIDGE_ADMIN_KEYS"),
    403: ("/dashboard", {"Authorization": f"Bearer {KEYS['content']}"}, "is for content"),
    404: ("/nothing", {}, "misspelt"),
    503: ("/readyz", {}, "bridge check"),
}


@pytest.mark.parametrize("status", REFUSED)
@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [
        (BROWSER, "text/html"),
        ("text/html", "text/html"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        (None, "application/json"),
    ],
)
def test_a_browser_gets_errors_as_pages_and_everybody_else_as_json(
    make_app: MakeApp, tmp_path: Path, status: int, accept: str | None, mimetype: str
) -> None:
    client = make_app().test_client()
    if status == 503:
        (tmp_path / "bridge.db").write_text("no database at all, but long enough to be read" * 90)
    path, headers, says = REFUSED[status]
    answer = client.get(path, headers={**headers, **({"Accept": accept} if accept else {})})
    assert (answer.status_code, answer.mimetype) == (status, mimetype)
    assert "Accept" in answer.vary
    if mimetype == "text/html":
        assert says in answer.text
        assert answer.headers["Content-Security-Policy"]
    else:
        assert answer.get_json()["status"] == "error"
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_what_machines_call_answers_a_browser_with_a_protected_page(client: FlaskClient) -> None:
    answer = client.get("/connected-content/tags", headers={"Accept": BROWSER})
    assert (answer.status_code, answer.mimetype) == (401, "text/html")
    assert answer.headers["Content-Security-Policy"]
    refused = client.post("/webhooks/braze", data="{", headers={"Accept": BROWSER})
    assert refused.status_code == 401
