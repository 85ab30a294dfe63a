"""The tags of Braze's Liquid: those of Liquid 5.2.0, and Braze's own such as ``abort_message``.

They port lib/liquid/tags/*.rb in lax mode to python-liquid: the constructor of a node parses its
tag, ``act`` renders it.
"""

import re
import string
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from liquid import Environment, RenderContext, Token, TokenStream
from liquid.ast import BlockNode, Node
from liquid.exceptions import (
    BreakLoop,
    ContinueLoop,
    LiquidInterrupt,
    LiquidSyntaxError,
    ResourceLimitError,
)
from liquid.exceptions import LiquidError as MarkupError
from liquid.parser import get_parser
from liquid.tag import Tag
from liquid.token import TOKEN_CONTENT, TOKEN_EXPRESSION, TOKEN_ILLEGAL, TOKEN_OUTPUT, TOKEN_TAG

from bridge.liquid import values
from bridge.liquid.run import did_you_mean, run_of
from bridge.liquid.syntax import (
    ATTRIBUTE,
    BACKTRACKING_FRAGMENT,
    FRAGMENT,
    OUTPUT,
    Condition,
    Expression,
    Literal,
    Variable,
    line_of,
    note_ignored,
    parse_condition,
    parse_expression,
    parse_operand,
    parse_output,
    without_braces,
)
from bridge.liquid.values import Drop, LiquidFault, Range, printed, text_of


