"""The health of the bridge: a status, incidents and figures."""

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge import __version__, clock
from bridge.fields import iso
from bridge.ops.incidents import REOPENS, Incident, as_json, causes, message_causes
from bridge.ops.telemetry import BRAZE_CONTENT_SHARE, LOOKUP_OUTCOMES, Period, Telemetry, together
from bridge.outbox.clocks import HEARTBEAT_FACTS, reported_clocks
from bridge.outbox.delivery import PAUSE_FACT, is_alive
from bridge.outbox.extent import Extents
from bridge.outbox.model import DeadGroup, Direction, Extent, QueueDepth
from bridge.outbox.store import Store
from bridge.parts import Parts
from bridge.planner import FAILURE_BUDGET
from bridge.storage.database import StoreUnavailableError

DAY = 86400.0
# Seconds for which `/health` reports a batch most of whose rows failed. No action on the batch
# could end this incident.
NAME_FAILED_ROWS = 3600.0
# Minutes for latencies and ratios.
RECENT_MINUTES = 5
# Seconds without a call after which a failure is reported in the past tense: probes of a queue
# come more often while SessionM is down.
IDLE = 20.0
# Seconds by which the last error, stored once a second by each process, may be behind its call.
# Failures of lookups and webhooks that are older are past.
ERROR_LAG = 5.0


def report(parts: Parts) -> dict[str, Any]:
    """Return the body of ``/health``."""
    body, incidents = look(parts)
    return {**body, "incidents": [as_json(one) for one in incidents]}


def look(parts: Parts) -> tuple[dict[str, Any], list[Incident]]:
    """Return the body of ``/health`` without the incidents, and the incidents.

    A caller that answers a request should limit the time of the queries by `in_time`.
    """
    now = clock.now()
    day = parts.telemetry.minutes(now - DAY)
    recent = together(day[-RECENT_MINUTES:])
    checks: dict[str, Any] = {"store": {"state": "ok"}}
    queue, dead = Extent(), list[DeadGroup]()
    messages, dead_messages = Extent(), list[DeadGroup]()
    try:
        parts.probe.check()
    except StoreUnavailableError as error:
        checks["store"] = {"state": "down", "error": str(error), "file": _file_of(parts.store)}
    if parts.braze:
        checks |= _messages(parts, recent, day, now)
    try:
        # A store that cannot be written may still be readable.
        checks["delivery"] = delivery_state(parts, parts.store.backlog(), now)
        checks["delivery"] |= forecast(checks["delivery"], day[-2:], now, parts)
        checks["delivery"]["batches"] = _batches(parts, now)
        checks["store"]["events"] = parts.events.counts()
        checks["clocks"] = clocks_state(parts.store)
        queue, dead = _extents(parts.extents, checks["delivery"])
        if parts.braze:
            messages, dead_messages = _extents(parts.message_extents, checks["delivery_to_braze"])
    except StoreUnavailableError as error:
        checks["store"] = {"error": str(error), **checks["store"], "state": "down"}
        checks["delivery"], checks["store"]["as_of"] = _last_known(day)
        checks["clocks"] = clocks_state(None)
    checks["sessionm_core"] = _system(parts, "core", recent, checks["delivery"])
    checks["sessionm_connect"] = _system(parts, "connect", recent)
    checks["cache"] = _lookups(parts, recent)
    checks["offers"] = _offers(parts, day)
    checks["webhooks"] = _webhooks(parts, day, recent)
    checks["braze_budget"] = _braze_budget(parts.telemetry)
    checks["files"] = {"most_connections_used": _connections(day)}
    store_is_up = checks["store"]["state"] == "ok"
    found = [*causes(checks, queue, dead), *message_causes(checks, messages, dead_messages)]
    incidents = parts.chronicle.follow(
        found, partial(with_failed_calls, day), store_is_up=store_is_up
    )
    incidents = [one for one in incidents if not one.cause.is_consequence]
    reasons = [one.cause.reason for one in incidents if one.until is None]
    body = {
        "status": "down" if not store_is_up else "degraded" if reasons else "ok",
        "reasons": reasons,
        "version": __version__,
        "checks": checks,
    }
    return body, incidents


