"""Reading what a request brings, its query and its body: all of it, or a refusal."""

from urllib.parse import parse_qsl

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from bridge.fields import FieldError, shown
from bridge.intake.payload import MAX_BODY, RefusedError


def install(app: Flask) -> None:
    """Refuse paths that are no text: a customer's id in one would become another's.

    A NUL is refused as well: PostgreSQL takes none, and no identifier holds one.
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
    """The names and values of the query.

    Raises:
        FieldError: one is not UTF-8, which would else be read as something else than was sent, or
            holds a NUL, which no database takes, or is given twice with different values.
    """
    fields: dict[str, str] = {}
    given = request.query_string.decode(errors="surrogateescape")
    for name, value in parse_qsl(given, keep_blank_values=True, errors="surrogateescape"):
        if any("\ud800" <= char <= "\udfff" for char in name + value):
            raise FieldError(shown(name), "is not UTF-8 text: escape it as UTF-8")
        if "\0" in name + value:
            raise FieldError(shown(name), "holds a NUL character")
        if fields.setdefault(name, value) != value:
            raise FieldError(shown(name), "is given twice with different values")
    return fields


def read_body() -> bytes:
    """The body, read no further than needed to see that it is too large.

    Raises:
        RefusedError: 400; it ended before its announced length, or its chunks are malformed. Half
            a form reads like a whole one, with half a customer's id.
    """
    try:
        body = request.stream.read(MAX_BODY + 1)
    except HTTPException:
        raise
    except Exception as error:
        # Servers raise errors of their own for malformed chunks.
        raise RefusedError(400, "incomplete_body", "The body cannot be read to its end.") from error
    announced = min(request.content_length or 0, MAX_BODY + 1)
    if len(body) < announced:
        raise RefusedError(
            400, "incomplete_body", f"The body ended after {len(body)} of {announced} bytes."
        )
    return body
