"""The `bridge` command."""

import logging
import os
import re
import secrets
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from bridge import __version__
from bridge.application import build
from bridge.cli.batch import batch
from bridge.cli.common import EXISTING_FILE, one_line, settings_from_environment
from bridge.cli.deliverer import deliver as run_deliverer
from bridge.cli.doctor import examine
from bridge.cli.move import move
from bridge.cli.output import Form, Output, OutputError, dump, forms
from bridge.cli.queue import erase, queue
from bridge.cli.render import render
from bridge.cli.warm import warm
from bridge.fields import counted
from bridge.network.proxy import is_loopback
from bridge.ops import logs
from bridge.settings import Settings, unknown_names
from bridge.storage.database import StoreUnavailableError, UnsuitableDatabaseError

log = logging.getLogger(__name__)

# Setting -> the use of its keys.
KEY_VARIABLES = {
    "BRIDGE_WEBHOOK_KEYS": "Braze sends webhooks",
    "BRIDGE_CONTENT_KEYS": "Braze looks up customers",
    "BRIDGE_VIEWER_KEYS": "people and wall screens see the pages, and change nothing",
    "BRIDGE_TRIGGER_KEYS": "SessionM sends messages for Braze",
    "BRIDGE_ADMIN_KEYS": "people see the pages and make changes",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bridge")
@click.pass_context
def main(context: click.Context) -> None:
    """Connect Braze and SessionM.

    Webhooks become SessionM tags, once; Connected Content gets tags and offers, in time.

    Settings are read from the environment and from .env; see docs/settings.md.
    """
    if os.environ.get("NO_COLOR"):
        # https://no-color.org; click only omits colours if the output is not a terminal.
        context.color = False


@main.command()
@click.option(
    "--bind",
    default="127.0.0.1:8080",
    show_default=True,
    metavar="HOST:PORT",
    help="Address to listen on.",
)
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes for requests; one more process delivers.",
)
@click.option(
    "--threads",
    default=128,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Threads of each worker for lookups, and the same number for other requests.",
)
def serve(bind: str, workers: int, threads: int) -> None:
    """Run the service under gunicorn."""
    host, port = _read_bind(bind)
    settings = settings_from_environment()
    if settings.bridge_insecure_no_auth and not is_loopback(host.strip("[]")):
        raise click.ClickException(
            "BRIDGE_INSECURE_NO_AUTH=1 serves without keys, so it is only for 127.0.0.1: "
            f"set keys, or do not bind to {host}"
        )
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
    for warning in unknown_names(os.environ):
        log.warning("%s", warning, extra={"action": "unknown_setting"})
    if settings.bridge_bulk_threshold and not settings.bridge_public_url:
        log.warning(
            "BRIDGE_BULK_THRESHOLD does nothing without BRIDGE_PUBLIC_URL",
            extra={"action": "no_public_url"},
        )
    log.info(
        "bridge %s on http://%s, %s",
        __version__,
        bind,
        counted(workers, "worker"),
        extra={"action": "serving"},
    )
    Server(settings, bind=bind, workers=workers, threads=threads).run()


def _read_bind(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    if not (port.isdecimal() and int(port) < 65536 and host):
        raise click.BadParameter(
            f"{bind!r} is not HOST:PORT, such as 0.0.0.0:8080", param_hint="--bind"
        )
    return host, int(port)


def _check_start(settings: Settings) -> None:
    """Build the parts once, so that an error ends this process and not every worker."""
    try:
        # Closed before gunicorn forks, so that children inherit no connections.
        build(settings).close()
    except UnsuitableDatabaseError:
        raise
    except StoreUnavailableError:
        # The workers answer 503 until the store is available.
        return


@main.command()
def deliver() -> None:
    """Deliver only, in a process of its own beside `bridge serve`."""
    settings = settings_from_environment()
    logs.install(settings)
    with one_line():
        run_deliverer(settings)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=9090,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 for any free port.",
)
@click.option(
    "--seed",
    type=EXISTING_FILE,
    help="A JSON file of customers and offers, as the built-in bridge/sandbox/seed.json, "
    'such as {"customers": [{"user_id": "u1", "tags": {"vip": 1}}]}.',
)
def sandbox(host: str, port: int, seed: Path | None) -> None:
    """Run the sandbox, a stand-in for SessionM and Braze's REST API."""
    from bridge import sandbox as stand_in

    try:
        stand_in.run(host, port, seed)
    except stand_in.SeedError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"port {port} cannot be used: {error.strerror}; choose another with --port"
        ) from None


@main.command()
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port of the bridge.",
)
def demo(port: int) -> None:
    """Run everything on this machine, with nothing configured."""
    from bridge.cli.demo import Demo, DemoError

    try:
        Demo(port).run()
    except DemoError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@forms
def check(*, form: Form) -> None:
    """Check settings, rules, store, SessionM and Braze.

    Each line begins with ok, warn or FAIL. The exit status is 1 if a line begins with FAIL.
    """
    findings = examine(dict(os.environ))
    healthy = all(finding.ok for finding in findings)
    if form:
        rows = [finding.as_json() for finding in findings]
        dump(form, {"ok": healthy, "checks": rows}, rows)
    else:
        for finding in findings:
            click.echo(finding.line())
    if not healthy:
        failed = sum(not finding.ok for finding in findings)
        raise click.ClickException(f"{failed} of {len(findings)} checks failed; see FAIL above")


@main.group()
def keys() -> None:
    """Create keys for the bridge."""


@keys.command()
@click.argument("name")
@forms
def new(name: str, *, form: Form) -> None:
    """Print a new NAME:SECRET."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise click.BadParameter("use letters, digits, . _ - only", param_hint="NAME")
    key = f"{name}:{secrets.token_urlsafe(32)}"
    if form:
        dump(form, {"name": name, "key": key, "variables": list(KEY_VARIABLES)})
        return
    click.echo(key)
    click.echo("Add this line to one of these in .env, after a comma if it has a key:", err=True)
    for variable, use in KEY_VARIABLES.items():
        click.echo(f"  {variable:20} {use}", err=True)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands in a shell.

    \b
    bash: eval "$(bridge completion bash)" in ~/.bashrc
    zsh:  eval "$(bridge completion zsh)" in ~/.zshrc
    fish: bridge completion fish > ~/.config/fish/completions/bridge.fish
    """  # noqa: D301 - click's mark for lines to be kept
    completer = get_completion_class(shell)
    assert completer  # noqa: S101 - click has one for each of the choices
    click.echo(completer(main, {}, "bridge", "_BRIDGE_COMPLETE").source())


for command in (queue, batch, warm, erase, render, move):
    main.add_command(command)


def run() -> None:
    """Run the console script: a mistake of the user ends with one line on stderr."""
    if sys.stdout:
        binary = os.fdopen(sys.stdout.fileno(), "wb", closefd=False)
        sys.stdout = Output(binary, sys.stdout.encoding, sys.stdout.errors)
    try:
        main.main(prog_name="bridge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "bridge"
        message = error.format_message().rstrip(".")
        click.echo(f"bridge: {message}; see `{command} --help`", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"bridge: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except OutputError as error:
        # The rest of the output would fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error.__cause__, BrokenPipeError):
            click.echo(f"bridge: the output cannot be written: {error}", err=True)
        sys.exit(1)
