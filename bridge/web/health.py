"""Endpoints for probes, health and metrics."""

import time

from flask import Blueprint, Response, current_app, jsonify, request

from bridge.ops import files
from bridge.ops.health import report
from bridge.ops.metrics import exposition
from bridge.ops.probe import PAGE_PATIENCE
from bridge.parts import parts_of
from bridge.storage.database import StoreUnavailableError, in_time
from bridge.web import connections
from bridge.web.auth import scope
from bridge.web.errors import error
from bridge.web.operation import Example, Operation
from bridge.web.shapes import Health, Ok

bp = Blueprint("health", __name__)


@bp.get("/healthz")
@scope("open")
@Operation({200: (Ok,)})
def healthz() -> Response:
    """Answer that the process runs.

    For a liveness probe; it does not check the store or SessionM.
    """
    return jsonify(status="ok")


@bp.get("/readyz")
@scope("open")
@Operation({200: (Ok,)}, (503,))
def readyz() -> Response:
    """Answer whether events can be stored.

    For the start, before the first request. Load balancers check `/healthz`: while the database is
    unavailable, each bridge still answers lookups from memory.
    """
    try:
        parts_of(current_app).probe.check()
    except StoreUnavailableError as failure:
        return error(503, "store_unavailable", f"Events cannot be stored: {failure}.")
    return jsonify(status="ok")


@bp.get("/health")
@scope("viewer")
@Operation({200: (Health,), 503: (Health,)})
def health() -> tuple[Response, int]:
    """Report the health of the bridge, and the reasons.

    `down` (503): events cannot be stored. `degraded` (200): something is late or needs an
    operator; `reasons` has one sentence for each cause. Otherwise `ok`.
    """
    with in_time(time.monotonic() + PAGE_PATIENCE):
        found = report(parts_of(current_app))
    found["checks"]["files"] |= {
        "limit": files.limit(),
        "open": files.count(),
        "connections": connections.count(),
        "most_connections": files.most_connections(),
    }
    return jsonify(found), 503 if found["status"] == "down" else 200


@bp.get("/metrics")
@scope("viewer")
@Operation(
    {200: ()},
    (503,),
    mimetype="text/plain",
    example=Example(answer='bridge_webhooks_total{outcome="accepted"} 1041.0\n'),
)
def metrics() -> Response:
    """Export metrics for Prometheus.

    Totals of all workers, in Prometheus' text format or, depending on `Accept`, in OpenMetrics.
    """
    with in_time(time.monotonic() + PAGE_PATIENCE):
        body, content_type = exposition(parts_of(current_app), request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)
