"""No other site may change anything through a user's browser.

Browsers send Basic credentials along with whatever any page makes them send. As in Go 1.25's
``http.CrossOriginProtection``: a browser says by ``Sec-Fetch-Site``, or an older one (or one on
plain HTTP) by ``Origin``, where a request comes from; what says neither is no browser.
"""

from urllib.parse import urlsplit

from flask import Flask, Response, request

from bridge.web.errors import error

_SAFE = {"GET", "HEAD", "OPTIONS"}


def install(app: Flask) -> None:
    """Refuse changing requests to *app* that come from another site's page."""

    @app.before_request
    def check() -> Response | None:
        if request.method in _SAFE or _is_ours():
            return None
        return error(
            403,
            "cross_site",
            "This request comes from another site's page, and is refused. If you sent it from a "
            "page of the bridge, open that page by the bridge's own address.",
        )


def _is_ours() -> bool:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    return origin is None or _host(origin) == request.host.lower()


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
