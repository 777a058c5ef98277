"""The chart's markers stand where the percentages are, and nothing is cut off with any number of points."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cnnjax.figures import challenge
from cnnjax.figures.challenge import Entry, Point
from tests.figures.test_figures import texts

ENTRIES = (
    Entry(2001, "one", 30.0, "winner"),
    Entry(2002, "another $team$", 20.5, "winner"),
    Entry(2001, "one", 28.0, "extra"),
    Entry(2002, "third", 22.0, "second"),
    Entry(2002, "their entry", 25.0, "paper"),
)


def whole(figure):
    """Nothing reaches over the edge of the page, as it is saved."""
    FigureCanvasAgg(figure).draw()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    return min(drawn.x0, drawn.y0, page.x1 - drawn.x1, page.y1 - drawn.y1) > -0.01


def test_entries_and_a_person_stand_at_their_percentages():
    figure = challenge.draw(ENTRIES, 5.1, (), "A note.")
    (axes,) = figure.axes
    winner, extra, second, paper, person = axes.lines
    np.testing.assert_array_equal(winner.get_xydata(), [[2001, 30.0], [2002, 20.5]])
    assert [line.get_ydata()[0] for line in (extra, second, paper)] == [28.0, 22.0, 25.0]
    assert set(person.get_ydata()) == {5.1}
    said = "\n".join(texts(figure))
    for part in ("2001\n30 %\none", "2002\n20.5 %", "2001: 28 %", "third 2002: 22 %", "their entry: 25 %", "5.1 %"):
        assert part in said
    assert "A note." in said and "top-5 error, % of the test images" in said
    assert len({(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in axes.lines}) == 5


@pytest.mark.parametrize("count", [1, 24])
def test_own_points_share_the_scale_and_nothing_is_cut_off(count):
    points = [
        Point(f"a network with a long name {'w' * 30} {place}", 4.0 * place, "10 classes") for place in range(count)
    ]
    figure = challenge.draw(ENTRIES, 5.1, points, "A long note. " * 20)
    left, right = figure.axes
    np.testing.assert_array_equal(right.lines[-1].get_ydata(), [point.percent for point in points])
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[1] > max(30.0, 4.0 * (count - 1))
    assert len([label for label in right.get_xticklabels() if "10 classes" in label.get_text()]) == count
    assert whole(figure)
