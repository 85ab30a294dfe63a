"""Parse Braze's Liquid: markup, references, expressions and conditions.

Braze parses in lax mode: markup that does not match is ignored silently. The patterns here are
those of Liquid 5.2.0 (lib/liquid/*.rb), so the same markup is ignored; it is noted for a warning.
Braze adds references, ``${first_name}``, and outputs within a tag or another output:
``{% if {{a}} == 1 %}`` (Braze documentation, "Exceptions for double brackets").
"""

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from liquid import RenderContext, Token
from liquid.exceptions import LiquidSyntaxError
from liquid.token import TOKEN_CONTENT, TOKEN_EXPRESSION, TOKEN_OUTPUT, TOKEN_TAG

from bridge.liquid import filters, values
from bridge.liquid.run import did_you_mean, run_of
from bridge.liquid.values import LiquidFault, Range

# --- Markup -----------------------------------------------------------------------------------

REFERENCE = r"\$\{[^{}\n]*\}"
_INNER = rf"\{{\{{(?:{REFERENCE}|(?!\}}\}}|\{{\{{|\{{%).)*+\}}\}}"
_OUTPUT = rf"\{{\{{(?:{REFERENCE}|{_INNER}|(?!\}}\}}|\{{\{{|\{{%).)*+\}}\}}"
OUTPUT = re.compile(_OUTPUT, re.DOTALL)
_MARKUP = re.compile(
    rf"(?P<tag>\{{%(?:(?!%\}}).)*+%\}})|(?P<output>{_OUTPUT}|\{{\{{[^}}]*\}}\}})"
    r"|(?P<open>\{%|\{\{)",
    re.DOTALL,
)
_END_OF_RAW = re.compile(r"\{%-?\s*endraw\b.*?%\}", re.DOTALL)
_TAG = re.compile(r"\{%-?\s*(\w+)\s*(.*?)-?%\}", re.DOTALL | re.ASCII)
# Replace each character and each line end of a comment until `tokens` drops them.
_REMOVED, _REMOVED_LINE = "\ufdd0", "\ufdd1"
_DROP_REMOVED = str.maketrans("", "", _REMOVED + _REMOVED_LINE)
# Outlook's conditional comments are not removed: their markup is sent.
_CONDITIONAL = re.compile(r"<!--(?:\[if\b|<!\[endif\])", re.IGNORECASE)


def without_html_comments(source: str) -> str:
    """Return *source* with its HTML comments blanked out, so that positions do not change.

    Braze documentation, "Using Liquid": HTML comments are removed before Liquid is read.
    """
    pieces, position = [], 0
    start = source.find("<!--")
    while start >= 0 and (end := source.find("-->", start + 4)) >= 0:
        end += 3
        if not _CONDITIONAL.match(source, start):
            blank = re.sub(".", _REMOVED, source[start:end]).replace("\n", _REMOVED_LINE)
            pieces += [source[position:start], blank]
            position = end
        start = source.find("<!--", end)
    return "".join((*pieces, source[position:]))


def tokens(source: str) -> Iterator[Token]:
    """Yield python-liquid's tokens of *source*.

    Raises:
        LiquidSyntaxError: a tag or an output is not closed.
    """
    position, trim = 0, False
    while found := _MARKUP.search(source, position):
        itself = found[0]
        yield from _text(source, position, found.start(), trim, itself[2:3] == "-")
        position, trim = found.end(), itself[-3:-2] == "-"
        read = list(_tokens_of(found, source))
        if read[0].is_tag("raw"):
            end = _END_OF_RAW.search(source, position)
            if not end:
                raise _syntax_error("`raw` needs an {% endraw %}", found.start(), source)
            yield read[0]
            raw = source[position : end.start()].translate(_DROP_REMOVED)
            yield Token(TOKEN_EXPRESSION, raw, position, source)
            position, trim = end.end(), end[0][-3:-2] == "-"
        else:
            yield from read
    yield from _text(source, position, len(source), trim, False)


def _text(source: str, start: int, end: int, trim: bool, trim_end: bool) -> Iterator[Token]:  # noqa: FBT001
    text = source[start:end].translate(_DROP_REMOVED)
    text = text.lstrip() if trim else text
    if text := text.rstrip() if trim_end else text:
        yield Token(TOKEN_CONTENT, text, start, source)


