"""Braze to SessionM bridge."""

import atexit

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from bridge import telemetry, web
from bridge.parts import build
from bridge.settings import Settings, load
from bridge.version import VERSION

__all__ = ["create_app"]
__version__ = VERSION


def create_app(settings: Settings | None = None, *, deliver: bool = True) -> Flask:
    """The Flask application, with the delivery loop running beside it.

    Args:
        settings: read from the environment and `.env` when ``None``.
        deliver: whether this process takes part in delivery.

    Raises:
        SettingsError: a setting is wrong.
        RulesError: rules.toml is wrong.
        NewerSchemaError: the database belongs to a newer version.
    """
    settings = settings or load()
    telemetry.install(settings)
    parts = build(settings)
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.extensions["bridge"] = parts
    web.install(app, settings)
    if hops := settings.bridge_trusted_proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops
        )
    if deliver:
        parts.delivery.start()
        atexit.register(parts.delivery.stop)
    return app
