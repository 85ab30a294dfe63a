"""`bridge render`: a Braze template rendered against a running bridge."""

import base64
import secrets
from pathlib import Path
from typing import Any

import click

from bridge.liquid import LiquidError, render
from bridge.settings import load
from bridge.snippets import BASIC_PLACEHOLDER, PLACEHOLDER


def preview(template: Path, **options: Any) -> None:
    """Print *template* as Braze would render it; *options* are those of the command."""
    try:
        rendered = render(
            template.read_text(encoding="utf-8").replace(BASIC_PLACEHOLDER, _basic(options["key"])),
            attributes=_attributes(options),
            campaign={
                "api_id": options["campaign_id"],
                "dispatch_id": options["dispatch_id"] or secrets.token_hex(16),
            },
            canvas={"api_id": options["canvas_id"]},
            credentials={"bridge": _credential(options["key"])},
            variables={"endpoint_connect": options["url"], **_pairs(options["variables"])},
            rewrite=lambda url: url.replace(PLACEHOLDER, options["url"].rstrip("/")),
        )
    except (LiquidError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{template}: {error}") from None
    for call in rendered.calls:
        click.echo(f"{call.method} {call.url} -> {call.status or call.error}", err=True)
        if call.status is None:
            click.echo(f"  Is `bridge serve` running at {options['url']}? See --url.", err=True)
        elif call.status in {401, 403}:
            click.echo("  The key is refused: see --key.", err=True)
    if rendered.aborted is not None:
        click.echo(f"The message is aborted: {rendered.aborted or '(no reason given)'}", err=True)
    click.echo(rendered.text)


def _attributes(options: dict[str, Any]) -> dict[str, str]:
    given = {"user_id": options["user_id"], "external_id": options["external_id"]}
    if not any(given.values()):
        raise click.UsageError("say for whom: --user-id ID or --external-id ID")
    known = {name: value for name, value in given.items() if value}
    return {**known, **_pairs(options["attributes"])}


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    for pair in given:
        if "=" not in pair:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in given)}


def _basic(given: str | None) -> str:
    return base64.b64encode(":".join(_credential(given)).encode()).decode()


def _credential(given: str | None) -> tuple[str, str]:
    if given is None:
        keys = load().bridge_content_keys
        return (keys[0].name, keys[0].secret.get_secret_value()) if keys else ("", "")
    name, colon, secret = given.partition(":")
    if not colon:
        raise click.UsageError("--key must be NAME:SECRET")
    return name, secret
