"""The setup page: five steps from the bridge's address to a message with an offer in it.

The page changes nothing; only POST /setup/progress, which `bridge demo` sends, resets the steps.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from json import dumps
from math import ceil
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, jsonify, render_template, request

from bridge.bulk.model import ROWS_OF_JOB
from bridge.customer import Customer, CustomerKind
from bridge.fields import FieldError, identifier, text
from bridge.intake.payload import RefusedError
from bridge.liquid.inputs import InputError, read_catalogs, read_object, read_value
from bridge.liquid.snippets import PLACEHOLDER, Snippet, snippets
from bridge.liquid.syntax import NAMESPACES, fields_used
from bridge.network.proxy import is_loopback
from bridge.parts import parts_of
from bridge.settings import Key
from bridge.web.auth import scope
from bridge.web.candidates import candidates
from bridge.web.operation import PAGE
from bridge.web.pages import base_url, guard, name_campaigns, page
from bridge.web.pictures import pictures
from bridge.web.planning import planning
from bridge.web.preview import (
    CAMPAIGN,
    CREDENTIAL,
    STAND_IN,
    STATES,
    Trial,
    cache_words,
    located,
    pretty,
    try_out,
)
from bridge.web.progress import SetupProgress, begin, progress

bp = Blueprint("setup", __name__)
guard(bp)

# Audiences whose ways are compared.
AUDIENCES = (1_000, 100_000, 1_000_000)
# Characters of one field of Braze's side.
LARGEST_INPUT = 100_000
# Fields of Braze's side -> their labels: text, and JSON objects.
PROFILE = {
    "first_name": "First name in Braze",
    "language": "Language",
    "time_zone": "Time zone",
}
OBJECTS = {
    "custom_attribute": "Custom attributes",
    "event_properties": "Event properties",
    "context": "Context",
    "api_trigger_properties": "API trigger properties",
    "catalogs": "Test items of catalogs",
}
# Fields of the profile that are no text.
_TYPED = {"most_recent_location", "random_bucket_number"}
# Names of objects, which are no fields of the profile.
_NOT_FIELDS = {"content_blocks", *OBJECTS, *NAMESPACES}
# Fields that a message uses and that get an input.
MOST_INPUTS = 40
# What the page has in them at first.
EXAMPLES = {"first_name": "Alex", "language": "en", "time_zone": "America/New_York"}
_FIRST_SNIPPET = "best_offer"
# Before and behind a message that is no whole HTML document.
_BEFORE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The message</title>'
    "<style>body{margin:1rem;font:16px/1.5 system-ui,sans-serif;color:#18202b;background:#fff;"
    "overflow-wrap:break-word}img{max-width:100%}</style></head><body>"
)
_IS_DOCUMENT = re.compile(r"\s*(?:<!doctype\b|<html\b)", re.IGNORECASE)
# A message is a document of its own, in which nothing runs and no form leads anywhere. It may have
# what e-mails have: styles, and images of other hosts.
_FRAME_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src https: data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
}


@bp.get("/setup")
@scope("viewer")
@PAGE
def setup() -> Response:
    """Show what to paste into Braze, with a live preview and a send planner."""
    if request.args.get("part") == "progress":
        return _fragment("setup_progress.html", progress=_progress(base_url()))
    return _page(request.args)


@bp.get("/setup/progress")
@scope("viewer")
def show_progress() -> Response:
    """How far the setup is, for the page to ask every few seconds."""
    return jsonify(_progress(base_url()).as_json)


@bp.post("/setup/progress")
@scope("admin")
def begin_anew() -> Response:
    """Have the steps turn green only by what comes from now on; `bridge demo` does so."""
    begin(parts_of(current_app))
    return show_progress()


@bp.post("/setup")
@scope("viewer")
def preview() -> Response:
    """The same page with a template tried out; by POST, as a customer's id belongs in no URL."""
    if "load" in request.form:
        return _page(request.form)
    if "message_body" in request.form:
        return _message_page(request.form["message_body"])
    trial, problem, asked = None, "", _asked(request.form.get("source", ""), request.form)
    try:
        trial = _trial(request.form)
    except FieldError as bad:
        problem = f"{bad}."
    status = 400 if problem else 200
    if request.form.get("part") == "outcome":
        return _fragment("setup_outcome.html", status, trial=trial, problem=problem, asked=asked)
    return _page(request.form, status, trial=trial, problem=problem, tried=True)


@bp.post("/setup/frame")
@scope("viewer")
def frame() -> Response:
    """A rendered message as a document for a frame of the page."""
    message = request.form.get("message", "")
    document = message if _IS_DOCUMENT.match(message) else f"{_BEFORE}{message}</body></html>"
    return Response(document, mimetype="text/html", headers=_FRAME_HEADERS)


