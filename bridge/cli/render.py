"""`bridge render`: render a Braze template with a running bridge."""

import base64
import secrets
from pathlib import Path
from typing import Any

import click

from bridge.cli.common import EXISTING_FILE, one_line
from bridge.liquid.connected_content import CONNECTED_CONTENT, ConnectedContentCall
from bridge.liquid.inputs import InputError, read_attributes, read_value
from bridge.liquid.render import LiquidError
from bridge.liquid.render import render as render_message
from bridge.liquid.snippets import BASIC_PLACEHOLDER, PLACEHOLDER
from bridge.settings import SettingsError, load


@click.command()
@click.argument("template", type=EXISTING_FILE)
@click.option("--user-id", metavar="ID", help="Braze's user_id, if it is SessionM's user_id.")
@click.option("--external-id", metavar="ID", help="The ID in the retailer's system.")
@click.option(
    "--campaign-id",
    default="demo-campaign",
    show_default=True,
    metavar="ID",
    help="Value of {{campaign.${api_id}}}.",
)
@click.option(
    "--canvas-id",
    default="demo-canvas",
    show_default=True,
    metavar="ID",
    help="Value of {{canvas.${api_id}}}.",
)
@click.option(
    "--dispatch-id", default="", metavar="ID", help="Dispatch ID of the send; by default a new one."
)
@click.option(
    "--attributes",
    "attributes_file",
    type=EXISTING_FILE,
    metavar="FILE.json",
    help="Braze's data: first_name, custom_attribute, event_properties, context, ...; "
    "content_blocks and catalogs replace those in Braze.",
)
@click.option(
    "--attribute",
    "-a",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    help="A Braze attribute, as JSON or text: points=600.",
)
@click.option(
    "--variable",
    "-v",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A Liquid variable, as JSON or text.",
)
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, help="URL of the bridge."
)
@click.option("--key", help="NAME:SECRET; by default the first of BRIDGE_CONTENT_KEYS.")
@one_line()
def render(
    template: Path,
    *,
    user_id: str | None,
    external_id: str | None,
    campaign_id: str,
    canvas_id: str,
    dispatch_id: str,
    attributes_file: Path | None,
    attributes: tuple[str, ...],
    variables: tuple[str, ...],
    url: str,
    key: str | None,
) -> None:
    """Render a Braze message with the running bridge.

    In the message, the host https://YOUR-BRIDGE means --url, and :basic_auth bridge means --key.
    The exit status is 1 if a call of the template failed.
    """
    try:
        source = template.read_text(encoding="utf-8")
        customer = {"user_id": user_id, "external_id": external_id}
        given = _attributes(customer, attributes_file, attributes)
        credential = _credential(key, source)
        basic = base64.b64encode(":".join(credential).encode()).decode()
        rendered = render_message(
            source.replace(BASIC_PLACEHOLDER, basic),
            attributes=given,
            campaign={
                "api_id": campaign_id,
                "name": "Example campaign",
                "dispatch_id": dispatch_id or secrets.token_hex(16),
            },
            canvas={"api_id": canvas_id, "name": "Example Canvas"},
            credentials={"bridge": credential},
            variables={"endpoint_connect": url, **_pairs(variables)},
            rewrite=lambda called: called.replace(PLACEHOLDER, url.rstrip("/")),
        )
    except LiquidError as error:
        _report(error.calls, error.warnings, url)
        raise click.ClickException(f"{template}: {error}".replace("`", "")) from None
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{template}: {error}") from None
    warnings = (*rendered.warnings, *rendered.blanks, *rendered.hints)
    _report(rendered.calls, warnings, url)
    if rendered.aborted is not None:
        click.echo(f"The message is aborted: {rendered.aborted or '(no reason given)'}", err=True)
    click.echo(rendered.text)
    if failed := _failed(rendered.calls):
        calls = "a call" if failed == 1 else f"{failed} calls"
        raise click.ClickException(f"{calls} of the template failed, see above")


def _report(calls: tuple[ConnectedContentCall, ...], warnings: tuple[str, ...], url: str) -> None:
    """Print the results of the calls and the warnings on stderr."""
    for call in calls:
        click.echo(f"{call.method} {call.url} -> {call.status or call.error}", err=True)
        if call.says:
            click.echo(f"  {call.says}", err=True)
        if call.status is None and call.error.startswith("no answer"):
            click.echo(f"  Is the bridge running at {url}? Give its address with --url.", err=True)
        elif call.status in {401, 403}:
            click.echo("  The key is refused: see --key.", err=True)
    for warning in warnings:
        click.echo(f"warning: {warning.replace('`', '')}", err=True)


def _failed(calls: tuple[ConnectedContentCall, ...]) -> int:
    """Return the number of calls that failed in the end, after any `:retry`."""
    return sum(bool(call.error) and not call.is_retried for call in calls)


def _attributes(
    customer: dict[str, str | None], file: Path | None, pairs: tuple[str, ...]
) -> dict[str, Any]:
    found = _file(file) if file else {}
    found |= {name: value for name, value in customer.items() if value}
    if not found.keys() & customer.keys():
        raise click.UsageError("name the customer: --user-id ID or --external-id ID")
    attributes = _pairs(pairs)
    if "custom_attribute" in found:
        found["custom_attribute"] = {**found["custom_attribute"], **attributes}
    return {**found, **attributes}


def _file(path: Path) -> dict[str, Any]:
    try:
        return read_attributes(path.read_text(encoding="utf-8-sig"))
    except (InputError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} {error}") from None


def _pairs(given: tuple[str, ...]) -> dict[str, Any]:
    for pair in given:
        if "=" not in pair:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE")
    return {name: read_value(value) for name, _, value in (pair.partition("=") for pair in given)}


def _credential(given: str | None, source: str) -> tuple[str, str]:
    """Return name and secret of the key for the template's calls; ("", "") without calls."""
    if given is None:
        if CONNECTED_CONTENT not in source:
            return "", ""
        try:
            keys = load().bridge_content_keys
        except SettingsError as error:
            raise click.UsageError(
                f"the template calls the bridge: give --key NAME:SECRET, or settings ({error})"
            ) from None
        return (keys[0].name, keys[0].secret.get_secret_value()) if keys else ("", "")
    name, colon, secret = given.partition(":")
    if not colon:
        raise click.UsageError("--key must be NAME:SECRET")
    return name, secret
