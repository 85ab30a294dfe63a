"""The frame of all pages: headers, the two assets, and how times and numbers are written."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g, render_template, request
from markupsafe import Markup, escape
from werkzeug.exceptions import NotFound

from bridge import __version__, clock
from bridge.fields import STAMP, FieldError, instant, iso, number, percent, span
from bridge.liquid.snippets import TEMPLATES
from bridge.ops.outlook import outlook
from bridge.parts import parts_of
from bridge.storage.database import StoreUnavailableError
from bridge.web.auth import may_change, scope, scope_of
from bridge.web.errors import HTML

bp = Blueprint("pages", __name__)

# Nothing from elsewhere, nothing inline, in nobody's frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Not no-referrer: a browser on plain HTTP would then say "Origin: null" to our own forms,
    # as it does for another site's. Only the bridge's own pages receive it, and no address holds a
    # customer.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ASSETS = {
    "style.css": "text/css",
    "script.js": "text/javascript",
    "setup.css": "text/css",
    "setup.js": "text/javascript",
    "favicon.svg": "image/svg+xml",
}
_FOREVER = "public, max-age=31536000, immutable"
# Braze calls these; headers for browsers would only lengthen every answer.
_MACHINES = {"webhook", "content"}


def install(app: Flask) -> None:
    """Let *app* render pages, and give every answer that a browser may show its headers."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(
        time=time,
        moment=moment,
        span=span,
        ago=ago,
        code=code,
        number=number,
        percent=percent,
        brief=brief,
        breakable=breakable,
        outlook=outlook,
    )
    app.jinja_env.globals.update(
        asset=asset, version=__version__, known_as=known_as, may_change=may_change
    )

    @app.after_request
    def protect(response: Response) -> Response:
        wanted = scope_of(request.endpoint) if request.endpoint else "open"
        if wanted not in _MACHINES or response.mimetype == HTML:
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
        if wanted in {"admin", "viewer"}:
            response.headers["Cache-Control"] = "no-store"
        return response


def page(template: str, status: int = 200, **context: Any) -> Response:
    return Response(render_template(template, **context), status, mimetype=HTML)


def see_other(location: str) -> Response:
    """Return an answer after which a browser loads *location* with GET."""
    return Response(status=303, headers={"Location": location})


def guard(blueprint: Blueprint) -> None:
    """Answer a bad field of *blueprint*'s pages with a page."""

    @blueprint.errorhandler(FieldError)
    def _bad_field(bad: FieldError) -> Response:
        return page("problem.html", 400, title="That cannot be searched or done", message=f"{bad}.")


def base_url() -> str:
    """Return the URL of this bridge: the configured one, or else that of this request."""
    return parts_of(current_app).settings.bridge_public_url or request.host_url.rstrip("/")


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
    """Return the URL of an asset, which changes with its content."""
    return f"/assets/{name}?v={_asset(name)[1]}"


# --- How things are written -------------------------------------------------------------------


def time(at: float | str, *, dated: bool = False, minute: bool = False) -> Markup:
    """Return a time as HTML, which the browser shows in the user's zone.

    Args:
        at: seconds since the epoch, or ISO 8601.
        dated: whether the date is shown today too.
        minute: whether seconds are left out.
    """
    if at in {"", None}:
        return Markup("&ndash;")
    stamp = iso((instant(at) or 0.0) if isinstance(at, str) else at)
    written = stamp[: 16 if minute else 19].replace("T", " ")
    how = Markup(" data-dated") if dated else Markup(" data-minute") if minute else ""
    return Markup('<time datetime="{}" title="{} UTC"{}>{} UTC</time>').format(
        stamp, written, how, written
    )


def moment(at: float) -> str:
    """Hour and minute in UTC, for plots."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M")


def code(text: str) -> Markup:
    """Return *text* as HTML: backticks mark code, and times are as `time` writes them."""
    marked = _CODE.sub(r"<code>\1</code>", str(escape(text)))
    return Markup(STAMP.sub(_as_time, marked))  # noqa: S704 - it is escaped


def _as_time(stamp: re.Match[str]) -> str:
    return time(stamp[0]) if instant(stamp[0]) else stamp[0]


_CODE = re.compile("`([^`]*)`")


def breakable(url: str) -> Markup:
    """Return *url* as HTML in which a browser may break the line after each slash."""
    return Markup("/<wbr>").join(url.split("/"))


def ago(at: float) -> str:
    """Return the time since *at* as `span` writes it."""
    return span(max(1.0, clock.now() - at))


def brief(milliseconds: float) -> str:
    """Return a short time as text: ``3.4 ms``, ``2.5 s``."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2g} ms"


def name_campaigns(events: Iterable[Mapping[str, Any]]) -> None:
    """Read the names that Braze gave the campaigns of *events*, for `known_as`."""
    ids = {event[name] for event in events for name in ("campaign_id", "canvas_id")} - {""}
    try:
        g.campaign_names = parts_of(current_app).events.campaign_names(ids)
    except StoreUnavailableError:
        g.campaign_names = {}


def known_as(event: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return kind, ID and name of an event's campaign and Canvas: rules.toml's names first."""
    names: Mapping[str, str] = g.get("campaign_names", {})
    rules = parts_of(current_app).rules
    return [
        (kind, braze_id, rules.name_of(braze_id, kind) or names.get(braze_id, ""))
        for kind in ("campaign", "canvas")
        if (braze_id := event.get(f"{kind}_id", ""))
    ]
