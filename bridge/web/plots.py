"""Plots as SVG made here: geometry only. Pure.

A plot is drawn in a box of `WIDTH` by `HEIGHT` that the page stretches to its own size; all words
stand beside it, in HTML, so that the text is not stretched.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600.0, 120.0

Values = Sequence[float | None]
# A value as people read it, with its unit.
Written = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One value for each moment; ``None``: there is none.

    Attributes:
        name: in the legend.
        look: the style sheet's name for how it is drawn.
        values: as many as there are moments.
        total: what the legend says of it.
        skips_zeros: zeros, which would be a line along the bottom, are not drawn.
    """

    name: str
    look: str
    values: Values
    total: str
    skips_zeros: bool = False


@dataclass(frozen=True)
class Shape:
    look: str
    path: str


@dataclass(frozen=True)
class Column:
    """A moment: where it stands, and what each series says there."""

    x: float
    width: float
    at: float
    said: str


@dataclass(frozen=True)
class Band:
    """A time in which something was wrong."""

    x: float
    width: float
    look: str


@dataclass(frozen=True)
class Stamp:
    """A moment that is written below, at *x* percent of the width."""

    x: float
    at: float


@dataclass(frozen=True)
class Line:
    """A value that is drawn across, such as a limit."""

    y: float
    name: str


