"""Batches: files in, their jobs' files out to SessionM, and its notifications."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException

from bridge.fields import FieldError, shown, text, ttl
from bridge.intake.payload import RefusedError, read_fields
from bridge.intake.segment import FileRefusedError, Wanted, expires, lines_of, open_segment
from bridge.outbox.batch import (
    MOST_SPLIT,
    SPLIT,
    NothingUsableError,
    PublicUrlError,
    SameRowsError,
    Tally,
    nothing_failed,
    sift,
)
from bridge.outbox.jobs import PAGE, DiscardedError
from bridge.parts import parts_of
from bridge.web.admin import read_limit
from bridge.web.auth import scope
from bridge.web.body import read_body, url_fields
from bridge.web.errors import error

bp = Blueprint("batches", __name__)

# Some fifty million customers; more come in several files.
MAX_FILE = 2 * 1024**3
UNREPLACED = {"job_status", "JOB_ID"}
_OPTIONS = ("tag", "ttl", "id_column", "id_kind", "split", "name", "again", "dry_run")


@bp.post("/batches")
@scope("admin")
def submit() -> tuple[Response, int]:
    """Take a CSV file in: as the body, or as a file of a multipart form."""
    if request.mimetype == "application/json":
        raise RefusedError(415, "unsupported_media_type", "Send the file itself, as text/csv.")
    if (request.content_length or 0) > MAX_FILE:
        raise _too_large()
    read, given = _upload()
    parts = parts_of(current_app)
    options = _options(given)
    split = _split(options.get("split"))
    try:
        segment = open_segment(lines_of(read), _wanted(options), parts.rules)
        if _flag(options, "dry_run"):
            tally = Tally()
            for _ in sift(segment, tally):
                pass
            tally.jobs = -(-tally.rows // split)
            tally.warnings = parts.batches.not_ready()
            return jsonify(_told(tally, "counted")), 200
        tally = parts.batches.take_in(
            segment,
            name=options.get("name") or "upload",
            key_name=g.key_name,
            split=split,
            again=_flag(options, "again"),
        )
    except SameRowsError as refusal:
        raise RefusedError(409, "same_rows", _with_option(refusal)) from None
    except FileRefusedError as refusal:
        raise RefusedError(422, "invalid_file", _with_option(refusal)) from None
    except NothingUsableError as refusal:
        raise RefusedError(422, "nothing_to_tag", str(refusal)) from None
    except PublicUrlError as refusal:
        told = f"{refusal}. Set it, and restart the bridge, or send it a HUP."
        raise RefusedError(409, "no_public_url", told) from None
    except DiscardedError as refusal:
        raise RefusedError(409, "discarded", str(refusal)) from None
    return jsonify(_told(tally, "accepted")), 202


@bp.get("/batches")
@scope("admin")
def list_batches() -> Response:
    """List batches, newest first."""
    given = url_fields()
    limit = read_limit(given.get("limit"), PAGE)
    found = parts_of(current_app).batches.jobs.find(limit, given.get("before", ""))
    following = found[-1]["id"] if len(found) == limit else ""
    return jsonify(status="ok", batches=found, next=following)


@bp.get("/batches/<batch_id>")
@scope("admin")
def show(batch_id: str) -> Response:
    """Show a batch with its jobs."""
    found = parts_of(current_app).batches.jobs.one(batch_id)
    return _unknown() if found is None else jsonify(status="ok", batch=found)


@bp.get("/batches/<batch_id>/refused")
@scope("admin")
def refused(batch_id: str) -> Response:
    """Download which lines of a batch's file were refused, and why, as CSV."""
    jobs = parts_of(current_app).batches.jobs
    if jobs.one(batch_id) is None:
        return _unknown()
    return Response(jobs.refused(batch_id), mimetype="text/csv")


@bp.post("/batches/<batch_id>/resubmit")
@scope("admin")
def resubmit(batch_id: str) -> Response:
    """Submit the failed jobs of a batch once more."""
    batches = parts_of(current_app).batches
    batch = batches.jobs.one(batch_id)
    if batch is None:
        return _unknown()
    found = batches.resubmit(batch_id)
    if not found:
        return error(409, "nothing_failed", nothing_failed(batch))
    return jsonify(status="ok", resubmitted=found)


@bp.delete("/batches/<batch_id>")
@scope("admin")
def discard(batch_id: str) -> Response:
    """Give a batch up: its files are withdrawn; what SessionM has in hand it may still do."""
    found = parts_of(current_app).batches.discard(batch_id)
    if found is None:
        return _unknown()
    if not found:
        return error(409, "not_discarded", "Every job of this batch is over.")
    return jsonify(status="ok", discarded=found)


@bp.get("/batches/files/<token>.csv")
@scope("open")
def file(token: str) -> Response:
    """Give SessionM a job's file; the token in its URL is the credential."""
    jobs = parts_of(current_app).batches.jobs
    job = jobs.served(token)
    if job is None:
        return error(404, "no_such_file", "There is no such file, or not any more.")
    response = Response(jobs.serve(job, token), mimetype="text/csv")
    response.content_length = job.size
    response.headers["Content-MD5"] = job.content_md5
    response.headers["Cache-Control"] = "private, no-store"
    response.set_etag(job.md5)
    response.make_conditional(request, accept_ranges=True, complete_length=job.size)
    return response


