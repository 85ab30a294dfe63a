"""Braze's dialect of Liquid, for rendering a Braze message template outside of Braze.

Standard Liquid is python-liquid's. On top of it come Braze's ``${attribute}`` references, its
``connected_content`` and ``abort_message`` tags, and its filters. "Braze documentation" below
means the pages on Liquid and on Connected Content at braze.com/docs.

What Braze does and this does not: it calls ports 80 and 443 only, sends a stored token only to
the domain it was stored for, keeps answers for minutes and between messages, and renders an
answer again (``:rerender``).
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import StringIO
from threading import Thread
from typing import Any, TextIO, TypeVar
from urllib.parse import parse_qsl, quote

import requests
from liquid import Environment, RenderContext
from liquid.ast import Node
from liquid.builtin.expressions import FilteredExpression, tokenize
from liquid.builtin.expressions.logical import EqExpression, NeExpression
from liquid.builtin.expressions.primitive import Blank
from liquid.builtin.tags.if_tag import IfNode, IfTag
from liquid.builtin.tags.unless_tag import UnlessNode, UnlessTag
from liquid.exceptions import LiquidError as MarkupError
from liquid.exceptions import LiquidSyntaxError
from liquid.expression import Expression
from liquid.filter import liquid_filter, string_filter
from liquid.stream import TokenStream
from liquid.stringify import to_liquid_string
from liquid.tag import Tag
from liquid.token import TOKEN_EXPRESSION, Token
from liquid.undefined import is_undefined
from requests.structures import CaseInsensitiveDict

T = TypeVar("T")

# Braze documentation: "There is a 1 MB limit for Connected Content responses". Read strictly.
LARGEST_ANSWER = 1_000_000

# Braze documentation: `:retry` retries "up to five times", with exponential backoff. The first
# wait is an assumption.
RETRY_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)

# Braze documentation: the hash changes, only "Braze Sender" is to be relied upon.
USER_AGENT = "Braze Sender bridge"

JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"


class LiquidError(ValueError):
    """A template that cannot be parsed or rendered: one line, beginning with the line number."""


@dataclass(frozen=True)
class ConnectedContentCall:
    """One HTTP call that a template made, for explaining what came of it.

    Attributes:
        method: ``GET`` or ``POST``.
        url: as called, with credentials replaced by ``***``.
        status: HTTP status, ``None`` if no whole answer came in time.
        seconds: how long it took.
        error: why the answer was not used, "" if it was.
    """

    method: str
    url: str
    status: int | None
    seconds: float
    error: str


@dataclass(frozen=True)
class Rendered:
    """What became of a template.

    Attributes:
        text: the message, "" if it was aborted.
        aborted: the reason given to ``abort_message`` ("" if none was), or that the retries are
            used up; ``None`` if the message would be sent.
        calls: every Connected Content call in the order made, retries too.
    """

    text: str
    aborted: str | None
    calls: tuple[ConnectedContentCall, ...]


def render(
    source: str,
    *,
    attributes: Mapping[str, Any],
    campaign: Mapping[str, Any] | None = None,
    canvas: Mapping[str, Any] | None = None,
    credentials: Mapping[str, tuple[str, str]] | None = None,
    auth_tokens: Mapping[str, Mapping[str, str]] | None = None,
    variables: Mapping[str, Any] | None = None,
    timeout: float = 2.0,
    session: requests.Session | None = None,
    rewrite: Callable[[str], str] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Rendered:
    """Render a Braze message template, making its Connected Content calls.

    Args:
        source: the template.
        attributes: the profile, ``{"user_id": "…", "first_name": "…"}``, for ``${first_name}``.
            Its ``custom_attribute`` (a mapping) is what ``custom_attribute.${x}`` reads; without
            one the attributes themselves are.
        campaign: ``{"api_id": "…", "dispatch_id": "…"}``, for ``campaign.${api_id}``.
        canvas: ``{"api_id": "…"}``, for ``canvas.${api_id}``.
        credentials: ``{name: (user, password)}``, for ``:basic_auth name``.
        auth_tokens: ``{name: {header: value}}``, for ``:auth_credentials name``.
        variables: further variables, such as ``{"event_properties": {"x": 1}}``.
        timeout: seconds in which a call's whole answer must be there; Braze's are 2.
        session: used for the calls and left open.
        rewrite: makes of the URL in the template the URL to be called.
        pause: waits between the tries of a ``:retry``.

    Raises:
        LiquidError: the template, or a name of a credential in it, is wrong.
    """
    known = {**_variables(attributes, campaign, canvas), **(variables or {})}
    with nullcontext(session) if session else requests.Session() as http:
        calls = _Calls(http, credentials or {}, auth_tokens or {}, timeout, rewrite or str, pause)
        try:
            text, aborted = _render(source, known, calls), None
        except _Abort as abort:
            text, aborted = "", abort.reason
    return Rendered(text, aborted, tuple(calls.made))


def _variables(
    attributes: Mapping[str, Any],
    campaign: Mapping[str, Any] | None,
    canvas: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        _PROFILE: attributes,
        "custom_attribute": attributes.get("custom_attribute", attributes),
        "campaign": campaign or {},
        "canvas": canvas or {},
    }


def _render(source: str, variables: Mapping[str, Any], calls: "_Calls") -> str:
    buffer = StringIO()
    try:
        template = _ENVIRONMENT.from_string(to_standard(source))
        context = _Context(template, globals=variables)
        context.tag_namespace[_ConnectedContentTag.name] = calls
        template.render_with_context(context, buffer)
    except MarkupError as error:
        raise LiquidError(f"line {_line(error, source)}: {_words(error)}") from error
    return buffer.getvalue()


def _line(error: MarkupError, source: str) -> int:
    if error.token and error.token.start_index >= 0:
        return error.token.source.count("\n", 0, error.token.start_index) + 1
    # What is never closed is noticed at the end.
    return source.rstrip().count("\n") + 1


def _words(error: MarkupError) -> str:
    """The message alone: python-liquid draws its errors over several lines."""
    return " ".join(str(error.message).split()).replace("end of expression", "the end")


class _Context(RenderContext):
    def filter(self, name: str, token: Token | None) -> Callable[..., object]:
        """The filter, with Python's own errors (a date in the year 99999) as errors of Liquid."""
        function = super().filter(name, token)

        def guarded(*values: object, **options: object) -> object:
            try:
                return function(*values, **options)
            except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
                raise MarkupError(f"{name}: {error}", token=token) from error

        return guarded


