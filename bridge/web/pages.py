"""The frame of all pages: headers, the two assets, and how times and numbers are written."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, current_app, render_template, request
from markupsafe import Markup
from werkzeug.exceptions import NotFound

from bridge.database import StoreUnavailableError
from bridge.fields import FieldError, instant, iso
from bridge.parts import parts_of
from bridge.snippets import TEMPLATES
from bridge.version import VERSION
from bridge.web.auth import scope, scope_of

bp = Blueprint("pages", __name__)

# Nothing from elsewhere, nothing inline, in nobody's frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Not no-referrer: a browser on plain HTTP would then say "Origin: null" to our own forms,
    # as it does for another site's. Ours alone ever see it, and no address holds a customer.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ASSETS = {
    "style.css": "text/css",
    "script.js": "text/javascript",
    "favicon.svg": "image/svg+xml",
}
_FOREVER = "public, max-age=31536000, immutable"
# Braze calls these; headers for browsers would be so many bytes of every answer.
_MACHINES = {"webhook", "content"}


def install(app: Flask) -> None:
    """Let *app* render pages, and give every answer that a browser may show its headers."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(
        time=time, moment=moment, span=span, number=number, percent=percent, brief=brief
    )
    app.jinja_env.globals.update(asset=asset, version=VERSION, known_as=known_as)

    @app.after_request
    def protect(response: Response) -> Response:
        wanted = scope_of(request.endpoint) if request.endpoint else "open"
        if wanted not in _MACHINES:
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
        if wanted == "admin":
            response.headers["Cache-Control"] = "no-store"
        return response


def page(template: str, status: int = 200, **context: Any) -> Response:
    """The page *template*, with *context* for it."""
    return Response(render_template(template, **context), status, mimetype="text/html")


def guard(blueprint: Blueprint) -> None:
    """Let the errors of *blueprint*'s pages be pages, too, for whoever wants to see one."""

    @blueprint.errorhandler(StoreUnavailableError)
    def _no_store(failure: StoreUnavailableError) -> Response:
        told = f"The bridge cannot reach its database: {failure}. Webhooks are answered 503, and "
        return problem(503, "Events cannot be stored", told + "Braze sends them again.")

    @blueprint.errorhandler(FieldError)
    def _bad_field(bad: FieldError) -> Response:
        return problem(400, "That cannot be searched or done", f"{bad}.")

    @blueprint.errorhandler(NotFound)
    def _missing(_error: NotFound) -> Response:
        return problem(404, "There is nothing here", "It may have been forgotten since: see below.")


def problem(status: int, title: str, told: str) -> Response:
    """A page that says what is wrong."""
    return page("problem.html", status, title=title, told=told)


@bp.get("/assets/<name>")
@scope("open")
def assets(name: str) -> Response:
    if name not in _ASSETS:
        raise NotFound
    body, version = _asset(name)
    response = Response(body, mimetype=_ASSETS[name])
    named = request.args.get("v") == version
    response.headers["Cache-Control"] = _FOREVER if named else "no-cache"
    response.set_etag(version)
    response.make_conditional(request)
    return response


@cache
def _asset(name: str) -> tuple[bytes, str]:
    body = (TEMPLATES / "assets" / name).read_bytes()
    return body, hashlib.sha256(body).hexdigest()[:16]


def asset(name: str) -> str:
    """The address of an asset, another for every content."""
    return f"/assets/{name}?v={_asset(name)[1]}"


# --- How things are written -------------------------------------------------------------------


def time(at: float | str) -> Markup:
    """A moment, seconds since the epoch or ISO, which the browser shows in the user's zone."""
    if at in {"", None}:
        return Markup("&ndash;")
    stamp = at if isinstance(at, str) else iso(at)
    seconds = instant(stamp) or 0.0
    utc = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        stamp, utc.strftime("%Y-%m-%d %H:%M:%S"), utc.strftime("%Y-%m-%d %H:%M:%S")
    )


def moment(at: float) -> str:
    """Hour and minute in UTC, for plots."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M")


def span(seconds: float) -> str:
    """A length of time in the two largest units that say something: ``1 h 20 min``."""
    if seconds < 1:
        return "0 s" if seconds <= 0 else f"{seconds * 1000:.0f} ms"
    left, found = round(seconds), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            found.append(f"{left // size} {unit}")
            left %= size
    return " ".join(found[:2])


def brief(milliseconds: float) -> str:
    """A short time: ``3.4 ms``, ``2.5 s``."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def percent(share: float) -> str:
    """A share as people read it; what is not all is never called 100 %."""
    if 0.999 <= share < 1:
        return "99.9 %"
    return f"{share:.0%}".replace("%", " %") if share in {0, 1} or share >= 0.1 else f"{share:.1%}"


def known_as(event: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """``(campaign or canvas, ID, name by rules.toml)`` of an event's JSON."""
    rules = parts_of(current_app).rules
    named = (
        ("campaign", event.get("campaign_id", ""), rules.campaigns),
        ("canvas", event.get("canvas_id", ""), rules.canvases),
    )
    return [
        (kind, braze_id, listed[braze_id].name if braze_id in listed else "")
        for kind, braze_id, listed in named
        if braze_id
    ]
