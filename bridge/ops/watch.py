"""The watcher: one of all processes updates the incidents and posts alerts.

The watcher holds a lease, a row whose number it raises in every round. Another process takes over
when the number has not changed for `LEASE` seconds by its own clock. While the database is
unavailable no process can take over, and the watcher continues: this is the most important alert.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from bridge import clock
from bridge.ops.alerts import Pending, Receiver, Steady, message
from bridge.storage.database import Database, NewerSchemaError, StoreUnavailableError
from bridge.storage.expressions import insert

log = logging.getLogger(__name__)

# Seconds between two rounds, and without a round until another process takes over.
EVERY = 4.0
LEASE = 3 * EVERY
# Seconds for an alert in progress when the process ends.
POST_GRACE = 2.0
_NAME = "watch"

schema = sa.MetaData()
watchers = sa.Table(
    "watchers",
    schema,
    sa.Column("name", sa.Text, primary_key=True),
    # "" after a watcher has released the lease.
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("alert", sa.JSON, nullable=False),
)


def create(connection: sa.Connection) -> None:
    """Create the table as it is now."""
    schema.create_all(connection)


class WatchLease:
    """The lease of the watcher, which holds the pending alert too."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._me = uuid.uuid4().hex
        self._is_held = False
        # The last holder and number that were read, and when they changed.
        self._last: tuple[str, int] = ("", -1)
        self._changed_at = clock.steady()
        self.pending = Pending()

    def acquire(self) -> bool:
        """Acquire or renew the lease, and store `pending`; return whether it is held."""
        try:
            self._is_held = self._acquire()
        except (StoreUnavailableError, NewerSchemaError):
            # No process can take over now; later, LEASE seconds begin again.
            self._last = ("", -1)
        return self._is_held

    def release(self) -> None:
        """Let another process take over at once."""
        if self._is_held:
            self._is_held = False
            try:
                self._change(self._me, None, "")
            except (StoreUnavailableError, NewerSchemaError):
                log.debug("another process takes over later")

    def _acquire(self) -> bool:
        row = self._row()
        if row is None:
            first = {"name": _NAME, "holder": "", "round": 0, "alert": {}}
            with self._database.write() as connection:
                connection.execute(insert(watchers).values(**first).on_conflict_do_nothing())
            row = self._row()
            assert row is not None  # noqa: S101 - inserted above
        if row.holder == self._me:
            return self._change(self._me, None, self._me)
        if (row.holder, row.round) != self._last:
            self._last, self._changed_at = (row.holder, row.round), clock.steady()
        if row.holder and clock.steady() - self._changed_at < LEASE:
            return False
        if row.alert:
            self.pending = Pending(**row.alert)
        return self._change(row.holder, row.round, self._me)

    def _row(self) -> sa.Row[Any] | None:
        with self._database.read() as connection:
            return connection.execute(watchers.select().where(watchers.c.name == _NAME)).first()

    def _change(self, holder: str, number: int | None, after: str) -> bool:
        """Change the holder to *after* and raise the number, if the row is unchanged.

        Args:
            holder: the holder before.
            number: the number before; ``None`` for any.
            after: the new holder.

        Returns:
            Whether the row was changed.
        """
        conditions = [watchers.c.name == _NAME, watchers.c.holder == holder]
        if number is not None:
            conditions.append(watchers.c.round == number)
        change = (
            watchers.update()
            .where(*conditions)
            .values(holder=after, round=watchers.c.round + 1, alert=asdict(self.pending))
        )
        with self._database.write() as connection:
            return connection.execute(change).rowcount == 1


class Watch:
    """The thread that watches in one process.

    Args:
        lease: lets one process watch.
        look: updates the incidents, and returns the status and the open incidents as JSON.
        receiver: the receiver of alerts, if any.
        url: the URL of the dashboard, or "".
        sample: called in every round of every process.
    """

    def __init__(
        self,
        lease: WatchLease,
        look: Callable[[], tuple[str, list[dict[str, Any]]]],
        receiver: Receiver | None,
        url: str,
        sample: Callable[[], None] = lambda: None,
    ) -> None:
        self._lease = lease
        self._look = look
        self._receiver = receiver
        self._url = url
        self._sample = sample
        self._steady_status = Steady()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._poster: threading.Thread | None = None
        # Held by the thread that changes `WatchLease.pending`.
        self._changing = threading.Lock()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and let another process take over at once."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(10.0)
        if self._poster is not None:
            self._poster.join(POST_GRACE)
        self._lease.release()
        if self._receiver:
            self._receiver.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._sample()
                with self._changing:
                    watches = self._lease.acquire()
                if watches:
                    self.round()
                else:
                    self._steady_status = Steady()
            except Exception:
                # A fault of the bridge; the next round tries again.
                log.exception("watching failed", extra={"action": "watch_failed"})
            self._ending.wait(EVERY)

    def round(self) -> None:
        """Update the incidents, and post an alert that is due."""
        status, incidents = self._look()
        if self._receiver is None:
            return
        lease, now = self._lease, clock.now()
        with self._changing:
            stable = self._steady_status.update(status, clock.steady())
            if stable:
                lease.pending = lease.pending.with_status(stable, now)
            is_posting = self._poster is not None and self._poster.is_alive()
            # Store the alert before it is posted, so that no other process posts it too.
            if is_posting or not lease.pending.is_due(now) or not lease.acquire():
                return
            body = message(lease.pending, incidents, self._url)
            self._poster = threading.Thread(
                target=self._post, args=(self._receiver, body, lease.pending), daemon=True
            )
            self._poster.start()

    def _post(self, receiver: Receiver, body: Mapping[str, Any], posted: Pending) -> None:
        worked = receiver.post(body)
        lease = self._lease
        with self._changing:
            if lease.pending.id == posted.id:
                lease.pending = posted.posted(worked=worked, now=clock.now())
            elif worked:
                # The status changed again during the post: compare it with the posted one.
                lease.pending = Pending(posted_status=posted.status)
            # Store the result at once, so that a kill does not cause a second post.
            lease.acquire()
