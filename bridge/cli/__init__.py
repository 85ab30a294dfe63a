"""The `bridge` command."""

import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from bridge import logs
from bridge.cli.batch import batch
from bridge.cli.common import one_line, settings_from_environment
from bridge.cli.doctor import examine
from bridge.cli.move import move
from bridge.cli.preview import preview
from bridge.cli.queue import erase, queue
from bridge.cli.warm import warm
from bridge.database import StoreUnavailableError
from bridge.fields import counted
from bridge.parts import build
from bridge.settings import Settings, unknown_names
from bridge.version import VERSION

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="bridge")
def main() -> None:
    """Stand between Braze and SessionM.

    Webhooks become SessionM tags, once; Connected Content gets tags and offers, in time.

    Settings are read from the environment and from .env; see the README.
    """


@main.command()
@click.option("--bind", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT")
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that serve. If more than one do, another delivers.",
)
@click.option(
    "--threads", default=128, show_default=True, type=click.IntRange(1, 512), help="Per worker."
)
def serve(bind: str, workers: int, threads: int) -> None:
    """Run the service under gunicorn."""
    settings = settings_from_environment()
    host, port = _read_bind(settings, bind)
    with one_line():
        _check_start(settings)
    from bridge.cli.server import Server, check_bind

    try:
        check_bind(host, port)
    except OSError as error:
        raise click.ClickException(
            f"{bind} cannot be used ({error.strerror}): choose another with --bind"
        ) from None
    logs.install(settings)
    for doubt in unknown_names(os.environ):
        log.warning("%s", doubt, extra={"action": "unknown_setting"})
    if settings.bridge_bulk_threshold and not settings.bridge_public_url:
        log.warning(
            "BRIDGE_BULK_THRESHOLD does nothing without BRIDGE_PUBLIC_URL",
            extra={"action": "no_public_url"},
        )
    log.info(
        "bridge %s on http://%s, %s",
        VERSION,
        bind,
        counted(workers, "worker"),
        extra={"action": "serving"},
    )
    Server(settings, bind=bind, workers=workers, threads=threads).run()


def _read_bind(settings: Settings, bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    if not (port.isdecimal() and int(port) < 65536 and host):
        raise click.BadParameter(
            f"{bind!r} is not HOST:PORT, such as 0.0.0.0:8080", param_hint="--bind"
        )
    local = host in {"127.0.0.1", "localhost", "[::1]"}
    if settings.bridge_insecure_no_auth and not local:
        raise click.ClickException(
            "BRIDGE_INSECURE_NO_AUTH=1 serves without keys and so only on 127.0.0.1: "
            f"set keys, or do not bind to {host}"
        )
    return host, int(port)


def _check_start(settings: Settings) -> None:
    """Find in this process what would stop every worker."""
    try:
        # Closed again before gunicorn forks: children inherit nothing that is open.
        build(settings).close()
    except StoreUnavailableError:
        # The workers answer 503 until the store is back.
        return


@main.command()
def deliver() -> None:
    """Deliver only: a process of its own beside `bridge serve`."""
    settings = settings_from_environment()
    logs.install(settings)
    with one_line():
        parts = build(settings)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: threading.Thread(target=parts.delivery.stop).start())
    parts.delivery.run()
    parts.close()


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=9090, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--seed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Customers and offers as JSON, in place of the built-in ones.",
)
def sandbox(host: str, port: int, seed: Path | None) -> None:
    """Run a stand-in for SessionM, for demonstrations and tests."""
    from bridge.sessionm import sandbox as stand_in

    try:
        stand_in.run(host, port, seed)
    except stand_in.SeedError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"port {port} cannot be used: {error.strerror}; choose another with --port"
        ) from None


@main.command()
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
def demo(port: int) -> None:
    """Run the whole thing on this machine, with nothing configured."""
    from bridge.cli.demo import Demo, PortTakenError

    try:
        Demo(port).run()
    except PortTakenError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check(*, as_json: bool) -> None:
    """Tell whether settings, rules, store and SessionM are in order."""
    findings = examine(dict(os.environ))
    healthy = all(finding.ok for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": healthy, "checks": [f.as_json() for f in findings]}, indent=2))
    else:
        for finding in findings:
            click.echo(finding.line())
    if not healthy:
        failed = sum(not finding.ok for finding in findings)
        raise click.ClickException(f"{failed} of {len(findings)} checks failed; see FAIL above")


@main.command()
@click.argument("template", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--user-id", help="Braze's user_id, which here is SessionM's.")
@click.option("--external-id", help="The id in the retailer's system.")
@click.option("--campaign-id", default="demo-campaign", show_default=True)
@click.option("--canvas-id", default="demo-canvas", show_default=True)
@click.option("--dispatch-id", default="", help="A new one if it is left out.")
@click.option(
    "--attribute",
    "-a",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    help="A Braze attribute.",
)
@click.option(
    "--variable", "-v", "variables", multiple=True, metavar="NAME=VALUE", help="A Liquid variable."
)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The bridge.")
@click.option("--key", help="NAME:SECRET; the first of BRIDGE_CONTENT_KEYS if left out.")
def render(template: Path, **options: Any) -> None:
    """Render a Braze message template against the running bridge.

    The host https://YOUR-BRIDGE in it stands for --url, and :basic_auth bridge for --key.
    """
    with one_line():
        preview(template, **options)


@main.group()
def keys() -> None:
    """The bridge's own keys."""


@keys.command()
@click.argument("name")
def new(name: str) -> None:
    """Print a fresh NAME:SECRET."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise click.BadParameter("use letters, digits, . _ - only", param_hint="NAME")
    click.echo(f"{name}:{secrets.token_urlsafe(32)}")


main.add_command(queue)
main.add_command(batch)
main.add_command(warm)
main.add_command(erase)
main.add_command(move)


def run() -> None:
    """The console script: every mistake of a user's ends in one line on stderr."""
    try:
        main.main(prog_name="bridge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "bridge"
        told = error.format_message().rstrip(".")
        click.echo(f"bridge: {told}; see `{command} --help`", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"bridge: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