def _tokens_of(found: re.Match[str], source: str) -> Iterator[Token]:
    start = found.start()
    if found["tag"]:
        tag = _TAG.fullmatch(found["tag"].translate(_DROP_REMOVED))
        if not tag:
            raise _syntax_error("a tag begins with its name, such as {% if … %}", start, source)
        token = Token(TOKEN_TAG, tag[1], start, source)
        if "{%" in re.sub(_QUOTED, "", tag[2]):
            note(token, NO_END)
        yield token
        # Text after the name of an end tag is ignored.
        if tag[2].strip() and not tag[1].startswith("end"):
            yield Token(TOKEN_EXPRESSION, tag[2].strip(), start, source)
    elif found["output"]:
        inner = found["output"].translate(_DROP_REMOVED).removeprefix("{{").removesuffix("}}")
        inner = inner.removeprefix("-").removesuffix("-")
        yield Token(TOKEN_OUTPUT, found["output"], start, source)
        yield Token(TOKEN_EXPRESSION, inner, start, source)
    else:
        close = "}}" if found["open"] == "{{" else "%}"
        raise _syntax_error(f"{found['open']} is never closed by {close}", start, source)


def _syntax_error(words: str, start: int, source: str) -> LiquidSyntaxError:
    return LiquidSyntaxError(words, token=Token(TOKEN_CONTENT, source, start, source))


def _source_before(token: Token) -> str:
    return token.source[: max(0, token.start_index)].replace(_REMOVED_LINE, "\n")


def line_of(token: Token) -> int:
    return _source_before(token).count("\n") + 1


def position(token: Token) -> str:
    before = _source_before(token)
    return f"line {line_of(token)}, column {len(before) - before.rfind(chr(10))}"


# --- Markup that Braze ignores ------------------------------------------------------------------

# The note about a tag that contains the next one.
NO_END = "this tag has no `%}` before the next `{%`"
_ignored: ContextVar[list[tuple[Token, str]] | None] = ContextVar("ignored", default=None)


@contextmanager
def collect_notes() -> Iterator[list[tuple[Token, str]]]:
    """Collect notes about ignored markup during parsing: its token, and a sentence."""
    notes: list[tuple[Token, str]] = []
    before = _ignored.set(notes)
    try:
        yield notes
    finally:
        _ignored.reset(before)


def note(token: Token, sentence: str) -> None:
    notes = _ignored.get()
    if notes is not None:
        notes.append((token, sentence))


def note_ignored(token: Token, rest: str, instead: str = "") -> None:
    """Note that Braze ignores *rest*, unless it is blank; *instead*: what to write, or ""."""
    rest = " ".join(rest.split())
    if rest.strip(" ,"):
        note(token, f"Braze ignores `{rest}`{f'; write `{instead}`' if instead else ''}")


# --- Expressions --------------------------------------------------------------------------------

_QUOTED = r"\"[^\"]*\"|'[^']*'"
_WHOLE = re.compile(rf"(?:{_QUOTED}|{REFERENCE}|[^'\"])*+")
_ENTITY = re.compile(r"&(?:#[0-9]{1,6}|#[xX][0-9a-fA-F]{1,5}|[a-z]{2,6});")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def mistyped(markup: str) -> str:
    """Return a sentence about a typing mistake in *markup* that changes its meaning.

    It is "" without one.
    """
    bare = re.sub(rf"{_QUOTED}|{REFERENCE}", "", markup)
    if entity := _ENTITY.search(bare):
        meant = html.unescape(entity[0])
        return f"`{entity[0]}` is the HTML code of a character: type `{meant}` in its place"
    if hidden := INVISIBLE.search(bare):
        return f"there is an invisible character, U+{ord(hidden[0]):04X}: type this part again"
    if opened := re.search(r"\$\{\s*([\w.-]*)", bare):
        return f"`{opened[0]}` has no closing brace; write `{{{{${{{opened[1]}}}}}}}`"
    found = _WHOLE.match(markup)
    rest = markup[found.end() :].strip() if found else ""
    if not rest:
        return ""
    if len(rest) > 1:
        return f"`{rest}` has no closing quote; write `{rest}{rest[0]}`"
    return (
        f"a quote is missing before this `{rest}`; put a text with an apostrophe in double quotes"
    )


