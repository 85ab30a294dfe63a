"""Events as CSV, for spreadsheets."""

from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response, current_app

from bridge import clock
from bridge.fields import csv_text, spreadsheet_cell
from bridge.outbox.events import MOST_A_PAGE, SHOWN_TEXTS
from bridge.outbox.search import FILTERS, Filter, read_filter
from bridge.parts import Parts, parts_of
from bridge.web.auth import scope
from bridge.web.body import all_fields
from bridge.web.operation import BODY_ERRORS, CSV, Example, Operation

bp = Blueprint("export", __name__)

COLUMNS = (
    *("id", "received_at", "direction", "state", "done_at", "user_id", "external_id"),
    *("campaign_id", "campaign_name", "canvas_id", "canvas_name"),
    *("test", "reason", *SHOWN_TEXTS),
)


@bp.route("/events.csv", methods=["GET", "POST"])
@scope("viewer")
@Operation(
    {200: ()},
    (*BODY_ERRORS, 503),
    query=FILTERS,
    body=FILTERS,
    body_needed=False,
    takes_form=True,
    mimetype=CSV,
    example=Example(query={"state": "dead"}, answer=",".join(COLUMNS) + "\r\n"),
)
def events_as_csv() -> Response:
    """Download the events that match a filter, newest first, one line per event.

    A cell that a spreadsheet would read as a formula begins with an apostrophe. For POST, the
    filter is in the body, so that no customer is in a URL.
    """
    chosen = read_filter(all_fields(), clock.now())
    parts = parts_of(current_app)
    pages = _pages(parts, chosen)
    # The first page is read here, so that a failure of the store is an error answer.
    response = Response(_lines(next(pages), pages), mimetype=CSV)
    response.headers["Content-Disposition"] = 'attachment; filename="events.csv"'
    return response


def _pages(parts: Parts, chosen: Filter) -> Iterator[list[list[str]]]:
    before = ""
    while True:
        found = parts.events.find(chosen, MOST_A_PAGE, before)
        ids = {event[name] for event in found.events for name in ("campaign_id", "canvas_id")}
        names = parts.campaign_names(ids)
        yield [_row(event, names) for event in found.events]
        before = found.next
        if not before:
            return


def _row(event: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    values = {
        **event,
        **event["customer"],
        "campaign_name": names.get(event["campaign_id"], ""),
        "canvas_name": names.get(event["canvas_id"], ""),
        "test": "yes" if event["test"] else "",
    }
    return [spreadsheet_cell(str(values.get(column, ""))) for column in COLUMNS]


def _lines(first: list[list[str]], pages: Iterator[list[list[str]]]) -> Iterator[str]:
    yield csv_text([list(COLUMNS), *first])
    for page in pages:
        yield csv_text(page)
