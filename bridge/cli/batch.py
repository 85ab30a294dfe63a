"""`bridge batch`: a file of customers as one of SessionM's batch jobs."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import click

from bridge.cli.common import connected, one_line
from bridge.customer import CustomerKind
from bridge.fields import FieldError, ttl
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
    SPLIT,
    NothingUsableError,
    PublicUrlError,
    Tally,
    refused_lines,
    sift,
)
from bridge.outbox.jobs import DiscardedError
from bridge.parts import Parts

WATCH = 0.5
OVER = {"completed", "released", "failed", "discarded"}
_MISTAKES = (FileRefusedError, NothingUsableError, PublicUrlError, DiscardedError)

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
            opened_csv(file) as (stream, size),
            _RefusedFile(listed) as refusals,
            click.progressbar(length=size, label="Reading") as bar,
        ):
            segment = open_segment(lines_of(_watched(stream, bar)), wanted, parts.rules)
            if dry_run:
                tally = _count(segment, refusals)
            else:
                tally = parts.batches.take_in(
                    segment,
                    name=file.name,
                    key_name="cli",
                    split=split,
                    on_refused=refusals.add,
                )
        _tell(tally, listed)
        if tag and lasting is None:
            click.echo(f"Without --ttl {tag} is a counter: each customer's goes up by one.")
        if dry_run:
            tally.check()
            _show_rows(segment, tally, split)
            return
        click.echo(f"Batch {tally.batch_id}: {tally.jobs} job(s) wait to be submitted.")
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
            f"  job {job['id']}  {job['state']:10}  {job['rows']} rows"
            + (f", {job['failed_rows']} failed" if job["failed_rows"] else "")
            + (f"  SessionM's {job['sessionm_id']}" if job["sessionm_id"] else "")
            + (f"  {job['reason']}" if job["reason"] else "")
        )
    if found["refused"] + found["repeated"]:
        click.echo(f"  {found['refused']} rows were refused, {found['repeated']} were repeats.")


@batch.command()
@click.argument("batch_id", metavar="ID")
def resubmit(batch_id: str) -> None:
    """Submit the failed jobs of a batch once more. Their counters may count twice."""
    with one_line(), connected() as parts:
        _known(parts, batch_id)
        found = parts.batches.resubmit(batch_id)
    if not found:
        raise click.ClickException("no job of this batch has failed: nothing was submitted")
    click.echo(f"{found} job(s) wait to be submitted again.")


@batch.command()
@click.argument("batch_id", metavar="ID")
def discard(batch_id: str) -> None:
    """Give a batch up. What SessionM has in hand already it may still do."""
    with one_line(), connected() as parts:
        _known(parts, batch_id)
        found = parts.batches.discard(batch_id)
    if not found:
        raise click.ClickException("every job of this batch is over: nothing was discarded")
    click.echo(f"{found} job(s) discarded.")


@contextmanager
def file_mistakes(file: Path) -> Iterator[None]:
    """End with one line on stderr for a file that cannot be used."""
    try:
        yield
    except _MISTAKES as mistake:
        raise click.ClickException(str(mistake).rstrip(".")) from None
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(f"{file} or its list of refused rows: {reason}") from None
    except FieldError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def opened_csv(file: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The CSV and its size; the one in *file* if that is an archive, as Braze sends it."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            yield stream, file.stat().st_size
        return
    with zipfile.ZipFile(file) as archive:
        names = [info for info in archive.infolist() if info.filename.lower().endswith(".csv")]
        if len(names) != 1:
            raise click.ClickException(
                f"{file} holds {len(names)} CSV files: unpack it, and submit each"
            )
        with archive.open(names[0]) as stream:
            yield stream, names[0].file_size


def _watched(stream: IO[bytes], bar: Any) -> Any:
    def read(size: int) -> bytes:
        chunk = stream.read(size)
        bar.update(len(chunk))
        return chunk

    return read


class _RefusedFile:
    """The list of refused rows, made when there is the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.TextIOWrapper | None = None

    def add(self, refused: list[Refused]) -> None:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            self._file.write(REFUSED_HEADER)
        self._file.write(refused_lines(refused))

    def __enter__(self) -> Self:
        # A list of an earlier run would be taken for this one's.
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _count(segment: Segment, refusals: _RefusedFile) -> Tally:
    tally = Tally()
    for line in sift(segment, tally):
        if isinstance(line, Refused):
            refusals.add([line])
    return tally


def _tell(tally: Tally, listed: Path) -> None:
    click.echo(f"{tally.rows} rows; {tally.refused} refused, {tally.repeated} repeats left out.")
    if tally.refused or tally.repeated:
        click.echo(f"Refused rows are listed in {listed}", err=True)


def _show_rows(segment: Segment, tally: Tally, split: int) -> None:
    click.echo(f"SessionM would get {-(-tally.rows // split)} job(s); the first rows:\n")
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
    click.echo(f"Completed: {found['completed_rows']} rows, {found['failed_rows']} failed.")


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


def _line(one: dict[str, Any]) -> str:
    share = one["completed_rows"] / one["rows"] if one["rows"] else 0
    done = round(20 * share)
    return (
        f"{one['id']}  {one['created_at']}  {one['state']:9}  [{'#' * done}{'-' * (20 - done)}]  "
        f"{one['completed_rows']}/{one['rows']} rows  {one['source']}  {one['name']}"
        + (f"  {one['reason']}" if one["reason"] else "")
    )