_CHAR = rf"{REFERENCE}|(?!{REFERENCE})[^\s,|'\"]|{_QUOTED}"
FRAGMENT = rf"(?:{_QUOTED}|(?:{_CHAR})++)"
# A pattern that may match less, so that the following pattern matches.
BACKTRACKING_FRAGMENT = rf"(?:{_QUOTED}|(?:{_CHAR})+)"
ATTRIBUTE = re.compile(rf"(?<![\w-])-*(\w[\w-]*+)\s*:\s*({FRAGMENT})", re.ASCII)

_BRACES = re.compile(rf"({_QUOTED}|{REFERENCE})|\{{\{{|\}}\}}")
_INTEGER = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?[0-9][0-9.]+")
_RANGE = re.compile(r"\(\s*(?>(\S+)\s*\.\.)\s*(\S+)\s*\)")
_LITERALS = {
    **dict.fromkeys(("nil", "null", ""), None),
    "true": True,
    "false": False,
    "blank": "",
    "empty": "",
}
_STEP = re.compile(rf"\[|{REFERENCE}|[\w-]+\??", re.ASCII)
_PATH = re.compile(r"\[([^\[\]]*)\]|[^.\[\]]+")
_COMMANDS = frozenset({"size", "first", "last"})
# Namespaces of customers' data, in which a path without a value is not the template's mistake.
NAMESPACES = frozenset(
    {
        *("custom_attribute", "event_properties", "canvas_entry_properties", "context"),
        *("api_trigger_properties", "campaign", "canvas", "targeted_device"),
        *("most_recently_used_device", "sms", "subscribed_state"),
    }
)
# Braze documentation, "Supported personalization tags": what ${…} takes of a profile.
PROFILE = frozenset(
    {
        *("braze_id", "city", "country", "date_of_birth", "email_address", "first_name", "gender"),
        *("language", "last_name", "last_used_app_date", "most_recent_app_version"),
        *("most_recent_locale", "most_recent_location", "phone_number", "random_bucket_number"),
        *("set_user_to_opted_in_url", "set_user_to_subscribed_url"),
        *("set_user_to_unsubscribed_url", "time_zone", "user_id"),
    }
)


# Fields that every customer has.
_ALWAYS_THERE = frozenset({"braze_id", "random_bucket_number", "user_id"})
# Namespaces whose values are texts. The page has no JSON field for them.
_TEXT_SPACES = "content_blocks|most_recently_used_device|sms|subscribed_state|targeted_device"
_USED = re.compile(rf"(?:\b({_TEXT_SPACES})\.|(?<![\w.]))\$\{{\s*([\w .-]+?)\s*\}}")


def fields_used(source: str) -> dict[tuple[str, str], None]:
    """Return the fields that *source* uses, in order, as (namespace, name).

    The namespace "" is the profile. Comments and ``raw`` blocks use no fields.
    """
    used: dict[tuple[str, str], None] = {}
    source = without_html_comments(source)
    position, comments, pattern = 0, 0, _MARKUP
    while found := pattern.search(source, position):
        position = found.end()
        if found[0] in {"{%", "{{"}:
            # Never closed: go on in linear time.
            pattern = OUTPUT
        tag = _TAG.match(found[0])
        name = tag[1] if tag else ""
        if name == "raw":
            end = _END_OF_RAW.search(source, position)
            position = end.end() if end else len(source)
        elif name in {"comment", "endcomment"}:
            comments = max(0, comments + (1 if name == "comment" else -1))
        elif not comments:
            used |= {(one[1] or "", one[2]): None for one in _USED.finditer(found[0])}
    return used


def without_braces(markup: str) -> str:
    """Return *markup* without the braces of outputs within it."""
    return _BRACES.sub(lambda found: found[1] or "", markup)


class Expression(ABC):
    """A part of a template that has a value."""

    @abstractmethod
    def evaluate(self, context: RenderContext) -> Any:
        """Return the value.

        Raises:
            LiquidFault: Ruby refuses the operation.
        """


@dataclass(frozen=True)
class Literal(Expression):
    value: Any

    def evaluate(self, context: RenderContext) -> Any:  # noqa: ARG002 - one for all
        return self.value


