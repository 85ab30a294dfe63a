"""Gather expiring tags of a long backlog into one of SessionM's batch jobs.

Only writes that a batch file can express exactly are gathered: with TTLs of whole days, accepted
less than half a minute ago (later, the remaining TTL is a number of seconds), and never tried.
Gathered writes are *held*: they, and later writes of their customers, wait for the end of the job.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from bridge import clock
from bridge.bulk.model import ROWS_OF_JOB, UNFINISHED, Job, JobState, Source
from bridge.bulk.schema import batch_jobs, batch_writes, batches
from bridge.bulk.segment import DAY, Row, sessionm_header, sessionm_rows
from bridge.bulk.store import BatchStore, DiscardedError, add_block, read_jobs
from bridge.customer import CUSTOMER_KINDS, Customer
from bridge.fields import counted
from bridge.outbox.model import AFTER_BATCH, CallResult, Direction, QueuedWrite, State
from bridge.outbox.schema import QUEUED, has_direction, writes
from bridge.outbox.store import QUEUED_WRITES, queued_write
from bridge.sessionm.tags import FULL_TTL_AGE

log = logging.getLogger(__name__)

# Writes of one transaction, which is short enough not to delay the intake of webhooks.
CLAIM_LIMIT = 1000
CLAIMS_PER_STEP = 5
# Seconds between two checks of the backlog: without a job being gathered, and with one.
CHECK_INTERVAL, GATHER_INTERVAL = 1.0, 0.25
# Seconds since its acceptance after which a write is no longer gathered.
MAX_WRITE_AGE = FULL_TTL_AGE / 2
# Seconds without gathering: after a job failed, and after gathering failed.
SUSPENSION, SHORT_SUSPENSION = 900.0, 60.0
# Writes whose results are recorded in one transaction.
RECORD_LIMIT = 500

Record = Callable[[list[CallResult]], None]


@dataclass
class _Gathering:
    """The job that is being gathered.

    *grew_at* is by `time.monotonic`, *oldest_at* in seconds since the epoch.
    """

    batch_id: str
    job_id: int
    grew_at: float
    oldest_at: float = float("inf")
    blocks: int = 0
    rows: int = 0


class Backlog:
    """Gathers jobs from the backlog, and records the results of their writes.

    Args:
        store: stores the jobs, in the database of the writes.
        threshold: number of queued writes above which a job begins; 0: never.
    """

    def __init__(self, store: BatchStore, threshold: int) -> None:
        self._store = store
        self._database = store.database
        self._threshold = threshold
        self._gathering: _Gathering | None = None
        # By the monotonic clock.
        self._next_check_at = 0.0
        self._suspended_until = 0.0
        # Whether there may be an unfinished gathering, of this process or another.
        self._must_recover = False

    # --- gathering, in the thread of the delivery loop ---

    def recover(self) -> None:
        """Close jobs that another process, or this one before a failure, was gathering.

        Raises:
            StoreUnavailableError: the database cannot be read or written.
        """
        self._gathering = None
        self._release_orphans()
        left = (
            batch_jobs.c.state == JobState.OPEN.value,
            batches.c.source == Source.BACKLOG.value,
        )
        with self._database.read() as connection:
            jobs = read_jobs(connection, *left)
        for job in jobs:
            self._close(job.batch_id, job.id, job.rows)
        self._must_recover = False

    def suspend(self) -> None:
        """Stop gathering for `SUSPENSION` seconds, since a job failed."""
        self._suspended_until = time.monotonic() + SUSPENSION

    def takes(self, due: Sequence[QueuedWrite]) -> bool:
        """Return whether the due writes of a customer will join the job that is being gathered."""
        since = clock.now() - MAX_WRITE_AGE
        return self._gathering is not None and all(
            write.ttl is not None
            and write.ttl % DAY == 0
            and write.attempts == 0
            and write.accepted_at > since
            for write in due
        )

    def gather(self, busy: Collection[str], quiet: float) -> None:
        """Gather queued writes if the backlog is long.

        After a failure, gathering is suspended and writes are delivered by single calls.

        Args:
            busy: keys of customers with a call in flight, whose writes are not gathered.
            quiet: seconds without a further write after which the job is closed.
        """
        if not self._threshold or time.monotonic() < self._next_check_at:
            return
        try:
            self._gather(busy, quiet)
        except DiscardedError:
            # Its writes are delivered by single calls, see `unrecorded`.
            self._gathering = None
        except Exception:
            log.exception(
                "gathering failed; the backlog is delivered by single calls",
                extra={"action": "gathering_failed"},
            )
            self._must_recover = self._must_recover or self._gathering is not None
            self._gathering = None
            self._suspended_until = time.monotonic() + SHORT_SUSPENSION

    def _gather(self, busy: Collection[str], quiet: float) -> None:
        if self._must_recover:
            self.recover()
        monotonic = time.monotonic()
        if self._gathering is None:
            self._next_check_at = monotonic + CHECK_INTERVAL
            if monotonic < self._suspended_until or not self._is_long():
                return
            batch_id = self._store.open_batch(
                Source.BACKLOG, "backlog", "", sessionm_header(CUSTOMER_KINDS)
            )
            self._gathering = _Gathering(batch_id, self._store.open_job(batch_id), monotonic)
        self._next_check_at = monotonic + GATHER_INTERVAL
        job = self._gathering
        for _ in range(CLAIMS_PER_STEP):
            if self._claim(job, busy) < CLAIM_LIMIT or job.rows >= ROWS_OF_JOB:
                break
        is_overdue = clock.now() - job.oldest_at > MAX_WRITE_AGE
        is_quiet = time.monotonic() - job.grew_at > quiet
        if job.rows >= ROWS_OF_JOB or is_quiet or is_overdue:
            self._close(job.batch_id, job.job_id, job.rows)
            self._gathering = None

    def _is_long(self) -> bool:
        """Return whether over *threshold* due writes have whole-day TTLs, and one is eligible."""
        now = clock.now()
        many = sa.select(writes.c.seq).where(*_of_days(now)).offset(self._threshold).limit(1)
        some = sa.select(writes.c.seq).where(*_eligible(now)).limit(1)
        with self._database.read() as connection:
            return all(connection.execute(one).first() is not None for one in (many, some))

    def _claim(self, job: _Gathering, busy: Collection[str]) -> int:
        """Add queued writes to the file of *job*; return the number of writes examined.

        Raises:
            DiscardedError: the job's batch was discarded.
        """
        with self._store.writing(job.batch_id) as connection:
            found = _read(connection, _to_claim(clock.now(), busy))
            chosen, held = _choose(connection, found)
            seqs = [*held, *(write.seq for write in chosen)]
            if seqs:
                holding = writes.update().where(writes.c.seq.in_(seqs))
                connection.execute(holding.values(next_at=AFTER_BATCH))
            if chosen:
                rows = _add(connection, job, chosen)
        if chosen:
            job.blocks += 1
            job.rows += rows
            job.oldest_at = min(job.oldest_at, *(write.accepted_at for write in chosen))
            job.grew_at = time.monotonic()
        return len(found)

    def _close(self, batch_id: str, job_id: int, rows: int) -> None:
        if not rows:
            self._store.drop(batch_id)
            return
        self._store.seal(batch_id, job_id, counts=False)
        self._store.release(batch_id)
        message = f"batch of the backlog closed with {counted(rows, 'row')}"
        log.info(message, extra={"action": "batch_gathered", "batch": batch_id})

    def _release_orphans(self) -> None:
        """Release held writes that wait for no job, for example after `bridge move`."""
        theirs = writes.alias()
        in_a_job = (
            sa.select(batch_writes.c.job_id)
            .join(theirs, theirs.c.seq == batch_writes.c.write_seq)
            .where(theirs.c.customer == writes.c.customer)
        )
        with self._database.write(exclusive=True) as connection:
            connection.execute(
                writes.update()
                .where(writes.c.state == QUEUED, writes.c.next_at >= AFTER_BATCH)
                .where(~in_a_job.exists())
                .values(next_at=clock.now())
            )

    # --- recording the end of a job's writes, in the driver's thread ---

    def unrecorded(self) -> list[Job]:
        """Return the ended jobs some of whose writes have no recorded result yet.

        Raises:
            StoreUnavailableError: the database cannot be read.
        """
        going = (JobState.OPEN, *UNFINISHED)
        theirs = sa.select(batch_writes.c.job_id).where(batch_writes.c.job_id == batch_jobs.c.id)
        with self._database.read() as connection:
            return read_jobs(connection, batch_jobs.c.state.not_in(going), theirs.exists())

    def record_results(self, job: Job, record: Record) -> bool:
        """Record the results of up to `RECORD_LIMIT` writes of *job*; return false if none is left.

        Raises:
            LostLockError: another process is the deliverer now, and settles them.
            StoreUnavailableError: the database cannot be written.
        """
        members = self._members(job.id)
        if members:
            record([_end(job, members, clock.now())])
            self._release_held(members)
        return bool(members)

    def _members(self, job_id: int) -> list[QueuedWrite]:
        chosen = QUEUED_WRITES.join(batch_writes, batch_writes.c.write_seq == writes.c.seq)
        mine = chosen.where(batch_writes.c.job_id == job_id)
        with self._database.read() as connection:
            return _read(connection, mine.order_by(writes.c.seq).limit(RECORD_LIMIT))

    def _release_held(self, ended: Sequence[QueuedWrite]) -> None:
        """Release the later writes of these customers, which waited for the job."""
        customers = {write.customer for write in ended}
        seqs = [write.seq for write in ended]
        in_a_job = sa.select(batch_writes.c.job_id).where(batch_writes.c.write_seq == writes.c.seq)
        # Exclusive: otherwise the loop could hold a new write of such a customer for ever.
        with self._database.write(exclusive=True) as connection:
            connection.execute(batch_writes.delete().where(batch_writes.c.write_seq.in_(seqs)))
            connection.execute(
                writes.update()
                .where(writes.c.state == QUEUED, writes.c.next_at >= AFTER_BATCH)
                .where(writes.c.customer.in_(customers))
                .where(~in_a_job.exists())
                .values(next_at=clock.now())
            )


def _end(job: Job, members: Sequence[QueuedWrite], now: float) -> CallResult:
    delivered = job.state is JobState.COMPLETED
    return CallResult(
        tuple(members),
        State.DELIVERED if delivered else State.QUEUED,
        now,
        "delivered" if delivered else "batch_failed",
        status=200 if delivered else 0,
        milliseconds=round((now - (job.submitted_at or now)) * 1000),
        error="" if delivered else f"batch {job.batch_id} did not work",
        next_at=now,
    )


def _read(connection: sa.Connection, chosen: sa.Select[tuple[object, ...]]) -> list[QueuedWrite]:
    return [queued_write(row) for row in connection.execute(chosen)]


def _of_days(now: float) -> list[sa.ColumnElement[bool]]:
    return [
        writes.c.state == QUEUED,
        writes.c.next_at <= now,
        writes.c.ttl.is_not(None),
        writes.c.ttl % DAY == 0,
        # Writes that were tried before are delivered by single calls.
        writes.c.attempts == 0,
    ]


def _eligible(now: float) -> list[sa.ColumnElement[bool]]:
    return [*_of_days(now), writes.c.accepted_at > now - MAX_WRITE_AGE]


def _to_claim(now: float, busy: Collection[str]) -> sa.Select[tuple[object, ...]]:
    eligible = QUEUED_WRITES.where(*_eligible(now)).order_by(writes.c.next_at, writes.c.seq)
    if busy:
        eligible = eligible.where(writes.c.customer.not_in(busy))
    return eligible.limit(CLAIM_LIMIT)


def _choose(
    connection: sa.Connection, found: Sequence[QueuedWrite]
) -> tuple[list[QueuedWrite], list[int]]:
    """Return the writes of *found* for the job, and seqs of those to hold until the job ends."""
    theirs = QUEUED_WRITES.where(
        writes.c.state == QUEUED,
        has_direction(sa.literal(Direction.TO_SESSIONM.value)),
        writes.c.customer.in_({write.customer for write in found}),
    )
    eligible = {write.seq for write in found}
    held_customers: set[str] = set()
    overtaken: dict[str, set[str]] = {}
    chosen, held = [], []
    for write in _read(connection, theirs.order_by(writes.c.seq)):
        if write.next_at >= AFTER_BATCH:
            held_customers.add(write.customer)
        elif write.customer in held_customers:
            held.append(write.seq)
        elif write.seq in eligible and overtaken.get(write.customer, set()).isdisjoint(write.tags):
            chosen.append(write)
        else:
            # It is delivered by a single call, which no later write of its tags may overtake.
            overtaken.setdefault(write.customer, set()).update(write.tags)
    return chosen, held


def _add(connection: sa.Connection, job: _Gathering, chosen: Sequence[QueuedWrite]) -> int:
    """Add a block of these writes to the job's file; return its number of rows."""
    connection.execute(
        batch_writes.insert(), [{"write_seq": write.seq, "job_id": job.job_id} for write in chosen]
    )
    # For a customer and tag, the last TTL is valid.
    ttls = {(write.customer, tag): write.ttl or DAY for write in chosen for tag in write.tags}
    rows = [Row(0, Customer.from_key(key), tag, ttl // DAY) for (key, tag), ttl in ttls.items()]
    add_block(connection, job.job_id, job.blocks, len(rows), sessionm_rows(CUSTOMER_KINDS, rows))
    oldest = min(write.accepted_at for write in chosen)
    known = batch_jobs.c.oldest_at
    connection.execute(
        batch_jobs.update()
        .where(batch_jobs.c.id == job.job_id)
        .values(
            rows=batch_jobs.c.rows + len(rows),
            oldest_at=sa.case((known < oldest, known), else_=oldest),
        )
    )
    return len(rows)
