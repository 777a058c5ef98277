"""Curves and images of figure 5: where they stand and what is written beside them."""

import numpy as np

from cnnjax.figures import invariance, tiles
from tests.figures.test_figures import texts

VALUES = {"translation": np.array([-1.0, 0, 1]), "rotation": np.array([0.0, 90, 180, 270])}
DISTANCE = {name: np.arange(2 * 2 * len(at), dtype=float).reshape(2, 2, -1) for name, at in VALUES.items()}
PROBABILITY = {name: DISTANCE[name][:, 0] / 20 for name in VALUES}
LAYERS = ("pool1", "fc6")


def test_every_image_has_its_curve_and_its_row_of_pictures():
    shown = {name: at[:2] for name, at in VALUES.items()}
    levels = np.array([0, 255]).reshape(1, 2, 1, 1, 1) * np.ones((2, 2, 3, 4, 1))
    examples = dict.fromkeys(VALUES, levels)
    figure = invariance.draw(examples, shown, VALUES, DISTANCE, PROBABILITY, ("cat (3)", "dog (7)"), LAYERS, "")
    panels = np.array(figure.axes).reshape(2, 4)
    for row, name in zip(panels, VALUES, strict=True):
        assert row[0].images[0].get_array().shape == (*tiles.grid(levels).shape[:2], 3)
        expected = (DISTANCE[name][:, 0], DISTANCE[name][:, 1], PROBABILITY[name])
        for axes, curves, top in zip(row[1:], expected, (11.0, 15.0, 1.0), strict=True):
            first, second, unchanged = axes.lines
            lanes = np.array([1 - first.get_ydata(), 2 - second.get_ydata()])  # above each lane's own zero
            np.testing.assert_allclose(lanes, invariance.LANE * curves / top)
            np.testing.assert_array_equal(first.get_xdata(), VALUES[name])
            assert unchanged.get_xdata()[0] == 0
            labels = [label.get_text() for label in axes.get_yticklabels()]
            assert labels == [f"{top:g}", "0"] * 2
            np.testing.assert_allclose(axes.get_yticks(), [1 - invariance.LANE, 1, 2 - invariance.LANE, 2])
    assert {"Euclidean distance at pool1", "Euclidean distance at fc6"} <= set(texts(figure))
    assert {"probability of the true class", "dog (7)"} <= set(texts(figure))
    assert {invariance.AXES["rotation"], "-1", "90"} <= set(texts(figure))


def test_the_average_is_median_mean_and_quartiles():
    figure = invariance.draw_average(VALUES, DISTANCE, PROBABILITY, np.array([50.0, 60]), LAYERS, "", "Over 2 images")
    panels = np.array(figure.axes).reshape(2, 3)
    median, mean, level = panels[1, 1].lines
    np.testing.assert_array_equal(median.get_ydata(), np.median(DISTANCE["rotation"][:, 1], axis=0))
    np.testing.assert_array_equal(mean.get_ydata(), DISTANCE["rotation"][:, 1].mean(axis=0))
    assert set(level.get_ydata()) == {60} and panels[1, 1].get_ylim()[1] > 60
    band = panels[0, 2].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(band[:, 1].min(), np.percentile(PROBABILITY["translation"], 25, axis=0).min())
    words = {"Over 2 images", "mean", "median", "quartiles", "mean distance to another image"}
    assert words <= set(texts(figure))
