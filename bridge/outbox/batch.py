"""Batches: a file becomes SessionM's batch jobs, and each job is seen through to its end.

A job's file stands at a URL that nobody can guess, and SessionM cannot do a job whose file it
cannot have. So a submission whose outcome is unknown is settled without a doubt: if the file was
given out to its end, its URL is withdrawn, and then a repeat is no double; if it was, SessionM has
the job. All that happens is on disk before it happens, and a crash at any step goes on from there.
"""

import csv
import io
import logging
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bridge.customer import Customer, CustomerKind
from bridge.fields import MAX_TEXT, counted, shown
from bridge.intake.segment import (
    FileRefusedError,
    Refused,
    Row,
    Segment,
    customers_in,
    sessionm_header,
    sessionm_rows,
)
from bridge.locks import LostLockError
from bridge.outbox.backlog import Backlog, Held
from bridge.outbox.jobs import (
    ANEW,
    BatchState,
    DiscardedError,
    Job,
    Jobs,
    JobState,
    Source,
    next_request_id,
)
from bridge.outbox.plan import PUNCTUAL
from bridge.outbox.schema import State
from bridge.outbox.seen import Seen
from bridge.outbox.store import Finished
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM

log = logging.getLogger(__name__)

# Rows of one job, unless it is said otherwise. SessionM documents no limit (assumed: it has one).
SPLIT = 100_000
MOST_SPLIT = 1_000_000
BLOCK = 2000
SHOWN = 5
CALL_TIMEOUT = 30.0
# So many jobs of files at SessionM at once. The backlog's wait for none of them: they are few, and
# carry what is sent to customers now.
MOST_UNDER_WAY = 4
# A round of looking at jobs begins no more after so long: others may have become more urgent.
ROUND = 5.0
SETTLE_WRITES = 500
# A file that comes again within so many hours is taken for a mistake if its tags count. Less than
# a day: the same file may be meant once a day.
SAME_ROWS_HOURS = 12
# With so many questions in a row that SessionM was away for, a notification counts for the answer.
MOST_SILENCES = 3


@dataclass(frozen=True)
class Patience:
    """How long what is waited for, in seconds.

    Attributes:
        outcome: for a sign that SessionM took a job, where its answer to that was lost.
        fetch: for SessionM to ask for the file of a job that it took.
        report: for SessionM to say that a job is over; then it is flagged.
        report_backlog: the same for a job of the backlog, whose writes wait meanwhile.
        first_ask, longest_ask: between two questions after a job; each wait is double the last.
        retry: before a job that failed is submitted again, and while SessionM is away.
    """

    outcome: float = 60.0
    fetch: float = 7200.0
    report: float = 6 * 3600.0
    report_backlog: float = 3600.0
    first_ask: float = 5.0
    longest_ask: float = 300.0
    retry: float = 30.0


# A job of a file is submitted so often before it is split, or flagged.
TRIES = 2
# Fewer rows are not split.
LEAST_SPLIT = 100
# With one bad row in a job ten splits find it; many more find nothing.
MOST_SPLITS = 40

# What SessionM may say of a job, in its answers and notifications. Only "created" is documented;
# the others are assumed, and what is none of them counts as "not over".
_COMPLETED = {"completed", "complete", "done", "finished", "success", "succeeded"}
_FAILED = {"failed", "failure", "error", "errored", "cancelled", "canceled", "aborted"}


class PublicUrlError(Exception):
    """SessionM has no way to reach the bridge; ``str()`` says what to set."""

    def __init__(self) -> None:
        super().__init__(
            "BRIDGE_PUBLIC_URL is not set: SessionM fetches a batch file from there; "
            "for example BRIDGE_PUBLIC_URL=https://bridge.acme.com"
        )


