"""The state of one render: its limits, its data and its warnings."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from liquid import RenderContext, Token
from liquid.exceptions import ResourceLimitError

# CPU seconds of the rendering thread, without waiting, and without calls over HTTP.
RENDER_SECONDS = 0.5
# Levels of content blocks within content blocks, and of rerendered answers.
DEEPEST = 5
# Entries: most warnings, and most blank outputs, of one render.
MOST_NOTES = 50


@dataclass
class Run:
    """The state of one render, beside python-liquid's own.

    Attributes:
        attributes: the customer's profile, for ``${first_name}``.
        calls: makes the Connected Content calls.
        blocks: test texts for content blocks, by name.
        catalogs: test items for catalogs: ``{catalog: {item ID: {field: value}}}``.
        now: returns seconds since 1970.
        nested: renders an included text.
        position: returns the line and column of a token.
        warnings: messages for the template's author; a repeat of a key is dropped.
        within: the beginning of positions within an included text: its name.
        loops: the loops around the present node, outermost first.
        counters: variables of ``increment`` and ``decrement``.
        cycles: the position of each ``cycle``.
        offsets: the position at which ``offset: continue`` continues, by loop.
        depth: the present level of included texts.
        token: the output or condition that is being evaluated.
        has_default: whether a filter replaces a missing value of that output.
        blanks: a sentence for each output that printed nothing.
        hints: a sentence for each field of the customer that is printed without a default.
        tested: fields that a condition has tested.
        in_code: whether the text is within a `<script>` or `<style>` element.
    """

    attributes: Mapping[str, Any]
    calls: Any
    blocks: Mapping[str, str]
    catalogs: Mapping[str, Mapping[str, Any]]
    now: Callable[[], int]
    nested: Callable[[str, str, RenderContext], str]
    position: Callable[[Token], str]
    counters: dict[str, Any]
    warnings: dict[str, str] = field(default_factory=dict)
    within: str = ""
    loops: list[Any] = field(default_factory=list)
    cycles: dict[Any, int] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    depth: int = 0
    token: Token | None = None
    has_default: bool = False
    blanks: dict[tuple[str, int], str] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    tested: set[str] = field(default_factory=set)
    in_code: bool = False
    _started: float = field(default_factory=time.thread_time)

    def place(self, token: Token) -> str:
        return f"{self.within}{self.position(token)}"

    def warn(self, words: str, token: Token | None = None) -> None:
        """Add a warning about *token*, by default the one being evaluated; a repeat is dropped."""
        if len(self.warnings) >= MOST_NOTES:
            return
        token = token or self.token
        located = f"{self.place(token)}: {words}" if token else words
        self.warnings[located] = located

    def warn_blank(self, token: Token, markup: str) -> None:
        """Record that the output *markup* printed nothing."""
        key = (self.within, token.start_index)
        if key not in self.blanks and len(self.blanks) < MOST_NOTES:
            self.blanks[key] = f"{self.place(token)}: `{markup}` prints nothing"

    def warn_without_default(self, token: Token, path: str) -> None:
        """Record that the field *path* is printed without a default."""
        if path not in self.hints:
            words = f"`{path}` has no default: customers without a value get a gap"
            self.hints[path] = f"{self.place(token)}: {words}; write `| default: '…'`"

    @property
    def unexplained_blanks(self) -> tuple[str, ...]:
        """The blank outputs that no warning explains."""
        warned = {words.partition(": ")[0] for words in self.warnings.values()}
        return tuple(
            words for words in self.blanks.values() if words.partition(": ")[0] not in warned
        )

    @property
    def untested_hints(self) -> tuple[str, ...]:
        """The hints about fields that no condition has tested."""
        return tuple(words for path, words in self.hints.items() if path not in self.tested)

    def check_time(self) -> None:
        """Check the CPU time of the render.

        Raises:
            ResourceLimitError: it exceeds `RENDER_SECONDS`.
        """
        if time.thread_time() - self._started > RENDER_SECONDS:
            loop = self.loops[-1] if self.loops else None
            where = f"; it is in a loop of {loop.length:,} rounds" if loop else ""
            raise ResourceLimitError(
                f"the template takes more than {RENDER_SECONDS:g} s to render{where}", token=None
            )

    def warn_missing(self, token: Token, path: str, hint: str, *, is_data: bool = False) -> None:
        """Warn once about a missing field, with the place that uses it first.

        *is_data*: the field belongs to the customer or the event, so it may get a test value. A
        default makes the warning needless.
        """
        if is_data and self.has_default and not hint:
            return
        words = f"`{path}` {'has no test value' if is_data else 'does not exist'}{hint}"
        self.warnings.setdefault(words, f"{self.place(token)}: {words}")


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Return the end of a sentence that suggests the name most similar to *name*, or ""."""
    names = [str(one) for one in known][:1000]
    close = [] if name in names else get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


_NAME = "braze"


def begin(context: RenderContext, run: Run) -> None:
    """Attach *run* to *context* (python-liquid's namespace for stateful tags)."""
    context.tag_namespace[_NAME] = run


def run_of(context: RenderContext) -> Run:
    run: Run = context.tag_namespace[_NAME]
    return run
