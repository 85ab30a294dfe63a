"""How far the setup is: what has arrived from Braze, and what became of the last test send."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from bridge import clock
from bridge.fields import instant
from bridge.intake.payload import UNSENT, RefusedError
from bridge.ops.telemetry import LOOKUP_OUTCOMES, LastError, Period, together
from bridge.outbox.accept import warnings_of
from bridge.outbox.model import Direction, State, id_prefix
from bridge.outbox.search import Filter
from bridge.parts import Parts
from bridge.storage.database import StoreUnavailableError

log = logging.getLogger(__name__)

# Newest events that are searched for a test send: on a busy bridge others come in between.
LOOKED_AT = 50
# Rejected sends whose bodies are read for that.
MOST_REJECTED = 5
# Seconds in which rejected calls count as those of the person who is setting Braze up.
RECENT = 15 * 60
# Name of the stored fact that says what had come before the setup began.
_BEGUN = "setup_begun"


@dataclass(frozen=True)
class ArrivedSend:
    """A send that arrived at the webhook.

    Attributes:
        event: as `bridge.outbox.events.Events.details` returns it.
        warnings: as Braze was answered.
    """

    event: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def is_rejected(self) -> bool:
        return bool(self.event["state"] == State.REJECTED)

    @property
    def is_delivered(self) -> bool:
        return bool(self.event["state"] == State.DELIVERED)

    @property
    def is_of_unknown_customer(self) -> bool:
        """Whether SessionM has answered that it has no such customer."""
        return any(write["waits_for_customer"] for write in self.event["writes"])


@dataclass(frozen=True)
class RejectedCalls:
    """The *number* of rejected calls within `RECENT` seconds, and the last one's time and reason.

    Lookups and messages before the minute of the last success do not count: what was wrong is
    corrected.
    """

    number: int = 0
    last: LastError | None = None


@dataclass(frozen=True)
class SetupProgress:
    """How far the setup is.

    Attributes:
        unknown: why nothing of it can be read, "" if it can.
        address: whether Braze can use the bridge's address.
        send: the last test send, or the last send if there is none; ``None`` before the first.
        last: the last send, as `bridge.outbox.events.Events.find` returns it.
        sends_rejected: rejected ones of the last `LOOKED_AT` sends.
        lookups: Connected Content calls that were answered since `begin`, or the first start.
        looked_up_at: the minute of the last one within an hour, seconds since 1970, or ``None``.
        rejected: Connected Content calls without a lookup.
        sends_not_let_in: webhooks with a wrong key, or without one.
        message: the last message of SessionM's, as `bridge.outbox.events.Events.find` returns it.
        messages_not_let_in: messages with a wrong key, or without one.
        duplicates: messages that SessionM repeated within `RECENT` seconds.
    """

    unknown: str
    address: bool
    send: ArrivedSend | None = None
    last: dict[str, Any] | None = None
    sends_rejected: RejectedCalls = RejectedCalls()
    lookups: int = 0
    looked_up_at: float | None = None
    rejected: RejectedCalls = RejectedCalls()
    sends_not_let_in: RejectedCalls = RejectedCalls()
    message: dict[str, Any] | None = None
    messages_not_let_in: RejectedCalls = RejectedCalls()
    duplicates: int = 0

    @property
    def webhook(self) -> Literal["none", "accepted", "rejected", "unauthorized"]:
        """What became of the last send."""
        refused = self.sends_not_let_in.last
        if refused and id_prefix(refused.at) > (self.last["id"] if self.last else ""):
            return "unauthorized"
        if self.last is None:
            return "none"
        return "rejected" if self.last["state"] == State.REJECTED else "accepted"

    @property
    def test_may_be_refused(self) -> bool:
        """Whether a send with a wrong key came after the last test send.

        It may be a newer test send.
        """
        refused = self.sends_not_let_in.last
        test = self.send.event["id"] if self.send and self.send.event["test"] else ""
        return refused is not None and id_prefix(refused.at) > test

    @property
    def as_json(self) -> dict[str, Any]:
        """What differs whenever the page has something new to show."""
        send = self.send and {
            "id": self.send.event["id"],
            "state": self.send.event["state"],
            "unknown_customer": self.send.is_of_unknown_customer,
            "test": self.send.event["test"],
        }
        return {
            "status": "ok",
            "steps": {
                "address": self.address,
                "webhook": self.webhook == "accepted",
                "credential": self.lookups > 0,
                "test": self.send is not None and self.send.is_delivered,
            },
            "send": send,
            "webhook": self.webhook,
            "sends_rejected": self.sends_rejected.number,
            "rejected": self.rejected.number,
            "sends_not_let_in": self.sends_not_let_in.number,
            "message": self.message and {name: self.message[name] for name in ("id", "state")},
            "messages_not_let_in": self.messages_not_let_in.number,
            "duplicates": self.duplicates,
        }


def begin(parts: Parts) -> None:
    """Count from now on: what came before, such as a demo's own traffic, turns no step green.

    Raises:
        StoreUnavailableError: the store cannot be used.
    """
    newest = parts.events.find(Filter(), 1).events
    parts.store.set_fact(
        _BEGUN,
        {
            "event": newest[0]["id"] if newest else "",
            "lookups": _lookups(parts.telemetry.totals()),
        },
    )


def progress(parts: Parts, *, address: bool) -> SetupProgress:
    """Return how far the setup is; *address*: whether Braze can use the bridge's."""
    try:
        begun = parts.store.fact(_BEGUN) or {"event": "", "lookups": 0}
        sends = _newest(parts, Direction.TO_SESSIONM, LOOKED_AT, begun["event"])
        send, total = _last_send(parts, sends), parts.telemetry.totals()
        messages = _newest(parts, Direction.TO_BRAZE, 1, begun["event"])
        minutes = parts.telemetry.minutes(clock.now() - 3600)
    except StoreUnavailableError as error:
        log.warning("no progress: %s", error, extra={"action": "progress_unreadable"})
        return SetupProgress(f"The bridge cannot reach its database: {error}.", address)
    recent = minutes[-RECENT // 60 :]
    lookups = _lookups(total) - begun["lookups"]
    looked_up_at = next((one.at for one in reversed(minutes) if lookups and _lookups(one)), None)
    answered = together(since(recent, looked_up_at))
    message = messages[0] if messages else None
    return SetupProgress(
        unknown="",
        address=address,
        send=send,
        last=sends[0] if sends else None,
        sends_rejected=_recently_rejected(sends),
        lookups=lookups,
        looked_up_at=looked_up_at,
        rejected=_rejected(
            parts, "content", answered.count("braze_content_calls") - _lookups(answered)
        ),
        sends_not_let_in=_rejected(
            parts, "webhooks", together(recent).count("webhooks_not_let_in")
        ),
        message=message,
        messages_not_let_in=_messages_not_let_in(parts, recent, message),
        duplicates=together(recent).count("messages_duplicate"),
    )


def since(minutes: list[Period], at: float | None) -> list[Period]:
    """Return those of *minutes* that end after *at*: what failed before a success is corrected."""
    return [one for one in minutes if at is None or one.at + 60 > at]


def _recently_rejected(sends: list[dict[str, Any]]) -> RejectedCalls:
    """Those of *sends* that were rejected within `RECENT` seconds."""
    after = id_prefix(clock.now() - RECENT)
    found = [one for one in sends if one["state"] == State.REJECTED and one["id"] > after]
    if not found:
        return RejectedCalls()
    at = instant(found[0]["received_at"]) or 0.0
    return RejectedCalls(len(found), LastError(at, found[0]["reason"]))


def _messages_not_let_in(
    parts: Parts, recent: list[Period], newest: dict[str, Any] | None
) -> RejectedCalls:
    """Messages with a wrong key, since *newest* if that was accepted."""
    accepted = newest is not None and newest["state"] != State.REJECTED
    at = instant(newest["received_at"]) if newest and accepted else None
    return _rejected(parts, "messages", together(since(recent, at)).count("messages_not_let_in"))


def _rejected(parts: Parts, kind: str, number: int) -> RejectedCalls:
    if number <= 0:
        return RejectedCalls()
    return RejectedCalls(number, parts.telemetry.last_error(kind))


def _lookups(minute: Period) -> int:
    return sum(minute.count(f"lookups_{outcome}") for outcome in LOOKUP_OUTCOMES)


def _newest(parts: Parts, direction: Direction, limit: int, after: str) -> list[dict[str, Any]]:
    """Up to *limit* events in *direction* that are newer than the id *after*, newest first."""
    found = parts.events.find(Filter(direction=direction), limit).events
    return [one for one in found if one["id"] > after]


def _last_send(parts: Parts, newest: list[dict[str, Any]]) -> ArrivedSend | None:
    """Return the first test send of *newest*, or else the first send."""
    rejected = [one["id"] for one in newest if one["state"] == State.REJECTED][:MOST_REJECTED]
    tests = (one for one in newest if one["test"] or _is_rejected_test(parts, one["id"], rejected))
    chosen = next(tests, newest[0] if newest else None)
    event = parts.events.details(chosen["id"]) if chosen else None
    return ArrivedSend(event, _warnings(parts, event["id"])) if event else None


def _is_rejected_test(parts: Parts, event_id: str, rejected: list[str]) -> bool:
    """Return whether a rejected send is a test send: only its body says so."""
    stored = parts.events.one(event_id) if event_id in rejected else None
    return stored is not None and UNSENT.encode() in stored.body


def _warnings(parts: Parts, event_id: str) -> tuple[str, ...]:
    stored = parts.events.one(event_id)
    if stored is None or stored.state is State.REJECTED:
        return ()
    try:
        return warnings_of(parts.acceptor.read_again(stored))
    except RefusedError as refusal:
        # The rules have changed since it was accepted.
        return (f"Sent now, it would be rejected: {refusal}",)
