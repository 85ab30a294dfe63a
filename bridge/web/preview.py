"""A template tried out on a customer: the message, its calls, and the fields it may show."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from flask import Response, current_app, request
from werkzeug.exceptions import HTTPException

from bridge.customer import Customer
from bridge.fields import counted
from bridge.intake.payload import RefusedError, similar_field
from bridge.liquid.connected_content import ConnectedContentCall, ContentAnswer, ContentRequest
from bridge.liquid.fieldtree import AnswerField, field_tree
from bridge.liquid.render import LiquidError, render
from bridge.liquid.snippets import BASIC_PLACEHOLDER
from bridge.lookups.models import LookupHead
from bridge.outbox.accept import warnings_of
from bridge.outbox.events import StoredEvent
from bridge.outbox.model import State
from bridge.parts import parts_of
from bridge.web.auth import Keyring, scope_of

# The name under which the snippets use a credential that Braze stores.
CREDENTIAL = "bridge"
# Stands for a key's secret; the secret itself never comes near a page or a template.
STAND_IN = "YOUR-CONTENT-SECRET"
# Characters; longer JSON is shown as it is.
MOST_INDENTED = 64 * 1024
# What a preview has for `campaign.${…}` and `canvas.${…}`.
CAMPAIGN = {
    "api_id": "example-campaign-id",
    "name": "Example campaign",
    "dispatch_id": "example-dispatch-id",
}
CANVAS = {"api_id": "example-canvas-id", "name": "Example Canvas"}

# Previews rendered at once in one process: each takes a thread, up to `RENDER_SECONDS` of CPU time,
# and the time of its calls.
_places = BoundedSemaphore(2)


@dataclass(frozen=True)
class Preview:
    """What became of a template.

    Attributes:
        text: the message.
        aborted: why it would not be sent, ``None`` if it would.
        problem: why there is neither, "" if there is.
        calls: the calls of the template in the order made.
        warnings: what Braze ignores silently, what has no value, what the preview cannot fill.
        blanks, hints: as in `bridge.liquid.render.Rendered`.
    """

    text: str = ""
    aborted: str | None = None
    problem: str = ""
    calls: tuple[ConnectedContentCall, ...] = ()
    warnings: tuple[str, ...] = ()
    blanks: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def is_sent(self) -> bool:
        """Whether a customer would get it."""
        return not self.problem and self.aborted is None

    @property
    def counts(self) -> dict[str, int]:
        """How calls ended -> how many did so, without zeros."""
        failed = sum(bool(call.error) for call in self.calls)
        without = sum(bool(call.says and not call.error) for call in self.calls)
        answered = len(self.calls) - failed - without
        counts = {"answered": answered, "found no data": without, "failed": failed}
        return {outcome: number for outcome, number in counts.items() if number}

    @property
    def outcomes(self) -> str:
        """How the calls ended, in words: ``1 answered, 1 found no data, 1 failed``."""
        return ", ".join(f"{number} {outcome}" for outcome, number in self.counts.items())

    @property
    def all_answered(self) -> bool:
        """Whether every call brought what it asked for."""
        return not any(call.error or call.says for call in self.calls)

    @property
    def source(self) -> str:
        """The message without the blank lines that Liquid's tags leave."""
        return re.sub(r"\n[ \t]*(?:\r?\n[ \t]*)+(?=\n|\S)", "\n", self.text.strip())


@dataclass(frozen=True)
class PreviewWrite:
    """Tags that a webhook would write; *ttl* ``None`` for counters."""

    tags: tuple[str, ...]
    ttl: int | None


