"""SQL for batches: their files in blocks, their jobs, and the tokens of the files' URLs."""

import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from bridge import clock
from bridge.bulk.model import (
    GOING,
    IN_FLIGHT,
    UNSUBMITTED,
    WITH_FILE,
    BatchState,
    Job,
    JobChange,
    JobState,
    Source,
    state_of_batch,
)
from bridge.bulk.moves import resubmission
from bridge.bulk.schema import batch_blocks, batch_jobs, batch_refused, batches
from bridge.bulk.segment import without
from bridge.customer import Customer
from bridge.fields import MAX_TEXT, counted, iso, shown
from bridge.outbox.model import new_event_id
from bridge.storage.database import Database

log = logging.getLogger(__name__)

PAGE = 50
# Seconds after a submission for which its file's URL is valid, at most until the job's end.
URL_LIFETIME = 86400.0
# zlib's compression level; higher levels save little for such text.
PACKING = 3
REFUSED_HEADER = "line,reason\n"


class WithdrawnError(Exception):
    """A file's URL was withdrawn while the file was downloaded."""


class DiscardedError(Exception):
    """A batch was discarded while its file was read; ``str()`` is one sentence."""

    def __init__(self) -> None:
        super().__init__("The batch was discarded while its file was read: nothing is sent.")


