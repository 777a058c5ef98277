"""Figure 7 as drawn: cells where the square's centre is, one scale for probabilities, a colour and a name a class."""

import numpy as np

from cnnjax.figures import occlusion
from tests.figures.test_figures import texts


def row(number, channels, best):
    tops, lefts = np.array([0, 3, 6]), np.array([0, 4])
    probability = np.array([[0.9, 0.8], [0.7, 0.1], [0.6, 0.5]])
    return occlusion.Row(
        number=number, label=1, image=np.full((8, 6, channels), 255, np.uint8), tops=tops, lefts=lefts, map=7,
        activity=10 * probability, whole_activity=12.5, probability=probability, whole_probability=0.95,
        best=np.array(best), projections=np.ones((4, 8, 6, channels)), patches=np.ones((4, 8, 6, channels)),
        alike=np.array([0.5, np.nan, 1, 0]),
    )  # fmt: skip


def test_the_panels_show_the_numbers_where_the_square_was():
    rows = [row(5, 3, [[1, 1], [1, 0], [1, 1]]), row(6, 1, [[1, 1], [2, 1], [1, 1]])]
    figure = occlusion.draw(rows, ("cat", "dog", "cow", "hen"), "conv5", "sum", 2, 0)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title()[:3] for axes in panels] == ["tes", "(a)", "(b)", "(c)", "(d)", "(e)"] * 2
    assert (panels[0].images[0].get_array() == 1).all()  # as it is
    picture = panels[1].images[0].get_array()
    assert (picture[3:5, 4:6] == 0).all() and picture.sum() == 3 * (48 - 4)  # the square where (d) is lowest
    active, probable, classes = (panels[index].collections[0] for index in (2, 4, 5))
    assert active.get_clim() == (0, 12.5) and probable.get_clim() == (0, 1)
    np.testing.assert_array_equal(probable.get_array().reshape(3, 2), rows[0].probability)
    centres = probable.get_coordinates()
    np.testing.assert_allclose(centres[:-1, 0, 1] + np.diff(centres[:, 0, 1]) / 2, [1, 4, 7])
    assert panels[4].get_xlim() == (0, 6) and panels[4].get_ylim() == (8, 0)
    colours = np.asarray(classes.get_array()).reshape(3, 2, 3)
    assert not (colours[1, 1] == colours[0, 0]).all() and (colours[2] == colours[0]).all()
    said = texts(figure)
    assert any("mean cosine 0.50 with the same units'" in text.replace("\n", " ") for text in said)
    assert {"dog", "cat", "cow"} <= set(said) and "hen" not in said
    assert any(text.startswith("test image 6,\nclass: dog") for text in said)


def test_frequent_classes_have_colours_and_the_rest_one_grey():
    best = np.repeat(np.arange(9), np.arange(9, 0, -1))[None]
    colours = occlusion.class_colours([best])
    assert list(colours) == list(range(9))
    assert len(set(colours.values())) == 8
    assert colours[7] == colours[8] == occlusion.ANOTHER