@dataclass(frozen=True)
class VariableRange(Expression):
    """A range whose ends are variables."""

    first: Expression
    last: Expression

    def evaluate(self, context: RenderContext) -> Any:
        return Range(
            _range_end(self.first.evaluate(context)), _range_end(self.last.evaluate(context))
        )


def _range_end(value: Any) -> int:
    if value is None or isinstance(value, str):
        return values.leading_integer(value or "")
    return values.integer_of(value)


def _literal_end(value: Any) -> int:
    return values.whole(value) if isinstance(value, float) else _range_end(value)


def parse_expression(markup: str, token: Token) -> Expression:
    """Parse a value: a literal, a range or a variable (Expression.parse)."""
    markup = markup.strip()
    if markup in _LITERALS:
        return Literal(_LITERALS[markup])
    if markup[0] in "\"'" and markup[-1] == markup[0]:
        return Literal(markup[1:-1])
    return _number(markup) or _range(markup, token) or _variable(markup, token)


def _number(markup: str) -> Literal | None:
    if _INTEGER.fullmatch(markup):
        return Literal(values.leading_integer(markup))
    if _FLOAT.fullmatch(markup):
        whole, _, fraction = markup.partition(".")
        return Literal(float(f"{whole}.{fraction.partition('.')[0] or 0}"))
    return None


def _range(markup: str, token: Token) -> Expression | None:
    if found := _RANGE.fullmatch(markup):
        first, last = (parse_expression(end, token) for end in found.groups())
        if isinstance(first, Literal) and isinstance(last, Literal):
            return Literal(Range(_literal_end(first.value), _literal_end(last.value)))
        return VariableRange(first, last)
    return None


