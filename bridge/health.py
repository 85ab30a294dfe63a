"""Is it healthy, and if not, why: in one word, in sentences, and in figures."""

import time
from typing import Any

from bridge.database import StoreUnavailableError
from bridge.fields import counted, iso
from bridge.outbox.delivery import HEARTBEAT_FACT, SILENCE
from bridge.outbox.store import Backlog
from bridge.parts import Parts
from bridge.telemetry import BRAZE_CONTENT_SHARE, BRAZE_LIMIT, Minute, Telemetry, together
from bridge.version import VERSION

LATE = 300.0
DAY = 86400.0
# How long it is told that SessionM could not do most rows of a file. It passes by itself: nothing
# that is done to the batch would end it.
TELL_FAILED_ROWS = 3600.0
# Latencies and ratios are those of the last so many minutes.
RECENT_MINUTES = 5


def report(parts: Parts) -> dict[str, Any]:
    """The body of ``/health``: ``status``, ``reasons``, ``version`` and ``checks``."""
    now = time.time()
    day = parts.telemetry.minutes(now - DAY)
    recent = together(day[-RECENT_MINUTES:])
    checks: dict[str, Any] = {"store": {"state": "ok"}}
    try:
        parts.probe.check()
        checks["delivery"] = delivery_state(parts, parts.store.backlog(), now)
        checks["delivery"]["batches"] = _batches(parts, now)
        checks["store"]["events"] = parts.events.counts()
    except StoreUnavailableError as error:
        checks["store"] = {"state": "down", "error": str(error)}
        checks["delivery"] = _last_known(day)
    for system in ("core", "connect"):
        checks[f"sessionm_{system}"] = _sessionm(parts, system, recent)
    checks["cache"] = _lookups(recent)
    checks["webhooks"] = _webhooks(day, recent)
    checks["braze_budget"] = _braze_budget(parts.telemetry)
    reasons = list(_reasons(checks))
    down = checks["store"]["state"] == "down"
    return {
        "status": "down" if down else "degraded" if reasons else "ok",
        "reasons": reasons,
        "version": VERSION,
        "checks": checks,
    }


def delivers(parts: Parts) -> bool:
    """Whether some process runs the delivery loop."""
    beat = parts.store.fact(HEARTBEAT_FACT) or {}
    return bool(time.time() - beat.get("at", 0) < SILENCE)


def delivery_state(parts: Parts, backlog: Backlog, now: float) -> dict[str, Any]:
    """How delivery stands: the check ``delivery`` of ``/health``, but for its batches."""
    beat = parts.store.fact(HEARTBEAT_FACT) or {}
    by_hand = parts.operator.is_paused
    alive = now - beat.get("at", 0) < SILENCE
    mode = "paused" if by_hand else beat.get("mode", "running")
    return {
        # "down" is SessionM's state, told below; the loop itself runs and probes.
        "state": "stopped" if not alive else "paused" if mode == "paused" else "running",
        "reason": "paused by hand" if by_hand else beat.get("reason", ""),
        "host": beat.get("host", ""),
        "pid": beat.get("pid", 0),
        "heartbeat_seconds": round(max(0.0, now - beat["at"]), 1) if beat else -1,
        "queued": backlog.queued,
        "oldest_seconds": round(backlog.waits(now)),
        "waits_for_customers": backlog.waits_for_customers,
        "dead": backlog.dead,
    }


def _batches(parts: Parts, now: float) -> dict[str, Any]:
    jobs = parts.batches.jobs
    return {
        "running": jobs.running(),
        "flagged": jobs.flagged(),
        "mostly_failed": jobs.mostly_failed(now - TELL_FAILED_ROWS),
    }


def _last_known(day: list[Minute]) -> dict[str, Any]:
    """Delivery while the store cannot be asked: what waited when it was last looked."""
    sampled = [minute for minute in day if minute.gauge("queued") is not None]
    last = sampled[-1] if sampled else Minute(0.0)
    return {
        "state": "stopped",
        "reason": "",
        "host": "",
        "pid": 0,
        "heartbeat_seconds": -1,
        "queued": round(last.gauge("queued") or 0),
        "oldest_seconds": round(last.gauge("oldest_seconds") or 0),
        "waits_for_customers": False,
        "dead": round(last.gauge("dead_writes") or 0),
    }


