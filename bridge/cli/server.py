"""The service under gunicorn, as `bridge serve` runs it."""

from typing import Any

from gunicorn.app.base import BaseApplication

from bridge import create_app
from bridge.settings import Settings

# gunicorn ends a worker that takes longer than this to finish what it has begun.
GRACE = 30


class Server(BaseApplication):
    """gunicorn with the bridge's options. Each worker builds its own application after the fork."""

    def __init__(self, settings: Settings, *, bind: str, workers: int, threads: int) -> None:
        self._settings = settings
        self._options: dict[str, Any] = {
            "bind": bind,
            "workers": workers,
            "threads": threads,
            "worker_class": "gthread",
            "graceful_timeout": GRACE,
            # Braze keeps connections open; closing them first would cost it failed calls.
            "keepalive": 75,
            # Without it all keep-alive connections often land on one worker.
            "reuse_port": True,
            "control_socket_disable": True,
            "loglevel": "warning",
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            # An older gunicorn does not have all of them.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        return create_app(self._settings)
