"""`bridge batch`: submit a file of customers as SessionM batch jobs."""

import io
import lzma
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import click

from bridge.bulk.model import GOING, MOST_ROWS_OF_JOB, ROWS_OF_JOB
from bridge.bulk.segment import (
    FileRefusedError,
    Refused,
    Segment,
    SegmentOptions,
    lines_of,
    open_segment,
    sessionm_header,
    sessionm_rows,
)
from bridge.bulk.store import REFUSED_HEADER, DiscardedError, why_nothing_failed
from bridge.bulk.upload import (
    SAME_ROWS_HOURS,
    NothingUsableError,
    PublicUrlError,
    Upload,
    refused_lines,
)
from bridge.cli.common import EXISTING_FILE, connected, one_line, options
from bridge.cli.output import Form, dump, forms, local, state, table, zone
from bridge.customer import CustomerKind
from bridge.fields import MAX_TEXT, FieldError, counted, shown
from bridge.fields import ttl as read_ttl
from bridge.ops.health import delivers
from bridge.parts import Parts

# Seconds between two reads of a batch's progress.
POLL = 0.5
FAILED_ROWS = (
    "  SessionM does not report which rows failed: ask SessionM with the number of the job. If\n"
    "  most rows failed, look up one of the customers at /connected-content/tags: not_found means\n"
    "  that SessionM does not know this identifier. Choose another by --id-column and --id-kind."
)
_MISTAKES = (FileRefusedError, NothingUsableError, PublicUrlError, DiscardedError)

Read = Callable[[int], bytes]

# A decorator that adds the options for the column of the customers.
id_options = options(
    click.option("--id-column", default="", metavar="NAME", help="The column of the customers."),
    click.option(
        "--id-kind",
        type=click.Choice(["user_id", "external_id"]),
        help="The kind of SessionM's identifier in that column.",
    ),
)


@click.group()
def batch() -> None:
    """Tag a segment with SessionM's batch jobs."""


@batch.command()
@click.argument("file", type=EXISTING_FILE)
@click.option("--tag", default="", metavar="T", help="The tag of every row, for a Braze export.")
@click.option(
    "--ttl", metavar="30d", help="The tag's lifetime in whole days; by default it is a counter."
)
@id_options
@click.option(
    "--split",
    default=ROWS_OF_JOB,
    show_default=True,
    type=click.IntRange(1, MOST_ROWS_OF_JOB),
    metavar="ROWS",
    help="Maximum number of rows of one job.",
)
@click.option(
    "--refused",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="The list of refused rows; by default FILE.refused.csv.",
)
@click.option(
    "--again",
    is_flag=True,
    help=f"Submit the same rows again within {SAME_ROWS_HOURS} hours.",
)
@click.option("--dry-run", is_flag=True, help="Only count, and show the first rows.")
@click.option("--wait", is_flag=True, help="Wait for SessionM, with a progress bar.")
@forms
def submit(
    file: Path,
    *,
    tag: str,
    ttl: str | None,
    id_column: str,
    id_kind: CustomerKind | None,
    split: int,
    refused: Path | None,
    again: bool,
    dry_run: bool,
    wait: bool,
    form: Form,
) -> None:
    """Submit FILE, a CSV in UTF-8, or a ZIP archive of one.

    FILE is a Braze segment export (customers in user_id; give --tag), or has SessionM's columns:
    user_id or external_id, tag, expires. A running bridge on the same database serves the file to
    SessionM at BRIDGE_PUBLIC_URL and follows the jobs.
    """
    refused_path = refused or file.with_name(file.name + ".refused.csv")
    with one_line():
        options = SegmentOptions(tag, read_ttl(ttl, "--ttl"), id_column, id_kind)
    with one_line(), file_mistakes(file), connected() as parts:
        with (
            opened_csv(file) as (read, size),
            _RefusedFile(refused_path, file) as refusals,
            click.progressbar(length=size, label="Reading", hidden=bool(form)) as bar,
        ):
            segment = open_segment(lines_of(_with_progress(read, bar)), options, parts.rules)
            if dry_run:
                upload = parts.uploads.count(segment, split, refusals.add)
            else:
                upload = parts.uploads.take_in(
                    segment,
                    name=shown(file.name, MAX_TEXT),
                    key_name="cli",
                    rows_of_job=split,
                    again=again,
                    on_refused=refusals.add,
                )
        # With --json or --csv, sentences for people go to stderr.
        _show_counts(upload, refused_path, tag if ttl is None else "", to_stderr=bool(form))
        if not dry_run:
            _report_submitted(parts, upload, form, wait=wait)
            return
        upload.file.check()
        if form:
            _dump(form, upload, "counted")
        else:
            _show_rows(segment, upload)


def _report_submitted(parts: Parts, upload: Upload, form: Form, *, wait: bool) -> None:
    """Print that a batch is submitted; with *wait*, follow it until it ends."""
    sentence = f"Batch {upload.batch_id} is submitted as {counted(upload.jobs, 'job')}."
    click.echo(sentence, err=bool(form))
    if not delivers(parts):
        click.echo(
            "No process delivers now: start `bridge serve` or `bridge deliver` to send it.",
            err=True,
        )
    if wait:
        _wait_for(parts, upload.batch_id, quiet=bool(form))
    if form and wait:
        found = _read(parts, upload.batch_id)
        dump(form, found, _job_rows(found))
    elif form:
        _dump(form, upload, "accepted")


