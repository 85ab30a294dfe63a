"""The setup page: what to paste into Braze, a live preview, and the send planner."""

from collections.abc import Mapping
from math import ceil
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, request

from bridge.customer import Customer, CustomerKind
from bridge.fields import FieldError, identifier, text
from bridge.outbox.batch import SPLIT
from bridge.parts import parts_of
from bridge.settings import Key
from bridge.snippets import PLACEHOLDER, snippets
from bridge.web.auth import scope
from bridge.web.pages import guard, page
from bridge.web.planning import planning
from bridge.web.trial import CREDENTIAL, STAND_IN, Trial, try_out

bp = Blueprint("setup", __name__)
guard(bp)

# Audiences whose ways are compared.
AUDIENCES = (1_000, 100_000, 1_000_000)
_FIRST_SNIPPET = "best_offer"


@bp.get("/setup")
@scope("admin")
def setup() -> Response:
    return _page(request.args)


@bp.post("/setup")
@scope("admin")
def preview() -> Response:
    """The same page with a template tried out; by POST, as a customer's id belongs in no URL."""
    if "load" in request.form:
        return _page(request.form)
    try:
        trial = _trial(request.form)
    except FieldError as bad:
        return _page(request.form, status=400, problem=f"{bad}.")
    return _page(request.form, trial=trial)


def _trial(given: Mapping[str, str]) -> Trial:
    customer_id = identifier(given.get("customer"), "The customer's ID")
    if customer_id is None:
        raise FieldError("The customer's ID", "is missing: type one that SessionM knows")
    source = given.get("source", "").replace("\r\n", "\n").replace(PLACEHOLDER, _base_url())
    first_name = text(given.get("first_name"), "The first name") or ""
    return try_out(source, Customer(_kind(given), customer_id), first_name, _base_url())


def _kind(given: Mapping[str, str]) -> CustomerKind:
    """Which of SessionM's ids Braze's user id is."""
    return "external_id" if given.get("id") == "external_id" else "user_id"


def _page(given: Mapping[str, str], status: int = 200, **more: Any) -> Response:
    settings = parts_of(current_app).settings
    base = _base_url()
    kind = _kind(given)
    chosen = snippets().get(given.get("snippet", ""), snippets()[_FIRST_SNIPPET])
    planned = planning(request.args)
    typed = "" if "load" in given else given.get("source", "")
    return page(
        "setup.html",
        400 if planned.problem else status,
        base=base,
        doubts=_doubts(base),
        kind=kind,
        snippets=snippets(),
        chosen=chosen,
        source=typed.replace("\r\n", "\n") or chosen.filled(base, kind),
        given=given,
        settings=settings,
        webhook_key=_name(settings.bridge_webhook_keys),
        content_key=_name(settings.bridge_content_keys),
        credential=CREDENTIAL,
        stand_in=STAND_IN,
        planning=planned,
        audiences=[(size, size / planned.pace.core, ceil(size / SPLIT)) for size in AUDIENCES],
        ask=request.args,
        **more,
    )


def _base_url() -> str:
    """Where Braze reaches this bridge: as it is set, else as this request did."""
    return parts_of(current_app).settings.bridge_public_url or request.host_url.rstrip("/")


def _doubts(base: str) -> list[str]:
    """What may keep Braze from calling *base*."""
    parts = urlsplit(base)
    host = parts.hostname or ""
    told = {
        "It is not https: keys and customers' data would travel in the clear.": (
            parts.scheme != "https"
        ),
        f"Port {parts.port}: Braze calls ports 80 and 443 only.": parts.port not in {None, 80, 443},
        f"{host} is a name within this machine or network: Braze cannot reach it.": (
            host in {"127.0.0.1", "::1"} or "." not in host
        ),
    }
    return [doubt for doubt, holds in told.items() if holds]


def _name(keys: tuple[Key, ...]) -> str:
    return keys[0].name if keys else "any"
