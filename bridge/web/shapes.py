"""The shapes of the bridge's answers for OpenAPI; those of lookups are in `bridge.lookups.models`.

The tests hold every answer of the application against them.
"""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from bridge.bulk.model import BatchState, JobState, Source
from bridge.customer import DEMO_USER_ID
from bridge.outbox.model import Direction, State

_EVENT_ID = "019f3b1c2a4d0c6e8f9a1b2c3d4e5f60"
_BATCH_ID = "019f3b1c2a4d0c6e8f9a1b2c3d4e5f61"
_TAGS: dict[str, Any] = {"vip": 1, "app_user": 14, "summer_promo": 0}


def _example(value: Any) -> Any:
    """Return a required field with *value* as its example."""
    return Field(examples=[value])


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return an example of *model*, made of the examples of its fields.

    A required field without an example has the first value of its literal, an example of its
    model, or the empty value of its type. An optional one is left out.
    """
    example = {}
    for name, field in model.model_fields.items():
        if field.examples:
            example[name] = field.examples[0]
        elif field.is_required():
            example[name] = _value_of(field.annotation)
    return example


def _value_of(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) is list and isinstance(item := get_args(annotation)[0], type):
        return [example_of(item)] if issubclass(item, BaseModel) else []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return example_of(annotation)
    return annotation()


def _show_example(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Replace the examples of the fields by one of the whole model."""
    for described in schema.get("properties", {}).values():
        described.pop("examples", None)
    schema["examples"] = [example_of(model)]


class ApiShape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_show_example)


class ErrorDetail(ApiShape):
    """What is wrong: a code for programs, a sentence for people."""

    code: str = _example("no_customer")
    message: str = _example("user_id is missing or blank: name a customer.")


class Error(ApiShape):
    """Every error of every endpoint, in SessionM's own shape."""

    status: Literal["error"]
    errors: ErrorDetail


class Ok(ApiShape):
    """Done."""

    status: Literal["ok"]


class CustomerIds(ApiShape):
    """A customer by one of the two identifiers; neither if an event names no customer."""

    user_id: str = Field("", examples=[DEMO_USER_ID])
    external_id: str = ""


class EventCustomer(CustomerIds):
    """The customer of an event, by an identifier of SessionM's or of Braze's."""

    braze_id: str = ""
    user_alias: str = ""
    email: str = ""


class WriteShape(ApiShape):
    """Tags that go to SessionM in one call; without *ttl* (seconds) they are counters."""

    tags: list[str] = _example(["braze_campaign_summer-sale"])
    ttl: int | None = _example(2592000)


class Accepted(ApiShape):
    """The webhook is on disk."""

    status: Literal["accepted"]
    id: str = _example(_EVENT_ID)
    customer: CustomerIds
    writes: list[WriteShape]
    warnings: list[str]
    test: bool


class MessageAccepted(ApiShape):
    """A message that is stored and will be sent."""

    status: Literal["accepted"]
    id: str = _example(_EVENT_ID)
    sends: list[dict[Literal["campaign_id", "canvas_id"], str]] = _example(
        [{"campaign_id": "summer-sale"}]
    )
    warnings: list[str]


class MessageDelivered(ApiShape):
    """A message that Braze accepted while the sender waited."""

    status: Literal["delivered"]
    id: str = _example(_EVENT_ID)
    dispatch_ids: list[str] = _example(["5f2e9c6b8a7d4f10"])


class Triggered(ApiShape):
    """The answer of Braze's own trigger endpoints."""

    dispatch_id: str = _example(_EVENT_ID)
    message: Literal["success"]


class Duplicate(ApiShape):
    """The same event was accepted before."""

    status: Literal["duplicate"]
    id: str = _example(_EVENT_ID)


class MessageDuplicate(Duplicate):
    """A message that was accepted before, under *id*."""

    warnings: list[str]


class Delivered(ApiShape):
    """SessionM confirmed the tags while the caller waited."""

    status: Literal["delivered"]
    id: str = _example(_EVENT_ID)
    tags: dict[str, int] = _example({**_TAGS, "braze_campaign_summer-sale": 0})


class TagsAccepted(Ok):
    """The last known answer of SessionM to a tag write, and the event's id."""

    id: str = _example(_EVENT_ID)
    tags: dict[str, int] = _example(_TAGS)


class _SessionMAnswer(BaseModel):
    model_config = ConfigDict(extra="allow")

    status: str


def _unchanged(example: dict[str, Any]) -> ConfigDict:
    """Return the configuration of SessionM's own answer, which may have any fields."""
    return ConfigDict(json_schema_extra={"examples": [example]})


class SessionMTags(_SessionMAnswer):
    """SessionM's own answer, unchanged: all tags of the customer with their counts."""

    model_config = _unchanged({"status": "ok", "tags": _TAGS})


