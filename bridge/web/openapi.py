"""`/openapi.json`: the interface, for tools. Shapes come from the models, paths from the routes."""

import inspect
import re
from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bridge.intake.payload import MAX_TAGS
from bridge.lookups.models import ANSWERS
from bridge.lookups.query import MOST_OFFERS, PARAMETERS
from bridge.version import VERSION
from bridge.web.auth import scope, scope_of

bp = Blueprint("openapi", __name__)

_TEXT = {"type": "string"}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "user_id": {"description": "SessionM's id; wins over external_id", "schema": _TEXT},
    "external_id": {"description": "the id in the retailer's system", "schema": _TEXT},
    "on_error": {
        "description": "if SessionM fails: 200 with empty lists, or 503 for Braze's :retry",
        "schema": {"type": "string", "enum": ["empty", "retry"], "default": "empty"},
    },
    "culture": {"schema": {"type": "string", "default": "en-US"}},
    "limit": {"schema": {"type": "integer", "minimum": 1, "maximum": MOST_OFFERS, "default": 20}},
    "sort": {"schema": {"type": "string", "enum": ["expiry", "-expiry"]}},
    "type": {"description": "only offers of this offer_type", "schema": _TEXT},
    "category": {"description": "only offers of this category, name or id", "schema": _TEXT},
    "group": {"description": "only offers of this group, name or id", "schema": _TEXT},
    "fields": {"description": "only these fields of an offer, by commas", "schema": _TEXT},
}
_WEBHOOK = {
    "type": "object",
    "description": "A campaign or Canvas ID, or tags; and a customer.",
    "properties": {
        "braze_campaign_id": _TEXT,
        "braze_canvas_id": _TEXT,
        "user_id": _TEXT,
        "external_id": _TEXT,
        "tags": {"type": "array", "items": _TEXT, "maxItems": MAX_TAGS},
        "ttl": {"description": "seconds, or 30d", "type": ["integer", "string"]},
        "dispatch_id": _TEXT,
    },
}
_ERROR = {
    "type": "object",
    "required": ["status", "errors"],
    "properties": {
        "status": {"const": "error"},
        "errors": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": _TEXT, "message": _TEXT},
        },
    },
}
_OBJECT = {"type": "object"}
_METRICS = {"description": "Prometheus", "content": {"text/plain": {"schema": _TEXT}}}
# For people; no tool reads what they answer.
_PAGES = {"pages", "dashboard", "events", "setup"}
_PAGE = {"description": "a page", "content": {"text/html": {}}}


@bp.get("/openapi.json")
@scope("open")
def openapi() -> Response:
    return jsonify(describe(current_app))


@cache
def _schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    """Lookup -> reference to its schema; and all schemas by name."""
    wanted: list[tuple[type[BaseModel], Any]] = [
        (model, "serialization") for model in ANSWERS.values()
    ]
    references, document = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    by_lookup = {lookup: references[(model, "serialization")] for lookup, model in ANSWERS.items()}
    return by_lookup, {**document["$defs"], "Error": _ERROR, "Webhook": _WEBHOOK}


def describe(app: Flask) -> dict[str, Any]:
    """The OpenAPI 3.1 document of *app*'s routes."""
    paths: dict[str, Any] = {}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = _operation(
                app, rule.endpoint, method, rule.arguments - set(rule.defaults or {})
            )
            paths.setdefault(path, {})[method.lower()] = operation
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


def _operation(app: Flask, endpoint: str, method: str, in_path: set[str]) -> dict[str, Any]:
    wanted = scope_of(endpoint)
    blueprint, _, name = endpoint.partition(".")
    lookup = name if blueprint == "content" else ""
    operation: dict[str, Any] = {
        "operationId": f"{name}_{method.lower()}",
        "summary": _summary(app, endpoint, name),
        "tags": [blueprint],
        "parameters": [
            {"name": one, "in": "path", "required": True, "schema": _TEXT}
            for one in sorted(in_path)
        ],
        "responses": {
            "200": _PAGE if blueprint in _PAGES else _json(_schemas()[0].get(lookup, _OBJECT)),
            **_errors(wanted),
        },
    }
    if wanted != "open":
        operation["security"] = [{"bearer": []}, {"basic": []}]
    if lookup and method == "GET":
        operation["parameters"] += [
            {"name": one, "in": "query", **_PARAMETERS[one]} for one in sorted(PARAMETERS[lookup])
        ]
    if endpoint == "health.metrics":
        operation["responses"]["200"] = _METRICS
    if name == "braze":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Webhook"}}},
        }
        operation["responses"]["202"] = _json(_OBJECT)
    return operation


def _summary(app: Flask, endpoint: str, name: str) -> str:
    told = inspect.getdoc(app.view_functions[endpoint]) or name.replace("_", " ")
    return told.split("\n", maxsplit=1)[0]


def _errors(wanted: str) -> dict[str, Any]:
    error = _json({"$ref": "#/components/schemas/Error"})
    statuses = ["503"] if wanted == "open" else ["400", "401", "403", "503"]
    return dict.fromkeys(statuses, error)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "JSON", "content": {"application/json": {"schema": schema}}}
