"""`bridge move`: from one database to another, such as from SQLite to PostgreSQL."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bridge.cli.common import one_line
from bridge.database import Database, StoreUnavailableError, sqlite_path
from bridge.fields import counted
from bridge.outbox.move import Move
from bridge.parts import open_outbox

# A session with PostgreSQL needs a moment before it can have a lock.
LOCK_PATIENCE = 4.0


@click.command()
@click.option(
    "--from", "source", required=True, metavar="URL", help="sqlite:///… or postgresql://…"
)
@click.option("--to", "target", required=True, metavar="URL", help="Likewise; it may be empty.")
@click.option("--without-batches", is_flag=True, help="Leave batches that are not over behind.")
def move(source: str, target: str, *, without_batches: bool) -> None:
    """Copy the outbox into another database: what waits, is dead, or is remembered.

    \b
    Stop the bridge, move, set BRIDGE_DATABASE_URL, start:
      bridge move --from sqlite:///var/bridge.db --to postgresql://bridge@db/bridge

    With a long queue, move once while the bridge runs, then stop it and move again: the second
    time takes what has come and what has changed since. Nothing is copied twice, and the source
    stays as it is. Do not start a bridge on the source afterwards: it would deliver once more what
    waited there.

    Batches are not moved, so they have to be over. Cached lookups are not moved either; they are
    fetched again. A password is better kept out of the
    command line, in PGPASSWORD or ~/.pgpass.
    """  # noqa: D301 - click's mark for lines to be kept
    logging.getLogger("bridge").handlers = [logging.NullHandler()]
    if source == target:
        raise click.UsageError("--from and --to name the same database")
    with one_line(), _opened("--from", source) as ours, _opened("--to", target, new=True) as theirs:
        if ours.name == theirs.name:
            raise click.UsageError("--from and --to name the same database")
        still_running = not _held(ours)
        alone = _held(theirs)
        if still_running and not alone:
            raise click.ClickException(
                "bridges deliver from both databases: stop those on the one given as --from"
            )
        moving = Move(ours, theirs, alone=alone)
        if not without_batches:
            _check_batches(moving)
        _move(moving)
        if still_running:
            click.echo(
                "A bridge still delivers from --from: stop it, and run this once more before "
                "a bridge starts on --to."
            )


def _check_batches(moving: Move) -> None:
    if left := moving.left_behind():
        raise click.ClickException(
            f"batches that are not over cannot be moved ({left}): let the bridge on --from end "
            "them, or discard them (`bridge batch status`, `bridge batch discard ID`), or leave "
            "them behind with --without-batches"
        )


def _move(moving: Move) -> None:
    with click.progressbar(length=moving.length(), label="Moving", file=sys.stderr) as bar:
        moved = moving.run(bar.update)
    click.echo(
        f"{counted(moved.copied, 'event')} copied, {moved.renewed} brought up to date, "
        f"{moved.known} {'was' if moved.known == 1 else 'were'} there already."
    )


@contextmanager
def _opened(option: str, url: str, *, new: bool = False) -> Iterator[Database]:
    try:
        missing = url.startswith("sqlite:") and not new and not sqlite_path(url).is_file()
        database = open_outbox(url)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from None
    if missing:
        raise click.ClickException(f"{option}: there is no file {database.name}")
    try:
        try:
            database.migrate()
        except StoreUnavailableError as error:
            raise click.ClickException(f"{option}: {error}") from None
        yield database
    finally:
        database.close()


def _held(database: Database) -> bool:
    """Whether nobody else delivers from *database*, from now until we end."""
    until = time.monotonic() + LOCK_PATIENCE
    while not database.deliverer.try_acquire():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
