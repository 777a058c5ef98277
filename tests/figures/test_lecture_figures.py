"""The lecture's drawings: what their labels say, and where their outlines stand."""

import numpy as np
from matplotlib.colors import to_hex

from cnnjax.figures import lecture
from cnnjax.figures.lecture import Fit
from tests.figures.test_figures import texts


def outlines(axes):
    """(row, column, height, width) of every outlined box."""
    return [
        (box.get_y(), box.get_x(), box.get_height(), box.get_width())
        for box in axes.patches
        if to_hex(box.get_edgecolor()) == lecture.OUTLINE
    ]


def test_the_scanner_outlines_the_first_window_and_its_output():
    image, kernel = np.eye(5, dtype=int), np.eye(3, dtype=int)
    figure = lecture.draw_scanner(image, kernel, np.array([[9, 1], [1, 7]]))
    left, middle, right = figure.axes
    assert outlines(left) == [(0, 0, 3, 3)] and outlines(right) == [(0, 0, 1, 1)] and outlines(middle) == []
    said = texts(figure)
    assert {"image, 5×5", "filter, 3×3", "output, 2×2", "9", "7"} <= set(said)
    assert any("add up to 9" in text for text in said)


def test_cells_of_all_panels_have_one_size():
    figure = lecture.draw_scanner(np.eye(5, dtype=int), np.eye(3, dtype=int), np.ones((3, 3), int))
    figure.canvas.draw()
    cells = [axes.transData.transform((1, 1))[0] - axes.transData.transform((0, 0))[0] for axes in figure.axes]
    np.testing.assert_allclose(cells, cells[0], rtol=0.02)


def test_the_colour_example_shows_each_sum_and_the_whole():
    figure = lecture.draw_rgb(
        np.zeros((2, 4, 4), int), np.ones((2, 3, 3), int), np.array([5, -7]), 1, -1, ("red", "green")
    )
    said = texts(figure)
    assert {"sum: 5", "sum: −7", "red: the corner, with zeros", "green: the corner, with zeros"} <= set(said)
    assert any("5 + (−7) + 1 (bias) = −1" in text for text in said)


def test_a_filter_that_does_not_fit_is_said_and_hatched():
    figure = lecture.draw_strides([Fit(7, 3, 1, 0, 5), Fit(7, 3, 3, 0, None), Fit(7, 3, 3, 1, 3)])
    bars = [[box for box in axes.patches if box.get_width() == 3] for axes in figure.axes]
    assert [len(places) for places in bars] == [5, 3, 3]
    assert [[place.get_hatch() is not None for place in places] for places in bars[1:]] == [
        [False, False, True],
        [False, False, False],
    ]
    assert bars[1][2].get_x() + 3 > 7 and bars[2][0].get_x() == -1 and bars[2][2].get_x() + 3 == 8
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "stride 1, no padding: 5 outputs",
        "stride 3, no padding: does not fit",
        "stride 3, padding 1: 3 outputs",
    ]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_pooling_outlines_the_switches():
    image = np.array([[0, 9, 1, 1], [0, 0, 1, 8]])
    figure = lecture.draw_pooling(image, np.array([[1, 7]]), np.array([[9, 8]]), 2)
    assert outlines(figure.axes[0]) == [(0, 1, 1, 1), (1, 3, 1, 1)]
    assert any("F = 2, S = 2" in text for text in texts(figure))


def test_feature_maps_stand_under_their_filters_each_on_its_own_scale():
    maps = np.stack([np.linspace(0, 1, 64).reshape(8, 8), np.linspace(0, 900, 64).reshape(8, 8)], axis=-1)
    kernels = [np.array([[0, -1], [1, 0]]), np.array([[1, 1], [1, 1]])]
    figure = lecture.draw_feature_maps(np.zeros((9, 9)), maps, ("edge", "blur"), kernels, (1, 4))
    photograph, edge, blur = (axes for axes in figure.axes if axes.images)
    assert photograph.get_title() == "photograph, 9×9"
    assert edge.get_title().splitlines() == ["edge", " 0 −1", " 1  0"]
    assert blur.get_title().splitlines()[0] == "blur, 1/4 of"
    assert edge.images[0].get_clim()[1] < 1 and 800 < blur.images[0].get_clim()[1] < 900


def test_nothing_of_the_feature_maps_is_cut_off():
    kernels = [np.ones((3, 3), int)] * 5
    figure = lecture.draw_feature_maps(np.zeros((9, 9)), np.ones((7, 7, 5)), tuple("abcde"), kernels, (1,) * 5)
    figure.canvas.draw()
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert box.y1 <= figure.bbox.y1 and box.x0 >= 0


def test_the_curves_carry_their_names_and_markers_of_their_own():
    shifts = np.arange(3)
    curves = {"map": np.array([0, 0.5, 0.8]), "pooled": np.array([0, 0.2, 0.4])}
    figure = lecture.draw_invariance(np.zeros((2, 4, 4)), np.array([0, 1]), shifts, curves)
    lines = [line for axes in figure.axes for line in axes.lines]
    assert [line.get_label() for line in lines] == ["map", "pooled"]
    assert len({line.get_marker() for line in lines}) == 2
    np.testing.assert_array_equal(lines[1].get_ydata(), curves["pooled"])
    assert {"moved by 0 pixels", "moved by 1 pixel", "shift to the right, pixels"} <= set(texts(figure))


def test_the_training_names_each_output_with_its_error():
    outputs = {"before": np.array([0.8, 0.2]), "after": np.array([0.1, 0.9])}
    steps = np.array([0, 5])
    figure = lecture.draw_training(
        ("dog", "boat"),
        np.array([0.0, 1.0]),
        outputs,
        np.array([0.64, 0.01]),
        steps,
        np.array([0.5, 0.1]),
        np.array([0.9, 0.25]),
        "it learns",
    )
    said = set(texts(figure))
    assert {"target", "before: total error 0.64", "after: total error 0.01", "dog", "boat", "it learns"} <= said
    bars = figure.axes[0].containers
    assert [[bar.get_height() for bar in group] for group in bars] == [[0, 1], [0.8, 0.2], [0.1, 0.9]]
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), [90, 25])