class Aborted(Exception):  # noqa: N818 - ends a render, but is not an error
    """The template aborted the message; *reason* is the author's text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TagSource:
    """A tag that is being parsed: its *token*, and *markup*, the text after its name."""

    def __init__(self, env: Environment, stream: TokenStream) -> None:
        self.env = env
        self.stream = stream
        self.read()
        self.opening = self.token

    def read(self) -> None:
        """Read the current tag; the stream stays at its last token, as python-liquid expects."""
        self.token, self.markup = self.stream.current, ""
        if self.stream.peek.kind == TOKEN_EXPRESSION:
            next(self.stream)
            self.markup = self.stream.current.value

    def block(self, *ends: str) -> BlockNode:
        """Parse the nodes up to one of the tags *ends*, and read that tag."""
        next(self.stream)
        with _inside(self.opening, ends):
            block = get_parser(self.env).parse_block(self.stream, ends)
        if self.stream.current.kind != TOKEN_TAG:
            raise _never_closed(self.opening)
        self.read()
        return block


class BrazeTag(Tag):
    """The tag *name*; *node* parses and renders it."""

    block = False

    def __init__(self, env: Environment, name: str, node: Callable[[TagSource], Node]) -> None:
        super().__init__(env)
        self.name = name
        self.node = node

    def parse(self, stream: TokenStream) -> Node:
        if self.name in _KINDS and stream.current.kind == TOKEN_TAG:
            raise _unknown(stream.current, {*self.env.tags, *_PARTS} - _KINDS)
        token = stream.current
        try:
            return self.node(TagSource(self.env, stream))
        except (LiquidFault, values.TooLargeError) as error:
            raise LiquidSyntaxError(str(error), token=token) from error


# Names under which python-liquid keeps what is not a tag.
_KINDS = {TOKEN_CONTENT, TOKEN_OUTPUT, TOKEN_ILLEGAL}
# Tags that stand within others, or end them.
_PARTS = {
    *("else", "elsif", "when", "endcapture", "endcase", "endcomment", "endfor", "endif"),
    *("endifchanged", "endraw", "endtablerow", "endunless"),
}


class BrazeNode(Node):
    """A node whose errors have its position."""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag.token)
        self.blank = False

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        run_of(context).check_time()
        try:
            self.act(context, buffer)
        except LiquidFault as fault:
            raise MarkupError(str(fault), token=self.token) from fault
        except values.TooLargeError as error:
            raise ResourceLimitError(str(error), token=self.token) from error
        except MarkupError as error:
            error.token = error.token or self.token
            raise
        return 0

    @abstractmethod
    def act(self, context: RenderContext, buffer: TextIO) -> None:
        """Write what the node renders as to *buffer*."""


def _never_closed(opening: Token) -> LiquidSyntaxError:
    name = opening.value
    return LiquidSyntaxError(f"`{name}` needs an {{% end{name} %}}", token=opening)


class _StrayTagError(LiquidSyntaxError):
    """A tag such as ``endif`` outside of its block; *inner* is the innermost open tag."""

    inner: Token | None = None


@contextmanager
def _inside(opening: Token, ends: Iterable[str]) -> Iterator[None]:
    """Parse the content of the tag *opening*; one of *ends* within an inner tag is an error."""
    try:
        yield
    except _StrayTagError as stray:
        token, inner = stray.token, stray.inner
        if token and inner and token.value in ends:
            raise LiquidSyntaxError(
                f"the `{inner.value}` of line {line_of(inner)} needs an {{% end{inner.value} %}} "
                f"before this {{% {token.value} %}}",
                token=token,
            ) from stray
        stray.inner = inner or opening
        raise


def _unknown(token: Token, known: Iterable[str]) -> LiquidSyntaxError:
    if token.value in _PARTS:
        return _StrayTagError(f"`{token.value}` belongs to no open tag here", token=token)
    words = f"Braze has no tag `{token.value}`{did_you_mean(token.value, known)}"
    return LiquidSyntaxError(words, token=token)


def _remove_blank_text(blocks: Iterable[BlockNode]) -> bool:
    """Remove the text of *blocks* if all of them are blank (remove_blank_strings)."""
    blocks = list(blocks)
    blank = all(block.blank for block in blocks)
    if blank:
        for block in blocks:
            block.nodes = [node for node in block.nodes if not isinstance(node, _PlainText)]
    return blank


# --- Text and outputs -----------------------------------------------------------------------------

# The bridge's `days_left` of an offer that does not expire.
NO_END_DAYS = 9999


# A field's name as it stands in other places: without its braces, or in another sender's form; and
# the begin and end of elements that contain code, in which such names have another meaning.
_LEFT = re.compile(
    r"(?P<code></?(?:script|style)(?=[\s/>]))"
    r"|\{?\$\{\s*[^\W\d][^{}\n]{0,60}\}+|\[\[\s*[\w.]{1,60}\s*\]\]|%%\w{1,60}%%|\*\|\w{1,60}\|\*",
    re.IGNORECASE,
)


class _PlainText(Node):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag.token)
        self.blank = not self.token.value.strip()
        self.left = [*_LEFT.finditer(self.token.value)]

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        run = run_of(context)
        for left in self.left:
            if left["code"]:
                run.in_code = left[0][1] != "/"
            if run.in_code or left["code"]:
                continue
            start = self.token.start_index + left.start()
            token = Token(self.token.kind, left[0], start, self.token.source)
            words = f"`{left[0]}` is not Liquid, so customers would read it"
            run.warn(f"{words}; a field stands in `{{{{${{…}}}}}}`", token)
        return buffer.write(self.token.value)


class _Raw(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.text = tag.markup

    def act(self, context: RenderContext, buffer: TextIO) -> None:  # noqa: ARG002
        buffer.write(self.text)


class _Output(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        if self.token.value.startswith("{{{"):
            # Braze documentation, "Liquid FAQ".
            raise LiquidSyntaxError("an output has three braces instead of two", token=self.token)
        self.value = parse_output(tag.markup, self.token)
        self.markup = f"{{{{{' '.join(tag.markup.split())[:60]}}}}}"

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        value = self.value.evaluate(context)
        shown = printed(value)
        buffer.write(shown)
        run, variable = run_of(context), self.value.value
        if not isinstance(variable, Variable):
            return
        if not shown.strip():
            run.warn_blank(self.token, self.markup)
        elif variable.may_be_blank and not self.value.has_default:
            run.warn_without_default(self.token, variable.path)
        if value == NO_END_DAYS and variable.path.endswith(".days_left"):
            run.warn(
                f"`{variable.path}` is {NO_END_DAYS}: the offer does not expire; print it within "
                f"`{{% if {variable.path} < {NO_END_DAYS} %}}…{{% endif %}}`",
                self.token,
            )


# --- Variables ------------------------------------------------------------------------------------

_NAME = string.ascii_letters + string.digits + "_.[]-()"
_CAPTURED = re.compile(r"[\w.\[\]()-]+", re.ASCII)
_COMPARES = re.compile(r"\"[^\"]*\"|'[^']*'|(\s(?:==|!=|<>|<=?|>=?|contains)\s)")


class _Assign(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.blank = True
        target, equals, value = tag.markup.partition("=")
        target = target.rstrip()
        self.name = target[len(target.rstrip(_NAME)) :]
        if not self.name or not equals:
            raise LiquidSyntaxError("assign takes a name, = and a value", token=self.token)
        if any(one[1] for one in _COMPARES.finditer(value)):
            # Braze documentation, "Using Liquid".
            raise LiquidSyntaxError("assign stores a value, not a comparison", token=self.token)
        self.value = parse_output(value.strip(), self.token)

    def act(self, context: RenderContext, buffer: TextIO) -> None:  # noqa: ARG002
        context.assign(self.name, self.value.evaluate(context))


class _Capture(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.blank = True
        found = _CAPTURED.search(tag.markup)
        if not found:
            raise LiquidSyntaxError("capture takes a variable's name", token=self.token)
        self.name = found[0]
        self.body = tag.block("endcapture")

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        captured = context.get_buffer(buffer)
        try:
            self.body.render(context, captured)
        finally:
            context.assign(self.name, captured.getvalue())


class _Counter(BrazeNode):
    """``increment`` prints the value before, ``decrement`` the value after."""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.name = tag.markup.strip()
        self.step = 1 if self.token.value == "increment" else -1

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        counters = run_of(context).counters
        before = counters.get(self.name)
        before = 0 if before is None else before
        if not values.is_number(before):
            raise LiquidFault(f"`{self.name}` is not a number that can be counted up")
        counters[self.name] = before + self.step
        buffer.write(text_of(before if self.step > 0 else before + self.step))


# --- Branches -------------------------------------------------------------------------------------


class _If(BrazeNode):
    """``if`` and ``unless``."""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        end = f"end{self.token.value}"
        self.unless = self.token.value == "unless"
        self.branches: list[tuple[Expression, BlockNode]] = []
        while tag.token.value != end:
            if tag.token.value == "else":
                condition: Expression = Literal(True)
                condition_after = tag.markup.removeprefix("if ")
                meant = f"{{% elsif {condition_after} %}}"
                note_ignored(tag.token, tag.markup, meant * (condition_after != tag.markup))
            else:
                condition = parse_condition(tag.markup, tag.token)
            self.branches.append((condition, tag.block("elsif", "else", end)))
        self.blank = _remove_blank_text(body for _, body in self.branches)

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        for index, (condition, body) in enumerate(self.branches):
            holds = values.is_true(condition.evaluate(context))
            if holds != (self.unless and index == 0):
                body.render(context, buffer)
                return


_WHEN = re.compile(rf"({FRAGMENT})(?:(?:\s+or\s+|\s*,\s*)({FRAGMENT}.*))?", re.DOTALL)
_VALUE = re.compile(FRAGMENT)


class _Case(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        found = _VALUE.search(without_braces(tag.markup))
        if not found:
            raise LiquidSyntaxError("case takes a value", token=self.token)
        self.subject = parse_expression(found[0], self.token)
        # One for each value of a `when`; the value of `else` is None.
        self.cases: list[tuple[Expression | None, BlockNode]] = []
        tag.block("when", "else", "endcase")
        while tag.token.value != "endcase":
            compared = [None] if tag.token.value == "else" else _when(tag)
            body = tag.block("when", "else", "endcase")
            self.cases.extend((value, body) for value in compared)
        self.blank = _remove_blank_text(body for _, body in self.cases)

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        matched = False
        for value, body in self.cases:
            if value is None:
                if not matched:
                    body.render(context, buffer)
                continue
            if Condition(self.subject, "==", value, token=self.token).holds(context):
                matched = True
                body.render(context, buffer)


def _when(tag: TagSource) -> list[Expression | None]:
    found: list[Expression | None] = []
    rest: str | None = without_braces(tag.markup)
    while rest is not None:
        when = _WHEN.search(rest)
        if not when:
            raise LiquidSyntaxError("when takes a value", token=tag.token)
        found.append(parse_operand(when[1], tag.token))
        if when[2] is None:
            note_ignored(tag.token, rest[when.end() :])
        rest = when[2]
    return found


# --- Loops ----------------------------------------------------------------------------------------

_FOR = re.compile(rf"\A([\w-]+)\s+in\s+((?:{FRAGMENT})+)\s*(reversed)?", re.DOTALL | re.ASCII)
_ROW = re.compile(rf"(?<!\w)(\w+)\s+in\s+((?:{FRAGMENT})+)", re.DOTALL | re.ASCII)


class _Loop(Drop):
    """``forloop``."""

    name = "Liquid5::ForloopDrop"

    def __init__(self, label: str, length: int, parent: "_Loop | None" = None) -> None:
        self.label = label
        self.length = length
        self.parent = parent
        self.index = 0

    @property
    def fields(self) -> Mapping[str, Any]:
        return {
            "length": self.length,
            "index": self.index + 1,
            "index0": self.index,
            "rindex": self.length - self.index,
            "rindex0": self.length - self.index - 1,
            "first": self.index == 0,
            "last": self.index == self.length - 1,
            "name": self.label,
            "parentloop": self.parent,
        }


@contextmanager
def _looping(context: RenderContext, loop: _Loop) -> Iterator[None]:
    """Count *loop* towards python-liquid's limit for nested loops."""
    loops = run_of(context).loops
    rounds = loop.length
    for outer in loops:
        rounds *= outer.length
    context.raise_for_loop_limit(rounds)
    loops.append(loop)
    try:
        yield
    finally:
        loops.pop()


