"""`bridge queue`: the outbox on the command line; and `bridge erase`."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from bridge.cli.common import connected, one_line
from bridge.customer import Customer
from bridge.fields import FieldError, counted, iso
from bridge.health import delivery_reasons, delivery_state
from bridge.outbox.events import PAGE
from bridge.outbox.operator import Done
from bridge.outbox.schema import State
from bridge.outbox.search import Filter, read_filter

Command = TypeVar("Command", bound=Callable[..., None])


def filters(command: Command) -> Command:
    """Give *command* the options that choose events."""
    for option in (
        click.option("--text", metavar="WORDS", help="Stands in the reason."),
        click.option("--since", metavar="TIME", help="2026-12-01T08:00:00Z, or how long ago: 2h."),
        click.option("--campaign", metavar="ID", help="A campaign's or Canvas's."),
        click.option("--customer", metavar="ID", help="user_id or external_id."),
        click.option("--state", type=click.Choice([state.value for state in State])),
    ):
        command = option(command)
    return command


@click.group()
def queue() -> None:
    """Look into the outbox and put it in order."""


@queue.command()
@click.option("--json", "as_json", is_flag=True)
def status(*, as_json: bool) -> None:
    """Tell how much waits, since when, what is dead, and what holds delivery up."""
    with one_line(), connected() as parts:
        backlog = parts.store.backlog()
        delivery = delivery_state(parts, backlog, time.time())
        paused = parts.operator.is_paused
    oldest_at = backlog.oldest_at or backlog.unknown_at
    told = {
        "queued": backlog.queued,
        "oldest": iso(oldest_at) if oldest_at else "",
        "waits_for_customers": backlog.waits_for_customers,
        "dead": backlog.dead,
        "paused_by_hand": paused,
        "state": delivery["state"],
        "reason": delivery["reason"],
    }
    if as_json:
        click.echo(json.dumps(told))
        return
    waits = f"{counted(backlog.queued, 'write')} wait{'s' if backlog.queued == 1 else ''}"
    whom = " for customers to be created" if backlog.waits_for_customers else ""
    since = f", the oldest since {told['oldest']}" if oldest_at else ""
    dead = "1 is dead" if backlog.dead == 1 else f"{backlog.dead} are dead"
    click.echo(f"{waits}{whom}{since}; {dead}.")
    if paused:
        click.echo("Delivery is paused by hand: bridge queue resume")
    if delivery["state"] == "stopped" or not paused:
        for reason in delivery_reasons(delivery):
            click.echo(reason)


@queue.command("list")
@filters
@click.option("--limit", default=PAGE, show_default=True, type=click.IntRange(1, 500))
@click.option("--before", default="", metavar="ID", help="Go on where a page ended.")
@click.option("--json", "as_json", is_flag=True)
def list_events(*, limit: int, before: str, as_json: bool, **given: Any) -> None:
    """List events, newest first."""
    with one_line(), connected() as parts:
        found = parts.events.find(_filter(given), limit, before)
    if as_json:
        click.echo(json.dumps(found.events, indent=2))
    for event in () if as_json else found.events:
        customer = next(iter(event["customer"].values()), "-")
        about = event["campaign_id"] or event["canvas_id"] or "-"
        click.echo(
            f"{event['id']}  {event['received_at']}  {event['state']:9}  {customer}  {about}"
            + ("  test" if event["test"] else "")
            + (f"  {event['reason']}" if event["reason"] else "")
        )
    if not (found.events or found.next):
        click.echo("No event matches.", err=True)
    elif not found.events:
        click.echo("No event matches among those looked at so far.", err=True)
    if found.next:
        click.echo(f"More: --before {found.next}", err=True)


@queue.command()
@click.argument("event_id")
def show(event_id: str) -> None:
    """Show one event with its body, writes and every try, as JSON."""
    with one_line(), connected() as parts:
        story = parts.events.story(event_id)
    if story is None:
        raise click.ClickException(f"there is no event {event_id}; see `bridge queue list`")
    click.echo(json.dumps(story, indent=2, ensure_ascii=False))


def _changes(command: Command) -> Command:
    for option in (
        click.option("--dry-run", is_flag=True, help="Only tell how many."),
        click.option("--all", "everything", is_flag=True, help="Without any filter."),
    ):
        command = option(command)
    return command


@queue.command()
@click.argument("event_ids", nargs=-1, metavar="[ID]...")
@filters
@_changes
def replay(event_ids: tuple[str, ...], *, dry_run: bool, everything: bool, **given: Any) -> None:
    """Send dead events once more: by id, or all that the filters match.

    With --state rejected, events that were refused are read again under the present rules.
    """
    wanted = _chosen(event_ids, given, dry_run=dry_run, everything=everything)
    with one_line(), connected() as parts:
        if wanted is None:
            _tell_each(event_ids, parts.operator.replay_one, "replayed")
        else:
            _tell(parts.operator.replay(wanted, dry_run=dry_run), "replayed", dry_run=dry_run)


@queue.command()
@click.argument("event_ids", nargs=-1, metavar="[ID]...")
@filters
@_changes
def discard(event_ids: tuple[str, ...], *, dry_run: bool, everything: bool, **given: Any) -> None:
    """Give events up: by id, or all dead ones (or those of --state) that the filters match."""
    wanted = _chosen(event_ids, given, dry_run=dry_run, everything=everything)
    with one_line(), connected() as parts:
        if wanted is None:
            _tell_each(event_ids, parts.operator.discard_one, "discarded")
        else:
            _tell(parts.operator.discard(wanted, dry_run=dry_run), "discarded", dry_run=dry_run)


@queue.command()
def pause() -> None:
    """Let no write go out until `bridge queue resume`."""
    with one_line(), connected() as parts:
        heard = parts.operator.pause()
    click.echo(
        "Paused. Webhooks are accepted and wait."
        if heard
        else "Ordered, but the deliverer has not heard of it yet: until then writes may go out."
    )


@queue.command()
def resume() -> None:
    """Let writes go out again."""
    with one_line(), connected() as parts:
        parts.operator.resume()
    click.echo("Resumed.")


@click.command()
@click.option("--user-id", help="SessionM's id.")
@click.option("--external-id", help="The id in the retailer's system.")
def erase(user_id: str | None, external_id: str | None) -> None:
    """Forget one customer everywhere: events, writes, cached lookups.

    By the other identifier too, where a lookup or an event has told the bridge which it is.
    """
    if bool(user_id) == bool(external_id):
        raise click.UsageError("give either --user-id or --external-id")
    with one_line(), connected() as parts:
        told = parts.erase(
            Customer("user_id", user_id) if user_id else Customer("external_id", external_id or "")
        )
    both = " The other identifier was known, and is erased too." if len(told.names) > 1 else ""
    click.echo(f"Erased: {counted(told.events, 'event')}, and what was cached.{both}")


def _filter(given: dict[str, Any]) -> Filter:
    try:
        return read_filter({k: v for k, v in given.items() if v is not None}, time.time())
    except FieldError as error:
        raise click.UsageError(f"--{error}") from None


def _chosen(
    event_ids: tuple[str, ...], given: dict[str, Any], *, dry_run: bool, everything: bool
) -> Filter | None:
    """The filter that chooses events; ``None`` where ids do."""
    if event_ids:
        if dry_run or everything or any(given.values()):
            raise click.UsageError("ids go without filters, --all and --dry-run")
        return None
    if not everything and not any(given.values()):
        raise click.UsageError("say which: an id, a filter, or --all")
    return _filter(given)


def _tell(done: Done, word: str, *, dry_run: bool) -> None:
    if dry_run:
        click.echo(f"{done.matched - len(done.refused)} of {done.matched} would be {word}.")
    else:
        click.echo(f"{done.changed} of {done.matched} {word}.")
    for refused in done.refused[:10]:
        click.echo(f"  not: {refused}", err=True)


def _tell_each(event_ids: tuple[str, ...], order: Callable[[str], Done | None], word: str) -> None:
    failed = False
    for event_id in event_ids:
        done = order(event_id)
        if done is not None and done.changed:
            click.echo(f"{event_id} {word}.")
            continue
        failed = True
        why = "there is no such event" if done is None else "; ".join(done.refused)
        click.echo(f"{event_id} not {word}: {why}", err=True)
    if failed:
        raise SystemExit(1)
