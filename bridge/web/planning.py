"""The send planner's form: what was typed, what is known of this bridge, and the plan."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import time

from flask import current_app

from bridge.fields import FieldError
from bridge.parts import parts_of
from bridge.planner import KINDS, Kind, Pace, Plan, Send, plan
from bridge.telemetry import together

# What a service of two processes on two cores answered at least, halved: measured in this project.
ASSUMED_REQUESTS = 500.0
# SessionM's pace is that of so many seconds.
MEASURED = 3600.0


@dataclass(frozen=True)
class Planning:
    """The planner as the page shows it.

    Attributes:
        problem: what cannot be read of what was typed; "" if all can.
        pace: what SessionM and this bridge take.
        send: as typed, with defaults.
        plan: ``None`` before a number of recipients is typed.
        grounds: where each figure of the plan comes from.
    """

    problem: str
    pace: Pace
    send: Send
    plan: Plan | None
    grounds: Mapping[str, str]
    kinds: Mapping[str, Kind]


def planning(given: Mapping[str, str]) -> Planning:
    """The planner for the parameters *given*."""
    pace, grounds = _pace()
    try:
        send, problem = _send(given), ""
    except FieldError as bad:
        send, problem = Send(0, KINDS["offers"]), f"{bad}."
    planned = plan(send, pace) if send.recipients else None
    return Planning(problem, pace, send, planned, grounds, KINDS)


def _send(given: Mapping[str, str]) -> Send:
    kind = KINDS.get(given.get("message", "offers"))
    if kind is None:
        raise FieldError("The kind of message", f"must be one of {', '.join(KINDS)}")
    return Send(
        recipients=_whole(given, "recipients", "The number of recipients", 0, 1_000_000_000),
        kind=kind,
        calls=_whole(given, "calls", "The number of calls per recipient", 3, 10) or 1,
        counters=given.get("counters") == "1",
        retries=_whole(given, "retries", "The share of calls made again", 1, 100) / 100,
        warm=_whole(given, "warm", "The share of recipients looked up lately", 0, 100) / 100,
        speed=_whole(given, "speed", "The speed you have in mind", 0, 100_000_000),
    )


def _whole(given: Mapping[str, str], name: str, called: str, default: int, most: int) -> int:
    """A whole number as people type it: ``1 000 000``, ``1,000,000``."""
    typed = re.sub(r"[\s,.'%]", "", given.get(name, ""))
    if not typed:
        return default
    if not (typed.isdecimal() and typed.isascii() and len(typed) < 12 and int(typed) <= most):
        raise FieldError(called, f"must be a whole number up to {most:,}")
    return int(typed)


def _pace() -> tuple[Pace, dict[str, str]]:
    """What SessionM and this bridge take a second, and where each figure comes from."""
    parts = parts_of(current_app)
    settings = parts.settings
    rps = settings.bridge_sessionm_rps
    recent = together(parts.telemetry.minutes(time() - MEASURED))
    median = (recent.percentile("core", 0.5) or 0.0) / 1000
    wide = settings.bridge_delivery_concurrency / median if median else rps
    assumed = {
        "SessionM Core": f"BRIDGE_SESSIONM_RPS, {rps:g} a second",
        "SessionM Connect": f"no limit is documented: assumed to be Core's, {rps:g} a second",
        "this bridge": f"{ASSUMED_REQUESTS:.0f} calls a second: half of what two processes on two "
        "cores answered at least in this project's measurements",
    }
    if median:
        assumed["SessionM Core"] += (
            f", and {settings.bridge_delivery_concurrency} calls at once ÷ {median * 1000:.0f} ms "
            f"measured = {wide:,.0f} a second; the lower counts"
        )
    pace = Pace(
        core=min(rps, wide),
        connect=rps,
        requests=ASSUMED_REQUESTS,
        queue_limit=settings.bridge_queue_limit,
        bulk_threshold=settings.bridge_bulk_threshold,
    )
    return pace, assumed
