"""`bridge batch`: a file of customers as one of SessionM's batch jobs."""

import io
import json
import lzma
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import click

from bridge.cli.common import connected, one_line
from bridge.customer import CustomerKind
from bridge.fields import MAX_TEXT, FieldError, counted, shown, ttl
from bridge.health import delivers
from bridge.intake.segment import (
    FileRefusedError,
    Refused,
    Segment,
    Wanted,
    lines_of,
    open_segment,
    sessionm_header,
    sessionm_rows,
)
from bridge.outbox.batch import (
    MOST_SPLIT,
    REFUSED_HEADER,
    SAME_ROWS_HOURS,
    SPLIT,
    NothingUsableError,
    PublicUrlError,
    Tally,
    nothing_failed,
    refused_lines,
    sift,
)
from bridge.outbox.jobs import DiscardedError
from bridge.parts import Parts

WATCH = 0.5
OVER = {"completed", "released", "failed", "discarded"}
FAILED_ROWS = (
    "  SessionM does not tell which rows failed: ask it by the number of the job. If most did,\n"
    "  look one of the customers up at /connected-content/tags: not_found means that SessionM\n"
    "  does not know it by that id, and --id-column and --id-kind choose another."
)
_MISTAKES = (FileRefusedError, NothingUsableError, PublicUrlError, DiscardedError)

Read = Callable[[int], bytes]
Command = TypeVar("Command", bound=Callable[..., None])
_Path = click.Path(exists=True, dir_okay=False, path_type=Path)


def id_options(command: Command) -> Command:
    """Give *command* the options that say which column of a file holds the customer."""
    for option in (
        click.option(
            "--id-kind",
            type=click.Choice(["user_id", "external_id"]),
            help="What it is to SessionM.",
        ),
        click.option(
            "--id-column", default="", metavar="NAME", help="Which column holds the customer."
        ),
    ):
        command = option(command)
    return command


@click.group()
def batch() -> None:
    """Tag a whole segment by SessionM's batch jobs, rather than one call each."""


@batch.command()
@click.argument("file", type=_Path)
@click.option("--tag", default="", metavar="T", help="For every customer, as in a Braze export.")
@click.option("--ttl", "lasting", metavar="30d", help="In whole days; without it the tag counts.")
@id_options
@click.option(
    "--split",
    default=SPLIT,
    show_default=True,
    type=click.IntRange(1, MOST_SPLIT),
    metavar="ROWS",
    help="Most rows of one job.",
)
@click.option(
    "--refused",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Where refused rows are listed; FILE.refused.csv if left out.",
)
@click.option(
    "--again",
    is_flag=True,
    help=f"Count the same rows once more within {SAME_ROWS_HOURS} hours.",
)
@click.option("--dry-run", is_flag=True, help="Only count, and show the first rows.")
@click.option("--wait", is_flag=True, help="Until SessionM has done it, with a progress bar.")
def submit(
    file: Path,
    *,
    tag: str,
    lasting: str | None,
    id_column: str,
    id_kind: CustomerKind | None,
    split: int,
    refused: Path | None,
    again: bool,
    dry_run: bool,
    wait: bool,
) -> None:
    """Submit FILE, a CSV in UTF-8, or a ZIP archive of one.

    It is a Braze segment export (customers in user_id; say --tag), or SessionM's own format:
    user_id or external_id, tag, expires. The running bridge, on the same database, serves the
    file to SessionM at BRIDGE_PUBLIC_URL and sees the jobs through.
    """
    listed = refused or file.with_name(file.name + ".refused.csv")
    with one_line(), file_mistakes(file), connected() as parts:
        wanted = Wanted(tag, ttl(lasting, "--ttl"), id_column, id_kind)
        if not dry_run:
            _ = parts.batches.public_url
        with (
            opened_csv(file) as (read, size),
            _RefusedFile(listed, file) as refusals,
            click.progressbar(length=size, label="Reading") as bar,
        ):
            segment = open_segment(lines_of(_watched(read, bar)), wanted, parts.rules)
            if dry_run:
                tally = _count(segment, refusals)
            else:
                tally = parts.batches.take_in(
                    segment,
                    name=shown(file.name, MAX_TEXT),
                    key_name="cli",
                    split=split,
                    again=again,
                    on_refused=refusals.add,
                )
        _tell(tally, listed)
        for warning in [*tally.warnings, *(parts.batches.not_ready() if dry_run else ())]:
            click.echo(warning, err=True)
        if tag and lasting is None:
            click.echo(f"Without --ttl {tag} is a counter: each customer's goes up by one.")
        if dry_run:
            tally.check()
            _show_rows(segment, tally, split)
            return
        click.echo(f"Batch {tally.batch_id} goes out as {counted(tally.jobs, 'job')}.")
        if not delivers(parts):
            click.echo(
                "No process delivers now: it goes out when `bridge serve` or `bridge deliver` "
                "runs.",
                err=True,
            )
        if wait:
            _follow(parts, tally.batch_id)


