"""`bridge queue`: the outbox on the command line; and `bridge erase`."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import click

from bridge import clock
from bridge.cli.common import connected, one_line, options
from bridge.cli.output import Form, Row, dump, forms, local, state, table, with_local_times, zone
from bridge.customer import read_identifier
from bridge.fields import (
    FieldError,
    as_duration,
    counted,
    instant,
    is_in_quotes,
    iso,
    shown,
    span,
)
from bridge.ops.health import delivers, look
from bridge.ops.incidents import Incident, as_json
from bridge.ops.operator import Done
from bridge.ops.outlook import outlook
from bridge.outbox.events import PAGE, SHOWN_TEXTS
from bridge.outbox.model import Direction, State
from bridge.outbox.search import Filter, read_filter
from bridge.parts import Parts
from bridge.storage.database import StoreUnavailableError

# The operator's name in the history of events.
BY = "command line"
# Seconds between two looks of `queue status --watch`.
WATCH = 2.0
# Campaigns of an incident up to which they are named; more are counted.
MOST_NAMED = 3


# The options that choose events.
filters = options(
    click.option(
        "--state",
        type=click.Choice([one.value for one in State]),
        help="State of the events; without it, replay and discard take dead events.",
    ),
    click.option(
        "--direction",
        type=click.Choice([one.value for one in Direction]),
        help="to_sessionm: Braze's webhooks; to_braze: SessionM's messages.",
    ),
    click.option("--customer", metavar="ID", help="The customer's user_id or external_id."),
    click.option("--campaign", metavar="ID", help="API identifier of the campaign or Canvas."),
    click.option("--since", metavar="TIME", help="Received since: 2h, 7d or 2026-12-01T08:00:00Z."),
    click.option("--text", metavar="WORDS", help="Words of the reason, next to each other."),
)


class _InOrder(click.Group):
    """A group whose help lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(self.commands)


@click.group(cls=_InOrder)
def queue() -> None:
    """Look into the outbox; replay and discard events; pause.

    \b
    At night:
      bridge queue status                         what is wrong, and what to do
      bridge queue list --state dead              events that SessionM or Braze refused
      bridge queue show ID                        one event, with each call
      bridge queue replay --state dead --dry-run  how many would be sent again
      bridge queue replay --state dead            send them again
    """  # noqa: D301 - click's mark for lines to be kept


@queue.command()
@forms
@click.option("--watch", is_flag=True, help=f"Print it every {WATCH:g} s until Ctrl-C.")
@click.option(
    "--past",
    is_flag=True,
    help="Add the incidents of the last 30 days that are over; with --csv, a line for each.",
)
@click.option(
    "--exit-code", is_flag=True, help="Exit with 1 if the status is degraded or down, for scripts."
)
def status(*, form: Form, watch: bool, past: bool, exit_code: bool) -> None:
    """Show the backlog, dead writes, and what holds delivery up."""
    with one_line(), connected() as parts:
        while True:
            found, incidents = _status(parts, past=past)
            if watch:
                # Nothing where the output is no terminal.
                click.clear()
            if form:
                dump(form, found, _incident_rows(incidents) if past else [_columns_of(found)])
            else:
                if watch:
                    click.echo(f"{local(iso(clock.now()))} {zone()}")
                ids = (braze_id for one in incidents for braze_id in one.extent.campaigns)
                _show_status(found, incidents, parts.campaign_names(ids))
            if not watch:
                break
            time.sleep(WATCH)
    if exit_code and found["status"] != "ok":
        raise click.ClickException(f"the status is {found['status']}")


