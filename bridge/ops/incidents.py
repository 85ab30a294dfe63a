"""Incidents: a problem, its start and end, the numbers it affects, and a remedy. Pure.

`causes` derives the present causes from the checks of ``/health``. A consequence (late writes while
SessionM is down) is not a cause of its own. `follow` compares the causes with the known incidents:
a new cause opens an incident, and an incident without its cause is closed. Times are seconds since
the epoch.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.fields import counted, instant, iso, percent, span
from bridge.outbox.model import DeadGroup, Extent
from bridge.planner import LATE

# Lookups in five minutes: with fewer, late ones are ignored. Then the share (0 to 1) of them that
# may be late or unavailable without an incident.
LEAST_LOOKUPS = 100
LATE_SHARE = 0.01
# The share of a limit from which a warning is due.
NEAR = 0.9
# Seconds after its end within which a cause reopens its incident.
REOPENS = 60.0
# Seconds: shorter incidents of the codes in _BLIPS are not kept, such as one failed call or the
# start of the bridge.
BLIP = 5.0
_BLIPS = {"delivery_stopped", "messages_stopped", "sessionm_fails", "braze_fails"}
# Code -> code of the worse stage of the same outage: both stages are one incident.
_GROWS_TO = {"sessionm_fails": "sessionm_down", "braze_fails": "braze_down"}
# Days for which closed incidents are kept.
KEPT_DAYS = 30
# Different failures of one incident that are named after its end.
MOST_ERRORS = 5

NOTHING = Extent()

# The order of the incidents, the most urgent first. Those of URGENT lose or stop something.
URGENT = (
    "store_full",
    "store_locked",
    "store_unavailable",
    "delivery_stopped",
    "messages_stopped",
    "sessionm_refuses",
    "sessionm_down",
    "braze_refuses",
    "braze_down",
    "dead_writes",
    "dead_messages",
)
CODES = (
    *URGENT,
    "delivery_paused",
    "sessionm_limits",
    "sessionm_fails",
    "braze_limits",
    "braze_fails",
    "queue_nearly_full",
    "delivery_late",
    "messages_late",
    "calls_overdue",
    "batch_flagged",
    "batch_failed",
    "braze_budget",
    "connections_nearly_full",
    "clocks_differ",
    "lookups_late",
)
# Prefixes of codes whose causes are known only while the store can be read.
_NEEDS_STORE = (
    "delivery_",
    "messages_",
    "queue_",
    "calls_",
    "dead_",
    "batch_",
    "clocks_",
)


@dataclass(frozen=True)
class Cause:
    """One present problem.

    Attributes:
        code: one of `CODES`.
        reason: a sentence about the problem, without any customer's name.
        do: sentences about the remedy.
        subject: distinguishes causes with one code: a system, a host, a reason.
        since: the start, if known.
        extent: the numbers that it affects.
        order: the action that the dashboard offers: ``resume``, ``replay``, or "". ``look``: no
            replay before a look into Braze.
        search: filters of ``GET /api/events`` for the affected events.
        size: what grows with the problem, if not the writes of *extent*.
        error: the failure of the system, which may change while the problem stays.
        failing_calls: the calls to the bridge that fail because of it: ``webhooks``, ``lookups`` or
            "".
        is_consequence: whether another present cause explains it.
    """

    code: str
    reason: str
    do: str
    subject: str = ""
    since: float | None = None
    extent: Extent = NOTHING
    order: str = ""
    search: Mapping[str, str] = field(default_factory=dict)
    size: float = field(default=0.0, compare=False)
    error: str = ""
    failing_calls: str = ""
    is_consequence: bool = False

    @property
    def unit(self) -> str:
        """What *extent* counts: ``write`` or ``message``."""
        to_braze = ("braze_", "messages_", "dead_messages")
        return "message" if self.code.startswith(to_braze) else "write"

    @property
    def is_urgent(self) -> bool:
        """Whether it loses or stops something."""
        return self.code in URGENT

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the incident: two open ones never have the same."""
        return _GROWS_TO.get(self.code, self.code), self.subject

    @property
    def weight(self) -> tuple[int, bool, float]:
        """What makes it worse than another cause of the same incident.

        Its code, then whether calls to the bridge fail too, then its size.
        """
        return -CODES.index(self.code), bool(self.failing_calls), self.size or self.extent.writes


