"""What is done next with a batch job, as a table."""
# ruff: noqa: E501 - a row of a table is a line

from dataclasses import replace
from typing import Any

import pytest

from bridge.bulk.model import (
    BatchState,
    Job,
    JobChange,
    JobState,
    JobTimings,
    Source,
    state_of_batch,
)
from bridge.bulk.moves import JobReply, QueryStatus, Submit, next_move, redacted, resubmission
from bridge.sessionm.answers import Meaning, SessionMError

NOW = 1_000_000.0
T = JobTimings()
JOB = Job(
    id=7,
    batch_id="b",
    state=JobState.QUEUED,
    rows=10,
    counts=False,
    size=100,
    md5="0" * 32,
    oldest_at=None,
    request_id="b-7.1",
    sessionm_id="",
    attempts=0,
    next_at=0.0,
    submitted_at=None,
    served_at=None,
    notified="",
    notified_at=None,
    failed_rows=0,
    reason="",
    done_at=None,
    source=Source.FILE,
    header="user_id,tag,expires\n",
)
SUBMITTING = replace(JOB, state=JobState.SUBMITTING, attempts=1, submitted_at=NOW - 10)
SUBMITTED = replace(SUBMITTING, state=JobState.SUBMITTED, sessionm_id="5")
SERVED: dict[str, Any] = {"served_at": NOW - 5}
BACKLOG: dict[str, Any] = {"source": Source.BACKLOG, "oldest_at": NOW - 20}
DROPIN: dict[str, Any] = {"source": Source.DROPIN}

AWAY = SessionMError(Meaning.UNREACHABLE, "connection refused")
LOST = SessionMError(Meaning.UNANSWERED, "timed out")
THROTTLED = SessionMError(Meaning.BUSY, "HTTP 429", status=429, retry_after=100)
NO_SUCH_CALL = SessionMError(Meaning.BUSY, "HTTP 501", status=501)
REFUSED = SessionMError(Meaning.REFUSED, "HTTP 422: VALIDATION", status=422)
CREDENTIALS = SessionMError(Meaning.CREDENTIALS, "HTTP 401", status=401)
GARBLED = SessionMError(Meaning.GARBLED, "HTTP 200: no SessionM answer in the body", status=200)


def move(job: Job, known: JobReply = None) -> Any:
    return next_move(job, known, NOW, T)


@pytest.mark.parametrize(
    ("job", "known", "expected"),
    [
        (JOB, None, Submit()),
        (replace(JOB, **BACKLOG), None, Submit()),
        (SUBMITTED, None, QueryStatus()),
        (replace(SUBMITTED, state=JobState.OVERDUE), None, QueryStatus()),
        (replace(SUBMITTED, **DROPIN), None, QueryStatus()),
    ],
)
def test_a_job_is_submitted_and_then_asked_after(
    job: Job, known: JobReply, expected: object
) -> None:
    assert move(job, known) == expected


