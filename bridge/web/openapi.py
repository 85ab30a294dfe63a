"""`/openapi.json`, the description of the HTTP interface, and `/docs`, the same as a page.

Paths, methods and scopes come from the application's routes, parameters and answers from the
decorators of the views (`bridge.web.operation`), and texts from their docstrings.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from flask import Blueprint, Flask, Response, current_app
from markupsafe import Markup, escape
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from bridge import __version__
from bridge.fields import MAX_TEXT, REQUIRED_SCHEMA
from bridge.lookups.models import ANSWERS
from bridge.web import shapes
from bridge.web.auth import scope, scope_of
from bridge.web.operation import CSV, FORM, PAGE, Operation, operation_of, path_example
from bridge.web.pages import base_url, page

bp = Blueprint("openapi", __name__)

Schema = dict[str, Any]

_ABOUT = f"""\
The bridge between Braze and SessionM: webhooks become SessionM tags, Connected Content gets tags
and offers from a cache.

**Keys.** Except for a few open ones, every operation needs a key of its scope, as
`Authorization: Bearer SECRET` or as `Basic` of `name:secret`.

**Text.** Parameters and fields of type string have at most {MAX_TEXT} characters on one line.
Spaces and invisible characters around a value are ignored, numbers are read as text, and a blank
value or `null` counts as absent. Unrendered Liquid (`{{{{…}}}}`, `{{%…%}}`, `${{…}}`) and control
characters are rejected with a message that names the field.

**Errors** are JSON: `{{"status":"error","errors":{{"code":"…","message":"…"}}}}`. A browser
(`Accept: text/html`) gets 401, 403, 404 and 503 as a page. Every answer has an `X-Request-Id`."""


class _Tag(NamedTuple):
    name: str
    description: str


# Blueprint -> tag of its operations, in the order of the document.
TAGS = {
    "webhooks": _Tag("Webhooks", "Webhooks that Braze sends with a message."),
    "messages": _Tag("Messages", "What SessionM sends for Braze when an offer is awarded."),
    "content": _Tag("Connected Content", "Lookups of Braze while it renders a message."),
    "dropin": _Tag(
        "SessionM paths", "SessionM's own paths: change the host, and keep the template."
    ),
    "batches": _Tag("Batch jobs", "Segments that SessionM's batch jobs tag."),
    "admin": _Tag("Administration", "Events, delivery and the cache of lookups."),
    "customer_api": _Tag("Customers", "What the bridge knows about one customer."),
    "export": _Tag("Administration", "Events, delivery and the cache of lookups."),
    "health": _Tag("Health", "Probes, health and metrics."),
    "openapi": _Tag("Interface", "This document."),
    "dashboard": _Tag("Pages", "For people, in a browser."),
}
# Operations on an accepted event: view -> method.
_EVENT_LINKS = {"show_event": "get", "replay_event": "post", "discard_event": "delete"}
_IN_PATH: dict[str, Schema] = {
    "api_key": {
        "type": "string",
        "const": "bridge",
        "description": "The word `bridge`, or SessionM's api key.",
    },
    "customer_id": {"description": "The customer's identifier in SessionM."},
    "event_id": {"description": "The event's id, from the answer to the webhook."},
    "batch_id": {"description": "The batch's id, from the list of batches."},
    "token": {"description": "The job's token, which cannot be guessed."},
}
_REFUSALS = {
    400: "The request is malformed; the message names the field.",
    401: "The key is missing, wrong or withdrawn.",
    403: "The key is for another scope, or the address may not call.",
    404: "Not found.",
    409: "The present state does not allow it; the message has the reason.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body's type is not supported.",
    416: "The range is outside the file.",
    422: "The request is incomplete or inconsistent; the message names what is missing.",
    429: "SessionM's rate limit is reached.",
    500: "SessionM is unavailable. Braze retries this.",
}
_NO_DATABASE = "The bridge cannot reach its database: nothing was read or changed. Try again."
# 503 by scope.
_UNAVAILABLE = {
    "webhook": "Nothing was stored: `store_unavailable`, the bridge cannot reach its database; or "
    "`queue_full`, its backlog is full. Braze retries by itself, after `Retry-After`.",
    "trigger": "Nothing was stored: `store_unavailable`, the bridge cannot reach its database; or "
    "`queue_full`, its backlog is full. SessionM must send it again.",
}
# Value of `kind` in a route's defaults -> words.
_KINDS = dict.fromkeys(("users", "user_id"), "by user ID") | dict.fromkeys(
    ("external/users", "external_id"), "by external ID"
)
_DONE = {206: "The requested range.", 304: "Not modified."}


_MARKS = {"`{1,2}": "code", r"\*\*": "strong", r"\*": "em"}
# Request headers that a view may read.
_HEADERS: dict[str, Schema] = {
    "Idempotency-Key": {
        "maxLength": MAX_TEXT,
        "description": "Makes a repeat a duplicate, in place of the body's own ID.",
        "example": "send-1-a3f1c2d4",
    },
    "Prefer": {
        "description": "`wait=10`: answer when the event is delivered, in 10 seconds at most.",
        "example": "wait=10",
    },
    "If-None-Match": {
        "description": "The `ETag` of an earlier answer: 304 if nothing has changed.",
        "example": 'W/"5d41402abc4b2a76"',
    },
    "Range": {"description": "`bytes=0-999`: only this part.", "example": "bytes=0-999"},
}


@bp.get("/openapi.json")
@scope("open")
@Operation({200: ()})
def openapi() -> Response:
    """Describe this interface as OpenAPI 3.1."""
    # Unsorted, since the order of paths and fields helps readers.
    body = current_app.json.dumps(_document(), sort_keys=False)
    return Response(body, mimetype="application/json")


@bp.get("/docs")
@scope("open")
@PAGE
def docs() -> Response:
    """Show this interface as a page."""
    return page("docs.html", api=_document())


@bp.app_template_filter()
def prose(text: str) -> Markup:
    """Return *text* as HTML: code in backticks, **strong** and *emphasised* words."""
    html = str(escape(text))
    for mark, element in _MARKS.items():
        html = re.sub(f"{mark}(.+?){mark}", rf"<{element}>\1</{element}>", html)
    return Markup(html)  # noqa: S704 - escaped above


@bp.app_template_filter()
def pretty(value: object) -> str:
    """Return *value* as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def _document() -> Schema:
    base = base_url()
    return {**describe(current_app, base), "servers": [{"url": base}]}