@dataclass(frozen=True)
class Incident:
    """A cause and its duration.

    Attributes:
        cause: the present cause; of a closed incident, the worst one.
        since: the start.
        until: the end; ``None`` while it is open.
        most: the largest extent so far.
        worst: the first of the worst causes so far.
        errors: the different failures so far, the first `MOST_ERRORS`.
    """

    cause: Cause
    since: float
    until: float | None = None
    most: Extent = NOTHING
    worst: Cause | None = None
    errors: tuple[str, ...] = ()

    @property
    def extent(self) -> Extent:
        """The present extent, or the largest one of a closed incident."""
        return self.cause.extent if self.until is None else self.most


def follow(
    known: Iterable[Incident], found: Sequence[Cause], now: float, *, store_is_up: bool = True
) -> list[Incident]:
    """Return the present incidents: open ones first, then closed ones by their start, newest first.

    Args:
        known: the incidents before.
        found: the present causes.
        now: the present time.
        store_is_up: if false, incidents whose cause is in the store stay open.
    """
    known = list(known)
    latest, closed = _latest(known, now)
    opened = []
    for cause in found:
        is_new = cause.key not in latest
        if is_new and _is_unstored(cause, known, now):
            continue
        began = now if cause.since is None else cause.since
        before = latest.pop(cause.key, None) or Incident(cause, began)
        if before.until is not None and cause.since is not None and cause.since > before.until:
            # It began after the end: it is another incident.
            closed.append(before)
            before = Incident(cause, began)
        most = before.most.at_least(cause.extent)
        worst = max(before.worst or before.cause, cause, key=lambda one: one.weight)
        errors = tuple(dict.fromkeys(filter(None, (*before.errors, cause.error))))[:MOST_ERRORS]
        opened.append(Incident(cause, min(before.since, began), None, most, worst, errors))
    for one in latest.values():
        worst = one.worst or one.cause
        if one.until is not None:
            closed.append(one)
        elif not store_is_up and one.cause.code.startswith(_NEEDS_STORE):
            opened.append(one)
        elif _is_unstored(one.cause, known, now):
            continue
        elif worst.code not in _BLIPS or now - one.since >= BLIP:
            closed.append(replace(one, cause=_with_errors(worst, one.errors), until=now))
    # Of one code, those that delay writes come first.
    opened.sort(key=lambda one: (CODES.index(one.cause.code), not one.extent.writes, one.since))
    closed.sort(key=lambda one: -one.since)
    return opened + closed


def _with_errors(worst: Cause, errors: Iterable[str]) -> Cause:
    """Return the cause of a closed incident, which names its other failures too."""
    others = "; ".join(error for error in errors if error not in worst.reason)
    return replace(worst, reason=f"{worst.reason} Also: {others}.") if others else worst


def _is_unstored(cause: Cause, known: Iterable[Incident], now: float) -> bool:
    """Return whether a loop only could not store its heartbeat, since the store was down."""
    stores = (one for one in known if one.cause.code.startswith("store_"))
    was_down = any(one.until is None or now - one.until < BLIP for one in stores)
    return cause.code.endswith("_stopped") and was_down


def _latest(
    known: Iterable[Incident], now: float
) -> tuple[dict[tuple[str, str], Incident], list[Incident]]:
    """Return the open and recently closed incidents by key, and the other closed ones."""
    latest: dict[tuple[str, str], Incident] = {}
    closed = []
    # Open incidents come last, and so replace closed ones with the same key.
    for one in sorted(known, key=lambda one: one.until or float("inf")):
        if one.until is None or now - one.until < REOPENS:
            before = latest.get(one.cause.key)
            if before and before.until is None:
                # Two processes have opened it at the same time.
                one = replace(one, since=min(one.since, before.since))  # noqa: PLW2901
            elif before:
                closed.append(before)
            latest[one.cause.key] = one
        elif now - one.until < KEPT_DAYS * 86400:
            closed.append(one)
    return latest, closed


def as_json(one: Incident) -> dict[str, Any]:
    """Return an incident in the JSON of ``/health`` and of alerts."""
    return {
        "code": one.cause.code,
        "since": iso(one.since),
        **({} if one.until is None else {"until": iso(one.until)}),
        "reason": one.cause.reason,
        "do": one.cause.do,
        "writes": one.extent.writes,
        "customers": one.extent.customers,
        "campaigns": list(one.extent.campaigns),
        "events": one.extent.events,
        "webhooks": one.extent.webhooks,
        "lookups": one.extent.lookups,
        "stale": one.extent.stale,
    }


