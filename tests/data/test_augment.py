import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.config import Hyperparams
from cnnjax.data import augment

STILL = Hyperparams(flip=0.0, shift=0.0, contrast=0.0, saturation=0.0, brightness=0.0, tint=0.0)
STRONG = Hyperparams(flip=0.5, shift=3.0, contrast=0.4, saturation=0.7, brightness=0.3, tint=0.6)
KEY = jax.random.key(0)
apply = jax.jit(augment)  # one compilation a shape, whatever the strengths


def images_of(shape=(64, 6, 7, 3)):
    return jax.random.normal(jax.random.key(1), shape, jnp.float32)


def with_only(**strengths) -> Hyperparams:
    return dataclasses.replace(STILL, **strengths)


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_0_changes_no_bit(channels):
    images = images_of((16, 5, 4, channels))
    np.testing.assert_array_equal(
        np.asarray(apply(KEY, images, STILL)).view(np.uint32), np.asarray(images).view(np.uint32)
    )


@pytest.mark.parametrize(("probability", "low", "high"), [(1.0, 64, 64), (0.5, 16, 48)])
def test_flip_is_left_right_and_of_each_image_on_its_own(probability, low, high):
    images = images_of()
    out = apply(KEY, images, with_only(flip=probability))
    flipped = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (out == images).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert low <= flipped.sum() <= high


@pytest.mark.parametrize("shift", [1.0, 2.9, 20.0])
def test_shift_is_by_whole_pixels_within_the_bound_and_repeats_the_border(shift):
    images = images_of()
    out = np.asarray(apply(KEY, images, with_only(shift=shift)))
    bound = int(shift)
    moves = set()
    for image, moved in zip(np.asarray(images), out, strict=True):
        padded = np.pad(image, ((bound, bound), (bound, bound), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)[:, :, 0]
        found = np.argwhere((windows == moved).all(axis=(2, 3, 4)))
        assert len(found) >= 1
        moves |= {tuple(move) for move in found - bound}
    if shift == 1.0:
        assert moves == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


def test_contrast_multiplies_a_whole_image_by_a_factor_in_its_range():
    images = images_of()
    factor = np.asarray(apply(KEY, images, with_only(contrast=0.4)) / images)
    np.testing.assert_allclose(np.ptp(factor, axis=(1, 2, 3)), 0, atol=1e-5)
    factor = factor[:, 0, 0, 0]
    assert 0.6 <= factor.min() < 0.7 and 1.3 < factor.max() <= 1.4


def test_saturation_keeps_the_grey_and_scales_the_distance_from_it():
    images = images_of()
    out = apply(KEY, images, with_only(saturation=0.7))
    np.testing.assert_allclose(out.mean(-1), images.mean(-1), atol=1e-5)
    grey = images.mean(-1, keepdims=True)
    factor = np.asarray(((out - grey) * (images - grey)).sum((1, 2, 3)) / ((images - grey) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(out, grey + factor[:, None, None, None] * (images - grey), atol=1e-5)
    assert 0.3 <= factor.min() < 0.5 and 1.5 < factor.max() <= 1.7


def test_saturation_does_nothing_to_one_channel():
    images = images_of((64, 6, 7, 1))
    np.testing.assert_array_equal(apply(KEY, images, with_only(saturation=1.0)), images)


def test_brightness_is_one_offset_and_tint_one_a_channel():
    images = jnp.zeros((64, 6, 7, 3))
    bright, tinted = (np.asarray(apply(KEY, images, with_only(**{name: 0.5}))) for name in ("brightness", "tint"))
    assert np.ptp(bright, axis=(1, 2, 3)).max() == 0
    assert np.ptp(tinted, axis=(1, 2)).max() == 0
    assert (np.ptp(tinted[:, 0, 0], axis=-1) > 0).all()
    for offsets in (bright[:, 0, 0, 0], tinted[:, 0, 0]):
        assert -0.5 <= offsets.min() < -0.4 and 0.4 < offsets.max() <= 0.5


def test_an_image_depends_on_the_key_and_its_position_only():
    images = images_of()
    whole = apply(KEY, images, STRONG)
    np.testing.assert_array_equal(apply(KEY, images[:16], STRONG), whole[:16])
    np.testing.assert_array_equal(apply(KEY, images.at[1:].set(0), STRONG)[0], whole[0])
    assert not np.array_equal(apply(jax.random.key(2), images, STRONG), whole)


def test_augment_runs_over_hyperparams_and_keys_by_vmap():
    images = images_of()
    keys = jax.random.split(KEY, 3)
    hypers = [STILL, STRONG, with_only(shift=2.0)]
    stacked = jax.tree.map(lambda *strengths: jnp.stack(strengths), *hypers)
    many = jax.jit(jax.vmap(augment, in_axes=(0, None, 0)))(keys, images, stacked)
    for index, hyper in enumerate(hypers):
        np.testing.assert_allclose(many[index], apply(keys[index], images, hyper), atol=1e-6)