def describe(app: Flask, base: str = "") -> Schema:
    """Return the OpenAPI 3.1 document of *app*'s routes; *base* is the URL in its examples."""
    found = list(operations(app))
    answers = (models for route in found for models in route.operation.answers.values())
    references, schemas = _schemas(frozenset([shapes.Error, *chain.from_iterable(answers)]))
    paths: dict[str, Schema] = {}
    for route in found:
        described = _described(app, route, references, base)
        paths.setdefault(path_of(route.rule), {})[route.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Braze to SessionM bridge",
            "version": __version__,
            "description": _ABOUT,
            "contact": {"name": "The team that runs this bridge"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [tag._asdict() for tag in dict.fromkeys(TAGS.values())],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key's secret."},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "A key's name and secret.",
                },
            },
        },
    }


class DescribedRoute(NamedTuple):
    """One method of a route, and its description."""

    rule: Rule
    method: str
    operation: Operation


def operations(app: Flask) -> Iterator[DescribedRoute]:
    """Yield every described route of *app*."""
    for rule in app.url_map.iter_rules():
        if operation := operation_of(app, rule):
            methods = {"GET"} if operation.is_page else set(rule.methods or ())
            for method in sorted(methods - {"HEAD", "OPTIONS"}):
                yield DescribedRoute(rule, method, operation)