@dataclass(frozen=True)
class Reference:
    """The name in ``${…}``: an existing name, or else a path."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> list[Any]:
        """Return ``cart[0].title`` as ``["cart", 0, "title"]``."""
        steps: list[Any] = []
        for found in _PATH.finditer(self.name):
            step = found[0].strip() if found[1] is None else found[1].strip("'\" ")
            is_index = found[1] is not None and step.isdecimal()
            steps.append(values.leading_integer(step) if is_index else step)
        return steps


@dataclass(frozen=True)
class Step:
    """One step of a path: its source *text*, and whether it may be a command such as ``.size``."""

    text: str
    key: "Expression | Reference"

    @property
    def is_command(self) -> bool:
        return self.text in _COMMANDS

    def value(self, context: RenderContext) -> Any:
        return self.key if isinstance(self.key, Reference) else self.key.evaluate(context)


@dataclass(frozen=True)
class Variable(Expression):
    """A variable and the steps from it (VariableLookup).

    Without a *root*, the first step is a reference to the customer's profile, ``${first_name}``.
    """

    root: Step | None
    steps: tuple[Step, ...]
    # Not part of its `repr`, which names the group of a `cycle`.
    token: Token = field(repr=False, compare=False)
    # Whether a note says what is wrong with its markup.
    is_noted: bool = field(default=False, repr=False, compare=False)

    @property
    def path(self) -> str:
        """The source text of the variable and its steps."""
        return self._path(len(self.steps))

    @property
    def may_be_blank(self) -> bool:
        """Whether it is a field of the customer that some customers do not have."""
        if self.root:
            return self.root.text == "custom_attribute"
        name = str(self.steps[0].key)
        return name in PROFILE - _ALWAYS_THERE and not name.endswith("_url")

    def evaluate(self, context: RenderContext) -> Any:
        run = run_of(context)
        name = self.root.value(context) if self.root else ""
        if name == "content_blocks" and self.steps:
            return self._content_block(context)
        if name == "preference_center" and self.steps:
            # Braze makes the address of the recipient's page.
            return f"https://braze.example/preference_center/{self.steps[0].value(context)}"
        value = _look_up(name, context) if self.root else run.attributes
        if value is _ABSENT:
            self._warn_missing_root(name, context)
            return None
        of_customer = not self.root or name == "custom_attribute"
        for index, step in enumerate(self.steps):
            key = step.value(context)
            after = _next_value(value, key, is_command=step.is_command, of_customer=of_customer)
            if after is _ABSENT:
                is_data = of_customer or name in NAMESPACES
                # An empty object, such as `first` without offers, does not show which fields exist.
                if isinstance(value, dict) and (value or is_data) and not step.is_command:
                    known = [*value, *(PROFILE if value is run.attributes else ())]
                    run.warn_missing(
                        self.token,
                        self._path(index + 1),
                        did_you_mean(values.text_of(key), known),
                        is_data=is_data,
                    )
                return None
            value = after
        return value

    def _path(self, steps: int) -> str:
        """Return the source text of the variable and its first *steps* steps."""
        texts = [step.text for step in self.steps[:steps]]
        if self.root:
            texts.insert(0, self.root.text)
        return "".join((texts[0], *(text if text[0] == "[" else f".{text}" for text in texts[1:])))

    def _warn_missing_root(self, name: Any, context: RenderContext) -> None:
        run, token = run_of(context), self.token
        if self.is_noted or not isinstance(name, str):
            return
        if name in NAMESPACES:
            run.warn_missing(token, self.path, "", is_data=True)
        elif name in PROFILE:
            run.warn_missing(token, name, f"; write `{{{{${{{name}}}}}}}`")
        elif name:
            known = [*context.locals, *context.globals]
            hint = did_you_mean(name, known)
            if name[0].isdigit():
                hint = f"; put it in quotes: `'{name}'`"
            elif not hint and any(not call.saved_as for call in run.calls.made):
                hint = f"; a connected_content tag keeps its answer with `:save {name}`"
            run.warn_missing(token, name, hint)

    def _content_block(self, context: RenderContext) -> str:
        run = run_of(context)
        name = values.text_of(self.steps[0].value(context))
        if name in run.blocks:
            return run.nested(str(run.blocks[name]), f"content block {name}", context)
        run.warn(
            f"Braze has content blocks; the preview cannot fill `{name}`: "
            "give its text as a test value",
            self.token,
        )
        return f"[content block: {name}]"


def _variable(markup: str, token: Token) -> Variable:
    parts, rest = _parts(markup)
    if rest := rest.replace(".", "").strip():
        _note_ignored_rest(markup, rest, token)
    steps = [Step(part, _key(part, token)) for part in parts or [""]]
    if isinstance(steps[0].key, Reference):
        return Variable(None, tuple(steps), token, bool(rest))
    return Variable(steps[0], tuple(steps[1:]), token, bool(rest))


def _parts(markup: str) -> tuple[list[str], str]:
    """Return names, references and brackets in *markup* (VariableParser), and the other text."""
    parts: list[str] = []
    rest: list[str] = []
    position = 0
    while found := _STEP.search(markup, position):
        rest.append(markup[position : found.start()])
        part, position = found[0], found.end()
        if part == "[":
            end = markup.find("]", position + 1)
            part, position = (
                (part, position) if end < 0 else (markup[position - 1 : end + 1], end + 1)
            )
        (parts if part != "[" else rest).append(part)
    return parts, "".join((*rest, markup[position:]))


def _note_ignored_rest(markup: str, rest: str, token: Token) -> None:
    if re.search("[“”‘’„«»]", rest):
        note(token, f"Braze takes no curly quotes: type `{markup}` with straight ones")
    elif re.search("[<>=!]", rest):
        note(token, f"Braze reads `{markup}` as one name: put spaces around `{rest}`")
    elif "%" in rest:
        note(token, f"Braze ignores % in `{markup}`; put it in quotes: `'{markup}'`")
    else:
        note(token, f"Braze ignores `{rest}` in `{markup}`")


def _key(part: str, token: Token) -> Expression | Reference:
    if part.startswith("${"):
        return Reference(part[2:-1].strip())
    if part.startswith("["):
        return parse_expression(part[1:-1], token)
    return Literal(part)


# The result where a variable or a step does not exist.
_ABSENT: Any = object()


def _look_up(name: Any, context: RenderContext) -> Any:
    """Return the value of the variable *name*, or `_ABSENT`."""
    value = context.resolve(name, default=_ABSENT) if isinstance(name, str) else _ABSENT
    # python-liquid defines `now` and `today`, Braze does not.
    return _ABSENT if name in ("now", "today") and not isinstance(value, str) else value


def _next_value(value: Any, key: Any, *, is_command: bool, of_customer: bool) -> Any:
    """Return the value of *key* in *value*, or `_ABSENT` (VariableLookup#evaluate)."""
    if isinstance(key, Reference):
        return _follow(value, key, of_customer=of_customer)
    if isinstance(value, dict):
        if isinstance(key, str) and key in value:
            return value[key]
        # Braze documentation, "Nested custom attributes": an object is read with [0] too.
        if of_customer and key == 0 and isinstance(key, int):
            return value
    if isinstance(value, list) and values.is_number(key) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else None
    if isinstance(value, values.Drop):
        return value.get(key, _ABSENT) if isinstance(key, str) else _ABSENT
    return _apply_command(value, key) if is_command else _ABSENT


def _follow(value: Any, key: Reference, *, of_customer: bool) -> Any:
    if isinstance(value, dict) and key.name in value:
        return value[key.name]
    if key.path == [key.name]:
        return _ABSENT
    for step in key.path:
        value = _next_value(value, step, is_command=step in _COMMANDS, of_customer=of_customer)
        if value is _ABSENT:
            break
    return value


def _apply_command(value: Any, command: Any) -> Any:
    """Evaluate ``.size``, ``.first`` or ``.last``."""
    if command == "size":
        size = values.size_of(value)
        return _ABSENT if size is None else size
    if not isinstance(value, list | dict | Range):
        return _ABSENT
    return values.end_of(value, first=command == "first")


# --- Outputs: a value and its filters -------------------------------------------------------------

_VALUE = re.compile(rf"({FRAGMENT})(.*)", re.DOTALL)
_FILTERS = re.compile(r"\|\s*(.*)", re.DOTALL)
_ONE_FILTER = re.compile(rf"(?:\s+|{FRAGMENT}|,)+")
_ARGUMENT = re.compile(rf"[:,]\s*((?:\w+\s*:\s*)?{FRAGMENT})", re.ASCII)
_NAME = re.compile(r"\w+", re.ASCII)
_FILTER_IN_BRACKETS = re.compile(r"\[[^\[\]\"'|]*\|")


@dataclass(frozen=True)
class AppliedFilter:
    name: str
    arguments: tuple[Expression, ...]
    options: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True)