def _status(parts: Parts, *, past: bool) -> tuple[Row, list[Incident]]:
    """Return the state of delivery and the incidents, as `/health` reports them.

    *past*: also the incidents that are over.

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    health, incidents = look(parts)
    incidents = [one for one in incidents if past or one.until is None]
    checks = health["checks"]
    if "as_of" in checks["store"]:
        # The figures are older ones.
        raise StoreUnavailableError(checks["store"]["error"])
    delivery, to_braze = checks["delivery"], checks.get("delivery_to_braze", {})
    is_known = checks["store"]["state"] == "ok"
    return {
        "status": health["status"],
        "database": parts.store.database.name,
        "state": delivery["state"] if is_known else "unknown",
        "held_by": delivery["held_by"],
        "reason": delivery["reason"],
        "paused_by_hand": delivery["held_by"] == "hand",
        "queued": delivery["queued"],
        "oldest": _oldest(delivery),
        "waits_for_customers": delivery["waits_for_customers"],
        "unknown_customer_seconds": delivery["unknown_customer_seconds"],
        "unknown_customer_writes": delivery["unknown_customer_writes"],
        "rate_per_second": delivery.get("rate_per_second", 0.0),
        "done_in_seconds": delivery.get("done_in_seconds", 0),
        "dead": delivery["dead"],
        "dead_events": checks["store"]["events"][State.DEAD],
        "to_braze": {
            "state": to_braze.get("state", "off") if is_known else "unknown",
            "held_by": to_braze.get("held_by", ""),
            "reason": to_braze.get("reason", ""),
            "queued": to_braze.get("queued", 0),
            "oldest": _oldest(to_braze) if to_braze else "",
            "done_in_seconds": to_braze.get("done_in_seconds", 0),
            "dead": to_braze.get("dead", 0),
        },
        "delivery": delivery,
        "delivery_to_braze": to_braze,
        "incidents": [as_json(one) for one in incidents],
    }, incidents


def _oldest(queue: Row) -> str:
    """Return when the oldest write or message of a check of `/health` was accepted, or ""."""
    age = queue["unknown_customer_seconds"] if queue["waits_for_customers"] else 0
    return iso(clock.now() - (age or queue["oldest_seconds"])) if queue["queued"] else ""


def _columns_of(found: Row) -> Row:
    """*found* without its details, and with the codes of the open incidents."""
    flat = {name: value for name, value in found.items() if not isinstance(value, (dict, list))}
    to_braze = {f"to_braze_{name}": value for name, value in found["to_braze"].items()}
    opened = [one["code"] for one in found["incidents"] if "until" not in one]
    return {**flat, **to_braze, "incidents": opened}


def _incident_rows(incidents: list[Incident]) -> list[Row]:
    return [{"code": "", "since": "", "until": "", **as_json(one)} for one in incidents]


def _show_status(found: Row, incidents: list[Incident], names: Mapping[str, str]) -> None:
    delivery, to_braze = found["delivery"], found["to_braze"]
    click.echo(f"Database  {found['database']}")
    click.echo(f"Delivery  {_in_a_word(found)}")
    waits, forecast = counted(found["queued"], "write"), outlook(delivery)
    if found["waits_for_customers"]:
        waits += ", waiting for customers to be created"
    elif unknown := found["unknown_customer_writes"]:
        waits += f", {unknown:,} of them waiting for customers to be created"
        forecast = f"the others: {forecast}"
    click.echo(f"Backlog   {'; '.join(filter(None, (waits, forecast)))}")
    if found["oldest"]:
        oldest = f"Oldest    {local(found['oldest'])} {zone()}"
        oldest += f", {span(max(1, clock.now() - (instant(found['oldest']) or 0.0)))} ago"
        if found["unknown_customer_seconds"] and not found["waits_for_customers"]:
            unknown = span(found["unknown_customer_seconds"])
            oldest += (
                f", not counting writes that wait for their customer to be created ({unknown})"
            )
        click.echo(oldest)
    click.echo(f"Dead      {_dead(found)}")
    if to_braze["state"] != "off":
        waits = f"{counted(to_braze['queued'], 'message')} waiting"
        waits = "; ".join(filter(None, (waits, outlook(found["delivery_to_braze"]))))
        click.echo(f"To Braze  {_in_a_word(to_braze)}, {to_braze['dead']} dead, {waits}")
    opened = [one for one in incidents if one.until is None]
    for one in opened:
        _show_incident(one, names)
    if not opened:
        click.echo("\nNo incident is open.")
    for one in incidents:
        if one.until is not None:
            lasted = f"{local(iso(one.until))} {zone()}, for {span(max(1, one.until - one.since))}"
            click.echo(f"\nOver: {local(iso(one.since))} to {lasted}{_numbers(one, names)}")
            click.echo(f"  at its worst: {with_local_times(one.cause.reason)}")


def _dead(found: Row) -> str:
    """Return the number of dead events, with their writes and messages."""
    numbers = {"write": found["dead"], "message": found["to_braze"]["dead"]}
    parts = ", ".join(counted(number, unit) for unit, number in numbers.items() if number)
    if not (parts and found["dead_events"]):
        # An event with a queued write beside its dead one is not dead.
        return parts or "0 writes"
    return f"{counted(found['dead_events'], 'event')} ({parts})"


def _in_a_word(found: Row) -> str:
    is_held = found["state"] == "running" and found["held_by"]
    return state("held up" if is_held else found["state"])


def _show_incident(one: Incident, names: Mapping[str, str]) -> None:
    cause = one.cause
    click.secho(f"\n{with_local_times(cause.reason)}", fg="yellow")
    since = f"since {local(iso(one.since))} {zone()}, for {span(max(1, clock.now() - one.since))}"
    click.echo(f"  {since}{_numbers(one, names)}")
    click.echo(f"  -> {with_local_times(cause.do)}")
    for command in _commands_for(one):
        click.echo(f"     {command}")


def _numbers(one: Incident, names: Mapping[str, str]) -> str:
    """Return the extent of *one* for the end of a line; "" without any."""
    extent, numbers = one.extent, []
    if extent.writes:
        numbers.append(extent.amount(one.cause.unit))
        least = "at least " if extent.is_minimum else ""
        numbers.append(f"{least}{counted(extent.customers, 'customer')}")
        few = [names.get(one, one) for one in extent.campaigns[: MOST_NAMED + 1]]
        campaigns = counted(len(extent.campaigns), "campaign")
        numbers.append(campaigns + (f" ({', '.join(few)})" if len(few) <= MOST_NAMED else ""))
    if extent.webhooks:
        numbers.append(f"{counted(extent.webhooks, 'webhook')} answered 503")
    if extent.lookups:
        numbers.append(f"{counted(extent.lookups, 'lookup')} without an answer in time")
    return f"; {', '.join(numbers)}" if numbers else ""


def _commands_for(one: Incident) -> Iterator[str]:
    """Yield the commands that show the events of *one*, and send dead ones again."""
    search = one.cause.search
    options = " ".join(f"--{name} {shlex.quote(value)}" for name, value in search.items())
    if one.extent.writes:
        yield f"bridge queue list {options}"
    if one.cause.code.startswith("dead_") and one.cause.order != "look":
        yield f"bridge queue replay {options} --dry-run"


@queue.command("list")
@filters
@click.option(
    "--limit",
    default=PAGE,
    show_default=True,
    type=click.IntRange(1, 500),
    metavar="N",
    help="Most events to print, 1 to 500.",
)
@click.option("--before", default="", metavar="ID", help="Only events that are older than this.")
@forms
def list_events(*, limit: int, before: str, form: Form, **given: Any) -> None:
    """List events, newest first."""
    wanted = _filter(given)
    with one_line(), connected() as parts:
        found = parts.events.find(wanted, limit, before)
        is_waiting = any(event["state"] == State.QUEUED for event in found.events)
        held = parts.chronicle.delivery_reasons() if is_waiting else []
        ids = (event["campaign_id"] or event["canvas_id"] for event in found.events)
        names = parts.campaign_names(ids)
    if form:
        dump(form, found.events, [_flat(event) for event in found.events])
    elif found.events:
        received = f"RECEIVED ({zone()})"
        header = (received, "STATE", "TO", "CAMPAIGN OR CANVAS", "CUSTOMER", "ID", "REASON")
        table(header, [_columns(event, names) for event in found.events])
    if not (found.events or found.next):
        click.echo("No event matches.", err=True)
    elif not found.events:
        click.echo("No event matches among those looked at so far.", err=True)
    if found.next:
        click.echo(f"There are more: add --before {found.next}", err=True)
    for reason in () if form else held:
        click.echo(f"Why queued events wait: {with_local_times(reason)}", err=True)
    if found.events and not found.next and not form:
        click.echo("One of them with each call: bridge queue show ID", err=True)


def _columns(event: Row, names: Mapping[str, str]) -> tuple[str, ...]:
    reason = " ".join(filter(None, ["test send" if event["test"] else "", event["reason"]]))
    braze_id = event["campaign_id"] or event["canvas_id"] or "-"
    return (
        local(event["received_at"]),
        event["state"],
        _SYSTEMS[event["direction"]],
        names.get(braze_id, braze_id),
        next(iter(event["customer"].values()), "-"),
        event["id"],
        reason,
    )


_SYSTEMS = {Direction.TO_SESSIONM: "SessionM", Direction.TO_BRAZE: "Braze"}


def _flat(event: Row) -> Row:
    """*event* with its customer in columns; one that SessionM does not know in the last of them."""
    ids = {name: event["customer"].get(name, "") for name in ("user_id", "external_id")}
    others = (value for name, value in event["customer"].items() if name not in ids)
    ids["customer_in_braze"] = next(others, "")
    flat: dict[str, Any] = {}
    for name, value in event.items():
        flat.update(ids if name == "customer" else {name: value})
    return flat


@queue.command()
@click.argument("event_id", metavar="ID")
@forms
def show(event_id: str, *, form: Form) -> None:
    """Show one event with its writes and each call."""
    with one_line(), connected() as parts:
        story = parts.events.details(event_id)
        if story is None:
            raise click.ClickException(f"there is no event {event_id}; see `bridge queue list`")
        names = parts.campaign_names((story["campaign_id"], story["canvas_id"]))
    if form:
        dump(form, story, _calls(story))
    else:
        _print_event(story, names)


def _calls(story: Row) -> list[Row]:
    """A row for every call of an event, or for a write that was not sent yet."""
    nothing = {"at": "", "status": "", "milliseconds": "", "outcome": "", "error": ""}
    return [
        {
            "id": story["id"],
            "tags": write["tags"],
            "ttl": "" if write["ttl"] is None else write["ttl"],
            "target": write["target"],
            "dispatch_id": write["dispatch_id"],
            "state": write["state"],
            **one,
        }
        for write in story["writes"]
        for one in write["tries"] or [nothing]
    ]


def _print_event(story: Row, names: Mapping[str, str]) -> None:
    customer = "  ".join(f"{kind} {value}" for kind, value in story["customer"].items())
    for name, value in (
        ("Event", story["id"]),
        ("To", _SYSTEMS[story["direction"]]),
        ("State", state(story["state"])),
        ("Reason", story["reason"]),
        ("Received", f"{local(story['received_at'])} {zone()}"),
        ("Done", f"{local(story['done_at'])} {zone()}" if story["done_at"] else ""),
        ("Customer", customer),
        ("Campaign", f"{story['campaign_id']}  {names.get(story['campaign_id'], '')}".strip()),
        ("Canvas", f"{story['canvas_id']}  {names.get(story['canvas_id'], '')}".strip()),
        ("Test send", "yes" if story["test"] else ""),
        *((label, story[name]) for name, (_, label) in SHOWN_TEXTS.items()),
    ):
        if value:
            click.echo(f"{name:10}{value}")
    for write in story["writes"]:
        click.echo(f"\n{_what_goes_out(write)}: {state(write['state'])}")
        if write["reason"]:
            click.echo(f"          {write['reason']}")
        if write["target"] and write["state"] == State.DELIVERED:
            click.echo("          Braze has accepted it; whether the customer got it is in Braze.")
        if write["uncertain"]:
            system = "Braze" if write["target"] else "SessionM"
            click.secho(f"          Uncertain: {system} may have it, or not.", fg="yellow")
        if write["state"] == State.QUEUED and write["next_at"]:
            click.echo(f"          Next call {local(write['next_at'])} {zone()}")
        for one in write["tries"]:
            answer = f"HTTP {one['status']}" if one["status"] else "no answer"
            click.echo(
                f"  {local(one['at'])}  {one['outcome']}  {answer}  {one['milliseconds']} ms"
                + (f"  {one['error']}" if one["error"] else "")
            )
    # What was received must not steer the terminal.
    body = "\n".join(shown(line.expandtabs(), None) for line in story["body"].splitlines())
    click.echo(f"\nBody      {story['content_type']}\n{body}")
    if advice := _advice(story):
        click.echo(f"\n-> {advice}", err=True)


# State of an event -> what an operator may do.
_NEXT = {
    State.DEAD: "Correct the cause, then: bridge queue replay {0}. Or discard it: "
    "bridge queue discard {0}",
    State.REJECTED: "Correct the template, which sends new ones, or rules.toml, and then: "
    "bridge queue replay {0}",
    State.DISCARDED: "To send it after all: bridge queue replay {0}",
}


def _advice(story: Row) -> str:
    if story["state"] == State.DEAD and any(write["uncertain"] for write in story["writes"]):
        return (
            f"Look in Braze first. If it was sent: bridge queue discard {story['id']}. "
            f"If not: bridge queue replay {story['id']}"
        )
    return _NEXT.get(story["state"], "").format(story["id"])


def _what_goes_out(write: Row) -> str:
    """A write or a message in one line."""
    if write["target"]:
        recipient = write["recipient"]
        name = next((str(v) for v in recipient.values()), "its customer") if recipient else "all"
        dispatched = f", dispatch {write['dispatch_id']}" if write["dispatch_id"] else ""
        return f"Message   {write['target']} for {name}{dispatched}"
    kind = "counters" if write["ttl"] is None else f"for {as_duration(write['ttl'])}"
    return f"Write     {' '.join(write['tags'])}, {kind}"


_changes = options(
    forms,
    filters,
    click.option("--all", "everything", is_flag=True, help="All dead events, without a filter."),
    click.option("--dry-run", is_flag=True, help="Only count; change nothing."),
)


@queue.command()
@click.argument("event_ids", nargs=-1, metavar="[ID]...")
@_changes
@click.option(
    "--uncertain", is_flag=True, help="Include messages that Braze may have sent already."
)
def replay(
    event_ids: tuple[str, ...],
    *,
    dry_run: bool,
    everything: bool,
    uncertain: bool,
    form: Form,
    **given: Any,
) -> None:
    """Send dead events again: by ID, or all that filters match.

    Filters leave out messages that Braze may have sent already, unless --uncertain is given.

    With --state rejected, rejected events are read again by the present rules.
    """
    wanted = _chosen(event_ids, given, dry_run=dry_run, everything=everything)
    with one_line(), connected() as parts:
        if wanted is None:
            _change_each(event_ids, parts.operator.replay_one, "replayed", form)
        else:
            left_out = 0 if uncertain else parts.operator.count_uncertain(wanted)
            wanted = wanted if uncertain else replace(wanted, uncertain=False)
            done = parts.operator.replay(wanted, by=BY, dry_run=dry_run)
            _print_result(done, "replayed", form, dry_run=dry_run, left_out=left_out)


@queue.command()
@click.argument("event_ids", nargs=-1, metavar="[ID]...")
@_changes
def discard(
    event_ids: tuple[str, ...], *, dry_run: bool, everything: bool, form: Form, **given: Any
) -> None:
    """Discard dead events: by ID, or all that filters match.

    They are not sent any more. With --state queued or rejected, filters match those events.
    """
    wanted = _chosen(event_ids, given, dry_run=dry_run, everything=everything)
    with one_line(), connected() as parts:
        if wanted is None:
            _change_each(event_ids, parts.operator.discard_one, "discarded", form)
        else:
            done = parts.operator.discard(wanted, by=BY, dry_run=dry_run)
            _print_result(done, "discarded", form, dry_run=dry_run)


@queue.command()
def pause() -> None:
    """Stop delivery until `bridge queue resume`."""
    with one_line(), connected() as parts:
        noticed = parts.operator.pause(BY)
    click.echo(
        "Paused, to SessionM and to Braze. Webhooks are accepted and queued until "
        "`bridge queue resume`."
        if noticed
        else "Pausing: the deliverer has not confirmed yet, and may still send."
    )


@queue.command()
def resume() -> None:
    """End a pause, or a wait that SessionM or Braze asked for."""
    with one_line(), connected() as parts:
        parts.operator.resume(BY)
        is_alive = delivers(parts)
    click.echo("Resumed." if is_alive else "Resumed, but nothing delivers: start `bridge serve`.")


@click.command()
@click.option("--user-id", metavar="ID", help="The customer's ID in SessionM.")
@click.option("--external-id", metavar="ID", help="The ID in the retailer's system.")
@forms
def erase(user_id: str | None, external_id: str | None, *, form: Form) -> None:
    """Forget one customer: events, writes and cached lookups.

    The customer's other identifier is erased too if a lookup or an event has named it, unless
    other customers may have it too.
    """
    if bool(user_id) == bool(external_id):
        raise click.UsageError("give either --user-id or --external-id")
    kind, value = ("user_id", user_id) if user_id else ("external_id", external_id)
    try:
        customer = read_identifier(kind, value, f"--{kind.replace('_', '-')}", in_quotes=True)
    except FieldError as error:
        raise click.UsageError(str(error)) from None
    with one_line(), connected() as parts:
        erased = parts.erase(customer, BY)
    if form:
        names = [name.kind for name in erased.names]
        shared = [name.ids for name in erased.shared]
        result = {"status": "erased", "events": erased.events, "identifiers": names}
        dump(form, {**result, "shared": shared}, [{**result, "shared": len(shared)}])
        return
    both = " The other identifier was known, and is erased too." if len(erased.names) > 1 else ""
    click.echo(f"Erased: {counted(erased.events, 'event')}, and what was cached.{both}")
    if is_in_quotes(customer.id):
        click.echo("The ID without its curly quotes is another one: erase that too.", err=True)
    if erased.shared:
        number = counted(len(erased.shared), "identifier")
        click.echo(f"Not erased: {number} that other customers may have too. On purpose:")
    for name in erased.shared[:10]:
        click.echo(f"  bridge erase --{name.kind.replace('_', '-')} {shlex.quote(name.id)}")


def _filter(given: dict[str, Any]) -> Filter:
    try:
        return read_filter({k: v for k, v in given.items() if v is not None}, clock.now())
    except FieldError as error:
        raise click.UsageError(f"--{error}") from None


def _chosen(
    event_ids: tuple[str, ...], given: dict[str, Any], *, dry_run: bool, everything: bool
) -> Filter | None:
    """The filter that chooses events; ``None`` where IDs do."""
    if event_ids:
        if dry_run or everything or any(given.values()):
            raise click.UsageError("give IDs without filters, --all and --dry-run")
        return None
    if not everything and not any(given.values()):
        raise click.UsageError("choose events by an ID, a filter, or --all")
    return _filter(given)


def _print_result(done: Done, word: str, form: Form, *, dry_run: bool, left_out: int = 0) -> None:
    would = done.matched - len(done.refused)
    matched = counted(done.matched, "event")
    if form:
        counts = {"matched": done.matched, word: done.changed, "dry_run": dry_run}
        if word == "replayed":
            counts["uncertain_left_out"] = left_out
        dump(
            form,
            {**counts, "refused": list(done.refused)},
            [{**counts, "refused": len(done.refused)}],
        )
        return
    if left_out:
        click.echo(
            f"Left out: {counted(left_out, 'event')} that Braze may have sent already. Look in "
            "Braze, discard by ID what it has sent, then replay the rest by --uncertain.",
            err=True,
        )
    if dry_run:
        click.echo(f"{would:,} of {matched} would be {word}.")
        click.echo("Nothing was changed: run it again without --dry-run.", err=True)
    else:
        click.echo(f"{done.changed:,} of {matched} {word}.")
        if word == "discarded" and done.changed:
            click.echo("`bridge queue replay --state discarded` takes them back.", err=True)
    for refused in done.refused[:10]:
        click.echo(f"  not: {refused}", err=True)


def _change_each(
    event_ids: tuple[str, ...], change: Callable[[str, str], Done | None], word: str, form: Form
) -> None:
    """Change events one by one, and print what became of each.

    Raises:
        click.ClickException: one of them was not changed.
    """
    results: list[dict[str, str]] = []
    for event_id in event_ids:
        done = change(event_id, BY)
        why = "there is no such event" if done is None else "; ".join(done.refused)
        changed = done is not None and bool(done.changed)
        results.append({"id": event_id, "result": word if changed else "unchanged", "reason": why})
    if form:
        dump(form, results, results)
    failed = [one for one in results if one["result"] != word]
    if len(results) == 1 and failed:
        why = failed[0]["reason"]
        raise click.ClickException(f"not {word}: {why}; see `bridge queue list`")
    for one in () if form else results:
        reason = f": {one['reason']}" if one["reason"] else ""
        click.echo(f"{one['id']} {one['result']}{reason}.")
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {counted(len(results), 'event')} not {word}; see `bridge queue list`"
        )
