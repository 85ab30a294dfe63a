"""Plots as SVG made here: geometry only. Pure.

A plot is drawn in a box of `WIDTH` by `HEIGHT` that the page stretches to its own size; all words
stand beside it, in HTML, where they keep theirs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 600.0, 120.0

Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """One value for each moment; ``None``: there is none.

    Attributes:
        name: in the legend.
        look: the style sheet's name for how it is drawn.
        values: as many as there are moments.
        total: what the legend says of it.
    """

    name: str
    look: str
    values: Values
    total: str


@dataclass(frozen=True)
class Shape:
    look: str
    path: str


@dataclass(frozen=True)
class Column:
    """A moment: where the pointer finds it, and what it says; *rest* follows the time."""

    x: float
    width: float
    at: float
    rest: str


@dataclass(frozen=True)
class Plot:
    """All that a page draws. *ticks* are the labels of the scale, from the top to nothing."""

    title: str
    unit: str
    shapes: tuple[Shape, ...]
    columns: tuple[Column, ...]
    ticks: tuple[float, float, float]
    series: tuple[Series, ...]
    first: float
    last: float

    @property
    def summary(self) -> str:
        """The plot for who does not see it."""
        return f"{self.title}. " + ", ".join(f"{one.name} {one.total}" for one in self.series)


def draw(
    title: str,
    unit: str,
    moments: Sequence[float],
    bars: Sequence[Series] = (),
    lines: Sequence[Series] = (),
) -> Plot:
    """Draw *bars*, one upon the other, and *lines* before them."""
    piles = [sum(one.values[i] or 0 for one in bars) for i in range(len(moments))]
    seen = [value for one in lines for value in one.values if value is not None]
    top = scale([*piles, *seen])
    step = WIDTH / max(1, len(moments))
    shapes = [*_bars(bars, top, step), *(_line(one, top, step) for one in lines)]
    every = (*bars, *lines)
    return Plot(
        title=title,
        unit=unit,
        shapes=tuple(shape for shape in shapes if shape.path),
        columns=tuple(
            Column(round(i * step, 2), round(step, 2), at, _told(every, i))
            for i, at in enumerate(moments)
        ),
        ticks=(top, top / 2, 0.0),
        series=every,
        first=moments[0] if moments else 0.0,
        last=moments[-1] if moments else 0.0,
    )


def scale(values: Sequence[float]) -> float:
    """The end of a scale that holds *values*: a round number, ten at least."""
    highest = max([10.0, *values])
    power = 10 ** math.floor(math.log10(highest))
    return next(
        float(step * power) for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= highest
    )


def _told(series: Sequence[Series], place: int) -> str:
    return "".join(
        f", {one.name} {one.values[place]:,.10g}" for one in series if one.values[place] is not None
    )


def _y(value: float, top: float) -> float:
    return round(HEIGHT - value / top * HEIGHT, 1)


def _bars(bars: Sequence[Series], top: float, step: float) -> list[Shape]:
    shapes = []
    below = [0.0] * max((len(one.values) for one in bars), default=0)
    for one in bars:
        path = ""
        for place, value in enumerate(one.values):
            if value:
                low, high = _y(below[place], top), _y(below[place] + value, top)
                x, width = round((place + 0.1) * step, 2), round(0.8 * step, 2)
                path += f"M{x} {low}V{high}h{width}V{low}z"
                below[place] += value
        shapes.append(Shape(one.look, path))
    return shapes


def _line(one: Series, top: float, step: float) -> Shape:
    points = [
        None if value is None else (round((place + 0.5) * step, 2), _y(value, top))
        for place, value in enumerate(one.values)
    ]
    path = ""
    for before, point in pairwise([None, *points]):
        if point:
            # A point alone has a length of nothing, and shows by its round ends.
            path += f"{'L' if before else 'M'}{point[0]} {point[1]}" + ("" if before else "h0")
    return Shape(one.look, path)