_SESSIONM_OFFERS: dict[str, Any] = {
    "status": "ok",
    "payload": {
        "user": {"external_id": "braze-demo", "email": "demo@example.com"},
        "user_id": "00000000-0000-0000-0000-000000000000",
        "user_offers": [
            {
                "user_offer_id": "c956dd1c-e506-510c-83b7-149178be393e",
                "offer_id": "1a2b3324-1da6-4e49-b921-afc386dabb60",
                "offer_group_id": "00000000-0000-0000-0000-000000000000",
                "offer_type": "manual_fulfillment",
                "title": "A treat on the house",
                "expiration_date": "2026-12-27T13:53:42Z",
            }
        ],
        "total_records": 1,
        "offer_groups": [
            {"id": "00000000-0000-0000-0000-000000000000", "name": "All Offers", "sort_order": 0}
        ],
        "offer_categories": [],
        "total_points": 1000,
        "available_points": 100,
    },
}


class SessionMOffers(_SessionMAnswer):
    """SessionM's own answer, unchanged: the customer's offers, points, groups and categories."""

    model_config = _unchanged(_SESSIONM_OFFERS)


class SessionMJob(_SessionMAnswer):
    """SessionM's own answer, unchanged: the batch job that it has created."""

    model_config = _unchanged(
        {"status": "ok", "tags": {"id": 7, "request_id": "summer-2026", "status": "created"}}
    )


class JobUncertain(ApiShape):
    """A batch job whose submission SessionM did not confirm; *id* is the batch that follows it."""

    status: Literal["uncertain"]
    message: str = _example("SessionM may have accepted the job: no answer within 30 s.")
    id: str = _example(_BATCH_ID)
    tags: dict[str, Any] = _example({"request_id": "summer-2026", "status": "unknown"})


class EventAction(ApiShape):
    """What a person did with an event: *by* is the name of the key."""

    at: str = _example("2026-12-01T08:05:00Z")
    action: str = _example("replayed")
    by: str = _example("ops")


class EventSummary(ApiShape):
    """One stored event; times are like ``2026-12-01T00:00:00Z``, or blank."""

    id: str = _example(_EVENT_ID)
    direction: Direction = _example("to_sessionm")
    state: State = _example("delivered")
    received_at: str = _example("2026-12-01T08:00:00Z")
    done_at: str = _example("2026-12-01T08:00:01Z")
    customer: EventCustomer
    campaign_id: str = _example("summer-sale")
    canvas_id: str
    test: bool
    reason: str
    key: str = _example("braze-webhooks")
    request_id: str = _example("575528ae31f249416ebde679c748ba18")
    history: list[EventAction]


class WriteAttempt(ApiShape):
    """One call to SessionM or Braze."""

    at: str = _example("2026-12-01T08:00:01Z")
    status: int = _example(200)
    milliseconds: int = _example(84)
    outcome: str = _example("delivered")
    error: str


class WriteDetails(WriteShape):
    """One write of an event, with all attempts.

    *target*, *recipient*, *properties* and *dispatch_id* are those of a message to Braze.
    """

    target: str
    recipient: dict[str, Any]
    properties: dict[str, Any]
    dispatch_id: str
    state: State = _example("delivered")
    attempts: int = _example(1)
    next_at: str
    done_at: str = _example("2026-12-01T08:00:01Z")
    reason: str
    uncertain: bool
    tries: list[WriteAttempt]


class EventDetails(EventSummary):
    """One event with its body, its writes and every call for them."""

    body: str = _example('{"braze_campaign_id": "summer-sale", "user_id": "a3f1c2d4"}')
    content_type: str = _example("application/json")
    writes: list[WriteDetails]


class EventList(Ok):
    """Events, newest first; *next* is the ``before`` of the next page, blank at the end."""

    events: list[EventSummary]
    next: str


class OneEvent(Ok):
    """One event in full."""

    event: EventDetails


class Replayed(Ok):
    """The number of events that matched, and of those that are sent again."""

    matched: int = _example(1)
    replayed: int = _example(1)


class AllReplayed(Replayed):
    """The same for a filter; *refused* holds up to ten reasons why an event is not sent again."""

    dry_run: bool
    refused: list[str]


class Discarded(Ok):
    """The number of events that matched, and of those that were discarded."""

    matched: int = _example(1)
    discarded: int = _example(1)


class DeliveryState(Ok):
    """Whether delivery runs; *pausing*: the deliverer has not stopped yet and may still send."""

    state: Literal["running", "paused", "pausing"]


class PendingWrite(WriteShape):
    """A write that waits for SessionM."""

    accepted_at: str
    attempts: int
    event_id: str


class OneCustomer(Ok):
    """What the bridge knows about one customer; *lookup* is the answer for Connected Content."""

    customer: CustomerIds
    findings: list[str] = _example(
        ["Nothing is wrong: the events were delivered, and lookups are answered."]
    )
    lookup: dict[str, Any] = _example({"status": "ok", "tags": {"vip": 1}, "offers": []})
    pending: list[PendingWrite] = _example([])
    events: list[EventSummary]