def path_of(rule: Rule) -> str:
    """Return the path of *rule* in OpenAPI's notation."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.rstrip("/")) or "/"


@cache
def _schemas(
    models: frozenset[type[BaseModel]],
) -> tuple[dict[type[BaseModel], Schema], dict[str, Schema]]:
    """Return references to the schemas by model, and the schemas by name."""
    in_order: list[type[BaseModel]] = sorted(models, key=lambda model: model.__name__)
    references, document = models_json_schema(
        [(model, "validation") for model in in_order],
        ref_template="#/components/schemas/{model}",
    )
    return {model: references[(model, "validation")] for model in in_order}, document["$defs"]


def _described(
    app: Flask, route: DescribedRoute, references: Mapping[type[BaseModel], Schema], base: str
) -> Schema:
    """Return one operation of the document."""
    rule, method, operation = route
    key_scope = scope_of(rule.endpoint)
    blueprint, _, name = rule.endpoint.partition(".")
    kind = "_".join(str(value) for value in (rule.defaults or {}).values())
    summary, _, more = (inspect.getdoc(app.view_functions[rule.endpoint]) or name).partition("\n")
    key = (
        "No key is needed."
        if key_scope == "open"
        else f"Needs a key of the scope {_keys_for(key_scope)}."
    )
    parameters = [*_in_path(route), *_in_query(route), *_in_header(route)]
    refused = {*operation.errors, 400}
    if key_scope != "open":
        refused |= {401, 403}
    if parameters:
        # From gunicorn or uvicorn, before the application gets the request.
        refused.add(414)
    tag = TAGS.get(blueprint, TAGS["dashboard"])
    curl = _curl(route, key_scope, base)
    described: Schema = {
        "operationId": re.sub(r"\W", "_", f"{name}_{kind}_{method.lower()}".replace("__", "_")),
        "summary": summary.rstrip(".") + _variant(route),
        "description": f"{_unwrapped(more)}\n\n{key}".strip(),
        "tags": [TAGS["dashboard"].name if operation.is_page else tag.name],
        "parameters": parameters,
        "responses": {
            str(status): _response(
                status, operation, references, key_scope, is_refusal=status in refused
            )
            for status in sorted({*operation.answers, *refused})
        },
        "x-codeSamples": [{"lang": "Shell", "label": "curl", "source": curl}],
    }
    if key_scope != "open":
        described["security"] = [{"bearer": []}, {"basic": []}]
    if content := _request_content(operation, method):
        needed = operation.body_needed or operation.takes_file
        described["requestBody"] = {"required": needed, "content": content}
    return described


def _variant(route: DescribedRoute) -> str:
    """Return what distinguishes *route* from the other routes of its view, or ""."""
    kind = (route.rule.defaults or {}).get("kind", "")
    has_both = not route.operation.is_page and {"GET", "POST"} <= (route.rule.methods or set())
    words = [_KINDS.get(kind, ""), f"by {route.method}" if has_both else ""]
    return "".join(f", {word}" for word in words if word)


def _keys_for(key_scope: str) -> str:
    return "`viewer` or `admin`" if key_scope == "viewer" else f"`{key_scope}`"


def _in_path(route: DescribedRoute) -> list[Schema]:
    given = path_example(route.operation, route.rule)
    return [
        _parameter(name, "path", {**REQUIRED_SCHEMA, "type": "string", **_IN_PATH[name]}, given)
        for name in sorted(route.rule.arguments - set(route.rule.defaults or {}))
    ]


def _in_query(route: DescribedRoute) -> list[Schema]:
    operation, method = route.operation, route.method
    if method == "POST" and operation.query is operation.body:
        return []
    given = operation.query_example(method)
    return [_parameter(name, "query", schema, given) for name, schema in operation.query.items()]


def _in_header(route: DescribedRoute) -> list[Schema]:
    # Only a GET is answered 304.
    names = [
        one for one in route.operation.headers if one != "If-None-Match" or route.method == "GET"
    ]
    shown = {name: _HEADERS[name]["example"] for name in names}
    found = [{"type": "string", **_HEADERS[name]} for name in names]
    return [_parameter(name, "header", one, shown) for name, one in zip(names, found, strict=True)]


def _parameter(
    name: str, where: str, schema: Mapping[str, Any], given: Mapping[str, Any]
) -> Schema:
    found: Schema = {"name": name, "in": where, "required": where == "path"}
    bare = dict(schema)
    if description := bare.pop("description", ""):
        found["description"] = description
    bare.pop("example", None)
    if name in given:
        found["example"] = given[name]
    return {**found, "schema": bare}


def _request_content(operation: Operation, method: str) -> Schema:
    """Return the possible bodies of a request by *method*, by content type."""
    if operation.takes_file:
        properties = {"file": {"type": "string", "format": "binary"}, **operation.query}
        return {
            CSV: {"schema": {"type": "string"}, "example": operation.example.text},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": properties, "required": ["file"]}
            },
        }
    if method != "POST" or operation.body is None:
        return {}
    schema = {
        "type": "object",
        "properties": operation.body,
        "required": list(operation.required),
    }
    content = {"schema": schema, "example": operation.body_example(method)}
    types = ["application/json", *([FORM] if operation.takes_form else [])]
    return dict.fromkeys(types, content)


def _response(
    status: int,
    operation: Operation,
    references: Mapping[type[BaseModel], Schema],
    key_scope: str,
    *,
    is_refusal: bool,
) -> Schema:
    models = list(operation.answers.get(status, ()))
    sentences = [_sentence(model) if status != 503 else _when_503(model) for model in models]
    if is_refusal and models != [shapes.Error]:
        models.append(shapes.Error)
        sentences.append(_REFUSALS.get(status) or _UNAVAILABLE.get(key_scope, _NO_DATABASE))
    schemas = [references[model] for model in models]
    response: Schema = {
        "description": " Or: ".join(sentences) or _DONE.get(status, "The document."),
        "headers": {
            name: {"schema": {"type": "string"}, "required": is_always_there}
            for name, is_always_there in _headers(status, models).items()
        },
    }
    if shapes.Accepted in models:
        response["links"] = {
            name: {
                "operationId": f"{name}_{method}",
                "parameters": {"event_id": "$response.body#/id"},
            }
            for name, method in _EVENT_LINKS.items()
        }
    content: Schema = {}
    if schemas:
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        content["application/json"] = {"schema": schema}
    if operation.is_page or (not schemas and status in {200, 206}):
        answer = operation.example.answer
        content[operation.mimetype] = {"schema": {}, **({"example": answer} if answer else {})}
    return {**response, **({"content": content} if content else {})}


def _headers(status: int, models: list[type[BaseModel]]) -> dict[str, bool]:
    """Return the headers of a response: name -> whether it is always present."""
    headers = {"X-Request-Id": status != 414}
    if status == 401:
        headers["WWW-Authenticate"] = True
    if status in {429, 503} and models == [shapes.Error]:
        headers["Retry-After"] = False
    if status in {200, 304, 503} and not set(ANSWERS.values()).isdisjoint(models):
        # A lookup that is unavailable has no age.
        headers |= {"Cache-Status": True, "Age": False, "ETag": False}
    return headers


def _curl(route: DescribedRoute, key_scope: str, base: str) -> str:
    """Return the operation's example as a command."""
    rule, method, operation = route
    path = path_of(rule).format_map(path_example(operation, rule))
    query = urlencode(operation.query_example(method))
    lines = [f"curl '{base}{quote(path)}{'?' if query else ''}{query}'"]
    if method == "DELETE":
        lines.append("-X DELETE")
    if key_scope != "open":
        lines.append(f'-H "Authorization: Bearer ${key_scope.upper()}_SECRET"')
    if method == "POST":
        lines += _curl_body(operation, operation.body_example(method))
    return " \\\n  ".join(lines)


def _curl_body(operation: Operation, fields: Mapping[str, Any] | None) -> list[str]:
    if operation.takes_file:
        return ["-H 'Content-Type: text/csv'", "--data-binary @segment.csv"]
    if fields is None:
        return ["-X POST"]
    body = json.dumps(fields, ensure_ascii=False)
    return ["-H 'Content-Type: application/json'", f"-d '{body}'"]


def _when_503(model: type[BaseModel]) -> str:
    if model is shapes.Health:
        return "`status` is `down`: events cannot be stored."
    return (
        "`status` is `unavailable`: SessionM failed and no usable answer is cached, and the call "
        "has `on_error=retry`, so that Braze's `:retry` tries again. Without it, this is a 200."
    )


def _sentence(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or model.__name__).split("\n", maxsplit=1)[0]


def _unwrapped(text: str) -> str:
    """Return *text* with each paragraph on one line."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)