@dataclass(frozen=True)
class Trial:
    """A template tried out.

    Attributes:
        message: rendered, or aborted, or why not.
        customer: as SessionM knows it.
        status: SessionM's of that customer: ``ok``, ``not_found`` or ``unavailable``.
        state: the simulated state, a key of `STATES`; "" shows the customer's own data.
        age: seconds since SessionM's answer, if an answer of a call is stale; 0 if none is.
        swapped: whether the template asks by the other kind of identifier than SessionM knows.
        fields: one tree for each variable that holds an answer.
        refusal: why the text would be rejected as a webhook's body; "" if it would not, or is none.
        writes: what it would write as a webhook's body.
        webhook_warnings: as Braze would be answered.
    """

    message: Preview
    customer: Customer
    status: str
    state: str
    age: int
    swapped: bool
    fields: tuple[AnswerField, ...]
    refusal: str
    writes: tuple[PreviewWrite, ...]
    webhook_warnings: tuple[str, ...]

    @property
    def is_json(self) -> bool:
        return self.message.source.startswith("{")

    @property
    def summary(self) -> str:
        """The outcome in one line, for everybody and for screen readers."""
        warnings = len(self.message.warnings) + len(self.webhook_warnings)
        if self.message.problem:
            return "The message cannot be rendered."
        became = "Nothing would be sent" if self.message.aborted is not None else "Rendered"
        ended = self.message.counts.items()
        words = [f"{counted(number, 'call')} {outcome}" for outcome, number in ended]
        if warnings:
            words.append(counted(warnings, "warning"))
        if self.message.blanks:
            words.append(counted(len(self.message.blanks), "blank output"))
        return ": ".join([became, ", ".join(words)] if words else [became]) + "."


def try_out(
    source: str,
    customer: Customer,
    attributes: Mapping[str, Any],
    base_url: str,
    state: str = "",
) -> Trial:
    """Render *source*, whose lookups ask the bridge at *base_url*, for *customer*.

    If SessionM knows the identifier as one of the other kind, the calls ask by that.

    *attributes* are Braze's side, as `bridge.liquid.render` takes them. *state* is one of `STATES`,
    in which the lookups find the customer.
    """
    inside = _Inside(base_url, customer, state)
    message = _preview(source, {**attributes, "user_id": customer.id}, inside, base_url)
    is_webhook = message.source.startswith("{") and any(
        similar_field(name) for name in _FIELD_NAMES.findall(source)[:50]
    )
    refusal, writes, warnings = _as_webhook(message.text) if is_webhook else ("", (), ())
    answers = [_object(call.answer) for call in message.calls]
    statuses = [inside.status, *(str(answer.get("status", "")) for answer in answers)]
    return Trial(
        message,
        inside.customer,
        "unavailable" if "unavailable" in statuses else inside.status,
        state,
        max(map(_stale_age, answers), default=0),
        inside.swapped,
        _trees(inside, message.calls),
        refusal,
        writes,
        warnings,
    )


def _preview(
    source: str, attributes: Mapping[str, Any], inside: "_Inside", base_url: str
) -> Preview:
    if not _places.acquire(timeout=2):
        return Preview(problem="Other previews are being rendered: try again in a moment.")
    try:
        done = render(
            source,
            attributes=attributes,
            campaign=CAMPAIGN,
            canvas=CANVAS,
            credentials={CREDENTIAL: (CREDENTIAL, STAND_IN)},
            variables={"endpoint_connect": base_url},
            send=inside.answer,
            # Waiting between the tries of a :retry would show nothing.
            pause=lambda _seconds: None,
        )
    except LiquidError as error:
        problem = f"{str(error)[:1].upper()}{str(error)[1:]}"
        return Preview(problem=problem, calls=error.calls, warnings=error.warnings)
    finally:
        _places.release()
    return Preview(
        done.text,
        done.aborted,
        calls=done.calls,
        warnings=done.warnings,
        blanks=done.blanks,
        hints=done.hints,
    )


