"""Braze's ``connected_content`` tag: parsing it, making the call, using the answer.

"Braze documentation" means the pages on Connected Content at braze.com/docs. Differences: Braze
calls ports 80 and 443 only, sends a stored token only to its domain, and caches answers for minutes
and between messages.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any, TextIO, TypeVar
from urllib.parse import parse_qsl, quote

import requests
from liquid import RenderContext, Token
from liquid.exceptions import LiquidSyntaxError
from requests.structures import CaseInsensitiveDict

from bridge.liquid.run import run_of
from bridge.liquid.syntax import (
    INVISIBLE,
    OUTPUT,
    REFERENCE,
    Expression,
    parse_expression,
    parse_output,
)
from bridge.liquid.tags import Aborted, BrazeNode, TagSource
from bridge.liquid.values import from_json, printed
from bridge.network.proxy import LOOPBACK_DIRECT

T = TypeVar("T")

# Bytes. Braze documentation: "There is a 1 MB limit for Connected Content responses".
LARGEST_ANSWER = 1_000_000

# Seconds. Braze documentation: `:retry` retries "up to five times", with exponential backoff. The
# first delay is assumed.
RETRY_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)

# Braze documentation: the hash after "Braze Sender" changes.
USER_AGENT = "Braze Sender bridge"

# The name of the tag.
CONNECTED_CONTENT = "connected_content"

JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class ContentRequest:
    """A call of a template: its URL with credentials, and all headers that Braze would send."""

    method: str
    url: str
    headers: MutableMapping[str, str]
    body: str


@dataclass(frozen=True)
class ContentAnswer:
    """The answer to a call; if *status* is 0, there was no answer, and *error* is the reason."""

    status: int
    body: bytes = b""
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


Send = Callable[[ContentRequest], ContentAnswer]


@dataclass(frozen=True)
class ConnectedContentCall:
    """One HTTP call of a template, to explain its result.

    Attributes:
        method: ``GET`` or ``POST``.
        url: as called, with credentials replaced by ``***``.
        status: HTTP status; ``None`` if no complete answer was received in time.
        seconds: duration of the call.
        error: why the answer was not used, or "".
        says: the problem that the answer itself describes, or "".
        saved_as: the variable that holds the answer, or "".
        sent: the headers of the request, without credentials.
        answer: the body of the answer.
        is_retried: whether ``:retry`` made it again.
    """

    method: str
    url: str
    status: int | None
    seconds: float
    error: str
    says: str = ""
    saved_as: str = ""
    sent: Mapping[str, str] = field(default_factory=dict)
    answer: ContentAnswer = ContentAnswer(0)
    is_retried: bool = False


# --- Reading the tag ------------------------------------------------------------------------------

# An output within the tag is replaced by a mark: its number between private-use characters.
_SET_ASIDE = re.compile(rf"{OUTPUT.pattern}|{REFERENCE}", re.DOTALL)
_MARK = re.compile("\ue001([0-9]+)\ue002")
_WORD = re.compile(r"\s*((?!:)\S+)\s*")
_OPTION = re.compile(r":(\w+)\s*")
_FLAGS = frozenset({"retry", "no_cache", "rerender"})
# Options that may hold outputs, besides the headers.
_TEXTS = ("body", "content_type", "accept")
# Options whose values have a pattern, and its description.
_PATTERNS = {
    "method": (re.compile("get|post", re.IGNORECASE), "get or post"),
    "save": (re.compile(r"[^\W\d]\w*"), "a variable's name"),
    "cache_max_age": (re.compile("[0-9]*"), "a number of seconds"),
    "basic_auth": (re.compile("[^\ue001]+"), "the name of a credential"),
    "auth_credentials": (re.compile("[^\ue001]+"), "the name of a credential"),
}
_OPTIONS = {*_FLAGS, *_TEXTS, *_PATTERNS, "headers"}


class _Text:
    """Text with outputs in it, such as a URL."""

    def __init__(self, marked: str, outputs: list[Expression]) -> None:
        parts = _MARK.split(marked)
        self._parts = [
            outputs[int(part)] if index % 2 else part for index, part in enumerate(parts)
        ]

    def fill(self, context: RenderContext) -> str:
        return "".join(
            part if isinstance(part, str) else printed(part.evaluate(context))
            for part in self._parts
        )


@dataclass(frozen=True)
class _Template:
    """A parsed ``connected_content`` tag; *texts* are the options that may hold outputs."""

    url: _Text
    headers: list[tuple[_Text, _Text]]
    texts: Mapping[str, _Text]
    options: Mapping[str, str]

    @property
    def method(self) -> str:
        return self.options.get("method", "get").upper()

    @property
    def save(self) -> str:
        return self.options.get("save", "")

    @property
    def cached(self) -> bool:
        """Braze documentation, "Caching": GET is cached by default, POST only on request."""
        if self.method == "POST":
            return "cache_max_age" in self.options
        return "no_cache" not in self.options

    def request(self, context: RenderContext, rewrite: Callable[[str], str]) -> ContentRequest:
        texts = {name: text.fill(context) for name, text in self.texts.items()}
        content_type = texts.get("content_type", "")
        headers = _default_headers(self.method, content_type)
        if "accept" in texts:
            headers["Accept"] = texts["accept"]
        headers.update((name.fill(context), value.fill(context)) for name, value in self.headers)
        url = rewrite(self.url.fill(context).strip())
        return ContentRequest(
            self.method, url, headers, _encoded(texts.get("body", ""), content_type)
        )


class _TagError(ValueError):
    """A malformed tag; ``str()`` describes the problem."""


def _read(markup: str, token: Token) -> _Template:
    marked, outputs = _set_outputs_aside(markup, token)
    url = _WORD.match(marked)
    if not url:
        raise _TagError("the URL comes first")
    options: dict[str, Any] = dict(_read_options(marked[url.end() :]))
    headers = options.pop("headers", {})
    for name, (pattern, words) in _PATTERNS.items():
        if name in options and not pattern.fullmatch(options[name]):
            raise _TagError(f":{name} takes {words}")
    return _Template(
        url=_Text(url[1], outputs),
        headers=[(_Text(k, outputs), _Text(str(v), outputs)) for k, v in headers.items()],
        texts={name: _Text(options[name], outputs) for name in _TEXTS if name in options},
        options=options,
    )


def _set_outputs_aside(markup: str, token: Token) -> tuple[str, list[Expression]]:
    """Return *markup* with a mark for each output and reference, and these in order."""
    outputs: list[Expression] = []

    def mark(found: re.Match[str]) -> str:
        inner = found[0].removeprefix("{{").removesuffix("}}").strip("-")
        is_output = found[0].startswith("{{")
        outputs.append(
            parse_output(inner, token) if is_output else parse_expression(found[0], token)
        )
        return f"\ue001{len(outputs) - 1}\ue002"

    return _SET_ASIDE.sub(mark, markup), outputs


def _read_options(text: str) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the options; headers are a mapping, a flag's value is ""."""
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
    if hidden := INVISIBLE.search(word):
        name = f"an invisible character, U+{ord(hidden[0]):04X}, which is often pasted"
        return f"`{INVISIBLE.sub('', word)}` has {name}: delete it and the character next to it"
    if spaced := re.match(r":\s+(\w+)", text):
        return f"unexpected `: {spaced[1]}`: write `:{spaced[1]}` without the space"
    # Braze documentation, "Providing JSON body": written inline, a body has no spaces.
    hint = "; a :body with spaces goes into a capture first" if after == "body" else ""
    return f"unexpected {word!r}{hint}"