def with_failed_calls(day: Sequence[Period], one: Incident) -> Incident:
    """Return *one* with the number of calls that failed because of it since its start.

    Args:
        day: the minutes of the last day, the present one last. The first minute of the incident
            counts as a whole.
        one: an incident; one that ended over a minute ago is returned as it is.
    """
    until = clock.now() if one.until is None else one.until
    if not one.cause.failing_calls or until < clock.now() - REOPENS:
        return one
    period = together([minute for minute in day if one.since - 60 < minute.at <= until])
    count, extent = period.count, one.cause.extent
    if one.cause.failing_calls == "webhooks":
        failed = count("webhooks_failed") + count("messages_failed")
        extent = replace(extent, webhooks=failed)
    else:
        failed = count("lookups_late") + count("lookups_unavailable")
        extent = replace(extent, lookups=failed, stale=count("lookups_stale"))
    return replace(one, cause=replace(one.cause, extent=extent), most=one.most.at_least(extent))


def _file_of(store: Store) -> str:
    """Return the path of the database's file; "" if it is on a server."""
    name = store.database.name
    return "" if "://" in name else str(Path(name).absolute())


def _extents(extents: Extents, delivery: dict[str, Any]) -> tuple[Extent, list[DeadGroup]]:
    """Return the extent of the queue, and the dead groups.

    Set ``dead`` and ``dead_events`` of *delivery* to the numbers of these groups, so that all parts
    of one view show the same.
    """
    queue = replace(extents.queue(), writes=delivery["queued"]) if delivery["queued"] else Extent()
    dead = extents.dead() if delivery["dead"] else []
    if dead:
        delivery["dead"] = sum(group.extent.writes for group in dead)
        is_known = not any(group.extent.is_minimum for group in dead)
        delivery["dead_events"] = sum(group.extent.events for group in dead) if is_known else 0
    return queue, dead


def delivers(parts: Parts) -> bool:
    """Return whether any process runs the delivery loop.

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    return is_alive(parts.store.fact(HEARTBEAT_FACTS[parts.store.direction]) or {})


def delivery_state(
    parts: Parts, backlog: QueueDepth, now: float, store: Store | None = None
) -> dict[str, Any]:
    """Return the check ``delivery`` of ``/health`` without its batches.

    Args:
        parts: the parts of the bridge.
        backlog: the numbers of queued and dead writes.
        now: seconds since the epoch.
        store: the store of the other direction, for the check ``delivery_to_braze``.

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    store = store or parts.store
    beat = store.fact(HEARTBEAT_FACTS[store.direction]) or {}
    order = parts.store.fact(PAUSE_FACT) or {}
    by_hand = bool(order.get("paused"))
    # "hand", "refused" (our credentials), "down" (the other side), "limit" (it asked for a wait),
    # or "".
    held_by = "hand" if by_hand else beat.get("held_by", "")
    alive = is_alive(beat)
    waiting = {
        # While SessionM is down, the loop runs and probes.
        "state": "stopped" if not alive else "paused" if held_by in _PAUSES else "running",
        "held_by": held_by,
        "queued": backlog.queued,
        "waits_for_customers": backlog.waits_for_customers,
    }
    return {
        **waiting,
        "reason": "paused by hand" if by_hand else beat.get("reason", ""),
        "error": beat.get("cause", ""),
        # The state of SessionM or Braze by the calls of this queue.
        "destination": beat.get("destination", "unknown") if alive else "unknown",
        "by": order.get("by", "") if by_hand else "",
        "paused_at": order.get("at") if by_hand else None,
        "beat_at": beat.get("at"),
        "idle_since": _idle_since(now - beat.get("called_at", now), now, waiting),
        # Whether SessionM or Braze has refused several writes in a row.
        "refuses_writes": beat.get("destination") == "refusing" and not beat.get("cause"),
        "limit": parts.settings.bridge_queue_limit,
        "host": beat.get("host", ""),
        "pid": beat.get("pid", 0),
        "heartbeat_seconds": round(max(0.0, now - beat["at"]), 1) if beat else -1,
        "oldest_seconds": round(backlog.waits(now)),
        # The age of the oldest write whose customer does not exist in SessionM.
        "unknown_customer_seconds": round(max(0.0, now - (backlog.unknown_at or now))),
        # The number of such writes.
        "unknown_customer_writes": 0 if backlog.unknown_at is None else store.count_unknown(),
        "dead": backlog.dead,
        # The number of calls past their deadline, in the deliverer or in this process.
        "overdue": max(
            beat.get("overdue", 0),
            parts.sessionm.overdue() if store is parts.store else 0,
        ),
    }