def causes(
    checks: Mapping[str, Any], queue: Extent = NOTHING, dead: Sequence[DeadGroup] = ()
) -> list[Cause]:
    """Return the present causes, except those of messages to Braze.

    Args:
        checks: ``checks`` of ``/health``.
        queue: the extent of the queued writes.
        dead: the dead writes by reason.
    """
    found = list(store_causes(checks["store"]))
    if not found:
        found += _delivery(checks, queue)
        found += _queue_limit(checks["delivery"])
        found += _overdue(checks["delivery"])
        found += dead_causes(dead, checks["sessionm_core"], checks["delivery"])
        found += _batches(checks["delivery"])
    found += _sessionm(checks, queue)
    found += _lookups(checks)
    found += _braze_budget(checks["braze_budget"])
    found += _connections(checks)
    found += clock_causes(checks["clocks"])
    return found


def store_causes(store: Mapping[str, Any]) -> Iterator[Cause]:
    """Yield the cause that prevents events from being stored, if there is one."""
    if store["state"] == "ok":
        return
    error = store["error"]
    again = (
        "No accepted webhook is lost: new ones are answered 503, and Braze retries them. SessionM "
        "must send its messages again."
    )
    if "full" in error:
        code, do = "store_full", f"Free space on the disk of the database. {again}"
    elif "locked" in error:
        code = "store_locked"
        do = "End the program that locks the database, such as a backup or a VACUUM. "
        do += _how_to_find_holder(store) + again
    else:
        code = "store_unavailable"
        do = f"Start the database again, or run `bridge check` to find the problem. {again}"
    yield Cause(code, f"Events cannot be stored: {error}.", do, failing_calls="webhooks")


def _how_to_find_holder(store: Mapping[str, Any]) -> str:
    """Return how to find the program that locks the file; "" without a file."""
    file = store.get("file")
    return f"`fuser -v {shlex.quote(file)}` names the programs that have it open. " if file else ""


def _not_running(delivery: Mapping[str, Any], queue: Extent) -> list[Cause]:
    found = []
    if delivery["state"] == "stopped":
        found.append(
            Cause(
                "delivery_stopped",
                "Delivery has stopped: no process runs the delivery loop.",
                "Start `bridge serve` or `bridge deliver`; the log says why the last one ended. "
                "If a bridge still serves, webhooks are accepted and wait.",
                since=delivery.get("beat_at"),
                extent=queue,
                search={"state": "queued"},
            )
        )
    if delivery["held_by"] == "hand":
        by = delivery.get("by")
        found.append(
            Cause(
                "delivery_paused",
                f"Delivery is paused by hand{f' ({by})' if by else ''}.",
                "Resume it on the dashboard or by `bridge queue resume`. Webhooks are accepted and "
                "wait.",
                since=delivery.get("paused_at"),
                extent=queue,
                order="resume",
                search={"state": "queued"},
            )
        )
    return found


def _delivery(checks: Mapping[str, Any], queue: Extent) -> list[Cause]:
    delivery = checks["delivery"]
    more = _waiting_messages(checks)
    found = [replace(one, do=one.do + more) for one in _not_running(delivery, queue)]
    age = delivery["oldest_seconds"]
    core = checks["sessionm_core"]["state"]
    # Late writes are not a cause if another cause explains them.
    if found or delivery["held_by"] or core in _STATES or age <= LATE:
        return found
    return [
        Cause(
            "delivery_late",
            f"The oldest write has been waiting for {span(age)}.",
            "Check SessionM's latency. If SessionM allows more writes a second, raise "
            "BRIDGE_SESSIONM_RPS.",
            extent=queue,
            search={"state": "queued"},
            size=age,
        )
    ]


def _waiting_messages(checks: Mapping[str, Any]) -> str:
    """Return sentences about the messages to Braze, which wait as well; "" without any."""
    delivery = checks.get("delivery_to_braze", {"queued": 0})
    if not (number := delivery["queued"]):
        return ""
    waits = "waits" if number == 1 else "wait"
    return f" {counted(number, 'message')} to Braze {waits} too. {_expiry(delivery)}"


