"""Braze's REST API: the two trigger endpoints, with the checks that Braze documents."""

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field
from werkzeug.wrappers import Request, Response

from bridge.sandbox.messages import Given, Json, Text, check, read_object
from bridge.sandbox.routes import Names

_HOUR = 3600
_MOST_RECIPIENTS = 50
_MOST_BYTES = 4 * 1000 * 1000
_MOST_PROPERTIES = 50 * 1024
_IDENTIFIERS = ("external_user_id", "braze_id", "user_alias", "email")
_PROPERTIES = {
    "campaign": ("trigger_properties",),
    "canvas": ("context", "canvas_entry_properties"),
}


class Workspace(Given):
    """The state of the workspace.

    `paused`, `archived` and `unknown` are IDs of campaigns and Canvases. A call with an identifier
    in `refused` is refused; one in `warned` gets an entry in `errors`. `limit` is the number of
    calls an hour, `reset_in` the seconds until its reset (default: the end of the hour).
    """

    limit: Annotated[int, Field(ge=0)] = 250_000
    reset_in: Annotated[float, Field(ge=0)] | None = None
    paused: list[Text] = Field(default=[])
    archived: list[Text] = Field(default=[])
    unknown: list[Text] = Field(default=[])
    refused: list[Text] = Field(default=[])
    warned: list[Text] = Field(default=[])


class BrazeRefusedError(ValueError):
    """Braze's refusal: an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Trigger:
    """The trigger endpoints and the sent messages. Thread-safe.

    Attributes:
        on_message: called with each message during the call that sends it, since Braze may render
            the message at that moment.
    """

    def __init__(self, key: str, clock: Callable[[], float]) -> None:
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: list[Json] = []
        self.on_message: Callable[[Json], None] = lambda _message: None
        self.replace({})

    def replace(self, given: Mapping[str, Any]) -> None:
        """Replace the state of the workspace and begin a new hour. Raises ValueError."""
        workspace = check(Workspace, dict(given))
        with self._lock:
            self._workspace = workspace
            self._used: Counter[float] = Counter()
            self._resets_at = (
                None if workspace.reset_in is None else self._clock() + workspace.reset_in
            )

    def sent(self) -> list[Json]:
        """Return all sent messages, oldest first."""
        with self._lock:
            return list(self._sent)

    def campaign(self, request: Request, _: Names) -> Response:
        return self._answer("campaign", request)

    def canvas(self, request: Request, _: Names) -> Response:
        return self._answer("canvas", request)

    def _answer(self, kind: str, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {self._key}":
            return _reply(401, {"message": "Invalid API key"})
        is_free, headers = self._take_one()
        if not is_free:
            return _reply(429, {"message": "Rate limit exceeded."}, headers)
        try:
            answer = self._send(kind, request)
        except BrazeRefusedError as refused:
            return _reply(refused.status, {"message": str(refused)}, headers)
        except ValueError as error:
            return _reply(400, {"message": str(error)}, headers)
        return _reply(201, answer, headers)

    def _take_one(self) -> tuple[bool, dict[str, str]]:
        """Count a call; return whether the hourly limit allows it, and the rate limit's headers."""
        now = self._clock()
        with self._lock:
            hour = now // _HOUR * _HOUR
            resets_at = hour + _HOUR
            if self._resets_at is not None:
                after = now >= self._resets_at
                hour, resets_at = (self._resets_at, resets_at) if after else (-1, self._resets_at)
            is_free = self._used[hour] < self._workspace.limit
            self._used[hour] += is_free
            left = self._workspace.limit - self._used[hour]
        return is_free, {
            "X-RateLimit-Limit": str(self._workspace.limit),
            "X-RateLimit-Remaining": str(left),
            "X-RateLimit-Reset": f"{resets_at:.3f}".rstrip("0").rstrip("."),
        }

    def _send(self, kind: str, request: Request) -> Json:
        if len(request.get_data()) > _MOST_BYTES:
            raise BrazeRefusedError(413, "The request is too large.")
        body = read_object(request)
        braze_id = body.get(f"{kind}_id")
        if not isinstance(braze_id, str) or not braze_id or braze_id in self._workspace.unknown:
            raise BrazeRefusedError(400, f"Invalid {kind.title()} ID")
        if body.get("broadcast") is True:
            if body.get("recipients"):
                raise BrazeRefusedError(400, "broadcast cannot be true with recipients")
            recipients: list[Json] = [{}]
        else:
            recipients = _recipients(body.get("recipients"), kind)
        dispatch_id = uuid.uuid4().hex
        answer: Json = {"dispatch_id": dispatch_id, "message": "success"}
        named = {_name(one): one for one in recipients}
        if bad := [name for name in named if name in self._workspace.refused]:
            raise BrazeRefusedError(400, f"Invalid recipient: {bad[0]}")
        for state in ("paused", "archived"):
            if braze_id in getattr(self._workspace, state):
                notice = f"The {kind} is {state}. Trigger requests will not take effect."
                return answer | {"notice": notice}
        # A recipient that is named twice gets one message.
        for one in named.values():
            message = {"kind": kind, "id": braze_id, "dispatch_id": dispatch_id, "recipient": one}
            with self._lock:
                self._sent.append(message)
            self.on_message(message)
        warned = [name for name in named if name in self._workspace.warned]
        if warned:
            answer["errors"] = [f"{name} is not known" for name in warned]
        return answer


def _recipients(recipients: Any, kind: str) -> list[Json]:
    if not isinstance(recipients, list) or not recipients:
        raise BrazeRefusedError(400, "recipients must be given, or broadcast be true")
    if len(recipients) > _MOST_RECIPIENTS:
        raise BrazeRefusedError(400, "recipients can hold 50 objects at most")
    for one in recipients:
        if not isinstance(one, dict) or sum(name in one for name in _IDENTIFIERS) != 1:
            raise BrazeRefusedError(400, "a recipient must have exactly one identifier")
        if "email" in one and not one.get("prioritization"):
            raise BrazeRefusedError(400, "prioritization is required with email")
        for name in _PROPERTIES[kind]:
            properties = one.get(name, {})
            if not isinstance(properties, dict):
                raise BrazeRefusedError(400, f"{name} must be an object")
            if len(json.dumps(properties, ensure_ascii=False).encode()) > _MOST_PROPERTIES:
                raise BrazeRefusedError(400, f"{name} is larger than 50 KB")
    return recipients


def _name(recipient: Mapping[str, Any]) -> str:
    found = next((recipient[name] for name in _IDENTIFIERS if name in recipient), "")
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True)


def _reply(status: int, body: Json, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps(body, separators=(",", ":")).encode()
    return Response(content, status, dict(headers or {}), mimetype="application/json")


def in_brazes_shape(response: Response) -> Response:
    """Return a fault's error response in Braze's format."""
    if response.status_code >= 400 and response.is_json:
        errors = (response.get_json(silent=True) or {}).get("errors")
        if isinstance(errors, dict):
            response.set_data(json.dumps({"message": errors.get("message", "")}))
    return response
