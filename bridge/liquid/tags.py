"""The tags of Braze's Liquid: those of Liquid 5.2.0, and Braze's own such as ``abort_message``.

They port lib/liquid/tags/*.rb in lax mode to python-liquid's `Tag` and `Node`.
"""

import re
import string
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from bridge.liquid.run import run_of
from bridge.liquid.syntax import (
    ATTRIBUTE,
    FRAGMENT,
    OUTPUT,
    SHORTENABLE,
    Expression,
    Filtered,
    Literal,
    compare,
    flat,
    ignores,
    parse_condition,
    parse_expression,
    parse_output,
    side,
)
from bridge.liquid.values import Drop, LiquidFault, Range, printed, text_of


class Aborted(Exception):  # noqa: N818 - ends a render, but is not an error
    """The template aborted the message; *reason* is the author's text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BrazeNode(Node):
    """A node whose errors have its position."""

    def __init__(self, token: Token, *, blank: bool = False) -> None:
        super().__init__(token)
        self.blank = blank

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        run_of(context).spend()
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


def _expression(stream: TokenStream) -> tuple[Token, str]:
    """Return the current tag's token, and its text after the name."""
    token = next(stream)
    if stream.current.kind == TOKEN_EXPRESSION:
        return token, stream.current.value
    # The parser itself advances past the tag's last token.
    stream.pos -= 1
    return token, ""


def _block(env: Environment, stream: TokenStream, *ends: str) -> BlockNode:
    """Parse the nodes after the current token, up to one of *ends*."""
    opened = stream.current
    next(stream)
    block = get_parser(env).parse_block(stream, ends)
    if stream.current.kind != TOKEN_TAG:
        raise _never_closed(ends[-1], opened)
    return block


def _never_closed(end: str, token: Token) -> LiquidSyntaxError:
    return LiquidSyntaxError(f"`{end.removeprefix('end')}` needs a {{% {end} %}}", token=token)


def _unknown(token: Token) -> LiquidSyntaxError:
    if token.value.startswith("end") or token.value in {"else", "elsif", "when"}:
        return LiquidSyntaxError(f"`{token.value}` belongs to no open tag here", token=token)
    return LiquidSyntaxError(f"Braze has no tag `{token.value}`", token=token)


def _trim(blocks: Iterable[BlockNode]) -> bool:
    """Remove the text of *blocks* if all of them are blank (remove_blank_strings)."""
    blocks = list(blocks)
    blank = all(block.blank for block in blocks)
    if blank:
        for block in blocks:
            block.nodes = [node for node in block.nodes if not isinstance(node, _TextNode)]
    return blank


# --- Text and outputs -----------------------------------------------------------------------------


class _TextNode(Node):
    def __init__(self, token: Token) -> None:
        super().__init__(token)
        self.blank = not token.value.strip()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:  # noqa: ARG002
        return buffer.write(self.token.value)


class TextTag(Tag):
    name = TOKEN_CONTENT
    block = False

    def parse(self, stream: TokenStream) -> Node:
        if stream.current.kind == TOKEN_TAG:
            raise _unknown(stream.current)
        return _TextNode(stream.current)


class _OutputNode(BrazeNode):
    def __init__(self, token: Token, value: Filtered) -> None:
        super().__init__(token)
        self.value = value

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        buffer.write(printed(self.value.evaluate(context)))


class OutputTag(Tag):
    name = TOKEN_OUTPUT
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token = next(stream)
        if token.kind == TOKEN_TAG:
            raise _unknown(token)
        if token.value.startswith("{{{"):
            # Braze documentation, "Liquid FAQ".
            raise LiquidSyntaxError("an output has three braces instead of two", token=token)
        return _OutputNode(token, parse_output(stream.current.value, token))


class EchoTag(Tag):
    name = "echo"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        return _OutputNode(token, parse_output(markup, token))


# --- Variables ------------------------------------------------------------------------------------