class _Abort(Exception):  # noqa: N818 - ends a render, is no error
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# --- Braze's syntax made standard -----------------------------------------------------------

# The variable behind a bare ${name}: an `assign` of the same name must not touch it.
_PROFILE = "__profile"

# An output of Braze's can hold ${…} and, one deep, another output. The groups are possessive so
# that a brace which is never closed costs no second look.
_INNER_OUTPUT = r"\{\{(?:\$\{[^{}]*\}|(?!\}\}|\{\{|\{%).)*+\}\}"
_OUTPUT = rf"\{{\{{(?:\$\{{[^{{}}]*\}}|{_INNER_OUTPUT}|(?!\}}\}}|\{{\{{|\{{%).)*+\}}\}}"
_TAG = r"\{%-?\s*(?P<tag>\w+)(?:(?!%\}).)*+%\}"
_RAW = r"\{%-?\s*raw\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}"

_OUTPUTS = re.compile(_OUTPUT, re.DOTALL)
_MARKUP = re.compile(rf"(?P<raw>{_RAW})|{_TAG}|{_OUTPUT}", re.DOTALL)
_IN_EXPRESSION = re.compile(
    r"""(?P<quoted>"[^"]*"|'[^']*')|(?P<dot>\.)?\$\{(?P<name>[^{}\n]*)\}|\{\{|\}\}"""
)


