"""Braze to SessionM bridge."""

import atexit
import os
import signal
import sys
import threading
import weakref
from types import FrameType

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from bridge import logs, web
from bridge.bell import Bell
from bridge.intake.rules import Rules
from bridge.outbox.delivery import Delivery
from bridge.parts import Parts, build
from bridge.settings import Settings, load
from bridge.snippets import TEMPLATES
from bridge.version import VERSION

__all__ = ["create_app"]
__version__ = VERSION


def create_app(
    settings: Settings | None = None,
    *,
    deliver: bool = True,
    rules: Rules | None = None,
    accepted: Bell | None = None,
) -> Flask:
    """The Flask application, with the delivery loop running beside it.

    Args:
        settings: read from the environment and `.env` when ``None``.
        deliver: whether this process takes part in delivery.
        rules: read from the file that the settings name when ``None``.
        accepted: a bell of all processes that is to ring when something was accepted.

    Raises:
        SettingsError: a setting is wrong.
        RulesError: rules.toml is wrong.
        NewerSchemaError: the database belongs to a newer version.
    """
    settings = settings or load()
    logs.install(settings)
    app = Flask(__name__, static_folder=None, template_folder=TEMPLATES)
    parts = build(settings, rules, accepted)
    app.extensions["bridge"] = parts
    if not _is_preloading():
        _start(parts, deliver=deliver)
    # Braze's dialog shows the answer as it comes: no \u2026 for an ellipsis.
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    web.install(app, settings)
    if hops := settings.bridge_trusted_proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops
        )
    _renew_after_fork(weakref.ref(app), settings, deliver=deliver)
    return app


def _start(parts: Parts, *, deliver: bool) -> None:
    parts.start(deliver=deliver)
    # Runs after what is registered later has ended, and so counts its end too.
    atexit.register(parts.telemetry.close)
    if deliver:
        atexit.register(parts.delivery.stop)
    # Who waits for a delivery by another process waits no longer either.
    _begin_to_end_on_sigterm(parts.delivery)


def _is_preloading() -> bool:
    """Whether this is gunicorn's master, which will fork (``--preload``).

    No thread may run here: a child would inherit whatever lock it holds at that moment.
    """
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the documented way to the stack
    names = set()
    while frame is not None:
        names.add(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    in_worker = any(name.startswith("gunicorn.workers") for name in names)
    return "gunicorn.arbiter" in names and not in_worker


def _begin_to_end_on_sigterm(delivery: Delivery) -> None:
    """Let delivery start nothing more as soon as gunicorn tells its worker to end.

    gunicorn first waits for the requests under way, and some of those wait for deliveries.
    """
    server = signal.getsignal(signal.SIGTERM)
    if not callable(server) or threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, frame: FrameType | None) -> None:
        delivery.begin_to_end()
        server(number, frame)

    signal.signal(signal.SIGTERM, end)


def _renew_after_fork(app: "weakref.ref[Flask]", settings: Settings, *, deliver: bool) -> None:
    """Build anew in a child: threads, locks and connections are the parent's alone.

    It matters under ``gunicorn --preload``, where workers are forked off a built application.
    """
    inherited = []

    def renew() -> None:
        if living := app():
            # Kept, so that nothing of the parent's is closed from here.
            inherited.append(living.extensions["bridge"])
            living.extensions["bridge"] = parts = build(settings)
            _start(parts, deliver=deliver)

    os.register_at_fork(after_in_child=renew)