def _slice(value: Any, start: int, count: int | None, context: RenderContext) -> list[Any]:
    """Return the items to iterate over (Utils.slice_collection_using_each)."""
    if isinstance(value, Range):
        context.raise_for_loop_limit(value.size)
        value = list(value)
    elif isinstance(value, str):
        return [value] if value else []
    elif isinstance(value, dict):
        value = [list(pair) for pair in value.items()]
    elif not isinstance(value, list):
        return []
    stop = len(value) if count is None else start + count
    return [item for index, item in enumerate(value) if start <= index < stop]


class _For(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        found = _FOR.match(without_braces(tag.markup).strip())
        if not found:
            raise LiquidSyntaxError("for takes a name, in and a list", token=self.token)
        self.body = tag.block("else", "endfor")
        self.otherwise: BlockNode | None = None
        while tag.token.value == "else":
            self.otherwise = tag.block("else", "endfor")
        self.blank = _remove_blank_text(filter(None, (self.body, self.otherwise)))
        self.variable = found[1]
        self.label = f"{found[1]}-{found[2]}"
        self.items = parse_expression(found[2], self.token)
        self.reversed = bool(found[3])
        self.options: dict[str, Expression] = {}
        self.continues = False
        for option in ATTRIBUTE.finditer(found.string):
            if option[1] in {"limit", "offset"}:
                self.options[option[1]] = parse_expression(option[2], self.token)
            if option[1] == "offset":
                self.continues = option[2] == "continue"
        rest = found.string[found.end() :]
        note_ignored(self.token, re.sub(rf"(?:limit|offset)\s*:\s*{FRAGMENT}", "", rest))

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        items = self._items(context)
        if not items:
            if self.otherwise:
                self.otherwise.render(context, buffer)
            return
        run = run_of(context)
        loop = _Loop(self.label, len(items), run.loops[-1] if run.loops else None)
        scope: dict[str, object] = {"forloop": loop}
        with _looping(context, loop), context.extend(scope):
            for item in items:
                run.check_time()
                scope[self.variable] = item
                try:
                    self.body.render(context, buffer)
                except BreakLoop:
                    break
                except ContinueLoop:
                    pass
                loop.index += 1

    def _items(self, context: RenderContext) -> list[Any]:
        offsets = run_of(context).offsets
        start = offsets.get(self.label) if self.continues else self._number(context, "offset")
        start, count = start or 0, self._number(context, "limit")
        items = _slice(self.items.evaluate(context), start, count, context)
        offsets[self.label] = start + len(items)
        return items[::-1] if self.reversed else items

    def _number(self, context: RenderContext, option: str) -> int | None:
        given = self.options[option].evaluate(context) if option in self.options else None
        return None if given is None else values.integer_of(given)


class _RowLoop(_Loop):
    """``tablerowloop``."""

    name = "Liquid5::TablerowloopDrop"

    def __init__(self, length: int, columns: int) -> None:
        super().__init__("", length)
        self.columns = columns
        self.column = self.row = 1

    @property
    def fields(self) -> Mapping[str, Any]:
        return {
            **super().fields,
            "col": self.column,
            "col0": self.column - 1,
            "row": self.row,
            "col_first": self.column == 1,
            "col_last": self.column == self.columns,
        }

    def step(self) -> None:
        self.index += 1
        self.column, self.row = (
            (1, self.row + 1) if self.column == self.columns else (self.column + 1, self.row)
        )


class _TableRow(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        found = _ROW.search(without_braces(tag.markup))
        if not found:
            raise LiquidSyntaxError("tablerow takes a name, in and a list", token=self.token)
        self.body = tag.block("endtablerow")
        self.blank = self.body.blank
        self.variable = found[1]
        self.items = parse_expression(found[2], self.token)
        self.options = {
            one[1]: parse_expression(one[2], self.token) for one in ATTRIBUTE.finditer(found.string)
        }

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        value = self.items.evaluate(context)
        if not values.is_true(value):
            return
        count = self._number(context, "limit") if "limit" in self.options else None
        items = _slice(value, self._number(context, "offset"), count, context)
        loop = _RowLoop(len(items), self._number(context, "cols"))
        scope: dict[str, object] = {"tablerowloop": loop}
        interrupt: LiquidInterrupt | None = None
        buffer.write('<tr class="row1">\n')
        with _looping(context, loop), context.extend(scope):
            for item in items:
                run_of(context).check_time()
                scope[self.variable] = item
                buffer.write(f'<td class="col{loop.column}">')
                try:
                    self.body.render(context, buffer)
                except LiquidInterrupt as one:
                    interrupt = one
                buffer.write("</td>")
                if loop["col_last"] and not loop["last"]:
                    buffer.write(f'</tr>\n<tr class="row{loop.row + 1}">')
                loop.step()
        buffer.write("</tr>\n")
        if interrupt:
            raise interrupt  # ends the loop around the table, or the message

    def _number(self, context: RenderContext, option: str) -> int:
        given = self.options[option].evaluate(context) if option in self.options else None
        if isinstance(given, int | float):
            return values.whole(given)
        return values.leading_integer(given) if isinstance(given, str) else 0


class _Interrupt(BrazeNode):
    """``break`` and ``continue``."""

    def act(self, context: RenderContext, buffer: TextIO) -> None:  # noqa: ARG002
        raise BreakLoop if self.token.value == "break" else ContinueLoop


_NAMED_CYCLE = re.compile(rf"\A({BACKTRACKING_FRAGMENT})\s*:\s*(.*)", re.DOTALL)


class _Cycle(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        markup = without_braces(tag.markup)
        named = _NAMED_CYCLE.match(markup)
        found = [_VALUE.search(one) for one in (named[2] if named else markup).split(",")]
        self.items = [parse_expression(one[0], self.token) for one in found if one]
        if not self.items:
            raise LiquidSyntaxError("cycle takes values, with commas between them", token=tag.token)
        self.key = parse_expression(named[1], self.token) if named else Literal(repr(self.items))

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        places = run_of(context).cycles
        key = values.eql_key(self.key.evaluate(context))
        index = places.get(key, 0)
        # Another group with the same name may have more items.
        item = self.items[index].evaluate(context) if index < len(self.items) else None
        buffer.write(printed(item))
        places[key] = index + 1 if index + 1 < len(self.items) else 0


class _IfChanged(BrazeNode):
    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.body = tag.block("endifchanged")
        self.blank = self.body.blank

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        inner = context.get_buffer(buffer)
        self.body.render(context, inner)
        if context.ifchanged(inner.getvalue()):
            buffer.write(inner.getvalue())


# --- Tags without output --------------------------------------------------------------------------


class _Nothing(BrazeNode):
    """A tag that prints nothing, such as ``{% message_extras :key a :value 1 %}``."""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.blank = True

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        pass


class _Comment(_Nothing):
    """A comment. Its content is parsed, so known tags in it must be closed."""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        tags, stream = tag.env.tags, tag.stream
        next(stream)
        while not stream.current.is_tag("endcomment"):
            current = stream.current
            if current is stream.eof:
                raise _never_closed(self.token)
            kind = current.value if current.kind == TOKEN_TAG else current.kind
            if kind in tags:
                with _inside(self.token, ["endcomment"]):
                    tags[kind].get_node(stream)
            else:
                tag.read()
            next(stream)
        tag.read()


class _LiquidLines(BrazeNode):
    """``{% liquid %}``: a tag on each line."""

    line = re.compile(r"\s*(\w+)\s*(.*?)\Z", re.DOTALL | re.ASCII)

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        inner = TokenStream(self._tokens(tag.markup), tag.stream.block_depth)
        self.body = BlockNode(self.token, get_parser(tag.env).parse(inner))
        self.blank = self.body.blank

    def _tokens(self, markup: str) -> Iterator[Token]:
        token = self.token
        for line in markup.split("\n"):
            if not line.strip():
                continue
            found = self.line.match(line)
            if not found:
                raise LiquidSyntaxError(f"`{line.strip()}` is not a tag", token=token)
            yield Token(TOKEN_TAG, found[1], token.start_index, token.source)
            if found[2].strip():
                yield Token(TOKEN_EXPRESSION, found[2], token.start_index, token.source)

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        self.body.render(context, buffer)


_REASON = re.compile(r"""\(\s*(?:'([^']*)'|"([^"]*)")?\s*\)""")


class _Abort(BrazeNode):
    """``{% abort_message('why') %}``.

    Braze documentation: the reason "must be a string and cannot contain Liquid".
    """

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        found = _REASON.fullmatch(tag.markup or "()")
        self.reason = (found[1] or found[2] or "") if found else ""
        if not found or "{{" in self.reason or "${" in self.reason:
            raise LiquidSyntaxError(
                "abort_message takes a reason in quotes, without Liquid, or ()", token=self.token
            )

    def act(self, context: RenderContext, buffer: TextIO) -> None:  # noqa: ARG002
        raise Aborted(self.reason)


# --- Tags whose content only Braze has ------------------------------------------------------------


class _Marker(BrazeNode):
    advice = ""

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        given = " ".join(tag.markup.split())
        space = "" if given.startswith("(") or not given else " "
        self.words = f"{self.token.value}{space}{given}"

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        words = f"Braze has the tag `{self.token.value}`; the preview cannot fill it"
        run_of(context).warn(f"{words} and shows a marker{self.advice}", self.token)
        buffer.write(f"[{self.words}]")


_GIVEN = re.compile(rf"{OUTPUT.pattern}|{FRAGMENT}", re.DOTALL)


class _Catalog(_Marker):
    """Sets ``items`` from the test items of the catalog."""

    advice = "; give the catalog's items as test values"

    def __init__(self, tag: TagSource) -> None:
        super().__init__(tag)
        self.catalog, *given = [found[0] for found in _GIVEN.finditer(tag.markup)] or [""]
        self.items = [
            parse_output(one[2:-2], self.token)
            if one.startswith("{{")
            else Literal(one.strip("'\""))
            for one in given
        ]

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        catalog = run_of(context).catalogs.get(self.catalog)
        if not isinstance(catalog, Mapping):
            context.assign("items", [])
            super().act(context, buffer)
            return
        if self.token.value == "catalog_selection_items":
            chosen = list(catalog)  # only Braze knows the items of a selection
        else:
            chosen = [text_of(one.evaluate(context)) for one in self.items]
        for one in chosen:
            if one not in catalog:
                words = f"the test values of the catalog `{self.catalog}` have no item `{one}`"
                run_of(context).warn(words, self.token)
        context.assign("items", [catalog[one] for one in chosen if one in catalog])


TAGS: dict[str, Callable[[TagSource], Node]] = {
    TOKEN_CONTENT: _PlainText,
    TOKEN_OUTPUT: _Output,
    TOKEN_ILLEGAL: _Nothing,  # what the parser calls an unknown tag: `BrazeTag` refuses it
    "abort_message": _Abort,
    "assign": _Assign,
    "break": _Interrupt,
    "capture": _Capture,
    "case": _Case,
    "catalog_items": _Catalog,
    "catalog_selection_items": _Catalog,
    "comment": _Comment,
    "continue": _Interrupt,
    "cycle": _Cycle,
    "decrement": _Counter,
    "echo": _Output,
    "for": _For,
    "if": _If,
    "ifchanged": _IfChanged,
    "increment": _Counter,
    "liquid": _LiquidLines,
    "message_extras": _Nothing,
    "promotion": _Marker,
    "raw": _Raw,
    "shopping_cart": _Marker,
    "tablerow": _TableRow,
    "unless": _If,
}
