"""`/openapi.json`: the interface, for tools.

Paths, methods and scopes are read off the application's routes. What comes in is described by the
tables that intake and lookups read it with, what goes out by models that the tests hold every
answer against. What a route takes and answers stands in `ROUTES`.
"""

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from bridge.fields import MAX_TEXT, REQUIRED_SCHEMA
from bridge.intake.payload import FIELDS, TAG_FIELDS
from bridge.lookups.models import ANSWERS
from bridge.lookups.query import PARAMETERS
from bridge.outbox.batch import MOST_SPLIT, SPLIT
from bridge.outbox.events import MOST_A_PAGE, PAGE, REPLAYABLE
from bridge.outbox.search import FILTERS
from bridge.version import VERSION
from bridge.web import shapes
from bridge.web.auth import Scope, scope, scope_of

bp = Blueprint("openapi", __name__)

Schema = dict[str, Any]
Fields = dict[str, Schema]


@dataclass(frozen=True)
class Route:
    """What a view takes and answers, its scope's refusals apart.

    Attributes:
        answers: status -> the models of which the answer is one; none: no body to speak of.
        errors: further statuses, each with an error in the one shape.
        query: parameter -> JSON schema.
        body: field -> JSON schema of a JSON body's fields.
        body_needed: whether there must be a body.
        required: the fields that it must have.
        mimetype: of an answer that has no model.
        takes_file: whether the body is a CSV file, or a form with one.
    """

    answers: dict[int, tuple[type[BaseModel], ...]]
    errors: tuple[int, ...] = ()
    query: Fields = field(default_factory=dict)
    body: Fields | None = None
    body_needed: bool = True
    required: tuple[str, ...] = ()
    mimetype: str = "application/json"
    takes_file: bool = False


_EVENT_FILTERS = {
    **FILTERS,
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST_A_PAGE, "default": PAGE},
    "before": {"type": "string", "description": "`next` of the page before"},
}
# What can be done next with an event that was accepted: view -> method.
_EVENT_LINKS = {"show_event": "get", "replay_event": "post", "discard_event": "delete"}
_WAIT = {"wait": {"type": "integer", "minimum": 0, "description": "seconds; more than 60 are 60"}}
_BATCH_PAGE: Fields = {name: _EVENT_FILTERS[name] for name in ("limit", "before")}
_TEXT: Schema = {"type": "string", "maxLength": MAX_TEXT}
_FILE_OPTIONS: Fields = {
    "tag": {**_TEXT, "description": "for every row of a file that names no tags"},
    "ttl": {**_TEXT, "description": "whole days, such as 30d; without it the tag counts"},
    "id_column": {**_TEXT, "description": "which column holds the customer"},
    "id_kind": {"type": "string", "enum": ["user_id", "external_id"]},
    "split": {"type": "integer", "minimum": 1, "maximum": MOST_SPLIT, "default": SPLIT},
    "name": _TEXT,
    "again": {
        "type": "boolean",
        "default": False,
        "description": "count once more the rows of a file that was submitted not long ago",
    },
    "dry_run": {"type": "boolean", "default": False},
}
_NOTIFIED: Fields = {name: {"type": "string"} for name in ("token", "id", "status", "request_id")}
_FILES = {
    "text/csv": {"schema": {"type": "string"}},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"file": {"type": "string", "format": "binary"}, **_FILE_OPTIONS},
            "required": ["file"],
        }
    },
}
_CUSTOMER = {name: FIELDS[name] for name in ("user_id", "external_id")}
_BODY_ERRORS = (400, 413, 415)


def _lookup(name: str) -> Route:
    # 503 is on_error=retry, with the same body.
    answers: dict[int, tuple[type[BaseModel], ...]]
    answers = {200: (ANSWERS[name],), 304: (), 503: (ANSWERS[name],)}
    return Route(
        answers, _BODY_ERRORS, query=PARAMETERS[name], body=PARAMETERS[name], body_needed=False
    )


