"""Figures are checked by their pixels and labels; that they are beautiful, only an eye can say."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnnjax.figures import animation, convergence, evolution, files, filters, tiles
from cnnjax.figures.projections import NAMES, Made, depends_in_words, drawn_by_lot, scales_of, tile_in_words
from cnnjax.figures.texts import epoch_axis
from cnnjax.geometry import ReceptiveField

EPOCHS = (0, 1, 5)
MADE = Made("deconvnet", 0.5, (4, 4), "all 9")


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
    assert np.isnan(tiles.grid(np.full((1, 1, 2, 2, 3), np.nan))).all()


def test_what_is_outside_is_hatched_and_nothing_else_is():
    canvas = np.full((4, 6, 3), 0.5)
    canvas[1:, :2] = canvas[0, 3:5] = np.nan
    axes = Figure().subplots()
    tiles.show(axes, canvas)
    outside = np.isnan(canvas[..., 0])
    (patch,) = axes.patches
    assert patch.get_hatch() == tiles.HATCH
    pixels = np.stack(np.meshgrid(np.arange(6), np.arange(4)), axis=-1).reshape(-1, 2)
    np.testing.assert_array_equal(patch.get_path().contains_points(pixels).reshape(4, 6), outside)
    shown = axes.images[0].get_array()
    assert (shown[outside] == tiles.OUTSIDE).all() and (shown[~outside] == 0.5).all()
    plain = Figure().subplots()
    tiles.show(plain, np.full((4, 6, 3), 0.5))
    assert not plain.patches


def test_a_place_is_marked_where_it_is_and_none_is_not():
    axes = Figure().subplots()
    tiles.mark(axes, np.array([[1.0, 2.5], [np.nan, np.nan], [3, 0]]))
    for cross in axes.lines:
        np.testing.assert_array_equal(cross.get_xydata(), [[2.5, 1], [0, 3]])


def test_tiles_of_a_block_begin_at_its_corners():
    some = np.arange(1, 6.0).reshape(5, 1, 1, 1) / 10 * np.ones((5, 40, 33, 1))
    canvas = tiles.block(some)
    for number, (row, column) in enumerate(tiles.corners(some)):
        assert canvas[row, column, 0] == canvas[row + 39, column + 32, 0] == pytest.approx((number + 1) / 10)


def test_scales_are_told_from_the_least_to_the_largest():
    assert tiles.scales_in_words([0.5, 0.0123, 2]) == "±0.012 to ±2"
    assert tiles.scales_in_words(np.array([3.0])) == "±3"
    assert tiles.robust_scale(np.array([np.nan, 1, -1])) == 1 and tiles.robust_scale(np.array([np.nan])) == 0


def test_filters_have_one_scale_each_over_all_epochs():
    kernels = np.zeros((3, 2, 2, 1, 3))
    kernels[1, 0, 0, 0, 0], kernels[2, 0, 0, 0, 0], kernels[0, 1, 1, 0, 1] = 1.0, -4.0, 0.01
    figure = filters.draw(kernels, EPOCHS, "conv1")
    left, right = (axes.images[0].get_array() for axes in figure.axes)
    assert left[0, 3, 0] == pytest.approx(0.5 + 0.5 / 4) and left[0, 6, 0] == 0 and left[4, 1, 0] == 1
    assert (right[:2, :2] == 0.5).all()
    assert {"0", "1", "5", epoch_axis(EPOCHS), "filter", "2"} <= set(texts(figure))


def test_filters_of_many_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 input channels, got 4"):
        filters.draw(np.zeros((3, 2, 2, 4, 3)), EPOCHS, "conv2")


def test_dead_maps_are_drawn_empty_with_the_word():
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3))
    dead = np.array([[True, False, False], [False, False, False]])
    place = np.ones((2, 3, 2))
    figure = evolution.draw(noise, np.abs(noise), place, dead, np.array([3, 8]), EPOCHS, "conv2", MADE)
    assert texts(figure).count("dead") == 2
    assert (figure.axes[0].images[0].get_array()[:4, :4] == tiles.EMPTY).all()
    assert {"3", "8", "0", "1", "5"} <= set(texts(figure))
    for cross in figure.axes[1].lines:  # of the five that are alive
        np.testing.assert_array_equal(cross.get_xydata(), [[6, 1], [11, 1], [1, 6], [6, 6], [11, 6]])
    assert not figure.axes[0].lines


def test_what_is_outside_of_a_patch_is_outside_of_its_projection():
    noise = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 3))
    patches = 255 * np.ones_like(noise)
    patches[0, 1, 2:] = np.nan
    dead, place = np.zeros((1, 3), bool), np.ones((1, 3, 2))
    figure = evolution.draw(noise, patches, place, dead, np.array([3]), EPOCHS, "conv2", MADE)
    for axes in figure.axes:
        shown = axes.images[0].get_array()
        assert (shown[2:4, 5:9] == tiles.OUTSIDE).all() and not (shown[:2, 5:9] == tiles.OUTSIDE).any()


def test_the_evolution_says_how_it_was_made():
    noise = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 3))
    drawn = (noise, np.abs(noise), np.ones((1, 3, 2)), np.zeros((1, 3), bool), np.array([3]), EPOCHS, "conv2")
    for rule, name in NAMES.items():
        said = " ".join(texts(evolution.draw(*drawn, MADE._replace(rule=rule)))).replace("\n", " ")
        assert f"({name})" in said and MADE.chosen in said and "contrast by tile, white ±" in said
    assert "contrast by map, one over all epochs" in " ".join(texts(evolution.draw(*drawn, MADE, "map"))).replace(
        "\n", " "
    )


def test_that_projections_hardly_depend_on_the_image_is_said_where_they_do_not():
    assert depends_in_words(MADE) == "mean cosine 0.50 with the same units' projections through another image"
    alike = depends_in_words(MADE._replace(alike=0.99))
    assert alike.startswith("these projections hardly depend on the image, which a deconvnet sees by pooling switches")
    guided = depends_in_words(MADE._replace(alike=0.99, rule="guided"))
    assert guided.startswith("these projections hardly depend on the image: mean cosine 0.99")
    assert depends_in_words(MADE._replace(alike=np.nan)) == ""


def test_a_field_is_told_as_it_is_cut():
    assert tile_in_words(MADE, (4, 4)).startswith("a tile is the 4×4 px that a unit sees")
    cut = tile_in_words(MADE._replace(field=(38, 40)), (32, 32))
    assert cut.startswith("a unit's field of 38×40 px is cut to the image: tiles of 32×32 px")
    assert tile_in_words(MADE._replace(field=None), (8, 6)) == "a unit sees the whole image: tiles of 8×6 px"


def test_the_cosines_of_units_are_averaged_without_those_that_have_none():
    fields = (ReceptiveField(5, 1, 0.0), ReceptiveField(7, 1, 0.0))
    found = Made.of("gradient", np.array([0.5, np.nan, 1.0]), fields, "all 3")
    assert found == Made("gradient", 0.75, (5, 7), "all 3")
    assert np.isnan(Made.of("gradient", np.array([np.nan]), None, "").alike)
    assert Made.of("gradient", np.array([1.0]), None, "").arrays()["field"] == ()


def test_maps_drawn_by_lot_are_told_from_all_maps():
    assert drawn_by_lot(3, 9, 5, "alive") == "3 of 9, drawn by lot (seed 5), first among those alive"
    assert drawn_by_lot(9, 9, 5, "alive") == "all 9"


def test_every_projection_has_its_own_robust_scale_or_that_of_its_map():
    tile = np.zeros((2, 2, 10, 10, 1))
    tile[0, 0, :, :, 0] = np.linspace(-1, 1, 100).reshape(10, 10)
    tile[0, 1] = 1000 * tile[0, 0]
    tile[1, 1] = 1
    own, of_map = scales_of(tile, "tile"), scales_of(tile, "map")
    assert own[0, 1] == pytest.approx(1000 * own[0, 0]) and 0.98 < own[0, 0] <= 1
    np.testing.assert_array_equal(of_map, [[own[0, 1]] * 2, [1, 1]])


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
