"""`bridge demo`: sandbox, bridge and a little Braze traffic on one machine."""

import os
import queue
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click
import requests

from bridge.customer import DEMO_USER_ID
from bridge.fields import counted
from bridge.liquid.render import render
from bridge.liquid.snippets import PLACEHOLDER, TEMPLATES
from bridge.sandbox import Credentials, Sandbox, serve
from bridge.settings import SCOPES

HOST = "127.0.0.1"
# The campaign of Braze that a campaign of SessionM names in its advanced settings.
AWARD_CAMPAIGN = "0d2f6f5e-5a3b-4c1d-9e8f-7a6b5c4d3e2f"
AWARD = "Free coffee this weekend"
# Seconds between two looks at whether something has happened.
POLL = 0.1
# Seconds after which all workers have added their lookups to the totals.
COUNTED_AFTER = 2.0
# Seconds that the bridge has to end: gunicorn gives its workers 30.
STOP_TIMEOUT = 35.0


class DemoError(Exception):
    """The demo cannot go on; the message says why in one line."""


class Demo:
    """Everything that the demo starts, and stops again.

    Requests have no time-out: on a slow machine the demo waits for as long as the bridge runs.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._url = f"http://{HOST}:{port}"
        self._keys = {scope: secrets.token_urlsafe(18) for scope in SCOPES}
        self._rendered: queue.Queue[str] = queue.Queue()

    def run(self) -> None:
        """Run until Ctrl-C or SIGTERM.

        Raises:
            DemoError: the port is taken, or the bridge has ended by itself.
        """
        click.echo("Starting …")
        _check_free(self._port)
        # A signal that comes while the bridge is being started is obeyed once it can be stopped.
        early: list[int] = []
        _on_signals(lambda number, _frame: early.append(number))
        with ExitStack() as stack:
            sandbox = stack.enter_context(serve(Sandbox(), HOST, 0))
            sandbox.sandbox.braze.on_message = self._render
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-demo-"))
            settings = self._settings(sandbox.url, folder)
            # With it, commands in this folder are about the demo's bridge.
            lines = (f"{name}={value}\n" for name, value in settings.items())
            Path(folder, ".env").write_text("".join(lines), encoding="utf-8")
            bridge = _Bridge(self._port, settings, Path(folder))
            stack.callback(bridge.stop)
            try:
                _on_signals(_interrupt)
                if not early:
                    self._show(sandbox.url, folder, bridge)
            except KeyboardInterrupt:
                pass
            finally:
                _on_signals(signal.SIG_IGN)
        click.echo("\nEnded; nothing is left running.")

    def _settings(self, sandbox_url: str, folder: str) -> dict[str, str]:
        return {
            **Credentials().environment(sandbox_url),
            **{f"BRIDGE_{s.upper()}_KEYS": f"demo:{key}" for s, key in self._keys.items()},
            "BRIDGE_DATABASE_URL": f"sqlite:///{folder}/bridge.db",
            "BRIDGE_LOG_LEVEL": "warning",
            "BRIDGE_LOG_FORMAT": "text",
        }

    def _show(self, sandbox_url: str, folder: str, bridge: "_Bridge") -> None:
        while not bridge.call("GET", f"{self._url}/readyz").ok:
            time.sleep(POLL)
        self._explain(sandbox_url, folder)
        self._show_traffic(sandbox_url, bridge)
        self._show_award(sandbox_url, bridge)
        click.echo("\nRunning. Ctrl-C ends it.")
        # The steps of the setup page turn green by the reader's own calls.
        time.sleep(COUNTED_AFTER)
        bridge.call("POST", f"{self._url}/setup/progress", self._keys["admin"])
        bridge.wait()

    def _explain(self, sandbox_url: str, folder: str) -> None:
        bridge = Path(sys.executable).with_name("bridge")
        click.secho("\nThe bridge runs.\n", bold=True)
        click.echo(f"  bridge            {self._url}")
        click.echo(f"  SessionM sandbox  {sandbox_url}   (a stand-in, not SessionM)")
        for scope in SCOPES:
            click.echo(f"  {f'{scope} key':17} demo:{self._keys[scope]}")
        click.secho("\nOpen it in a browser:\n", bold=True)
        click.echo(
            f"  {self._url}/dashboard\n  {self._url}/setup\n\n"
            "  User: demo. Password: the secret of the admin key, or of the viewer key, which\n"
            "  opens the same pages read-only."
        )
        click.secho("\nTry it in another terminal:\n", bold=True)
        click.echo(
            f"  curl -H 'Authorization: Bearer {self._keys['content']}' \\\n"
            f"    '{self._url}/connected-content/offers?user_id={DEMO_USER_ID}&limit=1'\n\n"
            f"  curl -H 'Authorization: Bearer {self._keys['webhook']}' "
            "-H 'Content-Type: application/json' \\\n"
            f'    -d \'{{"braze_campaign_id":"spring-sale","user_id":"{DEMO_USER_ID}"}}\' \\\n'
            f"    '{self._url}/webhooks/braze'\n\n"
            "  SessionM fails until you send {} in the same way:\n"
            f"  curl -d '{{\"status\":503}}' {sandbox_url}/sandbox/faults\n\n"
            "  What an operator sees; the settings are in this folder's .env:\n"
            f"  cd {folder} && {shlex.quote(str(bridge))} queue status\n\n"
            "  A message as Braze renders it, in the same folder:\n"
            f"  {shlex.quote(str(bridge))} render --url {self._url} --user-id {DEMO_USER_ID} \\\n"
            f"    {shlex.quote(str(TEMPLATES / 'liquid' / 'best_offer.liquid'))}"
        )

    def _show_traffic(self, sandbox_url: str, bridge: "_Bridge") -> None:
        click.secho("\nA little Braze traffic:\n", bold=True)
        first = self._send_webhook(bridge)
        click.echo(
            f"  Braze sends a webhook of the campaign summer-sale: {first['status']}.\n"
            f"    It is on disk, and becomes the tag {first['writes'][0]['tags'][0]} "
            f"for {first['writes'][0]['ttl'] // 86400} days."
        )
        again = self._send_webhook(bridge)
        click.echo(f"  Braze retries the same one: {again['status']}. Nothing counts twice.")
        while "braze_campaign_summer-sale" not in (tags := self._look_up(bridge, "tags"))["names"]:
            time.sleep(POLL)
        click.echo(f"  Connected Content asks for the tags: {', '.join(tags['names'])}.")
        bridge.call("DELETE", f"{sandbox_url}/sandbox/calls")
        for _ in range(20):
            offers = self._look_up(bridge, "offers")
        calls = bridge.call("GET", f"{sandbox_url}/sandbox/calls?limit=0").json()["counts"]
        click.echo(
            f"  It asks for the offers 20 times: {offers['total']} offers, "
            f"{offers['available_points']:,} points; first: {offers['first']['title']}.\n"
            f"    That took {counted(calls['offers'], 'call')} to SessionM."
        )

    def _show_award(self, sandbox_url: str, bridge: "_Bridge") -> None:
        click.secho("\nAnd the other way, SessionM to Braze:\n", bold=True)
        bridge.call(
            "POST", f"{sandbox_url}/sandbox/customers/{DEMO_USER_ID}/offers", json={"title": AWARD}
        )
        accepted = bridge.call(
            "POST",
            f"{self._url}/webhooks/sessionm/message",
            self._keys["trigger"],
            json={
                "advanced_settings": f'{{"braze_campaign_id": "{AWARD_CAMPAIGN}",}}',
                "user_id": DEMO_USER_ID,
                "user_offer_id": "award-1",
                "title": AWARD,
            },
        ).json()
        click.echo(
            f'  SessionM awards "{AWARD}", and its campaign calls the bridge: {accepted["status"]}.'
        )
        click.echo("  The bridge looks the customer up anew, and triggers the Braze campaign.")
        click.echo("  The message that Braze renders at that moment:\n")
        for line in self._next_message(bridge).strip().splitlines():
            if line.strip():
                click.echo(f"    {line.strip()}")

    def _next_message(self, bridge: "_Bridge") -> str:
        while True:
            try:
                return self._rendered.get(timeout=POLL)
            except queue.Empty:
                bridge.check()

    def _render(self, message: dict[str, Any]) -> None:
        """Render a message as Braze does, while it is being triggered."""
        source = (TEMPLATES / "liquid" / "offer_awarded.liquid").read_text(encoding="utf-8")
        recipient = message["recipient"]
        properties = recipient.get("trigger_properties", {})
        rendered = render(
            source,
            attributes={
                "user_id": recipient.get("external_user_id", ""),
                "api_trigger_properties": properties,
            },
            campaign={"api_id": message["id"], "dispatch_id": message["dispatch_id"]},
            canvas={},
            credentials={"bridge": ("demo", self._keys["content"])},
            rewrite=lambda url: url.replace(PLACEHOLDER, self._url),
        )
        self._rendered.put(rendered.text)

    def _send_webhook(self, bridge: "_Bridge") -> dict[str, Any]:
        answer: dict[str, Any] = bridge.call(
            "POST",
            f"{self._url}/webhooks/braze",
            self._keys["webhook"],
            json={
                "user_id": DEMO_USER_ID,
                "braze_campaign_id": "summer-sale",
                "dispatch_id": "send-1",
            },
        ).json()
        return answer

    def _look_up(self, bridge: "_Bridge", lookup: str) -> dict[str, Any]:
        """Ask until the answer is SessionM's: on a slow machine its deadline may pass first."""
        while True:
            answer: dict[str, Any] = bridge.call(
                "GET",
                f"{self._url}/connected-content/{lookup}",
                self._keys["content"],
                params={"user_id": DEMO_USER_ID},
            ).json()
            if answer["status"] == "ok":
                return answer
            time.sleep(POLL)