class BatchStore:
    """SQL for batches. Methods that change something commit before they return.

    All methods raise `StoreUnavailableError` if the database cannot be used.

    Args:
        database: the outbox's database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # --- accepting a file ---

    def open_batch(self, source: Source, name: str, key_name: str, header: str) -> str:
        """Create a batch and return its id; nothing is sent before `release`."""
        with self.database.write() as connection:
            return self._add_batch(connection, source, name, key_name, header)

    def _add_batch(
        self, connection: sa.Connection, source: Source, name: str, key_name: str, header: str
    ) -> str:
        now = clock.now()
        values = {
            "id": new_event_id(now),
            "source": source.value,
            "state": BatchState.OPEN.value,
            "name": name,
            "key_name": key_name,
            "header": header,
            "refused": 0,
            "repeated": 0,
            "created_at": now,
            "touched_at": now,
        }
        connection.execute(batches.insert().values(values))
        return str(values["id"])

    @contextmanager
    def writing(self, batch_id: str) -> Iterator[sa.Connection]:
        """Open a transaction to write a batch's files, which excludes discarding the batch.

        Raises:
            DiscardedError: the batch is not open.
        """
        with self.database.write() as connection:
            is_open = batches.c.state == BatchState.OPEN.value
            mine = batches.update().where(batches.c.id == batch_id, is_open)
            if not connection.execute(mine.values(touched_at=clock.now())).rowcount:
                raise DiscardedError
            yield connection

    def open_job(self, batch_id: str) -> int:
        """Create a job with an empty file and return the job's id.

        Raises:
            DiscardedError: the batch is not open.
        """
        with self.writing(batch_id) as connection:
            return _add_job(connection, batch_id, JobState.OPEN)

    def add_block(self, batch_id: str, job_id: int, number: int, rows: int, lines: str) -> None:
        """Write block *number* of a job's file: *lines* with *rows* rows.

        Raises:
            DiscardedError: the batch is not open.
        """
        with self.writing(batch_id) as connection:
            add_block(connection, job_id, number, rows, lines)

    def add_refused(self, batch_id: str, number: int, lines: str) -> None:
        """Store block *number* of the list of refused rows.

        Raises:
            DiscardedError: the batch is not open.
        """
        body = zlib.compress(lines.encode(), PACKING)
        with self.writing(batch_id) as connection:
            connection.execute(
                batch_refused.insert().values(batch_id=batch_id, number=number, body=body)
            )

    def seal(self, batch_id: str, job_id: int, *, counts: bool) -> None:
        """Close a job's file, and store its size and digest.

        Raises:
            DiscardedError: the batch is not open.
        """
        with self.writing(batch_id) as connection:
            _seal(connection, job_id, counts=counts)

    def release(self, batch_id: str, *, refused: int = 0, repeated: int = 0) -> None:
        """Queue the sealed jobs of a batch for submission.

        Raises:
            DiscardedError: the batch is not open.
        """
        with self.writing(batch_id) as connection:
            left_out = {"refused": refused, "repeated": repeated}
            connection.execute(batches.update().where(batches.c.id == batch_id).values(left_out))
            for job in read_jobs(connection, batch_jobs.c.batch_id == batch_id):
                self._move(connection, job, JobChange(JobState.QUEUED, next_at=clock.now()))
            self._update_batch_state(connection, batch_id)

    def drop(self, batch_id: str) -> None:
        """Delete a batch of which nothing was sent."""
        with self.database.write() as connection:
            connection.execute(batches.delete().where(batches.c.id == batch_id))

    def follow(self, key_name: str, request_id: object, sessionm_id: object) -> str:
        """Create a batch that follows a job of a client of the bridge; return its id."""
        name, now = shown(str(request_id), MAX_TEXT), clock.now()
        with self.database.write() as connection:
            batch_id = self._add_batch(connection, Source.DROPIN, name, key_name, "")
            _add_job(
                connection,
                batch_id,
                JobState.SUBMITTED,
                request_id=name,
                sessionm_id=shown(str(sessionm_id), 64),
                submitted_at=now,
                next_at=now,
            )
            self._update_batch_state(connection, batch_id)
        return batch_id

    def same_rows(self, batch_id: str, since: float) -> str:
        """Return the latest batch since *since* with the same files as *batch_id*; or "".

        A batch that was discarded, or all of whose rows failed, does not count.
        """
        size, md5 = batch_jobs.c.size, batch_jobs.c.md5
        marks = (sa.func.count(), sa.func.sum(size), sa.func.min(md5), sa.func.max(md5))
        others = (
            sa.select(batches.c.id)
            .join(batch_jobs)
            .where(batches.c.source == Source.FILE.value, batches.c.created_at > since)
            .where(batches.c.state.not_in((BatchState.OPEN.value, BatchState.DISCARDED.value)))
            .where(batches.c.id != batch_id)
            .group_by(batches.c.id)
            .order_by(batches.c.id.desc())
            .limit(1)
        )
        with self.database.read() as connection:
            mine = connection.execute(
                sa.select(*marks).where(batch_jobs.c.batch_id == batch_id)
            ).one()
            same = [mark == own for mark, own in zip(marks, mine, strict=True)]
            worked = sa.func.sum(batch_jobs.c.failed_rows) < sa.func.sum(batch_jobs.c.rows)
            return connection.execute(others.having(*same, worked)).scalar() or ""

    # --- serving a file ---

    def served(self, token: str) -> Job | None:
        """Return the job whose file's URL has *token*; ``None`` if the URL is not valid now."""
        with self.database.read() as connection:
            found = read_jobs(
                connection,
                batch_jobs.c.file_token == token_hash(token),
                batch_jobs.c.state.in_(IN_FLIGHT),
                batch_jobs.c.submitted_at > clock.now() - URL_LIFETIME,
            )
        return found[0] if found else None

    def serve(self, job: Job, token: str) -> Iterator[bytes]:
        """Yield a job's file in blocks; record the download before the last block.

        Raises:
            WithdrawnError: the URL was withdrawn meanwhile; the last block is not sent.
        """
        yield job.header.encode()
        last = b""
        for lines in self.blocks(job.id):
            if last:
                yield last
            last = lines
        if not self._record_served(job, token):
            raise WithdrawnError(f"the file of job {job.id} was withdrawn during its download")
        yield last

    def _record_served(self, job: Job, token: str) -> bool:
        """Record that the whole file is downloaded; return false if its URL was withdrawn."""
        mine = batch_jobs.update().where(
            batch_jobs.c.id == job.id, batch_jobs.c.file_token == token_hash(token)
        )
        first = sa.func.coalesce(batch_jobs.c.served_at, clock.now())
        with self.database.write() as connection:
            return bool(connection.execute(mine.values(served_at=first)).rowcount)

    def blocks(self, job_id: int) -> Iterator[bytes]:
        """Yield the lines of a job's file, in blocks, without the header."""
        return self._bodies(batch_blocks, batch_blocks.c.job_id == job_id)

    def refused(self, batch_id: str) -> Iterator[bytes]:
        """Yield the list of refused rows, as CSV with the columns ``line`` and ``reason``."""
        yield REFUSED_HEADER.encode()
        yield from self._bodies(batch_refused, batch_refused.c.batch_id == batch_id)

    def _bodies(self, table: sa.Table, mine: sa.ColumnElement[bool]) -> Iterator[bytes]:
        # A transaction for each block: a download may take minutes.
        number = -1
        chosen = sa.select(table.c.number, table.c.body).where(mine).order_by(table.c.number)
        while True:
            with self.database.read() as connection:
                row = connection.execute(chosen.where(table.c.number > number).limit(1)).first()
            if row is None:
                return
            number = row.number
            yield zlib.decompress(row.body)

    # --- driving jobs ---

    def due(self) -> list[Job]:
        """Return at most 20 jobs in flight that are due, the longest due first."""
        return self._chosen(
            batch_jobs.c.state.in_(IN_FLIGHT), batch_jobs.c.next_at <= clock.now(), limit=20
        )

    def to_submit(self, *, of_backlog: bool, limit: int | None = None) -> list[Job]:
        """Return jobs to submit, the longest due first.

        Jobs of the backlog are included before they are due, since their time may run out.
        """
        is_of_backlog = batches.c.source == Source.BACKLOG.value
        due = batch_jobs.c.next_at <= clock.now()
        which = is_of_backlog if of_backlog else sa.and_(~is_of_backlog, due)
        return self._chosen(batch_jobs.c.state == JobState.QUEUED, which, limit=limit)

    def _chosen(self, *which: sa.ColumnElement[bool], limit: int | None = None) -> list[Job]:
        with self.database.read() as connection:
            return read_jobs(connection, *which, order=batch_jobs.c.next_at, limit=limit)

    def files_in_flight(self) -> int:
        """Return the number of files' jobs in flight that are not overdue."""
        chosen = (
            sa.select(sa.func.count())
            .select_from(batch_jobs.join(batches))
            .where(batch_jobs.c.state.in_((JobState.SUBMITTING, JobState.SUBMITTED)))
            .where(batches.c.source == Source.FILE.value)
        )
        with self.database.read() as connection:
            return connection.execute(chosen).scalar_one()

    def transition(self, job: Job, change: JobChange) -> Job | None:
        """Apply *change* if the state of *job* has not changed since it was read.

        Returns:
            The changed job; ``None`` if its state had changed.
        """
        with self._batch(job.batch_id) as connection:
            return _job(connection, job.id) if self._move(connection, job, change) else None

    def _move(self, connection: sa.Connection, job: Job, change: JobChange) -> bool:
        """Change a job's state, as no other statement does; false if it had changed already."""
        as_read = [
            batch_jobs.c.id == job.id,
            batch_jobs.c.state == job.state,
            batch_jobs.c.attempts == job.attempts,
        ]
        same_notification = batch_jobs.c.notified == job.notified
        if change.only_unserved:
            as_read += [batch_jobs.c.served_at.is_(None), same_notification]
        # If a notification was received meanwhile, keep the job due.
        next_at = sa.case((same_notification, change.next_at), else_=batch_jobs.c.next_at)
        values = {"state": change.to, "reason": change.reason, "next_at": next_at, **change.values}
        if change.to is JobState.QUEUED:
            values |= {"file_token": None, "notify_token": None, "done_at": None}
        elif change.to not in IN_FLIGHT:
            values |= {"file_token": None, "done_at": clock.now()}
        if not connection.execute(batch_jobs.update().where(*as_read).values(values)).rowcount:
            return False
        if change.to not in WITH_FILE:
            connection.execute(batch_blocks.delete().where(batch_blocks.c.job_id == job.id))
        return True

    @contextmanager
    def _batch(self, batch_id: str) -> Iterator[sa.Connection]:
        """Lock a batch for a transaction, and at its end derive the batch's state from its jobs."""
        with self.database.write() as connection:
            # Locks the row: concurrent changes of two jobs of a batch would not see each other.
            connection.execute(
                batches.update().where(batches.c.id == batch_id).values(touched_at=clock.now())
            )
            yield connection
            self._update_batch_state(connection, batch_id)

    def _update_batch_state(self, connection: sa.Connection, batch_id: str) -> None:
        states = sa.select(batch_jobs.c.state).where(batch_jobs.c.batch_id == batch_id)
        jobs = {JobState(state) for state in connection.execute(states).scalars()}
        state = state_of_batch(jobs)
        done_at = None if state in GOING else clock.now()
        connection.execute(
            batches.update()
            .where(batches.c.id == batch_id)
            .values(state=state.value, done_at=done_at)
        )

    def notify(self, token: str, state: str, sessionm_id: str) -> bool:
        """Store a notification and make its job due; return false if its token is unknown."""
        mine = batch_jobs.c.notify_token == token_hash(token)
        known_id = batch_jobs.c.sessionm_id
        with self.database.write() as connection:
            if connection.execute(sa.select(batch_jobs.c.id).where(mine)).first() is None:
                return False
            connection.execute(
                batch_jobs.update()
                .where(mine, batch_jobs.c.state.in_(IN_FLIGHT))
                .values(
                    notified=state,
                    notified_at=sa.func.coalesce(batch_jobs.c.notified_at, clock.now()),
                    next_at=clock.now(),
                    sessionm_id=sa.case((known_id == "", sessionm_id), else_=known_id),
                )
            )
        return True

    # --- pages and orders of operators ---

    def find(self, limit: int = PAGE, before: str = "") -> list[dict[str, Any]]:
        """Return up to *limit* batches before the id *before*, newest first, as JSON."""
        chosen = batches.select().order_by(batches.c.id.desc()).limit(limit)
        if before:
            chosen = chosen.where(batches.c.id < before)
        with self.database.read() as connection:
            return [
                _batch_as_json(row, read_jobs(connection, batch_jobs.c.batch_id == row["id"]))
                for row in connection.execute(chosen).mappings().all()
            ]

    def one(self, batch_id: str) -> dict[str, Any] | None:
        """Return a batch with its jobs, as JSON; ``None`` if it is unknown."""
        chosen = batches.select().where(batches.c.id == batch_id)
        with self.database.read() as connection:
            row = connection.execute(chosen).mappings().first()
            if row is None:
                return None
            jobs = read_jobs(connection, batch_jobs.c.batch_id == batch_id)
        return {**_batch_as_json(row, jobs), "jobs": [_job_as_json(job) for job in jobs]}

    def flagged(self) -> int:
        """Return the number of batches that need a person, without those of clients' own jobs."""
        return self._count(batches.c.state == BatchState.FAILED.value, _NOT_DROPIN)

    def running(self) -> int:
        """Return the number of batches that wait for SessionM."""
        return self._count(batches.c.state.in_((BatchState.QUEUED, BatchState.RUNNING)))

    def _count(self, *conditions: sa.ColumnElement[bool]) -> int:
        chosen = sa.select(sa.func.count()).select_from(batches).where(*conditions)
        with self.database.read() as connection:
            return connection.execute(chosen).scalar_one()

    def mostly_failed(self, since: float) -> list[dict[str, Any]]:
        """Return batches of files that ended since *since* with more failed rows than done ones.

        Each is ``{"id", "rows", "failed_rows"}``, the latest first.
        """
        rows, failed = sa.func.sum(batch_jobs.c.rows), sa.func.sum(batch_jobs.c.failed_rows)
        chosen = (
            sa.select(batches.c.id, rows.label("rows"), failed.label("failed_rows"))
            .join(batch_jobs)
            .where(batches.c.state == BatchState.COMPLETED.value, batches.c.done_at > since)
            .where(batch_jobs.c.state == JobState.COMPLETED.value)
            .group_by(batches.c.id)
            .having(2 * failed > rows)
            .order_by(batches.c.id.desc())
        )
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def resubmit(self, batch_id: str) -> int:
        """Submit the failed jobs of a batch again; return their number.

        Their counters may count twice, so only an operator may order this.
        """
        with self._batch(batch_id) as connection:
            failed = batch_jobs.c.state.in_((JobState.FAILED, JobState.OVERDUE))
            jobs = read_jobs(connection, batch_jobs.c.batch_id == batch_id, failed, _NOT_DROPIN)
            for job in jobs:
                self._move(connection, job, resubmission(job, 0, clock.now()))
        log.warning("batch resubmitted", extra={"action": "batch_resubmitted", "batch": batch_id})
        return len(jobs)

    def discard(self, batch_id: str) -> int:
        """Discard a batch and withdraw its URLs; return the number of jobs that had not ended.

        SessionM may still process the files that it has downloaded.
        """
        with self._batch(batch_id) as connection:
            state = sa.select(batches.c.state).where(batches.c.id == batch_id)
            was_open = connection.execute(state).scalar() == BatchState.OPEN
            unfinished = batch_jobs.c.state.in_(WITH_FILE)
            jobs = read_jobs(connection, batch_jobs.c.batch_id == batch_id, unfinished)
            for job in jobs:
                self._move(connection, job, JobChange(JobState.DISCARDED, job.reason))
        log.warning("batch discarded", extra={"action": "batch_discarded", "batch": batch_id})
        # A batch whose file is still being read may have no job yet; count it as one.
        return len(jobs) or int(was_open)

    def erase(self, customer: Customer) -> None:
        """Remove *customer* from every stored file."""
        with self.database.read() as connection:
            jobs = read_jobs(connection, batch_jobs.c.state.in_(WITH_FILE))
        for job in jobs:
            if customer.kind in job.header:
                self._erase_from(job, customer)

    def _erase_from(self, job: Job, customer: Customer) -> None:
        # Quotes are doubled in CSV.
        needle = customer.id.replace('"', '""').encode()
        with self.database.read() as connection:
            chosen = sa.select(batch_blocks.c.number).where(batch_blocks.c.job_id == job.id)
            numbers = list(connection.execute(chosen).scalars())
        for number in numbers:
            mine = sa.and_(batch_blocks.c.job_id == job.id, batch_blocks.c.number == number)
            with self._batch(job.batch_id) as connection:
                body = connection.execute(sa.select(batch_blocks.c.body).where(mine)).scalar()
                if body is None or needle not in (lines := zlib.decompress(body)):
                    continue
                left, rows = without(customer, job.header, lines.decode())
                packed = zlib.compress(left.encode(), PACKING)
                connection.execute(batch_blocks.update().where(mine).values(body=packed, rows=rows))
                self._submit_again(connection, job.id)
                _seal(connection, job.id)

    def _submit_again(self, connection: sa.Connection, job_id: int) -> None:
        """Requeue a job whose file changes, unless SessionM has downloaded all of the old file.

        SessionM has the digest of the old file, and refuses the new one.
        """
        job = _job(connection, job_id)
        if job.state in IN_FLIGHT and not job.notified:
            change = resubmission(job, job.attempts - 1, clock.now())
            self._move(connection, job, replace(change, only_unserved=True))

    def forget_before(self, then: float, abandoned: float) -> None:
        """Delete batches that ended before *then*, or whose upload stopped before *abandoned*."""
        ended = (BatchState.COMPLETED, BatchState.RELEASED, BatchState.DISCARDED)
        old = sa.and_(sa.or_(batches.c.state.in_(ended), ~_NOT_DROPIN), batches.c.done_at < then)
        stopped = sa.and_(
            batches.c.state == BatchState.OPEN.value,
            batches.c.source == Source.FILE.value,
            batches.c.touched_at < abandoned,
        )
        with self.database.write() as connection:
            connection.execute(batches.delete().where(sa.or_(old, stopped)))


