"""The form of the send planner: its input, the capacity of this bridge, and the plan."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flask import current_app

from bridge import clock
from bridge.fields import FieldError, amount, whole_number
from bridge.ops.telemetry import together
from bridge.parts import parts_of
from bridge.planner import KINDS, Kind, Plan, PlannedSend, SendPace, plan

# Calls a second: half of the lowest rate that two processes on two cores reached in measurements.
ASSUMED_REQUESTS = 500.0
# Seconds: the period for the median latency of SessionM.
MEASURED = 3600.0


@dataclass(frozen=True)
class Planning:
    """The data of the planner's page.

    Attributes:
        problem: a sentence about invalid input, or "".
        pace: the capacity of SessionM and this bridge.
        send: the input, with defaults.
        plan: ``None`` without a number of recipients.
        grounds: the source of each figure of the plan.
        kinds: kinds of messages by name.
    """

    problem: str
    pace: SendPace
    send: PlannedSend
    plan: Plan | None
    grounds: Mapping[str, str]
    kinds: Mapping[str, Kind]


def planning(given: Mapping[str, str]) -> Planning:
    """Return the data of the page for the query parameters *given*."""
    pace, grounds = _pace()
    try:
        send, problem = _send(given), ""
    except FieldError as error:
        send, problem = PlannedSend(0, KINDS["offers"]), f"{error}."
    planned = plan(send, pace) if send.recipients else None
    return Planning(problem, pace, send, planned, grounds, KINDS)


def _send(given: Mapping[str, str]) -> PlannedSend:
    kind = KINDS.get(given.get("message", "offers"))
    if kind is None:
        raise FieldError("The kind of message", f"must be one of {', '.join(KINDS)}")
    return PlannedSend(
        recipients=_whole(given, "recipients", "The number of recipients", 0, 1_000_000_000),
        kind=kind,
        calls=_whole(given, "calls", "The number of calls per recipient", kind.calls, 10) or 1,
        counters=given.get("counters") == "1",
        retries=_share(given, "retries", "The retry rate", "1"),
        warm=_share(given, "warm", "The share of recipients fetched ahead", "0"),
        speed=_whole(given, "speed", "The planned send rate", 0, 100_000_000),
    )


def _whole(given: Mapping[str, str], name: str, label: str, default: int, most: int) -> int:
    """Read a whole number with any separators: ``1 000 000``, ``1,000,000``, ``1.000.000``."""
    digits = re.sub(r"[\s']|[,.](?=[0-9,.]*[0-9]{3}$)", "", given.get(name, "").strip())
    found = whole_number(digits, label, most, least=0)
    return default if found is None else found


def _share(given: Mapping[str, str], name: str, label: str, default: str) -> float:
    """Read a percentage as a share: ``12.5`` and ``12,5 %`` are 0.125."""
    percent = amount(given.get(name, "").replace("%", "").strip() or default)
    if percent is None or not 0 <= percent <= 100:
        raise FieldError(label, "must be a number from 0 to 100")
    return percent / 100


def _pace() -> tuple[SendPace, dict[str, str]]:
    """Return the capacity of SessionM and this bridge, and the source of each figure."""
    parts = parts_of(current_app)
    settings = parts.settings
    rps = settings.bridge_sessionm_rps
    recent = together(parts.telemetry.minutes(clock.now() - MEASURED))
    median = (recent.percentile("core", 0.5) or 0.0) / 1000
    cold = (recent.percentile("connect", 0.5) or 0.0) / 1000
    wide = settings.bridge_delivery_concurrency / median if median else rps
    assumed = {
        "SessionM Core": f"this bridge sends at most {rps:g} a second",
        "SessionM Connect": f"no limit is documented: assumed to be Core's, {rps:g} a second",
        "this bridge": f"{ASSUMED_REQUESTS:.0f} calls a second: half of what two processes on two "
        "cores answered at least in this project's measurements",
    }
    if median:
        assumed["SessionM Core"] += (
            f", and {settings.bridge_delivery_concurrency} calls at once ÷ {median * 1000:.0f} ms "
            f"measured = {wide:,.0f} a second; the lower counts"
        )
    pace = SendPace(
        core=min(rps, wide),
        connect=rps,
        requests=ASSUMED_REQUESTS,
        queue_limit=settings.bridge_queue_limit,
        bulk_threshold=settings.bridge_bulk_threshold,
        triggers=settings.braze_rps,
        **({"cold": cold} if cold else {}),
    )
    return pace, assumed
