"""The deliverer process: `bridge deliver`, or a child of `bridge serve`."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from bridge.application import build
from bridge.intake.rules import Rules
from bridge.outbox.delivery import Wakeups
from bridge.settings import Settings
from bridge.storage.database import StoreUnavailableError

log = logging.getLogger(__name__)

# The deliverer's nice value. Measured on two cores under full load by lookups, for 0, 10, 13, 15:
# 380, 130, 80, 55 writes/s; p99 of lookups 14, 10, 9, 9 ms; p99 of webhooks 46, 52, 58, 65 ms.
NICE = 13
# Seconds between SIGTERM and SIGKILL.
GRACE = 30
# Seconds before an ended deliverer is started again.
PAUSE = 0.5
# Seconds between two checks that the parent process exists.
PARENT_POLL = 1.0


def deliver(
    settings: Settings, rules: Rules | None = None, accepted: Wakeups | None = None
) -> None:
    """Deliver until SIGTERM or SIGINT, as `create_app` does beside requests.

    Raises:
        SettingsError: the database cannot be created at its path.
        RulesError: rules.toml is invalid.
        NewerSchemaError: the database belongs to a newer version.
        StoreUnavailableError: the database is unavailable.
    """
    parts = build(settings, rules, accepted)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: parts.begin_shutdown())
    if parts.braze_delivery:
        parts.braze_delivery.start()
    parts.delivery.run()
    parts.close()


def end_with(parent: int) -> None:
    """Send SIGTERM to this process when its *parent* process has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class Deliverer:
    """A child process that runs *deliver*, and is started again when it ends.

    It is a fork, and so has the parent's present settings.
    """

    def __init__(self, deliver: Callable[[], None]) -> None:
        self._deliver = deliver
        self._parent = os.getpid()
        self._pid = 0
        self._is_ending = False
        self._killed_at = 0.0
        # Reentrant, since a signal handler may run while the main thread holds it.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._supervise, name="deliverer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def restart(self) -> None:
        """End the child, and start a new one."""
        self._signal(signal.SIGTERM)

    def begin_shutdown(self) -> None:
        """Send SIGTERM to the child, and start no other. Does not wait."""
        if not self._is_ending:
            self._killed_at = time.monotonic() + GRACE
            self._is_ending = True
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait until the child has ended; kill it `GRACE` seconds after `begin_shutdown`."""
        self.begin_shutdown()
        self._thread.join(max(0.0, self._killed_at - time.monotonic()))
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock, suppress(ProcessLookupError):
            # A forked worker has a copy of this object.
            if self._pid and os.getpid() == self._parent:
                os.kill(self._pid, number)

    def _supervise(self) -> None:
        while True:
            with self._lock:
                if self._is_ending:
                    return
                self._pid = self._fork()
            status: int | None = None
            # gunicorn's master may reap the child first.
            with suppress(ChildProcessError):
                status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            with self._lock:
                pid, self._pid = self._pid, 0
            # While it starts, SIGTERM ends it at once, and later with status 0.
            is_ordered = status in {0, -signal.SIGTERM, -signal.SIGINT}
            level = logging.INFO if is_ordered else logging.WARNING
            extra = {"action": "deliverer_ended", "pid": pid}
            log.log(level, "deliverer ended %s", _ending(status), extra=extra)
            if not self._is_ending:
                time.sleep(PAUSE)

    def _fork(self) -> int:
        """Fork the child; return its process id. The child itself does not return."""
        if pid := os.fork():
            return pid
        status = 1
        try:
            # gunicorn's handlers would only note a signal that comes before `deliver` has its own.
            for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            end_with(self._parent)
            os.nice(NICE)
            self._deliver()
            status = 0
        except StoreUnavailableError as error:
            log.error("the deliverer ended: %s", error, extra={"action": "no_store"})
        except Exception:
            log.exception("the deliverer failed", extra={"action": "deliverer_failed"})
        finally:
            sys.stderr.flush()
            os._exit(status)


def _ending(status: int | None) -> str:
    """Return an exit status in words; negative for a signal, ``None`` if it is unknown."""
    if status is None:
        return "with an unknown status"
    return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