@bp.route("/webhooks/sessionm/batch", methods=["GET", "POST"])
@scope("open")
def notification() -> Response:
    """Hear from SessionM that a job has ended; the token in its URL is the credential."""
    given = _notified()
    token = str(given.get("token") or "")
    # Some letters become two when they are made small.
    status = shown(str(given.get("status") or "").lower(), 10)
    job_id = shown(str(given.get("id") or ""), 64)
    jobs = parts_of(current_app).batches.jobs
    # Words that SessionM did not replace say nothing.
    said = ["" if word in UNREPLACED else word for word in (status, job_id)]
    if not token or not jobs.notify(token, *said):
        return error(404, "unknown_token", "This notification has no token of a job's.")
    return jsonify(status="ok")


def _notified() -> Mapping[str, Any]:
    """The fields of a notification: of its query, or of a body."""
    body = read_body() if request.method == "POST" else b""
    fields = read_fields(body, request.headers.get("Content-Type", "")) if body else {}
    return {**fields, **request.args.to_dict()}


def _upload() -> tuple[Callable[[int], bytes], Mapping[str, str]]:
    """What reads the file, and the options that came with it."""
    if request.mimetype != "multipart/form-data":
        return _Body().read, url_fields()
    request.max_content_length = MAX_FILE
    files = list(request.files.values())
    if len(files) != 1:
        raise RefusedError(400, "no_file", "The form must hold one file.")
    given = _form_fields(url_fields())
    given.setdefault("name", files[0].filename or "")
    return files[0].stream.read, given


def _form_fields(fields: dict[str, str]) -> dict[str, str]:
    """The fields of a form added to *fields* of the query, held to the same; see `url_fields`."""
    for name, value in request.form.items(multi=True):
        if "\N{REPLACEMENT CHARACTER}" in name + value:
            raise FieldError(shown(name), "is not UTF-8 text")
        if fields.setdefault(name, value) != value:
            raise FieldError(shown(name), "is given twice with different values")
    return fields


class _Body:
    """The request's body, read as it comes.

    Half a file reads like a whole one, so one that ends early is an error.
    """

    def __init__(self) -> None:
        self._stream = request.stream
        self._announced = request.content_length or 0
        self._got = 0

    def read(self, size: int) -> bytes:
        try:
            chunk = self._stream.read(size)
        except HTTPException:
            raise
        except Exception as failure:
            # Servers raise errors of their own for malformed chunks.
            raise _incomplete() from failure
        self._got += len(chunk)
        if self._got > MAX_FILE:
            raise _too_large()
        if not chunk and self._got < self._announced:
            raise _incomplete()
        return chunk


def _options(given: Mapping[str, str]) -> dict[str, str]:
    for name in given:
        if name not in _OPTIONS:
            raise FieldError(f'"{name[:60]}"', f"is not an option; known are {', '.join(_OPTIONS)}")
    return {name: found for name, value in given.items() if (found := text(value, name))}


def _wanted(options: Mapping[str, str]) -> Wanted:
    kind = options.get("id_kind")
    if kind not in {None, "user_id", "external_id"}:
        raise FieldError("id_kind", "must be user_id or external_id")
    return Wanted(
        tag=options.get("tag", ""),
        ttl=ttl(options.get("ttl"), "ttl"),
        id_column=options.get("id_column", ""),
        id_kind="external_id" if kind == "external_id" else "user_id" if kind else None,
    )


def _split(value: str | None) -> int:
    if value is None:
        return SPLIT
    if not (re.fullmatch("[0-9]{1,9}", value) and 1 <= int(value) <= MOST_SPLIT):
        raise FieldError("split", f"must be a whole number from 1 to {MOST_SPLIT}")
    return int(value)


def _flag(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "false")
    if value not in {"0", "1", "true", "false"}:
        raise FieldError(name, "must be true or false")
    return value in {"1", "true"}


def _with_option(refusal: FileRefusedError) -> str:
    """The sentence of *refusal*, with the parameter that would mend it."""
    told = str(refusal)
    return f"{told.rstrip('.')} by the parameter {refusal.option}." if refusal.option else told


def _told(tally: Tally, status: str) -> dict[str, Any]:
    return {
        "status": status,
        "id": tally.batch_id,
        "rows": tally.rows,
        "refused": tally.refused,
        "repeated": tally.repeated,
        "jobs": tally.jobs,
        "warnings": tally.warnings,
        "first_rows": [
            {row.customer.kind: row.customer.id, "tag": row.tag, "expires": expires(row.days)}
            for row in tally.first_rows
        ],
        "first_refused": [{"line": r.line, "reason": r.reason} for r in tally.first_refused],
    }


def _too_large() -> RefusedError:
    return RefusedError(413, "too_large", f"The file is over {MAX_FILE // 1024**3} GB: split it.")


def _incomplete() -> RefusedError:
    return RefusedError(400, "incomplete_body", "The body cannot be read to its end.")


def _unknown() -> Response:
    return error(404, "no_such_batch", "There is no batch of this id.")
