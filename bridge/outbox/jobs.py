"""The statements for batches: files in blocks, SessionM's jobs, and the tokens of their URLs."""

import base64
import hashlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from bridge.customer import Customer
from bridge.database import Database
from bridge.fields import counted, iso
from bridge.intake.segment import without
from bridge.outbox.schema import batch_blocks, batch_jobs, batch_refused, batches
from bridge.outbox.store import new_event_id

PAGE = 50
# A file's URL ends with its job, and after a day at the latest.
URL_LASTS = 86400.0
# Packing harder saves little of such text.
PACKING = 3


class JobState(StrEnum):
    """Where one of SessionM's jobs stands. It only ever moves forward, but for a new try."""

    OPEN = "open"  # its file is being written
    QUEUED = "queued"
    SUBMITTING = "submitting"  # asked of SessionM; whether it took it is not known yet
    SUBMITTED = "submitted"
    OVERDUE = "overdue"  # SessionM should have reported its end long ago: a person is needed
    COMPLETED = "completed"
    SPLIT = "split"  # it failed, and smaller ones took its place
    RELEASED = "released"  # it failed, and its writes went back to single delivery
    FAILED = "failed"  # a person is needed
    DISCARDED = "discarded"


class BatchState(StrEnum):
    """Where a batch stands, by its jobs."""

    OPEN = "open"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    RELEASED = "released"  # its writes went back to single delivery
    FAILED = "failed"
    DISCARDED = "discarded"


class Source(StrEnum):
    """Where a batch comes from."""

    FILE = "file"
    BACKLOG = "backlog"
    DROPIN = "dropin"  # a job that a client submitted through us, with a file of its own


UNDER_WAY = (JobState.SUBMITTING, JobState.SUBMITTED, JobState.OVERDUE)
UNFINISHED = (JobState.QUEUED, *UNDER_WAY)


@dataclass(frozen=True)
class Job:
    """One of SessionM's batch jobs, with what is known of it.

    Attributes:
        counts: whether it has rows of counters, so that doing it twice would count twice.
        size: of its file, in bytes.
        oldest_at: when the oldest of its writes was accepted, for a job out of the backlog.
        request_id: ours; the same for a repeat that follows an unknown outcome.
        sessionm_id: SessionM's number, or "".
        served_at: when all of its file first went out under the present URL; SessionM, which checks
            the digest, can have done nothing of it before.
        told: what a notification said, or "".
    """

    id: int
    batch_id: str
    state: JobState
    rows: int
    counts: bool
    size: int
    md5: str
    oldest_at: float | None
    request_id: str
    sessionm_id: str
    attempts: int
    next_at: float
    submitted_at: float | None
    served_at: float | None
    told: str
    failed_rows: int
    reason: str
    done_at: float | None
    source: Source
    header: str

    @property
    def content_md5(self) -> str:
        """The digest as the header ``Content-MD5`` has it (RFC 1864)."""
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


class WithdrawnError(Exception):
    """A file's URL ended while the file was on its way."""


class DiscardedError(Exception):
    """A batch was discarded while its file was written; ``str()`` is one sentence."""

    def __init__(self) -> None:
        super().__init__("The batch was discarded while its file was read: nothing goes out.")


