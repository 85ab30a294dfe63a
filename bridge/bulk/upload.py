"""Uploads: turn a file of customers into the files of SessionM's jobs."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bridge import clock
from bridge.bulk.model import ROWS_OF_JOB, Source
from bridge.bulk.repeats import LastValues
from bridge.bulk.segment import (
    FileRefusedError,
    Refused,
    Row,
    Segment,
    expires,
    sessionm_header,
    sessionm_rows,
)
from bridge.bulk.store import BatchStore, DiscardedError
from bridge.customer import CustomerKind
from bridge.fields import counted, csv_text

log = logging.getLogger(__name__)

# Called with each refused line.
OnRefused = Callable[[Refused], None]

# Rows of a stored block, and of a transaction.
BLOCK = 2000
# Rows in the preview of a file.
SHOWN = 5
# Hours within which a second upload of the same counters counts as a mistake. Less than a day, so
# that the same file can be uploaded daily.
SAME_ROWS_HOURS = 12


class PublicUrlError(Exception):
    """SessionM cannot fetch files from the bridge; ``str()`` names the setting."""

    def __init__(self) -> None:
        super().__init__(
            "BRIDGE_PUBLIC_URL is not set: SessionM fetches a batch file from there; "
            "for example BRIDGE_PUBLIC_URL=https://bridge.acme.com"
        )


class NothingUsableError(Exception):
    """A file without a single usable row; ``str()`` is one sentence."""


class SameRowsError(FileRefusedError):
    """A file of counters that was submitted in the last `SAME_ROWS_HOURS` hours."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"{_same_rows(batch_id)} Its counters would count twice: if that is meant, say so.",
            "again",
        )


def _same_rows(batch_id: str) -> str:
    return f"Batch {batch_id} of the last {SAME_ROWS_HOURS} hours has the same rows."


