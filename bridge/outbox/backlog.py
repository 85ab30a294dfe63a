"""Backlog to batch: expiring tags that wait in great number leave as one of SessionM's jobs.

Run by the delivery loop, in its thread. Only what a batch file can say exactly is taken: TTLs of
whole days, of writes accepted less than a minute ago (later ones carry what is left, in seconds).
Taken writes are *held*: they, and what their customers send later, wait for the job's end.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from bridge.customer import Customer, CustomerKind
from bridge.database import Database
from bridge.fields import counted
from bridge.intake.segment import DAY, Row, sessionm_header, sessionm_rows
from bridge.outbox.jobs import (
    JOBS,
    UNFINISHED,
    DiscardedError,
    Job,
    Jobs,
    JobState,
    Source,
    add_block,
    read_job,
    see_open,
)
from bridge.outbox.plan import PUNCTUAL
from bridge.outbox.schema import HELD, QUEUED, batch_jobs, batch_writes, batches, writes
from bridge.outbox.store import QUEUED_WRITES, QueuedWrite

log = logging.getLogger(__name__)

KINDS: tuple[CustomerKind, ...] = ("user_id", "external_id")
HEADER = sessionm_header(KINDS)
# Of one transaction: short enough that intake hardly notices.
CLAIM = 1000
CLAIMS_AT_ONCE = 5
LOOK, GATHER = 1.0, 0.25
# A job leaves when nothing more has come for so long, or its oldest write is so old.
QUIET, OLDEST = 2.0, PUNCTUAL / 2
# After a job that did not work, so long everything goes singly; and after one that could not be
# gathered.
REST = 900.0
SHORT_REST = 60.0


@dataclass(frozen=True)
class _Claim:
    chosen: list[QueuedWrite]
    held: list[int]
    looked_at: int


class Held:
    """The statements for writes that leave with a job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def members(self, job_id: int, limit: int) -> list[QueuedWrite]:
        """Some of the writes that left with a job and whose end is not recorded yet."""
        chosen = QUEUED_WRITES.join(batch_writes, batch_writes.c.write_seq == writes.c.seq).where(
            batch_writes.c.job_id == job_id
        )
        with self._database.read() as connection:
            return _read(connection, chosen.order_by(writes.c.seq).limit(limit))

    def let_go(self, ended: Sequence[QueuedWrite], now: float) -> None:
        """The end of these is recorded: what their customers sent since need wait no longer."""
        customers = {write.customer for write in ended}
        seqs = [write.seq for write in ended]
        in_a_job = sa.select(batch_writes.c.job_id).where(batch_writes.c.write_seq == writes.c.seq)
        with self._database.write() as connection:
            connection.execute(batch_writes.delete().where(batch_writes.c.write_seq.in_(seqs)))
            connection.execute(
                writes.update()
                .where(writes.c.state == QUEUED, writes.c.next_at >= HELD)
                .where(writes.c.customer.in_(customers))
                .where(~in_a_job.exists())
                .values(next_at=now)
            )

    def unsettled(self) -> list[Job]:
        """Jobs that are over, while the end of their writes is not recorded yet."""
        going = [state.value for state in (JobState.OPEN, *UNFINISHED)]
        theirs = sa.select(batch_writes.c.job_id).where(batch_writes.c.job_id == batch_jobs.c.id)
        chosen = JOBS.where(batch_jobs.c.state.not_in(going), theirs.exists())
        with self._database.read() as connection:
            return [read_job(row) for row in connection.execute(chosen).mappings()]

    def wait(self, more_than: int, now: float) -> bool:
        """Whether more than that waits with TTLs of whole days, some of it not yet late."""
        many = sa.select(writes.c.seq).where(*_of_days(now)).offset(more_than).limit(1)
        some = sa.select(writes.c.seq).where(*_eligible(now)).limit(1)
        with self._database.read() as connection:
            return all(connection.execute(one).first() is not None for one in (many, some))

    def hold(self, customer: str) -> None:
        """Let what *customer* sent since wait for the end of their job, if it is not over yet."""
        mine = writes.alias()
        in_a_job = (
            sa.select(batch_writes.c.job_id)
            .join(mine, mine.c.seq == batch_writes.c.write_seq)
            .where(mine.c.customer == customer)
        )
        with self._database.write() as connection:
            connection.execute(
                writes.update()
                .where(writes.c.state == QUEUED, writes.c.customer == customer)
                .where(in_a_job.exists())
                .values(next_at=HELD)
            )

    def let_go_of_the_rest(self, now: float) -> None:
        """Let go of what waits for no job, as after a copy of the queue without its jobs."""
        theirs = writes.alias()
        in_a_job = (
            sa.select(batch_writes.c.job_id)
            .join(theirs, theirs.c.seq == batch_writes.c.write_seq)
            .where(theirs.c.customer == writes.c.customer)
        )
        with self._database.write() as connection:
            connection.execute(
                writes.update()
                .where(writes.c.state == QUEUED, writes.c.next_at >= HELD, ~in_a_job.exists())
                .values(next_at=now)
            )

    def claim(
        self, batch_id: str, job_id: int, number: int, now: float, busy: Collection[str]
    ) -> _Claim:
        """Put waiting writes into the file of *job_id*, as block *number*.

        Raises:
            DiscardedError: its batch is discarded.
        """
        with self._database.write() as connection:
            see_open(connection, batches.c.id == batch_id, now)
            claim = _choose(connection, now, busy)
            seqs = [*claim.held, *(write.seq for write in claim.chosen)]
            if seqs:
                connection.execute(
                    writes.update().where(writes.c.seq.in_(seqs)).values(next_at=HELD)
                )
            if claim.chosen:
                _add(connection, job_id, number, claim.chosen)
        return claim

    def left_open(self) -> list[Job]:
        """Jobs that were being gathered when their process ended."""
        chosen = JOBS.where(
            batch_jobs.c.state == JobState.OPEN.value, batches.c.source == Source.BACKLOG.value
        )
        with self._database.read() as connection:
            return [read_job(row) for row in connection.execute(chosen).mappings()]


