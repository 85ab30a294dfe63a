"""Registration of all routes and request hooks."""

from flask import Flask

from bridge.settings import Settings
from bridge.web import (
    admin,
    auth,
    batches,
    body,
    campaigns,
    content,
    counting,
    cross_site,
    customers,
    dashboard,
    dropin,
    errors,
    events,
    export,
    guide,
    health,
    messages,
    openapi,
    pages,
    setup,
    webhooks,
)


def install(app: Flask, settings: Settings) -> None:
    """Register the routes and request hooks in *app*."""
    # Braze does not follow redirects, so a missing or doubled slash must not cause one.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    # First, so that it measures rejected requests too.
    counting.install(app)
    auth.install(app, auth.Keyring(settings))
    cross_site.install(app)
    pages.install(app)
    errors.install(app)
    body.install(app)
    machines = (
        *(webhooks.bp, messages.bp, content.bp, dropin.bp),
        *(health.bp, admin.bp, customers.api, batches.bp, openapi.bp),
    )
    people = (
        *(pages.bp, dashboard.bp, events.bp, export.bp, campaigns.bp),
        *(customers.bp, setup.bp, guide.bp),
    )
    for blueprint in (*machines, *people):
        app.register_blueprint(blueprint)
