"""Output of the commands: tables for people, JSON and CSV for programs."""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import click

from bridge.clock import wall
from bridge.fields import STAMP, instant, spreadsheet_cell

# The format of a command's output; ``None`` is text for people.
Form = Literal["json", "csv"] | None
Row = Mapping[str, Any]

_COLOURS = {
    **dict.fromkeys(("delivered", "completed", "running", "replayed", "ok"), "green"),
    **dict.fromkeys(("dead", "failed", "stopped", "FAIL"), "red"),
    **dict.fromkeys(
        ("rejected", "expired", "paused", "held up", "unknown", "flagged", "released", "warn"),
        "yellow",
    ),
}


class OutputError(Exception):
    """The standard output cannot be written; the `OSError` is its cause."""


class Output(io.TextIOWrapper):
    """The standard output.

    A failed write raises `OutputError`, so that an `OSError` always concerns another file.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error.strerror) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error.strerror) from error


def forms(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the options ``--json`` and ``--csv``, as the argument *form*."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for a spreadsheet.")
    @functools.wraps(command)
    def with_form(*arguments: Any, as_json: bool, as_csv: bool, **options: Any) -> None:
        if as_json and as_csv:
            raise click.UsageError("give --json or --csv, not both")
        form: Form = "json" if as_json else "csv" if as_csv else None
        command(*arguments, form=form, **options)

    return with_form


def dump(form: Form, document: Any, rows: Iterable[Row] | None = None) -> None:
    """Print *document* as JSON, or *rows* as CSV: by default *document* as the only row."""
    if form == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo(csv_text([document] if rows is None else rows), nl=False)


def csv_text(rows: Iterable[Row]) -> str:
    """Return *rows* as CSV with a header; "" without rows.

    A list becomes one cell, with spaces between the items. A cell that a spreadsheet would read
    as a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    for number, row in enumerate(rows):
        if not number:
            writer.writerow(row)
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return spreadsheet_cell(value) if isinstance(value, str) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* in aligned columns under *header*, with names of states in colour."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    click.secho(_line(header, widths), bold=True)
    for row in rows:
        click.echo(_line(row, widths, styled=True))


def _line(cells: Sequence[str], widths: Sequence[int], *, styled: bool = False) -> str:
    # The last column is not padded, since trailing spaces could wrap the line.
    padded = [*map(str.ljust, cells[:-1], widths), cells[-1]]
    return "  ".join(map(state, padded) if styled else padded).rstrip()


def state(word: str) -> str:
    """Return *word* in the colour of its state, or unchanged if it is not a state."""
    return click.style(word, fg=_COLOURS.get(word.strip()))


def local(stamp: str) -> str:
    """Return a time such as ``2026-12-01T08:00:00Z`` in the machine's time zone."""
    at = instant(stamp) if stamp else None
    if at is None:
        return stamp or "-"
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def with_local_times(text: str) -> str:
    """Return *text* with its times as `local` returns them."""
    return STAMP.sub(lambda stamp: f"{local(stamp[0])} {zone()}", text)


def zone() -> str:
    """Return the present name of the machine's time zone."""
    return datetime.fromtimestamp(wall()).astimezone().tzname() or "local"