def to_standard(source: str) -> str:
    """A Braze template as standard Liquid, line for line.

    ``{{custom_attribute.${vip}}}`` becomes ``{{custom_attribute["vip"]}}``, and braces within
    tags and outputs go: ``{% if {{a}} == 1 %}`` becomes ``{% if a == 1 %}`` (Braze documentation,
    "Exceptions for double brackets"). Comments are emptied, so that nothing in them can be
    misread.
    """
    pieces, position, depth = [], 0, 0
    for markup in _MARKUP.finditer(source):
        before, itself = source[position : markup.start()], _standard(markup)
        position, commented = markup.end(), depth > 0
        depth = _depth(depth, markup["tag"])
        pieces.append(_only_newlines(before) if commented else before)
        pieces.append(_only_newlines(itself) if commented and depth else itself)
    return "".join((*pieces, source[position:]))


def _depth(depth: int, tag: str | None) -> int:
    """How many comments are open after `tag`."""
    if tag == "comment":
        return depth + 1
    return max(0, depth - 1) if tag == "endcomment" else depth


def _only_newlines(text: str) -> str:
    return "\n" * text.count("\n")


def _standard(markup: re.Match[str]) -> str:
    text = markup[0]
    if markup["raw"]:
        return text
    if markup["tag"] == _ConnectedContentTag.name:
        # Its outputs stand in a URL, in headers and in a body: they stay outputs.
        return _OUTPUTS.sub(lambda output: _flat(output[0]), text)
    return _flat(text)


def _flat(markup: str) -> str:
    return markup[:2] + _IN_EXPRESSION.sub(_standard_reference, markup[2:-2]) + markup[-2:]


def _standard_reference(found: re.Match[str]) -> str:
    if found["quoted"]:
        return found["quoted"]
    if found["name"] is None:
        return ""  # a brace
    name = found["name"].strip()
    quote_mark = "'" if '"' in name else '"'
    return f"{'' if found['dot'] else _PROFILE}[{quote_mark}{name}{quote_mark}]"


# --- Conditions -----------------------------------------------------------------------------


class _NothingIsBlank(Expression):
    """A value compared with ``blank``, in which nil and false count as blank.

    Braze runs on Ruby on Rails, where they do. python-liquid holds an unknown variable to be
    unlike ``blank``, and ``{% if ${email} != blank %}`` would be true of customers without one.
    """

    def __init__(self, value: Expression) -> None:
        super().__init__(value.token)
        self.value = value

    def evaluate(self, context: RenderContext) -> object:
        value = self.value.evaluate(context)
        return "" if value is None or value is False or is_undefined(value) else value

    def children(self) -> list[Expression]:
        return [self.value]


def _let_nothing_be_blank(condition: Expression) -> None:
    """Change the comparisons with ``blank`` in a condition, however deep."""
    if isinstance(condition, EqExpression | NeExpression):
        if isinstance(condition.right, Blank):
            condition.left = _NothingIsBlank(condition.left)
        if isinstance(condition.left, Blank):
            condition.right = _NothingIsBlank(condition.right)
    for part in condition.children():
        _let_nothing_be_blank(part)


class _IfTag(IfTag):
    def parse(self, stream: TokenStream) -> Node:
        return _blank_aware(super().parse(stream))


class _UnlessTag(UnlessTag):
    def parse(self, stream: TokenStream) -> Node:
        return _blank_aware(super().parse(stream))


def _blank_aware(node: Node) -> Node:
    if isinstance(node, IfNode | UnlessNode):
        for condition in (node.condition, *(other.expression for other in node.alternatives)):
            _let_nothing_be_blank(condition)
    return node


# --- abort_message --------------------------------------------------------------------------

_REASON = re.compile(r"""\(\s*(?:'([^']*)'|"([^"]*)")?\s*\)""")


class _AbortNode(Node):
    def __init__(self, token: Token, reason: str) -> None:
        super().__init__(token)
        self.reason = reason

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:  # noqa: ARG002
        raise _Abort(self.reason)