class _Inside:
    """Makes a template's calls from within the service.

    A lookup's view is called directly: the key is checked, but the call is not counted and its
    address is not checked. Nothing goes over HTTP, to this bridge or to another host.

    Attributes:
        customer: the *customer* given, under the kind of identifier that SessionM knows.
        status: of that customer's lookup.
        swapped: whether a call asked by the other kind, and was made by this one.
    """

    def __init__(self, base_url: str, customer: Customer, state: str) -> None:
        self._state = state
        self._base_url = base_url
        self._hosts = {urlsplit(base_url).netloc, request.host}
        self._keyring = Keyring(parts_of(current_app).settings)
        self.customer, self.status = customer, "not_found"
        self.swapped = False
        for one in (customer, customer.of_other_kind):
            status = self.look("tags", one).get("status", "unavailable")
            if status != "not_found":
                self.customer, self.status = one, status
                break

    def look(self, lookup: str, customer: Customer) -> dict[str, Any]:
        """What *lookup* answers for *customer*, as an object."""
        url = f"{self._base_url}/connected-content/{lookup}?{urlencode(customer.ids)}"
        sent = {"Authorization": f"Basic {BASIC_PLACEHOLDER}"}
        return _object(self.answer(ContentRequest("GET", url, sent, "")))

    def answer(self, asked: ContentRequest) -> ContentAnswer:
        try:
            parts = urlsplit(asked.url)
            if parts.scheme not in {"http", "https"} or not parts.netloc:
                return ContentAnswer(0, error="This is no address that can be called.")
            if parts.netloc not in self._hosts:
                return ContentAnswer(
                    0, error="The preview calls no host but this bridge, so this call was not made."
                )
            call = current_app.test_request_context(
                parts.path,
                query_string=self._as_known(parts.query),
                method=asked.method,
                headers=list(asked.headers.items()),
                data=asked.body,
            )
        except ValueError:
            return ContentAnswer(0, error="The address or a header of this call is malformed.")
        with call:
            try:
                response = current_app.make_response(self._dispatch())
            except Exception as failure:  # noqa: BLE001 - answered as any request's failure is
                response = current_app.make_response(current_app.handle_user_exception(failure))
            return ContentAnswer(
                response.status_code, response.get_data(), headers=dict(response.headers)
            )

    def _as_known(self, query: str) -> str:
        """*query* by the kind of identifier that SessionM knows the customer by."""
        wrong = self.customer.of_other_kind
        asked = parse_qsl(query, keep_blank_values=True)
        if (wrong.kind, wrong.id) not in asked or self.status != "ok":
            return query
        self.swapped = True
        return urlencode(
            [
                (self.customer.kind if name == wrong.kind else name, value)
                for name, value in asked
                if name != self.customer.kind
            ]
        )

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
        answered = current_app.make_response(current_app.dispatch_request())
        is_lookup = request.blueprint == "content" and answered.status_code in {200, 503}
        return _in_state(answered, self._state) if self._state and is_lookup else answered

    def _opens(self, given: str) -> bool:
        stored = request.authorization
        by_name = stored and (stored.username, stored.password) == (CREDENTIAL, STAND_IN)
        return bool(
            by_name or BASIC_PLACEHOLDER in given or self._keyring.accepts("content", given)
        )


def _stale_age(answer: Mapping[str, Any]) -> int:
    """Return the age of a lookup's answer in seconds if it is stale, else 0."""
    age = answer.get("age")
    return age if answer.get("stale") is True and isinstance(age, int) else 0


# States in which a message can be shown, besides the customer's own -> the reason in a lookup.
STATES = {
    "no_offers": "",
    "not_found": "SessionM does not know this customer.",
    "unavailable": "SessionM is unavailable.",
}
# Objects of a lookup whose keys are always there.
_NESTED = {"braze", "parts", "profile"}
_OFFER_FIELDS = ("count", "total", "offers", "first", "next_to_expire")