class _Bridge:
    """`bridge serve` in a process of its own."""

    def __init__(self, port: int, settings: dict[str, str], folder: Path) -> None:
        self._log = folder / "bridge.log"
        self._http = requests.Session()
        # Every address is loopback: never through a proxy of the environment.
        self._http.trust_env = False
        with self._log.open("wb") as log:
            # In a folder of its own, where no rules.toml of the user's lies, and in a
            # group of its own, so that Ctrl-C reaches it through us and in order.
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "bridge", "serve", "--bind", f"{HOST}:{port}"],
                env={**_other_variables(), **settings},
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def call(self, method: str, url: str, key: str = "", **body: Any) -> requests.Response:
        """Call the bridge or the sandbox, again and again until it answers.

        Raises:
            DemoError: the bridge has ended.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        while self._process.poll() is None:
            try:
                return self._http.request(method, url, headers=headers, **body)
            except requests.ConnectionError:
                time.sleep(POLL)
        raise self._ended()

    def check(self) -> None:
        """See that the bridge runs.

        Raises:
            DemoError: it has ended.
        """
        if self._process.poll() is not None:
            raise self._ended()

    def wait(self) -> None:
        """Wait for the bridge to end, which it should not.

        Raises:
            DemoError: it has ended.
        """
        self._process.wait()
        raise self._ended()

    def stop(self) -> None:
        """End the bridge and whatever of it is left."""
        self._http.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ended(self) -> DemoError:
        said = self._log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "it does not say why")
        return DemoError(
            f"the bridge has ended with status {self._process.returncode}: "
            f"{last.strip().removeprefix('bridge: ')}"
        )


def _on_signals(act: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, act)


def _interrupt(*_: object) -> None:
    # Ending is not to be cut short by another.
    _on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise DemoError(
                f"port {port} is taken: choose another with `bridge demo --port N`"
            ) from None


def _other_variables() -> dict[str, str]:
    """The environment without settings of a bridge and proxies: SessionM's stand-in needs none."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BRIDGE_", "SESSIONM_", "BRAZE_"))
        and not name.lower().endswith("_proxy")
    }
