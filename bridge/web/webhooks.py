"""`POST /webhooks/braze`: turn a Braze webhook into SessionM tags."""

from flask import Blueprint, Response
from pydantic_core import to_json

from bridge.customer import DEMO_USER_ID, Customer, ids_of_key
from bridge.intake.payload import FIELDS
from bridge.outbox.accept import Acceptance, warnings_of
from bridge.parts import Parts
from bridge.web.accepting import WAIT, IntakePath, accept_request
from bridge.web.auth import scope
from bridge.web.operation import BODY_ERRORS, Example, Operation
from bridge.web.shapes import Accepted, Delivered, Duplicate

bp = Blueprint("webhooks", __name__)


def _accepted(acceptance: Acceptance) -> tuple[bytes, int]:
    event = acceptance.event
    if acceptance.earlier:
        return to_json({"status": "duplicate", "id": acceptance.id}), 200
    accepted = {
        "status": "accepted",
        "id": acceptance.id,
        "customer": ids_of_key(event.customer),
        "writes": [{"tags": write.tags, "ttl": write.ttl} for write in event.writes],
        "warnings": warnings_of(event),
        "test": event.test,
    }
    return to_json(accepted), 202


def _delivered(parts: Parts, acceptance: Acceptance) -> bytes:
    customer = Customer.of_sessionm(acceptance.event.customer)
    tags = parts.lookups.last_tags(customer) if customer else {}
    return to_json({"status": "delivered", "id": acceptance.id, "tags": tags})


WEBHOOK = IntakePath("/webhooks/braze", "webhook", "webhooks", None, _accepted, _delivered)


@bp.post(WEBHOOK.path)
@scope("webhook")
@Operation(
    {202: (Accepted,), 200: (Duplicate, Delivered)},
    (*BODY_ERRORS, 422, 503),
    query={"wait": WAIT},
    body=FIELDS,
    takes_form=True,
    example=Example(
        json={
            "braze_campaign_id": "summer-sale",
            "user_id": DEMO_USER_ID,
            "dispatch_id": "send-1",
        },
        status=202,
    ),
)
def braze() -> Response:
    """Turn a Braze webhook into SessionM tags.

    The event is on disk before it is acknowledged, and the bridge retries until SessionM has
    confirmed it. At least one of `braze_campaign_id`, `braze_canvas_id` and `tags` is needed, and
    one of `user_id` and `external_id`. A webhook with the same `dispatch_id` (or
    `Idempotency-Key` header), customer, IDs and tags as an earlier one is a duplicate. A rejected
    webhook is kept with the reason and can be replayed.
    """
    return accept_request(WEBHOOK)
