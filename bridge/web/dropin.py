"""SessionM's own paths: an existing template works after only its host is changed."""

import hmac
import logging
import math
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request

from bridge import clock
from bridge.customer import DEMO_USER_ID, Customer, CustomerKind
from bridge.fields import REQUIRED_SCHEMA, TEXT_SCHEMA, FieldError
from bridge.intake.payload import TAG_FIELDS, RefusedError, as_sent
from bridge.lookups.cache import Served, UnavailableError
from bridge.lookups.query import read_culture, read_customer
from bridge.parts import parts_of
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.storage.database import StoreUnavailableError
from bridge.web.auth import scope
from bridge.web.body import body_fields, lookup_fields, read_body
from bridge.web.content import cache_status
from bridge.web.counting import allow_reuse
from bridge.web.errors import error
from bridge.web.operation import BODY_ERRORS, Example, Operation
from bridge.web.shapes import JobUncertain, SessionMJob, SessionMOffers, SessionMTags, TagsAccepted
from bridge.web.threads import exchange_of
from bridge.web.webhooks import received_request

log = logging.getLogger(__name__)

bp = Blueprint("dropin", __name__)

_APP = "/priv/v1/apps/<api_key>"
_KINDS: dict[str, CustomerKind] = {"users": "user_id", "external/users": "external_id"}
# Seconds for SessionM's answer to a batch job.
BATCH_TIMEOUT = 30.0
# SessionM's own status for an error; Braze does not count it towards an unhealthy host.
UNAVAILABLE = 500
# SessionM's statuses of a refusal that are passed on; any other, such as 200, becomes 422.
_REFUSALS = {400, 404, 422}
_CUSTOMER = {
    "api_key": "bridge",
    "customer_id": {
        "users": DEMO_USER_ID,
        "external/users": "loyal-1001",
    },
}


@bp.post(f"{_APP}/users/<path:customer_id>/tags/", defaults={"kind": "users"})
@bp.post(f"{_APP}/external/users/<path:customer_id>/tags/", defaults={"kind": "external/users"})
@scope("webhook")
@Operation(
    {200: (TagsAccepted,)},
    (*BODY_ERRORS, 404, 422, 503),
    body=TAG_FIELDS,
    headers=("Idempotency-Key",),
    required=("tags",),
    takes_form=True,
    example=Example(_CUSTOMER, json={"tags": ["summer_guest"], "ttl": 2592000}),
)
def write_tags(api_key: str, kind: str, customer_id: str) -> Response:
    """Write tags by SessionM's own path.

    Stored and delivered like a webhook. The answer has the customer's tags as last known, like
    SessionM's, and the event's `id`.
    """
    _check_key(api_key)
    parts = parts_of(current_app)
    customer = Customer(_KINDS[kind], customer_id)
    acceptance = parts.acceptor.accept(received_request(customer))
    tags = parts.lookups.last_tags(Customer.of_sessionm(acceptance.event.customer) or customer)
    return jsonify(status="ok", tags=tags, id=acceptance.id)


@bp.get(f"{_APP}/users/<path:customer_id>/tags/", defaults={"kind": "users"})
@bp.get(f"{_APP}/external/users/<path:customer_id>/tags/", defaults={"kind": "external/users"})
@scope("content")
@Operation({200: (SessionMTags,)}, (400, 404, 500), example=Example(_CUSTOMER))
def read_tags(api_key: str, kind: str, customer_id: str) -> Response:
    """Read tags by SessionM's own path.

    Cached; the body is SessionM's, unchanged. 500 means that SessionM is unavailable: Braze
    retries it, and does not count it towards an unhealthy host.
    """
    _check_key(api_key)
    lookups, customer = parts_of(current_app).lookups, read_customer({_KINDS[kind]: customer_id})
    served = lookups.raw_tags(customer, exchange_of(request.environ).arrived)
    if validity := lookups.raw_validity(customer, served):
        allow_reuse(validity, (served.entry.body,))
    return _unchanged(served)


@bp.post("/offers/api/2.0/offers/get_user_offers")
@scope("content")
@Operation(
    {200: (SessionMOffers,)},
    (*BODY_ERRORS, 404, 500),
    body={
        "user_id": {**REQUIRED_SCHEMA, "description": "The customer's ID in SessionM."},
        "retailer_id": {"description": "Ignored: the bridge sends its own."},
        "culture": {**TEXT_SCHEMA, "description": "`en-US` by default."},
    },
    required=("user_id",),
    example=Example(
        json={"user_id": "00000000-0000-0000-0000-000000000000", "culture": "en-US"},
    ),
)
def get_user_offers() -> Response:
    """Read offers by SessionM's own path.

    Cached; the body is SessionM's, unchanged. `retailer_id` may be left out.
    """
    parts = parts_of(current_app)
    if not parts.settings.offers_on:
        return error(
            UNAVAILABLE, "offers_off", "Offers are switched off: set SESSIONM_CONNECT_URL."
        )
    fields = lookup_fields(read_body())
    body = as_sent(fields)
    # The Offers API knows no other identifier.
    body["user_id"] = read_customer({"user_id": fields.get("user_id")}).id
    if "culture" in body:
        body["culture"] = read_culture(fields["culture"])
    # The bridge serves one retailer, so it ignores the template's.
    body.pop("retailer_id", None)
    return _unchanged(parts.lookups.raw_offers(body, exchange_of(request.environ).arrived))