class _AbortTag(Tag):
    """``{% abort_message('why') %}``.

    Braze documentation: the reason "must be a string and cannot contain Liquid".
    """

    name = "abort_message"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token = stream.current
        if stream.peek.kind != TOKEN_EXPRESSION:
            return _AbortNode(token, "")
        next(stream)
        found = _REASON.fullmatch(stream.current.value)
        reason = (found[1] or found[2] or "") if found else None
        if reason is None or "{{" in reason or "${" in reason:
            raise LiquidSyntaxError(
                "abort_message takes a reason in quotes, without Liquid, or ()",
                token=stream.current,
            )
        return _AbortNode(token, reason)


# --- connected_content: reading the tag -------------------------------------------------------

# An output within the tag is set aside as a mark: private-use characters round its number.
_SET_ASIDE = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_MARK = re.compile("\ue000([0-9]+)\ue001")
_WORD = re.compile(r"\s*((?!:)\S+)\s*")
_OPTION = re.compile(r":(\w+)\s*")
_FLAGS = frozenset({"retry", "no_cache"})
_OPTIONS = _FLAGS | {
    *("auth_credentials", "basic_auth", "body", "cache_max_age", "content_type"),
    *("headers", "method", "save"),
}


class _Text:
    """Text with outputs in it, such as a URL."""

    def __init__(self, marked: str, outputs: list[Expression]) -> None:
        parts = _MARK.split(marked)
        self._parts = [
            outputs[int(part)] if place % 2 else part for place, part in enumerate(parts)
        ]

    def fill(self, context: RenderContext) -> str:
        return "".join(
            part
            if isinstance(part, str)
            else to_liquid_string(part.evaluate(context), autoescape=False)
            for part in self._parts
        )


@dataclass(frozen=True)
class _Template:
    """A ``connected_content`` tag as it stands in the template."""

    url: _Text
    headers: list[tuple[_Text, _Text]]
    body: _Text | None
    content_type: _Text | None
    options: Mapping[str, str]

    @property
    def method(self) -> str:
        return self.options.get("method", "get").upper()

    @property
    def save(self) -> str:
        return self.options.get("save", "")

    @property
    def cached(self) -> bool:
        """Braze documentation, "Caching": GET unless told not to, POST only when told to."""
        if self.method == "POST":
            return "cache_max_age" in self.options
        return "no_cache" not in self.options


class _ConnectedContentTag(Tag):
    """``{% connected_content URL :option value … %}``."""

    name = "connected_content"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token = next(stream)
        expression = stream.current
        if expression.kind != TOKEN_EXPRESSION:
            raise LiquidSyntaxError("connected_content needs a URL", token=token)
        try:
            return _ConnectedContentNode(token, _read(self.env, expression))
        except _TagError as error:
            raise LiquidSyntaxError(f"connected_content: {error}", token=token) from error


class _TagError(ValueError):
    """What is wrong with a tag, in words."""


def _read(env: Environment, expression: Token) -> _Template:
    marked, outputs = _set_outputs_aside(env, expression)
    url = _WORD.match(marked)
    if not url:
        raise _TagError("the URL comes first")
    options: dict[str, Any] = dict(_read_options(marked[url.end() :]))
    headers = options.pop("headers", {})
    _check(options)
    body, content_type = options.pop("body", None), options.pop("content_type", None)
    return _Template(
        url=_Text(url[1], outputs),
        headers=[(_Text(k, outputs), _Text(str(v), outputs)) for k, v in headers.items()],
        body=_Text(body, outputs) if body else None,
        content_type=_Text(content_type, outputs) if content_type else None,
        options=options,
    )


def _set_outputs_aside(env: Environment, expression: Token) -> tuple[str, list[Expression]]:
    """The tag's text with a mark for every output, and the outputs by number."""
    outputs: list[Expression] = []

    def mark(found: re.Match[str]) -> str:
        start = expression.start_index + found.start(1)
        inner = Token(TOKEN_EXPRESSION, found[1], start, expression.source)
        outputs.append(FilteredExpression.parse(env, TokenStream(tokenize(found[1], inner))))
        return f"\ue000{len(outputs) - 1}\ue001"

    return _SET_ASIDE.sub(mark, expression.value), outputs


