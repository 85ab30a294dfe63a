"""Batches: upload of files, and SessionM's downloads and notifications."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException

from bridge.bulk.model import MOST_ROWS_OF_JOB, ROWS_OF_JOB
from bridge.bulk.segment import FileRefusedError, SegmentOptions, lines_of, open_segment
from bridge.bulk.store import PAGE, DiscardedError, why_nothing_failed
from bridge.bulk.upload import NothingUsableError, PublicUrlError, SameRowsError
from bridge.customer import DEMO_USER_ID
from bridge.fields import FieldError, shown, text, ttl, whole_number
from bridge.intake.payload import RefusedError, read_fields
from bridge.parts import parts_of
from bridge.web.admin import PAGING, read_limit
from bridge.web.auth import record_change, scope
from bridge.web.body import add_field, read_body, url_fields
from bridge.web.errors import error
from bridge.web.operation import BODY_ERRORS, CSV, Example, Operation
from bridge.web.shapes import BatchList, FileAccepted, JobsDiscarded, Ok, OneBatch, Resubmitted

bp = Blueprint("batches", __name__)

# Bytes: about fifty million customers.
MAX_FILE = 2 * 1024**3
# Placeholders in the notify URL that SessionM left unchanged; the status is in lower case here.
UNREPLACED = {"job_status", "JOB_ID"}
_TEXT = {"type": "string"}
# Options of an upload: query parameter -> JSON schema.
_OPTIONS: dict[str, dict[str, Any]] = {
    "tag": {**_TEXT, "description": "The tag of every row, for a file without tags."},
    "ttl": {**_TEXT, "description": "Whole days, such as 30d; without it the tag is a counter."},
    "id_column": {**_TEXT, "description": "The column of the customers' identifiers."},
    "id_kind": {
        "type": "string",
        "enum": ["user_id", "external_id"],
        "description": "The kind of SessionM's identifiers in that column.",
    },
    "split": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_ROWS_OF_JOB,
        "default": ROWS_OF_JOB,
        "description": "Maximum number of rows of one job.",
    },
    "name": {**_TEXT, "description": "A name for lists; by default the file's name."},
    "again": {
        "type": "boolean",
        "default": False,
        "description": "Submit a file again whose rows were submitted recently.",
    },
    "dry_run": {"type": "boolean", "default": False, "description": "Only count."},
}
_EXAMPLE_TOKEN = "Zm9yLXRoZS1leGFtcGxlLW9ubHktbm90LWEtdG9rZW4"  # noqa: S105 - an example
_NOTIFICATION = {
    "token": {"type": "string", "description": "The job's token, from the notify URL."},
    "id": {"type": "string", "description": "SessionM's number of the job."},
    "status": {"type": "string", "description": "The status of the job in SessionM."},
    "request_id": {"type": "string", "description": "Ignored."},
}
_BATCH = Example({"batch_id": "019f3b1c2a4d0c6e8f9a1b2c3d4e5f61"})


@bp.post("/batches")
@scope("admin")
@Operation(
    {202: (FileAccepted,), 200: (FileAccepted,)},
    (*BODY_ERRORS, 409, 422, 503),
    query=_OPTIONS,
    takes_file=True,
    example=Example(
        query={"tag": "summer_guest", "ttl": "30d"},
        text=f"user_id\n{DEMO_USER_ID}\n",
        status=202,
    ),
)
def submit() -> tuple[Response, int]:
    """Submit a CSV file of customers as SessionM batch jobs.

    The file is the body, or the only file of a multipart form. It is a Braze segment export (give
    `tag`), or has SessionM's columns: `user_id` or `external_id`, `tag`, `expires`. Each invalid
    row is refused with a reason. 200 is the answer to `dry_run`.
    """
    if request.mimetype == "application/json":
        raise RefusedError(415, "unsupported_media_type", "Send the file itself, as text/csv.")
    if (request.content_length or 0) > MAX_FILE:
        raise _too_large()
    read, given = _given()
    parts = parts_of(current_app)
    options = _options(given)
    split = whole_number(options.get("split"), "split", MOST_ROWS_OF_JOB)
    rows_of_job = split or ROWS_OF_JOB
    try:
        segment = open_segment(lines_of(read), _wanted(options), parts.rules)
        if _flag(options, "dry_run"):
            counted = parts.uploads.count(segment, rows_of_job)
            return jsonify(counted.as_json("counted")), 200
        upload = parts.uploads.take_in(
            segment,
            name=options.get("name") or "upload",
            key_name=g.key_name,
            rows_of_job=rows_of_job,
            again=_flag(options, "again"),
        )
    except SameRowsError as refusal:
        raise RefusedError(409, "same_rows", _with_option(refusal)) from None
    except FileRefusedError as refusal:
        raise RefusedError(422, "invalid_file", _with_option(refusal)) from None
    except NothingUsableError as refusal:
        raise RefusedError(422, "nothing_to_tag", str(refusal)) from None
    except PublicUrlError as refusal:
        message = f"{refusal}. Set it, and restart the bridge, or send it a HUP."
        raise RefusedError(409, "no_public_url", message) from None
    except DiscardedError as refusal:
        raise RefusedError(409, "discarded", str(refusal)) from None
    record_change("batch_submitted", batch=upload.batch_id)
    return jsonify(upload.as_json("accepted")), 202


@bp.get("/batches")
@scope("viewer")
@Operation({200: (BatchList,)}, (400, 503), query=PAGING, example=Example(query={"limit": "1"}))
def list_batches() -> Response:
    """List batches, newest first."""
    given = url_fields()
    for name in given:
        if name not in PAGING:
            raise FieldError(f'"{name[:60]}"', "is not a parameter of this list")
    limit = read_limit(given.get("limit"), PAGE)
    found = parts_of(current_app).batches.find(limit + 1, given.get("before", ""))
    following = found[limit - 1]["id"] if len(found) > limit else ""
    return jsonify(status="ok", batches=found[:limit], next=following)


@bp.get("/batches/<batch_id>")
@scope("viewer")
@Operation({200: (OneBatch,)}, (404, 503), example=_BATCH)
def show(batch_id: str) -> Response:
    """Show a batch with its jobs."""
    found = parts_of(current_app).batches.one(batch_id)
    return _unknown() if found is None else jsonify(status="ok", batch=found)


@bp.get("/batches/<batch_id>/refused")
@scope("viewer")
@Operation(
    {200: ()},
    (404, 503),
    mimetype=CSV,
    example=replace(_BATCH, answer="line,reason\r\n3,user_id is empty\r\n"),
)
def refused(batch_id: str) -> Response:
    """Download the refused lines of a batch's file and the reasons, as CSV."""
    batches = parts_of(current_app).batches
    if batches.one(batch_id) is None:
        return _unknown()
    return Response(batches.refused(batch_id), mimetype="text/csv")