class SameRowsError(FileRefusedError):
    """A file of counters that was submitted not long ago; ``str()`` is as of the others."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"{_same_rows(batch_id)} Its counters would count twice: if that is meant, say so.",
            "again",
        )


def _same_rows(batch_id: str) -> str:
    return f"Batch {batch_id} of the last {SAME_ROWS_HOURS} hours has the same rows."


class NothingUsableError(Exception):
    """A file without a single usable row; ``str()`` is one sentence."""


@dataclass
class Tally:
    """What became of a file's lines.

    Attributes:
        rows: what SessionM gets; the lines that it does not get are *refused* or *repeated*.
        counts: whether some of them are counters.
        warnings: sentences about what may not be meant.
    """

    rows: int = 0
    refused: int = 0
    repeated: int = 0
    jobs: int = 0
    batch_id: str = ""
    counts: bool = False
    warnings: list[str] = field(default_factory=list)
    first_rows: list[Row] = field(default_factory=list)
    first_refused: list[Refused] = field(default_factory=list)

    def check(self) -> None:
        """Raise `NothingUsableError` if no line was usable."""
        if not self.rows:
            first = "".join(f" Line {r.line}: {r.reason}" for r in self.first_refused[:1])
            raise NothingUsableError(f"The file has no usable row.{first}")


def sift(segment: Segment, tally: Tally) -> Iterator[Row | Refused]:
    """The lines of *segment*, repeats refused, counted in *tally*.

    A row whose tag had another TTL in between is no repeat: the last one is to win. A counter that
    stands twice in a file that names its own tags is meant twice.
    """
    with Seen() as seen:
        for line in segment:
            if isinstance(line, Refused):
                tally.refused += 1
                found: Row | Refused = line
            elif (line.days is None and segment.own_tags) or seen.is_news(
                line.days, line.customer.key, line.tag
            ):
                tally.rows += 1
                tally.counts = tally.counts or line.days is None
                if len(tally.first_rows) < SHOWN:
                    tally.first_rows.append(line)
                found = line
            else:
                tally.repeated += 1
                found = Refused(line.line, "The same customer and tag stand in an earlier line.")
            if isinstance(found, Refused) and len(tally.first_refused) < SHOWN:
                tally.first_refused.append(found)
            yield found


def nothing_failed(found: Mapping[str, Any]) -> str:
    """Why no job of a batch, as `Jobs.one` gives it, can be submitted again, and what to do."""
    if found["source"] == Source.DROPIN:
        return "The job of this batch is a client's, which alone can submit it again."
    if found["state"] != BatchState.COMPLETED:
        return f"No job of this batch has failed: it is {found['state']}."
    if not found["failed_rows"]:
        return "Every job of this batch is completed, and all of its rows are done."
    return (
        f"Every job of this batch is completed; why {counted(found['failed_rows'], 'row')} failed "
        "only SessionM can say, by the number of the job. Mend the file, and submit it as a new "
        "one; of counters only the rows that failed, since the others would count twice."
    )


def refused_lines(refused: Iterable[Refused]) -> str:
    """Lines of the list of refused rows; see `REFUSED_HEADER`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([one.line, one.reason] for one in refused)
    return text.getvalue()


REFUSED_HEADER = "line,reason\n"


