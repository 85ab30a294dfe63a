"""Render Braze's Liquid outside of Braze, with warnings for the author of the message.

python-liquid provides the parser, the scopes and the limits. Tags, filters and expressions are
those of Braze (its fork of Liquid 5.2.0, in lax mode), so that a preview shows what Braze sends.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import requests
from liquid import Environment, RenderContext, Token
from liquid.exceptions import LiquidError as MarkupError
from liquid.exceptions import LiquidInterrupt
from liquid.output import LimitedStringIO
from liquid.template import BoundTemplate

from bridge import clock
from bridge.liquid.connected_content import (
    CONNECTED_CONTENT,
    ConnectedContentCall,
    ConnectedContentNode,
    ContentCalls,
    Send,
    over_http,
)
from bridge.liquid.filters import ArgumentsFault
from bridge.liquid.run import DEEPEST, Run, begin, did_you_mean, run_of
from bridge.liquid.syntax import (
    NO_END,
    PROFILE,
    collect_notes,
    position,
    tokens,
    without_html_comments,
)
from bridge.liquid.tags import TAGS, Aborted, BrazeTag
from bridge.liquid.values import LiquidFault, TooLargeError, weight

log = logging.getLogger(__name__)

LARGEST_TEMPLATE = 100_000
# Braze makes these addresses for each recipient.
_URLS = {name: f"https://braze.example/{name}" for name in PROFILE if name.endswith("_url")}
# python-liquid's messages about limits -> messages for the author.
_LIMITS = {
    "loop iteration limit reached": "the loops take over 100,000 rounds",
    "output stream limit reached": "the message grows beyond 2 MB",
    "local namespace limit reached": "the variables grow beyond 16 MB",
    "block nesting limit reached": "the tags are nested over 100 deep",
}


class LiquidError(ValueError):
    """A template that cannot be parsed or rendered: one line, ``line 2, column 5: …``.

    Attributes:
        calls: the Connected Content calls made before the error.
        warnings: as in `Rendered`.
    """

    calls: tuple[ConnectedContentCall, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """The result of rendering a template.

    Attributes:
        text: the message; "" if it was aborted.
        aborted: the reason of ``abort_message`` (may be ""), or that all retries failed; ``None``
            if the message would be sent.
        calls: all Connected Content calls in order, including retries.
        warnings: markup that Braze ignores silently, missing values, and content that the preview
            cannot fill.
        blanks: outputs that printed nothing and that no warning explains.
        hints: fields of the customer that are printed without a default.
    """

    text: str
    aborted: str | None
    calls: tuple[ConnectedContentCall, ...]
    warnings: tuple[str, ...] = ()
    blanks: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


class BrazeContext(RenderContext):
    """A context that counts the size of variables, with nested lists, and keeps line ends."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._weights: dict[str, tuple[object, int]] = {}

    def get_buffer(self, buf: TextIO | None = None) -> LimitedStringIO:
        used = buf.size if isinstance(buf, LimitedStringIO) else 0
        return LimitedStringIO(BrazeEnvironment.output_stream_limit - used, newline="")

    def get_size_of_locals(self) -> int:
        for name, value in self.locals.items():
            known = self._weights.get(name)
            if known is None or known[0] is not value:
                self._weights[name] = (value, weight(value))
        return sum(weight for _, weight in self._weights.values())


class BrazeTemplate(BoundTemplate):
    context_class = BrazeContext


class BrazeEnvironment(Environment):
    """Braze's tags and filters, and the limits of a preview."""

    block_nesting_limit = 100
    context_depth_limit = 110  # a loop takes one scope, and five scopes are always there
    loop_iteration_limit = 100_000
    output_stream_limit = 2_000_000
    local_namespace_limit = 16_000_000
    suppress_blank_control_flow_blocks = False
    template_class = BrazeTemplate

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:  # noqa: ARG002 - the parent's
        for name, node in {**TAGS, CONNECTED_CONTENT: ConnectedContentNode}.items():
            self.tags[name] = BrazeTag(self, name, node)

    def tokenizer(self) -> Callable[[str], Iterator[Token]]:
        return tokens


