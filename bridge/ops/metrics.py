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
from bridge.ops.telemetry import BOUNDS, LOOKUP_OUTCOMES, Period
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
        {o: f"lookups_{o}" for o in LOOKUP_OUTCOMES},
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
    "bridge_braze_errors": ("Failed calls to Braze's REST API.", "", {"": "braze_errors"}),
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
    "bridge_sessionm_refused": (
        "Calls that SessionM refused.",
        "system",
        {system: f"{system}_refused" for system in ("core", "connect")},
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
# Metric -> its help text, and the check and its key in ``/health`` with the value. Absent checks
# and values of ``None`` are left out.
_GAUGES = {
    "bridge_queue_writes": ("Writes that wait for SessionM.", "delivery", "queued"),
    "bridge_queue_oldest_seconds": (
        "Age of the oldest queued write.",
        "delivery",
        "oldest_seconds",
    ),
    "bridge_dead_writes": ("Dead writes to SessionM.", "delivery", "dead"),
    "bridge_braze_failures_limit": (
        "Failures in a minute above which Braze stops calling.",
        "braze_budget",
        "limit",
    ),
    "bridge_message_queue": ("Messages that wait for Braze.", "delivery_to_braze", "queued"),
    "bridge_message_queue_oldest_seconds": (
        "Age of the oldest queued message.",
        "delivery_to_braze",
        "oldest_seconds",
    ),
    "bridge_dead_messages": ("Dead messages to Braze.", "delivery_to_braze", "dead"),
    "bridge_braze_calls_left": ("Calls left of Braze's hourly limit.", "braze", "calls_left"),
}
_RUNS = ("running", "paused", "stopped")
_SYSTEM_STATES = ("up", "refusing", "limiting", "failing", "down", "unknown")
# Metric -> its help text, all states, its label besides ``state`` or "", and the check with the
# present state for each value of the label.
_STATES: dict[str, tuple[str, tuple[str, ...], str, dict[str, str]]] = {
    "bridge_delivery_state": ("State of delivery.", _RUNS, "", {"": "delivery"}),
    "bridge_message_delivery_state": (
        "State of delivery to Braze.",
        _RUNS,
        "",
        {"": "delivery_to_braze"},
    ),
    "bridge_sessionm_state": (
        "State of SessionM.",
        _SYSTEM_STATES,
        "system",
        {system: f"sessionm_{system}" for system in ("core", "connect")},
    ),
    "bridge_braze_state": ("State of Braze's REST API.", _SYSTEM_STATES, "", {"": "braze"}),
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
        states = ("ok", "degraded", "down")
        yield _one_of("bridge_status", "Status in /health.", {"": health["status"]}, states)
        yield _incidents(health["incidents"])
        yield from _gauges(health["checks"], self._parts)
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
    text = "Stored events by state."
    yield _labelled("bridge_events", text, "state", store.get("events", {}))
    if delivery["heartbeat_seconds"] >= 0:
        text = "Seconds since the last heartbeat of the delivery loop."
        yield _gauge("bridge_delivery_heartbeat_age_seconds", text, delivery["heartbeat_seconds"])
    text = "Number of queued writes at which webhooks are answered 503."
    yield _gauge("bridge_queue_limit_writes", text, parts.settings.bridge_queue_limit)
    text = "Answers in the last minute that Braze counts as failures."
    failures = {kind: budget[f"{kind}_failures_last_minute"] for kind in ("webhook", "content")}
    yield _labelled("bridge_braze_failures_last_minute", text, "kind", failures)
    for name, (text, check, key) in _GAUGES.items():
        if (value := checks.get(check, {}).get(key)) is not None:
            yield _gauge(name, text, value)
    for name, (text, states, label, sources) in _STATES.items():
        if all(check in checks for check in sources.values()):
            present = {value: checks[check]["state"] for value, check in sources.items()}
            yield _one_of(name, text, present, states, label)


def _incidents(incidents: Sequence[Mapping[str, Any]]) -> Metric:
    opened = Counter(one["code"] for one in incidents if "until" not in one)
    numbers = {code: opened[code] for code in CODES}
    return _labelled("bridge_incidents", "Open incidents by cause.", "code", numbers)


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


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


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