# State of SessionM or Braze -> suffix of the code, and the predicate of the sentence: now, and
# after the last call.
_STATES = {
    "refusing": ("refuses", "refuses our calls", "refused our calls"),
    "limiting": ("limits", "asks us to wait", "asked us to wait"),
    "failing": ("fails", "is failing", "failed"),
    "down": ("down", "is down", "was down"),
}
# How an operator ends a wait.
TRY_NOW = "end the wait at once by `bridge queue resume` (on the dashboard: Try now)"
# `held_by` of the check `delivery` -> the state of the destination.
_HELD = {"refused": "refusing", "limit": "limiting", "down": "down"}
_VARIABLES = {
    "Core": "SESSIONM_CORE_KEY and SESSIONM_CORE_SECRET",
    "Connect": "SESSIONM_CONNECT_AUTH and SESSIONM_RETAILER_ID",
}


def _sessionm(checks: Mapping[str, Any], queue: Extent) -> Iterator[Cause]:
    store_is_up = checks["store"]["state"] == "ok"
    delivery = checks["delivery"]
    held = delivery["held_by"] if store_is_up and delivery["state"] != "stopped" else ""
    for system in ("Core", "Connect"):
        check = checks[f"sessionm_{system.lower()}"]
        if system == "Core" and held in _HELD:
            yield _held(delivery, check, queue)
            continue
        if check["state"] not in _STATES:
            continue
        code, predicate, past = _STATES[check["state"]]
        error, subject = _explained(check), system
        idle_since = check.get("idle_since", "")
        if check["state"] == "refusing" and not are_credentials(error):
            if system == "Core" and store_is_up and delivery["dead"]:
                # The refused writes are dead, which is a cause of its own.
                continue
            predicate, past = "refuses one call after the other", "refused one call after the other"
            # Not the incident of refused credentials: another problem, with another remedy.
            error, subject = "", f"{system} calls"
        words = f"{past} until {idle_since}; no call since" if idle_since else predicate
        yield Cause(
            f"sessionm_{code}",
            f"SessionM {system} {words}{error}.",
            _do(check["state"], system, check["error"]),
            subject=subject,
            since=instant(idle_since) if idle_since else None,
            extent=queue if system == "Core" else NOTHING,
            search={"state": "queued"} if system == "Core" and queue.writes else {},
            error=check["error"],
            failing_calls="" if check.get("answers_lookups") else "lookups",
        )


def _explained(check: Mapping[str, Any]) -> str:
    """Return the end of a sentence that names the failure which explains the state."""
    # During a wait that the system asked for, lookups may fail in other ways.
    is_other = check["state"] == "limiting" and "429" not in check["error"]
    return "" if is_other or not check["error"] else f": {check['error']}"


def _held(delivery: Mapping[str, Any], check: Mapping[str, Any], queue: Extent) -> Cause:
    """Return the cause that stops delivery; its ``held_by`` is a key of `_HELD`."""
    state, reason, do = _HELD[delivery["held_by"]], delivery["reason"], ""
    word = "paused" if delivery["held_by"] == "refused" else "held up"
    answers_lookups = check.get("answers_lookups", False)
    if answers_lookups and state == "down":
        reason = f"SessionM does not answer our writes ({delivery['error']})"
        do = "Lookups are answered. What was sent may have been written: it is sent again. "
    if idle_since := delivery.get("idle_since"):
        reason += f". The last call was at {idle_since}; the next write tries again"
    return Cause(
        f"sessionm_{_STATES[state][0]}",
        f"Delivery is {word}: {reason}.",
        do + _do(state, "Core", reason),
        subject="Core",
        extent=queue,
        search={"state": "queued"} if queue.writes else {},
        error=delivery.get("error", ""),
        failing_calls="" if answers_lookups else "lookups",
    )


def _do(state: str, system: str, error: str) -> str:
    meanwhile = "No write is lost; delivery resumes automatically."
    if system == "Connect":
        meanwhile = "Meanwhile, lookups of cached customers are answered from the cache."
    if state == "limiting":
        wait = "Wait." if system == "Connect" else f"Wait, or {TRY_NOW}."
        return f"{wait} {meanwhile} If it happens often, lower BRIDGE_SESSIONM_RPS."
    if state == "refusing" and are_credentials(error):
        waits = "" if system == "Connect" else " Until then writes wait, and none is lost."
        return (
            f"Correct {_VARIABLES[system]} and restart the bridge.{waits} `bridge check` tries the "
            "credentials."
        )
    if state == "refusing":
        return f"Check which calls are refused, and correct the rule or the template. {meanwhile}"
    if "no SessionM answer" in error:
        return (
            "Ask whether SessionM is under maintenance, or whether a proxy answers instead. "
            f"{meanwhile}"
        )
    return f"Ask SessionM if it lasts; `bridge check` finds problems on the way. {meanwhile}"