def forecast(
    delivery: dict[str, Any],
    last: list[Period],
    now: float,
    parts: Parts,
    direction: Direction = Direction.TO_SESSIONM,
) -> dict[str, Any]:
    """Return the delivery rate, and the seconds until the queue is empty; -1 for never.

    Args:
        delivery: as `delivery_state` returns it.
        last: the minutes from which the rate is measured, the present one last.
        now: the time.
        parts: where the limits of the rates are set.
        direction: of the queue.
    """
    seconds = max(1.0, now - last[0].at)
    to_sessionm, settings = direction is Direction.TO_SESSIONM, parts.settings
    sent = "writes_sent" if to_sessionm else "messages_sent"
    most = settings.bridge_sessionm_rps if to_sessionm else settings.braze_rps
    rate = sum(minute.count(sent) for minute in last) / seconds
    if delivery["oldest_seconds"] < last[-1].at - last[0].at:
        # For a new backlog, the measured rate is that of the time before it.
        rate = max(rate, most)
    moves = delivery["state"] == "running" and not delivery["held_by"] and rate > 0
    # Writes that wait for their customer to be created are tried for hours.
    queued = max(0, delivery["queued"] - delivery["unknown_customer_writes"])
    return {
        "rate_per_second": round(rate, 2) if queued else 0.0,
        "done_in_seconds": 0 if not queued else max(1, round(queued / rate)) if moves else -1,
        # While nothing goes out: how long the queue takes afterwards.
        "takes_seconds": math.ceil(queued / most),
        "most_per_second": most,
    }


_PAUSES = {"hand", "refused"}


def _batches(parts: Parts, now: float) -> dict[str, Any]:
    return {
        "running": parts.batches.running(),
        "flagged": parts.batches.flagged(),
        "mostly_failed": parts.batches.mostly_failed(now - NAME_FAILED_ROWS),
    }


# Delivery while the store cannot be read.
_STOPPED: Mapping[str, Any] = {
    "state": "stopped",
    "held_by": "",
    "reason": "",
    "error": "",
    "destination": "unknown",
    "host": "",
    "pid": 0,
    "heartbeat_seconds": -1,
    "queued": 0,
    "oldest_seconds": 0,
    "waits_for_customers": False,
    "unknown_customer_seconds": 0,
    "unknown_customer_writes": 0,
    "dead": 0,
    "overdue": 0,
    "idle_since": "",
    "refuses_writes": False,
}


def _last_known(day: list[Period]) -> tuple[dict[str, Any], str]:
    """Return delivery in the last minute with samples, and that minute's time or ""."""
    sampled = [minute for minute in day if minute.gauge("queued") is not None]
    last = sampled[-1] if sampled else Period(0.0)
    delivery = {
        **_STOPPED,
        "queued": round(last.gauge("queued") or 0),
        "oldest_seconds": round(last.gauge("oldest_seconds") or 0),
        "dead": round(last.gauge("dead_writes") or 0),
    }
    return delivery, iso(last.at) if sampled else ""


