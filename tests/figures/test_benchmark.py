import numpy as np
import pytest

from cnnjax.figures import benchmark
from tests.figures.test_figures import texts


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ([1, 3, 3], [2, 2, 2], 4),
        ([3, 1, 3], [2, 2, 2], 16),  # ahead, behind, and ahead for good
        ([3, 3, 3], [2, 2, 2], 1),
        ([3, 3, 1], [2, 2, 2], None),
        ([3, 3, 2], [2, 2, 2], None),  # level is not ahead
        ([3, 3, 3], [2, 2, np.nan], None),  # not measured is not ahead
    ],
)
def test_ours_is_ahead_from_where_it_stays_ahead(ours, theirs, found):
    assert benchmark.ahead_from([1, 4, 16], ours, theirs) == found


def test_each_panel_says_where_the_lines_cross():
    never = [np.nan, np.nan]
    per_hour = np.array([[[10.0, 40], [20, 20], never], [[10, 15], [20, 20], never]])
    engines = ["together", "alone", "never measured"]
    figure = benchmark.draw_crossover(["A", "B"], [1, 4], engines, per_hour, "a step", "a machine")
    left, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [10, 40])
    assert left.get_ylim() == right.get_ylim()
    labels = [text.get_text() for axes in (left, right) for text in axes.get_legend().get_texts()]
    assert labels == [
        "together",
        "alone (behind together from 4 on)",
        "together",
        "alone (ahead of together, or level, at the end)",
    ]
    assert {"members an hour", "members in the sweep", "1", "4", "A", "B"} <= set(texts(figure))
