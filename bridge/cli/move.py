"""`bridge move`: copy one database into another, such as SQLite into PostgreSQL."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bridge.cli.common import one_line
from bridge.fields import counted
from bridge.ops.move import Move
from bridge.shared import open_outbox
from bridge.storage.database import Database, StoreUnavailableError
from bridge.storage.locks import BRAZE_DELIVERER, DELIVERER, Locks

# Seconds to acquire the locks: PostgreSQL must connect first, and a bridge may be stopping.
LOCK_TIMEOUT = 4.0


@click.command()
@click.option(
    "--from", "source", required=True, metavar="URL", help="sqlite:///… or postgresql://…"
)
@click.option("--to", "target", required=True, metavar="URL", help="The same; it may be empty.")
@click.option("--without-batches", is_flag=True, help="Do not copy unfinished batches.")
def move(source: str, target: str, *, without_batches: bool) -> None:
    """Copy the outbox into another database.

    \b
    Stop the bridge, move, set BRIDGE_DATABASE_URL, start:
      bridge move --from sqlite:///var/bridge.db --to postgresql://bridge@db/bridge

    The source is not changed, and an interrupted copy can be run again. Do not start a bridge on
    the source afterwards: it would deliver the queued writes a second time.

    Batches are not copied, so they must have ended. Cached lookups are not copied either; the
    bridge fetches them again. Give a password by PGPASSWORD or ~/.pgpass, not on the command line.
    """  # noqa: D301 - click's mark for lines to be kept
    logging.getLogger("bridge").handlers = [logging.NullHandler()]
    if source == target:
        raise click.UsageError("--from and --to name the same database")
    with one_line(), _opened("--from", source) as ours, _opened("--to", target, new=True) as theirs:
        if ours.name == theirs.name:
            raise click.UsageError("--from and --to name the same database")
        for option, database in (("--from", ours), ("--to", theirs)):
            if not _acquire_locks(database):
                raise click.ClickException(f"a bridge delivers from {option}: stop it first")
        moving = Move(ours, theirs)
        if not without_batches:
            _check_batches(moving)
        _move(moving)


def _check_batches(moving: Move) -> None:
    if left := moving.unfinished_batches():
        raise click.ClickException(
            f"{counted(left, 'batch has', 'batches have')} not ended, and cannot be copied: let "
            "the bridge on --from finish, or run `bridge batch status` and `bridge batch discard "
            "ID`, or copy without them by --without-batches"
        )


def _move(moving: Move) -> None:
    with click.progressbar(length=moving.total_steps(), label="Moving", file=sys.stderr) as bar:
        moved = moving.run(bar.update)
    click.echo(f"{counted(moved.copied, 'event')} copied, {moved.already_there} there already.")


@contextmanager
def _opened(option: str, url: str, *, new: bool = False) -> Iterator[Database]:
    try:
        database = open_outbox(url)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from None
    try:
        try:
            if not new:
                database.check_exists()
            database.migrate()
        except StoreUnavailableError as error:
            raise click.ClickException(f"{option}: {error}") from None
        yield database
    finally:
        database.close()


def _acquire_locks(database: Database) -> bool:
    """Acquire the locks of both deliverers until this process ends; return whether it worked."""
    until = time.monotonic() + LOCK_TIMEOUT
    return all(_acquire(database.locks, number, until) for number in (DELIVERER, BRAZE_DELIVERER))


def _acquire(locks: Locks, number: int, until: float) -> bool:
    while True:
        is_last = time.monotonic() > until
        try:
            if locks.try_acquire(number):
                return True
        except StoreUnavailableError:
            if is_last:
                raise
        if is_last:
            return False
        time.sleep(0.1)