# The job, what SessionM answered, the state to come, and in how many seconds it is due again.
CHANGES: list[tuple[str, Job, JobReply, JobState, float]] = [
    ("too late for a job of the backlog", replace(JOB, source=Source.BACKLOG, oldest_at=NOW - 61), None, JobState.RELEASED, 0),
    # The submission was answered.
    ("taken", SUBMITTING, {"id": 5}, JobState.SUBMITTED, T.first_query),
    ("taken and notified", replace(SUBMITTING, notified="completed"), {"id": 5}, JobState.SUBMITTED, 0),
    ("outcome unknown", SUBMITTING, LOST, JobState.SUBMITTING, T.outcome),
    ("outcome unknown by garbage", SUBMITTING, GARBLED, JobState.SUBMITTING, T.outcome),
    ("away", SUBMITTING, AWAY, JobState.QUEUED, T.retry),
    ("throttled", SUBMITTING, THROTTLED, JobState.QUEUED, 100),
    ("credentials refused", SUBMITTING, CREDENTIALS, JobState.QUEUED, T.retry),
    ("refused", SUBMITTING, REFUSED, JobState.FAILED, 0),
    ("refused, of the backlog", replace(SUBMITTING, **BACKLOG), REFUSED, JobState.RELEASED, 0),
    # It was not.
    ("answer lost, file fetched", replace(SUBMITTING, **SERVED), None, JobState.SUBMITTED, T.first_query),
    ("answer lost, notified", replace(SUBMITTING, notified="failed"), None, JobState.SUBMITTED, 0),
    ("answer lost, no sign of it", SUBMITTING, None, JobState.QUEUED, 0),
    ("never any sign of it", replace(SUBMITTING, attempts=5), None, JobState.FAILED, 0),
    ("no sign of it, of the backlog", replace(SUBMITTING, **BACKLOG), None, JobState.RELEASED, 0),
    # SessionM has it.
    ("going on", SUBMITTED, {"status": "processing"}, JobState.SUBMITTED, 10),
    ("no number to ask by", replace(SUBMITTED, sessionm_id=""), None, JobState.SUBMITTED, 10),
    ("going on for long", replace(SUBMITTED, submitted_at=NOW - 4000, **SERVED), {}, JobState.SUBMITTED, T.longest_query),
    ("completed", SUBMITTED, {"status": "Completed"}, JobState.COMPLETED, 0),
    ("completed in part", SUBMITTED, {"status": "completed", "failed": 3}, JobState.COMPLETED, 0),
    ("completed in part, of the backlog", replace(SUBMITTED, **BACKLOG), {"status": "completed", "failed": 3}, JobState.RELEASED, 0),
    ("completed after all", replace(SUBMITTED, state=JobState.OVERDUE), {"status": "done"}, JobState.COMPLETED, 0),
    ("a notification that lies", replace(SUBMITTED, notified="completed"), {"status": "processing"}, JobState.SUBMITTED, 10),
    # It failed.
    ("failed once", replace(SUBMITTED, **SERVED), {"status": "failed"}, JobState.QUEUED, T.retry),
    ("failed twice", replace(SUBMITTED, attempts=2, **SERVED), {"status": "failed"}, JobState.FAILED, 0),
    ("counters that failed", replace(SUBMITTED, counts=True, **SERVED), {"status": "failed"}, JobState.FAILED, 0),
    ("counters whose file was never fetched", replace(SUBMITTED, counts=True), {"status": "failed"}, JobState.QUEUED, T.retry),
    ("failed, of the backlog", replace(SUBMITTED, **BACKLOG, **SERVED), {"status": "error"}, JobState.RELEASED, 0),
    ("failed, a client's", replace(SUBMITTED, **DROPIN), {"status": "failed"}, JobState.FAILED, 0),
    # It cannot be asked after.
    ("away, asked again", SUBMITTED, AWAY, JobState.SUBMITTED, T.retry),
    ("throttled, asked again", SUBMITTED, THROTTLED, JobState.SUBMITTED, 100),
    ("away, notified just now", replace(SUBMITTED, notified="failed", notified_at=NOW - 59), AWAY, JobState.SUBMITTED, T.retry),
    ("away for long since it was notified", replace(SUBMITTED, notified="completed", notified_at=NOW - 60), AWAY, JobState.COMPLETED, 0),
    ("no such call, notified", replace(SUBMITTED, notified="completed", notified_at=NOW), NO_SUCH_CALL, JobState.COMPLETED, 0),
    ("refused, notified", replace(SUBMITTED, notified="completed", notified_at=NOW), REFUSED, JobState.COMPLETED, 0),
    ("credentials refused, notified", replace(SUBMITTED, notified="completed", notified_at=NOW), CREDENTIALS, JobState.COMPLETED, 0),
    ("refused, not notified", SUBMITTED, REFUSED, JobState.SUBMITTED, 10),
    # SessionM never answers.
    ("never fetched", replace(SUBMITTED, submitted_at=NOW - 7201), {}, JobState.QUEUED, T.retry),
    ("never fetched, a client's", replace(SUBMITTED, submitted_at=NOW - 7201, **DROPIN), {}, JobState.SUBMITTED, T.longest_query),
    ("never fetched again", replace(SUBMITTED, submitted_at=NOW - 7201, attempts=2), {}, JobState.FAILED, 0),
    ("not reported", replace(SUBMITTED, submitted_at=NOW - 21_601, **SERVED), {}, JobState.OVERDUE, T.longest_query),
    ("still not reported", replace(SUBMITTED, state=JobState.OVERDUE, submitted_at=NOW - 90_000), {}, JobState.OVERDUE, T.longest_query),
    ("not reported, of the backlog", replace(SUBMITTED, submitted_at=NOW - 3601, **BACKLOG, **SERVED), {}, JobState.RELEASED, 0),
    ("not reported, a client's", replace(SUBMITTED, submitted_at=NOW - 21_601, **DROPIN), {}, JobState.FAILED, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("job", "known", "to", "due_in"),
    [row[1:] for row in CHANGES],
    ids=[row[0] for row in CHANGES],
)
def test_a_job_changes_by_what_is_known_of_it(
    job: Job, known: JobReply, to: JobState, due_in: float
) -> None:
    change = move(job, known)
    assert isinstance(change, JobChange)
    assert change.to is to
    if to not in {JobState.COMPLETED, JobState.RELEASED, JobState.FAILED}:
        assert change.next_at == NOW + due_in


@pytest.mark.parametrize("state", [JobState.OPEN, JobState.COMPLETED, JobState.DISCARDED])
def test_nothing_is_to_be_done_with_a_job_that_is_over_or_not_complete(state: JobState) -> None:
    with pytest.raises(ValueError, match=state):
        move(replace(JOB, state=state))


@pytest.mark.parametrize(
    "job",
    [
        SUBMITTING,
        replace(SUBMITTING, attempts=5),
        replace(SUBMITTING, **BACKLOG),
        replace(SUBMITTED, submitted_at=NOW - 7201),
    ],
)
def test_what_sessionm_may_still_fetch_is_given_up_only_while_it_is_unserved(job: Job) -> None:
    assert move(job, {} if job.state is JobState.SUBMITTED else None).only_unserved


def test_a_repeat_after_a_lost_answer_keeps_its_name_and_one_after_a_failure_does_not() -> None:
    assert "request_id" not in move(SUBMITTING).values
    failed = move(replace(SUBMITTED, **SERVED), {"status": "failed"})
    assert failed.values["request_id"] == "b-7.2"


def test_a_submission_that_sessionm_could_not_take_is_no_try() -> None:
    assert move(SUBMITTING, AWAY).values["attempts"] == 0


def test_sessionms_number_of_a_job_is_kept_where_an_answer_has_none() -> None:
    assert move(SUBMITTING, {"id": 5}).values == {"sessionm_id": "5"}
    assert move(SUBMITTING, {}).values == {}


@pytest.mark.parametrize("failed", [True, -1, 11, "3", None])
def test_a_number_of_failed_rows_that_cannot_be_is_none(failed: object) -> None:
    change = move(SUBMITTED, {"status": "completed", "failed": failed})
    assert change.values["failed_rows"] == 0


def test_reasons_say_what_to_look_at() -> None:
    assert "BRIDGE_PUBLIC_URL" in move(replace(SUBMITTED, submitted_at=NOW - 7201), {}).reason
    counters = replace(SUBMITTED, counts=True, **SERVED)
    assert "may have been counted" in move(counters, {"status": "failed"}).reason
    assert move(SUBMITTING, REFUSED).reason == "SessionM refuses it: HTTP 422: VALIDATION"


def test_what_is_submitted_anew_has_another_name_and_no_past() -> None:
    change = resubmission(replace(SUBMITTED, **SERVED, notified="failed"), 0, NOW)
    assert (change.to, change.next_at) == (JobState.QUEUED, NOW)
    assert change.values["request_id"] == "b-7.2"
    assert change.values["served_at"] is None
    assert change.values["notified"] == ""


def test_words_of_sessionm_hold_no_token() -> None:
    token = "t" * 43
    said = f"cannot read https://b/batches/files/{token}.csv, token={token[:20]}, {token}"
    assert "ttt" not in redacted(said)
    assert redacted(said).startswith("cannot read https://b/batches/files/")


@pytest.mark.parametrize(
    ("jobs", "state"),
    [
        ("", BatchState.DISCARDED),
        ("completed", BatchState.COMPLETED),
        ("completed failed", BatchState.FAILED),
        ("completed overdue", BatchState.FAILED),
        ("completed queued", BatchState.RUNNING),
        ("queued", BatchState.QUEUED),
        ("failed submitted", BatchState.RUNNING),
        ("open queued", BatchState.OPEN),
        ("completed discarded", BatchState.DISCARDED),
        ("released", BatchState.RELEASED),
    ],
)
def test_a_batch_is_what_the_weightiest_of_its_jobs_is(jobs: str, state: BatchState) -> None:
    assert state_of_batch({JobState(job) for job in jobs.split()}) is state