_ENVIRONMENT = BrazeEnvironment()


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
    send: Send | None = None,
    rewrite: Callable[[str], str] = str,
    pause: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = clock.wall,
) -> Rendered:
    """Render a Braze message template, making its Connected Content calls.

    Args:
        source: the template.
        attributes: Braze's data, with types: the profile (``{"user_id": "…", "first_name": "…"}``)
            for ``${first_name}``; objects in it (``custom_attribute``, ``event_properties``,
            ``context``, ``api_trigger_properties``, …) for ``context.${x}``. Without
            ``custom_attribute``, the attributes themselves are used. ``content_blocks``
            (``{name: text}``) and ``catalogs`` (``{name: {item ID: {field: value}}}``) replace
            content that only Braze has.
        campaign: ``{"api_id": "…", "dispatch_id": "…"}``, for ``campaign.${api_id}``.
        canvas: ``{"api_id": "…"}``, for ``canvas.${api_id}``.
        credentials: ``{name: (user, password)}``, for ``:basic_auth name``.
        auth_tokens: ``{name: {header: value}}``, for ``:auth_credentials name``.
        variables: other variables of the template.
        timeout: seconds within which a call's whole answer must be received; 2 in Braze.
        send: makes the calls instead of HTTP.
        rewrite: converts the URL in the template to the URL to call.
        pause: waits for a number of seconds between the attempts of a ``:retry``.
        now: returns seconds since 1970, for dates.

    Raises:
        LiquidError: the template is wrong, names an unknown credential, or exceeds the limits of a
            preview.
    """
    known = {**_variables(attributes, campaign, canvas), **(variables or {})}
    with requests.Session() as http:
        calls = ContentCalls(
            send or over_http(http, timeout), credentials or {}, auth_tokens or {}, pause, rewrite
        )
        run = Run(
            attributes={**_URLS, **attributes},
            calls=calls,
            blocks=_mapping(attributes, "content_blocks"),
            catalogs=_mapping(attributes, "catalogs"),
            now=lambda: int(now()),
            nested=_nested,
            position=position,
            counters=known,
        )
        try:
            text, aborted = _render(source, run), None
        except Aborted as abort:
            text, aborted = "", abort.reason
        except LiquidError as error:
            error.calls, error.warnings = tuple(calls.made), tuple(run.warnings.values())
            raise
    warnings = tuple(run.warnings.values())
    if aborted is not None:
        return Rendered(text, aborted, tuple(calls.made), warnings)
    return Rendered(
        text, None, tuple(calls.made), warnings, run.unexplained_blanks, run.untested_hints
    )


