"""Read the query and the body of a request completely, or reject the request."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from bridge.fields import FieldError, is_storable, shown
from bridge.intake.payload import MAX_BODY, RefusedError, read_fields, refuse_stray_pieces


def install(app: Flask) -> None:
    """Reject paths that are not UTF-8, since an ID in one could become another customer's ID.

    A path with a NUL is rejected too: PostgreSQL cannot store it.
    """

    @app.before_request
    def check_path() -> None:
        try:
            # WSGI carries the path's bytes as Latin-1 (PEP 3333).
            path = request.environ.get("PATH_INFO", "").encode("latin-1").decode()
        except UnicodeError:
            raise RefusedError(
                400, "invalid_encoding", "The path is not UTF-8 text: escape it as UTF-8."
            ) from None
        if "\0" in path:
            raise RefusedError(400, "invalid_path", "The path holds a NUL character.")


def url_fields() -> dict[str, str]:
    """Return the parameters of the query.

    Raises:
        FieldError: a parameter is not UTF-8, has a NUL, which PostgreSQL cannot store, has no
            ``=``, or is given twice with different values.
    """
    fields: dict[str, str] = {}
    given = request.query_string.decode(errors="surrogateescape")
    refuse_stray_pieces(given)
    for name, value in parse_qsl(given, keep_blank_values=True, errors="surrogateescape"):
        if "\0" in name + value:
            raise FieldError(shown(name), "holds a NUL character")
        if not is_storable(name + value):
            raise FieldError(shown(name), "is not UTF-8 text: escape it as UTF-8")
        add_field(fields, name, value)
    return fields


def add_field(fields: dict[str, Any], name: str, value: Any) -> None:
    """Add a field that may have been given before.

    Raises:
        FieldError: it was given with another value.
    """
    if fields.setdefault(name, value) != value:
        raise FieldError(shown(name), "is given twice with different values")


def all_fields() -> dict[str, Any]:
    """Return the parameters of the query and, for a POST, the fields of a JSON or form body.

    Raises:
        FieldError: as `url_fields`, or query and body have different values for one name.
        RefusedError: the body cannot be read, with status 400, 413 or 415.
    """
    given: dict[str, Any] = {}
    for fields in (url_fields(), _posted_fields()):
        for name, value in fields.items():
            add_field(given, name, value)
    return given


def body_fields() -> dict[str, Any]:
    """Return the fields of a JSON or form body.

    Raises:
        RefusedError: the body cannot be read.
    """
    return read_fields(read_body(), request.headers.get("Content-Type", ""))


def _posted_fields() -> Mapping[str, Any]:
    body = read_body() if request.method == "POST" else b""
    return lookup_fields(body) if body else {}


def lookup_fields(body: bytes) -> Mapping[str, Any]:
    """Return the fields of a lookup's JSON or form *body*.

    Raises:
        RefusedError: the body cannot be read, with status 400, 413 or 415.
    """
    try:
        return read_fields(body, request.headers.get("Content-Type", ""))
    except RefusedError as refusal:
        if refusal.status in {413, 415}:
            raise
        raise RefusedError(400, refusal.code, str(refusal)) from None


def read_body() -> bytes:
    """Return the body, or its first `MAX_BODY` + 1 bytes if it is larger.

    Raises:
        RefusedError: the body is shorter than announced, or its chunks are malformed. Half a form
            could be read as a whole one, with half a customer's ID.
    """
    try:
        body = request.stream.read(MAX_BODY + 1)
    except HTTPException:
        raise
    except Exception as error:
        # Each server raises its own errors for malformed chunks.
        raise RefusedError(400, "incomplete_body", "The body cannot be read to its end.") from error
    announced = min(request.content_length or 0, MAX_BODY + 1)
    if len(body) < announced:
        raise RefusedError(
            400, "incomplete_body", f"The body ended after {len(body)} of {announced} bytes."
        )
    return body
