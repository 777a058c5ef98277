import math
import re

import pytest

from cnnjax.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, drawn


def line(epochs, values):
    return Line("a", epochs, values, 0)


def places(path):
    return [(kind, float(x), float(y)) for kind, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", path)]


def test_the_ends_of_the_axes_are_epoch_0_the_last_epoch_0_and_the_highest_tick():
    found = drawn(Chart("t", "u", (line([0, 10], [1.0, 0.0]),)), (0, 10), 10)
    assert places(found.lines[0].path) == [("M", LEFT, TOP), ("L", WIDTH - RIGHT, HEIGHT - BOTTOM)]
    assert [text for _, text in found.up] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert found.across[0] == (LEFT, "0") and found.across[-1] == (WIDTH - RIGHT, "10")


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [(0.02, "0 0.005 0.01 0.015 0.02"), (2.36, "0 0.5 1 1.5 2 2.5"), (0.0, "0 1"), (730.0, "0 200 400 600 800")],
)
def test_ticks_are_round_and_reach_the_highest_value(highest, ticks):
    found = drawn(Chart("t", "u", (line([0], [highest]),)), (0,), 5)
    assert " ".join(text for _, text in found.up) == ticks


def test_a_value_that_is_none_is_a_gap_and_no_number():
    found = drawn(Chart("t", "u", (line([0, 1, 2, 3], [1, math.nan, 1, 1]),)), (0, 1), 3).lines[0]
    assert [kind for kind, *_ in places(found.path)] == ["M", "M", "L"]
    assert len(found.points) == 3 and found.values == ("1", "")


def test_kept_epochs_stand_at_equal_distances():
    found = drawn(Chart("t", "u", (line([0, 1, 64], [1, 1, 1]),), kept=(0, 1, 64)), (0, 1, 64), 64)
    across = [x for x, _ in found.across]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.11) and found.by_kept
    assert [x for _, x, _ in places(found.lines[0].path)] == across


def test_a_line_has_its_numbers_at_the_epochs_of_the_slider_alone():
    found = drawn(Chart("t", "u", (line(range(5), [0.1234, 1, 2, 3, 4e-9]),)), (0, 4, 7), 7).lines[0]
    assert found.values == ("0.123", "0", "")