def _mapping(attributes: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = attributes.get(name)
    return found if isinstance(found, Mapping) else {}


def _variables(
    attributes: Mapping[str, Any],
    campaign: Mapping[str, Any] | None,
    canvas: Mapping[str, Any] | None,
) -> dict[str, Any]:
    spaces = {name: value for name, value in attributes.items() if isinstance(value, dict)}
    return {
        "custom_attribute": dict(attributes),
        "campaign": dict(campaign or {}),
        "canvas": dict(canvas or {}),
        **spaces,
    }


def _render(source: str, run: Run) -> str:
    if len(source) > LARGEST_TEMPLATE:
        raise LiquidError(f"the template is longer than {LARGEST_TEMPLATE:,} characters")
    try:
        template = _parse(source, run)
        context = BrazeContext(template, globals=run.counters)
        begin(context, run)
        return _render_nodes(template, context)
    except Aborted:
        raise
    except Exception as error:
        raise _liquid_error(error) from error


def _parse(source: str, run: Run) -> BoundTemplate:
    """Parse *source*; warn about what Braze ignores in it."""
    with collect_notes() as notes:
        try:
            template = _ENVIRONMENT.from_string(without_html_comments(source))
        except MarkupError as error:
            # A tag that has swallowed the next one is the cause of the error.
            for token, words in notes:
                if words == NO_END:
                    raise MarkupError(words, token=token) from error
            if type(error) is MarkupError and error.__cause__:
                # python-liquid wraps errors that are not its own.
                raise error.__cause__ from None
            raise
    for token, words in notes:
        run.warn(words, token)
    return template


def _render_nodes(template: BoundTemplate, context: RenderContext) -> str:
    buffer = context.get_buffer()
    try:
        for node in template.nodes:
            node.render(context, buffer)
    except LiquidInterrupt:
        pass  # `break` outside of a loop ends the message, as in Braze
    return buffer.getvalue()


class _NestedFault(LiquidFault):
    """A fault in an included text, such as a content block, with a complete message."""


def _nested(source: str, name: str, context: RenderContext) -> str:
    """Render an included text, such as a content block."""
    run = run_of(context)
    if run.depth >= DEEPEST:
        raise _NestedFault(f"{name} contains itself, or too many others")
    within = run.within
    run.depth, run.within = run.depth + 1, f"{name}, "
    try:
        return _render_nodes(_parse(source, run), context)
    except MarkupError as error:
        if isinstance(error.__cause__, _NestedFault):
            raise error.__cause__ from error
        raise _NestedFault(f"{name}, {_liquid_error(error)}") from error
    finally:
        run.depth, run.within = run.depth - 1, within


# --- Errors in words ------------------------------------------------------------------------------

_COMPARISON = re.compile("comparison of (.+) with (.+) failed")
_OPERATOR = re.compile("Unknown operator (.+)")
# What other languages write -> Liquid's.
_OPERATORS = {"=": "==", "===": "==", "is": "==", "=>": ">=", "=<": "<="}
_NUMBERS = ("no value", "1 value", "2 values")
_WORDS = {"String": "a text", "Integer": "a number", "Float": "a number", "Array": "a list"}


def _liquid_error(error: Exception) -> LiquidError:
    if isinstance(error, RecursionError):
        return LiquidError("the template's parts are nested too deep")
    if isinstance(error, TooLargeError):
        return LiquidError(str(error))
    if not isinstance(error, MarkupError):
        log.error("a preview failed", exc_info=error, extra={"action": "preview_failed"})
        kind = type(error).__name__
        return LiquidError(f"a fault of the bridge, not of the template: see its log ({kind})")
    words = " ".join(str(error.message).split())
    words = _LIMITS.get(words, words)
    if isinstance(error.__cause__, LiquidFault) and not isinstance(error.__cause__, _NestedFault):
        words = _in_plain_words(words, error.__cause__)
    if not error.token or error.token.start_index < 0:
        return LiquidError(words)
    return LiquidError(f"{position(error.token)}: {words}")


def _in_plain_words(words: str, fault: LiquidFault) -> str:
    """Explain Ruby's message, which Braze shows, in a marketer's words."""
    if found := _COMPARISON.fullmatch(words):
        sides = [_WORDS.get(one, f"the number {one}") for one in found.groups()]
        meant = f"{sides[0]} cannot be compared with {sides[1]}; `| plus: 0` makes a text a number"
    elif words == "divided by 0":
        meant = "nothing can be divided by 0"
    elif found := _OPERATOR.fullmatch(words):
        operator = _OPERATORS.get(found[1])
        hint = f"; write `{operator}`" if operator else did_you_mean(found[1], ["contains"])
        meant = f"Braze has no operator `{found[1]}`{hint}"
    elif isinstance(fault, ArgumentsFault):
        least, most = (_NUMBERS[number] for number in fault.takes)
        takes = most if least == most else f"{least} or {most}"
        meant = f"the filter `{fault.name}` takes {takes} after its colon, and has {fault.given}"
    else:
        return f"Liquid error: {words}"
    return f"{meant} (Liquid error: {words})"
