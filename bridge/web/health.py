"""Probes and health for load balancers, dashboards and people."""

from flask import Blueprint, Response, current_app, jsonify

from bridge.database import StoreUnavailableError
from bridge.health import report
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
        parts_of(current_app).store.ping()
    except StoreUnavailableError as failure:
        return error(503, "store_unavailable", f"Events cannot be stored: {failure}.")
    return jsonify(status="ok")


@bp.get("/health")
@scope("admin")
def health() -> tuple[Response, int]:
    told = report(parts_of(current_app))
    return jsonify(told), 503 if told["status"] == "down" else 200
