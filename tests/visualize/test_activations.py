"""Figure 2 in numbers: the nine strongest by a plain sort, the same whatever the batches and the devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.data import Split, batches
from cnnjax.geometry import ReceptiveField
from cnnjax.visualize.activations import tile_activations
from cnnjax.visualize.deconvnet import project
from cnnjax.visualize.evolution import make_look, make_projector, strongest_activations

SHAPE = (16, 16, 3)


def preprocess(images):
    return jnp.asarray(images).astype(jnp.float32) / 255 - 0.5


def made():
    """A small network's feature maps, as a function, and its variables."""
    network = models.build(ModelConfig("lenet", widths=(4, 6), dense=(20,), rounding="floor"), SHAPE, 4)

    def feature_maps(variables, images):
        return {**(found := network.apply(variables, images))[1], "logits": found[0]}

    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1]), leaf.dtype),
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *SHAPE))),
    )
    return feature_maps, variables


def noise():
    """Noise; many images that share a blank corner, which excites some map alike in all of them; four that are one."""
    images = np.random.default_rng(0).integers(0, 256, (150, *SHAPE), dtype=np.uint8)
    images[30:140, :12, :12] = 0
    images[50:120, :, 4:] = 255
    images[[20, 77, 149]] = images[3]
    return Split(images, np.zeros(150, np.int32))


@pytest.fixture(scope="module")
def split():
    return noise()


@pytest.fixture(scope="module")
def network():
    return made()


@pytest.fixture(scope="module")
def found(network, split):
    """By batch size, with one compiled search."""
    feature_maps, variables = network
    look = make_look(feature_maps, preprocess, 9)
    return {size: strongest_activations(look, variables, batches(split, size)) for size in (1, 64)}


def by_a_sort(activations, count):
    """Of each map the images of the largest maxima, the first on ties, and the first place of the maximum."""
    flat = activations.reshape(len(activations), -1, activations.shape[-1])
    order = np.argsort(-flat.max(axis=1), axis=0, kind="stable")[:count]
    maps = np.arange(flat.shape[-1])
    places = np.argmax(flat[order, :, maps], axis=-1)
    return flat.max(axis=1)[order, maps], order, np.stack(np.unravel_index(places, activations.shape[1:-1]), axis=-1)


