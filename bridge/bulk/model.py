"""Batches, files or parts of the backlog, and the SessionM jobs that deliver them. Pure.

Times are seconds since the epoch.
"""

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# Rows of a job: the default, and the maximum. SessionM documents no limit; one is assumed.
ROWS_OF_JOB = 100_000
MOST_ROWS_OF_JOB = 1_000_000


class JobState(StrEnum):
    OPEN = "open"  # its file is being written
    QUEUED = "queued"
    SUBMITTING = "submitting"  # sent to SessionM, which may or may not have the job
    SUBMITTED = "submitted"
    OVERDUE = "overdue"  # SessionM has not reported the end in time: a person is needed
    COMPLETED = "completed"
    RELEASED = "released"  # it failed, and its writes are delivered by single calls
    FAILED = "failed"  # a person is needed
    DISCARDED = "discarded"


class BatchState(StrEnum):
    """The state of a batch, derived from the states of its jobs."""

    OPEN = "open"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    RELEASED = "released"  # its writes are delivered by single calls
    FAILED = "failed"
    DISCARDED = "discarded"


class Source(StrEnum):
    """The origin of a batch."""

    FILE = "file"
    BACKLOG = "backlog"
    DROPIN = "dropin"  # a job that a client submitted through the bridge, with a file of its own


# SessionM has the job, or may have it.
IN_FLIGHT = (JobState.SUBMITTING, JobState.SUBMITTED, JobState.OVERDUE)
UNFINISHED = (JobState.QUEUED, *IN_FLIGHT)
# The file of a job in these states is kept, since it may be sent (again).
WITH_FILE = (JobState.OPEN, *UNFINISHED, JobState.FAILED)


@dataclass(frozen=True)
class Job:
    """One of SessionM's batch jobs. Times are seconds since the epoch.

    Attributes:
        counts: whether the file has rows of counters, so that a second run would count twice.
        size: bytes of the file.
        md5: hexadecimal digest of the file.
        oldest_at: when the oldest of its writes was accepted; ``None`` for a job of a file.
        request_id: the bridge's id of the job. A repeat after an unknown outcome keeps it.
        sessionm_id: SessionM's id of the job, or "".
        attempts: number of submissions.
        next_at: when the next step is due.
        served_at: when the whole file was first downloaded by the present URL, or ``None``.
            SessionM checks the digest, so it cannot have processed a row before.
        notified: the state in SessionM's notification, or "".
        notified_at: when the first notification was received.
        header: the first line of the file.
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
    notified: str
    notified_at: float | None
    failed_rows: int
    reason: str
    done_at: float | None
    source: Source
    header: str

    @property
    def content_md5(self) -> str:
        """Return the digest for the header ``Content-MD5`` (RFC 1864)."""
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


# The fields of a job that was never submitted, or is to be submitted again.
UNSUBMITTED: dict[str, Any] = {
    "sessionm_id": "",
    "submitted_at": None,
    "served_at": None,
    "notified": "",
    "notified_at": None,
}


@dataclass(frozen=True)
class JobChange:
    """A transition of the job to the state *to*, which may be its present state.

    Attributes:
        reason: one sentence for people, or "".
        next_at: when the next step is due, if the job has not ended.
        only_unserved: whether to make the transition only if the file was not downloaded and no
            notification was received since the job was read. It withdraws the file's URL.
        values: other fields to change.
    """

    to: JobState
    reason: str = ""
    next_at: float = 0.0
    only_unserved: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)


def next_request_id(request_id: str) -> str:
    """Return the id for a repeat that must be a new request for SessionM: ``….1``, ``….2``."""
    stem, _, number = request_id.rpartition(".")
    return f"{stem}.{int(number) + 1}"


# By precedence: a batch has the first of these states that one of its jobs has.
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
GOING = (BatchState.OPEN, BatchState.QUEUED, BatchState.RUNNING)


def state_of_batch(jobs: Collection[JobState]) -> BatchState:
    """Return the state of a batch with jobs in these states; without jobs, it is discarded."""
    otherwise = BatchState.COMPLETED if jobs else BatchState.DISCARDED
    found = next((state for of, state in _BY_WEIGHT if of in jobs), otherwise)
    # Queued, but some of its jobs have ended or are in flight.
    has_begun = found is BatchState.QUEUED and len(set(jobs)) > 1
    return BatchState.RUNNING if has_begun else found


@dataclass(frozen=True)
class JobTimings:
    """Intervals and time limits, in seconds.

    Attributes:
        poll: between two rounds over the due jobs.
        quiet: without a further write, after which a job of the backlog is closed.
        submit_backlog: after the acceptance of its oldest write in which a job of the backlog must
            be submitted. Otherwise its writes are delivered by single calls.
        outcome: to wait for a sign that SessionM has a job, if its answer was lost.
        first_query, longest_query: between two status requests for a job; each interval doubles.
        retry: before a failed job is submitted again, and between attempts during an outage.
        outage: without an answer, after which a notification alone decides a job's state.
        fetch: within which SessionM must download the file of a job that it has.
        report: within which SessionM must report the end of a job; then the job is overdue.
        report_backlog: the same for a job of the backlog, whose writes are held meanwhile.
    """

    poll: float = 0.5
    quiet: float = 2.0
    submit_backlog: float = 60.0
    outcome: float = 60.0
    first_query: float = 5.0
    longest_query: float = 300.0
    retry: float = 30.0
    outage: float = 60.0
    fetch: float = 7200.0
    report: float = 6 * 3600.0
    report_backlog: float = 3600.0