class Jobs:
    """The statements. Methods that change something commit before they return."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # taking a file in

    def open_batch(self, source: Source, name: str, key_name: str, header: str, now: float) -> str:
        """Begin a batch; nothing of it goes out before `release`."""
        values = {
            "id": new_event_id(now),
            "source": source.value,
            "state": BatchState.OPEN.value,
            "name": name,
            "key_name": key_name,
            "header": header,
            "rows": 0,
            "refused": 0,
            "repeated": 0,
            "created_at": now,
            "touched_at": now,
        }
        with self._database.write() as connection:
            connection.execute(batches.insert().values(**values))
        return str(values["id"])

    def open_job(self, batch_id: str) -> int:
        """Begin a job's file; raises `DiscardedError`."""
        with self._database.write() as connection:
            see_open(connection, batches.c.id == batch_id, time.time())
            return add_job(connection, batch_id, JobState.OPEN)

    def add_block(self, job_id: int, number: int, rows: int, lines: str, now: float) -> None:
        """Write the next block of a job's file; raises `DiscardedError`."""
        with self._database.write() as connection:
            see_open(connection, batches.c.id == _batch_of(job_id), now)
            add_block(connection, job_id, number, rows, lines)

    def add_refused(self, batch_id: str, number: int, lines: str, now: float) -> None:
        """Keep lines of the list of refused rows."""
        body = zlib.compress(lines.encode(), PACKING)
        with self._database.write() as connection:
            connection.execute(
                batch_refused.insert().values(batch_id=batch_id, number=number, body=body)
            )
            connection.execute(
                batches.update().where(batches.c.id == batch_id).values(touched_at=now)
            )

    def seal(self, job_id: int, *, counts: bool) -> None:
        """Close a job's file: from now on it has a size and a digest."""
        with self._database.write() as connection:
            _seal(connection, job_id, counts=counts)

    def release(self, batch_id: str, now: float, **counted: int) -> None:
        """Let the sealed jobs of a batch go out; *counted* are its columns.

        Raises:
            DiscardedError: they are discarded.
        """
        with self._database.write() as connection:
            see_open(connection, batches.c.id == batch_id, now)
            connection.execute(
                batch_jobs.update()
                .where(batch_jobs.c.batch_id == batch_id)
                .where(batch_jobs.c.state == JobState.OPEN.value)
                .values(state=JobState.QUEUED.value, next_at=now)
            )
            connection.execute(batches.update().where(batches.c.id == batch_id).values(**counted))
            _settle(connection, batch_id, now)

    def drop(self, batch_id: str) -> None:
        """Forget a batch of which nothing went out."""
        with self._database.write() as connection:
            connection.execute(batches.delete().where(batches.c.id == batch_id))

    def follow(self, key_name: str, request_id: str, sessionm_id: str, now: float) -> str:
        """Note a job that a client submitted through us; returns its batch's id."""
        batch_id = self.open_batch(Source.DROPIN, request_id, key_name, "", now)
        with self._database.write() as connection:
            job_id = add_job(connection, batch_id, JobState.SUBMITTED)
            connection.execute(
                batch_jobs.update()
                .where(batch_jobs.c.id == job_id)
                .values(
                    request_id=request_id, sessionm_id=sessionm_id, submitted_at=now, next_at=now
                )
            )
            _settle(connection, batch_id, now)
        return batch_id

    # serving a file

    def served(self, token: str) -> Job | None:
        """The job whose file has that token in its URL, if it may be downloaded now."""
        chosen = JOBS.where(
            batch_jobs.c.file_token == hashed(token),
            batch_jobs.c.state.in_([state.value for state in UNDER_WAY]),
            batch_jobs.c.submitted_at > time.time() - URL_LASTS,
        )
        with self._database.read() as connection:
            row = connection.execute(chosen).mappings().first()
        return read_job(row) if row else None

    def serve(self, job: Job, token: str) -> Iterator[bytes]:
        """A job's file, a block at a time; that it is whole is noted before its end goes out.

        Raises:
            WithdrawnError: its URL was withdrawn meanwhile, so that its end stays here.
            StoreUnavailableError: the store is away.
        """
        yield job.header.encode()
        last = b""
        for _rows, lines in self.blocks(job.id):
            if last:
                yield last
            last = lines
        if not self._note_served(job, token):
            raise WithdrawnError(f"the file of job {job.id} was withdrawn while it was fetched")
        yield last

    def _note_served(self, job: Job, token: str) -> bool:
        """Note for good that the file goes out whole; false if its URL was withdrawn."""
        first = sa.func.coalesce(batch_jobs.c.served_at, time.time())
        with self._database.write() as connection:
            return bool(
                connection.execute(
                    batch_jobs.update()
                    .where(batch_jobs.c.id == job.id, batch_jobs.c.file_token == hashed(token))
                    .values(served_at=first)
                ).rowcount
            )

    def blocks(self, job_id: int) -> Iterator[tuple[int, bytes]]:
        """How many rows, and which lines, of each block of a job's file."""
        number = -1
        chosen = (
            sa.select(batch_blocks.c.number, batch_blocks.c.rows, batch_blocks.c.body)
            .where(batch_blocks.c.job_id == job_id)
            .order_by(batch_blocks.c.number)
            .limit(1)
        )
        while True:
            with self._database.read() as connection:
                row = connection.execute(chosen.where(batch_blocks.c.number > number)).first()
            if row is None:
                return
            number = row.number
            yield row.rows, zlib.decompress(row.body)

    def refused(self, batch_id: str) -> Iterator[bytes]:
        """The list of refused rows, as CSV with the columns ``line`` and ``reason``."""
        yield b"line,reason\n"
        number = -1
        chosen = (
            sa.select(batch_refused.c.number, batch_refused.c.body)
            .where(batch_refused.c.batch_id == batch_id)
            .order_by(batch_refused.c.number)
            .limit(1)
        )
        while True:
            with self._database.read() as connection:
                row = connection.execute(chosen.where(batch_refused.c.number > number)).first()
            if row is None:
                return
            number = row.number
            yield zlib.decompress(row.body)

    # driving the jobs

    def due(self, now: float, limit: int = 20) -> list[Job]:
        """Jobs under way with something to do: the backlog's first, then the longest due."""
        return self._chosen(
            batch_jobs.c.state.in_([state.value for state in UNDER_WAY]),
            batch_jobs.c.next_at <= now,
            limit=limit,
        )

    def of_backlog(self, now: float, late: float) -> list[Job]:
        """Jobs of the backlog that wait to be submitted, and those accepted before *late*."""
        return self._chosen(
            batch_jobs.c.state == JobState.QUEUED.value,
            batches.c.source == Source.BACKLOG.value,
            sa.or_(batch_jobs.c.next_at <= now, batch_jobs.c.oldest_at < late),
        )

    def of_files(self, now: float, limit: int) -> list[Job]:
        """Jobs of files that wait to be submitted, the longest due first."""
        return self._chosen(
            batch_jobs.c.state == JobState.QUEUED.value,
            batches.c.source != Source.BACKLOG.value,
            batch_jobs.c.next_at <= now,
            limit=limit,
        )

    def _chosen(self, *which: sa.ColumnElement[bool], limit: int | None = None) -> list[Job]:
        live_first = batches.c.source != Source.BACKLOG.value
        chosen = JOBS.where(*which).order_by(live_first, batch_jobs.c.next_at, batch_jobs.c.id)
        with self._database.read() as connection:
            return [read_job(row) for row in connection.execute(chosen.limit(limit)).mappings()]

    def under_way(self) -> int:
        """How many jobs of files SessionM has, or may have."""
        counted = (
            sa.select(sa.func.count())
            .select_from(batch_jobs.join(batches))
            .where(batch_jobs.c.state.in_([_SUBMITTING, _SUBMITTED]))
            .where(batches.c.source == Source.FILE.value)
        )
        with self._database.read() as connection:
            return connection.execute(counted).scalar_one()

    def job(self, job_id: int) -> Job:
        with self._database.read() as connection:
            return _job(connection, job_id)

    def move(self, job: Job, state: JobState, now: float, **values: Any) -> bool:
        """Bring *job* from where it stands to *state*; false if it stands there no more."""
        ended = state not in UNFINISHED
        if ended:
            values = {**values, "done_at": now, "file_token": None}
        with self._database.write() as connection:
            moved = connection.execute(
                batch_jobs.update()
                .where(batch_jobs.c.id == job.id, batch_jobs.c.state == job.state.value)
                .where(batch_jobs.c.attempts == job.attempts)
                .values(state=state.value, **values)
            ).rowcount
            if moved and ended and state is not JobState.FAILED:
                # What is over needs no file, and customers' ids are not kept for nothing.
                connection.execute(batch_blocks.delete().where(batch_blocks.c.job_id == job.id))
            if moved:
                _settle(connection, job.batch_id, now)
        return bool(moved)

    def submitting(self, job: Job, file: str, notify: str, now: float, until: float) -> bool:
        """Note that *job* is about to be submitted, with these tokens; false if it has moved."""
        with self._database.write() as connection:
            return bool(
                connection.execute(
                    batch_jobs.update()
                    .where(batch_jobs.c.id == job.id, batch_jobs.c.state == JobState.QUEUED.value)
                    .values(
                        {
                            **ANEW,
                            "file_token": hashed(file),
                            "notify_token": hashed(notify),
                            "state": JobState.SUBMITTING.value,
                            "attempts": batch_jobs.c.attempts + 1,
                            "submitted_at": now,
                            "next_at": until,
                        }
                    )
                ).rowcount
            )

    def put_off(self, job: Job, until: float, reason: str) -> None:
        """Look at *job* again at *until*, unless it has moved, or a notification came."""
        with self._database.write() as connection:
            connection.execute(
                batch_jobs.update()
                .where(batch_jobs.c.id == job.id, batch_jobs.c.state == job.state.value)
                .where(batch_jobs.c.told == job.told)
                .values(next_at=until, reason=reason)
            )

    def withdraw(self, job: Job, now: float, reason: str) -> bool:
        """Make the URL of *job* useless and let it wait anew, if its file never went out whole.

        SessionM cannot do a job whose file it cannot have: after this a repeat is no double.
        """
        with self._database.write() as connection:
            return bool(
                connection.execute(
                    batch_jobs.update()
                    .where(batch_jobs.c.id == job.id, batch_jobs.c.state == job.state.value)
                    .where(batch_jobs.c.served_at.is_(None), batch_jobs.c.told == job.told)
                    .values(**ANEW, state=JobState.QUEUED.value, next_at=now, reason=reason)
                ).rowcount
            )

    def split(self, job: Job, now: float) -> bool:
        """Put two jobs of half the rows in the place of *job*; false if it has moved."""
        with self._database.write() as connection:
            moved = connection.execute(
                batch_jobs.update()
                .where(batch_jobs.c.id == job.id, batch_jobs.c.state == job.state.value)
                .values(state=JobState.SPLIT.value, done_at=now, file_token=None)
            ).rowcount
            if not moved:
                return False
            halves = [
                add_job(connection, job.batch_id, JobState.QUEUED, next_at=now, attempts=1)
                for _ in range(2)
            ]
            _share_out(connection, job, halves)
            for half in halves:
                _seal(connection, half, counts=job.counts)
            connection.execute(batch_blocks.delete().where(batch_blocks.c.job_id == job.id))
            _settle(connection, job.batch_id, now)
        return True

    def splits(self, batch_id: str) -> int:
        """How many jobs of a batch were split."""
        counted = (
            sa.select(sa.func.count())
            .select_from(batch_jobs)
            .where(batch_jobs.c.batch_id == batch_id, batch_jobs.c.state == JobState.SPLIT.value)
        )
        with self._database.read() as connection:
            return connection.execute(counted).scalar_one()

    def notify(self, token: str, status: str, sessionm_id: str) -> bool:
        """Note what a notification says; false if its token is none of ours.

        It moves nothing by itself: the job is looked at again at once.
        """
        digest = hashed(token)
        mine = batch_jobs.c.notify_token == digest
        with self._database.write() as connection:
            if connection.execute(sa.select(batch_jobs.c.id).where(mine)).first() is None:
                return False
            known = sa.case(
                (batch_jobs.c.sessionm_id == "", sessionm_id), else_=batch_jobs.c.sessionm_id
            )
            connection.execute(
                batch_jobs.update()
                .where(mine, batch_jobs.c.state.in_([state.value for state in UNDER_WAY]))
                .values(told=status, next_at=time.time(), sessionm_id=known)
            )
        return True

    # what people ask and order

    def find(self, limit: int = PAGE, before: str = "") -> list[dict[str, Any]]:
        """Up to *limit* batches, newest first, as JSON; those before the id *before*."""
        chosen = batches.select().order_by(batches.c.id.desc()).limit(limit)
        if before:
            chosen = chosen.where(batches.c.id < before)
        with self._database.read() as connection:
            rows = connection.execute(chosen).mappings().all()
            return [_batch_as_json(row, _jobs_of(connection, row["id"])) for row in rows]

    def one(self, batch_id: str) -> dict[str, Any] | None:
        """A batch with its jobs, as JSON; ``None`` if there is none of that id."""
        with self._database.read() as connection:
            row = (
                connection.execute(batches.select().where(batches.c.id == batch_id))
                .mappings()
                .first()
            )
            if row is None:
                return None
            jobs = _jobs_of(connection, batch_id)
        told = _batch_as_json(row, jobs)
        told["jobs"] = [_job_as_json(job) for job in jobs]
        return told

    def flagged(self) -> int:
        """How many batches need a person; those of others' jobs are theirs."""
        return self._count(sa.and_(batches.c.state == BatchState.FAILED.value, _OURS))

    def mostly_failed(self, since: float) -> list[dict[str, Any]]:
        """Batches of files that ended since then, and of whose rows SessionM could not do most.

        Each as ``{"id", "rows", "failed_rows"}``, the latest first.
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
        with self._database.read() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def same_rows(self, batch_id: str, since: float) -> str:
        """The latest batch since then whose files are the same as those of *batch_id*; or "".

        One of which SessionM did nothing does not count: it is discarded, or all rows failed. One
        that was split since is not recognised.
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
        with self._database.read() as connection:
            mine = connection.execute(
                sa.select(*marks).where(batch_jobs.c.batch_id == batch_id)
            ).one()
            same = [mark == own for mark, own in zip(marks, mine, strict=True)]
            worked = sa.func.sum(batch_jobs.c.failed_rows) < sa.func.sum(batch_jobs.c.rows)
            return connection.execute(others.having(*same, worked)).scalar() or ""

    def running(self) -> int:
        """How many batches are not over."""
        return self._count(batches.c.state.in_((BatchState.QUEUED.value, BatchState.RUNNING.value)))

    def again(self, batch_id: str, now: float) -> int:
        """Let the failed jobs of a batch be submitted once more; returns how many there were.

        Their counters may count twice: that is why a person decides it.
        """
        failed = (
            sa.select(batch_jobs.c.id, batch_jobs.c.request_id)
            .join(batches, batches.c.id == batch_jobs.c.batch_id)
            .where(batch_jobs.c.batch_id == batch_id, _OURS)
            .where(batch_jobs.c.state.in_((JobState.FAILED.value, JobState.OVERDUE.value)))
        )
        with self._database.write() as connection:
            found = connection.execute(failed).all()
            for job_id, request_id in found:
                connection.execute(
                    batch_jobs.update()
                    .where(batch_jobs.c.id == job_id)
                    .values(
                        **ANEW,
                        state=JobState.QUEUED.value,
                        attempts=0,
                        request_id=next_request_id(request_id),
                        next_at=now,
                        done_at=None,
                    )
                )
            _settle(connection, batch_id, now)
        return len(found)

    def give_up(self, batch_id: str, now: float) -> int:
        """Do nothing more for a batch: its URLs are withdrawn; returns how many jobs had not ended.

        What SessionM has in hand already it may still do.
        """
        going = [JobState.OPEN, *UNFINISHED, JobState.FAILED]
        mine = batches.c.id == batch_id
        with self._database.write() as connection:
            # From here on nobody adds to it.
            connection.execute(batches.update().where(mine).values(touched_at=now))
            state = connection.execute(sa.select(batches.c.state).where(mine)).scalar()
            chosen = sa.and_(
                batch_jobs.c.batch_id == batch_id,
                batch_jobs.c.state.in_([state.value for state in going]),
            )
            ids = list(connection.execute(sa.select(batch_jobs.c.id).where(chosen)).scalars())
            connection.execute(
                batch_jobs.update()
                .where(batch_jobs.c.id.in_(ids))
                .values(state=JobState.DISCARDED.value, done_at=now, file_token=None)
            )
            connection.execute(batch_blocks.delete().where(batch_blocks.c.job_id.in_(ids)))
            _settle(connection, batch_id, now)
        # A file of which no row is read yet has no job, and is discarded all the same.
        return len(ids) or int(state == BatchState.OPEN.value)

    def erase(self, customer: Customer) -> None:
        """Take *customer* out of every file that is still kept."""
        chosen = sa.select(batch_jobs.c.id, batches.c.header).join(batches)
        with self._database.read() as connection:
            kept = connection.execute(chosen.where(_KEPT)).all()
        for job_id, header in kept:
            if customer.kind in header:
                self._erase_from(job_id, header, customer)

    def _erase_from(self, job_id: int, header: str, customer: Customer) -> None:
        # As CSV has it, quotes doubled.
        needle = customer.id.replace('"', '""').encode()
        with self._database.read() as connection:
            chosen = sa.select(batch_blocks.c.number).where(batch_blocks.c.job_id == job_id)
            numbers = list(connection.execute(chosen).scalars())
        for number in numbers:
            mine = sa.and_(batch_blocks.c.job_id == job_id, batch_blocks.c.number == number)
            with self._database.write() as connection:
                body = connection.execute(sa.select(batch_blocks.c.body).where(mine)).scalar()
                if body is None or needle not in (lines := zlib.decompress(body)):
                    continue
                left, rows = without(customer, header, lines.decode())
                packed = zlib.compress(left.encode(), PACKING)
                connection.execute(batch_blocks.update().where(mine).values(body=packed, rows=rows))
                _submit_anew(connection, job_id)
                _seal(connection, job_id)

    def forget_before(self, then: float, abandoned: float) -> None:
        """Delete batches that ended before *then*, or whose upload stopped before *abandoned*."""
        ended = [
            state.value
            for state in (BatchState.COMPLETED, BatchState.RELEASED, BatchState.DISCARDED)
        ]
        over = sa.or_(batches.c.state.in_(ended), ~_OURS)
        old = sa.and_(over, batches.c.done_at < then)
        stopped = sa.and_(
            batches.c.state == BatchState.OPEN.value,
            batches.c.source == Source.FILE.value,
            batches.c.touched_at < abandoned,
        )
        with self._database.write() as connection:
            connection.execute(batches.delete().where(sa.or_(old, stopped)))

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        counted = sa.select(sa.func.count()).select_from(batches).where(condition)
        with self._database.read() as connection:
            return connection.execute(counted).scalar_one()


