"""The documented shapes of what the bridge answers, lookups apart, for OpenAPI.

The tests hold every answer of the application against them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bridge.outbox.jobs import BatchState, JobState, Source
from bridge.outbox.schema import State


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(_Shape):
    """What is wrong: a word for programs, a sentence for people."""

    code: str
    message: str


class Error(_Shape):
    """Every error of every endpoint, in SessionM's own shape."""

    status: Literal["error"]
    errors: ErrorDetail


class Ok(_Shape):
    """Done."""

    status: Literal["ok"]


class CustomerIds(_Shape):
    """A customer by one of the two identifiers, or by none if an event names none."""

    user_id: str = ""
    external_id: str = ""


class WriteIntended(_Shape):
    """Tags that go to SessionM in one call; without *ttl* they are counted."""

    tags: list[str]
    ttl: int | None


class Accepted(_Shape):
    """The webhook is on disk."""

    status: Literal["accepted"]
    id: str
    customer: CustomerIds
    writes: list[WriteIntended]
    warnings: list[str]
    test: bool


class Duplicate(_Shape):
    """The same event was accepted before."""

    status: Literal["duplicate"]
    id: str


class Delivered(_Shape):
    """SessionM has taken it while the caller waited."""

    status: Literal["delivered"]
    id: str
    tags: dict[str, int]


class TagsTaken(_Shape):
    """SessionM's answer to a tag write, as last known, and the event's id."""

    status: Literal["ok"]
    id: str
    tags: dict[str, int]


class FromSessionM(BaseModel):
    """SessionM's own answer, as it came."""

    model_config = ConfigDict(extra="allow")

    status: str


class JobUncertain(_Shape):
    """A batch job whose submission SessionM did not confirm; *id* is the batch that follows it."""

    status: Literal["uncertain"]
    message: str
    id: str
    tags: dict[str, Any]


class EventSummary(_Shape):
    """One stored event; times as ``2026-12-01T00:00:00Z``, blank if there is none."""

    id: str
    state: State
    received_at: str
    done_at: str
    customer: CustomerIds
    campaign_id: str
    canvas_id: str
    test: bool
    reason: str
    key: str
    request_id: str


class Try(_Shape):
    """One call to SessionM."""

    at: str
    status: int
    milliseconds: int
    outcome: str
    error: str


class Write(_Shape):
    """One write of an event, and every try of it."""

    tags: list[str]
    ttl: int | None
    state: State
    attempts: int
    next_at: str
    done_at: str
    reason: str
    uncertain: bool
    tries: list[Try]


class EventStory(EventSummary):
    """Everything about one event."""

    body: str
    content_type: str
    writes: list[Write]


class EventList(_Shape):
    """Events, newest first; *next* goes into ``before`` for those that follow, blank at the end."""

    status: Literal["ok"]
    events: list[EventSummary]
    next: str


class OneEvent(_Shape):
    """One event's story."""

    status: Literal["ok"]
    event: EventStory


class Replayed(_Shape):
    """How many events matched, how many go out again, and why the others do not."""

    status: Literal["ok"]
    matched: int
    replayed: int
    dry_run: bool = False
    refused: list[str] = Field(default_factory=list)


class Discarded(_Shape):
    """How many events matched and were given up."""

    status: Literal["ok"]
    matched: int
    discarded: int


class DeliveryState(_Shape):
    """Whether delivery runs; *pausing*: the deliverer has not heard yet, and may still send."""

    status: Literal["ok"]
    state: Literal["running", "paused", "pausing"]


class Health(_Shape):
    """Is it healthy; *reasons* say in sentences why it is not."""

    status: Literal["ok", "degraded", "down"]
    reasons: list[str]
    version: str
    checks: dict[str, dict[str, Any]]


class RefusedLine(_Shape):
    """A line of a file that is left out."""

    line: int
    reason: str


class FirstRow(_Shape):
    """A row as SessionM gets it, with one of the two identifiers; without *expires* it counts."""

    user_id: str = ""
    external_id: str = ""
    tag: str
    expires: str


class FileTaken(_Shape):
    """What became of the lines of a file; *counted* is a dry run, of which nothing is kept.

    SessionM gets *rows* of them; *refused* and *repeated* are left out. *warnings* are sentences
    about what may not be meant.
    """

    status: Literal["accepted", "counted"]
    id: str
    rows: int
    refused: int
    repeated: int
    jobs: int
    warnings: list[str]
    first_rows: list[FirstRow]
    first_refused: list[RefusedLine]


class Batch(_Shape):
    """A file, or a part of the backlog, on its way through SessionM's batch jobs.

    Of its *rows* those in *completed_rows* are of jobs that SessionM has completed: it did
    *done_rows*, and could not do *failed_rows*. *refused* and *repeated* it never got.
    """

    id: str
    source: Source
    state: BatchState
    name: str
    key: str
    rows: int
    completed_rows: int
    done_rows: int
    failed_rows: int
    refused: int
    repeated: int
    job_count: int
    created_at: str
    done_at: str
    reason: str


class BatchJob(_Shape):
    """One of SessionM's jobs."""

    id: int
    state: JobState
    rows: int
    failed_rows: int
    request_id: str
    sessionm_id: str
    attempts: int
    submitted_at: str
    fetched_at: str
    done_at: str
    reason: str


class BatchWithJobs(Batch):
    """A batch and its jobs."""

    jobs: list[BatchJob]


class BatchList(_Shape):
    """A page of batches, newest first; *next* is blank on the last."""

    status: Literal["ok"]
    batches: list[Batch]
    next: str


class OneBatch(_Shape):
    """One batch."""

    status: Literal["ok"]
    batch: BatchWithJobs


class Resubmitted(_Shape):
    """How many jobs wait to be submitted again."""

    status: Literal["ok"]
    resubmitted: int


class JobsDiscarded(_Shape):
    """How many jobs are given up."""

    status: Literal["ok"]
    discarded: int
