"""Reading a request's body: all of it, or a refusal."""

from flask import request
from werkzeug.exceptions import HTTPException

from bridge.intake.payload import MAX_BODY, RefusedError


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
