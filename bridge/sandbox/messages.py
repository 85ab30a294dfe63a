"""Checks of requests, answers and refusals."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json
from werkzeug.wrappers import Request, Response

Json = dict[str, Any]
Text = Annotated[str, StringConstraints(pattern=r"\S")]
Whole = Annotated[int, Field(ge=0, le=10**12)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class Given(BaseModel):
    """An object with exactly the declared keys and types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(BaseModel):
    """The body of a call with exactly the declared types; other keys are ignored."""

    model_config = ConfigDict(strict=True)


Model = TypeVar("Model", bound=BaseModel)


def check(model: type[Model], given: object) -> Model:
    """Check *given*. Raises ValueError, whose one line names the key."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        what = "unknown key" if unknown else first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where[1:]}: {what}") from None


def read_object(request: Request) -> Json:
    """Return the body. Raises ValueError if it is not a JSON object."""
    body = from_json(request.get_data(), allow_inf_nan=False)
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 - one error for all
    return body


def read(request: Request, model: type[Model]) -> Model:
    """Read and check the body.

    Raises ValueError if it is not a JSON object, SandboxRefusedError for a bad value in it. That
    SessionM refuses bad values with HTTP 200 is assumed.
    """
    body = read_object(request)
    try:
        return check(model, body)
    except ValueError as error:
        raise SandboxRefusedError(200, "argument_error", str(error)) from error


def reply(payload: Json, status: int = 200) -> Response:
    body = json.dumps(payload, separators=(",", ":")).encode()
    return Response(body, status, mimetype="application/json")


class SandboxRefusedError(ValueError):
    """SessionM's refusal: an HTTP status (200 is possible), a code and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def reply(self) -> Response:
        errors = {"code": self.code, "message": str(self)}
        return reply({"status": "error", "errors": errors}, self.status)