_NAME = string.ascii_letters + string.digits + "_.[]-()"
_CAPTURED = re.compile(r"[\w.\[\]()-]+", re.ASCII)
_COMPARES = re.compile(r"\"[^\"]*\"|'[^']*'|(\s(?:==|!=|<>|<=?|>=?|contains)\s)")


class _AssignNode(BrazeNode):
    def __init__(self, token: Token, name: str, value: Filtered) -> None:
        super().__init__(token, blank=True)
        self.name = name
        self.value = value

    def act(self, context: RenderContext, buffer: TextIO) -> None:  # noqa: ARG002
        context.assign(self.name, self.value.evaluate(context))


class AssignTag(Tag):
    name = "assign"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        target, _, value = markup.partition("=")
        target = target.rstrip()
        name = target[len(target.rstrip(_NAME)) :]
        if not name or "=" not in markup:
            raise LiquidSyntaxError("assign takes a name, = and a value", token=token)
        if any(one[1] for one in _COMPARES.finditer(value)):
            # Braze documentation, "Using Liquid".
            raise LiquidSyntaxError("assign stores a value, not a comparison", token=token)
        return _AssignNode(token, name, parse_output(value.strip(), token))


class _CaptureNode(BrazeNode):
    def __init__(self, token: Token, name: str, block: BlockNode) -> None:
        super().__init__(token, blank=True)
        self.name = name
        self.body = block

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        captured = context.get_buffer(buffer)
        try:
            self.body.render(context, captured)
        finally:
            context.assign(self.name, captured.getvalue())


class CaptureTag(Tag):
    name = "capture"
    end = "endcapture"

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        found = _CAPTURED.search(markup)
        if not found:
            raise LiquidSyntaxError("capture takes a variable's name", token=token)
        return _CaptureNode(token, found[0], _block(self.env, stream, self.end))


class _CounterNode(BrazeNode):
    def __init__(self, token: Token, name: str, step: int) -> None:
        super().__init__(token)
        self.name = name
        self.step = step

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        counters = run_of(context).counters
        before = counters.get(self.name)
        before = 0 if before is None else before
        if not values.is_number(before):
            raise LiquidFault(f"`{self.name}` is not a number that can be counted up")
        counters[self.name] = before + self.step
        buffer.write(text_of(before if self.step > 0 else before + self.step))


class IncrementTag(Tag):
    name = "increment"
    block = False
    step = 1

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        return _CounterNode(token, markup.strip(), self.step)


class DecrementTag(IncrementTag):
    name = "decrement"
    step = -1


# --- Branches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Branch:
    condition: Expression
    body: BlockNode


class _IfNode(BrazeNode):
    def __init__(self, token: Token, branches: list[_Branch], *, unless: bool) -> None:
        super().__init__(token, blank=_trim(branch.body for branch in branches))
        self.branches = branches
        self.unless = unless

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        for place, branch in enumerate(self.branches):
            holds = values.is_true(branch.condition.evaluate(context))
            if holds != (self.unless and place == 0):
                branch.body.render(context, buffer)
                return


class IfTag(Tag):
    name = "if"
    end = "endif"

    def parse(self, stream: TokenStream) -> Node:
        opened, markup = _expression(stream)
        token, condition = opened, self._condition(opened, markup)
        branches = []
        while True:
            body = _block(self.env, stream, "elsif", "else", self.end)
            branches.append(_Branch(condition, body))
            if stream.current.value == self.end:
                break
            is_else = stream.current.value == "else"
            token, markup = _expression(stream)
            condition = Literal(True) if is_else else self._condition(token, markup)
            if is_else and markup:
                ignores(token, markup)
        return _IfNode(opened, branches, unless=self.name == "unless")

    def _condition(self, token: Token, markup: str) -> Expression:
        return parse_condition(markup, token)


class UnlessTag(IfTag):
    name = "unless"
    end = "endunless"


_WHEN = re.compile(rf"({FRAGMENT})(?:(?:\s+or\s+|\s*,\s*)({FRAGMENT}.*))?", re.DOTALL)
_CASE = re.compile(FRAGMENT)