@batch.command()
@click.argument("batch_id", required=False, metavar="[ID]")
@click.option("--wait", is_flag=True, help="Wait until it ends, with a progress bar.")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 500),
    help="Maximum number of batches in the list.",
)
@forms
def status(batch_id: str | None, *, form: Form, wait: bool, limit: int) -> None:
    """Show the latest batches, or one batch with its jobs."""
    with one_line(), connected() as parts:
        if batch_id is None:
            _list(parts.batches.find(limit), form)
            return
        if wait:
            _wait_for(parts, batch_id, quiet=bool(form))
        found = _read(parts, batch_id)
    if form:
        dump(form, found, _job_rows(found))
    else:
        _show(found)


def _dump(form: Form, upload: Upload, status: str) -> None:
    """Print the result of *upload*; the CSV has its numbers, without its first rows."""
    found = upload.as_json(status)
    dump(form, found, [{name: found[name] for name in found if not name.startswith("first_")}])


def _job_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"batch": found["id"], **job} for job in found["jobs"]]


def _show(found: dict[str, Any]) -> None:
    """Print one batch with its jobs as text."""
    for name, value in (
        ("Batch", found["id"]),
        ("State", state(found["state"])),
        ("Reason", found["reason"]),
        ("Created", f"{local(found['created_at'])} {zone()}"),
        ("Name", found["name"]),
        ("Rows", _progress(found)),
    ):
        if value:
            click.echo(f"{name:10}{value}")
    if found["refused"] + found["repeated"]:
        left_out = f"{counted(found['refused'], 'row')} refused, {_repeats(found['repeated'])}"
        click.echo(f"Left out  {left_out}")
    click.echo()
    table(
        ("JOB", "STATE", "ROWS", "FAILED", "IN SESSIONM", "REASON"),
        [
            (
                str(job["id"]),
                job["state"],
                str(job["rows"]),
                str(job["failed_rows"]),
                job["sessionm_id"] or "-",
                job["reason"],
            )
            for job in found["jobs"]
        ],
    )
    if found["failed_rows"]:
        click.echo(FAILED_ROWS)


@batch.command()
@click.argument("batch_id", metavar="ID")
def resubmit(batch_id: str) -> None:
    """Submit the failed jobs of a batch again. Their counters may count twice."""
    with one_line(), connected() as parts:
        batch = _read(parts, batch_id)
        found = parts.batches.resubmit(batch_id)
    if not found:
        raise click.ClickException(why_nothing_failed(batch).rstrip("."))
    click.echo(f"To be submitted again: {counted(found, 'job')}.")


@batch.command()
@click.argument("batch_id", metavar="ID")
def discard(batch_id: str) -> None:
    """Discard a batch. SessionM may still finish jobs that it has started."""
    with one_line(), connected() as parts:
        _read(parts, batch_id)
        found = parts.batches.discard(batch_id)
    if not found:
        raise click.ClickException("every job of this batch has ended: nothing was discarded")
    click.echo(f"Discarded: {counted(found, 'job')}.")


@contextmanager
def file_mistakes(file: Path) -> Iterator[None]:
    """Report errors about *file* in one line on stderr.

    Raises:
        click.ClickException: the file, or its list of refused rows, cannot be used.
    """
    try:
        yield
    except _MISTAKES as mistake:
        message = str(mistake).rstrip(".")
        if isinstance(mistake, FileRefusedError) and mistake.option:
            message += f" by --{mistake.option.replace('_', '-')}"
        raise click.ClickException(message) from None
    except OSError as error:
        reason = error.strerror or str(error)
        named = click.format_filename(file)
        raise click.ClickException(f"{named} or its list of refused rows: {reason}") from None
    except FieldError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def opened_csv(file: Path) -> Iterator[tuple[Read, int]]:
    """Open the CSV *file*, or the one in it if *file* is a ZIP archive, as Braze sends it.

    Yields:
        A function that reads up to a number of bytes, and the size of the CSV in bytes.

    Raises:
        FileRefusedError: the archive cannot be unpacked, or does not hold exactly one CSV file. The
            function that reads raises it too.
    """
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            yield stream.read, file.stat().st_size
        return
    with _unpacking():
        archive = zipfile.ZipFile(file)
    with archive:
        info = _only_csv(archive)
        with _unpacking():
            packed = archive.open(info)

        def read(size: int) -> bytes:
            with _unpacking():
                return packed.read(size)

        with packed:
            yield read, info.file_size