def _read(connection: sa.Connection, chosen: sa.Select[tuple[object, ...]]) -> list[QueuedWrite]:
    return [
        QueuedWrite(**{**row, "tags": tuple(row["tags"])})
        for row in connection.execute(chosen).mappings()
    ]


def _of_days(now: float) -> list[sa.ColumnElement[bool]]:
    return [
        writes.c.state == QUEUED,
        writes.c.next_at <= now,
        writes.c.ttl.is_not(None),
        writes.c.ttl % DAY == 0,
        # What was tried before, singly or in a job, goes singly.
        writes.c.attempts == 0,
    ]


def _eligible(now: float) -> list[sa.ColumnElement[bool]]:
    return [*_of_days(now), writes.c.accepted_at > now - OLDEST]


def _choose(connection: sa.Connection, now: float, busy: Collection[str]) -> _Claim:
    """What may leave with a job; and what must wait, since its customer waits for one already."""
    eligible = QUEUED_WRITES.where(*_eligible(now)).order_by(writes.c.next_at, writes.c.seq)
    if busy:
        eligible = eligible.where(writes.c.customer.not_in(busy))
    found = _read(connection, eligible.limit(CLAIM))
    theirs = QUEUED_WRITES.where(
        writes.c.state == QUEUED, writes.c.customer.in_({write.customer for write in found})
    )
    wanted = {write.seq for write in found}
    waiting: set[str] = set()
    passed: dict[str, set[str]] = {}
    chosen, held = [], []
    for write in _read(connection, theirs.order_by(writes.c.seq)):
        if write.next_at >= HELD:
            waiting.add(write.customer)
        elif write.customer in waiting:
            held.append(write.seq)
        elif write.seq in wanted and passed.get(write.customer, set()).isdisjoint(write.tags):
            chosen.append(write)
        else:
            # It goes singly, and nothing with a tag of its may overtake it.
            passed.setdefault(write.customer, set()).update(write.tags)
    return _Claim(chosen, held, len(found))


