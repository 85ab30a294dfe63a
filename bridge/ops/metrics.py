"""Metrics for Prometheus: totals of all processes, and present states.

Totals come from the figures in the store, so all workers export the same ones, and they do not
decrease when a worker ends. No label has a customer or a campaign.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.ops.health import report
from bridge.ops.incidents import CODES
from bridge.ops.telemetry import BOUNDS, Period
from bridge.parts import Parts
from bridge.storage.database import StoreUnavailableError

# Metric -> its help text, its label or "", and the count for each value of the label.
_COUNTERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bridge_webhooks": (
        "Webhooks by outcome; failed: answered with 5xx.",
        "outcome",
        {o: f"webhooks_{o}" for o in ("accepted", "duplicate", "rejected", "failed")},
    ),
    "bridge_messages": (
        "Messages of SessionM's for Braze by outcome; failed: answered with 5xx.",
        "outcome",
        {o: f"messages_{o}" for o in ("accepted", "duplicate", "rejected", "failed")},
    ),
    "bridge_lookups": (
        "Lookups by outcome.",
        "outcome",
        {o: f"lookups_{o}" for o in ("hit", "stale", "miss", "not_found", "unavailable")},
    ),
    "bridge_lookups_late": (
        "Lookups answered after more than Braze's 2 seconds.",
        "",
        {"": "lookups_late"},
    ),
    "bridge_events_ended": (
        "Events by final state.",
        "outcome",
        {outcome: outcome for outcome in ("delivered", "dead", "expired")},
    ),
    "bridge_messages_ended": (
        "Messages for Braze by final state.",
        "outcome",
        {outcome: f"messages_{outcome}" for outcome in ("delivered", "dead", "expired")},
    ),
    "bridge_messages_sent": (
        "Recipients of messages that Braze confirmed.",
        "",
        {"": "messages_sent"},
    ),
    "bridge_braze_calls": ("Calls to Braze's REST API.", "", {"": "braze_calls"}),
    "bridge_braze_errors": (
        "Failed calls to Braze's REST API.",
        "",
        {"": "braze_errors"},
    ),
    "bridge_writes_sent": ("Tag writes that SessionM confirmed.", "", {"": "writes_sent"}),
    "bridge_sessionm_calls": (
        "Calls to SessionM.",
        "system",
        {system: f"{system}_calls" for system in ("core", "connect")},
    ),
    "bridge_sessionm_errors": (
        "Failed calls to SessionM.",
        "system",
        {system: f"{system}_errors" for system in ("core", "connect")},
    ),
    "bridge_braze_failures": (
        "Answers that Braze counts as failures of this host.",
        "kind",
        {kind: f"braze_{kind}_failures" for kind in ("webhook", "content")},
    ),
    "bridge_braze_content_calls": (
        "Connected Content calls as Braze counts them.",
        "",
        {"": "braze_content_calls"},
    ),
    "bridge_values_not_understood": (
        "Expiry dates and balances of SessionM's in an unknown format.",
        "",
        {"": "values_not_understood"},
    ),
    "bridge_auth_failures": ("Requests answered 401 or 403.", "", {"": "auth_failures"}),
}
_HISTOGRAMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bridge_lookup_seconds": ("Time to answer a lookup.", "", {"": "lookup"}),
    "bridge_webhook_seconds": ("Time to answer a webhook.", "", {"": "webhook"}),
    "bridge_message_seconds": ("Time to answer a message of SessionM's.", "", {"": "message"}),
    "bridge_braze_call_seconds": (
        "Time that a call to Braze's REST API takes.",
        "",
        {"": "braze"},
    ),
    "bridge_sessionm_call_seconds": (
        "Time that a call to SessionM takes.",
        "system",
        {system: system for system in ("core", "connect")},
    ),
}
_STATES = {
    "sessionm": ("up", "refusing", "limiting", "failing", "down", "unknown"),
    "delivery": ("running", "paused", "stopped"),
    "status": ("ok", "degraded", "down"),
}


def exposition(parts: Parts, accept: str) -> tuple[bytes, str]:
    """Return all metrics in the format that the header Accept selects, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Metrics(parts))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Metrics(Collector):
    """Collects the present metrics."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def describe(self) -> list[Metric]:
        # Without this method, the registry would collect everything on registration.
        return []

    def collect(self) -> Iterator[Metric]:
        health = report(self._parts)
        yield InfoMetricFamily(
            "bridge_build", "Version of the bridge.", {"version": health["version"]}
        )
        yield _one_of(
            "bridge_status", "Status in /health.", {"": health["status"]}, _STATES["status"]
        )
        yield _incidents(health["incidents"])
        yield from _gauges(health["checks"], self._parts)
        yield from _message_gauges(health["checks"])
        try:
            totals = self._parts.telemetry.totals()
        except StoreUnavailableError:
            # A scrape without counters is a gap, but lower counters would be a reset.
            return
        yield from _counters(totals)
        yield from _histograms(totals)


def _gauges(checks: Mapping[str, Any], parts: Parts) -> Iterator[Metric]:
    store, delivery, budget = checks["store"], checks["delivery"], checks["braze_budget"]
    yield _gauge("bridge_store_up", "Whether events can be stored.", int(store["state"] == "ok"))
    events = GaugeMetricFamily("bridge_events", "Stored events by state.", labels=["state"])
    for state, number in store.get("events", {}).items():
        events.add_metric([state], number)
    yield events
    states = {"": delivery["state"]}
    yield _one_of("bridge_delivery_state", "State of delivery.", states, _STATES["delivery"])
    if delivery["heartbeat_seconds"] >= 0:
        yield _gauge(
            "bridge_delivery_heartbeat_age_seconds",
            "Seconds since the last heartbeat of the delivery loop.",
            delivery["heartbeat_seconds"],
        )
    yield _gauge("bridge_queue_writes", "Writes that wait for SessionM.", delivery["queued"])
    yield _gauge(
        "bridge_queue_limit_writes",
        "Number of queued writes at which webhooks are answered 503.",
        parts.settings.bridge_queue_limit,
    )
    yield _gauge(
        "bridge_queue_oldest_seconds", "Age of the oldest queued write.", delivery["oldest_seconds"]
    )
    yield _gauge("bridge_dead_writes", "Dead writes to SessionM.", delivery["dead"])
    systems = {s: checks[f"sessionm_{s}"]["state"] for s in ("core", "connect")}
    yield _one_of(
        "bridge_sessionm_state", "State of SessionM.", systems, _STATES["sessionm"], "system"
    )
    failures = GaugeMetricFamily(
        "bridge_braze_failures_last_minute",
        "Answers in the last minute that Braze counts as failures.",
        labels=["kind"],
    )
    for kind in ("webhook", "content"):
        failures.add_metric([kind], budget[f"{kind}_failures_last_minute"])
    yield failures
    yield _gauge(
        "bridge_braze_failures_limit",
        "Failures in a minute above which Braze stops calling.",
        budget["limit"],
    )


def _incidents(incidents: Sequence[Mapping[str, Any]]) -> Metric:
    opened = Counter(one["code"] for one in incidents if "until" not in one)
    family = GaugeMetricFamily("bridge_incidents", "Open incidents by cause.", labels=["code"])
    for code in CODES:
        family.add_metric([code], opened[code])
    return family


def _message_gauges(checks: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the gauges of messages to Braze, if those are on and the store can be read."""
    delivery, braze = checks.get("delivery_to_braze"), checks.get("braze")
    if delivery is None or braze is None:
        return
    states = {"": delivery["state"]}
    text = "State of delivery to Braze."
    yield _one_of("bridge_message_delivery_state", text, states, _STATES["delivery"])
    yield _gauge("bridge_message_queue", "Messages that wait for Braze.", delivery["queued"])
    yield _gauge(
        "bridge_message_queue_oldest_seconds",
        "Age of the oldest queued message.",
        delivery["oldest_seconds"],
    )
    yield _gauge("bridge_dead_messages", "Dead messages to Braze.", delivery["dead"])
    yield _one_of(
        "bridge_braze_state",
        "State of Braze's REST API.",
        {"": braze["state"]},
        _STATES["sessionm"],
    )
    if braze["calls_left"] is not None:
        yield _gauge(
            "bridge_braze_calls_left", "Calls left of Braze's hourly limit.", braze["calls_left"]
        )


