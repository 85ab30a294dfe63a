"""The health dashboard: is it healthy, and what was going on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flask import Blueprint, Response, current_app, g, request

from bridge import clock
from bridge.fields import number
from bridge.ops.health import RECENT_MINUTES, last_failed, look
from bridge.ops.incidents import LATE_SHARE, LEAST_LOOKUPS, Cause, Incident, are_credentials
from bridge.ops.probe import PAGE_PATIENCE, LastKnown
from bridge.ops.telemetry import LOOKUP_OUTCOMES, Period, together
from bridge.outbox.delivery import PAUSE_FACT
from bridge.parts import Parts, parts_of
from bridge.storage.database import in_time
from bridge.web.auth import scope
from bridge.web.operation import PAGE
from bridge.web.pages import brief, guard, page, see_other
from bridge.web.plots import LATENCIES, Plot, Series, Shape, draw, sparkline

bp = Blueprint("dashboard", __name__)
guard(bp)

# Campaigns and Canvases that are shown.
MOST_CAMPAIGNS = 20
# Incidents of the past that are shown.
MOST_PAST = 100
# Campaigns of an incident up to which they are named; more are counted.
MOST_NAMED = 3
# Open incidents shown above the diagram; the others are shown below the tiles.
MOST_ABOVE = 2
# Seconds since the end of an incident in which it is still counted beside the status.
RECENTLY_ENDED = 12 * 3600.0
# Batches that are shown, the newest; `bridge batch status` has all.
MOST_BATCHES = 10


@dataclass(frozen=True)
class Span:
    """How much a plot shows, how many seconds go into one value, and how often it is renewed.

    *stamps*: seconds between the moments that are written below it.
    """

    words: str
    seconds: int
    step: int
    per: str
    stamps: int
    every: int = 5


SPANS = {
    "hour": Span("Hour", 3600, 60, "a minute", 900),
    "day": Span("Day", 86400, 900, "in 15 min", 6 * 3600, 15),
    "week": Span("Week", 7 * 86400, 7200, "in 2 h", 86400, 60),
    "month": Span("Month", 30 * 86400, 6 * 3600, "in 6 h", 7 * 86400, 60),
}


@bp.get("/", endpoint="home")
@bp.get("/dashboard")
@scope("viewer")
@PAGE
def dashboard() -> Response:
    """Show the health dashboard."""
    parts = parts_of(current_app)
    span = request.args.get("span", "")
    span = span if span in SPANS else "hour"
    text, order = request.args.get("find", "").strip()[:100], request.args.get("sort", "")
    order = order if order in ORDERS else ""
    events = parts.events
    with in_time(time.monotonic() + PAGE_PATIENCE):
        health, incidents = look(parts)
        # If the store does not answer, the last known campaigns are shown, but not those of a
        # search for other words.
        ask = (LastKnown() if text else parts.last_known).ask
        chosen = partial(events.campaigns, MOST_CAMPAIGNS, text, order)
        campaigns = ask(f"campaigns by {order}", chosen)
        number_of_campaigns = ask("campaigns", lambda: [events.count_campaigns(text)])
        batches = parts.last_known.ask("batches", partial(parts.batches.find, MOST_BATCHES))
        hour = parts.telemetry.minutes(clock.now() - 3600)
        plots = _plots(parts, SPANS[span], incidents)
        named = _named(parts, incidents)
    return page(
        "dashboard.html",
        503 if health["status"] == "down" else 200,
        health=health,
        incidents=[one for one in incidents if one.until is None],
        cause=_cause(incidents),
        named=named,
        most_named=MOST_NAMED,
        most_above=MOST_ABOVE,
        past=[one for one in incidents if one.until is not None][:MOST_PAST],
        ended=[one for one in incidents if one.until and one.until > clock.now() - RECENTLY_ENDED],
        links=_links(parts, health["checks"], hour),
        message_links=_message_links(parts, health["checks"], hour),
        sparks=_sparks(hour),
        campaigns=[
            (one, parts.rules.name_of(one.id, one.kind) or one.name) for one in campaigns.value
        ],
        campaigns_as_of=campaigns.as_of,
        number_of_campaigns=sum(number_of_campaigns.value),
        orders=ORDERS,
        shown={"span": span, "find": text, "sort": order},
        batches=batches.value,
        batches_as_of=batches.as_of,
        plots=plots,
        spans=SPANS,
        span=span,
        offers_on=parts.settings.offers_on,
    )


# Column of the table of campaigns -> its heading.
ORDERS = {
    "name": "Name or ID",
    "accepted": "Accepted",
    "pending": "Pending",
    "delivered": "Delivered",
    "dead": "Dead",
    "expired": "Expired",
    "discarded": "Discarded",
    "rejected": "Rejected",
    "seen": "Last seen",
}


def _cause(incidents: Sequence[Incident]) -> str:
    """Return the causes of the open incidents, the most urgent first."""
    words = [_cause_of(one.cause) for one in incidents if one.until is None]
    return "; ".join(dict.fromkeys(words))


def _cause_of(cause: Cause) -> str:
    if cause.code == "sessionm_refuses" and are_credentials(cause.reason):
        return "the bridge's credentials for SessionM"
    if cause.code == "braze_refuses":
        return "the bridge's key for Braze"
    return next(words for code, words in _CAUSES.items() if cause.code.startswith(code))


# Beginning of an incident's code -> its cause.
_CAUSES = {
    "store_": "the bridge's database",
    "delivery_stopped": "the bridge",
    "messages_stopped": "the bridge",
    "calls_overdue": "the bridge",
    "delivery_paused": "a person paused delivery",
    "sessionm_": "SessionM",
    "braze_budget": "calls to the bridge that fail",
    "braze_": "Braze",
    "dead_writes": "writes that SessionM did not take",
    "dead_messages": "messages that Braze did not take",
    "batch_": "a batch job",
    "queue_": "a queue that is nearly full",
    "delivery_late": "writes that are late",
    "messages_late": "messages that are late",
    "lookups_late": "lookups without an answer in time",
    "connections_": "too many connections",
    "clocks_": "a wrong clock",
}


def _named(parts: Parts, incidents: Sequence[Incident]) -> dict[str, str]:
    """Return the names of the campaigns of incidents that affect at most `MOST_NAMED`."""
    concerned = (one.extent.campaigns for one in incidents)
    ids = {one for few in concerned if len(few) <= MOST_NAMED for one in few}
    asked = parts.last_known.ask("names", lambda: [parts.events.campaign_names(ids)])
    of_braze: Mapping[str, str] = next(iter(asked.value), {})
    return {one: parts.rules.name_of(one) or of_braze.get(one, "") for one in ids}


def _links(parts: Parts, checks: dict[str, Any], hour: list[Period]) -> list[dict[str, Any]]:
    """Return state, rate and latency of the calls from Braze, and of those to SessionM."""
    recent = together(hour[-RECENT_MINUTES:])
    link = partial(_link, hour)
    lookups = checks["cache"]
    late = lookups["late"] + lookups["unavailable"]
    found = [
        _stored(parts, "webhook", checks, hour),
        link(
            "Lookups",
            "ok",
            lookups["lookups"],
            lookups["p99_ms"],
            _of(lookups["lookups"], **{"late or empty": late}),
        ),
    ]
    if late > LATE_SHARE * max(LEAST_LOOKUPS, lookups["lookups"]):
        found[-1] |= _failing_or_past(lookups["last_failed_at"])
    for system in ("core", "connect"):
        check = checks[f"sessionm_{system}"]
        found.append(
            link(
                f"SessionM {system.title()}",
                check["state"],
                recent.count(f"{system}_calls"),
                check["p99_ms"],
                _of(check["calls"], failed=check["errors"], refused=check["refused"]),
            )
            | {name: check.get(name) for name in ("idle_since", "answers_lookups")}
        )
    return found


def _stored(
    parts: Parts, kind: str, checks: Mapping[str, Any], hour: list[Period]
) -> dict[str, Any]:
    """Return the link of calls that the bridge must store.

    Args:
        parts: the parts of the bridge.
        kind: ``webhook`` or ``message``, of the figures.
        checks: ``checks`` of ``/health``.
        hour: the minutes, the present one last.
    """
    recent = together(hour[-RECENT_MINUTES:])
    outcomes = ("accepted", "duplicate", "rejected", "failed")
    answered = sum(recent.count(f"{kind}s_{outcome}") for outcome in outcomes)
    failed = recent.count(f"{kind}s_failed")
    latency = recent.percentile(kind, 0.99) or 0.0
    name = f"{kind}s".capitalize()
    found = _link(hour, name, "ok", answered, latency, _of(answered, failed=failed))
    if checks["store"]["state"] != "ok":
        return found | {"state": "down"}
    return found | (
        _failing_or_past(last_failed(parts, f"{kind}s", failed)["last_failed_at"]) if failed else {}
    )


def _failing_or_past(last_failed_at: str) -> dict[str, Any]:
    """Return the state of a link with failures in the last `RECENT_MINUTES`.

    Args:
        last_failed_at: "" while calls fail.
    """
    return {"failed_until": last_failed_at} if last_failed_at else {"state": "degraded"}


def _message_links(
    parts: Parts, checks: dict[str, Any], hour: list[Period]
) -> list[dict[str, Any]]:
    """Return the same for the calls from SessionM and to Braze; none if messages are off."""
    braze = checks.get("braze")
    if braze is None:
        return []
    left = braze["calls_left"]
    note = "" if left is None else f"{left:,} of {braze['limit']:,} calls left this hour"
    return [
        _stored(parts, "message", checks, hour),
        _link(
            hour,
            "Braze's REST API",
            braze["state"],
            braze["calls"],
            braze["p99_ms"],
            _of(braze["calls"], failed=braze["errors"], refused=braze["refused"]),
        )
        | {"left": note, "idle_since": braze["idle_since"]},
    ]


def _link(
    hour: list[Period], name: str, state: str, calls: int, latency: float, note: str
) -> dict[str, Any]:
    """Return a link with *calls* in the last `RECENT_MINUTES`; *latency* in milliseconds."""
    minutes = min(len(hour), RECENT_MINUTES) - 1 + (clock.now() - hour[-1].at) / 60
    rate = number(round(calls / max(minutes, 1 / 60), 1))
    p99 = f"p99 {brief(latency)}" if latency else ""
    if state == "ok" and not calls:
        state = "unknown"
    return {"name": name, "state": state, "rate": rate, "p99": p99, "note": note}


def _of(whole: int, **bad: int) -> str:
    """Return how many of *whole* calls ended badly, by outcome: ``2 of 9 failed``."""
    return ", ".join(f"{number:,} of {whole:,} {word}" for word, number in bad.items() if number)


def _sparks(hour: list[Period]) -> dict[str, list[Shape]]:
    """Return small plots of the last hour for the tiles."""

    def share_in_time(minute: Period) -> float | None:
        number = sum(minute.count(f"lookups_{name}") for name in LOOKUP_OUTCOMES)
        missed = minute.count("lookups_late") + minute.count("lookups_unavailable")
        return max(0.0, 1 - missed / number) if number else None

    return {
        "waiting": sparkline([minute.most("queued") for minute in hour]),
        "dead": sparkline([minute.most("dead_writes") for minute in hour], "wrong"),
        "in_time": sparkline([share_in_time(minute) for minute in hour]),
    }


@bp.route("/delivery/pause", methods=["GET", "POST"], defaults={"order": "pause"})
@bp.route("/delivery/resume", methods=["GET", "POST"], defaults={"order": "resume"})
@scope("admin")
def order_delivery(order: str) -> Response:
    """Ask for confirmation (GET), then pause or resume delivery (POST)."""
    parts = parts_of(current_app)
    operator = parts.operator
    if request.method == "GET":
        by_hand = (parts.store.fact(PAUSE_FACT) or {}).get("paused")
        return page("order_delivery.html", order=order, by_hand=by_hand)
    if order == "pause":
        operator.pause(g.key_name)
    else:
        operator.resume(g.key_name)
    return see_other("/dashboard")


# --- Plots ------------------------------------------------------------------------------------


def _plots(parts: Parts, span: Span, incidents: Sequence[Incident]) -> list[Plot]:
    now = clock.now()
    first = (now // span.step - span.seconds // span.step + 1) * span.step
    read = parts.telemetry.minutes if span.seconds <= 86400 else parts.telemetry.quarters
    buckets = _buckets(read(first), first, span)
    moments = [bucket.at for bucket in buckets]
    troubles = [
        (one.since, one.until or now, "down" if one.cause.code.startswith("store") else "trouble")
        for one in incidents
    ]

    # The table of campaigns counts the events of both directions.
    kinds = ("webhooks", "messages") if parts.braze else ("webhooks",)

    def counted(name: str, look: str, *counts: str, rare: bool = False) -> Series:
        values = [sum(bucket.count(one) for one in counts) for bucket in buckets]
        return Series(name, look, values, number(sum(values)), skips_zeros=rare)

    def came(name: str, look: str, outcome: str, *, rare: bool = False) -> Series:
        return counted(name, look, *(f"{kind}_{outcome}" for kind in kinds), rare=rare)

    def ended(name: str, look: str, state: str, *, rare: bool = False) -> Series:
        counts = [state, *([f"messages_{state}"] if parts.braze else [])]
        return counted(name, look, *counts, rare=rare)

    def within(name: str, look: str, histogram: str) -> Series:
        values = [bucket.percentile(histogram, 0.99) for bucket in buckets]
        present = next((value for value in reversed(values) if value is not None), None)
        worst = max((value for value in values if value is not None), default=None)
        if present is None or worst is None:
            return Series(name, look, values, "–")
        total = f"last {brief(present)}, max {brief(worst)}"
        return Series(name, look, values, total)

    def highest(name: str, look: str, gauge: str) -> Series:
        values = [_highest(bucket, gauge) for bucket in buckets]
        known = [value for value in values if value is not None]
        total = f"last {number(known[-1])}, max {number(max(known))}" if known else "–"
        return Series(name, look, values, total)

    plot = partial(draw, moments=moments, troubles=troubles, stamp_every=span.stamps)
    return [
        plot(
            " and ".join(kinds).capitalize(),
            span.per,
            bars=[came("accepted", "soft", "accepted")],
            lines=[
                ended("delivered", "first", "delivered"),
                came("rejected", "second", "rejected", rare=True),
                came("failed", "away-line", "failed", rare=True),
                ended("dead", "wrong", "dead", rare=True),
            ],
            written=number,
        ),
        plot(
            "Lookups",
            span.per,
            bars=[
                counted("hit", "hit", "lookups_hit"),
                counted("stale", "stale", "lookups_stale"),
                counted("asked SessionM", "miss", "lookups_miss"),
                counted("no such customer", "absent", "lookups_not_found"),
                counted("unavailable", "away", "lookups_unavailable"),
            ],
            written=number,
        ),
        plot(
            "Latency, p99",
            f"{span.per}, log scale",
            lines=[
                within("lookups", "first", "lookup"),
                within("SessionM Core", "second", "core"),
                within("SessionM Connect", "third", "connect"),
            ],
            written=brief,
            scale=LATENCIES,
            limit=(2000.0, "Braze waits 2 s"),
        ),
        plot(
            "Writes waiting",
            f"most {span.per}",
            lines=[highest("waiting", "first", "queued"), highest("dead", "wrong", "dead_writes")],
            written=number,
        ),
    ]


def _highest(bucket: Period, gauge: str) -> float | None:
    most = bucket.most(gauge)
    return bucket.gauge(gauge) if most is None else most


def _buckets(minutes: list[Period], first: float, span: Span) -> list[Period]:
    """Return *minutes* added up by the span's steps, each with the time at which it begins."""
    piles: dict[float, list[Period]] = {
        first + place * span.step: [] for place in range(span.seconds // span.step)
    }
    for minute in minutes:
        piles.setdefault(minute.at // span.step * span.step, []).append(minute)
    return [Period(at, together(pile).figures) for at, pile in sorted(piles.items())]