def test_the_nine_strongest_are_those_of_a_plain_sort(split):
    """Sums and scaled pixels of whole numbers are exact, so ties are exact too."""

    def feature_maps(variables, images):
        return {"conv1": images - 20, "fc2": images.sum(axis=(1, 2))}

    look = make_look(feature_maps, lambda images: images.astype(jnp.float32) // 4, 9)
    found = strongest_activations(look, None, batches(split, 16))
    pixels = split.images.astype(np.float32) // 4
    value, image, unit = by_a_sort(pixels - 20, 9)
    for mine, wanted in zip(found["conv1"], (value, image, unit), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    sums = pixels.sum(axis=(1, 2))
    np.testing.assert_array_equal(found["fc2"].image, np.argsort(-sums, axis=0, kind="stable")[:9])
    assert found["fc2"].unit.shape == (9, 3, 0)


def test_the_batch_size_changes_no_bit(found):
    assert set(found[1]) == {"conv1", "pool1", "conv2", "pool2", "fc3", "logits"}
    for layer, wanted in found[1].items():
        for mine, part in zip(found[64][layer], wanted, strict=True):
            np.testing.assert_array_equal(mine, part)
        assert all(len(set(images)) == 9 for images in wanted.image.T)  # one place an image


def test_values_places_and_ties_are_those_of_the_activations(network, split, found):
    """Images that are equal are found in their order, wherever they stand in a batch."""
    feature_maps, variables = network
    maps = ops.jit(feature_maps)(variables, preprocess(split.images))
    for layer, mine in found[64].items():
        flat = np.asarray(maps[layer]).reshape(150, -1, maps[layer].shape[-1])
        wanted = np.sort(flat.max(axis=1), axis=0)[:-10:-1]
        np.testing.assert_allclose(mine.value, wanted, rtol=1e-5, atol=1e-6)
        which = np.indices(mine.image.shape)[1]
        at = np.asarray(maps[layer])[mine.image, *np.moveaxis(mine.unit, -1, 0), which]
        np.testing.assert_allclose(mine.value, at, rtol=1e-5, atol=1e-6)
        for column in mine.image.T:
            twins = [image for image in column if image in (3, 20, 77, 149)]
            assert twins == [3, 20, 77, 149][: len(twins)]


def test_fewer_images_than_ranks_leave_minus_infinity(split):
    look = make_look(lambda variables, images: {"conv1": images}, preprocess, 5)
    mine = strongest_activations(look, None, batches(Split(split.images[:3], split.labels[:3]), 2))["conv1"]
    assert np.isfinite(mine.value[:3]).all() and (mine.value[3:] == -np.inf).all()
    assert (np.sort(mine.image[:3], axis=0) == np.arange(3)[:, None]).all()


@pytest.mark.long
def test_eight_devices_find_the_same_to_the_bit(found, tmp_path):
    code = f"""
import jax, numpy as np
from tests.visualize.test_activations import batches, made, make_look, noise, preprocess, strongest_activations
assert jax.device_count() == 8
feature_maps, variables = made()
look = make_look(feature_maps, preprocess, 9)
mine = strongest_activations(look, variables, batches(noise(), 50))
parts = {{f"{{layer}} {{i}}": part for layer, found in mine.items() for i, part in enumerate(found)}}
np.savez({str(tmp_path / "found.npz")!r}, **parts)
"""
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as arrays:
        for layer, wanted in found[1].items():
            for index, part in enumerate(wanted):
                np.testing.assert_array_equal(arrays[f"{layer} {index}"], part)


def test_each_tile_is_the_projection_of_its_activation_beside_its_patch(split):
    """A layer that is the image, doubled: its projection is four times the pixel, in that channel alone."""

    def feature_maps(variables, images):
        return {"conv1": variables * images}

    def scaled(images):
        return jnp.asarray(images).astype(jnp.float32) / 16

    found = strongest_activations(make_look(feature_maps, scaled, 4), 2.0, batches(split, 64))["conv1"]
    fields = (ReceptiveField(1, 1, 0.0),) * 2
    projector = make_projector(feature_maps, "conv1", scaled)
    seen = tile_activations(projector, 2.0, found, [2, 0], split.images, fields)
    assert seen.projections.shape == seen.patches.shape == (2, 4, 1, 1, 3)
    for row, channel in enumerate((2, 0)):
        for rank in range(4):
            assert (seen.image[row, rank], *seen.unit[row, rank]) == (
                found.image[rank, channel],
                *found.unit[rank, channel],
            )
            pixel = split.images[seen.image[row, rank], *seen.unit[row, rank]]
            np.testing.assert_array_equal(seen.patches[row, rank, 0, 0], pixel)
            wanted = np.where(np.arange(3) == channel, pixel / 4, 0)
            np.testing.assert_allclose(seen.projections[row, rank, 0, 0], wanted, rtol=1e-6)
            assert seen.value[row, rank] == pytest.approx(pixel[channel] / 8)


def test_a_dense_unit_sees_the_whole_image(network, split, found):
    """All 20 units of the layer are 180 projections, in three groups of 60; each the same as alone."""
    feature_maps, variables = network
    mine = found[64]["fc3"]
    projector = make_projector(feature_maps, "fc3", preprocess)
    seen = tile_activations(projector, variables, mine, range(20), split.images, None)
    assert seen.projections.shape == (20, 9, *SHAPE) and seen.unit.shape == (20, 9, 0)
    np.testing.assert_array_equal(seen.patches[19, 8], split.images[mine.image[8, 19]])
    chosen = preprocess(split.images[mine.image[:, 19]])
    units = np.full((9, 1), 19)
    alone = jax.jit(lambda x: project(lambda x: feature_maps(variables, x)["fc3"], x, units))(chosen)
    np.testing.assert_allclose(seen.projections[19], alone, rtol=1e-4, atol=1e-5)