_NOT_DROPIN = batches.c.source != Source.DROPIN.value
_JOBS = sa.select(batch_jobs, batches.c.source, batches.c.header).join(batches)


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def read_jobs(
    connection: sa.Connection,
    *which: sa.ColumnElement[bool],
    order: sa.ColumnElement[Any] = batch_jobs.c.id,
    limit: int | None = None,
) -> list[Job]:
    """Return the jobs that meet all conditions, which may refer to their batches too."""
    chosen = _JOBS.where(*which).order_by(order, batch_jobs.c.id).limit(limit)
    return [_read_job(row) for row in connection.execute(chosen).mappings()]


def _job(connection: sa.Connection, job_id: int) -> Job:
    [job] = read_jobs(connection, batch_jobs.c.id == job_id)
    return job


def _read_job(row: sa.RowMapping) -> Job:
    known = {name: row[name] for name in Job.__dataclass_fields__}
    return Job(**{**known, "state": JobState(row["state"]), "source": Source(row["source"])})


def _add_job(connection: sa.Connection, batch_id: str, state: JobState, **values: Any) -> int:
    """Add a job without a file to a batch; return its id."""
    given = {
        **UNSUBMITTED,
        "rows": 0,
        "counts": False,
        "size": 0,
        "md5": "",
        # The request id contains the job's id, which is known only after the insert.
        "request_id": "",
        "attempts": 0,
        "next_at": 0.0,
        "failed_rows": 0,
        "reason": "",
        **values,
    }
    adding = batch_jobs.insert().values(batch_id=batch_id, state=state.value, **given)
    job_id: int = connection.execute(adding.returning(batch_jobs.c.id)).scalar_one()
    if "request_id" not in values:
        mine = batch_jobs.update().where(batch_jobs.c.id == job_id)
        connection.execute(mine.values(request_id=f"{batch_id}-{job_id}.1"))
    return job_id