class Filtered(Expression):
    """A value and the filters applied to it (Variable)."""

    value: Expression
    filters: tuple[AppliedFilter, ...]
    token: Token | None = field(default=None, repr=False, compare=False)

    @property
    def has_default(self) -> bool:
        return any(one.name == "default" for one in self.filters)

    def evaluate(self, context: RenderContext) -> Any:
        run = run_of(context)
        outer, run.has_default = run.has_default, self.has_default
        value = self.value.evaluate(context)
        run.has_default = outer
        for one in self.filters:
            arguments = [argument.evaluate(context) for argument in one.arguments]
            if one.options:
                arguments.append({name: given.evaluate(context) for name, given in one.options})
            run.check_time()
            run.token = self.token
            value = filters.invoke(context, one.name, value, *arguments)
        return value


def parse_output(markup: str, token: Token) -> Filtered:
    """Parse the inside of an output: a value and its filters (Variable#lax_parse).

    Raises:
        LiquidSyntaxError: Braze's documentation calls this an error.
    """
    if _FILTER_IN_BRACKETS.search(markup):
        raise LiquidSyntaxError(
            "a filter cannot stand within [ ]: assign its value to a variable first", token=token
        )
    if fault := mistyped(markup):
        note(token, fault)
    # One note is enough.
    with collect_notes() if fault else nullcontext():
        return _parse_output(without_braces(markup), token)


def _parse_output(markup: str, token: Token) -> Filtered:
    found = _VALUE.search(markup)
    if not found:
        note_ignored(token, markup)
        return Filtered(Literal(None), ())
    value = parse_expression(found[1], token)
    chain = _FILTERS.search(found[2])
    note_ignored(token, found[2][: chain.start()] if chain else found[2])
    # Braze's editor inserts `{{content_blocks.${name} | id: 'cb1'}}`.
    is_block = isinstance(value, Variable) and value.path.startswith("content_blocks.")
    chosen = []
    for one in _parse_filters(chain[1] if chain else "", token):
        if filters.known(one.name):
            chosen.append(one)
        elif not (one.name == "id" and is_block):
            meant = did_you_mean(one.name, filters.FILTERS)
            note(token, f"Braze has no filter `{one.name}` and ignores it{meant}")
        if one.name in filters.UNDOCUMENTED:
            note(token, f"Braze's engine has the filter `{one.name}`, its documentation does not")
    return Filtered(value, tuple(chosen), token)


