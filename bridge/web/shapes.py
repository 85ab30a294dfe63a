"""The shapes of the bridge's answers for OpenAPI; those of lookups are in `bridge.lookups.models`.

The tests hold every answer of the application against them.
"""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from bridge.bulk.model import BatchState, JobState, Source
from bridge.customer import DEMO_USER_ID, CustomerKind
from bridge.lookups.models import CUSTOMER_EXAMPLE, CustomerAnswer
from bridge.ops.incidents import CODES
from bridge.outbox.model import Direction, State

_EVENT_ID = "019f3b1c2a4d0c6e8f9a1b2c3d4e5f60"
_BATCH_ID = "019f3b1c2a4d0c6e8f9a1b2c3d4e5f61"
_TAGS: dict[str, Any] = {"vip": 1, "app_user": 14, "summer_promo": 0}


def _required(meaning: str, *example: Any) -> Any:
    """Return a required field with its meaning, and an example if one is given."""
    return Field(description=meaning, examples=[*example] or None)


def _optional(meaning: str, default: Any = None, *example: Any) -> Any:
    """Return a field that may be absent."""
    return Field(default, description=meaning, examples=[*example] or None)


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
    return None if type(None) in get_args(annotation) else annotation()


def _show_example(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Replace the examples of the fields by one of the whole model, and drop their defaults."""
    for described in schema.get("properties", {}).values():
        described.pop("examples", None)
        described.pop("default", None)
    schema["examples"] = [example_of(model)]


class ApiShape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_show_example)


ErrorCode = Literal[
    "address_not_allowed",
    "bad_request",
    "braze_off",
    "cross_site",
    "discarded",
    "incomplete_body",
    "internal_error",
    "invalid_api_key",
    "invalid_encoding",
    "invalid_field",
    "invalid_file",
    "invalid_form",
    "invalid_json",
    "invalid_parameter",
    "invalid_path",
    "method_not_allowed",
    "mixed_tag",
    "no_customer",
    "no_file",
    "no_public_url",
    "no_such_batch",
    "no_such_event",
    "no_such_file",
    "not_an_object",
    "not_discarded",
    "not_found",
    "not_replayed",
    "nothing_failed",
    "nothing_to_send",
    "nothing_to_tag",
    "offers_off",
    "queue_full",
    "requested_range_not_satisfiable",
    "same_rows",
    "sessionm_unavailable",
    "store_unavailable",
    "too_large",
    "too_many_requests",
    "unauthorized",
    "unknown_id",
    "unknown_token",
    "unsupported_encoding",
    "unsupported_media_type",
    "unsupported_type",
    "user_not_found",
    "wrong_scope",
]


class ErrorDetail(ApiShape):
    """What is wrong: a code for programs, a sentence for people."""

    code: ErrorCode | str = _required(
        "The kind of error. Another text is SessionM's own code, for a job that it refuses.",
        "no_customer",
    )
    message: str = _required(
        "A sentence that says what is wrong and what to do.",
        "user_id is missing or blank: name a customer.",
    )


class Error(ApiShape):
    """Every error of every endpoint, in SessionM's own shape."""

    status: Literal["error"] = _required("Always `error`.")
    errors: ErrorDetail = _required("What is wrong.")


class Ok(ApiShape):
    """Done."""

    status: Literal["ok"] = _required("Always `ok`.")


class CustomerIds(ApiShape):
    """A customer by one of the two identifiers; neither if an event names no customer."""

    user_id: str = _optional("The customer's ID in SessionM.", "", DEMO_USER_ID)
    external_id: str = _optional("The customer's ID in the retailer's system.", "")


class EventCustomer(CustomerIds):
    """The customer of an event, by an identifier of SessionM's or of Braze's."""

    braze_id: str = _optional("The customer's ID in Braze.", "")
    user_alias: str = _optional("The customer's alias in Braze.", "")
    email: str = _optional("The customer's e-mail address.", "")


class WriteShape(ApiShape):
    """Tags that go to SessionM in one call; without *ttl* (seconds) they are counters."""

    tags: list[str] = _required("The tags; none for a message.", ["braze_campaign_summer-sale"])
    ttl: int | None = _required("Seconds until the tags expire; `null` for counters.", 2592000)


class Accepted(ApiShape):
    """The webhook is on disk."""

    status: Literal["accepted"] = _required("Always `accepted`.")
    id: str = _required("The event's ID.", _EVENT_ID)
    customer: CustomerIds = _required("The customer that gets the tags.")
    writes: list[WriteShape] = _required("What will be written to SessionM.")
    warnings: list[str] = _required("Sentences about possible mistakes.")
    test: bool = _required("Whether it is a test send of Braze.")


class MessageAccepted(ApiShape):
    """A message that is stored and will be sent."""

    status: Literal["accepted"] = _required("Always `accepted`.")
    id: str = _required("The event's ID.", _EVENT_ID)
    sends: list[dict[Literal["campaign_id", "canvas_id"], str]] = _required(
        "The campaign or Canvas of each send.", [{"campaign_id": "summer-sale"}]
    )
    warnings: list[str] = _required("Sentences about possible mistakes.")


class MessageDelivered(ApiShape):
    """A message that Braze accepted while the sender waited."""

    status: Literal["delivered"] = _required("Always `delivered`.")
    id: str = _required("The event's ID.", _EVENT_ID)
    dispatch_ids: list[str] = _required("Braze's IDs of the sends.", ["5f2e9c6b8a7d4f10"])


class Triggered(ApiShape):
    """The answer of Braze's own trigger endpoints."""

    dispatch_id: str = _required("The event's ID.", _EVENT_ID)
    message: Literal["success"] = _required("Always `success`, as Braze answers.")


class Duplicate(ApiShape):
    """The same event was accepted before."""

    status: Literal["duplicate"] = _required("Always `duplicate`.")
    id: str = _required("The ID of the earlier event.", _EVENT_ID)


class MessageDuplicate(Duplicate):
    """A message that was accepted before, under *id*."""

    warnings: list[str] = _required("Sentences about possible mistakes.")


class Delivered(ApiShape):
    """SessionM confirmed the tags while the caller waited."""

    status: Literal["delivered"] = _required("Always `delivered`.")
    id: str = _required("The event's ID.", _EVENT_ID)
    tags: dict[str, int] = _required(
        "All tags of the customer: tag to count, 0 for an expiring tag.",
        {**_TAGS, "braze_campaign_summer-sale": 0},
    )


class TagsAccepted(Ok):
    """The last known answer of SessionM to a tag write, and the event's id."""

    id: str = _required("The event's ID.", _EVENT_ID)
    tags: dict[str, int] = _required("The customer's tags as last known: tag to count.", _TAGS)


class _SessionMAnswer(BaseModel):
    model_config = ConfigDict(extra="allow")

    status: str = Field(description="`ok`.")


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

    status: Literal["uncertain"] = _required("Always `uncertain`.")
    message: str = _required(
        "Why it is uncertain.", "SessionM may have accepted the job: no answer within 30 s."
    )
    id: str = _required("The batch that follows the job.", _BATCH_ID)
    tags: dict[str, Any] = _required(
        "The job in SessionM's form.", {"request_id": "summer-2026", "status": "unknown"}
    )


class EventAction(ApiShape):
    """What a person did with an event: *by* is the name of the key."""

    at: str = _required("When.", "2026-12-01T08:05:00Z")
    action: Literal["replayed", "discarded"] = _required("What was done.")
    by: str = _required("The name of the key.", "ops")


class EventSummary(ApiShape):
    """One stored event; times are like ``2026-12-01T00:00:00Z``, or blank."""

    id: str = _required("The event's ID.", _EVENT_ID)
    direction: Direction = _required("Tags go to SessionM, messages to Braze.", "to_sessionm")
    state: State = _required("What became of it.", "delivered")
    received_at: str = _required("When the bridge got it.", "2026-12-01T08:00:00Z")
    done_at: str = _required(
        "When it became delivered, dead or rejected; blank before.", "2026-12-01T08:00:01Z"
    )
    customer: EventCustomer = _required("The customer, by the identifier that the event has.")
    campaign_id: str = _required("Braze's ID of the campaign, or blank.", "summer-sale")
    canvas_id: str = _required("Braze's ID of the Canvas, or blank.")
    test: bool = _required("Whether it is a test send of Braze.")
    reason: str = _required("Why it is dead, rejected or expired; else blank.")
    key: str = _required("The name of the sender's key.", "braze-webhooks")
    request_id: str = _required(
        "The `X-Request-Id` of the request, as in the log.", "575528ae31f249416ebde679c748ba18"
    )
    history: list[EventAction] = _required("What people did with it, the latest last.")


class WriteAttempt(ApiShape):
    """One call to SessionM or Braze."""

    at: str = _required("When the call began.", "2026-12-01T08:00:01Z")
    status: int = _required("The HTTP status of the answer; 0 without one.", 200)
    milliseconds: int = _required("How long the call took.", 84)
    outcome: str = _required("`delivered`, `read_back`, or the kind of failure.", "delivered")
    error: str = _required("Why it failed; blank if it did not.")


class WriteDetails(WriteShape):
    """One write of an event, with all attempts.

    *target*, *recipient*, *properties* and *dispatch_id* are those of a message to Braze.
    """

    target: str = _required("The campaign or Canvas of a message; blank for tags.")
    recipient: dict[str, Any] = _required("The recipient of a message, as Braze gets it.")
    properties: dict[str, Any] = _required("The properties of a message, as Braze gets them.")
    dispatch_id: str = _required("Braze's ID of the send; blank before.")
    state: State = _required("What became of the write.", "delivered")
    attempts: int = _required("The number of calls that count towards `BRIDGE_MAX_ATTEMPTS`.", 1)
    next_at: str = _required("When the next call is due, if it is queued; else blank.")
    done_at: str = _required("When it ended; blank before.", "2026-12-01T08:00:01Z")
    waits_for_customer: bool = _required(
        "Whether SessionM must know the customer before it is sent.", False
    )
    reason: str = _required("Why it is dead or expired, or why the last call failed.")
    uncertain: bool = _required("Whether nobody knows if the other side carried it out.")
    tries: list[WriteAttempt] = _required("Every call, the oldest first.")


class EventDetails(EventSummary):
    """One event with its body, its writes and every call for them."""

    body: str = _required(
        "The request's body as it came.", '{"braze_campaign_id": "summer-sale", "user_id": "a3f1"}'
    )
    content_type: str = _required("The request's Content-Type.", "application/json")
    writes: list[WriteDetails] = _required("Its writes; a rejected event has none.")


class EventList(Ok):
    """Events, newest first."""

    events: list[EventSummary] = _required("At most `limit` events, perhaps none.")
    next: str = _required("The `before` of the next page; blank at the end.")


class OneEvent(Ok):
    """One event in full."""

    event: EventDetails = _required("The event.")


class Replayed(Ok):
    """The number of events that matched, and of those that are sent again."""

    matched: int = _required("The number of events that matched.", 1)
    replayed: int = _required("The number of those that are sent again.", 1)


class AllReplayed(Replayed):
    """The same for a filter."""

    dry_run: bool = _required("Whether they were only counted.")
    refused: list[str] = _required("Up to ten reasons why an event is not sent again.")


class Discarded(Ok):
    """The number of events that matched, and of those that were discarded."""

    matched: int = _required("The number of events that matched.", 1)
    discarded: int = _required("The number of those that were discarded.", 1)


class DeliveryState(Ok):
    """Whether delivery runs."""

    state: Literal["running", "paused", "pausing"] = _required(
        "`pausing`: the deliverer has not stopped yet, and may still send."
    )


class PendingWrite(WriteShape):
    """A write that waits for SessionM."""

    accepted_at: str = _required("When its event was accepted.")
    attempts: int = _required("The number of failed calls so far.")
    event_id: str = _required("The event that it belongs to.")


class OneCustomer(Ok):
    """What the bridge knows about one customer."""

    customer: CustomerIds = _required("The customer, as in the request.")
    findings: list[str] = _required(
        "Sentences on why a message may lack something.",
        ["Nothing is wrong: the events were delivered, and lookups are answered."],
    )
    lookup: CustomerAnswer = _required(
        "The answer of `/connected-content/customer`.", CUSTOMER_EXAMPLE
    )
    pending: list[PendingWrite] = _required("Writes that wait for SessionM.", [])
    events: list[EventSummary] = _required("The last 20 events, newest first.")


class CustomerErased(Ok):
    """What was erased of a customer."""

    events: int = _required("The number of erased events.", 3)
    identifiers: list[CustomerKind] = _required(
        "The kinds of identifiers that were erased.", ["user_id"]
    )
    shared: list[CustomerIds] = _required(
        "Further identifiers, not erased since other customers may have them too.",
        [{"external_id": "guest"}],
    )


class IncidentShape(ApiShape):
    """One incident; a closed one has *until*.

    The numbers are the present ones; of a closed incident, the largest.
    """

    code: str = Field(
        description="The kind of incident.",
        examples=["delivery_paused"],
        json_schema_extra={"enum": [*CODES]},
    )
    since: str = _required("When it began.", "2026-12-01T08:00:00Z")
    until: str = _optional("When it ended; absent while it is open.")
    reason: str = _required("What is wrong, in a sentence.", "Delivery is paused by hand (ops).")
    do: str = _required("What to do.", "Resume it when the work is done.")
    writes: int = _required("The number of writes that it concerns.", 53)
    customers: int = _required("The number of their customers.", 5)
    campaigns: list[str] = _required(
        "IDs of campaigns and Canvases that it concerns.", ["summer-sale"]
    )
    events: int = _required("The number of events of the writes.", 50)
    webhooks: int = _required("The number of webhooks that were answered 503.")
    lookups: int = _required("The number of lookups without an answer in time.")
    stale: int = _required("The number of lookups that were answered with older data.")


class StoreCheck(ApiShape):
    """The database."""

    state: Literal["ok", "down"] = _required("`down`: events cannot be stored.")
    error: str = _optional("Why; absent if it is `ok`.")
    file: str = _optional("The path of SQLite's file; absent if the state is `ok`.")
    as_of: str = _optional("The time of the queue's figures, if the database cannot be read.")
    events: dict[str, int] = _optional("State to the number of stored events.")


class FailedBatch(ApiShape):
    """A batch most of whose rows failed."""

    id: str = _required("The batch.", _BATCH_ID)
    rows: int = _required("The number of its rows.")
    failed_rows: int = _required("The number of those that failed.")


class BatchesCheck(ApiShape):
    """Batch jobs."""

    running: int = _required("The number of batches that wait for SessionM.")
    flagged: int = _required("The number of batches that need a person.")
    mostly_failed: list[FailedBatch] = _required(
        "Batches of the last hour most of whose rows failed.", []
    )


class DeliveryCheck(ApiShape):
    """The queue of one direction, and the process that delivers it."""

    state: Literal["running", "paused", "stopped"] = _required(
        "`stopped`: no process delivers. While the other side is down, it is `running` and probes."
    )
    held_by: Literal["", "hand", "refused", "down", "limit"] = _required(
        "Why no write goes out: a person, refused credentials, the other side is down, or it asked "
        "for a wait."
    )
    reason: str = _required("The same in words; blank if nothing holds it.")
    error: str = _required("The failure of the other side that holds it; blank without one.")
    destination: Literal["up", "refusing", "limiting", "failing", "down", "unknown"] = _required(
        "The state of the other side by the calls of this queue."
    )
    by: str = _optional("The name of the key that paused it.")
    paused_at: float | None = _optional("When it was paused by hand, in seconds since the epoch.")
    beat_at: float | None = _optional(
        "The deliverer's last sign of life, in seconds since the epoch."
    )
    heartbeat_seconds: float = _required("Seconds since the last sign of life; -1 without one.")
    host: str = _required("The machine that delivers.")
    pid: int = _required("The process that delivers.")
    queued: int = _required("The number of queued writes.")
    oldest_seconds: int = _required(
        "The age of the oldest write, without those that wait for their customer."
    )
    waits_for_customers: bool = _required(
        "Whether all queued writes wait for their customer to be created."
    )
    unknown_customer_writes: int = _required("The number of writes that wait for their customer.")
    unknown_customer_seconds: int = _required("The age of the oldest of these.")
    dead: int = _required("The number of dead writes.")
    dead_events: int = _optional("The number of their events; 0 if it is not known.")
    overdue: int = _required("The number of calls past their deadline.")
    idle_since: str = _optional(
        "When the last call ended, if none follows before there is new work; else blank."
    )
    refuses_writes: bool = _optional("Whether several writes in a row were refused.")
    limit: int = _optional("`BRIDGE_QUEUE_LIMIT`.")
    rate_per_second: float = _optional("The writes a second of the last minutes.")
    most_per_second: float = _optional("The limit of that rate.")
    done_in_seconds: int = _optional("The forecast until the queue is empty; -1: nothing goes out.")
    takes_seconds: int = _optional("How long the queue takes at the limit.")
    batches: BatchesCheck = _optional("Batch jobs; only to SessionM.")
    expires_in_seconds: int = _optional("Seconds until the oldest message expires; only to Braze.")


class SystemCheck(ApiShape):
    """SessionM Core, SessionM Connect or Braze; numbers are of the last five minutes."""

    state: Literal["up", "refusing", "limiting", "failing", "down", "unknown"] = _required(
        "`limiting` asks for a wait; `failing`: the last call failed; `down`: five in a row; "
        "`unknown`: no call for five minutes."
    )
    last_call_failed: bool = _required("Whether the last call got no usable answer.")
    p50_ms: float = _required("The median time of a call, in milliseconds.", 84.0)
    p99_ms: float = _required("The time that 99 % of the calls are within.", 210.0)
    calls: int = _required("The number of calls.")
    errors: int = _required("The number of failed calls.")
    refused: int = _required("The number of refused calls.")
    answers_lookups: bool = _optional(
        "Whether lookups are answered although writes find this state; absent if writes find no "
        "worse state."
    )
    error: str = _required("The failure that explains the state, or blank.")
    last_error: str = _required("The last failure, which may be older.")
    last_error_at: str = _required("When that was.")
    idle_since: str = _required(
        "When the last call ended, if none follows before there is new work; else blank."
    )
    limit: int | None = _optional("Braze's hourly limit; `null` while unknown.")
    calls_left: int | None = _optional("What is left of that limit.")
    resets_at: str = _optional("When the limit is reset.")


class _AnsweredCalls(ApiShape):
    last_failed_at: str = _required(
        "When the last failure of these minutes was; blank if it was under 5 s ago, or if there "
        "was none."
    )
    counts_until: str = _required(
        "When that failure leaves the last five minutes; blank with `last_failed_at`."
    )
    p50_ms: float = _required("The median time of an answer, in milliseconds.")
    p99_ms: float = _required("The time that 99 % of the answers are within.")


class LookupsCheck(_AnsweredCalls):
    """Lookups of the last five minutes."""

    hit_ratio: float = _required("The share that was answered from the cache.", 0.97)
    lookups: int = _required("All lookups.")
    hit: int = _required("Answered from the cache.")
    stale: int = _required("Answered by a stale answer.")
    miss: int = _required("Fetched from SessionM.")
    not_found: int = _required("Of customers that SessionM does not know.")
    unavailable: int = _required("Without a usable answer.")
    late: int = _required("Answered after more than 2 s, for which Braze waits.")
    in_time_ratio: float = _required("The share answered within 2 s.", 1.0)


class OffersCheck(ApiShape):
    """Dates and numbers of wallets that cannot be read."""

    not_understood_last_day: int = _required("The number of such values in a day.")
    last_form: str = _required("The form of the last one, with 9 for digits and a for letters.")


class WebhooksCheck(_AnsweredCalls):
    """Webhooks of the last five minutes."""

    accepted: int = _required("Stored.")
    duplicate: int = _required("Stored before.")
    rejected: int = _required("Rejected with a reason.")
    failed: int = _required("Not stored: Braze retries.")
    rejected_last_day: int = _required("Rejected in the last day.")


class BudgetCheck(ApiShape):
    """Failures that Braze counts, in its moving minute."""

    webhook_failures_last_minute: int = _required("Webhooks that Braze counts as failed.")
    content_failures_last_minute: int = _required(
        "Connected Content calls that it counts as failed."
    )
    content_calls_last_minute: int = _required("All Connected Content calls.")
    limit: int = _required("Failures from which Braze holds the host to be unhealthy.", 3000)
    content_share_limit: float = _required("The share of calls from which it does.", 0.9)


class FilesCheck(ApiShape):
    """Open files and connections, of the worker that answered."""

    limit: int = _required("The most open files.")
    open: int = _required("The open files; -1 if the system does not say.")
    connections: int = _required("The connections of clients.")
    most_connections: int = _required("The most connections.")
    most_connections_used: float = _required(
        "The largest share of its connections that any worker used in two minutes."
    )


class ClocksCheck(ApiShape):
    """The clocks of this machine and of a fleet's others."""

    state: Literal["ok", "differ"] = _required("`differ`: by over 2 s.")
    difference_seconds: float = _required("How far this machine's clock is ahead.")
    bridges: dict[str, float] = _required("Machine to the seconds by which its clock is ahead.", {})


class Checks(ApiShape):
    """The figures behind the status, for all workers and over restarts."""

    store: StoreCheck = _required("Whether events can be stored.")
    delivery: DeliveryCheck = _required("Tags to SessionM.")
    sessionm_core: SystemCheck = _required("SessionM Core.")
    sessionm_connect: SystemCheck = _required("SessionM Connect.")
    cache: LookupsCheck = _required("Lookups by outcome.")
    offers: OffersCheck = _required("Values of wallets that cannot be read.")
    webhooks: WebhooksCheck = _required("Webhooks by outcome.")
    braze_budget: BudgetCheck = _required("Failures that Braze counts.")
    files: FilesCheck = _required("Open files and connections.")
    clocks: ClocksCheck = _required("The clocks.")
    delivery_to_braze: DeliveryCheck = _optional("Messages to Braze, if they are on.")
    braze: SystemCheck = _optional("Braze, if messages are on.")


class Health(ApiShape):
    """The health; each incident has a cause, a start, the numbers it affects, and a remedy."""

    status: Literal["ok", "degraded", "down"] = _required(
        "`degraded`: something is late or needs an operator; `down`: events cannot be stored.",
        "degraded",
    )
    reasons: list[str] = _required(
        "The sentences of the open incidents.", ["Delivery is paused by hand (ops)."]
    )
    incidents: list[IncidentShape] = _required("Open ones first, then those of the last 30 days.")
    version: str = _required("The bridge's version.", "0.1.0")
    checks: Checks = _required("The figures behind the status.")


class RefusedLine(ApiShape):
    """A line of a file that is left out."""

    line: int = _required("The number of the line.")
    reason: str = _required("Why it is left out.")


class FirstRow(ApiShape):
    """A row for SessionM, with one of the two identifiers."""

    user_id: str = _optional("The customer's ID in SessionM.", "", DEMO_USER_ID)
    external_id: str = _optional("The customer's ID in the retailer's system.", "")
    tag: str = _required("The tag.", "summer_guest")
    expires: str = _required("When it expires; blank for a counter.", "30 days")


class FileAccepted(ApiShape):
    """The result for the rows of a file."""

    status: Literal["accepted", "counted"] = _required(
        "`counted` is a dry run, which stores nothing."
    )
    id: str = _required("The batch; blank for a dry run.", _BATCH_ID)
    rows: int = _required("The number of rows that SessionM gets.", 1)
    refused: int = _required("The number of lines that are left out.")
    repeated: int = _required("The number of rows that repeat another one.")
    jobs: int = _required("The number of SessionM's jobs.", 1)
    warnings: list[str] = _required("Sentences about possible mistakes.")
    first_rows: list[FirstRow] = _required("The first rows, as SessionM gets them.")
    first_refused: list[RefusedLine] = _required("The first lines that are left out.", [])


class Batch(ApiShape):
    """A file, or a part of the backlog, that SessionM's batch jobs carry out."""

    id: str = _required("The batch.", _BATCH_ID)
    source: Source = _required(
        "A file, a part of the backlog, or a client's own job by SessionM's path.", "file"
    )
    state: BatchState = _required("What became of it.", "running")
    name: str = _required("Its name in lists.", "summer.csv")
    key: str = _required("The name of the key that submitted it.", "ops")
    rows: int = _required("The number of rows that SessionM gets.", 120000)
    completed_rows: int = _required("The rows of completed jobs.", 100000)
    done_rows: int = _required("Those of them that succeeded.", 99998)
    failed_rows: int = _required("Those of them that failed.", 2)
    refused: int = _required("The number of lines that were left out.", 3)
    repeated: int = _required("The number of rows that repeated another one.")
    job_count: int = _required("The number of its jobs.", 2)
    created_at: str = _required("When it was submitted.", "2026-12-01T08:00:00Z")
    done_at: str = _required("When it ended; blank before.")
    reason: str = _required("Why it needs a person; else blank.")


class BatchJob(ApiShape):
    """One of SessionM's jobs."""

    id: int = _required("The bridge's number of the job.", 12)
    state: JobState = _required("What became of it.", "submitted")
    rows: int = _required("The number of its rows.", 20000)
    failed_rows: int = _required("The rows that SessionM could not process.")
    request_id: str = _required("The bridge's ID of the job at SessionM.", "bridge-12")
    sessionm_id: str = _required("SessionM's ID of the job; blank before.", "7")
    attempts: int = _required("The number of submissions.", 1)
    submitted_at: str = _required(
        "When it was last submitted; blank before.", "2026-12-01T08:00:02Z"
    )
    fetched_at: str = _required("When SessionM had fetched the file; blank before.")
    done_at: str = _required("When it ended; blank before.")
    reason: str = _required("Why it failed, or what it waits for; else blank.")


class BatchWithJobs(Batch):
    """A batch and its jobs."""

    jobs: list[BatchJob] = _required("Its jobs.")


class BatchList(Ok):
    """A page of batches, newest first."""

    batches: list[Batch] = _required("At most `limit` batches.")
    next: str = _required("The `before` of the next page; blank on the last.")


class OneBatch(Ok):
    """One batch."""

    batch: BatchWithJobs = _required("The batch.")


class Resubmitted(Ok):
    """The number of jobs that will be submitted again."""

    resubmitted: int = _required("The number of jobs.", 1)


class JobsDiscarded(Ok):
    """The number of discarded jobs."""

    discarded: int = _required("The number of jobs.", 2)