def add_block(connection: sa.Connection, job_id: int, number: int, rows: int, lines: str) -> None:
    """Add the next block to a job's file."""
    body = zlib.compress(lines.encode(), PACKING)
    connection.execute(
        batch_blocks.insert().values(job_id=job_id, number=number, rows=rows, body=body)
    )


def _seal(connection: sa.Connection, job_id: int, **values: Any) -> None:
    """Store the numbers of rows and bytes of a job's file, and its digest."""
    header = _job(connection, job_id).header.encode()
    digest = hashlib.md5(header, usedforsecurity=False)
    size, rows = len(header), 0
    mine = batch_blocks.c.job_id == job_id
    numbered = sa.select(batch_blocks.c.number, batch_blocks.c.rows).where(mine)
    for number, block_rows in connection.execute(numbered.order_by(batch_blocks.c.number)).all():
        # One block at a time: some drivers fetch a whole result into memory.
        body = sa.select(batch_blocks.c.body).where(mine, batch_blocks.c.number == number)
        lines = zlib.decompress(connection.execute(body).scalar_one())
        digest.update(lines)
        size += len(lines)
        rows += block_rows
    connection.execute(
        batch_jobs.update()
        .where(batch_jobs.c.id == job_id)
        .values(rows=rows, size=size, md5=digest.hexdigest(), **values)
    )