@batch.command()
@click.argument("batch_id", required=False, metavar="[ID]")
@click.option("--json", "as_json", is_flag=True)
@click.option("--wait", is_flag=True, help="Until it is over, with a progress bar.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500))
def status(batch_id: str | None, *, as_json: bool, wait: bool, limit: int) -> None:
    """Tell how batches stand: the latest, or one with its jobs."""
    with one_line(), connected() as parts:
        if batch_id is None:
            _list(parts.batches.jobs.find(limit), as_json=as_json)
            return
        if wait:
            _follow(parts, batch_id, quiet=as_json)
        found = _known(parts, batch_id)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(_line(found))
    for job in found["jobs"]:
        click.echo(
            f"  job {job['id']}  {job['state']:10}  {counted(job['rows'], 'row')}"
            + (f", {job['failed_rows']} failed" if job["failed_rows"] else "")
            + (f"  SessionM's {job['sessionm_id']}" if job["sessionm_id"] else "")
            + (f"  {job['reason']}" if job["reason"] else "")
        )
    if found["refused"] + found["repeated"]:
        left_out = f"{counted(found['refused'], 'row')} refused, {_repeats(found['repeated'])}"
        click.echo(f"  Left out of the file: {left_out}.")
    if found["failed_rows"]:
        click.echo(FAILED_ROWS)


@batch.command()
@click.argument("batch_id", metavar="ID")
def resubmit(batch_id: str) -> None:
    """Submit the failed jobs of a batch once more. Their counters may count twice."""
    with one_line(), connected() as parts:
        batch = _known(parts, batch_id)
        found = parts.batches.resubmit(batch_id)
    if not found:
        raise click.ClickException(nothing_failed(batch).rstrip("."))
    click.echo(f"To be submitted again: {counted(found, 'job')}.")


@batch.command()
@click.argument("batch_id", metavar="ID")
def discard(batch_id: str) -> None:
    """Give a batch up. What SessionM has in hand already it may still do."""
    with one_line(), connected() as parts:
        _known(parts, batch_id)
        found = parts.batches.discard(batch_id)
    if not found:
        raise click.ClickException("every job of this batch is over: nothing was discarded")
    click.echo(f"Discarded: {counted(found, 'job')}.")


@contextmanager
def file_mistakes(file: Path) -> Iterator[None]:
    """End with one line on stderr for a file that cannot be used."""
    try:
        yield
    except _MISTAKES as mistake:
        told = str(mistake).rstrip(".")
        if isinstance(mistake, FileRefusedError) and mistake.option:
            told += f" by --{mistake.option.replace('_', '-')}"
        raise click.ClickException(told) from None
    except OSError as error:
        reason = error.strerror or str(error)
        named = click.format_filename(file)
        raise click.ClickException(f"{named} or its list of refused rows: {reason}") from None
    except FieldError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def opened_csv(file: Path) -> Iterator[tuple[Read, int]]:
    """What reads the CSV, and its size; the one in *file* if that is an archive, as Braze sends it.

    Raises:
        FileRefusedError: the archive cannot be unpacked, or holds more than one; also when read.
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
        # A Mac puts what it knows of each file beside it, under the file's name.
        if info.filename.lower().endswith(".csv") and not info.filename.startswith("__MACOSX/")
    ]
    if len(found) != 1:
        raise FileRefusedError(
            f"The archive holds {len(found)} CSV files: unpack it, and submit each."
        )
    return found[0]


@contextmanager
def _unpacking() -> Iterator[None]:
    """Tell in one sentence why an archive cannot be unpacked."""
    try:
        yield
    except NotImplementedError:
        raise FileRefusedError(
            "The archive is packed in a way that is not known here: unpack it first."
        ) from None
    except RuntimeError:
        raise FileRefusedError("The archive is protected by a password: unpack it first.") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise FileRefusedError(
            f"The archive is damaged ({shown(str(error), 100)}): fetch it again."
        ) from None


def _watched(read: Read, bar: Any) -> Read:
    def read_on(size: int) -> bytes:
        chunk = read(size)
        bar.update(len(chunk))
        return chunk

    return read_on


class _RefusedFile:
    """The list of refused rows of *source*, made when there is the first."""

    def __init__(self, path: Path, source: Path) -> None:
        self._path = path
        self._source = source
        self._file: io.TextIOWrapper | None = None

    def add(self, refused: list[Refused]) -> None:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            self._file.write(REFUSED_HEADER)
        self._file.write(refused_lines(refused))

    def __enter__(self) -> Self:
        if self._path.exists():
            self._refuse_others()
            # A list of an earlier run would be taken for this one's.
            self._path.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _refuse_others(self) -> None:
        """Let nothing be replaced but such a list."""
        named = click.format_filename(self._path)
        if self._path.samefile(self._source):
            raise click.ClickException(
                f"{named} is the file itself: give --refused another path for the list"
            )
        if not (self._path.is_file() and _begins(self._path, REFUSED_HEADER.encode())):
            raise click.ClickException(
                f"{named} is there and no list of refused rows: move it away, or give --refused "
                "another path"
            )


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


def _count(segment: Segment, refusals: _RefusedFile) -> Tally:
    tally = Tally()
    for line in sift(segment, tally):
        if isinstance(line, Refused):
            refusals.add([line])
    return tally


def _tell(tally: Tally, listed: Path) -> None:
    lines = counted(tally.rows + tally.refused + tally.repeated, "row")
    click.echo(
        f"{lines} in the file: {tally.rows} to be sent, {tally.refused} refused, "
        f"{_repeats(tally.repeated)} left out."
    )
    if tally.refused or tally.repeated:
        click.echo(f"Rows left out are listed in {click.format_filename(listed)}", err=True)


def _show_rows(segment: Segment, tally: Tally, split: int) -> None:
    jobs = counted(-(-tally.rows // split), "job")
    click.echo(f"SessionM would get {jobs}; the first rows:\n")
    click.echo(sessionm_header(segment.kinds), nl=False)
    click.echo(sessionm_rows(segment.kinds, tally.first_rows), nl=False)


def _follow(parts: Parts, batch_id: str, *, quiet: bool = False) -> None:
    """Show how far SessionM is until the batch is over."""
    found = _known(parts, batch_id)
    if quiet:
        while found["state"] not in OVER:
            time.sleep(WATCH)
            found = _known(parts, batch_id)
        return
    with click.progressbar(length=found["rows"], label="SessionM", width=30) as bar:
        while True:
            bar.update(found["completed_rows"] - bar.pos)
            if found["state"] in OVER:
                break
            time.sleep(WATCH)
            found = _known(parts, batch_id)
    if found["state"] != "completed":
        raise click.ClickException(
            f"the batch is {found['state']}: {found['reason'] or 'see `bridge batch status`'}"
        )
    click.echo(f"Completed: {_done(found)}.")
    if found["failed_rows"]:
        raise click.ClickException(
            f"{found['reason']}; `bridge batch status {batch_id}` says what to look at"
        )


def _known(parts: Parts, batch_id: str) -> dict[str, Any]:
    found = parts.batches.jobs.one(batch_id)
    if found is None:
        raise click.ClickException(f"there is no batch {batch_id}; see `bridge batch status`")
    return found


def _list(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        click.echo(_line(one))
    if not found:
        click.echo("There is no batch yet: bridge batch submit FILE.csv")


def _done(one: dict[str, Any]) -> str:
    """How many rows worked, and how many SessionM or the bridge did not take."""
    return (
        f"{one['done_rows']}/{counted(one['rows'], 'row')} done"
        + (f", {one['failed_rows']} failed" if one["failed_rows"] else "")
        + (f", {one['refused']} refused" if one["refused"] else "")
    )


def _repeats(number: int) -> str:
    return counted(number, "repeat")


def _line(one: dict[str, Any]) -> str:
    share = one["done_rows"] / one["rows"] if one["rows"] else 0
    done = round(20 * share)
    return (
        f"{one['id']}  {one['created_at']}  {one['state']:9}  [{'#' * done}{'-' * (20 - done)}]  "
        f"{_done(one)}  {one['source']}  {one['name']}"
        + (f"  {one['reason']}" if one["reason"] else "")
    )