def _parse_filters(markup: str, token: Token) -> list[AppliedFilter]:
    parsed = []
    for found in _ONE_FILTER.finditer(markup):
        if name := _NAME.search(found[0]):
            given = [argument[1] for argument in _ARGUMENT.finditer(found[0])]
            after = found[0][name.end() :].strip()
            rest = _ARGUMENT.sub("", after).strip(": ")
            note_ignored(token, rest, corrected := _corrected_filter(name[0], after))
            # One note is enough for a value without quotes.
            with collect_notes() if rest and corrected else nullcontext():
                parsed.append(_filter(name[0], given, token))
    return parsed


def _corrected_filter(name: str, after: str) -> str:
    """Return what was meant by a filter and the text *after* its name; "" if that is not known."""
    if name == "date" and "%" in after and not re.search(_QUOTED, after):
        return f"date: '{after.strip(': ‘’“”')}'"
    return f"{name}: {after}" if filters.takes_values(name) and after[:1] not in ":," else ""


def _filter(name: str, given: list[str], token: Token) -> AppliedFilter:
    arguments, options = [], {}
    for argument in given:
        if option := ATTRIBUTE.fullmatch(argument):
            options[option[1]] = parse_expression(option[2], token)
        else:
            arguments.append(parse_expression(argument, token))
    return AppliedFilter(name, tuple(arguments), tuple(options.items()))


# --- Conditions -----------------------------------------------------------------------------------

_COMPARISON = re.compile(rf"({FRAGMENT})\s*([=!<>a-z_]+)?\s*({FRAGMENT})?", re.DOTALL)
# What other languages write, or Liquid in lower case -> Liquid's.
_JOINTS = {"&&": "and", "||": "or", "and": "and", "or": "or"}
_WORD_OPERATOR = r"\b(?:\s?and\s?|\s?or\s?)\b"
_CONDITION_PARTS = re.compile(
    rf"{_WORD_OPERATOR}|(?:\s*(?!{_WORD_OPERATOR})(?:{FRAGMENT}|\S+)\s*)+", re.DOTALL | re.ASCII
)
_PARENTHESES = re.compile(rf"{_QUOTED}|\(\s*\S+?\s*\.\.\s*\S+?\s*\)|(\()")


@dataclass(frozen=True)
class BlankOrEmpty(Expression):
    """``blank`` or ``empty``, a method of the other side (Condition::MethodLiteral)."""

    name: str

    def evaluate(self, context: RenderContext) -> Any:  # noqa: ARG002 - one for all
        return self

    def holds(self, other: Any) -> bool:
        if self.name == "blank":
            return values.is_blank(other)
        return bool(values.is_empty(other))


@dataclass(frozen=True)
class Condition(Expression):
    """A comparison, and the condition that ``and`` or ``or`` joins to its right."""

    left: Expression
    operator: str | None
    right: Expression
    relation: str = ""
    child: "Condition | None" = None
    token: Token | None = field(default=None, repr=False, compare=False)

    def evaluate(self, context: RenderContext) -> bool:
        condition: Condition | None = self
        result = False
        while condition:
            result = condition.holds(context)
            if condition.relation == ("or" if result else "and"):
                break
            condition = condition.child
        return result

    def holds(self, context: RenderContext) -> bool:
        """Return whether the comparison itself is true, without the condition to its right."""
        run = run_of(context)
        run.tested |= {one.path for one in (self.left, self.right) if isinstance(one, Variable)}
        left = self.left.evaluate(context)
        if self.operator is None:
            return values.is_true(left)
        right = self.right.evaluate(context)
        if doubt := doubt_of(left, self.operator, right):
            run.warn(doubt, self.token)
        return compare(left, self.operator, right)


_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_NUMERIC = re.compile(r"\s*-?[0-9]+(?:\.[0-9]+)?\s*")


def doubt_of(left: Any, operator: str, right: Any) -> str:
    """Return why a comparison is hardly meant, or ""."""
    if operator in {"==", "!=", "<>"}:
        return _never_equal(left, right) or _never_equal(right, left)
    return _not_by_date(left, right) if operator in {"<", ">", "<=", ">="} else ""


