"""What Prometheus reads: totals of all processes, and how things stand.

Totals come from the figures in the store, so every worker tells the same, and none goes back when
a worker ends. No label names a customer or a campaign.
"""

from collections.abc import Iterator, Mapping
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

from bridge.database import StoreUnavailableError
from bridge.health import report
from bridge.parts import Parts
from bridge.telemetry import BOUNDS, Minute

# Metric -> what it is, its label ("" for none), and the count behind each of the label's values.
_COUNTERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bridge_webhooks": (
        "Webhooks by what became of them; failed ones were answered 5xx.",
        "outcome",
        {o: f"webhooks_{o}" for o in ("accepted", "duplicate", "rejected", "failed")},
    ),
    "bridge_lookups": (
        "Lookups by what was served.",
        "outcome",
        {o: f"lookups_{o}" for o in ("hit", "stale", "miss", "not_found", "unavailable")},
    ),
    "bridge_lookups_late": (
        "Lookups answered after more than Braze's 2 seconds.",
        "",
        {"": "lookups_late"},
    ),
    "bridge_events_ended": (
        "Events by how they ended.",
        "outcome",
        {outcome: outcome for outcome in ("delivered", "dead", "expired")},
    ),
    "bridge_writes_sent": ("Tag writes that SessionM took.", "", {"": "writes_sent"}),
    "bridge_sessionm_calls": (
        "Calls to SessionM.",
        "system",
        {system: f"{system}_calls" for system in ("core", "connect")},
    ),
    "bridge_sessionm_errors": (
        "Calls to SessionM that it did not answer as it should.",
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
    "bridge_auth_failures": ("Requests answered 401 or 403.", "", {"": "auth_failures"}),
}
_HISTOGRAMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bridge_lookup_seconds": ("Time to answer a lookup.", "", {"": "lookup"}),
    "bridge_webhook_seconds": ("Time to answer a webhook.", "", {"": "webhook"}),
    "bridge_sessionm_call_seconds": (
        "Time that a call to SessionM takes.",
        "system",
        {system: system for system in ("core", "connect")},
    ),
}
_STATES = {
    "sessionm": ("up", "failing", "down", "unknown"),
    "delivery": ("running", "paused", "stopped"),
    "status": ("ok", "degraded", "down"),
}


def exposition(parts: Parts, accept: str) -> tuple[bytes, str]:
    """All metrics in the format that the header *accept* asks for, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Now(parts))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Now(Collector):
    """The metrics as they are at this moment."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def describe(self) -> list[Metric]:
        # Without it, registering would collect everything once for nothing.
        return []

    def collect(self) -> Iterator[Metric]:
        told = report(self._parts)
        yield InfoMetricFamily(
            "bridge_build", "Which bridge this is.", {"version": told["version"]}
        )
        yield _one_of(
            "bridge_status", "How /health says it is.", {"": told["status"]}, _STATES["status"]
        )
        yield from _gauges(told["checks"], self._parts)
        try:
            totals = self._parts.telemetry.totals()
        except StoreUnavailableError:
            # Counters that are missing once are no step back; others would be.
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
    yield _one_of("bridge_delivery_state", "How delivery is.", states, _STATES["delivery"])
    if delivery["heartbeat_seconds"] >= 0:
        yield _gauge(
            "bridge_delivery_heartbeat_age_seconds",
            "Since the delivery loop last told that it is alive.",
            delivery["heartbeat_seconds"],
        )
    yield _gauge("bridge_queue_writes", "Writes that wait for SessionM.", delivery["queued"])
    yield _gauge(
        "bridge_queue_limit_writes",
        "Waiting writes at which webhooks are answered 503.",
        parts.settings.bridge_queue_limit,
    )
    yield _gauge(
        "bridge_queue_oldest_seconds", "Since when the oldest waits.", delivery["oldest_seconds"]
    )
    yield _gauge("bridge_dead_writes", "Writes that SessionM will not take.", delivery["dead"])
    systems = {s: checks[f"sessionm_{s}"]["state"] for s in ("core", "connect")}
    yield _one_of(
        "bridge_sessionm_state", "How SessionM is.", systems, _STATES["sessionm"], "system"
    )
    failures = GaugeMetricFamily(
        "bridge_braze_failures_last_minute",
        "Failures by Braze's rule in its moving minute.",
        labels=["kind"],
    )
    for kind in ("webhook", "content"):
        failures.add_metric([kind], budget[f"{kind}_failures_last_minute"])
    yield failures
    yield _gauge(
        "bridge_braze_failures_limit", "So many, and Braze stops calling.", budget["limit"]
    )


def _counters(totals: Minute) -> Iterator[Metric]:
    for name, (told, label, counts) in _COUNTERS.items():
        family = CounterMetricFamily(name, told, labels=[label] if label else [])
        for value, count in counts.items():
            family.add_metric([value] if label else [], totals.count(count))
        yield family


def _histograms(totals: Minute) -> Iterator[Metric]:
    for name, (told, label, kinds) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(name, told, labels=[label] if label else [])
        for value, kind in kinds.items():
            below = 0
            buckets = []
            for bound, number in zip([*BOUNDS, None], totals.buckets(kind), strict=True):
                below += number
                shown = "+Inf" if bound is None else str(bound / 1000)
                buckets.append((shown, below))
            family.add_metric([value] if label else [], buckets, totals.seconds(kind))
        yield family


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)


def _one_of(
    name: str, told: str, present: Mapping[str, str], states: tuple[str, ...], label: str = ""
) -> Metric:
    """A series for each of *states*, 1 for the *present* one, for each value of *label*."""
    family = GaugeMetricFamily(name, told, labels=[label, "state"] if label else ["state"])
    for value, state in present.items():
        for one in states:
            family.add_metric([value, one] if label else [one], int(one == state))
    return family
