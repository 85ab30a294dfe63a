"""Connected Content: lookups for Liquid."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, current_app, request

from bridge.fields import FieldError
from bridge.intake.payload import RefusedError, read_fields
from bridge.lookups.customer import Answer
from bridge.lookups.query import Query, read_query
from bridge.parts import parts_of
from bridge.web import fastlane
from bridge.web.auth import scope
from bridge.web.body import read_body, url_fields

bp = Blueprint("content", __name__, url_prefix="/connected-content")

_METHODS = ["GET", "POST"]


@bp.route("/tags", methods=_METHODS)
@scope("content")
def tags() -> Response:
    query = _query("tags")
    return _respond(query, parts_of(current_app).lookups.tags(query))


@bp.route("/offers", methods=_METHODS)
@scope("content")
def offers() -> Response:
    query = _query("offers")
    return _respond(query, parts_of(current_app).lookups.offers(query))


@bp.route("/customer", methods=_METHODS)
@scope("content")
def customer() -> Response:
    query = _query("customer")
    return _respond(query, parts_of(current_app).lookups.customer(query))


def _query(lookup: str) -> Query:
    given: dict[str, Any] = {}
    for fields in (url_fields(), _from_body()):
        for name, value in fields.items():
            if given.setdefault(name, value) != value:
                raise FieldError(name, "is given twice with different values")
    return read_query(lookup, given)


def _from_body() -> Mapping[str, Any]:
    if request.method != "POST":
        return {}
    body = read_body()
    if not body:
        return {}
    try:
        return read_fields(body, request.headers.get("Content-Type", ""))
    except RefusedError as refusal:
        if refusal.status in {413, 415}:
            raise
        raise RefusedError(400, refusal.code, str(refusal)) from None


def _respond(query: Query, answer: Answer) -> Response:
    unavailable = answer.status == "unavailable"
    response = Response(
        answer.body,
        status=503 if unavailable and query.retry else 200,
        mimetype="application/json",
    )
    response.headers["Cache-Status"] = cache_status(answer.how, answer.ttl, answer.status)
    response.headers["Cache-Control"] = "private, max-age=0"
    if not unavailable:
        response.headers["Age"] = str(answer.age)
        response.set_etag(answer.version, weak=True)
        response.make_conditional(request)
        if answer.repeat:
            before, _, after = answer.body.partition(_AGE)
            after = after.lstrip(b"0123456789")
            fastlane.offer(answer.repeat, (before + _AGE, after))
    return response


# Nothing before it in an answer can look like it: inside of a text, quotes are escaped.
_AGE = b',"age":'


def cache_status(how: str, ttl: int, status: str) -> str:
    """What the cache did, by RFC 9211; a stale hit has a negative ttl."""
    if not how:
        return "bridge; fwd=miss; detail=unavailable"
    told = f"bridge; hit; ttl={ttl}" if how != "miss" else f"bridge; fwd=miss; stored; ttl={ttl}"
    return told if status == "ok" else f"{told}; detail={status}"
