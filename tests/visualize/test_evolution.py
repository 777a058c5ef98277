import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.data import Split, batches
from cnnjax.geometry import ReceptiveField
from cnnjax.visualize import evolution
from cnnjax.visualize.evolution import (
    Strongest,
    alike_through_others,
    choose_maps,
    crop,
    group_size,
    in_groups,
    make_look,
    make_projector,
    places_in_tiles,
    sees_nothing,
    strongest_activations,
    tile_evolution,
    unbounded,
)


def preprocess(images):
    return images.astype(jnp.float32) / 16


def two_layers(variables, images):
    """A layer that is the image itself, scaled, and a dense one."""
    return {"conv1": variables * images, "fc2": jnp.sum(images, axis=(1, 2)) - 40}


@pytest.fixture
def split():
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), dtype=np.uint8)
    images[4] = images[9]  # a tie between two images
    return Split(images, np.zeros(11, np.int32))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_the_strongest_activation_by_a_plain_loop_whatever_the_batch(split, batch_size):
    look = make_look(two_layers, preprocess)
    found = {n: of.at_rank(0) for n, of in strongest_activations(look, 2.0, batches(split, batch_size)).items()}
    for channel in range(3):
        value, image, row, column = max(
            (split.images[i, r, c, channel] / 8, -i, -r, -c) for i in range(11) for r in range(4) for c in range(5)
        )
        assert found["conv1"].value[channel] == pytest.approx(value)
        assert (found["conv1"].image[channel], *found["conv1"].unit[channel]) == (-image, -row, -column)
        sums = split.images[..., channel].sum(axis=(1, 2)) / 16 - 40
        assert found["fc2"].image[channel] == np.argmax(sums)
    assert found["fc2"].unit.shape == (3, 0)


def test_a_map_whose_unit_sees_one_colour_sees_nothing():
    images = np.zeros((3, 6, 6, 1), np.uint8)
    images[1, :3] = 255  # an edge in the upper half
    images[2] = 255
    fields = (ReceptiveField(size=3, jump=1, start=0.0),) * 2
    unit = np.array([[2, 2], [2, 2], [5, 5], [2, 2], [9, 9]])  # the last sees padding only
    strongest = Strongest(np.ones(5), np.array([0, 1, 1, 2, 1]), unit)
    assert sees_nothing(images, strongest, fields).tolist() == [True, False, True, True, True]
    assert sees_nothing(images, strongest, None).tolist() == [True, False, False, True, False]


def test_padding_of_the_last_batch_never_wins(split):
    negative = make_look(lambda variables, images: {"conv1": images - 100}, preprocess)
    found = strongest_activations(negative, None, batches(split, 8))
    assert found["conv1"].value.max() < 0 and found["conv1"].image.max() < 11