def hashed(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def next_request_id(request_id: str) -> str:
    """The request id of a repeat that SessionM shall not take for the same request."""
    stem, _, number = request_id.rpartition(".")
    return f"{stem}.{int(number) + 1}"


JOBS = sa.select(batch_jobs, batches.c.source, batches.c.header).join(
    batches, batches.c.id == batch_jobs.c.batch_id
)
# What a new submission begins with.
ANEW: dict[str, Any] = {
    "file_token": None,
    "notify_token": None,
    "sessionm_id": "",
    "told": "",
    "served_at": None,
    "submitted_at": None,
}
_SUBMITTING, _SUBMITTED = JobState.SUBMITTING.value, JobState.SUBMITTED.value
_OURS = batches.c.source != Source.DROPIN.value
_KEPT = batch_jobs.c.state.in_([s.value for s in (JobState.OPEN, *UNFINISHED, JobState.FAILED)])


def read_job(row: sa.RowMapping) -> Job:
    known = {name: row[name] for name in Job.__dataclass_fields__}
    return Job(**{**known, "state": JobState(row["state"]), "source": Source(row["source"])})


def _job(connection: sa.Connection, job_id: int) -> Job:
    chosen = JOBS.where(batch_jobs.c.id == job_id)
    return read_job(connection.execute(chosen).mappings().one())


def add_job(
    connection: sa.Connection,
    batch_id: str,
    state: JobState,
    next_at: float = 0.0,
    attempts: int = 0,
) -> int:
    """A new job of a batch, without a file yet; its id."""
    added = connection.execute(
        batch_jobs.insert()
        .values(
            batch_id=batch_id,
            state=state.value,
            rows=0,
            counts=False,
            size=0,
            md5="",
            request_id="",
            attempts=attempts,
            next_at=next_at,
            failed_rows=0,
            reason="",
            sessionm_id="",
            told="",
        )
        .returning(batch_jobs.c.id)
    ).scalar_one()
    connection.execute(
        batch_jobs.update()
        .where(batch_jobs.c.id == added)
        .values(request_id=f"{batch_id}-{added}.1")
    )
    return int(added)


def see_open(connection: sa.Connection, mine: sa.ColumnElement[bool], now: float) -> None:
    """See that the file of a batch is still being written, until the transaction ends.

    Raises:
        DiscardedError: it is not.
    """
    is_open = batches.c.state == BatchState.OPEN.value
    seen = batches.update().where(mine, is_open).values(touched_at=now)
    if not connection.execute(seen).rowcount:
        raise DiscardedError


def _batch_of(job_id: int) -> sa.ScalarSelect[str]:
    return sa.select(batch_jobs.c.batch_id).where(batch_jobs.c.id == job_id).scalar_subquery()


def add_block(connection: sa.Connection, job_id: int, number: int, rows: int, lines: str) -> None:
    """The next block of a job's file."""
    body = zlib.compress(lines.encode(), PACKING)
    connection.execute(
        batch_blocks.insert().values(job_id=job_id, number=number, rows=rows, body=body)
    )


def _submit_anew(connection: sa.Connection, job_id: int) -> None:
    """Let a job whose file is about to change wait anew, unless SessionM had all of the old one.

    SessionM was told the digest of the old file: it can do nothing with the new one.
    """
    job = _job(connection, job_id)
    moved = connection.execute(
        batch_jobs.update()
        .where(batch_jobs.c.id == job_id)
        .where(batch_jobs.c.state.in_([state.value for state in UNDER_WAY]))
        .where(batch_jobs.c.served_at.is_(None), batch_jobs.c.told == "")
        .values(
            **ANEW,
            state=JobState.QUEUED.value,
            attempts=batch_jobs.c.attempts - 1,
            request_id=next_request_id(job.request_id),
            next_at=time.time(),
        )
    )
    if moved.rowcount:
        _settle(connection, job.batch_id, time.time())


def _seal(connection: sa.Connection, job_id: int, **values: Any) -> None:
    """Note how many rows and bytes a job's file has, and its digest."""
    header = connection.execute(
        sa.select(batches.c.header).join(batch_jobs).where(batch_jobs.c.id == job_id)
    ).scalar_one()
    digest = hashlib.md5(header.encode(), usedforsecurity=False)
    size, rows = len(header), 0
    for _number, block_rows, lines in _all_blocks(connection, job_id):
        digest.update(lines)
        size += len(lines)
        rows += block_rows
    connection.execute(
        batch_jobs.update()
        .where(batch_jobs.c.id == job_id)
        .values(rows=rows, size=size, md5=digest.hexdigest(), **values)
    )


def _all_blocks(connection: sa.Connection, job_id: int) -> Iterator[tuple[int, int, bytes]]:
    chosen = (
        sa.select(batch_blocks.c.number, batch_blocks.c.rows)
        .where(batch_blocks.c.job_id == job_id)
        .order_by(batch_blocks.c.number)
    )
    for number, rows in connection.execute(chosen).all():
        # One at a time: some drivers fetch a whole result into memory.
        body = connection.execute(
            sa.select(batch_blocks.c.body).where(
                batch_blocks.c.job_id == job_id, batch_blocks.c.number == number
            )
        ).scalar_one()
        yield number, rows, zlib.decompress(body)


def _share_out(connection: sa.Connection, job: Job, halves: list[int]) -> None:
    """Copy the first half of the rows of *job* to one job, the rest to another."""
    taken = 0
    for number, rows, body in _all_blocks(connection, job.id):
        first = min(max(0, job.rows // 2 - taken), rows)
        taken += rows
        # Rows hold no line breaks: identifiers and tags with one are refused.
        lines = body.decode().splitlines(keepends=True)
        for half, part in zip(halves, (lines[:first], lines[first:]), strict=True):
            if part:
                add_block(connection, half, number, len(part), "".join(part))


def _settle(connection: sa.Connection, batch_id: str, now: float) -> None:
    """Give a batch the state that follows from its jobs'."""
    states = set(
        connection.execute(
            sa.select(batch_jobs.c.state).where(batch_jobs.c.batch_id == batch_id)
        ).scalars()
    )
    state = _batch_state({JobState(state) for state in states})
    over = state not in {BatchState.OPEN, BatchState.QUEUED, BatchState.RUNNING}
    connection.execute(
        batches.update()
        .where(batches.c.id == batch_id)
        .values(state=state.value, done_at=now if over else None, touched_at=now)
    )


# A batch is what the weightiest of its jobs is.
_BY_WEIGHT = (
    (JobState.OPEN, BatchState.OPEN),
    (JobState.SUBMITTING, BatchState.RUNNING),
    (JobState.SUBMITTED, BatchState.RUNNING),
    (JobState.QUEUED, BatchState.QUEUED),
    (JobState.FAILED, BatchState.FAILED),
    (JobState.OVERDUE, BatchState.FAILED),
    (JobState.DISCARDED, BatchState.DISCARDED),
    (JobState.RELEASED, BatchState.RELEASED),
)


def _batch_state(states: set[JobState]) -> BatchState:
    none = BatchState.COMPLETED if states else BatchState.DISCARDED
    found = next((state for of, state in _BY_WEIGHT if of in states), none)
    return BatchState.RUNNING if found is BatchState.QUEUED and len(states) > 1 else found


def _jobs_of(connection: sa.Connection, batch_id: str) -> list[Job]:
    chosen = JOBS.where(batch_jobs.c.batch_id == batch_id).order_by(batch_jobs.c.id)
    return [read_job(row) for row in connection.execute(chosen).mappings()]


def _batch_as_json(row: sa.RowMapping, jobs: list[Job]) -> dict[str, Any]:
    # What the files hold: repeats are left out of them, and erased customers leave them.
    rows = sum(job.rows for job in jobs if job.state is not JobState.SPLIT)
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
    told = f"SessionM could not do {failed} of {counted(rows, 'row')}"
    if 2 * failed <= rows:
        return told
    kinds = [name for name in header.strip().split(",") if name not in {"tag", "expires"}]
    return f"{told}: it may not know these customers by {' or '.join(kinds)}"


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