@dataclass(frozen=True)
class _Case:
    """One value of a ``when``, or ``else``."""

    value: Expression | None
    body: BlockNode


class _CaseNode(BrazeNode):
    def __init__(self, token: Token, subject: Expression, cases: list[_Case]) -> None:
        super().__init__(token, blank=_trim(case.body for case in cases))
        self.subject = subject
        self.cases = cases

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        matched = False
        for case in self.cases:
            if case.value is None:
                if not matched:
                    case.body.render(context, buffer)
            elif compare(self.subject.evaluate(context), "==", case.value.evaluate(context)):
                matched = True
                case.body.render(context, buffer)


class CaseTag(Tag):
    name = "case"
    end = "endcase"

    def parse(self, stream: TokenStream) -> Node:
        opened, markup = _expression(stream)
        found = _CASE.search(flat(markup))
        if not found:
            raise LiquidSyntaxError("case takes a value", token=opened)
        subject = parse_expression(found[0], opened)
        _block(self.env, stream, "when", "else", self.end)
        cases: list[_Case] = []
        while stream.current.value != self.end:
            is_else = stream.current.value == "else"
            token, markup = _expression(stream)
            compared = [None] if is_else else self._compared(token, flat(markup))
            body = _block(self.env, stream, "when", "else", self.end)
            cases.extend(_Case(value, body) for value in compared)
        return _CaseNode(opened, subject, cases)

    def _compared(self, token: Token, markup: str) -> list[Expression | None]:
        found: list[Expression | None] = []
        rest: str | None = markup
        while rest is not None:
            when = _WHEN.search(rest)
            if not when:
                raise LiquidSyntaxError("when takes a value", token=token)
            found.append(side(when[1], token))
            if when[2] is None:
                ignores(token, rest[when.end() :])
            rest = when[2]
        return found


# --- Loops ----------------------------------------------------------------------------------------

_FOR = re.compile(rf"\A([\w-]+)\s+in\s+((?:{FRAGMENT})+)\s*(reversed)?", re.DOTALL | re.ASCII)
_ROW = re.compile(rf"(?<!\w)(\w+)\s+in\s+((?:{FRAGMENT})+)", re.DOTALL | re.ASCII)


class _Loop(Drop):
    """``forloop`` and ``tablerowloop``."""

    name = "Liquid5::ForloopDrop"
    parts = ("length", "index", "index0", "rindex", "rindex0", "first", "last")

    def __init__(self, label: str, length: int, parent: "_Loop | None" = None) -> None:
        self.label = label
        self.length = length
        self.parent = parent
        self.place = 0

    def __getitem__(self, key: str) -> Any:
        return {
            "name": self.label,
            "length": self.length,
            "index": self.place + 1,
            "index0": self.place,
            "rindex": self.length - self.place,
            "rindex0": self.length - self.place - 1,
            "first": self.place == 0,
            "last": self.place == self.length - 1,
            "parentloop": self.parent,
        }[key]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.parts, "name", "parentloop"))

    def __len__(self) -> int:
        return len(self.parts) + 2


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


def _segment(value: Any, start: int, count: int | None, context: RenderContext) -> list[Any]:
    """Return the items to iterate over (Utils.slice_collection_using_each)."""
    if isinstance(value, Range):
        context.raise_for_loop_limit(len(value))
        value = list(value)
    elif isinstance(value, str):
        return [value] if value else []
    elif isinstance(value, dict):
        value = [list(pair) for pair in value.items()]
    elif not isinstance(value, list):
        return []
    stop = len(value) if count is None else start + count
    return [item for place, item in enumerate(value) if start <= place < stop]