def _in_state(answered: Response, state: str) -> Response:
    """Return the answer of a lookup, changed as if the customer were in *state*."""
    answer = json.loads(answered.get_data())
    if state == "no_offers":
        emptied = _OFFER_FIELDS if "offers" in answer else ()
        answer |= {name: type(answer[name])() for name in emptied}
        return Response(json.dumps(answer), mimetype="application/json")
    for name in answer.keys() - {"user_id", "external_id"}:
        empty = (
            {inner: type(value)() for inner, value in answer[name].items()}
            if name in _NESTED
            else type(answer[name])()
        )
        answer[name] = empty
    answer |= {"status": state, "reason": STATES[state]}
    if "parts" in answer:
        answer["parts"] = dict.fromkeys(answer["parts"], state)
    is_retried = state == "unavailable" and request.values.get("on_error") == "retry"
    return Response(json.dumps(answer), 503 if is_retried else 200, mimetype="application/json")


def _object(answer: ContentAnswer) -> dict[str, Any]:
    """An answer's JSON object, ``{}`` if it is none."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _trees(inside: _Inside, calls: tuple[ConnectedContentCall, ...]) -> tuple[AnswerField, ...]:
    """The answers that the message holds in variables; without any, what a call would bring.

    The answer of a failed call is not in its variable.
    """
    saving = [call for call in calls if call.saved_as]
    saved = {call.saved_as: _object(call.answer) for call in saving if not call.error}
    if not saving:
        saved = {"customer": inside.look("customer", inside.customer)}
    return tuple(
        field_tree(name, {**_without_head(answer), **answer})
        for name, answer in saved.items()
        if answer
    )


def _without_head(answer: dict[str, Any]) -> dict[str, Any]:
    """What messages show of a lookup; what is about the lookup itself comes behind it."""
    return {name: value for name, value in answer.items() if name not in LookupHead.model_fields}


# A string, an empty list or object, or another token of JSON.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|\[\s*\]|\{\s*\}|[\[\]{},:]|[^\s\[\]{},:"]+')


def pretty(text: str) -> str:
    """Return the tokens of JSON *text* on several lines; *text* if it is no JSON, or too long."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    indented, line = "", "\n"
    for token in _TOKEN.findall(text):
        match token:
            case "[" | "{":
                line += "  "
                indented += token + line
            case "]" | "}":
                line = line[:-2]
                indented += line + token
            case ",":
                indented += token + line
            case ":":
                indented += ": "
            case _:
                indented += token
        if len(indented) > MOST_INDENTED:
            return text
    return indented


def cache_words(call: ConnectedContentCall) -> str:
    """Return what the header Cache-Status of a call's answer says, in words; "" without one."""
    stated = call.answer.headers.get("Cache-Status", "")
    if not stated:
        return ""
    if "detail=unavailable" in stated:
        return "not cached: SessionM gave no answer"
    if "; hit" not in stated:
        return "miss: SessionM was asked"
    return "stale hit" if "ttl=-" in stated else "hit"


def located(words: str) -> tuple[int, int, str]:
    """Split ``line 2, column 5: what is wrong`` into its parts; 0, 0 without a place."""
    found = _PLACE.match(words)
    return (int(found[1]), int(found[2]), words[found.end() :]) if found else (0, 0, words)


_PLACE = re.compile(r"[Ll]ine (\d+), column (\d+): ")


# A webhook's template names the fields of its JSON; one that prints an answer as JSON does not.
_FIELD_NAMES = re.compile(r"""[{,"“”]\s*(\w+)["“”]?\s*:""")


def _as_webhook(body: str) -> tuple[str, tuple[PreviewWrite, ...], tuple[str, ...]]:
    arrived = StoredEvent("", State.REJECTED, body.encode(), "application/json", None)
    try:
        read = parts_of(current_app).acceptor.read_again(arrived)
    except RefusedError as refusal:
        return f"{refusal.status}: {refusal}", (), ()
    writes = tuple(PreviewWrite(write.tags, write.ttl) for write in read.writes)
    return "", writes, warnings_of(read)
