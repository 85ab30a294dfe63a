"""The edge: authorise, translate, call one thing, serialise."""

from flask import Flask

from bridge.settings import Settings
from bridge.web import (
    admin,
    auth,
    batches,
    body,
    content,
    dashboard,
    dropin,
    errors,
    events,
    figures,
    health,
    openapi,
    origin,
    pages,
    setup,
    webhooks,
)


def install(app: Flask, settings: Settings) -> None:
    """Give *app* its routes, and what stands before and behind all of them."""
    # Braze follows no redirects: neither a missing nor a doubled slash may cause one.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    # First, so that its clock runs before anything can refuse.
    figures.install(app)
    auth.install(app, auth.Keyring(settings))
    origin.install(app)
    pages.install(app)
    errors.install(app)
    body.install(app)
    machines = (webhooks.bp, content.bp, dropin.bp, health.bp, admin.bp, batches.bp, openapi.bp)
    for blueprint in (*machines, pages.bp, dashboard.bp, events.bp, setup.bp):
        app.register_blueprint(blueprint)