class _ForNode(BrazeNode):
    def __init__(self, token: Token, markup: re.Match[str], bodies: list[BlockNode]) -> None:
        super().__init__(token, blank=_trim(bodies))
        self.variable = markup[1]
        self.label = f"{markup[1]}-{markup[2]}"
        self.items = parse_expression(markup[2], token)
        self.reversed = bool(markup[3])
        self.options: dict[str, Expression] = {}
        self.continues = False
        rest = markup.string[markup.end() :]
        for option in ATTRIBUTE.finditer(markup.string):
            if option[1] in {"limit", "offset"}:
                self.options[option[1]] = parse_expression(option[2], token)
            if option[1] == "offset":
                self.continues = option[2] == "continue"
        ignores(token, re.sub(rf"(?:limit|offset)\s*:\s*{FRAGMENT}", "", rest))
        self.body = bodies[0]
        self.otherwise = bodies[1] if len(bodies) > 1 else None

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
                run.spend()
                scope[self.variable] = item
                try:
                    self.body.render(context, buffer)
                except BreakLoop:
                    break
                except ContinueLoop:
                    pass
                loop.place += 1

    def _items(self, context: RenderContext) -> list[Any]:
        offsets = run_of(context).offsets
        start = offsets.get(self.label, 0) if self.continues else self._number(context, "offset")
        count = self._number(context, "limit") if "limit" in self.options else None
        if "limit" in self.options and self.options["limit"].evaluate(context) is None:
            count = None
        items = _segment(self.items.evaluate(context), start or 0, count, context)
        offsets[self.label] = (start or 0) + len(items)
        return items[::-1] if self.reversed else items

    def _number(self, context: RenderContext, option: str) -> int:
        given = self.options[option].evaluate(context) if option in self.options else None
        return 0 if given is None else values.integer_of(given)


class ForTag(Tag):
    name = "for"
    end = "endfor"

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        found = _FOR.match(flat(markup).strip())
        if not found:
            raise LiquidSyntaxError("for takes a name, in and a list", token=token)
        bodies = [_block(self.env, stream, "else", self.end)]
        while stream.current.value == "else":
            _expression(stream)
            bodies[1:] = [_block(self.env, stream, "else", self.end)]
        return _ForNode(token, found, bodies)


class _RowLoop(_Loop):
    name = "Liquid5::TablerowloopDrop"

    def __init__(self, length: int, columns: int) -> None:
        super().__init__("", length)
        self.columns = columns
        self.column = self.row = 1

    def __getitem__(self, key: str) -> Any:
        if key == "col":
            return self.column
        if key == "col0":
            return self.column - 1
        if key == "row":
            return self.row
        if key == "col_first":
            return self.column == 1
        if key == "col_last":
            return self.column == self.columns
        return super().__getitem__(key)

    def step(self) -> None:
        self.place += 1
        self.column, self.row = (
            (1, self.row + 1) if self.column == self.columns else (self.column + 1, self.row)
        )


class _TableRowNode(BrazeNode):
    def __init__(self, token: Token, markup: re.Match[str], body: BlockNode) -> None:
        super().__init__(token, blank=body.blank)
        self.variable = markup[1]
        self.items = parse_expression(markup[2], token)
        self.options = {
            one[1]: parse_expression(one[2], token) for one in ATTRIBUTE.finditer(markup.string)
        }
        self.body = body

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        value = self.items.evaluate(context)
        if not values.is_true(value):
            return
        count = self._number(context, "limit") if "limit" in self.options else None
        items = _segment(value, self._number(context, "offset"), count, context)
        loop = _RowLoop(len(items), self._number(context, "cols"))
        scope: dict[str, object] = {"tablerowloop": loop}
        interrupt: LiquidInterrupt | None = None
        buffer.write('<tr class="row1">\n')
        with _looping(context, loop), context.extend(scope):
            for item in items:
                run_of(context).spend()
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
            return int(given)
        return values.leading_integer(given) if isinstance(given, str) else 0


class TableRowTag(Tag):
    name = "tablerow"
    end = "endtablerow"

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        found = _ROW.search(flat(markup))
        if not found:
            raise LiquidSyntaxError("tablerow takes a name, in and a list", token=token)
        return _TableRowNode(token, found, _block(self.env, stream, self.end))