def test_maps_are_chosen_by_the_seed_and_dead_ones_only_to_fill_up():
    strongest = Strongest(np.array([0, 1, 0, 2, 3, 0, 4.0]), np.zeros(7, int), np.zeros((7, 2), int))
    for seed in range(5):
        assert set(choose_maps(strongest, 3, seed)) <= {1, 3, 4, 6}
        assert {1, 3, 4, 6} <= set(choose_maps(strongest, 6, seed))
        assert list(choose_maps(strongest, 99, seed)) == list(range(7))
        blank = np.isin(np.arange(7), [3, 6])
        assert list(choose_maps(strongest, 2, seed, blank)) == [1, 4]
        assert set(choose_maps(strongest, 3, seed, blank)) - {1, 4} <= {3, 6}
        assert list(choose_maps(strongest, 4, seed, blank)) == [1, 3, 4, 6]
    np.testing.assert_array_equal(choose_maps(strongest, 3, 1), choose_maps(strongest, 3, 1))
    assert len({tuple(choose_maps(strongest, 3, seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("unit", "rows", "columns"), [((0, 0), (0, 2), (0, 2)), ((1, 2), (1, 4), (3, 6)), ((3, 3), (5, 8), (5, 8))]
)
def test_a_crop_is_the_receptive_field_and_nan_outside(unit, rows, columns):
    """Field 3, jump 2, start 0: unit p sees pixels 2p - 1 to 2p + 1 of 8."""
    image = np.arange(64.0).reshape(8, 8, 1)
    tile = crop(image, (ReceptiveField(3, 2, 0.0),) * 2, np.array(unit))
    seen = image[slice(*rows), slice(*columns)]
    assert tile.shape == (3, 3, 1)
    np.testing.assert_array_equal(tile[~np.isnan(tile)], seen.ravel())
    if unit == (0, 0):
        assert np.isnan(tile[0]).all() and np.isnan(tile[:, 0]).all()


@pytest.mark.parametrize(("unit", "start"), [((0, 2), -5.0), ((3, 1), 20.0), ((0, 0), -6.5), ((3, 3), 2.0)])
def test_a_unit_that_sees_padding_alone_shows_nothing_else(unit, start):
    """By another way: the crop out of the image with a wide border. Field 4, jump 2."""
    image = np.arange(64.0).reshape(8, 8, 1)
    wide = np.pad(image, ((40, 40), (40, 40), (0, 0)), constant_values=np.nan)
    top, left = (int(np.ceil(start + 2 * place - 1.5)) + 40 for place in unit)
    tile = crop(image, (ReceptiveField(4, 2, start),) * 2, np.array(unit))
    np.testing.assert_array_equal(tile, wide[top : top + 4, left : left + 4])


def test_a_unit_that_sees_more_than_the_image_has_its_own_part_of_it():
    """The field of 9 pixels around pixel 0 ends at pixel 4, the one around pixel 4 at pixel 8."""
    image = np.random.default_rng(0).normal(size=(8, 6, 3))
    tile = crop(image, (ReceptiveField(9, 4, 0.0),) * 2, np.array([0, 1]))
    np.testing.assert_array_equal(tile[:5], image[:5])
    assert tile.shape == (8, 6, 3) and np.isnan(tile[5:]).all()
    np.testing.assert_array_equal(crop(image, (ReceptiveField(9, 4, 0.0),) * 2, np.array([1, 1])), image)
    np.testing.assert_array_equal(crop(image, (ReceptiveField(3, 1, 0.0),) * 2, np.array([], int)), image)
    np.testing.assert_array_equal(crop(image, None, np.array([1, 1])), image)


# The last two are larger than the image.
@pytest.mark.parametrize(("size", "start"), [(1, 0.0), (4, -0.5), (4, 1.5), (5, 1.0), (11, 0.0), (12, 0.5)])
def test_the_place_of_a_unit_is_the_middle_of_its_field_in_its_tile(size, start):
    """A pixel of the image that holds its own row and column is found at the place, between two where that is."""
    image = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij"), axis=-1)
    fields = (ReceptiveField(size, 2, start),) * 2
    units = np.array([[1, 2], [2, 1]])
    for unit, place in zip(units, places_in_tiles(fields, units, (8, 8)), strict=True):
        tile = crop(image, fields, unit)
        around = [tile[tuple(side(place).astype(int))] for side in (np.floor, np.ceil)]
        np.testing.assert_array_equal(np.mean(around, axis=0), start + 2 * unit)


def test_a_dense_unit_has_no_place():
    assert np.isnan(places_in_tiles(None, np.zeros((3, 0), int), (8, 8))).all()
    assert np.isnan(places_in_tiles(None, np.zeros((3, 2), int), (8, 8))).all()


def filtered(pool):
    """A convolution and a ReLU, a pool by choice or none, and another convolution and ReLU."""
    first, second = np.random.default_rng(0).normal(0.2, size=(2, 3, 3, 3, 3)).astype(np.float32)

    def maps(variables, images):
        low = jax.nn.relu(ops.conv(images, first, padding=1))
        return {"conv2": jax.nn.relu(ops.conv(ops.max_pool(low, 2) if pool else low, second, padding=1))}

    return maps


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("pool", [False, True])
def test_without_switches_a_deconvnet_shows_the_weights_alone(rule, pool):
    images = np.random.default_rng(2).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    projector = make_projector(filtered(pool), "conv2", lambda x: x / 64.0 - 2, rule=rule)
    which, units, maps = np.arange(20), np.tile([3, 2], (20, 1)), np.arange(20) % 3
    found = alike_through_others(projector, 0.0, images, which, units, maps, group=4)
    if rule == "deconvnet" and not pool:
        np.testing.assert_allclose(found, 1, rtol=1e-5)
    else:
        assert np.nanmax(found) < 0.999
    if rule == "deconvnet":
        own, other = (projector(0.0, images[[row]], np.array([[3, 2, 1]]), 1.0) for row in (1, 11))
        cosine = np.sum(own * other) / np.linalg.norm(own) / np.linalg.norm(other)
        np.testing.assert_allclose(found[1], cosine, rtol=1e-5)
    alone = alike_through_others(projector, 0.0, images[:1], which[:1], units[:1], maps[:1])
    assert np.isnan(alone).all()  # there is no other image


def test_a_unit_may_see_a_strip():
    image = np.arange(64.0).reshape(8, 8, 1)
    tile = crop(image, (ReceptiveField(1, 2, 0.0), ReceptiveField(3, 2, 0.0)), np.array((1, 2)))
    np.testing.assert_array_equal(tile, image[2:3, 3:6])


@pytest.mark.parametrize(("count", "most"), [(1, 64), (7, 1), (7, 7), (7, 3), (64, 64), (65, 64), (108, 17)])
def test_groups_hold_each_number_once_in_order_and_are_of_one_size(count, most):
    groups = list(in_groups(count, most))
    assert len(groups) == -(-count // most)
    assert {len(rows) for rows in groups} == {-(-count // len(groups))}
    np.testing.assert_array_equal(np.concatenate(groups)[:count], np.arange(count))
    assert (np.concatenate(groups) < count).all()


def test_a_group_is_as_large_as_its_feature_maps_allow(monkeypatch):
    """Of a dense layer of 6 units and 4 logits an image has 40 bytes."""
    rows = models.layers(models.build(ModelConfig("mlp", dense=(6,)), (5, 5, 1), 4), (5, 5, 1))
    assert group_size(rows) == evolution.GROUP
    for most, images in ((40 * 64, 64), (40 * 64 - 1, 63), (79, 1), (39, 1)):
        monkeypatch.setattr(evolution, "MOST_BYTES", most)
        assert group_size(rows) == images


@pytest.mark.parametrize("group", [1, 3, 64])
def test_tiles_hold_the_projection_of_that_activation_and_its_patch(split, group):
    """A layer that is the scaled image: the projection of a unit is `scale * activation` at that pixel alone."""
    look = make_look(two_layers, preprocess)
    variables = {0: 2.0, 3: 5.0}
    strongest = {
        epoch: strongest_activations(look, v, batches(split, 4))["conv1"].at_rank(0) for epoch, v in variables.items()
    }
    fields = (ReceptiveField(1, 1, 0.0),) * 2
    projector = make_projector(two_layers, "conv1", preprocess)
    tiles = tile_evolution(projector, variables, strongest, [0, 2], split.images, fields, group=group)
    assert tiles.projections.shape == (2, 2, 1, 1, 3)
    for row, channel in enumerate((0, 2)):
        for column, (epoch, scale) in enumerate(variables.items()):
            found = strongest[epoch]
            pixel = split.images[found.image[channel], *found.unit[channel]]
            np.testing.assert_array_equal(tiles.patches[row, column, 0, 0], pixel)
            np.testing.assert_array_equal(tiles.unit[row, column], found.unit[channel])
            assert (tiles.place[row, column] == 0).all()
            expected = np.zeros(3)
            expected[channel] = scale * scale * pixel[channel] / 16
            np.testing.assert_allclose(tiles.projections[row, column, 0, 0], expected, rtol=1e-6)
            assert tiles.value[row, column] == pytest.approx(scale * pixel[channel] / 16)


def bounded(variables, images):
    """A ReLU6 that nothing reaches the bound of, another one behind it, and a sum of both."""
    low = jax.nn.relu6(images / 4 - 1)
    high = jax.nn.relu6(variables * low)
    return {"low": low, "high": high, "sum": low + high}


def test_what_reaches_a_bound_is_told_apart_and_projected(split):
    """Of 8 · (pixel / 64 - 1), bounded at 6, the largest is that of the largest pixel; on the way back it is
    multiplied by 8 / 4 again."""
    rows = models.layers_of(Network(), 8.0, (4, 5, 3))
    assert [row.relu for row in rows[:2]] == [0, 1]
    maps = unbounded(bounded, rows)
    images = preprocess(split.images)
    found, network_s_own = maps(8.0, images), bounded(8.0, images)
    for name in ("low", "sum"):
        np.testing.assert_array_equal(found[name], network_s_own[name])
    np.testing.assert_array_equal(found["high"], 8 * network_s_own["low"])
    assert network_s_own["high"].max() == 6

    strongest = strongest_activations(make_look(maps, preprocess), 8.0, batches(split, 4))["high"].at_rank(0)
    largest = split.images.max(axis=(0, 1, 2))
    np.testing.assert_allclose(strongest.value, 8 * (largest / 64 - 1))
    fields = (ReceptiveField(1, 1, 0.0),) * 2
    projector = make_projector(maps, "high", preprocess)
    tiles = tile_evolution(projector, {1: 8.0}, {1: strongest}, [0, 1, 2], split.images, fields)
    np.testing.assert_array_equal(np.einsum("mehwm->m", tiles.patches), largest)
    np.testing.assert_allclose(np.einsum("mehwm->m", tiles.projections), 2 * strongest.value)


class Network:
    def apply(self, variables, images):
        maps = bounded(variables, images)
        return maps["sum"].mean((1, 2)), maps


def test_without_a_bound_the_maps_are_the_networks_own(split):
    look = unbounded(two_layers, [])
    for name, of_layer in look(2.0, split.images).items():
        np.testing.assert_array_equal(of_layer, two_layers(2.0, split.images)[name])