def _counters(totals: Period) -> Iterator[Metric]:
    for name, (text, label, counts) in _COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=[label] if label else [])
        for value, count in counts.items():
            family.add_metric([value] if label else [], totals.count(count))
        yield family


def _histograms(totals: Period) -> Iterator[Metric]:
    for name, (text, label, kinds) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(name, text, labels=[label] if label else [])
        for value, kind in kinds.items():
            below = 0
            buckets = []
            for bound, number in zip([*BOUNDS, None], totals.buckets(kind), strict=True):
                below += number
                seconds = "+Inf" if bound is None else str(bound / 1000)
                buckets.append((seconds, below))
            family.add_metric([value] if label else [], buckets, totals.seconds(kind))
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _one_of(
    name: str, text: str, present: Mapping[str, str], states: tuple[str, ...], label: str = ""
) -> Metric:
    """Return a series for each state: 1 for the *present* one, else 0.

    Args:
        name: of the metric.
        text: its help text.
        present: value of *label* -> present state; one entry "" without a label.
        states: all possible states.
        label: a label besides ``state``, or "".
    """
    family = GaugeMetricFamily(name, text, labels=[label, "state"] if label else ["state"])
    for value, state in present.items():
        for one in states:
            family.add_metric([value, one] if label else [one], int(one == state))
    return family
