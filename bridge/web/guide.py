"""The page for marketers: what a snippet does, the fields of a lookup, and frequent errors."""

from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response

from bridge.customer import Customer
from bridge.fields import DURATIONS, FieldError
from bridge.intake.payload import RefusedError, read_event
from bridge.liquid.snippets import snippets
from bridge.lookups.models import ANSWERS, Offer
from bridge.lookups.query import Query, read_query
from bridge.lookups.shape import OwnWrites, Part, customer_answer
from bridge.web.auth import scope
from bridge.web.credential import malformed
from bridge.web.operation import PAGE
from bridge.web.pages import base_url, page

bp = Blueprint("guide", __name__)

# Bodies of webhooks that are rejected, and what to do in Braze.
_REJECTED = {
    '{"first_name": "An"na", "user_id": "42"}': "A customer's name holds a quote. Give every value "
    "in the body the filter: {{${first_name} | json_escape}}.",
    '{"braze_campaign_id": "summer", "user_id": "{{${user_id}}}"}': "Braze did not fill the "
    "template in: choose a user for the test, and check the spelling.",
    '{"braze_campaign_id": "summer", "userid": "42"}': "The user of the test has no such ID, or "
    "the field is misspelt: copy the request body of step 2 again.",
}


@dataclass(frozen=True)
class GuideField:
    """A field of a lookup's answer.

    Attributes:
        name: as a message writes it, without the variable.
        blank: its value for a customer without one.
        lookups: those that bring it.
    """

    name: str
    meaning: str
    blank: Any
    lookups: tuple[str, ...]


@bp.get("/docs/marketers")
@scope("open")
@PAGE
def show_guide() -> Response:
    """Explain to marketers the snippet, the fields of a lookup, and frequent errors."""
    base = base_url()
    snippet = snippets()["best_offer"]
    return page(
        "guide.html",
        base=base,
        snippet=snippet,
        code=snippet.filled(base, "user_id"),
        fields=answer_fields(),
        offer_fields=offer_fields(),
        errors=frequent_errors(),
        durations=DURATIONS,
    )


def answer_fields() -> list[GuideField]:
    """Return all fields of lookups, with their values for an unknown customer."""
    blank = _answer({})
    return [
        GuideField(
            name,
            field.description or "",
            blank.get(name, {}),
            tuple(lookup for lookup, model in ANSWERS.items() if name in model.model_fields),
        )
        for name, field in ANSWERS["customer"].model_fields.items()
    ]


def offer_fields() -> list[GuideField]:
    """Return the fields of each offer, with their values for an offer that has none of them."""
    [blank] = _answer({"payload": {"user_offers": [{}]}})["offers"]
    return [
        GuideField(name, field.description or "", blank[name], ())
        for name, field in Offer.model_fields.items()
    ]


def _answer(document: dict[str, Any]) -> dict[str, Any]:
    query = Query(Customer("user_id", ""))
    offers = Part("ok" if document else "not_found", document)
    return customer_answer(query, "", Part("not_found"), offers, OwnWrites(), lambda _tag: None, 0)


def frequent_errors() -> list[tuple[str, str]]:
    """Return messages of rejected calls, in the bridge's own words, each with what to do."""
    found = [
        (
            malformed("Bearer YOUR-WEBHOOK-SECRET", "a webhook"),
            "Type the secret in step 2 of the setup, and copy the header again.",
        )
    ]
    for body, do in _REJECTED.items():
        try:
            read_event(body.encode(), "application/json")
        except RefusedError as refusal:
            found.append((str(refusal), do))
    try:
        read_query("offers", {"userid": "42"})
    except FieldError as bad:
        found.append((f"{bad}.", "Correct the address in the Connected Content tag."))
    return found