class CustomerErased(Ok):
    """The number of erased events, and the kinds of identifiers that they had.

    *shared* are further identifiers, which are not erased since other customers may have them too.
    """

    events: int = _example(3)
    identifiers: list[str] = _example(["user_id"])
    shared: list[CustomerIds] = _example([{"external_id": "guest"}])


class IncidentShape(ApiShape):
    """One incident; a closed one has *until*.

    *writes*, *customers* and *campaigns* are those affected now, or at most for a closed one.
    """

    code: str = _example("delivery_paused")
    since: str = _example("2026-12-01T08:00:00Z")
    until: str = ""
    reason: str = _example("Delivery is paused by hand (ops).")
    do: str = _example("Resume it when the work is done.")
    writes: int = _example(53)
    customers: int = _example(5)
    campaigns: list[str] = _example(["summer-sale"])


_CHECKS: dict[str, dict[str, Any]] = {
    "store": {"state": "ok"},
    "delivery": {
        "state": "paused",
        "reason": "paused by hand",
        "queued": 53,
        "oldest_seconds": 41,
        "dead": 0,
    },
    "sessionm_core": {"state": "up", "p50_ms": 84.0, "p99_ms": 210.0, "last_error": ""},
    "sessionm_connect": {"state": "up", "p50_ms": 92.0, "p99_ms": 230.0, "last_error": ""},
    "cache": {"hit_ratio": 0.97},
    "braze_budget": {
        "webhook_failures_last_minute": 0,
        "content_failures_last_minute": 0,
        "limit": 3000,
    },
}


class Health(ApiShape):
    """The health; each incident has a cause, a start, the numbers it affects, and a remedy.

    Open ones come first, then those closed in the last 30 days. *reasons* are the sentences
    of the open ones.
    """

    status: Literal["ok", "degraded", "down"] = _example("degraded")
    reasons: list[str] = _example(["Delivery is paused by hand (ops)."])
    incidents: list[IncidentShape]
    version: str = _example("0.1.0")
    checks: dict[str, dict[str, Any]] = _example(_CHECKS)


class RefusedLine(ApiShape):
    """A line of a file that is left out."""

    line: int
    reason: str


class FirstRow(ApiShape):
    """A row for SessionM, with one of the two identifiers; without *expires* it is a counter."""

    user_id: str = Field("", examples=[DEMO_USER_ID])
    external_id: str = ""
    tag: str = _example("summer_guest")
    expires: str = _example("30 days")


class FileAccepted(ApiShape):
    """The result for the rows of a file; *counted* is a dry run, which stores nothing.

    SessionM gets *rows* of them; *refused* and *repeated* are left out. *warnings* are sentences
    about possible mistakes.
    """

    status: Literal["accepted", "counted"]
    id: str = _example(_BATCH_ID)
    rows: int = _example(1)
    refused: int
    repeated: int
    jobs: int = _example(1)
    warnings: list[str]
    first_rows: list[FirstRow]
    first_refused: list[RefusedLine] = _example([])


class Batch(ApiShape):
    """A file, or a part of the backlog, that SessionM's batch jobs carry out.

    *completed_rows* counts the rows of completed jobs: *done_rows* succeeded and *failed_rows*
    failed. *refused* and *repeated* rows are not sent to SessionM.
    """

    id: str = _example(_BATCH_ID)
    source: Source = _example("file")
    state: BatchState = _example("running")
    name: str = _example("summer.csv")
    key: str = _example("ops")
    rows: int = _example(120000)
    completed_rows: int = _example(100000)
    done_rows: int = _example(99998)
    failed_rows: int = _example(2)
    refused: int = _example(3)
    repeated: int
    job_count: int = _example(2)
    created_at: str = _example("2026-12-01T08:00:00Z")
    done_at: str
    reason: str


class BatchJob(ApiShape):
    """One of SessionM's jobs."""

    id: int = _example(12)
    state: JobState = _example("submitted")
    rows: int = _example(20000)
    failed_rows: int
    request_id: str = _example("bridge-12")
    sessionm_id: str = _example("7")
    attempts: int = _example(1)
    submitted_at: str = _example("2026-12-01T08:00:02Z")
    fetched_at: str = _example("2026-12-01T08:00:03Z")
    done_at: str
    reason: str


class BatchWithJobs(Batch):
    """A batch and its jobs."""

    jobs: list[BatchJob]


class BatchList(Ok):
    """A page of batches, newest first; *next* is blank on the last."""

    batches: list[Batch]
    next: str


class OneBatch(Ok):
    """One batch."""

    batch: BatchWithJobs


class Resubmitted(Ok):
    """The number of jobs that will be submitted again."""

    resubmitted: int = _example(1)


class JobsDiscarded(Ok):
    """The number of discarded jobs."""

    discarded: int = _example(2)