class _InterruptNode(Node):
    def __init__(self, token: Token, interrupt: type[LiquidInterrupt]) -> None:
        super().__init__(token)
        self.blank = False
        self.interrupt = interrupt

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:  # noqa: ARG002
        raise self.interrupt(self.token.value)


class BreakTag(Tag):
    name = "break"
    block = False
    interrupt: type[LiquidInterrupt] = BreakLoop

    def parse(self, stream: TokenStream) -> Node:
        return _InterruptNode(_expression(stream)[0], self.interrupt)


class ContinueTag(BreakTag):
    name = "continue"
    interrupt = ContinueLoop


_NAMED_CYCLE = re.compile(rf"\A({SHORTENABLE})\s*:\s*(.*)", re.DOTALL)


class _CycleNode(BrazeNode):
    def __init__(self, token: Token, key: Expression, items: list[Expression]) -> None:
        super().__init__(token)
        self.key = key
        self.items = items

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        places = run_of(context).cycles
        key = values.identity(self.key.evaluate(context))
        place = places.get(key, 0)
        # Another group with the same name may have more items.
        item = self.items[place].evaluate(context) if place < len(self.items) else None
        buffer.write(printed(item))
        places[key] = place + 1 if place + 1 < len(self.items) else 0


class CycleTag(Tag):
    name = "cycle"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        named = _NAMED_CYCLE.match(flat(markup))
        listed = named[2] if named else flat(markup)
        found = [_CASE.search(one) for one in listed.split(",")]
        items = [parse_expression(one[0], token) for one in found if one]
        if not items:
            raise LiquidSyntaxError("cycle takes values, with commas between them", token=token)
        key = parse_expression(named[1], token) if named else Literal(repr(items))
        return _CycleNode(token, key, items)


class _IfChangedNode(BrazeNode):
    def __init__(self, token: Token, body: BlockNode) -> None:
        super().__init__(token, blank=body.blank)
        self.body = body

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        inner = context.get_buffer(buffer)
        self.body.render(context, inner)
        if context.ifchanged(inner.getvalue()):
            buffer.write(inner.getvalue())


class IfChangedTag(Tag):
    name = "ifchanged"
    end = "endifchanged"

    def parse(self, stream: TokenStream) -> Node:
        token = stream.current
        _expression(stream)
        return _IfChangedNode(token, _block(self.env, stream, self.end))


# --- What prints nothing --------------------------------------------------------------------------


class _NothingNode(Node):
    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:  # noqa: ARG002
        return 0


class CommentTag(Tag):
    """A comment. Its content is parsed, so tags in it must be closed."""

    name = "comment"
    end = "endcomment"

    def parse(self, stream: TokenStream) -> Node:
        token = stream.current
        _expression(stream)
        next(stream)
        while not stream.current.is_tag(self.end):
            if stream.current is stream.eof:
                raise _never_closed(self.end, token)
            if stream.current.kind != TOKEN_TAG or stream.current.value in self.env.tags:
                _one(self.env, stream)
            else:
                _expression(stream)
            next(stream)
        return _NothingNode(token)


def _one(env: Environment, stream: TokenStream) -> Node:
    """Parse the node at the current token; the stream stays at the node's last token."""
    token = stream.current
    kind = token.value if token.kind == TOKEN_TAG else token.kind
    return env.tags[kind].get_node(stream)


class LiquidTag(Tag):
    """``{% liquid %}``: a tag on each line."""

    name = "liquid"
    block = False
    line = re.compile(r"\s*(\w+)\s*(.*?)\Z", re.DOTALL | re.ASCII)

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        inner = TokenStream(self._tokens(token, markup), stream.block_depth)
        return BlockNode(token, get_parser(self.env).parse(inner))

    def _tokens(self, token: Token, markup: str) -> Iterator[Token]:
        for line in markup.split("\n"):
            if not line.strip():
                continue
            found = self.line.match(line)
            if not found:
                raise LiquidSyntaxError(f"`{line.strip()}` is not a tag", token=token)
            yield Token(TOKEN_TAG, found[1], token.start_index, token.source)
            if found[2].strip():
                yield Token(TOKEN_EXPRESSION, found[2], token.start_index, token.source)