def _message_page(body: str) -> Response:
    """The page with the calls to Braze that a message would cause."""
    calls: list[tuple[str, str]] = []
    problem = ""
    try:
        bodies = parts_of(current_app).calls_for(body.encode())
        calls = [(path, dumps(sent, ensure_ascii=False, indent=2)) for path, sent in bodies]
    except RefusedError as refusal:
        problem = str(refusal)
    more = {"message_body": body, "message_calls": calls, "message_problem": problem}
    return _page({}, 400 if problem else 200, **more)


def _fragment(template: str, status: int = 200, **context: Any) -> Response:
    """A part of the page, for the page's script."""
    known = {**_HELPERS, "kind": _kind(request.values), "base": base_url(), "fragment": True}
    return Response(render_template(template, **known, **context), status, mimetype="text/html")


def _call_for(kind: str, base: str) -> str:
    """The call that brings all of a customer's fields."""
    return (
        "{% connected_content\n"
        f"     {base}/connected-content/customer?{kind}={{{{${{user_id}} | url_param_escape}}}}\n"
        f"     :basic_auth {CREDENTIAL}\n     :save customer\n%}}\n"
    )


_HELPERS: dict[str, Any] = {
    "pretty": pretty,
    "cache_words": cache_words,
    "located": located,
    "call_for": _call_for,
}


def _trial(given: Mapping[str, str]) -> Trial | None:
    """The message tried out; ``None`` without a customer."""
    kind, customer_id = _chosen(given)
    if customer_id is None:
        return None
    source = given.get("source", "").replace("\r\n", "\n").replace(PLACEHOLDER, base_url())
    state = given.get("state", "")
    return try_out(
        source,
        Customer(kind, customer_id),
        _attributes(given),
        base_url(),
        state if state in STATES else "",
    )


def _chosen(given: Mapping[str, str]) -> tuple[CustomerKind, str | None]:
    """The customer that was picked, else the one that was typed."""
    picked = identifier(given.get("pick"), "The customer")
    if picked is not None:
        return Customer.from_key(picked)
    return _kind(given), identifier(given.get("customer"), "The customer's ID")


def _attributes(given: Mapping[str, str]) -> dict[str, Any]:
    """Braze's side of the preview; a field that is left blank has no value."""
    profile = {name: text(given.get(name), label) for name, label in PROFILE.items()}
    found: dict[str, Any] = {
        **{name: value for name, value in profile.items() if value is not None},
        **{name: _object(given, name, label) for name, label in OBJECTS.items()},
    }
    for one in _asked(given.get("source", ""), given):
        value = one.given if one.is_long else text(one.given, one.label)
        if value:
            space = found.setdefault(one.space, {}) if one.space else found
            space[one.name] = read_value(value) if one.name in _TYPED else value
    return found


@dataclass(frozen=True)
class AskedField:
    """A field that a message uses, with the input for its test value.

    Attributes:
        space: such as ``content_blocks``; "" for the profile.
        name: the field's name in Braze.
        given: what was typed.
    """

    space: str
    name: str
    given: str

    @property
    def input(self) -> str:
        return f"field:{self.space}:{self.name}"

    @property
    def label(self) -> str:
        return f"{self.space}{'.' if self.space else ''}${{{self.name}}}"

    @property
    def is_long(self) -> bool:
        return self.space == "content_blocks"


def _asked(source: str, given: Mapping[str, str]) -> list[AskedField]:
    """The fields of *source*, and of its content blocks, for which the page has no other input."""
    found: dict[tuple[str, str], AskedField] = {}
    texts = [source]
    while texts:
        for space, name in fields_used(texts.pop()):
            is_asked = bool(space) or not (
                name in {*PROFILE, *_NOT_FIELDS, "user_id", "braze_id"} or name.endswith("_url")
            )
            if is_asked and (space, name) not in found and len(found) < MOST_INPUTS:
                typed = given.get(f"field:{space}:{name}", "")[:LARGEST_INPUT]
                found[space, name] = AskedField(space, name, typed.replace("\r\n", "\n"))
                texts += [typed] if space == "content_blocks" else []
    return [*found.values()]


def _object(given: Mapping[str, str], name: str, label: str) -> dict[str, Any]:
    typed = given.get(name, "")
    if len(typed) > LARGEST_INPUT:
        raise FieldError(label, f"is longer than {LARGEST_INPUT:,} characters")
    try:
        return read_catalogs(typed) if name == "catalogs" else read_object(typed)
    except InputError as bad:
        raise FieldError(label, str(bad)) from None


