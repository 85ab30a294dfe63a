"""Decide the next step with a batch job. Pure.

A job's file is served at an unguessable URL, and SessionM cannot process a file that it has not
downloaded completely. This decides a submission whose outcome is unknown: if the whole file was
downloaded, SessionM has the job. If not, the URL is withdrawn (`JobChange.only_unserved`), and a
repeat cannot count twice.

SessionM documents the submission of a job and the notification of its end. The names of a job's
states, the status request, and the number of ``failed`` rows in its answer are assumed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.bulk.model import (
    UNSUBMITTED,
    Job,
    JobChange,
    JobState,
    JobTimings,
    Source,
    next_request_id,
)
from bridge.fields import shown
from bridge.sessionm.answers import Meaning, SessionMError

# Submissions of a file's job before it needs a person.
MAX_SUBMISSIONS = 2
# The same, if SessionM neither answered a submission nor downloaded the file.
MAX_UNANSWERED_SUBMISSIONS = 5

# States in SessionM's answers and notifications. Only "created" is documented. Any other state
# means that the job has not ended.
_COMPLETED = {"completed", "complete", "done", "finished", "success", "succeeded"}
_FAILED = {"failed", "failure", "error", "errored", "cancelled", "canceled", "aborted"}
_NEVER_FETCHED = "SessionM never fetched its file: can it reach BRIDGE_PUBLIC_URL?"
_TEMPORARY = {Meaning.UNREACHABLE, Meaning.UNANSWERED, Meaning.BUSY}
# HTTP statuses which say that SessionM has no status request.
_NEVER_ANSWERS = {405, 501}

# SessionM's answer: the fields of a job, an error, or ``None`` if it was not asked.
JobReply = Mapping[str, Any] | SessionMError | None


@dataclass(frozen=True)
class Submit:
    """Submit the job to SessionM."""


@dataclass(frozen=True)
class QueryStatus:
    """Request the job's state from SessionM."""


NextMove = Submit | QueryStatus | JobChange


def next_move(job: Job, reply: JobReply, now: float, timings: JobTimings) -> NextMove:
    """Return the next step with *job*, which is due.

    Args:
        job: the job as stored.
        reply: SessionM's answer to the submission or status request made just now.
        now: seconds since the epoch.
        timings: intervals and time limits.

    Raises:
        ValueError: the job has ended, or its file is not complete.
    """
    match job.state:
        case JobState.QUEUED:
            return _submit(job, now, timings)
        case JobState.SUBMITTING:
            return _submitted(job, reply, now, timings)
        case JobState.SUBMITTED | JobState.OVERDUE if reply is None and job.sessionm_id:
            return QueryStatus()
        case JobState.SUBMITTED | JobState.OVERDUE:
            return _follow(job, reply or {}, now, timings)
    raise ValueError(f"no next step for a job that is {job.state}")


def _submit(job: Job, now: float, timings: JobTimings) -> NextMove:
    if job.oldest_at is not None and now - job.oldest_at > timings.submit_backlog:
        # The remaining TTLs are no longer whole days.
        return _give_up(job, "it could not be submitted within a minute")
    return Submit()


def _submitted(job: Job, reply: JobReply, now: float, timings: JobTimings) -> JobChange:
    if reply is None:
        return _unanswered(job, now, timings)
    if isinstance(reply, SessionMError):
        return _not_accepted(job, reply, now, timings)
    return _accepted(job, reply, now, timings)


def _accepted(job: Job, reply: Mapping[str, Any], now: float, timings: JobTimings) -> JobChange:
    """SessionM has the job."""
    sessionm_id = shown(str(reply.get("id") or ""), 64)
    return JobChange(
        JobState.SUBMITTED,
        next_at=now if job.notified else now + timings.first_query,
        values={"sessionm_id": sessionm_id} if sessionm_id else {},
    )


def _not_accepted(job: Job, error: SessionMError, now: float, timings: JobTimings) -> JobChange:
    if error.may_have_worked:
        reason = f"its outcome is unknown: {redacted(error)}"
        return JobChange(job.state, reason, now + timings.outcome)
    if error.meaning in {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER}:
        return _give_up(job, f"SessionM refuses it: {redacted(error)}")
    # Down, throttling, or refusing our credentials: not a failure of the job.
    return _requeue(redacted(error), _retry_at(error, now, timings), attempts=job.attempts - 1)


def _unanswered(job: Job, now: float, timings: JobTimings) -> JobChange:
    """Decide whether SessionM has a job whose answer to the submission was lost."""
    if job.served_at is not None or job.notified:
        return _accepted(job, {}, now, timings)
    if job.source is Source.BACKLOG or job.attempts >= MAX_UNANSWERED_SUBMISSIONS:
        reason = "SessionM answered no submission of it, and never fetched its file"
        return _give_up(job, reason, only_unserved=True)
    return _requeue(job.reason, now, only_unserved=True)


