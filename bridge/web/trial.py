"""A template tried out on a customer: the message, its calls, the lookups' JSON, in words."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlencode, urlsplit

from flask import Flask, current_app, request
from werkzeug.exceptions import HTTPException

from bridge.customer import Customer
from bridge.intake.payload import RefusedError
from bridge.outbox.events import Stored
from bridge.outbox.schema import State
from bridge.parts import parts_of
from bridge.preview import Answered, Asked, Preview, preview
from bridge.snippets import BASIC_PLACEHOLDER
from bridge.web.auth import Keyring, scope_of

# The name under which the snippets use a credential that Braze stores.
CREDENTIAL = "bridge"
# They stand for a key's secret; the secret itself never comes near a page or a template.
STAND_IN = "YOUR-CONTENT-SECRET"
_NO_URL = "This is no address that can be called."
LOOKUPS = ("tags", "offers", "customer")


@dataclass(frozen=True)
class Call:
    """A lookup that was made, and what came of it: *told* says in words what went wrong."""

    method: str
    url: str
    answered: Answered
    milliseconds: int
    told: str

    @property
    def json(self) -> str:
        try:
            return json.dumps(json.loads(self.answered.body), indent=2, ensure_ascii=False)
        except ValueError:
            return self.answered.body


@dataclass(frozen=True)
class Write:
    """Tags that a webhook would write; *ttl* ``None`` for counters."""

    tags: tuple[str, ...]
    ttl: int | None


@dataclass(frozen=True)
class Trial:
    """What became of a template.

    Attributes:
        message: rendered, or aborted, or why not.
        calls: those of the template, each with why its answer was not used ("" if it was).
        lookups: name -> the call of each lookup for the customer.
        refusal: why the text would be refused as a webhook's body; "" if it would not, or is none.
        writes: what it would write as a webhook's body.
    """

    message: Preview
    calls: tuple[tuple[Call, str], ...]
    lookups: Mapping[str, Call]
    refusal: str
    writes: tuple[Write, ...]


def try_out(source: str, customer: Customer, first_name: str, base_url: str) -> Trial:
    """Render *source*, whose lookups ask the bridge at *base_url*, for *customer*."""
    inside = _Inside(base_url)
    made: dict[int, Call] = {}

    def answer(asked: Asked) -> Answered:
        made[asked.place] = inside.call(asked)
        return made[asked.place].answered

    message = preview(
        source,
        {
            "attributes": {"user_id": customer.id, "first_name": first_name},
            "campaign": {"api_id": "example-campaign-id", "dispatch_id": "example-dispatch-id"},
            "canvas": {"api_id": "example-canvas-id"},
            "credentials": {CREDENTIAL: (CREDENTIAL, STAND_IN)},
            "variables": {"endpoint_connect": base_url},
        },
        answer,
    )
    refusal, writes = _as_webhook(message.text)
    return Trial(
        message=message,
        calls=_paired(message, made),
        lookups=_lookups(inside, customer, base_url),
        refusal=refusal,
        writes=writes,
    )


def _paired(message: Preview, made: Mapping[int, Call]) -> tuple[tuple[Call, str], ...]:
    """Each call with why its answer was not used."""
    if not message.calls:
        # Nothing was rendered, so that nothing is known of their use.
        return tuple((call, "") for call in made.values())
    return tuple(
        (made.get(place) or Call(one.method, one.url, Answered(0, ""), 0, _NO_URL), one.unused)
        for place, one in enumerate(message.calls)
    )


class _Inside:
    """Makes a template's calls from within the service.

    The view of a lookup is called as a call by Braze would cause it to be, but for the doors
    before it, and without being counted: nothing goes over HTTP, to this bridge or to another host.
    """

    def __init__(self, base_url: str) -> None:
        self._app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
        self._hosts = {urlsplit(base_url).netloc, request.host}
        self._keyring = Keyring(parts_of(self._app).settings)

    def call(self, asked: Asked) -> Call:
        begun = monotonic()
        answered = self._answer(asked)
        took = round((monotonic() - begun) * 1000)
        return Call(asked.method, asked.url, answered, took, _in_words(answered))

    def _answer(self, asked: Asked) -> Answered:
        parts = urlsplit(asked.url)
        if parts.netloc not in self._hosts:
            return Answered(
                0, "The preview calls no host but this bridge, so this call was not made."
            )
        with self._app.test_request_context(
            parts.path,
            query_string=parts.query,
            method=asked.method,
            headers=list(asked.headers.items()),
            data=asked.body,
        ):
            try:
                response = self._app.make_response(self._dispatch())
            except Exception as failure:  # noqa: BLE001 - answered as any request's failure is
                response = self._app.make_response(self._app.handle_user_exception(failure))
            return Answered(response.status_code, response.get_data(as_text=True))

    def _dispatch(self) -> Any:
        if isinstance(request.routing_exception, HTTPException):
            raise request.routing_exception
        if scope_of(request.endpoint or "") != "content":
            raise RefusedError(
                403, "wrong_scope", "This path is not for lookups: a content key does not open it."
            )
        if not self._opens(request.headers.get("Authorization", "")):
            raise RefusedError(
                401,
                "unauthorized",
                f"The tag sends no content key of the bridge: add :basic_auth {CREDENTIAL}.",
            )
        return self._app.dispatch_request()

    def _opens(self, given: str) -> bool:
        stored = request.authorization
        by_name = stored and (stored.username, stored.password) == (CREDENTIAL, STAND_IN)
        return bool(
            by_name
            or BASIC_PLACEHOLDER in given
            or not self._keyring.needs_key("content")
            or "content" in self._keyring.find(given)[0]
        )


def _in_words(answered: Answered) -> str:
    """What went wrong, as the answer itself says; "" if nothing did."""
    if not answered.status:
        return answered.body
    try:
        document = json.loads(answered.body)
        return str(document["errors"]["message"] if "errors" in document else document["reason"])
    except (ValueError, LookupError, TypeError):
        return ""


def _lookups(inside: _Inside, customer: Customer, base_url: str) -> dict[str, Call]:
    """Every lookup of *customer*, all asked at once."""

    def look(lookup: str) -> Call:
        url = f"{base_url}/connected-content/{lookup}?{urlencode(customer.ids)}"
        return inside.call(
            Asked(0, "GET", url, {"Authorization": f"Basic {BASIC_PLACEHOLDER}"}, "")
        )

    with ThreadPoolExecutor(len(LOOKUPS)) as pool:
        return dict(zip(LOOKUPS, pool.map(look, LOOKUPS), strict=True))


def _as_webhook(body: str) -> tuple[str, tuple[Write, ...]]:
    if not body.lstrip().startswith("{"):
        return "", ()
    arrived = Stored("", State.REJECTED, body.encode(), "application/json", None)
    try:
        read = parts_of(current_app).acceptor.read_again(arrived)
    except RefusedError as refusal:
        return f"{refusal.status}: {refusal}", ()
    return "", tuple(Write(write.tags, write.ttl) for write in read.writes)
