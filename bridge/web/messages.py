"""SessionM's paths: messages that the bridge sends through Braze, and changes of a customer."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Blueprint, Response, current_app, jsonify
from pydantic_core import to_json

from bridge.customer import DEMO_USER_ID, named_customers
from bridge.fields import TEXT_SCHEMA, FieldError
from bridge.intake.message import FIELDS, TRIGGER_FIELDS, MessagePath, refusal_of
from bridge.intake.payload import RefusedError
from bridge.intake.printed import printed_list
from bridge.outbox.accept import Acceptance, warnings_of
from bridge.parts import Parts, parts_of
from bridge.web.auth import BRAZE_OFF, scope
from bridge.web.body import body_fields
from bridge.web.errors import error
from bridge.web.operation import BODY_ERRORS, Example, Operation
from bridge.web.shapes import (
    MessageAccepted,
    MessageDelivered,
    MessageDuplicate,
    Ok,
    Triggered,
)
from bridge.web.webhooks import WAIT, IntakePath, accept_request, received_request

bp = Blueprint("messages", __name__)

# Values of `what`.
CHANGES = ("offers", "tags")
_EXAMPLE_ID = "0d2f6f5e-1111-4222-8333-944445555666"

View = Callable[..., Response]


def _requires_braze(view: View) -> View:
    """Answer 404 with a reason if Braze's REST API is not configured."""

    @wraps(view)
    def answer(**names: Any) -> Response:
        if not parts_of(current_app).settings.braze_on:
            return error(404, "braze_off", BRAZE_OFF)
        return view(**names)

    return answer


def _accepted(acceptance: Acceptance) -> tuple[bytes, int]:
    event, warnings = acceptance.event, warnings_of(acceptance.event)
    if acceptance.earlier:
        return to_json({"status": "duplicate", "id": acceptance.id, "warnings": warnings}), 200
    accepted = {
        "status": "accepted",
        "id": acceptance.id,
        "sends": [{f"{send.kind}_id": send.braze_id} for send in event.sends],
        "warnings": warnings,
    }
    return to_json(accepted), 202


def _delivered(parts: Parts, acceptance: Acceptance) -> bytes:
    dispatched = parts.store.receipts_of(acceptance.id)
    return to_json({"status": "delivered", "id": acceptance.id, "dispatch_ids": dispatched})


MESSAGE = IntakePath(
    "/webhooks/sessionm/message",
    "trigger",
    "messages",
    MessagePath.MESSAGE,
    _accepted,
    _delivered,
)


@bp.post(MESSAGE.path)
@scope("trigger")
@Operation(
    {202: (MessageAccepted,), 200: (MessageDuplicate, MessageDelivered)},
    (*BODY_ERRORS, 404, 422, 503),
    query={"wait": WAIT},
    body=FIELDS,
    headers=("Idempotency-Key", "Prefer"),
    takes_form=True,
    example=Example(
        json={
            "braze_campaign_id": _EXAMPLE_ID,
            "user_id": DEMO_USER_ID,
            "user_offer_id": "uo-1",
            "title": "10 % off",
        },
        status=202,
    ),
)
@_requires_braze
def message() -> Response:
    """Send a Braze campaign or start a Canvas for a customer of SessionM.

    The message is on disk before it is acknowledged. The customer's cached lookups become
    outdated before Braze is called, so that the message shows the new offer. Every field that is
    not listed is a property of the message.
    """
    return accept_request(MESSAGE)


def _trigger(path: MessagePath) -> Response:
    acceptance = parts_of(current_app).acceptor.accept(received_request(message=path))
    response = jsonify(dispatch_id=acceptance.id, message="success")
    response.status_code = 201
    return response


def _brazes_own(field: str, description: str) -> Operation:
    """Describe one of Braze's own paths, whose body names *field*."""
    return Operation(
        {201: (Triggered,)},
        (*BODY_ERRORS, 404, 422, 503),
        body={field: {**TEXT_SCHEMA, "description": description}, **TRIGGER_FIELDS},
        headers=("Idempotency-Key",),
        takes_form=True,
        example=Example(
            json={field: _EXAMPLE_ID, "recipients": [{"external_user_id": DEMO_USER_ID}]},
            status=201,
        ),
    )


@bp.post("/campaigns/trigger/send")
@scope("trigger")
@_brazes_own("campaign_id", "The campaign to send.")
@_requires_braze
def trigger_campaign() -> Response:
    """Send a campaign by Braze's own path.

    Stored and sent like a message; `dispatch_id` is the event's ID.
    """
    return _trigger(MessagePath.CAMPAIGN)


@bp.post("/canvas/trigger/send")
@scope("trigger")
@_brazes_own("canvas_id", "The Canvas to start.")
@_requires_braze
def trigger_canvas() -> Response:
    """Start a Canvas by Braze's own path.

    Stored and sent like a message; `dispatch_id` is the event's ID.
    """
    return _trigger(MessagePath.CANVAS)


@bp.post("/webhooks/sessionm/changed")
@scope("trigger")
@Operation(
    {200: (Ok,)},
    (*BODY_ERRORS, 404, 422, 503),
    body={
        "user_id": FIELDS["user_id"],
        "external_id": FIELDS["external_id"],
        "what": {
            "type": ["string", "array", "null"],
            "description": "`offers`, `tags` or both, which is the default.",
        },
    },
    takes_form=True,
    example=Example(json={"user_id": DEMO_USER_ID, "what": "offers"}),
)
@_requires_braze
def changed() -> Response:
    """Outdate a customer's cached lookups after a change in SessionM.

    Every worker fetches them again for the next lookup.
    """
    fields = body_fields()
    try:
        customers = named_customers(fields)
        what = _changes(fields.get("what"))
    except FieldError as bad:
        raise refusal_of(bad) from None
    if not customers:
        raise RefusedError(422, "no_customer", "user_id or external_id is missing or blank.")
    parts_of(current_app).lookups.outdate(customers, what)
    return jsonify(status="ok")


def _changes(value: object) -> tuple[str, ...]:
    given = printed_list(value, "what") if isinstance(value, str) else value
    if not given:
        return CHANGES
    if not isinstance(given, list):
        raise FieldError("what", "must be offers, tags or both")
    for one in given:
        if not isinstance(one, str) or one not in {*CHANGES, "both"}:
            raise FieldError("what", "must be offers, tags or both")
    return CHANGES if "both" in given else tuple(dict.fromkeys(given))
