"""SessionM's own paths, so that a template keeps working when only its host is changed."""

import hmac
import logging
import math
import time
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request

from bridge.customer import Customer, CustomerKind
from bridge.database import StoreUnavailableError
from bridge.fields import FieldError, identifier, required
from bridge.intake.payload import RefusedError, as_sent, read_fields
from bridge.lookups.cache import Served, UnavailableError
from bridge.parts import parts_of
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.web import fastlane
from bridge.web.auth import scope
from bridge.web.body import read_body
from bridge.web.content import cache_status
from bridge.web.errors import error
from bridge.web.webhooks import arrival

log = logging.getLogger(__name__)

bp = Blueprint("dropin", __name__)

_APP = "/priv/v1/apps/<api_key>"
_KINDS: dict[str, CustomerKind] = {"users": "user_id", "external/users": "external_id"}
# As long as Braze waits for a webhook is too long for a batch job to be taken.
BATCH_TIMEOUT = 30.0
# SessionM's answer when it cannot; Braze does not count it towards halting the host.
NOT_NOW = 500
# Statuses of refusals that are passed on; a refusal with any other, 200 among them, is a 422.
_REFUSALS = {400, 404, 422}


@bp.post(f"{_APP}/users/<path:customer_id>/tags", defaults={"kind": "users"})
@bp.post(f"{_APP}/external/users/<path:customer_id>/tags", defaults={"kind": "external/users"})
@scope("webhook")
def write_tags(api_key: str, kind: str, customer_id: str) -> Response:
    if refusal := _wrong_key(api_key):
        return refusal
    parts = parts_of(current_app)
    receipt = parts.acceptor.accept(arrival(Customer(_KINDS[kind], customer_id)))
    tags = parts.lookups.last_tags(receipt.customer)
    return jsonify(status="ok", tags=tags, id=receipt.id)


@bp.get(f"{_APP}/users/<path:customer_id>/tags", defaults={"kind": "users"})
@bp.get(f"{_APP}/external/users/<path:customer_id>/tags", defaults={"kind": "external/users"})
@scope("content")
def read_tags(api_key: str, kind: str, customer_id: str) -> Response:
    if refusal := _wrong_key(api_key):
        return refusal
    found = identifier(customer_id, _KINDS[kind])
    if found is None:
        raise FieldError(_KINDS[kind], "is empty")
    lookups, customer = parts_of(current_app).lookups, Customer(_KINDS[kind], found)
    try:
        served = lookups.raw_tags(customer)
    except UnavailableError as failure:
        return _not_now(failure)
    if repeat := lookups.raw_repeat(customer, served):
        fastlane.offer(repeat, (served.entry.body,))
    return _as_it_came(served)


@bp.post("/offers/api/2.0/offers/get_user_offers")
@scope("content")
def get_user_offers() -> Response:
    parts = parts_of(current_app)
    if not parts.settings.offers_on:
        return error(NOT_NOW, "offers_off", "Offers are switched off: set SESSIONM_CONNECT_URL.")
    body = as_sent(_fields())
    body["user_id"] = required(body.get("user_id"), "user_id")
    # The bridge serves one retailer: whatever a template says, it is that one.
    body.pop("retailer_id", None)
    try:
        return _as_it_came(parts.lookups.raw_offers(body))
    except UnavailableError as failure:
        return _not_now(failure)


@bp.post(f"{_APP}/batch/tags")
@scope("webhook")
def batch(api_key: str) -> Response:
    if refusal := _wrong_key(api_key):
        return refusal
    job = as_sent(_fields()).get("tags")
    if not isinstance(job, dict):
        raise FieldError("tags", "must be an object with request_id, url, md5 and notify")
    try:
        answer = parts_of(current_app).sessionm.submit_batch(job, BATCH_TIMEOUT)
    except SessionMError as failure:
        return _uncertain(job, failure) if failure.may_have_worked else _not_taken(failure)
    _follow(job, answer)
    return jsonify(answer)


def _follow(job: dict[str, Any], answer: dict[str, Any]) -> str:
    """Follow a job that SessionM has, or may have; its batch's id, "" if it cannot be stored."""
    try:
        return parts_of(current_app).batches.follow(job, answer, g.key_name)
    except StoreUnavailableError as failure:
        # Who submitted the job must not do so again.
        log.error("a job is not followed: %s", failure, extra={"action": "batch_not_followed"})
        return ""


def _uncertain(job: dict[str, Any], failure: SessionMError) -> Response:
    """A success to Braze, which would else submit a job again that SessionM may have."""
    batch_id = _follow(job, {})
    response = jsonify(
        status="uncertain",
        message=f"SessionM may have taken the job, or not: {failure}. Look there before you "
        "submit it again: its counters would count twice.",
        id=batch_id,
        tags={"request_id": job.get("request_id", ""), "status": "unknown"},
    )
    response.status_code = 202
    return response


def _not_taken(failure: SessionMError) -> Response:
    """The error answer for a job that SessionM certainly does not have."""
    if failure.meaning in {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER}:
        status = failure.status if failure.status in _REFUSALS else 422
        return error(status, failure.code.lower() or "refused", f"SessionM said: {failure}.")
    if failure.meaning is Meaning.BUSY:
        after = failure.retry_after
        headers = {} if after is None else {"Retry-After": str(math.ceil(after))}
        return error(
            429, "too_many_requests", f"SessionM did not take the job: {failure}.", **headers
        )
    if failure.meaning is Meaning.CREDENTIALS:
        return error(NOT_NOW, "sessionm_unavailable", _LOCKED_OUT)
    return error(NOT_NOW, "sessionm_unavailable", f"SessionM did not take the job: {failure}.")


_LOCKED_OUT = (
    "SessionM refuses the bridge's own credentials, not yours: whoever runs the bridge must mend "
    "them (`bridge check` tells more)."
)


def _fields() -> dict[str, object]:
    try:
        return read_fields(read_body(), request.headers.get("Content-Type", ""))
    except RefusedError as refusal:
        raise RefusedError(min(refusal.status, 415), refusal.code, str(refusal)) from None


def _wrong_key(api_key: str) -> Response | None:
    known = parts_of(current_app).settings.sessionm_core_key.get_secret_value()
    if api_key == "bridge" or hmac.compare_digest(api_key.encode(), known.encode()):
        return None
    return error(
        403, "invalid_api_key", 'The api key in the path must be SessionM\'s, or the word "bridge".'
    )


def _as_it_came(served: Served) -> Response:
    entry = served.entry
    if entry.found:
        response = Response(entry.body, mimetype="application/json")
    else:
        response = error(404, "user_not_found", "SessionM does not know this customer.")
    ttl = math.floor(entry.fetched_at + served.fresh_for - time.time())
    status = "ok" if entry.found else "not_found"
    response.headers["Cache-Status"] = cache_status(served.how, ttl, status)
    return response


def _not_now(failure: UnavailableError) -> Response:
    told = cache_status("", 0, "unavailable")
    sentence = f"SessionM is unavailable: {failure}."
    return error(NOT_NOW, "sessionm_unavailable", sentence, **{"Cache-Status": told})
