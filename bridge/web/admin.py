"""The admin API behind the dashboard: events, delivery, cache."""

import re
import time
from typing import Any

from flask import Blueprint, Response, current_app, jsonify

from bridge.customer import Customer
from bridge.fields import FieldError, identifier
from bridge.intake.payload import read_fields
from bridge.outbox.events import MOST_A_PAGE, PAGE
from bridge.outbox.operator import Done
from bridge.outbox.search import read_filter
from bridge.parts import parts_of
from bridge.web.auth import scope
from bridge.web.body import read_body, url_fields
from bridge.web.errors import error

bp = Blueprint("admin", __name__, url_prefix="/api")


@bp.get("/events")
@scope("admin")
def list_events() -> Response:
    given = url_fields()
    limit, before = read_limit(given.pop("limit", None)), given.pop("before", "")
    found = parts_of(current_app).events.find(read_filter(given, time.time()), limit, before)
    return jsonify(status="ok", events=found.events, next=found.next)


@bp.get("/events/<event_id>")
@scope("admin")
def show_event(event_id: str) -> Response:
    story = parts_of(current_app).events.story(event_id)
    return _unknown(event_id) if story is None else jsonify(status="ok", event=story)


@bp.post("/events/<event_id>/replay")
@scope("admin")
def replay_event(event_id: str) -> Response:
    return _told(event_id, parts_of(current_app).operator.replay_one(event_id), "replayed")


@bp.delete("/events/<event_id>")
@scope("admin")
def discard_event(event_id: str) -> Response:
    return _told(event_id, parts_of(current_app).operator.discard_one(event_id), "discarded")


@bp.post("/events/replay")
@scope("admin")
def replay_events() -> Response:
    given = _body()
    dry_run = _flag(given, "dry_run")
    wanted = read_filter(given, time.time())
    done = parts_of(current_app).operator.replay(wanted, dry_run=dry_run)
    return jsonify(
        status="ok",
        matched=done.matched,
        replayed=done.changed,
        dry_run=dry_run,
        refused=done.refused[:10],
    )


@bp.post("/delivery/pause")
@scope("admin")
def pause() -> Response:
    heard = parts_of(current_app).operator.pause()
    return jsonify(status="ok", state="paused" if heard else "pausing")


@bp.post("/delivery/resume")
@scope("admin")
def resume() -> Response:
    parts_of(current_app).operator.resume()
    return jsonify(status="ok", state="running")


@bp.delete("/cache")
@scope("admin")
def forget_lookups() -> Response:
    given = url_fields()
    user_id = identifier(given.get("user_id"), "user_id")
    external_id = identifier(given.get("external_id"), "external_id")
    if not (user_id or external_id):
        raise FieldError("user_id", "is missing or blank: say whose (user_id or external_id)")
    lookups = parts_of(current_app).lookups
    if user_id:
        lookups.forget(Customer("user_id", user_id))
    if external_id:
        lookups.forget(Customer("external_id", external_id))
    return jsonify(status="ok")


def _body() -> dict[str, Any]:
    body = read_body()
    return read_fields(body, "application/json") if body else {}


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.pop(name, False)
    if not isinstance(value, bool):
        raise FieldError(name, "must be true or false")
    return value


def read_limit(value: str | None, default: int = PAGE) -> int:
    """How many of a list a page holds, by its parameter ``limit``."""
    if value is None:
        return default
    if not (re.fullmatch("[0-9]{1,9}", value) and 1 <= int(value) <= MOST_A_PAGE):
        raise FieldError("limit", f"must be a whole number from 1 to {MOST_A_PAGE}")
    return int(value)


def _told(event_id: str, done: Done | None, word: str) -> Response:
    if done is None:
        return _unknown(event_id)
    if not done.changed:
        return error(409, f"not_{word}", f"The event was not {word}: {'; '.join(done.refused)}.")
    return jsonify(status="ok", matched=done.matched, **{word: done.changed})


def _unknown(event_id: str) -> Response:
    return error(404, "no_such_event", f"There is no event {event_id[:64]}.")