def _read_value(name: str, text: str, position: int) -> tuple[Any, int]:
    """Return the value of the option `name` at `position`, and the position of the next option."""
    if name in _FLAGS:
        return "", position
    if name == "headers":
        return _read_headers(text, position)
    value = _WORD.match(text, position)
    if value:
        return value[1], value.end()
    if name == "cache_max_age":  # its value may be left out
        return "", position
    raise _TagError(f":{name} needs a value")


def _read_headers(text: str, position: int) -> tuple[dict[str, Any], int]:
    try:
        headers, end = json.JSONDecoder().raw_decode(text, position)
    except ValueError as error:
        reason = getattr(error, "msg", "a number is too long")
        message = f":headers needs a JSON object, everything in quotes ({reason})"
        raise _TagError(message) from error
    if not isinstance(headers, dict):
        raise _TagError(":headers needs a JSON object")
    return headers, end + len(text[end:]) - len(text[end:].lstrip())


# --- Rendering the tag ----------------------------------------------------------------------------


class ConnectedContentNode(BrazeNode):
    """``{% connected_content URL :option value … %}``."""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        if not tag.markup:
            raise LiquidSyntaxError("connected_content needs a URL", token=self.token)
        try:
            self.template = _read(tag.markup, self.token)
        except _TagError as error:
            raise LiquidSyntaxError(f"connected_content: {error}", token=self.token) from error

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        """Save the answer or print it.

        Braze documentation, "Local Connected Content variables": JSON is stored in the ``:save``
        variable, or else in ``connected``; text is printed unless saved. If an answer is not used,
        nothing is printed, and the ``:save`` variable is "" (``connected`` is nil). With
        ``:rerender``, Liquid in the answer is rendered once ("User profile fields").
        """
        calls: ContentCalls = run_of(context).calls
        answer = calls.fetch(self.template, self.template.request(context, calls.rewrite))
        if answer and "rerender" in self.template.options:
            status, text = answer
            answer = status, run_of(context).nested(text, "the answer of a call", context)
        value = _value(*answer) if answer else ""
        if self.template.save:
            context.assign(self.template.save, value)
        elif answer and value is answer[1]:
            buffer.write(value)
        else:
            context.assign("connected", value if answer else None)


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
    """Return an answer's JSON, or its text.

    Braze documentation, "HTTP status codes": only objects get the status.
    """
    try:
        value = from_json(text)
    except (ValueError, RecursionError):
        return text
    return {**value, "__http_status_code__": status} if isinstance(value, dict) else value