@bp.post(f"{_APP}/batch/tags")
@scope("webhook")
@Operation(
    {200: (SessionMJob,), 202: (JobUncertain,)},
    (*BODY_ERRORS, 404, 422, 429, 500),
    body={
        "tags": {
            "type": "object",
            "description": "SessionM's `request_id`, `url`, `md5` and `notify`.",
        }
    },
    required=("tags",),
    example=Example(
        {"api_key": "bridge"},
        json={
            "tags": {
                "request_id": "summer-2026",
                "url": "https://files.example.com/summer.csv",
                "md5": "9e107d9d372bb6826bd81d3542a419d6",
                "notify": "https://files.example.com/done?id=JOB_ID&status=JOB_STATUS",
            }
        },
    ),
)
def batch(api_key: str) -> Response:
    """Submit a batch job by SessionM's own path.

    Passed on to SessionM; the bridge follows the job. 202 `uncertain` means that SessionM may have
    accepted the job: look there before you submit it again.
    """
    _check_key(api_key)
    job = as_sent(body_fields()).get("tags")
    if not isinstance(job, dict):
        raise FieldError("tags", "must be an object with request_id, url, md5 and notify")
    try:
        answer = parts_of(current_app).sessionm.submit_batch(job, BATCH_TIMEOUT)
    except SessionMError as failure:
        return _uncertain(job, failure) if failure.may_have_worked else _refused(failure)
    _follow(job, answer)
    return jsonify(answer)


def _follow(job: dict[str, Any], answer: dict[str, Any]) -> str:
    """Follow a job that SessionM has or may have.

    Returns the id of its batch, or "" if the store is unavailable.
    """
    tags = answer.get("tags")
    known = tags if isinstance(tags, dict) else {}
    try:
        return parts_of(current_app).batches.follow(
            g.key_name, job.get("request_id", ""), known.get("id", "")
        )
    except StoreUnavailableError as failure:
        # An error would make the sender submit the job again.
        log.error("a job is not followed: %s", failure, extra={"action": "batch_not_followed"})
        return ""


def _uncertain(job: dict[str, Any], failure: SessionMError) -> Response:
    """Answer with 2xx, since Braze would submit the job again after an error."""
    batch_id = _follow(job, {})
    response = jsonify(
        status="uncertain",
        message=f"SessionM may have accepted the job: {failure}. Look there before you submit it "
        "again: its counters would count twice.",
        id=batch_id,
        tags={"request_id": job.get("request_id", ""), "status": "unknown"},
    )
    response.status_code = 202
    return response


def _refused(failure: SessionMError) -> Response:
    """Return the error answer for a job that SessionM certainly does not have."""
    if failure.meaning in {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER}:
        status = failure.status if failure.status in _REFUSALS else 422
        return error(status, failure.code.lower() or "refused", f"SessionM said: {failure}.")
    if failure.meaning is Meaning.BUSY:
        after = failure.retry_after
        headers = {} if after is None else {"Retry-After": str(math.ceil(after))}
        return error(
            429, "too_many_requests", f"SessionM did not accept the job: {failure}.", **headers
        )
    if failure.meaning is Meaning.CREDENTIALS:
        return error(UNAVAILABLE, "sessionm_unavailable", _BRIDGE_CREDENTIALS)
    return error(
        UNAVAILABLE, "sessionm_unavailable", f"SessionM did not accept the job: {failure}."
    )


_BRIDGE_CREDENTIALS = (
    "SessionM refuses the bridge's credentials, not yours: the bridge's operator must correct "
    "them (see `bridge check`)."
)


def _check_key(api_key: str) -> None:
    known = parts_of(current_app).settings.sessionm_core_key.get_secret_value()
    if api_key != "bridge" and not hmac.compare_digest(api_key.encode(), known.encode()):
        message = 'The api key in the path must be SessionM\'s, or the word "bridge".'
        raise RefusedError(403, "invalid_api_key", message)


def _unchanged(served: Served) -> Response:
    entry = served.entry
    if entry.found:
        response = Response(entry.body, mimetype="application/json")
    else:
        response = error(404, "user_not_found", "SessionM does not know this customer.")
    ttl = math.floor(served.fresh_until - clock.now())
    status = "ok" if entry.found else "not_found"
    response.headers["Cache-Status"] = cache_status(served.how, ttl, status)
    return response


@bp.errorhandler(UnavailableError)
def _unavailable(failure: UnavailableError) -> Response:
    headers = {"Cache-Status": cache_status("", 0, "unavailable")}
    message = f"SessionM is unavailable: {failure}."
    return error(UNAVAILABLE, "sessionm_unavailable", message, **headers)