class MessageExtrasTag(Tag):
    """``{% message_extras :key a :value 1 %}`` prints nothing."""

    name = "message_extras"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        return _NothingNode(_expression(stream)[0])


# --- abort_message --------------------------------------------------------------------------------

_REASON = re.compile(r"""\(\s*(?:'([^']*)'|"([^"]*)")?\s*\)""")


class _AbortNode(Node):
    def __init__(self, token: Token, reason: str) -> None:
        super().__init__(token)
        self.blank = False
        self.reason = reason

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:  # noqa: ARG002
        raise Aborted(self.reason)


class AbortTag(Tag):
    """``{% abort_message('why') %}``.

    Braze documentation: the reason "must be a string and cannot contain Liquid".
    """

    name = "abort_message"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token, markup = _expression(stream)
        if not markup:
            return _AbortNode(token, "")
        found = _REASON.fullmatch(markup)
        reason = (found[1] or found[2] or "") if found else None
        if reason is None or "{{" in reason or "${" in reason:
            raise LiquidSyntaxError(
                "abort_message takes a reason in quotes, without Liquid, or ()", token=token
            )
        return _AbortNode(token, reason)


# --- What the preview cannot have -----------------------------------------------------------------


class _MarkerNode(BrazeNode):
    def __init__(self, token: Token, markup: str) -> None:
        super().__init__(token)
        given = " ".join(markup.split())
        space = "" if given.startswith("(") or not given else " "
        self.words = f"{token.value}{space}{given}"

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        run_of(context).warn(
            f"Braze has the tag `{self.token.value}`; the preview cannot fill it and shows a marker"
        )
        buffer.write(f"[{self.words}]")


class PromotionTag(Tag):
    name = "promotion"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        return _MarkerNode(*_expression(stream))


class ShoppingCartTag(PromotionTag):
    name = "shopping_cart"


_GIVEN = re.compile(rf"{OUTPUT.pattern}|{FRAGMENT}", re.DOTALL)


class _CatalogNode(_MarkerNode):
    """Sets ``items`` from the test items of the catalog."""

    def __init__(self, token: Token, markup: str) -> None:
        super().__init__(token, markup)
        given = [found[0] for found in _GIVEN.finditer(markup)]
        self.catalog = given[0] if given else ""
        self.items = [
            parse_output(one[2:-2], token) if one.startswith("{{") else Literal(one.strip("'\""))
            for one in given[1:]
        ]

    def act(self, context: RenderContext, buffer: TextIO) -> None:
        catalog = run_of(context).catalogs.get(self.catalog)
        if catalog is None:
            context.assign("items", [])
            super().act(context, buffer)
            return
        wanted = [text_of(one.evaluate(context)) for one in self.items]
        if self.token.value == "catalog_selection_items":
            wanted = list(catalog)  # only Braze knows the items of a selection
        context.assign("items", [catalog[one] for one in wanted if one in catalog])


class CatalogItemsTag(Tag):
    name = "catalog_items"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        return _CatalogNode(*_expression(stream))


class CatalogSelectionItemsTag(CatalogItemsTag):
    name = "catalog_selection_items"


class UnknownTag(Tag):
    """A tag that Braze does not have."""

    name = TOKEN_ILLEGAL
    block = False

    def parse(self, stream: TokenStream) -> Node:
        raise _unknown(stream.current)


TAGS: tuple[type[Tag], ...] = (
    *(TextTag, OutputTag, EchoTag, AssignTag, CaptureTag, IncrementTag, DecrementTag),
    *(IfTag, UnlessTag, CaseTag, ForTag, TableRowTag, BreakTag, ContinueTag, CycleTag),
    *(IfChangedTag, CommentTag, LiquidTag, MessageExtrasTag, AbortTag, PromotionTag),
    *(ShoppingCartTag, CatalogItemsTag, CatalogSelectionItemsTag, UnknownTag),
)