def _add(
    connection: sa.Connection, job_id: int, number: int, chosen: Sequence[QueuedWrite]
) -> None:
    connection.execute(
        batch_writes.insert(), [{"write_seq": write.seq, "job_id": job_id} for write in chosen]
    )
    # Of what was said of a customer and tag the last counts.
    said = {(write.customer, tag): write.ttl or DAY for write in chosen for tag in write.tags}
    rows = [Row(0, Customer.from_key(key), tag, ttl // DAY) for (key, tag), ttl in said.items()]
    add_block(connection, job_id, number, len(rows), sessionm_rows(KINDS, rows))
    oldest = min(write.accepted_at for write in chosen)
    known = batch_jobs.c.oldest_at
    connection.execute(
        batch_jobs.update()
        .where(batch_jobs.c.id == job_id)
        .values(
            rows=batch_jobs.c.rows + len(rows),
            oldest_at=sa.case((known < oldest, known), else_=oldest),
        )
    )


class Backlog:
    """Gathers jobs out of the backlog.

    Args:
        jobs: where jobs are kept.
        held: the writes that leave with them.
        threshold: with more waiting writes than this a job is begun; 0 never begins one.
        split: most rows of one job.
    """

    def __init__(self, jobs: Jobs, held: Held, threshold: int, split: int) -> None:
        self._jobs = jobs
        self._held = held
        self._threshold = threshold
        self._split = split
        self._look_at = 0.0
        self._rests_until = 0.0
        self._open: _Open | None = None
        self._left_open = False

    def take_over(self, now: float) -> None:
        """What was being gathered, by another process or before a failure, leaves as it is."""
        self._open = None
        self._held.let_go_of_the_rest(now)
        for job in self._held.left_open():
            self._close(job.id, job.batch_id, job.rows, now)
        self._left_open = False

    def hold(self, customer: str) -> None:
        """*customer* waits for the end of a job."""
        self._held.hold(customer)

    def rest(self, now: float) -> None:
        """A job did not work: let everything go singly for a while."""
        self._rests_until = now + REST

    def takes(self, going: Sequence[QueuedWrite], now: float) -> bool:
        """Whether these writes, which are due, leave with the job that is being gathered."""
        return self._open is not None and all(
            write.ttl is not None
            and write.ttl % DAY == 0
            and write.attempts == 0
            and write.accepted_at > now - OLDEST
            for write in going
        )

    def gather(self, now: float, busy: Collection[str]) -> None:
        """Take what waits, if it is much; customers in *busy* have a call under way.

        Where that fails everything goes singly for a while.
        """
        if not self._threshold or now < self._look_at:
            return
        try:
            self._gather(now, busy)
        except DiscardedError:
            # What it has goes singly: see `Held.unsettled`.
            self._open = None
        except Exception:
            log.exception("the backlog goes singly", extra={"action": "gathering_failed"})
            self._left_open = self._left_open or self._open is not None
            self._open = None
            self._rests_until = now + SHORT_REST

    def _gather(self, now: float, busy: Collection[str]) -> None:
        if self._left_open:
            self.take_over(now)
        if self._open is None:
            self._look_at = now + LOOK
            if now < self._rests_until or not self._held.wait(self._threshold, now):
                return
            self._open = self._begin(now)
        self._look_at = now + GATHER
        going = self._open
        for _ in range(CLAIMS_AT_ONCE):
            claim = self._held.claim(going.batch_id, going.job_id, going.blocks, now, busy)
            going.take(claim, now)
            if claim.looked_at < CLAIM or going.rows >= self._split:
                break
        if going.is_ready(self._split, now):
            self._close(going.job_id, going.batch_id, going.rows, now)
            self._open = None

    def _begin(self, now: float) -> "_Open":
        batch_id = self._jobs.open_batch(Source.BACKLOG, "backlog", "", HEADER, now)
        return _Open(batch_id, self._jobs.open_job(batch_id), now)

    def _close(self, job_id: int, batch_id: str, rows: int, now: float) -> None:
        if not rows:
            self._jobs.drop(batch_id)
            return
        self._jobs.seal(job_id, counts=False)
        self._jobs.release(batch_id, now, rows=rows)
        told = counted(rows, "row")
        log.info("a batch of the backlog, %s", told, extra={"action": "batch_gathered"})


class _Open:
    """A job that is being gathered."""

    def __init__(self, batch_id: str, job_id: int, now: float) -> None:
        self.batch_id = batch_id
        self.job_id = job_id
        self.blocks = 0
        self.rows = 0
        self._oldest_at = now
        self._grew_at = now

    def take(self, claim: _Claim, now: float) -> None:
        if not claim.chosen:
            return
        self.blocks += 1
        self.rows += sum(len(write.tags) for write in claim.chosen)
        self._oldest_at = min(self._oldest_at, *(w.accepted_at for w in claim.chosen))
        self._grew_at = now

    def is_ready(self, split: int, now: float) -> bool:
        return self.rows >= split or now - self._grew_at > QUIET or now - self._oldest_at > OLDEST