def _batch_as_json(row: sa.RowMapping, jobs: list[Job]) -> dict[str, Any]:
    # Rows in the files, without repeats and erased customers.
    rows = sum(job.rows for job in jobs)
    completed = sum(job.rows for job in jobs if job.state is JobState.COMPLETED)
    failed = sum(job.failed_rows for job in jobs)
    reasons = [job.reason for job in jobs if job.reason and job.state is not JobState.COMPLETED]
    if failed and not reasons:
        reasons = [_why_rows_failed(failed, rows, row["header"])]
    return {
        "id": row["id"],
        "source": row["source"],
        "state": row["state"],
        "name": row["name"],
        "key": row["key_name"],
        "rows": rows,
        "completed_rows": completed,
        "done_rows": completed - failed,
        "failed_rows": failed,
        "refused": row["refused"],
        "repeated": row["repeated"],
        "job_count": len(jobs),
        "created_at": iso(row["created_at"]),
        "done_at": iso(row["done_at"]) if row["done_at"] else "",
        "reason": reasons[-1] if reasons else "",
    }


def _why_rows_failed(failed: int, rows: int, header: str) -> str:
    sentence = f"SessionM could not do {failed} of {counted(rows, 'row')}"
    if 2 * failed <= rows:
        return sentence
    kinds = [name for name in header.strip().split(",") if name not in {"tag", "expires"}]
    return f"{sentence}: it may not know these customers by {' or '.join(kinds)}"


def why_nothing_failed(batch: Mapping[str, Any]) -> str:
    """Explain why no job of a batch (as of `BatchStore.one`) can be resubmitted, and what to do."""
    if batch["source"] == Source.DROPIN:
        return "The job of this batch is a client's, which alone can submit it again."
    if batch["state"] != BatchState.COMPLETED:
        return f"No job of this batch has failed: it is {batch['state']}."
    if not batch["failed_rows"]:
        return "Every job of this batch is completed, and all of its rows are done."
    return (
        f"Every job of this batch is completed; why {counted(batch['failed_rows'], 'row')} failed "
        "only SessionM can say, by the number of the job. Fix the file, and submit it as a new "
        "one; of counters only the rows that failed, since the others would count twice."
    )


def _job_as_json(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state.value,
        "rows": job.rows,
        "failed_rows": job.failed_rows,
        "request_id": job.request_id,
        "sessionm_id": job.sessionm_id,
        "attempts": job.attempts,
        "submitted_at": iso(job.submitted_at) if job.submitted_at else "",
        "fetched_at": iso(job.served_at) if job.served_at else "",
        "done_at": iso(job.done_at) if job.done_at else "",
        "reason": job.reason,
    }
