"""Drive batch jobs: carry out `next_move` for one job after the other, in a thread beside delivery.

Each step is stored before it is taken, so after a crash the job continues from there.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from bridge import clock
from bridge.bulk.backlog import Backlog, Record
from bridge.bulk.model import UNFINISHED, UNSUBMITTED, Job, JobChange, JobState, JobTimings, Source
from bridge.bulk.moves import JobReply, QueryStatus, Submit, next_move
from bridge.bulk.segment import customers_in
from bridge.bulk.store import BatchStore, token_hash
from bridge.customer import Customer
from bridge.outbox.model import QueuedWrite
from bridge.sessionm.answers import SessionMError
from bridge.sessionm.client import SessionM
from bridge.storage.database import StoreUnavailableError
from bridge.storage.locks import LostLockError

log = logging.getLogger(__name__)

# Seconds for one call.
CALL_TIMEOUT = 30.0
# Jobs of files that SessionM has at the same time. Jobs of the backlog do not count: they are few,
# and carry tags of messages that are being sent now.
MAX_FILES_IN_FLIGHT = 4
# Seconds after which a round takes no further job, since others may have become more urgent.
ROUND_LIMIT = 5.0

_NO_URL = (
    "the running bridge was started without BRIDGE_PUBLIC_URL: set it there, and restart the "
    "bridge or send `bridge serve` a HUP"
)


class JobDriver:
    """Drives every job to its end, in the process that delivers.

    Implements `bridge.outbox.delivery.BulkSender`.

    Args:
        store: stores the jobs.
        backlog: gathers jobs from the backlog.
        sessionm: the client.
        public_url: the URL at which SessionM reaches the bridge, or ``None``.
        outdate: called with the customers whose lookups a job made outdated; ``None``: all.

    Attributes:
        timings: intervals and time limits; may be replaced before `begin`.
    """

    def __init__(
        self,
        store: BatchStore,
        backlog: Backlog,
        sessionm: SessionM,
        public_url: str | None,
        outdate: Callable[[Iterable[Customer] | None], None],
    ) -> None:
        self.backlog = backlog
        self.timings = JobTimings()
        self._store = store
        self._sessionm = sessionm
        self._public_url = public_url
        self._outdate = outdate
        self._may_send = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    # --- `BulkSender`, called by the delivery loop in its thread ---

    def begin(self, record: Record) -> None:
        self.backlog.recover()
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, args=[record], name="jobs", daemon=True)
        self._thread.start()

    def step(self, busy: Collection[str], *, may_gather: bool, may_send: bool) -> None:
        self._may_send = may_send
        if may_gather:
            self.backlog.gather(busy, self.timings.quiet)

    def is_waiting(self) -> bool:
        return bool(self._store.running())

    def takes(self, due: Sequence[QueuedWrite]) -> bool:
        return self.backlog.takes(due)

    def end(self, *, wait: bool = True) -> None:
        self._ending.set()
        if wait and self._thread is not None:
            self._thread.join()

    # --- the thread ---

    def _run(self, record: Record) -> None:
        while not self._ending.wait(self.timings.poll):
            try:
                self._drive(record)
            except (StoreUnavailableError, LostLockError) as error:
                log.warning("batch jobs paused: %s", error, extra={"action": "no_store"})
            except Exception:
                # A fault of the bridge. The stored state says where to continue.
                log.exception("batch jobs failed; retrying", extra={"action": "batches_failed"})
                self._ending.wait(self.timings.retry)

    def _drive(self, record: Record) -> None:
        """Take the next step with every due job."""
        until = time.monotonic() + ROUND_LIMIT
        for job in self.backlog.unrecorded():
            self._try(job, partial(self._record_results, record=record))
        for job in self._due():
            if self._ending.is_set() or time.monotonic() > until:
                return
            self._try(job, partial(self._advance, record=record))

    def _due(self) -> list[Job]:
        """Return the due jobs: those of the backlog first, the others by the time they are due."""
        room = MAX_FILES_IN_FLIGHT - self._store.files_in_flight() if self._may_send else 0
        files = self._store.to_submit(of_backlog=False, limit=max(0, room))
        others = [*self._store.due(), *files]
        others.sort(key=lambda job: (job.source is not Source.BACKLOG, job.next_at))
        return [*self._store.to_submit(of_backlog=True), *others]

    def _try(self, job: Job, step: Callable[[Job], None]) -> None:
        """Take a step with *job*; a failure delays this job but no other."""
        try:
            step(job)
        except (StoreUnavailableError, LostLockError):
            raise
        except Exception:
            extra = {"action": "batch_put_off", "batch": job.batch_id}
            log.exception("a batch job failed; retrying", extra=extra)
            if job.state in UNFINISHED:
                later = clock.now() + self.timings.retry
                self._store.transition(job, JobChange(job.state, job.reason, later))

    def _advance(self, job: Job, record: Record) -> None:
        reply: JobReply = None
        move = next_move(job, reply, clock.now(), self.timings)
        if isinstance(move, Submit):
            submitted = self._submit(job)
            if submitted is None:
                return
            job, reply = submitted
        elif isinstance(move, QueryStatus):
            reply = self._call(partial(self._sessionm.read_batch, job.sessionm_id))
        if reply is not None:
            move = next_move(job, reply, clock.now(), self.timings)
        if isinstance(move, JobChange):
            self._change(job, move, record)

    def _submit(self, job: Job) -> tuple[Job, JobReply] | None:
        """Submit *job*; return it with SessionM's answer, or ``None`` if the job must wait."""
        if not self._may_send or job.next_at > clock.now():
            return None
        if self._public_url is None:
            # The job stays due: a bridge that starts with the URL submits it at once.
            if job.reason != _NO_URL:
                self._store.transition(job, JobChange(job.state, _NO_URL, job.next_at))
            return None
        file, notify = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        now = clock.now()
        tokens = {"file_token": token_hash(file), "notify_token": token_hash(notify)}
        values = {**UNSUBMITTED, **tokens, "attempts": job.attempts + 1, "submitted_at": now}
        change = JobChange(JobState.SUBMITTING, next_at=now + self.timings.outcome, values=values)
        submitting = self._store.transition(job, change)
        if submitting is None:
            return None
        words = "id=JOB_ID&status=JOB_STATUS&request_id=JOB_REQUEST_ID"
        order = {
            "request_id": submitting.request_id,
            "url": f"{self._public_url}/batches/files/{file}.csv",
            "md5": submitting.md5,
            "notify": f"{self._public_url}/webhooks/sessionm/batch?token={notify}&{words}",
        }
        return submitting, self._call(partial(self._sessionm.submit_batch, order))

    def _call(self, call: Callable[[float], Mapping[str, Any]]) -> JobReply:
        try:
            reply = call(CALL_TIMEOUT).get("tags")
        except SessionMError as error:
            return error
        return reply if isinstance(reply, dict) else {}

    def _change(self, job: Job, change: JobChange, record: Record) -> None:
        if change.to is JobState.COMPLETED:
            # Before the job is recorded as completed: no lookup may serve the older tags then.
            self._outdate_lookups(job)
        changed = self._store.transition(job, change)
        if changed is None or changed.state is job.state:
            return
        # Without the reason: SessionM's message may hold customers' ids.
        extra = {"action": f"batch_{changed.state}", "batch": job.batch_id}
        log.info("batch job %s", changed.state, extra=extra)
        if changed.state is JobState.RELEASED:
            self.backlog.suspend()
        if changed.state not in UNFINISHED:
            self._record_results(changed, record)

    def _outdate_lookups(self, job: Job) -> None:
        if job.source is Source.DROPIN:
            self._outdate(None)
            return
        self._outdate(
            customer
            for lines in self._store.blocks(job.id)
            for customer in customers_in(job.header, lines.decode())
        )

    def _record_results(self, job: Job, record: Record) -> None:
        while not self._ending.is_set() and self.backlog.record_results(job, record):
            pass