@bp.post("/batches/<batch_id>/resubmit")
@scope("admin")
@Operation({200: (Resubmitted,)}, (404, 409, 503), example=_BATCH)
def resubmit(batch_id: str) -> Response:
    """Submit the failed jobs of a batch again.

    If SessionM had applied some rows of a failed job, their counters count twice.
    """
    batches = parts_of(current_app).batches
    batch = batches.one(batch_id)
    if batch is None:
        return _unknown()
    found = batches.resubmit(batch_id)
    if not found:
        return error(409, "nothing_failed", why_nothing_failed(batch))
    record_change("batch_resubmitted", batch=batch_id)
    return jsonify(status="ok", resubmitted=found)


@bp.delete("/batches/<batch_id>")
@scope("admin")
@Operation({200: (JobsDiscarded,)}, (404, 409, 503), example=_BATCH)
def discard(batch_id: str) -> Response:
    """Discard a batch.

    SessionM can no longer download its files, but may still finish jobs that it has started.
    """
    batches = parts_of(current_app).batches
    if batches.one(batch_id) is None:
        return _unknown()
    found = batches.discard(batch_id)
    if not found:
        return error(409, "not_discarded", "Every job of this batch is over.")
    record_change("batch_discarded", batch=batch_id)
    return jsonify(status="ok", discarded=found)


@bp.get("/batches/files/<token>.csv")
@scope("open")
@Operation(
    {200: (), 206: (), 304: ()},
    (404, 416, 503),
    headers=("Range", "If-None-Match"),
    mimetype=CSV,
    example=Example(
        {"token": _EXAMPLE_TOKEN},
        answer=f"user_id,tag,expires\n{DEMO_USER_ID},summer_guest,30 days\n",
    ),
)
def file(token: str) -> Response:
    """Send a job's file to SessionM.

    The token in the URL is the credential. It expires when the job ends.
    """
    batches = parts_of(current_app).batches
    job = batches.served(token)
    if job is None:
        return error(404, "no_such_file", "There is no such file now.")
    response = Response(batches.serve(job, token), mimetype="text/csv")
    response.content_length = job.size
    response.headers["Content-MD5"] = job.content_md5
    response.headers["Cache-Control"] = "private, no-store"
    response.set_etag(job.md5)
    response.make_conditional(request, accept_ranges=True, complete_length=job.size)
    return response


