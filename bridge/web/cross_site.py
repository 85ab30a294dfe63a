"""Protection against requests that another site's page makes through a user's browser (CSRF).

Browsers send Basic credentials with such requests too. The check is that of Go 1.25's
``http.CrossOriginProtection``: browsers send ``Sec-Fetch-Site``, and older ones or those on plain
HTTP send ``Origin``. A request with neither header does not come from a browser.
"""

from urllib.parse import urlsplit

from flask import Flask, Response, request

from bridge.web.errors import error

_SAFE = {"GET", "HEAD", "OPTIONS"}


def install(app: Flask) -> None:
    """Reject requests of other sites' pages to *app*, except those that change nothing."""

    @app.before_request
    def check() -> Response | None:
        if request.method in _SAFE or _is_ours():
            return None
        return error(
            403,
            "cross_site",
            "This request comes from a page of another site, and is rejected. If you sent it from "
            "a page of the bridge, open that page at the bridge's own address.",
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