def _read_options(text: str) -> Iterator[tuple[str, Any]]:
    """Names and values of the options; headers as a mapping, a flag's value is ""."""
    name, position = "", 0
    while position < len(text):
        option = _OPTION.match(text, position)
        if not option:
            raise _TagError(_unexpected(text[position:], name))
        name = option[1]
        if name not in _OPTIONS:
            known = ", ".join(f":{name}" for name in sorted(_OPTIONS))
            raise _TagError(f"unknown option :{name} (known: {known})")
        value, position = _read_value(name, text, option.end())
        yield name, value


def _unexpected(text: str, after: str) -> str:
    word = _MARK.sub("{{…}}", text.split(maxsplit=1)[0])
    # Braze documentation, "Providing JSON body": written inline, a body has no spaces.
    hint = "; a :body with spaces goes into a capture first" if after == "body" else ""
    return f"unexpected {word!r}{hint}"


def _read_value(name: str, text: str, position: int) -> tuple[Any, int]:
    """The value of the option `name` at `position`, and where the next option begins."""
    if name in _FLAGS:
        return "", position
    if name == "headers":
        return _read_headers(text, position)
    value = _WORD.match(text, position)
    if not value:
        raise _TagError(f":{name} needs a value")
    return value[1], value.end()


def _read_headers(text: str, position: int) -> tuple[dict[str, Any], int]:
    try:
        headers, end = json.JSONDecoder().raw_decode(text, position)
    except json.JSONDecodeError as error:
        message = f":headers needs a JSON object, everything in quotes ({error.msg})"
        raise _TagError(message) from error
    if not isinstance(headers, dict):
        raise _TagError(":headers needs a JSON object")
    return headers, end + len(text[end:]) - len(text[end:].lstrip())


# What an option's value must look like; the others are free text.
_FORMS = {
    "method": (re.compile("get|post", re.IGNORECASE), "get or post"),
    "save": (re.compile(r"[^\W\d]\w*"), "a variable's name"),
    "cache_max_age": (re.compile("[0-9]+"), "a number of seconds"),
    "basic_auth": (re.compile("[^\ue000]+"), "the name of a credential"),
    "auth_credentials": (re.compile("[^\ue000]+"), "the name of a credential"),
}


def _check(options: Mapping[str, str]) -> None:
    for name, (form, words) in _FORMS.items():
        if name in options and not form.fullmatch(options[name]):
            raise _TagError(f":{name} takes {words}")


# --- connected_content: rendering the tag -----------------------------------------------------


@dataclass(frozen=True)
class _Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class _ConnectedContentNode(Node):
    def __init__(self, token: Token, template: _Template) -> None:
        super().__init__(token)
        self.template = template
        self.blank = bool(template.save)  # what is not saved may be printed

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        """Save the answer or print it.

        Braze documentation, "Local Connected Content variables": JSON goes into the ``:save``
        variable, without one into ``connected``; text is printed unless saved. An answer that is
        not used prints nothing, and the ``:save`` variable is "" (``connected`` nil).
        """
        calls: _Calls = context.tag_namespace[_ConnectedContentTag.name]
        answer = calls.fetch(self.template, self._request(context, calls))
        value = _value(*answer) if answer else ""
        if self.template.save:
            context.assign(self.template.save, value)
        elif answer and value is answer[1]:
            return buffer.write(value)
        else:
            context.assign("connected", value if answer else None)
        return 0

    def _request(self, context: RenderContext, calls: "_Calls") -> _Request:
        template = self.template
        content_type = template.content_type.fill(context) if template.content_type else ""
        body = template.body.fill(context) if template.body else ""
        headers = _default_headers(template.method, content_type)
        headers.update(
            (name.fill(context), value.fill(context)) for name, value in template.headers
        )
        try:
            headers.update(calls.authorization(template.options))
        except _TagError as error:
            raise MarkupError(f"connected_content: {error}", token=self.token) from error
        return _Request(
            template.method,
            calls.rewrite(template.url.fill(context).strip()),
            headers,
            _encoded(body, content_type).encode(),
        )


