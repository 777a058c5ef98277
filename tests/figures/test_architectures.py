import numpy as np
import pytest

from cnnjax.figures import architectures, tiles
from tests.figures.test_figures import MADE, texts


def test_filters_stand_strongest_first_on_one_scale():
    kernel = np.zeros((2, 2, 1, 3))
    kernel[0, 0, 0] = [1.0, -4.0, 2.0]
    shown = architectures.block(kernel)
    assert shown.shape == (1, 3, 2, 2, 1)
    np.testing.assert_allclose(shown[0, :, 0, 0, 0], [0, 0.75, 0.625])
    assert (shown[0, :, 1] == 0.5).all()


def test_the_rest_of_a_block_is_background():
    shown = architectures.block(np.ones((2, 2, 3, 7)))
    assert shown.shape == (2, 4, 2, 2, 3)
    assert (shown[1, 3] == tiles.BACKGROUND).all() and (shown[1, 2] == 1).all()


def test_kernels_of_many_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 input channels, got 4"):
        architectures.block(np.ones((2, 2, 4, 7)))


def test_every_network_has_its_block_and_its_curve():
    kernels = [np.ones((3, 3, 3, 5)), np.ones((5, 5, 1, 5))]
    spectra = np.array([[1.0, 2, 3], [4, 5, 6]])
    frequencies = np.array([0.1, 0.2, 0.3])
    figure = architectures.draw(kernels, ["base", "other"], ["a", "b"], frequencies, spectra, (0.125, 0.25))
    shown = texts(figure)
    assert "base\na" in shown and "other\nb" in shown and "frequency, cycles a pixel" in shown
    assert not any("$" in text for text in shown)  # files.save draws it as it is
    lines = [line for line in figure.findobj(lambda one: hasattr(one, "get_ydata")) if line.get_label() == "other"]
    np.testing.assert_array_equal(lines[0].get_ydata(), spectra[1])


def test_every_network_has_its_block_of_projections_each_on_its_own_scale():
    noise = np.random.default_rng(0).normal(size=(5, 4, 4, 3))
    other = np.full((5, 6, 6, 1), -0.25)
    figure = architectures.draw_projections(
        [noise, 1000 * noise, other],
        [np.zeros(5, bool), np.zeros(5, bool), np.arange(5) == 1],
        ["a", "b", "c"],
        [MADE, MADE, MADE._replace(alike=0.97)],
        "conv2",
        "seven images",
    )
    first, second, third = (axes.images[0].get_array() for axes in figure.axes)
    np.testing.assert_allclose(first, second)
    assert (third[:6, :6] == 0).all() and (third[:6, 7:13] == tiles.EMPTY).all()
    shown = texts(figure)
    assert "a\ntiles 4×4 px, cosine 0.50" in shown and "c\ntiles 6×6 px, 1 dead, cosine 0.97" in shown
    assert any("conv2" in text and "seven images" in text and "(deconvnet)" in text for text in shown)
    assert any("cosine: mean with the same" in text for text in shown)
    assert any("c: these projections hardly depend" in text.replace("\n", " ") for text in shown)
    assert not any("a: these projections" in text.replace("\n", " ") for text in shown)
