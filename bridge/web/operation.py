"""Decorators that describe the parameters and answers of a view.

`bridge.web.openapi` generates the document from them and from the docstrings of the views.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from pydantic import BaseModel
from werkzeug.routing import Rule

from bridge.web.auth import View
from bridge.web.errors import HTML

Fields = Mapping[str, Mapping[str, Any]]

CSV = "text/csv"
FORM = "application/x-www-form-urlencoded"
# Statuses for a request body that is malformed, too large or of another type.
BODY_ERRORS = (400, 413, 415)


@dataclass(frozen=True)
class Example:
    """A realistic call; the tests send it to the application.

    Attributes:
        path: path parameter -> value, or -> values by the ``kind`` of the route.
        query: query parameter -> value.
        json: the fields of the body.
        text: the body, if it is not JSON.
        answer: the body of an answer without a model.
        status: the status of the answer.
    """

    path: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    text: str = ""
    answer: str = ""
    status: int = 200


@dataclass(frozen=True)
class Operation:
    """The parameters and answers of a view, except the errors of its scope. A decorator.

    Attributes:
        answers: status -> possible models of the answer; () for an answer that is not JSON.
        errors: statuses whose answer is an `Error`.
        query: query parameter -> JSON schema.
        body: field of the body -> JSON schema. If *body* is *query*, a POST has the fields in its
            body.
        headers: names of the request headers that the view reads.
        body_needed: whether the body is required.
        required: the required fields of the body.
        mimetype: the type of an answer without a model.
        takes_form: whether the body may be a form as well as JSON.
        takes_file: whether the body is a CSV file, or a form with a CSV file.
        example: an example call.
    """

    answers: Mapping[int, tuple[type[BaseModel], ...]]
    errors: tuple[int, ...] = ()
    query: Fields = field(default_factory=dict)
    body: Fields | None = None
    headers: tuple[str, ...] = ()
    body_needed: bool = True
    required: tuple[str, ...] = ()
    mimetype: str = "application/json"
    takes_form: bool = False
    takes_file: bool = False
    example: Example = field(default_factory=Example)

    def __call__(self, view: View) -> View:
        """Attach this description to *view*."""
        view.__dict__["operation"] = self
        return view

    @property
    def is_page(self) -> bool:
        """Whether the answer is an HTML page."""
        return self.mimetype == HTML

    def body_example(self, method: str) -> Mapping[str, Any] | None:
        """Return the fields of the example's body for *method*; ``None`` without a body."""
        if method == "POST" and self.body is not None and self.body is self.query:
            return self.example.query
        return self.example.json

    def query_example(self, method: str) -> Mapping[str, Any]:
        return {} if method == "POST" and self.body is self.query else self.example.query


def operation_of(app: Flask, rule: Rule) -> Operation | None:
    """Return the description of the view of *rule*; ``None`` without one."""
    found: Operation | None = getattr(app.view_functions[rule.endpoint], "operation", None)
    return found


def path_example(operation: Operation, rule: Rule) -> dict[str, str]:
    """Return the example's path parameters for *rule*: name -> value."""
    kind = (rule.defaults or {}).get("kind")
    return {
        name: value[kind] if isinstance(value, Mapping) else value
        for name, value in operation.example.path.items()
    }


# An HTML page; only its GET is described.
PAGE = Operation({200: ()}, (400, 503), mimetype=HTML)
