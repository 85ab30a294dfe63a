"""The state of one render: its limits, its data and its warnings."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from liquid import RenderContext
from liquid.exceptions import ResourceLimitError

# CPU seconds of the rendering thread, without waiting, and without calls over HTTP.
RENDER_SECONDS = 0.5
# Levels of content blocks within content blocks, and of rerendered answers.
DEEPEST = 5


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
        warnings: messages for the template's author; a repeat of a key is dropped.
        within: the beginning of positions within an included text: its name.
        loops: the loops around the present node, outermost first.
        counters: variables of ``increment`` and ``decrement``.
        cycles: the position of each ``cycle``.
        offsets: the position at which ``offset: continue`` continues, by loop.
        depth: the present level of included texts.
    """

    attributes: Mapping[str, Any]
    calls: Any
    blocks: Mapping[str, str]
    catalogs: Mapping[str, Mapping[str, Any]]
    now: Callable[[], int]
    nested: Callable[[str, str, RenderContext], str]
    counters: dict[str, Any]
    warnings: dict[str, str] = field(default_factory=dict)
    within: str = ""
    loops: list[Any] = field(default_factory=list)
    cycles: dict[Any, int] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    depth: int = 0
    _started: float = field(default_factory=time.thread_time)

    def warn(self, words: str) -> None:
        self.warnings[words] = words

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

    def warn_missing(self, place: str, path: str, hint: str, *, is_data: bool = False) -> None:
        """Warn once about a missing field, with the first *place* that uses it.

        *is_data*: the field belongs to the customer or the event, so it may get a test value.
        """
        words = f"`{path}` {'has no test value' if is_data else 'does not exist'}{hint}"
        self.warnings.setdefault(words, f"{self.within}{place}: {words}")


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