# --- The calls ------------------------------------------------------------------------------------


@dataclass
class ContentCalls:
    """The calls of one render, and their answers: Braze calls a URL only once.

    Attributes:
        send, credentials, auth_tokens, pause, rewrite: as for `bridge.liquid.render.render`.
        made: all calls in order, including retries.
    """

    send: Send
    credentials: Mapping[str, tuple[str, str]]
    auth_tokens: Mapping[str, Mapping[str, str]]
    pause: Callable[[float], None]
    rewrite: Callable[[str], str] = str
    made: list[ConnectedContentCall] = field(default_factory=list)
    _answers: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)

    def fetch(self, template: _Template, request: ContentRequest) -> tuple[int, str] | None:
        """Return status and text of an answer; ``None`` if it is not used.

        Raises:
            Aborted: all retries that the template asks for have failed.
        """
        # Braze caches answers by the URL alone. Here the method and body are part of the key.
        key = (request.method, request.url, request.body)
        if template.cached and key in self._answers:
            return self._answers[key]
        try:
            request.headers.update(self._authorization(template.options))
        except _NotStoredError as error:
            url = self._without_secrets(request.url)
            self.made.append(ConnectedContentCall(request.method, url, None, 0.0, str(error)))
            return None
        call = self._call_with_retries if "retry" in template.options else self._call
        answer = call(request, template.save)
        if answer and template.cached:
            self._answers[key] = answer
        return answer

    def _authorization(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return the headers for the stored credentials that `options` names.

        Raises:
            _NotStoredError: a credential is unknown.
        """
        headers: dict[str, str] = {}
        if name := options.get("basic_auth"):
            pair = ":".join(_stored(self.credentials, name))
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        if name := options.get("auth_credentials"):
            headers.update(_stored(self.auth_tokens, name))
        return headers

    def _call_with_retries(self, request: ContentRequest, saved_as: str) -> tuple[int, str] | None:
        """Braze documentation, "Connected Content retries": then "the message is aborted"."""
        for wait in RETRY_WAITS:
            answer = self._call(request, saved_as)
            if not self._failed_temporarily():
                return answer
            self.made[-1] = replace(self.made[-1], is_retried=True)
            self.pause(wait)
        answer = self._call(request, saved_as)
        if self._failed_temporarily():
            raise Aborted(f"Connected Content failed: {self.made[-1].error}")
        return answer

    def _failed_temporarily(self) -> bool:
        """Return whether the last call failed temporarily."""
        status = self.made[-1].status
        return status is None or status >= 500

    def _call(self, request: ContentRequest, saved_as: str) -> tuple[int, str] | None:
        started = time.monotonic()
        answer = self.send(request)
        error = answer.error or _why_unused(answer)
        seconds = time.monotonic() - started
        url = self._without_secrets(request.url)
        status = answer.status or None
        self.made.append(
            ConnectedContentCall(
                request.method,
                url,
                status,
                seconds,
                error,
                says(answer.body),
                saved_as,
                sent=_without_credentials(request.headers),
                answer=answer,
            )
        )
        if error or status is None:
            return None
        return status, answer.body.decode("utf-8-sig", "replace")

    def _without_secrets(self, url: str) -> str:
        secrets = [password for _, password in self.credentials.values()]
        secrets += [value for headers in self.auth_tokens.values() for value in headers.values()]
        for secret in filter(None, secrets):
            url = url.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return re.sub(r"//[^/?#]*@", "//***@", url)


def _without_credentials(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* without secret values: a marketer may put a key into any header."""
    return {name: value if name.lower() in _HARMLESS else "***" for name, value in headers.items()}


_HARMLESS = {"accept", "content-type", "user-agent"}


class _NotStoredError(LookupError):
    """A credential with this name does not exist."""


def _stored(credentials: Mapping[str, T], name: str) -> T:
    """Braze documentation: a call that names a deleted credential is not made."""
    if name not in credentials:
        known = ", ".join(sorted(credentials)) or "none"
        raise _NotStoredError(f"no credential is named {name!r} (known: {known})")
    return credentials[name]


def _why_unused(answer: ContentAnswer) -> str:
    """Return why an answer is not used, or ""."""
    if answer.status and not 200 <= answer.status < 300:
        return f"HTTP {answer.status}"
    return f"over {LARGEST_ANSWER} bytes" if len(answer.body) > LARGEST_ANSWER else ""


def says(body: bytes) -> str:
    """Return the problem that an answer of the bridge describes, or ""."""
    try:
        document = json.loads(body)
        return str(document["errors"]["message"] if "errors" in document else document["reason"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def over_http(session: requests.Session, timeout: float) -> Send:
    """Return a function that makes calls over HTTP.

    Args:
        session: used for the calls.
        timeout: seconds within which a call's whole answer must be received; 2 in Braze.
    """

    def send(request: ContentRequest) -> ContentAnswer:
        try:
            return _run_within(timeout, lambda: _exchange(session, request, timeout))
        except (TimeoutError, requests.Timeout):
            return ContentAnswer(0, error=f"no whole answer within {timeout:g} s")
        except (requests.RequestException, UnicodeError) as error:
            # Only its type: the message quotes the URL.
            return ContentAnswer(0, error=f"no answer: {type(error).__name__}")

    return send


def _exchange(session: requests.Session, request: ContentRequest, timeout: float) -> ContentAnswer:
    with session.request(
        request.method,
        request.url,
        headers=request.headers,
        data=request.body.encode() or None,
        timeout=timeout,
        allow_redirects=False,
        stream=True,
        auth=_without_netrc,
        proxies=LOOPBACK_DIRECT,
    ) as response:
        body = bytearray()
        for chunk in response.iter_content(65536):
            body += chunk
            if len(body) > LARGEST_ANSWER:
                break
        return ContentAnswer(response.status_code, bytes(body), headers=dict(response.headers))


def _without_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return the request unchanged. Without any `auth`, requests reads passwords from ~/.netrc."""
    return request


def _run_within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`.

    The time-out of requests applies to a single read, so a slow answer can exceed it.

    Raises:
        TimeoutError: `work` takes longer than *seconds*.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)