def are_credentials(error: str) -> bool:
    """Return whether *error* says that SessionM refuses the bridge's credentials."""
    words = ("401", "credentials", "INVALID_API_KEY", "ACCESS_DENIED", "INVALID_AUTH_TOKEN")
    return any(word in error for word in (*words, "HTTPS_ONLY"))


_TO_BRAZE = {"state": "queued", "direction": "to_braze"}
_BRAZE_DO = {
    "refusing": "Correct BRAZE_REST_KEY, its permissions or BRAZE_REST_URL, and restart the "
    "bridge; `bridge check` tries the key.",
    "limiting": f"Wait until Braze's rate limit allows more, or {TRY_NOW}.",
    "failing": "Check Braze's status page if it lasts. What Braze did not get is retried.",
    "down": "Check Braze's status page; `bridge check` finds problems on the way.",
}


def message_causes(
    checks: Mapping[str, Any], queue: Extent, dead: Sequence[DeadGroup]
) -> Iterator[Cause]:
    """Yield the present causes for messages to Braze; none if they are switched off.

    Args:
        checks: ``checks`` of ``/health``.
        queue: the extent of the queued messages.
        dead: the dead messages by reason.
    """
    delivery, braze = checks.get("delivery_to_braze"), checks.get("braze")
    if delivery is None or braze is None or checks["store"]["state"] != "ok":
        return
    # One process runs both loops: without it, `delivery_stopped` is the cause.
    if delivery["state"] == "stopped" and checks["delivery"]["state"] != "stopped":
        yield Cause(
            "messages_stopped",
            "Delivery to Braze has stopped: no process runs its loop.",
            "Start `bridge serve` or `bridge deliver`; the log says why the last one ended. "
            "Messages are accepted and wait.",
            since=delivery.get("beat_at"),
            extent=queue,
            search=_TO_BRAZE,
        )
    held = _HELD.get(delivery["held_by"], "") if delivery["state"] != "stopped" else ""
    state = held or braze["state"]
    if state in _STATES:
        code, predicate, past = _STATES[state]
        error = f": {delivery['reason']}" if held else _explained(braze)
        if idle_since := (delivery if held else braze).get("idle_since"):
            predicate = f"{past} until {idle_since}; no call since"
        reason = f"Braze's REST API {predicate}{error}."
        search = _TO_BRAZE if queue.writes else {}
        do = f"{_BRAZE_DO[state]} {_expiry(delivery)}" if queue.writes else _BRAZE_DO[state]
        yield Cause(
            f"braze_{code}",
            reason,
            do,
            "Braze",
            since=instant(idle_since) if idle_since else None,
            extent=queue,
            search=search,
            error=delivery["error"] if held else braze["error"],
        )
    elif delivery["state"] == "running" and delivery["oldest_seconds"] > LATE:
        yield Cause(
            "messages_late",
            f"The oldest message to Braze has been waiting for {span(delivery['oldest_seconds'])}.",
            "Check Braze's latency. If Braze allows more calls a second, raise BRAZE_RPS.",
            extent=queue,
            search=_TO_BRAZE,
            size=delivery["oldest_seconds"],
        )
    yield from _overdue(delivery, "Braze")
    yield from map(_dead_messages, dead)


def _expiry(delivery: Mapping[str, Any]) -> str:
    left = delivery.get("expires_in_seconds", 0)
    age = f" ({span(left + delivery['oldest_seconds'])})" if left else ""
    return f"A message that has waited for BRIDGE_TRIGGER_MAX_AGE{age} expires: it is not sent."


def _dead_messages(group: DeadGroup) -> Cause:
    amount = group.extent.amount("message")
    is_one = amount.startswith("1 ")
    them = "it" if is_one else "them"
    do = f"Correct the cause in Braze or in SessionM's template, then replay or discard {them}."
    if group.uncertain:
        do = (
            f"Look in Braze first, which may have sent {them}. Discard what it has sent, and "
            "replay the rest."
        )
    return Cause(
        "dead_messages",
        f"{amount} to Braze {'is' if is_one else 'are'} dead: {group.reason}.",
        do,
        subject=group.reason,
        since=group.since,
        extent=group.extent,
        order="look" if group.uncertain else "",
        search={
            "state": "dead",
            "direction": "to_braze",
            **({"text": group.text} if group.text else {}),
        },
    )


