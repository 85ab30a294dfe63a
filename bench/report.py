"""What is shown: tables in Markdown, and the page that holds them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows of text under *columns*; the first column is to the left, the others to the right."""

    columns: Sequence[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells in {len(self.columns)} columns")
        self.rows.append(cells)

    def markdown(self) -> str:
        lines = [tuple(self.columns), *self.rows]
        widths = [max(3, *(len(line[at]) for line in lines)) for at in range(len(self.columns))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        padded = [[_pad(cell, at, widths) for at, cell in enumerate(line)] for line in lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


def _pad(cell: str, at: int, widths: Sequence[int]) -> str:
    return cell.rjust(widths[at]) if at else cell.ljust(widths[at])


def number(value: float) -> str:
    """Three digits that count: 12,345 and 0.123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def each(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def verdict(*, met: bool) -> str:
    """What the table says of a goal."""
    return "met" if met else "missed"


def put(page: str, name: str, text: str) -> str:
    """*page* with *text* as the part *name*, between markers; at the end if it is not there yet."""
    begin, end = f"<!-- bench: {name} -->", f"<!-- end: {name} -->"
    part = f"{begin}\n{text.strip()}\n{end}"
    if begin not in page:
        return f"{page.rstrip()}\n\n{part}\n"
    old = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return old.sub(lambda _: part, page)