@dataclass(frozen=True)
class Plot:
    """All that a page draws.

    *ticks* are the labels of the scale, from the top to the bottom; *grid* is a path of lines at
    them.
    """

    title: str
    unit: str
    shapes: tuple[Shape, ...]
    columns: tuple[Column, ...]
    ticks: tuple[str, ...]
    grid: str
    series: tuple[Series, ...]
    stamps: tuple[Stamp, ...]
    bands: tuple[Band, ...] = ()
    line: Line | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no series has a value other than nought."""
        return not any(value for one in self.series for value in one.values)

    @property
    def summary(self) -> str:
        """The plot for people who do not see it."""
        said = [f"{one.name} {one.total}" for one in self.series]
        return f"{self.title}. {', '.join(said + [name for _, name in self.troubles])}"

    @property
    def troubles(self) -> list[tuple[str, str]]:
        """Look and name of each kind of band in the plot."""
        looks = {one.look for one in self.bands}
        return [(look, name) for look, name in TROUBLES.items() if look in looks]


@dataclass(frozen=True)
class Scale:
    """Where values stand: evenly from nought to *top*, or by their logarithms from *low*."""

    top: float
    low: float = 0.0

    def y(self, value: float) -> float:
        """Return the place of *value*; 0 is the top."""
        if not self.low:
            return round(HEIGHT - value / self.top * HEIGHT, 1)
        share = math.log(max(value, self.low) / self.low) / math.log(self.top / self.low)
        return round(HEIGHT - share * HEIGHT, 1)

    def ticks(self) -> tuple[float, ...]:
        """Return the labelled values of the scale, from the top."""
        if not self.low:
            return (self.top, self.top / 2, 0.0)
        decades = round(math.log10(self.top / self.low))
        return tuple(self.top / 10**place for place in range(decades + 1))


# Look of a time in which something was wrong -> its name.
TROUBLES = {"trouble": "incident open", "down": "database down"}

# From a millisecond to a hundred seconds.
LATENCIES = Scale(100_000.0, 1.0)


def draw(
    title: str,
    unit: str,
    moments: Sequence[float],
    bars: Sequence[Series] = (),
    lines: Sequence[Series] = (),
    *,
    written: Written,
    scale: Scale | None = None,
    limit: tuple[float, str] | None = None,
    troubles: Sequence[tuple[float, float, str]] = (),
    stamp_every: float,
) -> Plot:
    """Draw *bars*, one upon the other, and *lines* before them.

    Args:
        title: what it shows.
        unit: of the values.
        moments: when each value's time begins, at equal distances, in seconds since the epoch.
        bars: series that add up.
        lines: series that do not.
        written: a value as people read it.
        scale: where values stand; by default evenly up to the highest one.
        limit: a value that is drawn across, and its name.
        troubles: begin, end and look of times in which something was wrong; see `TROUBLES`.
        stamp_every: seconds between the moments that are written below.
    """
    piles = [sum(one.values[i] or 0 for one in bars) for i in range(len(moments))]
    points = [value for one in lines for value in one.values if value is not None]
    scale = scale or Scale(round_top([*piles, *points]))
    troubles = _within(troubles, moments)
    step = WIDTH / max(1, len(moments))
    shapes = [*_bars(bars, scale, step)]
    shapes += [shape for one in lines for shape in _line(one, scale, step)]
    every = (*bars, *lines)
    return Plot(
        title=title,
        unit=unit,
        shapes=tuple(shape for shape in shapes if shape.path),
        columns=tuple(
            Column(
                round(i * step, 2),
                round(step, 2),
                at,
                "\n".join([*_said(every, i, written), *_troubled(troubles, i, moments)]),
            )
            for i, at in enumerate(moments)
        ),
        ticks=tuple(written(tick) for tick in scale.ticks()),
        grid="".join(f"M0 {scale.y(tick)}H{WIDTH:.0f}" for tick in scale.ticks()),
        series=every,
        stamps=_stamps(moments, stamp_every),
        bands=_bands(troubles, moments),
        line=Line(scale.y(limit[0]), limit[1]) if limit else None,
    )


def sparkline(values: Values, look: str = "first") -> list[Shape]:
    """Return a small picture of *values* in a box of `WIDTH` by `HEIGHT`."""
    top = max([1.0, *(value for value in values if value is not None)])
    step = WIDTH / max(1, len(values))
    return _line(Series("", look, values, ""), Scale(top * 1.1), step)


def round_top(values: Sequence[float]) -> float:
    """Return the end of a scale for *values*: a round number, at least ten."""
    highest = max([10.0, *values])
    power = 10 ** math.floor(math.log10(highest))
    return next(
        float(step * power) for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= highest
    )


def _said(series: Sequence[Series], place: int, written: Written) -> list[str]:
    """Return look, name and value of each series at one moment."""
    return [
        f"{one.look}\t{one.name}\t{'–' if (value := one.values[place]) is None else written(value)}"
        for one in series
    ]


def _within(
    troubles: Sequence[tuple[float, float, str]], moments: Sequence[float]
) -> list[tuple[float, float, str]]:
    """Return *troubles*, cut to the time that is drawn, without those of no length."""
    first, last = moments[0], moments[-1] + _distance(moments)
    cut = [(max(first, begin), min(last, end), look) for begin, end, look in troubles]
    return [(begin, end, look) for begin, end, look in cut if begin < end]


def _troubled(
    troubles: Sequence[tuple[float, float, str]], place: int, moments: Sequence[float]
) -> list[str]:
    """Return what was wrong at one moment, as `_said` writes it."""
    at, until = moments[place], moments[place] + _distance(moments)
    looks = {look for begin, end, look in troubles if begin < until and end > at}
    return [f"{look}\t{name}\t" for look, name in TROUBLES.items() if look in looks]


def _distance(moments: Sequence[float]) -> float:
    return moments[1] - moments[0] if len(moments) > 1 else 0.0


def _stamps(moments: Sequence[float], every: float) -> tuple[Stamp, ...]:
    """Return the multiples of *every* seconds among *moments*, up to the place of "now"."""
    length = _distance(moments) * len(moments)
    first = math.ceil(moments[0] / every)
    number = math.ceil((moments[0] + length * _NOW) / every) - first
    chosen = [(first + place) * every for place in range(number)]
    return tuple(Stamp(round((at - moments[0]) / length * 100, 1), at) for at in chosen)


# Share of the width from which the word "now" takes the place below a plot.
_NOW = 0.84


def _bands(
    troubles: Sequence[tuple[float, float, str]], moments: Sequence[float]
) -> tuple[Band, ...]:
    first, length = moments[0], _distance(moments) * len(moments)
    return tuple(
        Band(
            round((begin - first) / length * WIDTH, 2),
            # As wide as can be seen.
            round(max(2.0, (end - begin) / length * WIDTH), 2),
            look,
        )
        for begin, end, look in troubles
    )


def _bars(bars: Sequence[Series], scale: Scale, step: float) -> list[Shape]:
    shapes = []
    below = [0.0] * max((len(one.values) for one in bars), default=0)
    for one in bars:
        path = ""
        for place, value in enumerate(one.values):
            if value:
                low, high = scale.y(below[place]), scale.y(below[place] + value)
                x, width = round((place + 0.1) * step, 2), round(0.8 * step, 2)
                path += f"M{x} {low}V{high}h{width}V{low}z"
                below[place] += value
        shapes.append(Shape(one.look, path))
    return shapes


def _line(one: Series, scale: Scale, step: float) -> list[Shape]:
    """Return a path through neighbouring values, and marks at the values without neighbours."""
    points = [
        None
        if value is None or (one.skips_zeros and not value)
        else f"{round((place + 0.5) * step, 2)} {scale.y(value)}"
        for place, value in enumerate(one.values)
    ]
    path = marks = ""
    for before, point, after in zip([None, *points], points, [*points[1:], None], strict=False):
        if point and (before or after):
            path += f"{'L' if before else 'M'}{point}"
        elif point:
            # A length of nothing shows by its round ends.
            marks += f"M{point}h0"
    return [Shape(one.look, path), Shape(f"{one.look} alone", marks)]
