"""The points of table 1 stand where the numbers are, and the covered images beside them."""

import numpy as np
import pytest

from cnnjax.figures import correspondence, tiles
from tests.figures.test_figures import texts

PARTS, LAYERS = ("eye", "nose"), ("pool5", "fc6")


def table(several):
    numbers = np.random.default_rng(0).uniform(0.1, 0.6, (4, 2, 2, 3))
    between = numbers[2:] if several else np.full((2, 2, 2, 3), np.nan)
    deltas = dict(zip(("part", "random", "part_between", "random_between"), (*numbers[:2], *between), strict=True))
    return {**deltas, "p": np.array([[0.001, 0.5], [0.02, 1.0]])}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("spread", [1, 2])
def test_every_part_has_its_delta_and_deviation_at_each_layer(several, spread):
    shown = np.full((2, 4, 6, 5, 1), 127.5, np.float32)
    shown[1, 2] = np.nan
    numbers = table(several)
    columns = ("as it is", *PARTS, "random")
    figure = correspondence.draw(shown, ("0", "7"), columns, PARTS, LAYERS, numbers, spread, "Boxes by hand.")
    pictures, *panels = figure.axes
    missing = pictures.images[0].get_array()[7:13, 12:17]
    np.testing.assert_allclose(missing, np.full((6, 5, 3), tiles.OUTSIDE), rtol=1e-6)
    for place, axes in enumerate(panels):
        assert len(axes.containers) == (4 if several else 2)
        for name, drawn in zip(correspondence.SERIES, axes.containers, strict=False):
            points, _, (bars,) = drawn
            np.testing.assert_array_equal(points.get_xdata(), numbers[name][:, place, 0])
            widths = [np.ptp(segment[:, 0]) / 2 for segment in bars.get_segments()]
            np.testing.assert_allclose(widths, numbers[name][:, place, spread])
    assert panels[0].get_xlim() == panels[1].get_xlim()
    said = " ".join(texts(figure))
    assert all(word in said for word in ("eye\np = 0.0010", "nose\np = 1.0000", "pool5", "as it is", "Boxes by hand."))
    assert ("images of two classes" in said) == several
    assert ("over pairs of images" if spread == 1 else "over images") in said