def _queue_limit(delivery: Mapping[str, Any]) -> Iterator[Cause]:
    queued, limit = delivery["queued"], delivery.get("limit", 0)
    if limit and queued >= NEAR * limit:
        yield Cause(
            "queue_nearly_full",
            f"{queued:,} writes wait; at {limit:,}, webhooks are answered 503.",
            "Remove the cause that stops delivery, or raise BRIDGE_QUEUE_LIMIT if the disk has "
            "space.",
            search={"state": "queued"},
            size=queued,
            failing_calls="webhooks",
        )


def _overdue(delivery: Mapping[str, Any], subject: str = "") -> Iterator[Cause]:
    if delivery["overdue"]:
        yield Cause(
            "calls_overdue",
            f"{counted(delivery['overdue'], 'call')} to {subject or 'SessionM'} went on past the "
            "deadline.",
            "Restart the bridge. It is a fault of the bridge: please report it with the log.",
            subject,
        )


# Parts of a reason that mean: SessionM does not know the customer.
_UNKNOWN = ("USER_NOT_FOUND", "NOT_FOUND", "REQUIRES_REGISTERED_USER", "HTTP 404")


def dead_causes(
    groups: Sequence[DeadGroup], core: Mapping[str, Any], delivery: Mapping[str, Any]
) -> Iterator[Cause]:
    """Yield one cause for each group of dead writes.

    Args:
        groups: the dead writes by reason.
        core: the check ``sessionm_core`` of ``/health``.
        delivery: the check ``delivery``.
    """
    # Without a call for five minutes, the last one counts.
    is_idle = core["state"] == "unknown"
    is_up = core["state"] == "up" or (is_idle and not core["last_call_failed"])
    newest = max((group.until for group in groups), default=0.0)
    for group in groups:
        amount = group.extent.amount()
        is_one = amount.startswith("1 ")
        it, them = ("it", "it") if is_one else ("they", "them")
        ended = is_up and (group.passing or group.mended)
        is_newest = group.until == newest and not group.passing
        refusal = _refusal(delivery) if is_newest and delivery.get("refuses_writes") else ""
        if group.passing and is_up:
            do = f"SessionM answers again: replay {them}."
        elif group.passing and is_idle:
            do = (
                "The last call to SessionM failed, and there was none since. If `bridge check` "
                f"finds that it answers, replay {them}."
            )
        elif group.passing:
            do = f"Wait until SessionM answers again, then replay {them}."
        elif any(part in group.reason for part in _UNKNOWN):
            do = f"Create the customers in SessionM or correct the ID in Braze, then replay {them}."
        elif group.mended:
            when = "" if is_up else " once SessionM answers again"
            do = (
                "SessionM has taken a newer event of the campaign. If the cause was corrected, "
                f"replay {them}{when}; otherwise discard {them}."
            )
        else:
            do = (
                "Correct what SessionM refuses (the tag, the rule or the template) before you "
                f"replay {them}: unchanged, {it} will be refused again. Or discard {them}."
            )
        yield Cause(
            "dead_writes",
            f"{amount} {'is' if is_one else 'are'} dead: {group.reason}.{refusal}",
            do,
            subject=group.reason,
            since=group.since,
            extent=group.extent,
            order="replay" if ended else "",
            search={"state": "dead", "text": group.text} if group.text else {"state": "dead"},
        )


def _refusal(delivery: Mapping[str, Any]) -> str:
    if idle_since := delivery["idle_since"]:
        return f" SessionM refused every write until {idle_since}."
    return " SessionM refuses every write now."


def _batches(delivery: Mapping[str, Any]) -> Iterator[Cause]:
    batches = delivery.get("batches", {})
    if flagged := batches.get("flagged", 0):
        needs = "batch needs" if flagged == 1 else "batches need"
        yield Cause(
            "batch_flagged",
            f"{flagged} {needs} a person: see `bridge batch status`.",
            "Correct the cause and run `bridge batch resubmit ID`, or `bridge batch discard ID`.",
        )
    for one in batches.get("mostly_failed", ()):
        rows = f"{one['failed_rows']} of {counted(one['rows'], 'row')}"
        yield Cause(
            "batch_failed",
            f"SessionM could not do {rows} of batch {one['id']}: see `bridge batch status "
            f"{one['id']}`.",
            "Check that the column holds the identifiers that SessionM knows, and submit the file "
            "again.",
            subject=one["id"],
        )


