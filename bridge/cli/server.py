"""The service under gunicorn, as `bridge serve` runs it."""

import logging
import os
import socket
import sys
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger

from bridge import create_app, logs
from bridge.bell import Bell
from bridge.intake.rules import RulesError, read_rules
from bridge.settings import Settings, SettingsError, load
from bridge.web.asgi import Asgi

log = logging.getLogger(__name__)

# gunicorn ends a worker that takes longer than this to finish what it has begun.
GRACE = 30
# Of the process that delivers. Beside as many lookups as two processors can answer, 380 writes a
# second went out with 0, 130 with 10, 80 with 13 and 55 with 15; of 100 lookups 99 took up to 14,
# 10, 9 and 9 ms, of 100 webhooks, which may wait for its turn to write, 46, 52, 58 and 65 ms.
NICE = 13


class _Log(Logger):
    """gunicorn's log, in our format."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        logs.adopt(self.error_log)


class _Master(Arbiter):
    """gunicorn's master, one of whose workers listens nowhere: it delivers.

    Beside a worker that also delivered, lookups waited for the interpreter's lock, and delivery
    for lookups. One worker alone does both.
    """

    app: "Server"

    def __init__(self, server: "Server") -> None:
        self._deliverer = 0
        super().__init__(server)

    def spawn_worker(self) -> int:
        separate = self.cfg.workers > 1
        delivers = separate and self._deliverer not in self.WORKERS
        self.app.delivers = delivers or not separate
        # Without it there are no sockets, since the master has none.
        self.cfg.set("reuse_port", not delivers)
        pid: int = super().spawn_worker()
        self.cfg.set("reuse_port", True)
        if delivers:
            self._deliverer = pid
            # Those that are too many end by their age.
            self.WORKERS[pid].age = sys.maxsize
        return pid

    def reload(self) -> None:
        if self._deliverer in self.WORKERS:
            self.WORKERS[self._deliverer].age = 0
        self._deliverer = 0
        super().reload()


class Server(BaseApplication):
    """gunicorn with the bridge's options. Each worker builds its own application after the fork.

    Settings and rules are read in the master: a ``HUP`` reads them again, and a mistake leaves the
    old ones in force instead of ending the service.
    """

    def __init__(self, settings: Settings, *, bind: str, workers: int, threads: int) -> None:
        self._settings = settings
        self._threads = threads
        self._accepted = Bell()
        # Whether the worker that begins takes part in delivery.
        self.delivers = True
        self._rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
        self._options: dict[str, Any] = {
            "bind": bind,
            "workers": workers + 1 if workers > 1 else 1,
            "worker_class": "bridge.web.worker.Worker",
            "graceful_timeout": GRACE,
            # Braze keeps connections open; closing them first would cost it failed calls.
            "keepalive": 75,
            # Without it all keep-alive connections often land on one worker.
            "reuse_port": True,
            "control_socket_disable": True,
            # Its most: an identifier of 255 characters may take 3,000 escaped.
            "limit_request_line": 8190,
            # Its warnings repeat request lines, and with them customers' identifiers.
            "loglevel": "error",
            "logger_class": _Log,
            "on_reload": self._read_again,
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        if self.delivers and self.cfg.workers > 1:
            # Where the processors do not suffice for all, a message waits for its lookup.
            os.nice(NICE)
        app = create_app(
            self._settings, deliver=self.delivers, rules=self._rules, accepted=self._accepted
        )
        return Asgi(app, self._threads)

    def run(self) -> None:
        try:
            _Master(self).run()
        except RuntimeError as error:
            sys.exit(f"Error: {error}")

    def _read_again(self, _arbiter: object) -> None:
        """Take what `.env`, the files of secrets and rules.toml say now, or nothing of it."""
        try:
            settings = load()
            rules = read_rules(settings.rules_file, settings.bridge_campaign_ttl)
        except (SettingsError, RulesError) as error:
            extra = {"action": "not_reloaded"}
            log.error("the old settings and rules stay in force: %s", error, extra=extra)
            return
        self._settings, self._rules = settings, rules


def check_bind(host: str, port: int) -> None:
    """See that nobody listens there: gunicorn's shared ports would let two services mix.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host.strip("[]"), port))