def _never_equal(text: Any, value: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        return ""
    if isinstance(value, bool) or (values.is_number(value) and _NUMERIC.fullmatch(text)):
        shown = values.inspect(value)
        return f"the text `'{text}'` never equals `{shown}`; write `{shown}` without quotes"
    return ""


def _not_by_date(left: Any, right: Any) -> str:
    texts = [side for side in (left, right) if isinstance(side, str) and side.strip()]
    is_mixed = len({bool(_DAY.match(text)) for text in texts}) > 1
    if not is_mixed and {"now", "today"}.isdisjoint(texts):
        return ""
    shown = " and ".join(f"`'{text}'`" for text in texts)
    verb = "is" if len(texts) == 1 else "are"
    return (
        f"{shown} {verb} compared letter by letter, not as a date; "
        "first assign both sides with `| date: '%s' | plus: 0`"
    )


def compare(left: Any, operator: str, right: Any) -> bool:
    """Compare *left* and *right*.

    Raises:
        LiquidFault: Ruby cannot compare the two, or there is no such operator.
    """
    match operator:
        case "==":
            return _equal(left, right)
        case "!=" | "<>":
            return not _equal(left, right)
        case "contains":
            return _contains(left, right)
        case "<" | ">" | "<=" | ">=":
            return _ordered(left, operator, right)
    raise LiquidFault(f"Unknown operator {operator}")


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, BlankOrEmpty):
        return left.holds(right)
    return right.holds(left) if isinstance(right, BlankOrEmpty) else values.equal(left, right)


def _contains(left: Any, right: Any) -> bool:
    if not values.is_true(left) or not values.is_true(right):
        return False
    if isinstance(left, str):
        return values.text_of(right) in left
    if isinstance(left, list):
        return any(values.equal(item, right) for item in left)
    if isinstance(left, Range):
        return values.is_number(right) and bool(left.first <= right <= left.last)
    return isinstance(left, dict) and isinstance(right, str) and right in left


def _ordered(left: Any, operator: str, right: Any) -> bool:
    if not all(isinstance(side, str) or values.is_number(side) for side in (left, right)):
        return False
    order = values.compared(left, right)
    if order is None:
        shown = values.inspect(right) if values.is_number(right) else values.class_name(right)
        raise LiquidFault(f"comparison of {values.class_name(left)} with {shown} failed")
    return {"<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0}[operator]


def parse_condition(markup: str, token: Token) -> Condition:
    """Parse a condition (If#lax_parse); ``and`` and ``or`` are evaluated from the right.

    Raises:
        LiquidSyntaxError: the condition is missing, or has parentheses.
    """
    if fault := mistyped(markup):
        note(token, fault)
    with collect_notes() if fault else nullcontext():
        return _parse_condition(without_braces(markup), token)


def _parse_condition(markup: str, token: Token) -> Condition:
    if any(found[1] for found in _PARENTHESES.finditer(markup)):
        raise LiquidSyntaxError("a condition cannot have parentheses in Braze", token=token)
    parts = [found[0] for found in _CONDITION_PARTS.finditer(markup)]
    condition = _comparison(parts.pop() if parts else "", token)
    while parts:
        relation = parts.pop().strip()
        first = _comparison(parts.pop() if parts else "", token)
        if relation not in {"and", "or"}:
            raise LiquidSyntaxError(f"`{relation}` cannot stand here", token=token)
        condition = replace(first, relation=relation, child=condition)
    return condition


def _comparison(markup: str, token: Token) -> Condition:
    found = _COMPARISON.search(markup)
    if not found:
        raise LiquidSyntaxError("a condition is missing, such as {% if points > 5 %}", token=token)
    end = found.end() if found[2] else found.end(1)
    rest = markup[end:].strip()
    note_ignored(token, rest, _JOINTS.get(rest.partition(" ")[0].lower(), ""))
    left, right = (parse_operand(side or "", token) for side in (found[1], found[2] and found[3]))
    return Condition(left, found[2], right, token=token)


def parse_operand(markup: str, token: Token) -> Expression:
    """Parse one side of a comparison, as in ``when blank``."""
    return BlankOrEmpty(markup) if markup in {"blank", "empty"} else parse_expression(markup, token)
