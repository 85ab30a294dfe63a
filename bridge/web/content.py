"""Connected Content: lookups for Liquid."""

from flask import Blueprint, Response, current_app, request

from bridge.customer import DEMO_USER_ID
from bridge.lookups.customer import LookupAnswer
from bridge.lookups.models import ANSWERS
from bridge.lookups.query import PARAMETERS, Query, read_query
from bridge.parts import parts_of
from bridge.web.auth import scope
from bridge.web.body import all_fields
from bridge.web.counting import allow_reuse
from bridge.web.operation import BODY_ERRORS, Example, Operation
from bridge.web.threads import exchange_of

bp = Blueprint("content", __name__, url_prefix="/connected-content")

_METHODS = ["GET", "POST"]


def _lookup(name: str, **more: str) -> Operation:
    model, parameters = ANSWERS[name], PARAMETERS[name]
    return Operation(
        # 503 is on_error=retry, with the same body.
        {200: (model,), 304: (), 503: (model,)},
        BODY_ERRORS,
        query=parameters,
        body=parameters,
        headers=("If-None-Match",),
        body_needed=False,
        takes_form=True,
        example=Example(query={"user_id": DEMO_USER_ID, **more}),
    )


@bp.route("/tags", methods=_METHODS)
@scope("content")
@_lookup("tags")
def tags() -> Response:
    """Look up a customer's tags.

    Always one JSON object with the same keys. `status` is `ok`, `not_found` or `unavailable`.
    `pending` has the tags that the bridge has accepted but not delivered yet.
    """
    query = read_query("tags", all_fields())
    return _respond(query, parts_of(current_app).lookups.tags(query, _arrived()))


@bp.route("/offers", methods=_METHODS)
@scope("content")
@_lookup("offers", limit="1", sort="expiry", fields="title,expires_at")
def offers() -> Response:
    """Look up a customer's offers and points.

    Always one JSON object with the same keys. Expired offers are left out. Each offer has the
    fields below and every field that SessionM sent with a value.
    """
    query = read_query("offers", all_fields())
    return _respond(query, parts_of(current_app).lookups.offers(query, _arrived()))


@bp.route("/customer", methods=_METHODS)
@scope("content")
@_lookup("customer", limit="1", sort="expiry", fields="title,expires_at")
def customer() -> Response:
    """Look up a customer's tags, offers and points in one call.

    The answer has the keys of both lookups. `count` is the number of offers, `tags_count` the
    number of tags, and `parts` the status of each of the two lookups.
    """
    query = read_query("customer", all_fields())
    return _respond(query, parts_of(current_app).lookups.customer(query, _arrived()))


def _arrived() -> float:
    return exchange_of(request.environ).arrived


def _respond(query: Query, answer: LookupAnswer) -> Response:
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
        if answer.validity:
            before, _, after = answer.body.partition(_AGE)
            after = after.lstrip(b"0123456789")
            allow_reuse(answer.validity, (before + _AGE, after))
    return response


# Only the key matches this: quotes in a text are escaped.
_AGE = b',"age":'


def cache_status(how: str, ttl: int, status: str) -> str:
    """Return the header Cache-Status (RFC 9211).

    Args:
        how: ``hit``, ``stale``, ``miss``, ``collapsed``, or "" without an answer.
        ttl: seconds for which the answer is fresh; negative for a stale hit.
        status: of the lookup.
    """
    if not how:
        return "bridge; fwd=miss; detail=unavailable"
    forwarded = {"miss": "fwd=miss; stored", "collapsed": "fwd=miss; collapsed"}
    done = f"bridge; {forwarded.get(how, 'hit')}; ttl={ttl}"
    return done if status == "ok" else f"{done}; detail={status}"