class Batches:
    """Takes files in, and drives jobs.

    Args:
        jobs: where jobs are kept.
        held: the writes that leave with them.
        sessionm: who does them.
        public_url: where SessionM reaches the bridge.
        backlog_threshold: with more waiting writes than this they leave in bulk; 0 is never.
        outdate: told whose lookups a finished job has outdated, ``None`` for everybody's.
        record: records what became of writes.
        nudge: told that writes wait again.
    """

    def __init__(
        self,
        jobs: Jobs,
        held: Held,
        sessionm: SessionM,
        *,
        public_url: str | None,
        backlog_threshold: int = 0,
        outdate: Callable[[Iterable[Customer] | None], None] = lambda _customers: None,
        record: Callable[[list[Finished]], None] = lambda _finished: None,
        nudge: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
    ) -> None:
        self.jobs = jobs
        self._held = held
        self._sessionm = sessionm
        self._public_url = public_url
        self._outdate = outdate
        self._record = record
        self._nudge = nudge
        self._ending = threading.Event()
        # Questions about a job, by its id, that SessionM was away for.
        self._silences: Counter[int] = Counter()
        self.patience = patience or Patience()
        threshold = backlog_threshold if public_url else 0
        self.backlog = Backlog(jobs, held, threshold, SPLIT)

    @property
    def public_url(self) -> str:
        """Where SessionM reaches the bridge; raises `PublicUrlError` if that is not set."""
        if self._public_url is None:
            raise PublicUrlError
        return self._public_url

    def not_ready(self) -> list[str]:
        """Sentences about what is missing for a file to be submitted."""
        return [] if self._public_url else [f"{PublicUrlError()}."]

    # taking a file in

    def take_in(
        self,
        segment: Segment,
        *,
        name: str,
        key_name: str = "",
        split: int = SPLIT,
        again: bool = False,
        on_refused: Callable[[list[Refused]], None] = lambda _refused: None,
    ) -> Tally:
        """Store the rows of *segment* and let them go out; SessionM gets them *split* a job.

        *again* lets them count once more what they counted not long ago. Nothing goes out if this
        raises, or if the process dies in it.

        Raises:
            PublicUrlError: SessionM could not fetch the file.
            NothingUsableError: it has no usable row.
            FileRefusedError: it cannot be read to its end.
            SameRowsError: the same rows were submitted not long ago, and count.
            DiscardedError: somebody has discarded it meanwhile.
            StoreUnavailableError: it is not stored.
        """
        _ = self.public_url
        header = sessionm_header(segment.kinds)
        tally = Tally()
        tally.batch_id = self.jobs.open_batch(Source.FILE, name, key_name, header, time.time())
        try:
            writer = _Writer(self.jobs, tally, segment.kinds, split, on_refused)
            for line in sift(segment, tally):
                writer.add(line)
            writer.close()
            tally.check()
            if not again:
                self._doubt(tally)
            self.jobs.release(
                tally.batch_id,
                time.time(),
                rows=tally.rows,
                refused=tally.refused,
                repeated=tally.repeated,
            )
        except DiscardedError:
            raise
        except BaseException:
            self.jobs.drop(tally.batch_id)
            raise
        log.info(
            "a batch of %s in %s",
            counted(tally.rows, "row"),
            counted(tally.jobs, "job"),
            extra={"action": "batch_accepted", "batch": tally.batch_id},
        )
        return tally

    def _doubt(self, tally: Tally) -> None:
        """Warn of rows that were submitted not long ago; raise `SameRowsError` if they count."""
        since = time.time() - SAME_ROWS_HOURS * 3600
        if same := self.jobs.same_rows(tally.batch_id, since):
            if tally.counts:
                raise SameRowsError(same)
            tally.warnings.append(f"{_same_rows(same)} To write expiring tags twice does no harm.")

    def follow(self, order: Mapping[str, Any], answer: Mapping[str, Any], key_name: str) -> str:
        """Follow a job that a client submitted through us; its batch's id."""
        job = answer.get("tags")
        known = job if isinstance(job, dict) else {}
        request_id = shown(str(order.get("request_id", "")), MAX_TEXT)
        sessionm_id = shown(str(known.get("id", "")), 64)
        return self.jobs.follow(key_name, request_id, sessionm_id, time.time())

    # what people order

    def resubmit(self, batch_id: str) -> int | None:
        """Submit the failed jobs of a batch once more; how many, ``None`` if there is no such.

        Their counters may count twice: that is why a person decides it.
        """
        if self.jobs.one(batch_id) is None:
            return None
        found = self.jobs.again(batch_id, time.time())
        log.warning("batch resubmitted", extra={"action": "batch_resubmitted", "batch": batch_id})
        return found

    def discard(self, batch_id: str) -> int | None:
        """Give a batch up; how many of its jobs had not ended, ``None`` if there is no such."""
        if self.jobs.one(batch_id) is None:
            return None
        found = self.jobs.give_up(batch_id, time.time())
        log.warning("batch discarded", extra={"action": "batch_discarded", "batch": batch_id})
        return found

    # driving jobs

    def end(self) -> None:
        """Begin nothing more: the process ends."""
        self._ending.set()

    def drive(self, *, may_send: bool) -> None:
        """Do for every job what is to be done now. Only the process that delivers calls this."""
        until = time.monotonic() + ROUND
        for job in self._held.unsettled():
            self._try(self._settle_writes, job)
        for job in self._to_drive(may_send=may_send):
            if self._ending.is_set() or time.monotonic() > until:
                return
            self._try(partial(self._drive, may_send=may_send), job)

    def _try(self, step: Callable[[Job], None], job: Job) -> None:
        """Take a step with *job*; a failure puts it off, and stops no other."""
        try:
            step(job)
        except LostLockError:
            raise
        except Exception:
            extra = {"action": "batch_put_off", "batch": job.batch_id}
            log.exception("a batch job waits", extra=extra)
            self._put_off(job, self.patience.retry, job.reason)

    def _to_drive(self, *, may_send: bool) -> list[Job]:
        """Those of the backlog come first; of the others none waits for ever behind the rest."""
        now = time.time()
        room = MOST_UNDER_WAY - self.jobs.under_way() if may_send else 0
        others = [*self.jobs.due(now), *self.jobs.of_files(now, max(0, room))]
        others.sort(key=lambda job: (job.source is not Source.BACKLOG, job.next_at))
        return [*self.jobs.of_backlog(now, now - PUNCTUAL), *others]

    def _drive(self, job: Job, *, may_send: bool) -> None:
        if job.state is JobState.QUEUED:
            if job.oldest_at is not None and time.time() - job.oldest_at > PUNCTUAL:
                # What is left of its TTLs are no whole days any more.
                self._end_badly(job, "it could not be submitted within a minute")
            elif may_send:
                self._submit(job)
        elif job.state is JobState.SUBMITTING:
            self._find_out(job)
        else:
            self._ask(job)

    def _submit(self, job: Job) -> None:
        base = self._public_url
        if base is None:
            # It stays due: a bridge that is started with the URL submits it at once.
            if job.reason != _NO_URL:
                self._put_off(job, 0.0, _NO_URL)
            return
        file, notify = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        now = time.time()
        if not self.jobs.submitting(job, file, notify, now, now + self.patience.outcome):
            return
        self._silences.pop(job.id, None)
        sent = self.jobs.job(job.id)
        words = "id=JOB_ID&status=JOB_STATUS&request_id=JOB_REQUEST_ID"
        try:
            answer = self._sessionm.submit_batch(
                {
                    "request_id": sent.request_id,
                    "url": f"{base}/batches/files/{file}.csv",
                    "md5": sent.md5,
                    "notify": f"{base}/webhooks/sessionm/batch?token={notify}&{words}",
                },
                CALL_TIMEOUT,
            )
        except SessionMError as error:
            self._not_taken(sent, error)
            return
        _log("batch_submitted", job)
        self._taken(sent, _tags(answer))

    def _taken(self, job: Job, known: Mapping[str, Any]) -> None:
        """SessionM has the job; *known* is what it says of it."""
        now = time.time()
        current = self.jobs.job(job.id)
        self.jobs.move(
            job,
            JobState.SUBMITTED,
            now,
            sessionm_id=shown(str(known.get("id") or current.sessionm_id), 64),
            # A notification may have come before the answer.
            next_at=now if current.told else now + self.patience.first_ask,
            reason="",
        )

    def _not_taken(self, job: Job, error: SessionMError) -> None:
        now = time.time()
        if error.may_have_worked:
            self._put_off(job, self.patience.outcome, f"its outcome is unknown: {_words(error)}")
        elif error.meaning in {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER}:
            self._end_badly(job, f"SessionM refuses it: {_words(error)}")
        else:
            # Away, throttled, or our credentials refused: nothing of it is the job's fault.
            wait = max(self.patience.retry, error.retry_after or 0.0)
            self.jobs.move(
                job,
                JobState.QUEUED,
                now,
                **{**ANEW, "attempts": job.attempts - 1, "next_at": now + wait},
                reason=_words(error),
            )

    def _find_out(self, job: Job) -> None:
        """SessionM's answer to a submission is missing: does it have the job?"""
        if job.served_at is not None or job.told:
            self._taken(job, {})
        elif job.source is Source.BACKLOG or job.attempts >= _UNANSWERED_TRIES:
            reason = "SessionM answered no submission of it, and never fetched its file"
            if self.jobs.withdraw(job, time.time(), reason):
                self._end_badly(self.jobs.job(job.id), reason)
        else:
            self.jobs.withdraw(job, time.time(), job.reason)

    def _ask(self, job: Job) -> None:
        """What has become of a job that SessionM has? A notification is only a hint."""
        known, silence = self._shown(job)
        # It counts where SessionM cannot be asked: of an outage that is known only after a while.
        told = "" if silence and self._may_answer_soon(job, silence) else job.told
        status = str(known.get("status") or told).lower()
        now = time.time()
        waited = now - (job.submitted_at or now)
        if status in _COMPLETED:
            self._complete(job, known)
        elif status in _FAILED:
            self._failed(job, _words(known.get("message") or "no reason given"))
        elif waited > self._report_within(job):
            self._unreported(job)
        elif (
            waited > self.patience.fetch
            and job.source is not Source.DROPIN
            and self.jobs.withdraw(job, now, _NEVER_FETCHED)
        ):
            self._again_or_flag(self.jobs.job(job.id), _NEVER_FETCHED, may_split=False)
        else:
            self._ask_later(job, waited, silence)

    def _ask_later(self, job: Job, waited: float, silence: SessionMError | None) -> None:
        if silence and silence.meaning not in _NOT_TOLD:
            wait = max(self.patience.retry, silence.retry_after or 0.0)
            self._put_off(job, wait, f"SessionM cannot be asked: {_words(silence)}")
            return
        # Doubling: each wait is as long as the job has taken, within limits.
        wait = min(max(waited, self.patience.first_ask), self.patience.longest_ask)
        self._put_off(job, wait, job.reason)

    def _report_within(self, job: Job) -> float:
        of_backlog = job.source is Source.BACKLOG
        return self.patience.report_backlog if of_backlog else self.patience.report

    def _unreported(self, job: Job) -> None:
        """Flag a job that SessionM never reports; it is asked after all the same."""
        reason = "SessionM has not reported what became of it"
        if job.source is not Source.FILE:
            self._end_badly(job, reason)
            return
        later = time.time() + self.patience.longest_ask
        if self.jobs.move(job, JobState.OVERDUE, time.time(), next_at=later, reason=reason):
            _log("batch_overdue", job)

    def _shown(self, job: Job) -> tuple[Mapping[str, Any], SessionMError | None]:
        """What SessionM says of a job when asked, and why nothing if it does not tell.

        That it can be asked is assumed: no document names the call, so any answer is possible.
        """
        if not job.sessionm_id:
            return {}, None
        try:
            known = _tags(self._sessionm.read_batch(job.sessionm_id, CALL_TIMEOUT))
        except SessionMError as error:
            return {}, error
        self._silences.pop(job.id, None)
        return known, None

    def _may_answer_soon(self, job: Job, silence: SessionMError) -> bool:
        """Whether to ask after *job* again before its notification counts for an answer."""
        if silence.meaning not in _AWAY or silence.status in {405, 501}:
            return False
        self._silences[job.id] += 1
        return self._silences[job.id] < MOST_SILENCES

    def _complete(self, job: Job, known: Mapping[str, Any]) -> None:
        failed = known.get("failed")
        failed_rows = failed if isinstance(failed, int) and 0 < failed <= max(job.rows, 0) else 0
        if job.source is Source.BACKLOG and failed_rows:
            # Which rows is not told: each write goes singly, and tells its own end. To write an
            # expiring tag twice does no harm.
            self._end_badly(job, f"SessionM could not do {failed_rows} of its rows")
            return
        # Before the job counts as done: nobody may see it done and the tags as they were.
        self._outdate_lookups(job)
        reason = f"SessionM could not do {failed_rows} of its rows" if failed_rows else ""
        if self.jobs.move(
            job, JobState.COMPLETED, time.time(), failed_rows=failed_rows, reason=reason
        ):
            _log("batch_completed", job)
            self._settle_writes(self.jobs.job(job.id))

    def _outdate_lookups(self, job: Job) -> None:
        if job.source is Source.DROPIN:
            self._outdate(None)
            return
        self._outdate(
            customer
            for _rows, lines in self.jobs.blocks(job.id)
            for customer in customers_in(job.header, lines.decode())
        )

    def _failed(self, job: Job, reason: str) -> None:
        told = f"SessionM says that it failed: {reason}"
        if job.served_at is None and job.source is Source.FILE:
            self._again_or_flag(job, f"{told}; {_NEVER_FETCHED}", may_split=False)
        elif job.counts:
            self._end_badly(job, f"{told}; its counters may have been counted in part")
        else:
            self._again_or_flag(job, told, may_split=True)

    def _again_or_flag(self, job: Job, reason: str, *, may_split: bool) -> None:
        """Submit a job once more, in halves if that did not help; then it needs a person."""
        now = time.time()
        if job.source is not Source.FILE:
            self._end_badly(job, reason)
        elif job.attempts < TRIES:
            self.jobs.move(
                job,
                JobState.QUEUED,
                now,
                **{**ANEW, "next_at": now + self.patience.retry},
                request_id=next_request_id(job.request_id),
                reason=reason,
            )
        elif may_split and job.rows >= LEAST_SPLIT and self.jobs.splits(job.batch_id) < MOST_SPLITS:
            if self.jobs.split(job, now):
                _log("batch_split", job)
        else:
            self._end_badly(job, reason)

    def _end_badly(self, job: Job, reason: str) -> None:
        """Give a job up: the backlog's goes back to single delivery, a file's needs a person."""
        of_backlog = job.source is Source.BACKLOG
        state = JobState.RELEASED if of_backlog else JobState.FAILED
        if self.jobs.move(job, state, time.time(), reason=reason):
            _log("batch_released" if of_backlog else "batch_failed", job)
            if of_backlog:
                self.backlog.rest(time.time())
                self._settle_writes(self.jobs.job(job.id))

    def _settle_writes(self, job: Job) -> None:
        """Record the end of the writes that left with *job*, some at a time."""
        delivered = job.state is JobState.COMPLETED
        while not self._ending.is_set() and (members := self._held.members(job.id, SETTLE_WRITES)):
            now = time.time()
            self._record(
                [
                    Finished(
                        tuple(members),
                        State.DELIVERED if delivered else State.QUEUED,
                        now,
                        "delivered" if delivered else "batch_failed",
                        status=200 if delivered else 0,
                        milliseconds=round((now - (job.submitted_at or now)) * 1000),
                        error="" if delivered else f"batch {job.batch_id} did not work",
                        next_at=now,
                    )
                ]
            )
            self._held.let_go(members, now)
        self._nudge()

    def _put_off(self, job: Job, seconds: float, reason: str) -> None:
        self.jobs.put_off(job, time.time() + seconds, reason)


