"""The service under gunicorn, as `bridge serve` runs it."""

import gc
import logging
import os
import signal
import socket
from types import FrameType
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger

from bridge.application import create_app
from bridge.cli.deliverer import GRACE, Deliverer, deliver, end_with
from bridge.intake.rules import RulesError, read_rules
from bridge.ops import files, logs
from bridge.outbox.delivery import new_wakeups
from bridge.settings import Settings, SettingsError, load
from bridge.web.asgi import Asgi

log = logging.getLogger(__name__)

# Objects: Python's default of 700 is far below the number that concurrent requests create.
GC_THRESHOLD = 20_000


class _GunicornLog(Logger):
    """gunicorn's log in the bridge's format."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        logs.adopt(self.error_log)


class Server(BaseApplication):
    """gunicorn with the bridge's options, and the deliverer as a child process.

    Each worker builds its own application after the fork. The master reads settings and rules, and
    reads them again on ``HUP``; after an error the old ones stay in force.
    """

    def __init__(self, settings: Settings, *, bind: str, workers: int, threads: int) -> None:
        self._settings = settings
        self._threads = threads
        self._master = os.getpid()
        self._accepted = new_wakeups()
        self._deliverer = Deliverer(lambda: deliver(self._settings, self._rules, self._accepted))
        self._rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
        self._options: dict[str, Any] = {
            "bind": bind,
            "workers": workers,
            "worker_class": "bridge.web.connections.Worker",
            "graceful_timeout": GRACE,
            # Seconds: Braze keeps connections open, and a call fails on one that the bridge closes.
            "keepalive": 75,
            # Without it, one worker often gets all keep-alive connections.
            "reuse_port": True,
            "control_socket_disable": True,
            # gunicorn's warnings contain request lines with customers' identifiers.
            "loglevel": "error",
            "logger_class": _GunicornLog,
            "when_ready": self._start_deliverer,
            "on_reload": self._read_again,
            "on_exit": lambda _arbiter: self._deliverer.end(),
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        end_with(self._master)
        app = create_app(self._settings, deliver=False, rules=self._rules, accepted=self._accepted)
        # Exclude loaded modules from garbage collection, which took up to 100 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20)
        return Asgi(app, self._threads)

    def run(self) -> None:
        files.raise_limit()
        super().run()

    def _start_deliverer(self, _arbiter: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._end_deliverer_on(number)
        self._deliverer.start()

    def _end_deliverer_on(self, number: int) -> None:
        """End the deliverer together with the workers: gunicorn calls `on_exit` after them."""
        gunicorn = signal.getsignal(number)

        def end(number: int, frame: FrameType | None) -> None:
            self._deliverer.begin_shutdown()
            if callable(gunicorn):
                gunicorn(number, frame)

        signal.signal(number, end)

    def _read_again(self, _arbiter: object) -> None:
        """Read settings and rules again; keep the old ones if there is an error."""
        try:
            settings = load()
            rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
        except (SettingsError, RulesError) as error:
            extra = {"action": "not_reloaded"}
            log.error("the old settings and rules stay in force: %s", error, extra=extra)
            return
        self._settings, self._rules = settings, rules
        self._deliverer.restart()


def check_bind(host: str, port: int) -> None:
    """Check that no other process listens there: with SO_REUSEPORT, both would get requests.

    Raises:
        OSError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host.strip("[]"), port))
