"""SessionM's own paths, so that a template keeps working when only its host is changed."""

import hmac
import logging
import math
import time

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
    parts = parts_of(current_app)
    try:
        answer = parts.sessionm.submit_batch(job, BATCH_TIMEOUT)
    except SessionMError as failure:
        if failure.meaning is Meaning.REFUSED:
            return error(failure.status, failure.code.lower(), str(failure))
        return error(502, "sessionm_unavailable", f"SessionM did not take the job: {failure}.")
    try:
        parts.batches.follow(job, answer, g.key_name)
    except StoreUnavailableError as failure:
        # SessionM has the job: who submitted it must not do so again.
        log.error("a job is not followed: %s", failure, extra={"action": "batch_not_followed"})
    return jsonify(answer)


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