ROUTES: dict[str, Route] = {
    "webhooks.braze": Route(
        {202: (shapes.Accepted,), 200: (shapes.Duplicate, shapes.Delivered)},
        (*_BODY_ERRORS, 422, 503),
        query=_WAIT,
        body=FIELDS,
    ),
    "content.tags": _lookup("tags"),
    "content.offers": _lookup("offers"),
    "content.customer": _lookup("customer"),
    "dropin.write_tags": Route(
        {200: (shapes.TagsTaken,)},
        (*_BODY_ERRORS, 404, 422, 503),
        body=TAG_FIELDS,
        required=("tags",),
    ),
    "dropin.read_tags": Route({200: (shapes.FromSessionM,)}, (400, 404, 500)),
    "dropin.get_user_offers": Route(
        {200: (shapes.FromSessionM,)},
        (*_BODY_ERRORS, 404, 500),
        body={"user_id": REQUIRED_SCHEMA, "retailer_id": {}},
        required=("user_id",),
    ),
    "dropin.batch": Route(
        {200: (shapes.FromSessionM,), 202: (shapes.JobUncertain,)},
        (*_BODY_ERRORS, 404, 422, 429, 500),
        body={"tags": {"type": "object"}},
        required=("tags",),
    ),
    "health.healthz": Route({200: (shapes.Ok,)}),
    "health.readyz": Route({200: (shapes.Ok,)}, (503,)),
    "health.health": Route({200: (shapes.Health,), 503: (shapes.Health,)}),
    "health.metrics": Route({200: ()}, (503,), mimetype="text/plain"),
    "openapi.openapi": Route({200: ()}),
    "dashboard.home": Route({200: ()}, (503,), mimetype="text/html"),
    "dashboard.dashboard": Route({200: ()}, (503,), mimetype="text/html"),
    "setup.setup": Route({200: ()}, (400, 503), mimetype="text/html"),
    "setup.preview": Route({200: ()}, (400, 413, 415, 503), mimetype="text/html"),
    "admin.list_events": Route({200: (shapes.EventList,)}, (400, 503), query=_EVENT_FILTERS),
    "admin.show_event": Route({200: (shapes.OneEvent,)}, (404, 503)),
    "admin.replay_event": Route({200: (shapes.Replayed,)}, (404, 409, 503)),
    "admin.discard_event": Route({200: (shapes.Discarded,)}, (404, 409, 503)),
    "admin.replay_events": Route(
        {200: (shapes.Replayed,)},
        (*_BODY_ERRORS, 422, 503),
        body={
            **FILTERS,
            "state": {"enum": [*REPLAYABLE, "", None]},
            "dry_run": {"type": "boolean", "default": False},
        },
        body_needed=False,
    ),
    "batches.submit": Route(
        {202: (shapes.FileTaken,), 200: (shapes.FileTaken,)},
        (*_BODY_ERRORS, 409, 422, 503),
        query=_FILE_OPTIONS,
        takes_file=True,
    ),
    "batches.list_batches": Route({200: (shapes.BatchList,)}, (400, 503), query=_BATCH_PAGE),
    "batches.show": Route({200: (shapes.OneBatch,)}, (404, 503)),
    "batches.refused": Route({200: ()}, (404, 503), mimetype="text/csv"),
    "batches.resubmit": Route({200: (shapes.Resubmitted,)}, (404, 409, 503)),
    "batches.discard": Route({200: (shapes.JobsDiscarded,)}, (404, 409, 503)),
    "batches.file": Route({200: (), 206: ()}, (404, 416, 503), mimetype="text/csv"),
    "batches.notification": Route(
        {200: (shapes.Ok,)},
        (*_BODY_ERRORS, 404, 422, 503),
        query=_NOTIFIED,
        body=_NOTIFIED,
        body_needed=False,
    ),
    "admin.pause": Route({200: (shapes.DeliveryState,)}, (503,)),
    "admin.resume": Route({200: (shapes.DeliveryState,)}, (503,)),
    "admin.forget_lookups": Route({200: (shapes.Ok,)}, (400, 503), query=_CUSTOMER),
}
# What only the pages themselves lead to; no program calls it.
OF_PAGES = {
    *("pages.assets", "dashboard.order_delivery"),
    *("events.search", "events.show", "events.order_one", "events.order_all"),
}


@bp.get("/openapi.json")
@scope("open")
def openapi() -> Response:
    return jsonify(describe(current_app))


def describe(app: Flask) -> Schema:
    """The OpenAPI 3.1 document of *app*'s routes."""
    paths: dict[str, Schema] = {}
    for rule in app.url_map.iter_rules():
        if rule.endpoint in OF_PAGES:
            continue
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(app, rule, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Braze to SessionM bridge", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": _schemas()[1],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }


