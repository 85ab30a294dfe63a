"""One campaign or Canvas: the states of its events, and why some failed."""

from collections import Counter
from typing import Any

from flask import Blueprint, Response, current_app, redirect
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.wrappers import Response as BaseResponse

from bridge.outbox.extent import kind_of, text_of
from bridge.outbox.model import State
from bridge.outbox.search import Filter
from bridge.outbox.tallies import CampaignFigures
from bridge.parts import Parts, parts_of
from bridge.web.auth import scope
from bridge.web.pages import guard, name_campaigns, page

bp = Blueprint("campaigns", __name__)
guard(bp)

# Maximum number of events whose reasons are counted, and of those shown.
COUNTED = 200
SHOWN = 10
# State of an accepted event, its word on the page and its style, in the order of the funnel.
_FUNNEL = (
    ("delivered", "delivered", "good"),
    ("queued", "pending", "calm"),
    ("dead", "dead", "bad"),
    ("expired", "expired", "warn"),
    ("discarded", "discarded", "calm"),
)


@bp.get("/campaigns")
@scope("viewer")
def show_all() -> BaseResponse:
    """Lead to the table of all campaigns and Canvases."""
    return redirect("/dashboard#campaigns")


@bp.get("/campaigns/<path:campaign_id>")
@scope("viewer")
def show(campaign_id: str) -> Response:
    """Show one campaign or Canvas with its funnel."""
    if campaign_id == "trigger/send":
        # Braze's own path, which `bridge.web.messages` takes by POST.
        raise MethodNotAllowed(["POST"])
    parts = parts_of(current_app)
    found = parts.events.campaign(campaign_id)
    newest = parts.events.find(Filter(campaign=campaign_id), SHOWN).events
    if not found and not newest:
        raise NotFound
    name_campaigns(newest)
    is_canvas = found[0].kind == "canvas" if found else newest[0]["canvas_id"] == campaign_id
    return page(
        "campaign.html",
        campaign_id=campaign_id,
        kind="Canvas" if is_canvas else "Campaign",
        name=parts.rules.name_of(campaign_id) or next((one.name for one in found if one.name), ""),
        figures=[(one, _funnel(one)) for one in found if one.accepted],
        failures=[
            (state.value, _reasons(parts, campaign_id, state))
            for state in (State.DEAD, State.REJECTED, State.EXPIRED)
        ],
        events=newest,
    )


def _funnel(figures: CampaignFigures) -> list[dict[str, Any]]:
    """Return the rows of the funnel: the numbers of accepted events by state."""
    most = max(1, figures.accepted)
    rows: list[dict[str, Any]] = [
        {"state": "", "word": "accepted", "look": "accent", "number": figures.accepted}
    ]
    rows += [
        {"state": state, "word": word, "look": look, "number": getattr(figures, word)}
        for state, word, look in _FUNNEL
        if getattr(figures, word) or word in {"delivered", "dead"}
    ]
    return [
        {**row, "share": (share := row["number"] / most), "percent": _whole_percent(share)}
        for row in rows
    ]


def _whole_percent(share: float) -> str:
    """Return a share without decimals. Only nothing is ``0 %``, and only all is ``100 %``."""
    if 0 < share < 0.01:
        return "<1 %"
    return f"{100 if share >= 1 else min(99, round(100 * share))} %"


def _reasons(parts: Parts, campaign_id: str, state: State) -> list[tuple[str, int, str]]:
    """Return the five commonest reasons of the newest events in *state*.

    Each has the reason, the number of events, and the words that find them in a search.
    """
    events = parts.events.find(Filter(state=state, campaign=campaign_id), COUNTED).events
    counted = Counter(kind_of(event["reason"]) for event in events)
    return [(reason, number, text_of(reason)) for reason, number in counted.most_common(5)]