def _sessionm(parts: Parts, system: str, recent: Minute) -> dict[str, Any]:
    error = parts.telemetry.last_error(system)
    return {
        "state": parts.breakers.state(system),
        "p50_ms": recent.percentile(system, 0.50) or 0.0,
        "p99_ms": recent.percentile(system, 0.99) or 0.0,
        "calls": recent.count(f"{system}_calls"),
        "errors": recent.count(f"{system}_errors"),
        "last_error": error.text if error else "",
        "last_error_at": iso(error.at) if error else "",
    }


_OUTCOMES = ("hit", "stale", "miss", "not_found", "unavailable")


def _lookups(recent: Minute) -> dict[str, Any]:
    outcomes = {name: recent.count(f"lookups_{name}") for name in _OUTCOMES}
    lookups, late = sum(outcomes.values()), recent.count("lookups_late")
    served = outcomes["hit"] + outcomes["stale"]
    return {
        "hit_ratio": round(served / lookups, 4) if lookups else 0.0,
        "lookups": lookups,
        **outcomes,
        "in_time_ratio": round(1 - late / lookups, 4) if lookups else 1.0,
        "p50_ms": recent.percentile("lookup", 0.50) or 0.0,
        "p99_ms": recent.percentile("lookup", 0.99) or 0.0,
    }


def _webhooks(day: list[Minute], recent: Minute) -> dict[str, Any]:
    outcomes = ("accepted", "duplicate", "rejected", "failed")
    return {
        **{name: recent.count(f"webhooks_{name}") for name in outcomes},
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
        "limit": BRAZE_LIMIT,
        "content_share_limit": BRAZE_CONTENT_SHARE,
    }


def delivery_reasons(delivery: dict[str, Any]) -> list[str]:
    """Why not everything goes out, in sentences, by what `delivery_state` says."""
    if delivery["state"] == "stopped":
        return ["Delivery has stopped: no process runs the delivery loop."]
    if delivery["state"] == "paused":
        return [f"Delivery is paused: {delivery['reason']}."]
    return [f"Delivery is held up: {delivery['reason']}."] if delivery["reason"] else []


def _reasons(checks: dict[str, Any]) -> list[str]:
    delivery, budget = checks["delivery"], checks["braze_budget"]
    half = budget["limit"] / 2
    flagged = delivery.get("batches", {}).get("flagged", 0)
    store_is_up = checks["store"]["state"] == "ok"
    told = {
        f"Events cannot be stored: {checks['store'].get('error')}.": not store_is_up,
        **dict.fromkeys(delivery_reasons(delivery), store_is_up),
        f"The oldest write waits for {delivery['oldest_seconds']} seconds.": (
            delivery["oldest_seconds"] > LATE
        ),
        "1 write is dead: replay or discard it.": delivery["dead"] == 1,
        f"{delivery['dead']} writes are dead: replay or discard them.": delivery["dead"] > 1,
        "1 batch needs a person: see `bridge batch status`.": flagged == 1,
        f"{flagged} batches need a person: see `bridge batch status`.": flagged > 1,
        "Over half of Braze's failure budget is used: webhooks.": (
            budget["webhook_failures_last_minute"] > half
        ),
        # Braze halts Connected Content only where nearly all of it fails.
        "Over half of Braze's failure budget is used: Connected Content.": (
            budget["content_failures_last_minute"]
            > max(half, budget["content_calls_last_minute"] * BRAZE_CONTENT_SHARE / 2)
        ),
    }
    for one in delivery.get("batches", {}).get("mostly_failed", ()):
        rows = f"{one['failed_rows']} of {counted(one['rows'], 'row')}"
        told[
            f"SessionM could not do {rows} of batch {one['id']}: see `bridge batch status "
            f"{one['id']}`."
        ] = True
    for system in ("core", "connect"):
        state = checks[f"sessionm_{system}"]["state"]
        error = checks[f"sessionm_{system}"]["last_error"]
        cause = f": {error}" if error else ""
        told[f"SessionM {system.title()} is {state}{cause}."] = state in {"failing", "down"}
    return [reason for reason, holds in told.items() if holds]