class FilteredFile:
    """The rows of an opened file without repeats. Iterate only once; this also counts the lines.

    A row after another TTL of the same tag is not a repeat, since the last TTL must win. In a file
    with its own tags, a counter that appears twice counts twice.

    Attributes:
        rows: number of rows for SessionM.
        refused, repeated: numbers of lines that are left out.
        counts: whether some rows are counters.
        first_rows, first_refused: for a preview.
    """

    def __init__(self, segment: Segment, on_refused: OnRefused) -> None:
        self._segment = segment
        self._on_refused = on_refused
        self.rows = 0
        self.refused = 0
        self.repeated = 0
        self.counts = False
        self.first_rows: list[Row] = []
        self.first_refused: list[Refused] = []

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            FileRefusedError: the file cannot be read to its end.
            StoreUnavailableError: there is no room for temporary files.
        """
        with LastValues() as last:
            for line in self._segment:
                if isinstance(line, Refused):
                    self.refused += 1
                    self._leave_out(line)
                elif (line.days is None and self._segment.own_tags) or last.changes(
                    line.days, line.customer.key, line.tag
                ):
                    self.rows += 1
                    self.counts = self.counts or line.days is None
                    if len(self.first_rows) < SHOWN:
                        self.first_rows.append(line)
                    yield line
                else:
                    self.repeated += 1
                    reason = "The same customer and tag are in an earlier line."
                    self._leave_out(Refused(line.line, reason))

    def _leave_out(self, refused: Refused) -> None:
        if len(self.first_refused) < SHOWN:
            self.first_refused.append(refused)
        self._on_refused(refused)

    def check(self) -> None:
        """Check that a line was usable.

        Raises:
            NothingUsableError: no line was usable.
        """
        if not self.rows:
            first = "".join(f" Line {one.line}: {one.reason}" for one in self.first_refused[:1])
            raise NothingUsableError(f"The file has no usable row.{first}")


@dataclass(frozen=True)
class Upload:
    """An accepted file: its batch, its number of jobs, and its rows.

    Attributes:
        warnings: sentences about possible mistakes.
    """

    batch_id: str
    jobs: int
    file: FilteredFile
    warnings: tuple[str, ...] = ()

    def as_json(self, status: str) -> dict[str, Any]:
        """Return it as JSON with *status*, ``accepted`` or ``counted``."""
        file = self.file
        return {
            "status": status,
            "id": self.batch_id,
            "rows": file.rows,
            "refused": file.refused,
            "repeated": file.repeated,
            "jobs": self.jobs,
            "warnings": list(self.warnings),
            "first_rows": [
                {row.customer.kind: row.customer.id, "tag": row.tag, "expires": expires(row.days)}
                for row in file.first_rows
            ],
            "first_refused": [{"line": r.line, "reason": r.reason} for r in file.first_refused],
        }


class Uploads:
    """Accepts files.

    Args:
        store: stores the files.
        public_url: the URL at which SessionM reaches the bridge, or ``None``.
    """

    def __init__(self, store: BatchStore, public_url: str | None) -> None:
        self._store = store
        self._public_url = public_url

    def check(self) -> None:
        """Check that SessionM can fetch files.

        Raises:
            PublicUrlError: the bridge has no public URL.
        """
        if self._public_url is None:
            raise PublicUrlError

    def count(
        self,
        segment: Segment,
        rows_of_job: int = ROWS_OF_JOB,
        on_refused: OnRefused = lambda _refused: None,
    ) -> Upload:
        """Return what `take_in` would return for *segment*; store nothing.

        Raises:
            FileRefusedError: the file cannot be read to its end.
            StoreUnavailableError: there is no room for temporary files.
        """
        file = FilteredFile(segment, on_refused)
        for _ in file:
            pass
        warnings = () if self._public_url else (f"{PublicUrlError()}.",)
        return Upload("", math.ceil(file.rows / rows_of_job), file, warnings)

    def take_in(
        self,
        segment: Segment,
        *,
        name: str,
        key_name: str,
        rows_of_job: int,
        again: bool,
        on_refused: OnRefused = lambda _refused: None,
    ) -> Upload:
        """Store the rows of *segment*, and queue them as jobs.

        Nothing is sent if this raises an exception, or if the process dies.

        Args:
            segment: the opened file.
            name: the name of the file, for people.
            key_name: the name of the API key that uploaded it.
            rows_of_job: maximum number of rows of a job.
            again: accept counters that were submitted in the last `SAME_ROWS_HOURS` hours.
            on_refused: called with each refused line.

        Raises:
            PublicUrlError: SessionM cannot fetch the file.
            NothingUsableError: the file has no usable row.
            FileRefusedError: the file cannot be read to its end.
            SameRowsError: the same counters were submitted in the last `SAME_ROWS_HOURS` hours.
            DiscardedError: the batch was discarded meanwhile.
            StoreUnavailableError: the file could not be stored.
        """
        self.check()
        header = sessionm_header(segment.kinds)
        batch_id = self._store.open_batch(Source.FILE, name, key_name, header)
        try:
            left_out = _RefusedList(self._store, batch_id, on_refused)
            file = FilteredFile(segment, left_out.add)
            jobs = self._write(batch_id, segment.kinds, file, rows_of_job)
            left_out.flush()
            file.check()
            warnings = () if again else self._check_repeat(batch_id, file)
            self._store.release(batch_id, refused=file.refused, repeated=file.repeated)
        except DiscardedError:
            raise
        except BaseException:
            self._store.drop(batch_id)
            raise
        log.info(
            "batch accepted with %s in %s",
            counted(file.rows, "row"),
            counted(jobs, "job"),
            extra={"action": "batch_accepted", "batch": batch_id},
        )
        return Upload(batch_id, jobs, file, warnings)

    def _write(
        self, batch_id: str, kinds: Sequence[CustomerKind], file: FilteredFile, rows_of_job: int
    ) -> int:
        """Write the rows of *file* into the files of jobs; return the number of jobs."""
        rows, jobs = iter(file), 0
        while block := list(islice(rows, min(BLOCK, rows_of_job))):
            job_id = self._store.open_job(batch_id)
            jobs += 1
            number, left, counts = 0, rows_of_job, False
            while block:
                lines = sessionm_rows(kinds, block)
                self._store.add_block(batch_id, job_id, number, len(block), lines)
                counts = counts or any(row.days is None for row in block)
                number, left = number + 1, left - len(block)
                block = list(islice(rows, min(BLOCK, left)))
            self._store.seal(batch_id, job_id, counts=counts)
        return jobs

    def _check_repeat(self, batch_id: str, file: FilteredFile) -> tuple[str, ...]:
        """Return a warning if the same rows were submitted recently.

        Raises:
            SameRowsError: some of these rows are counters.
        """
        since = clock.now() - SAME_ROWS_HOURS * 3600
        same = self._store.same_rows(batch_id, since)
        if not same:
            return ()
        if file.counts:
            raise SameRowsError(same)
        return (f"{_same_rows(same)} Writing expiring tags twice does no harm.",)


class _RefusedList:
    """Stores the list of refused lines, in blocks."""

    def __init__(self, store: BatchStore, batch_id: str, on_refused: OnRefused) -> None:
        self._store = store
        self._batch_id = batch_id
        self._on_refused = on_refused
        self._block: list[Refused] = []
        self._number = 0

    def add(self, refused: Refused) -> None:
        self._on_refused(refused)
        self._block.append(refused)
        if len(self._block) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        if self._block:
            self._store.add_refused(self._batch_id, self._number, refused_lines(self._block))
            self._number += 1
            self._block.clear()


def refused_lines(refused: Iterable[Refused]) -> str:
    """Return lines of the list of refused rows, without its header."""
    return csv_text(((one.line, one.reason) for one in refused), "\n")
