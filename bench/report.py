"""Tables in Markdown, and the page that holds them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows of text under *columns*; the first column is left-aligned, the others right-aligned."""

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
    """Format with three significant digits, or as a whole number: 12,345 and 0.12."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def goal(ratio: float, least: float | None = None, *, most: float | None = None) -> str:
    """Format a ratio, and whether it is at least *least* or at most *most*."""
    shown = f"**{ratio:.{2 if ratio >= 0.1 else 3}f}**"
    if least is not None:
        return f"{shown}, goal {least:g}: {verdict(met=ratio >= least)}"
    if most is not None:
        return f"{shown}, goal {most:g}: {verdict(met=ratio <= most)}"
    return shown


def verdict(*, met: bool) -> str:
    return "met" if met else "missed"


def replace_section(page: str, section: str) -> str:
    """Replace the section of *page* with the same heading; without one, append *section*."""
    heading = section.partition("\n")[0]
    old = re.compile(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    new = f"{section.strip()}\n\n"
    page = old.sub(lambda _: new, page) if old.search(page) else f"{page.rstrip()}\n\n{new}"
    return f"{page.strip()}\n"