def _default_headers(method: str, content_type: str) -> CaseInsensitiveDict[str]:
    """Braze documentation, "default behavior" and "HTTP POST"."""
    headers = CaseInsensitiveDict({"User-Agent": USER_AGENT, "Accept": content_type or "*/*"})
    headers["Content-Type"] = content_type or (FORM_TYPE if method == "POST" else JSON_TYPE)
    return headers


def _encoded(body: str, content_type: str) -> str:
    """Braze documentation: with ``:content_type application/json`` a form body becomes JSON."""
    if content_type != JSON_TYPE or "=" not in body or body.lstrip()[:1] in ("{", "[", '"'):
        return body
    return json.dumps(dict(parse_qsl(body.strip(), keep_blank_values=True)))


def _value(status: int, text: str) -> Any:
    """An answer's JSON, or its text.

    Braze documentation, "HTTP status codes": objects get the status, nothing else does.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return {**value, "__http_status_code__": status} if isinstance(value, dict) else value


# --- connected_content: the calls -------------------------------------------------------------


@dataclass
class _Calls:
    """The calls of one render, and their answers: Braze does not ask twice for one URL."""

    session: requests.Session
    credentials: Mapping[str, tuple[str, str]]
    auth_tokens: Mapping[str, Mapping[str, str]]
    timeout: float
    rewrite: Callable[[str], str]
    pause: Callable[[float], None]
    made: list[ConnectedContentCall] = field(default_factory=list)
    _answers: dict[tuple[str, str, bytes], tuple[int, str]] = field(default_factory=dict)

    def authorization(self, options: Mapping[str, str]) -> dict[str, str]:
        """The headers that the stored credentials named in `options` stand for."""
        headers: dict[str, str] = {}
        if name := options.get("basic_auth"):
            pair = ":".join(_stored(self.credentials, name))
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        if name := options.get("auth_credentials"):
            headers.update(_stored(self.auth_tokens, name))
        return headers

    def fetch(self, template: _Template, request: _Request) -> tuple[int, str] | None:
        """Status and text of an answer that is used, or ``None``.

        Raises:
            _Abort: the retries that the template asks for are used up.
        """
        # Braze keeps answers by the URL alone. Two bodies to one URL are two questions to us.
        key = (request.method, request.url, request.body)
        if template.cached and key in self._answers:
            return self._answers[key]
        answer = self._persist(request) if "retry" in template.options else self._call(request)
        if answer and template.cached:
            self._answers[key] = answer
        return answer

    def _persist(self, request: _Request) -> tuple[int, str] | None:
        """Braze documentation, "Connected Content retries": then "the message is aborted"."""
        for wait in RETRY_WAITS:
            answer = self._call(request)
            if not self._may_pass():
                return answer
            self.pause(wait)
        answer = self._call(request)
        if self._may_pass():
            raise _Abort(f"Connected Content failed: {self.made[-1].error}")
        return answer

    def _may_pass(self) -> bool:
        """Whether the last call failed in a way that another try may mend."""
        status = self.made[-1].status
        return status is None or status >= 500

    def _call(self, request: _Request) -> tuple[int, str] | None:
        started = time.monotonic()
        status, body, error = self._answer(request)
        error = error or _why_not(status, body)
        seconds = time.monotonic() - started
        url = self._without_secrets(request.url)
        self.made.append(ConnectedContentCall(request.method, url, status, seconds, error))
        if error or status is None:
            return None
        return status, body.decode("utf-8-sig", "replace")

    def _answer(self, request: _Request) -> tuple[int | None, bytes, str]:
        """Status, body, and why there is no answer."""
        try:
            status, body = _within(self.timeout, lambda: self._exchange(request))
        except (TimeoutError, requests.Timeout):
            return None, b"", f"no whole answer within {self.timeout:g} s"
        except (requests.RequestException, UnicodeError) as error:
            # Only its kind: the message quotes the URL.
            return None, b"", f"no answer: {type(error).__name__}"
        return status, body, ""

    def _exchange(self, request: _Request) -> tuple[int, bytes]:
        with self.session.request(
            request.method,
            request.url,
            headers=request.headers,
            data=request.body or None,
            timeout=self.timeout,
            allow_redirects=False,
            stream=True,
            auth=_as_it_is,
        ) as response:
            body = bytearray()
            for chunk in response.iter_content(65536):
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    break
            return response.status_code, bytes(body)

    def _without_secrets(self, url: str) -> str:
        secrets = [password for _, password in self.credentials.values()]
        secrets += [value for headers in self.auth_tokens.values() for value in headers.values()]
        for secret in filter(None, secrets):
            url = url.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return re.sub(r"//[^/?#]*@", "//***@", url)


def _stored(credentials: Mapping[str, T], name: str) -> T:
    """Braze documentation: a call that names a deleted credential is not made."""
    if name not in credentials:
        known = ", ".join(sorted(credentials)) or "none"
        raise _TagError(f"no credential is named {name!r} (known: {known})")
    return credentials[name]


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds nothing; without one, requests takes passwords from ~/.netrc."""
    return request


