"""Plots: what is drawn, marked and written below."""

from bridge.web.plots import Series, draw

HOUR = [float(at) for at in range(60 * 7, 3600 + 60 * 7, 60)]


def test_a_value_without_neighbours_is_marked() -> None:
    values = [None] * 10 + [5.0] + [None] * 10 + [5.0, 6.0] + [None] * 37
    count = [0.0] * 30 + [7.0] + [0.0] * 29
    lines = [
        Series("latency", "first", values, ""),
        Series("dead", "wrong", count, "", skips_zeros=True),
    ]
    plot = draw("", "", HOUR, lines=lines, written=str, stamp_every=900)
    marks = {shape.look: shape.path.count("M") for shape in plot.shapes}
    assert marks == {"first": 1, "first alone": 1, "wrong alone": 1}
    # A count that is not drawn is nought, and no gap.
    assert plot.columns[0].said == "first\tlatency\t–\nwrong\tdead\t0.0"


def test_times_below_a_plot_are_round_and_bands_have_names() -> None:
    series = [Series("accepted", "soft", [1.0] * 60, "60")]
    # A clock that was set back may leave an incident that ended before it began.
    troubles = [(HOUR[5], HOUR[6], "trouble"), (HOUR[8] + 9, HOUR[8] + 5, "down")]
    plot = draw("Webhooks", "", HOUR, series, written=str, troubles=troubles, stamp_every=900)
    assert [stamp.at for stamp in plot.stamps] == [900, 1800, 2700]
    assert [stamp.x for stamp in plot.stamps] == [13.3, 38.3, 63.3]
    assert plot.summary == "Webhooks. accepted 60, incident open"
    named = [at for at, one in enumerate(plot.columns) if "incident open" in one.said]
    assert named == [5]
    assert not any("database down" in one.said for one in plot.columns)
