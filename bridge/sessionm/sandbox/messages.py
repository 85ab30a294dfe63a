"""What comes in and goes out: checks of what is given, answers, refusals."""

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
    """An object of exactly the keys and types that are said."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(BaseModel):
    """The body of a call, of exactly the types that are said; further keys do no harm."""

    model_config = ConfigDict(strict=True)


Model = TypeVar("Model", bound=BaseModel)


def check(model: type[Model], given: object) -> Model:
    """Raises ValueError, whose one line names the key."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        what = "unknown key" if unknown else first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where[1:]}: {what}") from None


def read_object(request: Request) -> Json:
    """Return the body. Raises ValueError if it is no JSON object."""
    body = from_json(request.get_data(), allow_inf_nan=False)
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 - one error for all
    return body


def read(request: Request, model: type[Model]) -> Model:
    """Raises ValueError for what is no JSON object, RefusedError for a bad value in one.

    That SessionM refuses bad values with an HTTP 200 is assumed.
    """
    body = read_object(request)
    try:
        return check(model, body)
    except ValueError as error:
        raise RefusedError(200, "argument_error", str(error)) from error


def reply(payload: Json, status: int = 200) -> Response:
    body = json.dumps(payload, separators=(",", ":")).encode()
    return Response(body, status, mimetype="application/json")


class RefusedError(ValueError):
    """SessionM's refusal: an HTTP status, a code and a message. HTTP may well be 200."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def reply(self) -> Response:
        errors = {"code": self.code, "message": str(self)}
        return reply({"status": "error", "errors": errors}, self.status)