@bp.route("/webhooks/sessionm/batch", methods=["GET", "POST"])
@scope("open")
@Operation(
    {200: (Ok,)},
    (*BODY_ERRORS, 404, 422, 503),
    query=_NOTIFICATION,
    body=_NOTIFICATION,
    body_needed=False,
    takes_form=True,
    example=Example(query={"token": _EXAMPLE_TOKEN, "id": "7", "status": "completed"}),
)
def notification() -> Response:
    """Receive SessionM's notification that a job has ended.

    The token in the URL is the credential.
    """
    given = _notification_fields()
    token = str(given.get("token") or "")
    # Lower case before the limit: some letters become two in lower case.
    status = shown(str(given.get("status") or "").lower(), 10)
    job_id = shown(str(given.get("id") or ""), 64)
    values = ["" if word in UNREPLACED else word for word in (status, job_id)]
    if not token or not parts_of(current_app).batches.notify(token, *values):
        return error(404, "unknown_token", "This notification has no token of a job.")
    return jsonify(status="ok")


def _notification_fields() -> Mapping[str, Any]:
    """Return the fields of a notification; those in the query override those in the body."""
    body = read_body() if request.method == "POST" else b""
    fields = read_fields(body, request.headers.get("Content-Type", "")) if body else {}
    return {**fields, **request.args.to_dict()}


def _given() -> tuple[Callable[[int], bytes], Mapping[str, str]]:
    """Return a function that reads the file, and the given options."""
    if request.mimetype != "multipart/form-data":
        return _UploadBody().read, url_fields()
    request.max_content_length = MAX_FILE
    files = list(request.files.values())
    if len(files) != 1:
        raise RefusedError(400, "no_file", "The form must hold one file.")
    given = _form_fields(url_fields())
    given.setdefault("name", files[0].filename or "")
    return files[0].stream.read, given


def _form_fields(fields: dict[str, str]) -> dict[str, str]:
    """Add the fields of a form to those of the query; raises FieldError like `url_fields`."""
    for name, value in request.form.items(multi=True):
        if "\N{REPLACEMENT CHARACTER}" in name + value:
            raise FieldError(shown(name), "is not UTF-8 text")
        add_field(fields, name, value)
    return fields


class _UploadBody:
    """The body of the request as a stream.

    A file that ends before its announced length is an error, since half a CSV is a valid CSV.
    """

    def __init__(self) -> None:
        self._stream = request.stream
        self._announced = request.content_length or 0
        self._received = 0

    def read(self, size: int) -> bytes:
        try:
            chunk = self._stream.read(size)
        except HTTPException:
            raise
        except Exception as failure:
            # Each server raises its own errors for malformed chunks.
            raise _incomplete() from failure
        self._received += len(chunk)
        if self._received > MAX_FILE:
            raise _too_large()
        if not chunk and self._received < self._announced:
            raise _incomplete()
        return chunk


def _options(given: Mapping[str, str]) -> dict[str, str]:
    for name in given:
        if name not in _OPTIONS:
            raise FieldError(f'"{name[:60]}"', f"is not an option; known are {', '.join(_OPTIONS)}")
    return {name: found for name, value in given.items() if (found := text(value, name))}


def _wanted(options: Mapping[str, str]) -> SegmentOptions:
    kind = options.get("id_kind")
    if kind not in {None, "user_id", "external_id"}:
        raise FieldError("id_kind", "must be user_id or external_id")
    return SegmentOptions(
        tag=options.get("tag", ""),
        ttl=ttl(options.get("ttl"), "ttl"),
        id_column=options.get("id_column", ""),
        id_kind="external_id" if kind == "external_id" else "user_id" if kind else None,
    )


def _flag(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "false")
    if value not in {"0", "1", "true", "false"}:
        raise FieldError(name, "must be true or false")
    return value in {"1", "true"}


def _with_option(refusal: FileRefusedError) -> str:
    """Return the message of *refusal*, with the parameter that corrects it."""
    message = str(refusal)
    if not refusal.option:
        return message
    return f"{message.rstrip('.')} by the parameter {refusal.option}."


def _too_large() -> RefusedError:
    return RefusedError(413, "too_large", f"The file is over {MAX_FILE // 1024**3} GB: split it.")


def _incomplete() -> RefusedError:
    return RefusedError(400, "incomplete_body", "The body cannot be read to its end.")


def _unknown() -> Response:
    return error(404, "no_such_batch", "There is no batch with this id.")