def _messages(
    parts: Parts, recent: Period, day: list[Period], now: float
) -> dict[str, dict[str, Any]]:
    """Return the checks ``delivery_to_braze`` and ``braze``.

    If the store cannot be read, the numbers of messages are the last ones that this process knows.
    """
    known = parts.last_known.ask("messages", lambda: [_to_braze(parts, day, now)])
    queue, quota = known.value[0] if known.value else (dict(_STOPPED), {})
    if known.as_of:
        queue = {**_STOPPED, **{name: queue[name] for name in ("queued", "oldest_seconds", "dead")}}
    return {"delivery_to_braze": queue, "braze": _braze(parts, recent, queue, quota)}


def _to_braze(
    parts: Parts, day: list[Period], now: float
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the check ``delivery_to_braze``, and the hourly limit as the deliverer reports it."""
    found = delivery_state(parts, parts.messages.backlog(), now, parts.messages)
    found |= forecast(found, day[-2:], now, parts, Direction.TO_BRAZE)
    left = parts.settings.bridge_trigger_max_age - found["oldest_seconds"]
    found |= {"expires_in_seconds": max(0, left)} if found["queued"] else {}
    beat = parts.messages.fact(HEARTBEAT_FACTS[Direction.TO_BRAZE]) or {}
    return found, beat.get("quota") or {}


def _system(
    parts: Parts, system: str, recent: Period, queue: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the state and latency of ``core``, ``connect`` or ``braze``.

    The state is the worse one of lookups and of writes. *queue* is `delivery_state` of the queue
    whose writes go to the system, if there is one.
    """
    error = parts.telemetry.last_error(system)
    idle = parts.breakers[system].idle(clock.steady())
    is_present = error is not None and error.at > clock.now() - idle - ERROR_LAG
    found = {
        "idle_since": _idle_since(idle, clock.now(), queue or {}),
        "state": parts.breakers[system].state(clock.steady()),
        "last_call_failed": parts.breakers[system].has_failed,
        "p50_ms": recent.percentile(system, 0.50) or 0.0,
        "p99_ms": recent.percentile(system, 0.99) or 0.0,
        "calls": recent.count(f"{system}_calls"),
        "errors": recent.count(f"{system}_errors"),
        "refused": recent.count(f"{system}_refused"),
        # The failure that explains the state; the last error may be older.
        "error": error.text if error and is_present else "",
        "last_error": error.text if error else "",
        "last_error_at": iso(error.at) if error else "",
    }
    return found | _of_writes(queue, found) if queue else found


_WORST_FIRST = ("down", "refusing", "limiting", "failing", "up", "unknown")


def _of_writes(queue: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what replaces *found*, of all calls, if writes find the system in a worse state."""
    state = queue["destination"]
    # A single failure without a later write says little about now.
    is_past = queue["idle_since"] and state in {"failing", "limiting"}
    if is_past or _WORST_FIRST.index(state) >= _WORST_FIRST.index(found["state"]):
        return {}
    return {
        "state": state,
        "idle_since": queue["idle_since"],
        "error": "" if queue["refuses_writes"] else queue["error"] or found["error"],
        # Only writes fail.
        "answers_lookups": found["state"] in {"up", "failing"},
    }


def _braze(
    parts: Parts, recent: Period, queue: Mapping[str, Any], quota: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the check ``braze``, with the rest of the hourly limit as far as it is known."""
    known = quota.get("resets_at", 0.0) > clock.now()
    return {
        **_system(parts, "braze", recent, queue),
        "limit": quota["limit"] if known else None,
        "calls_left": quota["left"] if known else None,
        "resets_at": iso(quota["resets_at"]) if known else "",
    }


def _idle_since(idle: float, now: float, queue: Mapping[str, Any]) -> str:
    """Return when the last call ended if none follows before there is new work, else "".

    Args:
        idle: seconds since the last call.
        now: seconds since the epoch.
        queue: `delivery_state` of the queue whose writes probe the system, if there is one.
    """
    sends = queue and queue["state"] != "stopped" and queue["held_by"] != "hand"
    probes = sends and queue["queued"] and not queue["waits_for_customers"]
    return "" if idle < IDLE or probes else iso(now - idle)


def clocks_state(store: Store | None) -> dict[str, Any]:
    """Return the check ``clocks`` of ``/health``: the differences between clocks.

    Args:
        store: has the reports of a fleet's other bridges; ``None`` if it cannot be read.
    """
    difference = clock.store().difference()
    others = reported_clocks(store) if store is not None and clock.store().is_fleets else {}
    here = f"{socket.gethostname()} {os.getpid()}"
    if clock.store().is_fleets and abs(difference) > clock.TOLERANCE:
        others[here] = difference
    # Several processes of a machine have one clock.
    bridges = {name.partition(" ")[0]: round(ahead, 1) for name, ahead in others.items()}
    is_off = bool(bridges) or abs(difference) > clock.TOLERANCE
    return {
        "state": "differ" if is_off else "ok",
        "difference_seconds": round(difference, 3),
        "bridges": bridges,
    }


def _lookups(parts: Parts, recent: Period) -> dict[str, Any]:
    outcomes = {name: recent.count(f"lookups_{name}") for name in LOOKUP_OUTCOMES}
    lookups, late = sum(outcomes.values()), recent.count("lookups_late")
    served = outcomes["hit"] + outcomes["stale"]
    return {
        "hit_ratio": round(served / lookups, 4) if lookups else 0.0,
        "lookups": lookups,
        **outcomes,
        "late": late,
        **last_failed(parts, "lookups", late + outcomes["unavailable"]),
        "in_time_ratio": round(1 - late / lookups, 4) if lookups else 1.0,
        "p50_ms": recent.percentile("lookup", 0.50) or 0.0,
        "p99_ms": recent.percentile("lookup", 0.99) or 0.0,
    }


def last_failed(parts: Parts, calls: str, number: int) -> dict[str, str]:
    """Return when calls to the bridge failed last, and until when that counts.

    Both are "" while they fail, and if none has failed in the last `RECENT_MINUTES`.

    Args:
        parts: the parts of the bridge.
        calls: ``lookups``, ``webhooks`` or ``messages``.
        number: of the failures in the last `RECENT_MINUTES`.
    """
    last = parts.telemetry.last_error(f"failed_{calls}") if number else None
    is_past = last is not None and clock.now() - last.at > ERROR_LAG
    at = last.at if last and is_past else 0.0
    return {
        "last_failed_at": iso(at) if at else "",
        "counts_until": iso((at // 60 + RECENT_MINUTES) * 60) if at else "",
    }


def _connections(day: list[Period]) -> float:
    """Return the largest share of its connections that a process used in the last two minutes."""
    return max((minute.most("connections") or 0.0 for minute in day[-2:]), default=0.0)


def _offers(parts: Parts, day: list[Period]) -> dict[str, Any]:
    """Return the number of unreadable values in wallets; it does not degrade the status."""
    number = sum(minute.count("values_not_understood") for minute in day)
    last = parts.telemetry.last_error("offers") if number else None
    return {"not_understood_last_day": number, "last_form": last.text if last else ""}


def _webhooks(parts: Parts, day: list[Period], recent: Period) -> dict[str, Any]:
    outcomes = ("accepted", "duplicate", "rejected", "failed")
    return {
        **{name: recent.count(f"webhooks_{name}") for name in outcomes},
        **last_failed(parts, "webhooks", recent.count("webhooks_failed")),
        "rejected_last_day": sum(minute.count("webhooks_rejected") for minute in day),
        "p50_ms": recent.percentile("webhook", 0.50) or 0.0,
        "p99_ms": recent.percentile("webhook", 0.99) or 0.0,
    }


def _braze_budget(telemetry: Telemetry) -> dict[str, Any]:
    minute = telemetry.moving_minute()
    return {
        "webhook_failures_last_minute": minute.count("braze_webhook_failures"),
        "content_failures_last_minute": minute.count("braze_content_failures"),
        "content_calls_last_minute": minute.count("braze_content_calls"),
        "limit": FAILURE_BUDGET,
        "content_share_limit": BRAZE_CONTENT_SHARE,
    }