def _lookups(checks: Mapping[str, Any]) -> Iterator[Cause]:
    lookups = checks["cache"]
    number, late, unanswered = lookups["lookups"], lookups["late"], lookups["unavailable"]
    if number < LEAST_LOOKUPS or late + unanswered <= LATE_SHARE * number:
        return
    problems = [
        words
        for count, words in (
            (late, f"{percent(late / number)} took over 2 s"),
            (unanswered, f"{percent(unanswered / number)} could not be answered"),
        )
        if count
    ]
    shares = f"Of {number:,} lookups in five minutes {' and '.join(problems)}"
    reason = f"{shares}: messages go out without their content."
    do = (
        "Compare SessionM's latency and errors on the dashboard. Before a send, `bridge warm` "
        "fetches the audience's lookups; longer maximum ages let the cache answer more of them."
    )
    if failed_at := lookups.get("last_failed_at"):
        reason = f"{shares}, the last one at {failed_at}: messages went out without their content."
        do = (
            "Lookups are answered in time again. The last five minutes count: this incident ends "
            f"automatically, at {lookups['counts_until']} at the latest."
        )
    yield Cause(
        "lookups_late",
        reason,
        do,
        size=(late + unanswered) / number,
        is_consequence=any(
            map(_concerns_lookups, (checks["sessionm_core"], checks["sessionm_connect"]))
        ),
    )


def _concerns_lookups(check: Mapping[str, Any]) -> bool:
    """Return whether the state of a system explains late lookups: refused writes do not."""
    if check["state"] not in {"refusing", "limiting", "down"} or check.get("answers_lookups"):
        return False
    return check["state"] != "refusing" or are_credentials(check["error"])


def _braze_budget(budget: Mapping[str, Any]) -> Iterator[Cause]:
    half = budget["limit"] / 2
    # Braze pauses Connected Content only if nearly all calls fail.
    content = max(half, budget["content_calls_last_minute"] * budget["content_share_limit"] / 2)
    for kind, name, most in (
        ("webhook", "webhooks", half),
        ("content", "Connected Content", content),
    ):
        failures = budget[f"{kind}_failures_last_minute"]
        if failures > most:
            yield Cause(
                "braze_budget",
                f"Over half of Braze's failure budget is used: {name}.",
                f"{failures:,} calls failed in the last minute; above {budget['limit']:,} Braze "
                "pauses calls to this host for a minute. Remove the cause of the failures: see the "
                "other incidents, or answers of 5xx and 429 in the log.",
                subject=name,
            )


def _connections(checks: Mapping[str, Any]) -> Iterator[Cause]:
    share = checks["files"]["most_connections_used"]
    if share >= NEAR:
        yield Cause(
            "connections_nearly_full",
            f"A process uses {percent(share)} of its maximum number of connections.",
            "Raise the limit of open files (`ulimit -n`, LimitNOFILE) or run more workers; the "
            "proxy in front may keep too many idle connections.",
            size=share,
        )


def clock_causes(clocks: Mapping[str, Any]) -> list[Cause]:
    """Return a cause for each wrong clock.

    Args:
        clocks: the check ``clocks`` of ``/health``.
    """
    if clocks["bridges"]:
        return [
            Cause(
                "clocks_differ",
                f"The clock of {host} is {abs(ahead):g} seconds "
                f"{'ahead of' if ahead > 0 else 'behind'} the database's: set it by NTP.",
                "Let NTP set the clock of this machine, and the database's.",
                subject=host,
            )
            for host, ahead in sorted(clocks["bridges"].items())
        ]
    if clocks["state"] == "ok":
        return []
    ahead = clocks["difference_seconds"]
    step = f"{'forward' if ahead > 0 else 'back'} by {abs(ahead):.0f} seconds"
    return [
        Cause(
            "clocks_differ",
            f"The clock of this machine was set {step} while writes wait: the bridge uses the "
            "earlier time until no write waits.",
            "Check that NTP sets the clock of this machine.",
        )
    ]