def _only_csv(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    found = [
        info
        for info in archive.infolist()
        # macOS adds a file of metadata of the same name for each file.
        if info.filename.lower().endswith(".csv") and not info.filename.startswith("__MACOSX/")
    ]
    if len(found) != 1:
        raise FileRefusedError(
            f"The archive holds {len(found)} CSV files: unpack it, and submit each."
        )
    return found[0]


@contextmanager
def _unpacking() -> Iterator[None]:
    """Turn errors of unpacking into one `FileRefusedError` with a sentence."""
    try:
        yield
    except NotImplementedError:
        # The error of zipfile for a compression that it does not have.
        raise FileRefusedError(
            "The archive uses an unknown compression: unpack it first."
        ) from None
    except RuntimeError:
        raise FileRefusedError("The archive is protected by a password: unpack it first.") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise FileRefusedError(
            f"The archive is damaged ({shown(str(error), 100)}): fetch it again."
        ) from None


def _with_progress(read: Read, bar: Any) -> Read:
    def read_and_update(size: int) -> bytes:
        chunk = read(size)
        bar.update(len(chunk))
        return chunk

    return read_and_update


class _RefusedFile:
    """The list of refused rows of *source*; the first refused row creates the file."""

    def __init__(self, path: Path, source: Path) -> None:
        self._path = path
        self._source = source
        self._file: io.TextIOWrapper | None = None

    def add(self, refused: Refused) -> None:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            self._file.write(REFUSED_HEADER)
        self._file.write(refused_lines([refused]))

    def __enter__(self) -> Self:
        if self._path.exists():
            self._check_replaceable()
            # Without this, the list of an earlier run would look like that of this run.
            self._path.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _check_replaceable(self) -> None:
        """Raise a `ClickException` if the present file is not a list of refused rows."""
        named = click.format_filename(self._path)
        if self._path.samefile(self._source):
            raise click.ClickException(
                f"{named} is the file itself: give --refused another path for the list"
            )
        if not (self._path.is_file() and _begins(self._path, REFUSED_HEADER.encode())):
            raise click.ClickException(
                f"{named} exists and is not a list of refused rows: move it away, or give "
                "--refused another path"
            )


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


def _show_counts(upload: Upload, refused_path: Path, counter: str, *, to_stderr: bool) -> None:
    """Print the numbers of rows; *counter* is the tag of the file if it is a counter, or ""."""
    file = upload.file
    lines = counted(file.rows + file.refused + file.repeated, "row")
    click.echo(
        f"{lines} in the file: {file.rows} to be sent, {file.refused} refused, "
        f"{_repeats(file.repeated)} left out.",
        err=to_stderr,
    )
    if file.refused or file.repeated:
        listed = click.format_filename(refused_path)
        click.echo(f"Rows left out are listed in {listed}", err=True)
    for warning in upload.warnings:
        click.echo(warning, err=True)
    if counter:
        click.echo(
            f"Without --ttl, {counter} is a counter: it increases by 1 for each customer.",
            err=to_stderr,
        )


def _show_rows(segment: Segment, upload: Upload) -> None:
    click.echo(f"SessionM would get {counted(upload.jobs, 'job')}; the first rows:\n")
    click.echo(sessionm_header(segment.kinds), nl=False)
    click.echo(sessionm_rows(segment.kinds, upload.file.first_rows), nl=False)


def _wait_for(parts: Parts, batch_id: str, *, quiet: bool) -> None:
    """Show the progress until the batch ends; unless *quiet*, raise if a part failed."""
    found = _read(parts, batch_id)
    with click.progressbar(length=found["rows"], label="SessionM", width=30, hidden=quiet) as bar:
        while found["state"] in GOING:
            bar.update(found["completed_rows"] - bar.pos)
            time.sleep(POLL)
            found = _read(parts, batch_id)
        bar.update(found["completed_rows"] - bar.pos)
    if quiet:
        return
    if found["state"] != "completed":
        raise click.ClickException(
            f"the batch is {found['state']}: {found['reason'] or 'see `bridge batch status`'}"
        )
    click.echo(f"Completed: {_progress(found)}.")
    if found["failed_rows"]:
        raise click.ClickException(f"{found['reason']}; see `bridge batch status {batch_id}`")


def _read(parts: Parts, batch_id: str) -> dict[str, Any]:
    found = parts.batches.one(batch_id)
    if found is None:
        raise click.ClickException(f"there is no batch {batch_id}; see `bridge batch status`")
    return found


def _list(found: list[dict[str, Any]], form: Form) -> None:
    if form:
        dump(form, found, found)
    elif found:
        header = ("ID", f"CREATED ({zone()})", "STATE", "ROWS", "SOURCE", "NAME", "REASON")
        table(header, [_columns(one) for one in found])
    else:
        click.echo("There is no batch yet: bridge batch submit FILE.csv")


def _columns(one: dict[str, Any]) -> tuple[str, ...]:
    created = local(one["created_at"])
    about = (one["source"], one["name"] or "-", one["reason"])
    return (one["id"], created, one["state"], _progress(one), *about)


def _progress(one: dict[str, Any]) -> str:
    """Return the numbers of done, failed and refused rows as text."""
    return (
        f"{one['done_rows']}/{counted(one['rows'], 'row')} done"
        + (f", {one['failed_rows']} failed" if one["failed_rows"] else "")
        + (f", {one['refused']} refused" if one["refused"] else "")
    )


def _repeats(number: int) -> str:
    return counted(number, "repeat")