def _why_not(status: int | None, body: bytes) -> str:
    """Why an answer is not used, or ""."""
    if status is not None and not 200 <= status < 300:
        return f"HTTP {status}"
    return f"over {LARGEST_ANSWER} bytes" if len(body) > LARGEST_ANSWER else ""


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns, or a `TimeoutError` if it takes longer in all.

    The time-out of requests is for one read: an answer that comes in drips outlasts it.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)


# --- Filters ----------------------------------------------------------------------------------
# Braze documentation, "Advanced filters".


@string_filter
def _url_escape(text: str) -> str:
    return quote(text, safe=";/?:@&=+$,[]-_.!~*'()")


@string_filter
def _url_param_escape(text: str) -> str:
    return quote(text, safe="")


@string_filter
def _json_escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


@string_filter
def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@string_filter
def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@string_filter
def _sha2(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@string_filter
def _number_with_delimiter(number: str) -> str:
    whole, point, fraction = number.partition(".")
    return re.sub(r"(\d)(?=(?:\d{3})+$)", r"\1,", whole) + point + fraction


@liquid_filter
def _property_accessor(mapping: object, key: str) -> object:
    return mapping.get(key) if isinstance(mapping, Mapping) else None


# --- All together -----------------------------------------------------------------------------


class _BrazeEnvironment(Environment):
    loop_iteration_limit = 100_000  # a mistyped range must not keep a process busy for hours

    def error(
        self,
        exc: type[MarkupError] | MarkupError,
        msg: str | None = None,
        token: Token | None = None,
    ) -> None:
        """Raise `exc`, placed at `token` where it only knows that something ended too early."""
        if isinstance(exc, MarkupError) and exc.token and exc.token.start_index < 0:
            exc.token = token or exc.token
        super().error(exc, msg, token)


def _environment() -> Environment:
    env = _BrazeEnvironment()
    for tag in (_AbortTag, _ConnectedContentTag, _IfTag, _UnlessTag):
        env.add_tag(tag)
    for absent in ("include", "render"):  # Braze has no template files
        del env.tags[absent]
    env.add_filter("json_escape", _json_escape)
    env.add_filter("md5", _md5)
    env.add_filter("number_with_delimiter", _number_with_delimiter)
    env.add_filter("property_accessor", _property_accessor)
    env.add_filter("sha1", _sha1)
    env.add_filter("sha2", _sha2)
    env.add_filter("url_escape", _url_escape)
    env.add_filter("url_param_escape", _url_param_escape)
    return env


_ENVIRONMENT = _environment()
