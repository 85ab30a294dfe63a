"""Probes and health for load balancers, dashboards and people."""

from flask import Blueprint, Response, current_app, jsonify, request

from bridge.database import StoreUnavailableError
from bridge.health import report
from bridge.metrics import exposition
from bridge.parts import parts_of
from bridge.web.auth import scope
from bridge.web.errors import error

bp = Blueprint("health", __name__)


@bp.get("/healthz")
@scope("open")
def healthz() -> Response:
    return jsonify(status="ok")


@bp.get("/readyz")
@scope("open")
def readyz() -> Response:
    try:
        parts_of(current_app).probe.check()
    except StoreUnavailableError as failure:
        return error(503, "store_unavailable", f"Events cannot be stored: {failure}.")
    return jsonify(status="ok")


@bp.get("/health")
@scope("admin")
def health() -> tuple[Response, int]:
    told = report(parts_of(current_app))
    return jsonify(told), 503 if told["status"] == "down" else 200


@bp.get("/metrics")
@scope("admin")
def metrics() -> Response:
    """Totals of all workers and how things stand, for Prometheus."""
    body, content_type = exposition(parts_of(current_app), request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)