_UNANSWERED_TRIES = 5
_NO_URL = (
    "the running bridge was started without BRIDGE_PUBLIC_URL: set it where that one runs, and "
    "restart it, or send `bridge serve` a HUP"
)
_NEVER_FETCHED = "SessionM never fetched its file: can it reach BRIDGE_PUBLIC_URL?"
# Answers that say nothing about a job, and will not say more.
_NOT_TOLD = {Meaning.REFUSED, Meaning.UNKNOWN_CUSTOMER, Meaning.GARBLED}
# Failures that may pass.
_AWAY = {Meaning.UNREACHABLE, Meaning.UNANSWERED, Meaning.BUSY}


class _Writer:
    """Writes a file's rows into the blocks of one job after the other."""

    def __init__(
        self,
        jobs: Jobs,
        tally: Tally,
        kinds: tuple[CustomerKind, ...],
        split: int,
        on_refused: Callable[[list[Refused]], None],
    ) -> None:
        self._jobs = jobs
        self._tally = tally
        self._kinds = kinds
        self._split = split
        self._on_refused = on_refused
        self._rows: list[Row] = []
        self._refused: list[Refused] = []
        self._refused_blocks = 0
        self._job = 0
        self._blocks = 0
        self._written = 0
        self._counts = False

    def add(self, line: Row | Refused) -> None:
        if isinstance(line, Refused):
            self._refused.append(line)
            if len(self._refused) >= BLOCK:
                self._flush_refused()
            return
        self._rows.append(line)
        if len(self._rows) >= min(BLOCK, self._split - self._written):
            self._flush()

    def close(self) -> None:
        self._flush()
        self._flush_refused()
        self._seal()

    def _flush(self) -> None:
        if not self._rows:
            return
        if not self._job:
            self._job = self._jobs.open_job(self._tally.batch_id)
            self._tally.jobs += 1
        lines = sessionm_rows(self._kinds, self._rows)
        self._jobs.add_block(self._job, self._blocks, len(self._rows), lines, time.time())
        self._counts = self._counts or any(row.days is None for row in self._rows)
        self._blocks += 1
        self._written += len(self._rows)
        self._rows.clear()
        if self._written >= self._split:
            self._seal()

    def _seal(self) -> None:
        if self._job:
            self._jobs.seal(self._job, counts=self._counts)
        self._job = self._blocks = self._written = 0
        self._counts = False

    def _flush_refused(self) -> None:
        if self._refused:
            lines = refused_lines(self._refused)
            self._jobs.add_refused(self._tally.batch_id, self._refused_blocks, lines, time.time())
            self._on_refused(self._refused)
            self._refused_blocks += 1
            self._refused.clear()


def _tags(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    known = answer.get("tags")
    return known if isinstance(known, dict) else {}


# Our tokens by where they stand in a URL, which may be cut short, and by their length.
_TOKENS = re.compile(r"((?:files|token)(?:%..|[^\w\s-])+)[\w-]+|[\w-]{43,}")


def _words(said: object) -> str:
    """What SessionM says of a job, without the tokens of the URLs that it was given."""
    return shown(_TOKENS.sub(r"\1…", str(said)), 300)


def _log(action: str, job: Job) -> None:
    # Without the reason: SessionM's words may hold customers' ids.
    log.info(
        "batch job %s",
        action.removeprefix("batch_"),
        extra={"action": action, "batch": job.batch_id},
    )
