"""The health dashboard: is it healthy, and what was going on."""

from dataclasses import dataclass, replace
from time import time
from typing import Any

from flask import Blueprint, Response, current_app, redirect, request

from bridge.database import StoreUnavailableError
from bridge.health import report
from bridge.outbox.tallies import CampaignFigures
from bridge.parts import Parts, parts_of
from bridge.telemetry import Minute, together
from bridge.web.auth import scope
from bridge.web.pages import brief, guard, number, page
from bridge.web.plots import Plot, Series, draw

bp = Blueprint("dashboard", __name__)
guard(bp)

# Campaigns and Canvases that are shown, those seen last.
MOST_CAMPAIGNS = 50
# Batches that are shown, the newest; `bridge batch status` has all.
MOST_BATCHES = 10


@dataclass(frozen=True)
class Span:
    """How much a plot shows, and how many seconds go into one value."""

    words: str
    seconds: int
    step: int
    per: str


SPANS = {
    "hour": Span("Last hour", 3600, 60, "a minute"),
    "day": Span("Last day", 86400, 900, "in 15 min"),
}


@bp.get("/", endpoint="home")
@bp.get("/dashboard")
@scope("admin")
def dashboard() -> Response:
    """All that an operator has to see at a glance."""
    parts = parts_of(current_app)
    chosen = request.args.get("span", "")
    chosen = chosen if chosen in SPANS else "hour"
    told = report(parts)
    return page(
        "dashboard.html",
        503 if told["status"] == "down" else 200,
        health=told,
        campaigns=[(one, _name(parts, one)) for one in _campaigns(parts)],
        batches=_batches(parts),
        plots=_plots(parts, SPANS[chosen]),
        spans=SPANS,
        span=chosen,
        offers_on=parts.settings.offers_on,
    )


def _campaigns(parts: Parts) -> list[CampaignFigures]:
    try:
        return parts.events.campaigns(MOST_CAMPAIGNS)
    except StoreUnavailableError:
        # Health says so, at the top of the page.
        return []


def _batches(parts: Parts) -> list[dict[str, Any]]:
    """The newest batches, as `Jobs.find` gives them."""
    try:
        return parts.batches.jobs.find(MOST_BATCHES)
    except StoreUnavailableError:
        return []


def _name(parts: Parts, figures: CampaignFigures) -> str:
    """The name by rules.toml; "" if it has none."""
    rules = parts.rules
    listed = (rules.canvases if figures.kind == "canvas" else rules.campaigns).get(figures.id)
    return listed.name if listed else ""


@bp.route("/delivery/pause", methods=["GET", "POST"], defaults={"order": "pause"})
@bp.route("/delivery/resume", methods=["GET", "POST"], defaults={"order": "resume"})
@scope("admin")
def order_delivery(order: str) -> Response:
    """Ask whether it is meant; when it comes back by POST, do it."""
    operator = parts_of(current_app).operator
    if request.method == "GET":
        return page("order_delivery.html", order=order)
    if order == "pause":
        operator.pause()
    else:
        operator.resume()
    answer = redirect("/dashboard", 303)
    assert isinstance(answer, Response)  # noqa: S101 - the type that Flask is set up with
    return answer


# --- Plots ------------------------------------------------------------------------------------


def _plots(parts: Parts, span: Span) -> list[Plot]:
    now = time()
    first = (now // span.step - span.seconds // span.step + 1) * span.step
    buckets = _buckets(parts.telemetry.minutes(first), first, span)
    moments = [bucket.at for bucket in buckets]

    def counted(name: str, look: str, *counts: str) -> Series:
        values = [sum(bucket.count(one) for one in counts) for bucket in buckets]
        return Series(name, look, values, number(sum(values)))

    def within(name: str, look: str, histogram: str) -> Series:
        values = [bucket.percentile(histogram, 0.99) for bucket in buckets]
        whole = together(buckets).percentile(histogram, 0.99)
        return Series(name, look, values, "–" if whole is None else brief(whole))

    waiting = [bucket.gauge("queued") for bucket in buckets]
    now_waiting = next((value for value in reversed(waiting) if value is not None), 0.0)
    return [
        draw(
            "Webhooks",
            span.per,
            moments,
            bars=[counted("accepted", "soft", "webhooks_accepted")],
            lines=[
                counted("delivered", "first", "delivered"),
                _where_any(
                    counted("refused or failed", "wrong", "webhooks_rejected", "webhooks_failed")
                ),
            ],
        ),
        draw(
            "Lookups",
            span.per,
            moments,
            bars=[
                counted("hit", "hit", "lookups_hit"),
                counted("stale", "stale", "lookups_stale"),
                counted("asked SessionM", "miss", "lookups_miss"),
                counted("no such customer", "absent", "lookups_not_found"),
                counted("unavailable", "away", "lookups_unavailable"),
            ],
        ),
        draw(
            "Latency, 99th percentile",
            "ms",
            moments,
            lines=[
                within("lookups", "first", "lookup"),
                within("SessionM Core", "second", "core"),
                within("SessionM Connect", "third", "connect"),
            ],
        ),
        draw(
            "Writes waiting",
            "writes",
            moments,
            lines=[Series("waiting", "area", waiting, number(round(now_waiting)))],
        ),
    ]


def _where_any(series: Series) -> Series:
    """*series* without its noughts: a line along the bottom would say that there is something."""
    return replace(series, values=[value or None for value in series.values])


def _buckets(minutes: list[Minute], first: float, span: Span) -> list[Minute]:
    """*minutes* put together by the span's steps, each at the moment in which it begins."""
    piles: dict[float, list[Minute]] = {
        first + place * span.step: [] for place in range(span.seconds // span.step)
    }
    for minute in minutes:
        piles.setdefault(minute.at // span.step * span.step, []).append(minute)
    return [Minute(at, together(pile).figures) for at, pile in sorted(piles.items())]