def _follow(
    job: Job, reply: Mapping[str, Any] | SessionMError, now: float, timings: JobTimings
) -> JobChange:
    """Decide about a job that SessionM has, by its answer to a status request."""
    error = reply if isinstance(reply, SessionMError) else None
    answer = {} if isinstance(reply, SessionMError) else reply
    status = str(answer.get("status") or _notified(job, error, now, timings)).lower()
    waited = now - (job.submitted_at or now)
    of_backlog = job.source is Source.BACKLOG
    if status in _COMPLETED:
        return _completed(job, answer)
    if status in _FAILED:
        return _failed(job, redacted(answer.get("message") or "no reason given"), now, timings)
    if waited > (timings.report_backlog if of_backlog else timings.report):
        return _unreported(job, now, timings)
    if waited > timings.fetch and job.source is not Source.DROPIN and job.served_at is None:
        return _repeat(job, _NEVER_FETCHED, now, timings, only_unserved=True)
    if error and error.meaning in {*_TEMPORARY, Meaning.CREDENTIALS}:
        reason = f"SessionM cannot be asked: {redacted(error)}"
        return JobChange(job.state, reason, _retry_at(error, now, timings))
    wait = min(max(waited, timings.first_query), timings.longest_query)
    return JobChange(job.state, job.reason, now + wait)


def _notified(job: Job, error: SessionMError | None, now: float, timings: JobTimings) -> str:
    """Return the state of the notification if no status answer, which has row counts, will come."""
    is_temporary = error and error.meaning in _TEMPORARY and error.status not in _NEVER_ANSWERS
    if is_temporary and now - (job.notified_at or now) < timings.outage:
        return ""
    return job.notified


def _completed(job: Job, answer: Mapping[str, Any]) -> JobChange:
    message = answer.get("failed")
    failed_rows = message if type(message) is int and 0 < message <= max(job.rows, 0) else 0
    reason = f"SessionM could not do {failed_rows} of its rows" if failed_rows else ""
    if failed_rows and job.source is Source.BACKLOG:
        # SessionM does not say which rows failed, so each write is repeated by a single call.
        # Writing an expiring tag twice does no harm.
        return _give_up(job, reason)
    return JobChange(JobState.COMPLETED, reason, values={"failed_rows": failed_rows})


def _failed(job: Job, message: str, now: float, timings: JobTimings) -> JobChange:
    reason = f"SessionM reports that it failed: {message}"
    if job.served_at is None and job.source is Source.FILE:
        return _repeat(job, f"{reason}; {_NEVER_FETCHED}", now, timings)
    if job.counts:
        return _give_up(job, f"{reason}; some of its counters may have been counted")
    return _repeat(job, reason, now, timings)


def _unreported(job: Job, now: float, timings: JobTimings) -> JobChange:
    reason = "SessionM has not reported its end"
    if job.source is not Source.FILE:
        return _give_up(job, reason)
    return JobChange(JobState.OVERDUE, reason, now + timings.longest_query)


def _repeat(
    job: Job, reason: str, now: float, timings: JobTimings, *, only_unserved: bool = False
) -> JobChange:
    """Submit the job of a file again; after `MAX_SUBMISSIONS` submissions it needs a person."""
    if job.source is not Source.FILE or job.attempts >= MAX_SUBMISSIONS:
        return _give_up(job, reason, only_unserved=only_unserved)
    request_id = next_request_id(job.request_id)
    at = now + timings.retry
    return _requeue(reason, at, only_unserved=only_unserved, request_id=request_id)


def _requeue(
    reason: str, next_at: float, *, only_unserved: bool = False, **values: Any
) -> JobChange:
    values = {**UNSUBMITTED, **values}
    return JobChange(JobState.QUEUED, reason, next_at, only_unserved, values)


def resubmission(job: Job, attempts: int, now: float) -> JobChange:
    """Submit *job* with a new request id at once: an operator's order, or the file has changed."""
    request_id = next_request_id(job.request_id)
    return _requeue(job.reason, now, attempts=attempts, request_id=request_id)


def _give_up(job: Job, reason: str, *, only_unserved: bool = False) -> JobChange:
    """Deliver a job of the backlog by single calls; flag any other job for a person."""
    to = JobState.RELEASED if job.source is Source.BACKLOG else JobState.FAILED
    return JobChange(to, reason, only_unserved=only_unserved)


def _retry_at(error: SessionMError, now: float, timings: JobTimings) -> float:
    return now + max(timings.retry, error.retry_after or 0.0)


# Tokens of the bridge's URLs, recognized by their place in a URL, even a truncated one, or by
# their length.
_TOKENS = re.compile(r"((?:files|token)(?:%..|[^\w\s-])+)[\w-]+|[\w-]{43,}")


def redacted(message: object) -> str:
    """Return SessionM's message about a job without the tokens of the bridge's URLs."""
    return shown(_TOKENS.sub(r"\1…", str(message)), 300)
