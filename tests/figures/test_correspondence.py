"""The points of table 1 stand where the numbers are, and the covered images beside them."""

import numpy as np
import pytest

from cnnjax.figures import correspondence, tiles
from tests.figures.test_figures import texts

PARTS, LAYERS = ("eye", "nose"), ("pool5", "fc6")


def table(several):
    numbers = np.sort(np.random.default_rng(0).uniform(0.1, 0.6, (4, 2, 2, 3)))
    between = numbers[2:] if several else np.full((2, 2, 2, 3), np.nan)
    names = ("part", "band", "part_between", "band_between")
    p = np.array([[0.001, 0.5], [0.02, 1.0]])
    return dict(zip(names, (*numbers[:2], *between), strict=True)) | {"p": p, "p_between": p / 2}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("are_parts", [False, True])
def test_every_part_has_its_delta_and_the_band_of_its_test_at_each_layer(several, are_parts):
    shown = np.full((2, 4, 6, 5, 1), 127.5, np.float32)
    shown[1, 2] = np.nan
    numbers = table(several)
    columns = ("as it is", *PARTS, "random")
    figure = correspondence.draw(shown, ("0", "7"), columns, PARTS, LAYERS, numbers, "Boxes by hand.", are_parts)
    pictures, *panels = figure.axes
    missing = pictures.images[0].get_array()[7:13, 12:17]
    np.testing.assert_allclose(missing, np.full((6, 5, 3), tiles.EMPTY), rtol=1e-6)
    endings = ("", "_between")[: 1 + several]
    for place, axes in enumerate(panels):
        deltas = [line for line in axes.lines if line.get_marker() in "os"]
        assert len(deltas) == len(axes.containers) == len(endings)
        for ending, delta, drawn in zip(endings, deltas, axes.containers, strict=True):
            np.testing.assert_array_equal(delta.get_xdata(), numbers["part" + ending][:, place, 0])
            middle, _, (band,) = drawn
            low, median, high = numbers["band" + ending][:, place].T
            np.testing.assert_array_equal(middle.get_xdata(), median)
            np.testing.assert_array_equal(middle.get_ydata(), delta.get_ydata())
            np.testing.assert_allclose([segment[:, 0] for segment in band.get_segments()], np.stack([low, high], 1))
    assert panels[0].get_xlim() == panels[1].get_xlim()
    said = " ".join(texts(figure)).replace("\n", " ")
    assert all(word in said for word in ("eye p = 0.0010", "nose p = 1.0000", "pool5", "as it is", "Boxes by hand."))
    assert ("pairs of two classes" in said) == several == ("p = 0.0010, 0.0005" in said)
    assert ("the same part" in said) == are_parts and ("the same place" in said) != are_parts