@cache
def _schemas() -> tuple[dict[type[BaseModel], Schema], dict[str, Schema]]:
    """Model -> reference to its schema; and all schemas by name."""
    models = {shapes.Error} | {
        model for route in ROUTES.values() for some in route.answers.values() for model in some
    }
    in_order = sorted(models, key=lambda model: model.__name__)
    references, document = models_json_schema(
        [(model, "validation") for model in in_order],
        ref_template="#/components/schemas/{model}",
    )
    return {model: references[(model, "validation")] for model in in_order}, document["$defs"]


def _operation(app: Flask, rule: Rule, method: str) -> Schema:
    endpoint = rule.endpoint
    blueprint, _, name = endpoint.partition(".")
    route, wanted = ROUTES.get(endpoint, Route({200: ()})), scope_of(endpoint)
    in_path = sorted(rule.arguments - set(rule.defaults or {}))
    of_kind = "_".join(str(value) for value in (rule.defaults or {}).values())
    operation: Schema = {
        "operationId": re.sub(r"\W", "_", f"{name}_{of_kind}_{method.lower()}".replace("__", "_")),
        "summary": _summary(app, endpoint, name),
        "tags": [blueprint],
        "parameters": [
            {"name": one, "in": "path", "required": True, "schema": _in_path(one)}
            for one in in_path
        ],
        "responses": _responses(route, wanted, long_url=bool(in_path or route.query)),
    }
    if wanted != "open":
        operation["security"] = [{"bearer": []}, {"basic": []}]
    # What may come in the query or in the body comes in the body of a POST.
    if method != "POST" or route.query is not route.body:
        operation["parameters"] += [
            {"name": one, "in": "query", "schema": schema} for one, schema in route.query.items()
        ]
    if route.takes_file:
        operation["requestBody"] = {"required": True, "content": _FILES}
    if method == "POST" and route.body is not None:
        schema = {
            "type": "object",
            "properties": route.body,
            "required": list(route.required),
        }
        operation["requestBody"] = {
            "required": route.body_needed,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _in_path(name: str) -> Schema:
    if name == "api_key":
        return {"type": "string", "const": "bridge"}
    return {**REQUIRED_SCHEMA, "type": "string"}


def _summary(app: Flask, endpoint: str, name: str) -> str:
    told = inspect.getdoc(app.view_functions[endpoint]) or name.replace("_", " ")
    return told.split("\n", maxsplit=1)[0]


def _responses(route: Route, wanted: Scope, *, long_url: bool) -> Schema:
    refusals: tuple[int, ...] = () if wanted == "open" else (401, 403)
    if long_url:
        # From the server itself, which hands no such request on.
        refusals = (*refusals, 414)
    found: dict[int, list[type[BaseModel]]] = {}
    for status in (400, *refusals, *route.errors):
        found.setdefault(status, []).append(shapes.Error)
    for status, models in route.answers.items():
        found.setdefault(status, []).extend(models)
    return {
        str(status): _response(status, models, route) for status, models in sorted(found.items())
    }


def _response(status: int, models: list[type[BaseModel]], route: Route) -> Schema:
    references = [_schemas()[0][model] for model in models]
    links = {
        name: {"operationId": f"{name}_{method}", "parameters": {"event_id": "$response.body#/id"}}
        for name, method in _EVENT_LINKS.items()
        if shapes.Accepted in models
    }
    response: Schema = {
        "description": " or ".join(model.__name__ for model in models) or "as the path says",
        "headers": {
            name: {"schema": {"type": "string"}, "required": required}
            for name, required in _headers(status, models).items()
        },
        **({"links": links} if links else {}),
    }
    if references:
        schema = references[0] if len(references) == 1 else {"anyOf": references}
        response["content"] = {"application/json": {"schema": schema}}
    if route.mimetype == "text/html" or (not references and status in {200, 206}):
        response.setdefault("content", {})[route.mimetype] = {"schema": {}}
    return response


def _headers(status: int, models: list[type[BaseModel]]) -> dict[str, bool]:
    """The headers of a response, and whether each is always there."""
    headers = {"X-Request-Id": status != 414}
    if status == 401:
        headers["WWW-Authenticate"] = True
    if status in {429, 503} and models == [shapes.Error]:
        headers["Retry-After"] = False
    if status in {200, 304, 503} and not set(ANSWERS.values()).isdisjoint(models):
        # An unavailable one has no age.
        headers |= {"Cache-Status": True, "Age": False, "ETag": False}
    return headers
