"""Figures are checked by their pixels and labels; that they are beautiful, only an eye can say."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.figures import animation, convergence, evolution, files, filters, tiles

EPOCHS = (0, 1, 5)


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def test_signed_values_have_zero_at_mid_grey_and_are_clipped():
    np.testing.assert_array_equal(tiles.signed(np.array([-9.0, -2, 0, 1, 2]), 2.0), [0, 0, 0.5, 0.75, 1])
    np.testing.assert_array_equal(tiles.signed(np.zeros(3), 0.0), [0.5] * 3)


def test_a_grid_puts_every_tile_in_its_place():
    numbers = np.arange(6.0).reshape(2, 3, 1, 1, 1) / 10 * np.ones((2, 3, 4, 5, 1))
    canvas = tiles.grid(numbers, gap=2)
    assert canvas.shape == (2 * 4 + 2, 3 * 5 + 4, 3)
    for row, down in enumerate(tiles.centres(2, 4, gap=2)):
        for column, across in enumerate(tiles.centres(3, 5, gap=2)):
            assert canvas[int(down), int(across), 1] == pytest.approx((3 * row + column) / 10)
    assert (canvas[4:6] == tiles.BACKGROUND).all()
    assert (tiles.grid(np.full((1, 1, 2, 2, 3), np.nan)) == tiles.OUTSIDE).all()


def test_filters_have_one_scale_each_over_all_epochs():
    kernels = np.zeros((3, 2, 2, 1, 3))
    kernels[1, 0, 0, 0, 0], kernels[2, 0, 0, 0, 0], kernels[0, 1, 1, 0, 1] = 1.0, -4.0, 0.01
    figure = filters.draw(kernels, EPOCHS, "conv1")
    left, right = (axes.images[0].get_array() for axes in figure.axes)
    assert left[0, 3, 0] == pytest.approx(0.5 + 0.5 / 4) and left[0, 6, 0] == 0 and left[4, 1, 0] == 1
    assert (right[:2, :2] == 0.5).all()
    assert {"0", "1", "5", "epoch", "filter", "2"} <= set(texts(figure))


def test_filters_of_many_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 input channels, got 4"):
        filters.draw(np.zeros((3, 2, 2, 4, 3)), EPOCHS, "conv2")


def test_dead_maps_are_drawn_empty_with_the_word():
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3))
    dead = np.array([[True, False, False], [False, False, False]])
    figure = evolution.draw(noise, np.abs(noise), dead, np.array([3, 8]), EPOCHS, "conv2")
    assert texts(figure).count("dead") == 2
    assert (figure.axes[0].images[0].get_array()[:4, :4] == tiles.OUTSIDE).all()
    assert {"3", "8", "0", "1", "5"} <= set(texts(figure))


def test_every_projection_has_its_own_robust_scale():
    tile = np.zeros((1, 2, 10, 10, 1))
    tile[0, 0, :, :, 0] = np.linspace(-1, 1, 100).reshape(10, 10)
    tile[0, 1] = 1000 * tile[0, 0]
    one, other = evolution.project_contrast(tile)[0]
    np.testing.assert_allclose(one, other)
    assert one.min() == 0 and one.max() == 1 and abs(one[4:6].mean() - 0.5) < 0.01


def test_half_way_is_read_between_the_kept_epochs():
    assert convergence.half_way((0, 2, 10), np.array([1.0, 0.8, 0.2])) == pytest.approx(2 + 8 * 0.3 / 0.6)
    assert np.isnan(convergence.half_way((0, 2), np.array([1.0, 0.9])))
    assert np.isnan(convergence.half_way((0, 2), np.array([0.0, 0.0])))


def test_convergence_draws_shares_and_names_the_layers():
    curves = np.array([[0.5, 0.2, 0.0], [0.1, 0.1, 0.0]])
    figure = convergence.draw(EPOCHS, ("conv1", "conv2"), curves, curves, np.full((2, 3), np.nan))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 0.4, 0])
    assert any(text.startswith("conv2: half way at\nepoch 3.0") for text in texts(figure))


def test_the_animation_has_a_frame_an_epoch(tmp_path):
    kernels = np.random.default_rng(0).normal(size=(3, 2, 2, 3, 5))
    projections = {"conv1": np.random.default_rng(1).normal(size=(4, 3, 6, 6, 3))}
    frames = animation.draw(kernels, projections, {"conv1": np.zeros((4, 3), bool)}, EPOCHS, "conv1")
    animation.save(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 3 and picture.size == (frames[0].shape[1], frames[0].shape[0])


def test_a_figure_is_saved_with_its_numbers_and_no_pickle(tmp_path):
    figure = filters.draw(np.ones((3, 2, 2, 1, 3)), EPOCHS, "conv1")
    with pytest.raises(FileNotFoundError):  # so that a folder that was removed stays so
        files.save(tmp_path / "new" / "a.png", figure, kernels=np.ones(3), epochs=EPOCHS)
    files.make_folder(tmp_path, "new")
    files.save(tmp_path / "new" / "a.png", figure, kernels=np.ones(3), epochs=EPOCHS)
    with np.load(tmp_path / "new" / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["epochs"], EPOCHS)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.size[0] > 300
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.npz", "a.png"]
