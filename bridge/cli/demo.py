"""`bridge demo`: sandbox, bridge and a little Braze traffic on one machine."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import requests

from bridge.sessionm.sandbox import Credentials, Sandbox, serve

HOST = "127.0.0.1"
START_TIMEOUT = 30.0
CUSTOMER = "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601"
SCOPES = ("webhook", "content", "admin")


class PortTakenError(Exception):
    """Another program listens where the demo would."""


class Demo:
    """Everything that the demo starts, and ends again."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{HOST}:{port}"
        self._port = port
        self._keys = {scope: secrets.token_urlsafe(18) for scope in SCOPES}
        self._ended = threading.Event()

    def run(self) -> None:
        """Run until Ctrl-C.

        Raises:
            PortTakenError: the port cannot be had.
        """
        _check_free(self._port)
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: self._ended.set())
        with ExitStack() as stack:
            sandbox = stack.enter_context(serve(Sandbox(), HOST, 0))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-demo-"))
            bridge = self._start_bridge(sandbox.url, Path(folder))
            stack.callback(_stop, bridge)
            if self._wait_until_ready(bridge):
                self._explain(sandbox.url)
                self._show_traffic(sandbox.url)
                click.echo("\nRunning. Ctrl-C ends it.")
                while not self._ended.wait(0.5) and bridge.poll() is None:
                    pass
        click.echo("\nEnded; nothing is left running.")

    def _start_bridge(self, sandbox_url: str, folder: Path) -> "subprocess.Popen[bytes]":
        environment = {
            **{name: value for name, value in os.environ.items() if not _is_setting(name)},
            **Credentials().environment(sandbox_url),
            **{f"BRIDGE_{s.upper()}_KEYS": f"demo:{key}" for s, key in self._keys.items()},
            "BRIDGE_DATABASE_URL": f"sqlite:///{folder}/bridge.db",
            "BRIDGE_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "bridge", "serve", "--bind", f"{HOST}:{self._port}"]
        # In a folder of its own, where no .env or rules.toml of the user's lies, and in a group
        # of its own, so that Ctrl-C reaches it through us and in order.
        return subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)  # noqa: S603 - our own command

    def _wait_until_ready(self, bridge: "subprocess.Popen[bytes]") -> bool:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until and bridge.poll() is None and not self._ended.is_set():
            try:
                if requests.get(f"{self._url}/readyz", timeout=1).ok:
                    return True
            except requests.ConnectionError:
                time.sleep(0.1)
        return False

    def _explain(self, sandbox_url: str) -> None:
        click.secho("\nThe bridge runs.\n", bold=True)
        click.echo(f"  bridge            {self._url}")
        click.echo(f"  SessionM sandbox  {sandbox_url}   (a stand-in, not SessionM)")
        for scope in SCOPES:
            click.echo(f"  {scope:7} key       demo:{self._keys[scope]}")
        click.secho(
            "\nLook at it in a browser (user demo, password: the admin key's secret):\n", bold=True
        )
        click.echo(f"  {self._url}/dashboard\n  {self._url}/setup")
        click.secho("\nTry it in another terminal:\n", bold=True)
        click.echo(
            f"  curl -H 'Authorization: Bearer {self._keys['content']}' \\\n"
            f"    '{self._url}/connected-content/offers?user_id={CUSTOMER}&limit=1'\n\n"
            f"  curl -H 'Authorization: Bearer {self._keys['webhook']}' "
            "-H 'Content-Type: application/json' \\\n"
            f'    -d \'{{"braze_campaign_id":"spring-sale","user_id":"{CUSTOMER}"}}\' \\\n'
            f"    '{self._url}/webhooks/braze'"
        )

    def _show_traffic(self, sandbox_url: str) -> None:
        click.secho("\nA little Braze traffic:\n", bold=True)
        first = self._webhook(braze_campaign_id="summer-sale", dispatch_id="send-1")
        click.echo(
            f"  Braze sends a webhook of the campaign summer-sale: {first['status']}.\n"
            f"    It is on disk, and becomes the tag {first['writes'][0]['tags'][0]} "
            f"for {first['writes'][0]['ttl'] // 86400} days."
        )
        again = self._webhook(braze_campaign_id="summer-sale", dispatch_id="send-1")
        click.echo(f"  Braze retries the same one: {again['status']}. Nothing counts twice.")
        tags = self._await_tag("braze_campaign_summer-sale")
        click.echo(f"  Connected Content asks for the tags: {', '.join(tags['names'])}.")
        self._clear_calls(sandbox_url)
        for _ in range(20):
            offers = self._lookup("offers")
        best = offers["first"]
        click.echo(
            f"  It asks for the offers 20 times: {offers['total']} offers, "
            f"{offers['available_points']} points; first: {best['title']}.\n"
            f"    That took {self._count_calls(sandbox_url)} call to SessionM."
        )

    def _webhook(self, **fields: str) -> dict[str, Any]:
        answer: dict[str, Any] = requests.post(
            f"{self._url}/webhooks/braze",
            json={"user_id": CUSTOMER, **fields},
            headers={"Authorization": f"Bearer {self._keys['webhook']}"},
            timeout=10,
        ).json()
        return answer

    def _lookup(self, lookup: str) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(
            f"{self._url}/connected-content/{lookup}",
            params={"user_id": CUSTOMER},
            headers={"Authorization": f"Bearer {self._keys['content']}"},
            timeout=10,
        ).json()
        return answer

    def _await_tag(self, tag: str) -> dict[str, Any]:
        until = time.monotonic() + 10
        while tag not in (tags := self._lookup("tags"))["names"] and time.monotonic() < until:
            time.sleep(0.1)
        return tags

    def _clear_calls(self, sandbox_url: str) -> None:
        requests.delete(f"{sandbox_url}/sandbox/calls", timeout=10)

    def _count_calls(self, sandbox_url: str) -> int:
        counts = requests.get(f"{sandbox_url}/sandbox/calls?limit=0", timeout=10).json()["counts"]
        return int(counts["offers"])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise PortTakenError(
                f"port {port} is taken: choose another with `bridge demo --port N`"
            ) from None


def _is_setting(name: str) -> bool:
    return name.startswith(("BRIDGE_", "SESSIONM_"))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=35)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
