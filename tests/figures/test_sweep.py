import math

import numpy as np

from cnnjax.figures import sweep


def test_a_value_is_written_short():
    assert [sweep.text_of(value) for value in (1e-3, (8, 16), None, "sgd", 3)] == ["0.001", "8×16", "None", "sgd", "3"]


def axes_of(values):
    flat = np.full(len(values), 0.5)
    (axes,) = sweep.draw_axes(["axis"], [values], [flat], [flat], [flat], 4).axes
    return axes


def test_an_axis_is_logarithmic_where_its_values_are():
    axes = axes_of([1e-3, 1e-2, 1e-1])
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1e-3, 1e-2, 1e-1])
    assert axes_of([0.0, 0.25, 0.5]).get_xscale() == "linear"


def test_the_ticks_of_many_drawn_values_are_plain_digits():
    """TeX is not read in a figure that is saved."""
    axes = axes_of(list(np.geomspace(1e-4, 1, 40)))
    axes.figure.draw_without_rendering()
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_xscale() == "log" and {"0.001", "0.02", "0.5"} <= set(shown)
    assert not any("$" in text for text in shown)


def test_what_is_no_number_or_too_close_stands_at_equal_distances():
    """0 and 5e-4 beside 5e-3; the networks' own value beside tuples; no limit beside 0.1."""
    for values in ([0.0, 5e-4, 5e-3], [None, (8,), (16,)], [0.1, math.inf]):
        axes = axes_of(values)
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), range(len(values)))
        assert [label.get_text() for label in axes.get_xticklabels()] == [sweep.text_of(value) for value in values]


def test_all_panels_have_one_scale_of_errors():
    low, high = np.array([0.1, 0.2]), np.array([0.3, 0.9])
    figure = sweep.draw_axes(["a", "b"], [[1, 2], [3, 4]], [low, high], [low, high], [low, high], 4)
    one, other = figure.axes
    assert one.get_ylim() == other.get_ylim() and one.get_ylim()[1] >= 90
    assert one.get_ylabel() == "test error at epoch 4, %"


def test_a_member_that_was_stopped_has_a_cross_at_its_last_epoch():
    errors, names = np.array([[0.9, 0.5, 0.1], [0.9, 0.7, np.nan]]), ["0: momentum 0.5", "1: momentum 0.9"]
    figure = sweep.draw_curves([0, 1, 2], errors, "momentum", [0.5, 0.9], names, [0, 1])
    (axes,) = figure.axes
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (1, 70.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_curves_of_one_value_are_told_apart_and_of_many_members_the_best_are_named():
    errors = np.linspace(0.1, 0.9, 40).reshape(20, 2)
    few = sweep.draw_curves([0, 1], errors[:4], "rate", [0.1] * 4, list("abcd"), [3], "validation")
    assert len({line.get_linestyle() for line in few.axes[0].lines}) == 4
    assert few.axes[0].get_ylabel() == "validation error, %"
    many = sweep.draw_curves([0, 1], errors, "rate", list(range(20)), [f"m{row}" for row in range(20)], [7, 2, 9, 1, 0])
    assert [text.get_text() for text in many.legends[0].get_texts()] == ["m7", "m2", "m9", "m1"]
    thick = [line for line in many.axes[0].lines if isinstance(line.get_color(), str)]
    np.testing.assert_allclose(sorted(line.get_ydata()[0] for line in thick), 100 * errors[[1, 2, 7, 9], 0])


def test_a_heat_map_writes_the_cells_that_there_are():
    figure = sweep.draw_heat("a", [1, 2], "b", [(8,), None], np.array([[0.1, np.nan], [0.25, 0.9]]), 4)
    assert [text.get_text() for text in figure.axes[0].texts] == ["10.0", "25.0", "90.0"]


def test_importance_rises_from_the_bottom_and_says_its_share():
    figure = sweep.draw_importance(["a", "b", "c"], np.array([0.2, 0.7, 0.0]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0, 20, 70]


def test_filters_have_a_row_a_member_and_their_own_scale():
    """A cell and the same cell times 10 are drawn alike, with another number below; a filter that misses is paper."""
    kernels = np.random.default_rng(0).normal(size=(1, 2, 3, 3, 1, 3))
    kernels[:, 1] = 10 * kernels[:, 0]
    kernels *= 2 / np.abs(kernels[0, 0]).max()
    more = np.ones((2, 5, 5, 3, 5))  # another member's, of another size
    figure = sweep.draw_filters([kernels[0], more], ["seed 0", "seed 1"], [0, 5], "seed", np.array([0.125, 1]))
    first, second, *others = figure.axes
    assert [np.asarray(axes.images[0].get_array()).shape for axes in others] == 2 * [(11, 17, 3)]
    pictures = [np.asarray(axes.images[0].get_array()) for axes in (first, second)]
    np.testing.assert_allclose(*pictures)
    assert pictures[0].shape == (7, 7, 3) and (pictures[0][4:, 4:] == 1).all()
    assert (first.get_xlabel(), second.get_xlabel()) == ("±2", "±20")
    assert (first.get_title(), second.get_title()) == ("epoch 0", "epoch 5")
    assert first.get_ylabel() == "seed 0\n12.5 % test error"
