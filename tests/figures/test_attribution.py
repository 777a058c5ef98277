import numpy as np

from cnnjax.figures import attribution


def test_every_method_has_a_column_on_its_own_scale():
    """A map and the same map times 1000 are drawn alike; the projections with zero as mid grey."""
    generator = np.random.default_rng(0)
    images, maps = generator.integers(0, 256, (2, 9, 9, 1)), generator.random((2, 9, 9))
    signed = generator.normal(size=(2, 9, 9, 1))
    figure = attribution.draw(images, {"one": maps, "two": 1000 * maps}, {"three": 0 * signed}, ["cat", "dog"], "note")
    (axes,) = figure.axes
    picture = np.asarray(axes.images[0].get_array())
    columns = [picture[:9, start : start + 9] for start in range(0, 40, 10)]
    np.testing.assert_allclose(columns[0], np.broadcast_to(images[0] / 255, (9, 9, 3)))
    np.testing.assert_allclose(columns[1], columns[2])
    np.testing.assert_allclose(columns[3], 0.5)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["image", "one", "two", "three"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_the_sanity_curves_are_means_over_the_images_that_have_a_number():
    rank = {"a": np.array([[1.0, 1.0], [0.5, np.nan], [np.nan, np.nan]])}
    figure = attribution.draw_sanity(["none", "fc2", "conv1"], rank, rank, "note")
    for axes in figure.axes:
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, 0.5, np.nan])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "fc2", "conv1"]
