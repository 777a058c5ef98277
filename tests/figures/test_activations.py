"""Figure 2 as drawn: where a tile stands, its scale, what is empty, and what the labels say."""

import numpy as np
import pytest

from cnnjax.figures import activations, tiles
from tests.figures.test_figures import MADE, texts


def test_the_gaps_of_a_block_of_large_tiles_are_wider():
    assert tiles.block(np.zeros((4, 31, 31, 3))).shape == (63, 63, 3)
    assert tiles.block(np.zeros((4, 224, 224, 3))).shape == (455, 455, 3)


def test_a_block_is_read_row_by_row():
    some = np.arange(5.0).reshape(5, 1, 1, 1) / 10 * np.ones((5, 2, 3, 1))
    square = tiles.block(some)
    assert square.shape == (2 * 2 + 1, 3 * 3 + 2, 3)
    assert [square[0, 0, 0], square[0, 4, 0], square[0, 8, 0], square[3, 0, 0], square[3, 4, 0]] == [
        0,
        0.1,
        0.2,
        0.3,
        0.4,
    ]
    assert (square[3:, 8:] == tiles.BACKGROUND).all()


def test_projections_of_a_map_share_a_scale_and_stand_left_of_their_patches():
    projections = np.zeros((2, 4, 5, 5, 3))
    projections[0] = np.array([1.0, 0.5, 0, -1]).reshape(4, 1, 1, 1)
    projections[1] = 1000
    patches = np.full((2, 4, 5, 5, 3), 51.0)
    patches[0, 2] = np.nan
    value = np.array([[4.0, 3, 2, 0], [0, 0, 0, 0]])
    place = np.full((2, 4, 2), [1.0, 2.0])
    searched = "the 10 test images of digits"
    figure = activations.draw(projections, patches, place, value, np.array([3, 8]), "conv2", searched, MADE)
    shown = figure.axes[0].images[0].get_array()
    left, right = shown[:, :11], shown[:, -11:]
    assert [left[2, 2, 0], left[2, 8, 0]] == pytest.approx([1, 0.75])
    assert [right[2, 2, 0], right[2, 8, 0], right[8, 2, 0]] == pytest.approx([0.2, 0.2, tiles.OUTSIDE])
    assert (left[6:, :5] == tiles.OUTSIDE).all()  # as its patch
    assert (left[6:, 6:] == tiles.EMPTY).all() and (right[6:, 6:] == tiles.EMPTY).all()
    for cross in figure.axes[0].lines:  # of the three that are active, in the right block
        np.testing.assert_array_equal(cross.get_xydata(), [[15, 1], [21, 1], [15, 7]])
    said = texts(figure)
    assert {"map 3", "map 8, dead"} <= set(said)
    assert any("each map of conv2 most, of the 10 test images of digits" in text.replace("\n", " ") for text in said)