def _kind(given: Mapping[str, str]) -> CustomerKind:
    """Which of SessionM's ids Braze's user id is."""
    return "external_id" if given.get("id") == "external_id" else "user_id"


def _page(given: Mapping[str, str], status: int = 200, **more: Any) -> Response:
    parts = parts_of(current_app)
    settings, base, kind = parts.settings, base_url(), _kind(given)
    source, chosen, aside = _source(given, base, kind)
    given = {**given, **_with_examples(snippets()[chosen], given)}
    planned = planning(request.args)
    people = candidates(parts, kind)
    first = people[0].customer if people else None
    typed = given.get("customer", first.id if first else "").strip()
    return page(
        "setup.html",
        400 if planned.problem else status,
        base=base,
        doubts=_doubts(base),
        kind=kind,
        snippets=_in_order(),
        pictures=pictures(),
        chosen=snippets()[chosen],
        source=source,
        asked=_asked(source, given),
        aside=aside,
        customer=_chosen(given)[1] if given.get("pick") else typed,
        people=people,
        first=first,
        given=given,
        profile=PROFILE,
        objects=OBJECTS,
        examples=EXAMPLES,
        settings=settings,
        webhook_key=_name(settings.bridge_webhook_keys),
        content_key=_name(settings.bridge_content_keys),
        trigger_key=_name(settings.bridge_trigger_keys),
        credential=CREDENTIAL,
        stand_in=STAND_IN,
        progress=_progress(base),
        planning=planned,
        audiences=[
            (size, size / planned.pace.core, ceil(size / ROWS_OF_JOB)) for size in AUDIENCES
        ],
        ask=request.args,
        **{**_HELPERS, "message_body": _example_message(first), **more},
    )


def _example_message(customer: Customer | None) -> str:
    """A body of SessionM's that can be tried out as it is."""
    ids = customer.ids if customer else {"user_id": "example-customer-id"}
    settings = {"braze_campaign_id": CAMPAIGN["api_id"]}
    offer = {"user_offer_id": "example-offer-id", "title": "Free coffee"}
    return dumps({"advanced_settings": settings, **ids, **offer}, ensure_ascii=False, indent=2)


def _in_order() -> dict[str, Snippet]:
    """The snippets, with the one to begin with first."""
    return {_FIRST_SNIPPET: snippets()[_FIRST_SNIPPET], **snippets()}


def _source(given: Mapping[str, str], base: str, kind: CustomerKind) -> tuple[str, str, str]:
    """The message, the snippet it began as, and the author's own template that this replaced."""
    typed = given.get("source", "").replace("\r\n", "\n")
    aside = given.get("aside", "").replace("\r\n", "\n")
    wanted = given.get("load", "")
    name = wanted if wanted in snippets() else given.get("snippet", "")
    name = name if name in snippets() else _FIRST_SNIPPET
    if wanted == "aside":
        return aside, name, ""
    if not wanted:
        return typed or snippets()[name].filled(base, kind), name, aside
    loaded = {one.filled(base, kind).strip() for one in snippets().values()}
    own = typed if typed.strip() and typed.strip() not in loaded else aside
    return snippets()[name].filled(base, kind), name, own


def _with_examples(snippet: Snippet, given: Mapping[str, str]) -> dict[str, str]:
    """The fields of Braze's side with the snippet's example values; what was typed stays."""
    if given.get("source") and not given.get("load"):
        return {}
    filled = {}
    for name, examples in snippet.examples.items():
        with suppress(InputError):
            typed = read_object(given.get(name, ""))
            filled[name] = dumps({**examples, **typed}, ensure_ascii=False, indent=1)
    return filled


def _progress(base: str) -> SetupProgress:
    found = progress(parts_of(current_app), address=not _doubts(base))
    name_campaigns([found.send.event] if found.send else [])
    return found


def _doubts(base: str) -> list[str]:
    """What keeps Braze from calling *base*."""
    parts = urlsplit(base)
    host = parts.hostname or ""
    if is_loopback(host):
        return [f"{host} is this machine alone: good for a trial, but Braze cannot reach it."]
    doubts = {
        "It is not https: keys and customers' data would travel in the clear.": (
            parts.scheme != "https"
        ),
        f"Port {parts.port}: Braze calls ports 80 and 443 only.": parts.port not in {None, 80, 443},
        f"{host} is a name within this network: Braze cannot reach it.": "." not in host,
    }
    return [doubt for doubt, holds in doubts.items() if holds]


def _name(keys: tuple[Key, ...]) -> str:
    return keys[0].name if keys else "any"
