"""Transformed images against closed forms and SciPy; responses of networks that can be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.transform

from cnnjax.visualize.invariance import (
    TRANSFORMATIONS,
    claims,
    make_respond,
    rotation,
    scaling,
    straightness,
    translation,
    warp,
)

IDENTITIES = {"translation": 0.0, "scale": 1.0, "rotation": 0.0}
warped = jax.jit(warp, static_argnames="interpolation")


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("background", [None, 77.0])
@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 10, 1)])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_identity_gives_back_the_same_bits(name, shape, background, interpolation):
    image = picture(*shape)
    level = background if background is None else np.full(shape, background, np.float32)
    affine = TRANSFORMATIONS[name].affine(IDENTITIES[name])
    np.testing.assert_array_equal(warped(image, affine, level, interpolation=interpolation), image)
    assert TRANSFORMATIONS[name].amount(np.float32(IDENTITIES[name])) == 0


@pytest.mark.parametrize("pixels", [-9, -3, 1, 4])
def test_whole_pixels_are_a_shift(pixels):
    image, background = picture(8, 6), picture(8, 6, seed=1)
    moved = background.copy()
    into, out_of = slice(max(pixels, 0), 8 + min(pixels, 0)), slice(max(-pixels, 0), 8 - max(pixels, 0))
    if abs(pixels) < 8:
        moved[into] = image[out_of]
    np.testing.assert_allclose(warped(image, translation(pixels), background), moved, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 6, 3), (7, 7, 1)])
@pytest.mark.parametrize("turns", [-1, 1, 2, 3])
def test_quarter_turns_are_those_of_numpy(turns, shape):
    image = picture(*shape)
    turned = warped(image, rotation(90.0 * turns), np.zeros(shape, np.float32))
    np.testing.assert_allclose(turned, np.rot90(image, turns), atol=1e-3)


@pytest.mark.parametrize("ratio", [3.0, 5.0])
def test_enlarging_repeats_the_middle_between_its_neighbours(ratio):
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32)[:, None, None], (9, 9, 1))
    found = warped(ramp, scaling(ratio), None)
    np.testing.assert_allclose(found, 4 + (ramp - 4) / ratio, atol=1e-5)


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize(
    "affine", [translation(1.25), scaling(1.37), scaling(0.6), rotation(23.0), rotation(200.0)], ids=repr
)
def test_bilinear_is_that_of_scipy(affine, edge):
    image = picture(9, 12)
    matrix, centre = np.asarray(affine.matrix, float), np.array([4.0, 5.5])
    offset = centre + np.asarray(affine.offset) - matrix @ centre
    mode = {"mode": "nearest"} if edge else {"mode": "grid-constant", "cval": 40.0}
    theirs = [scipy.ndimage.affine_transform(image[..., c], matrix, offset, order=1, **mode) for c in range(3)]
    ours = warped(image, affine, None if edge else np.full(image.shape, 40, np.float32))
    np.testing.assert_allclose(ours, np.stack(theirs, axis=-1), atol=2e-3)


def test_rotation_is_that_of_scikit_image():
    image = picture(11, 11)
    theirs = skimage.transform.rotate(image, 30, order=1, mode="edge", preserve_range=True)
    np.testing.assert_allclose(warped(image, rotation(30.0), None), theirs, atol=2e-3)


def test_a_pixel_covered_in_part_is_mixed_with_the_background():
    image, background = np.full((4, 4, 1), 100, np.float32), np.full((4, 4, 1), 20, np.float32)
    found = warped(image, translation(1.25), background)
    np.testing.assert_allclose(found[:, 0, 0], [20, 0.75 * 100 + 0.25 * 20, 100, 100], atol=1e-4)


def sums(variables, images):
    """Low: the pixels; high: their sum; the logits favour class 1 as the top left pixel grows."""
    flat = images.reshape(len(images), -1)
    return images, flat.sum(axis=1, keepdims=True), variables * jnp.stack([jnp.zeros(len(flat)), flat[:, 0]], axis=1)


@pytest.mark.parametrize("group", [1, 4, 64])  # one version at a time, groups of 2 and 1, all at once
def test_responses_by_hand(group):
    image = np.zeros((4, 4, 1), np.float32)
    image[0, 0] = 3
    values = {"translation": np.array([-1.0, 0, 1], np.float32), "rotation": np.array([0.0, 90], np.float32)}
    respond = make_respond(sums, np.zeros_like(image), group=group)
    found = jax.device_get(respond(jnp.float32(1), image, np.ones_like(image), 1, values))
    moved, turned = found["translation"], found["rotation"]
    sigmoid = 1 / (1 + np.exp(-3))
    np.testing.assert_allclose(moved.distance, [[3, 0, np.sqrt(18)], [3, 0, 0]], atol=1e-4)
    np.testing.assert_allclose(moved.probability, [0.5, sigmoid, 0.5], atol=1e-5)
    np.testing.assert_allclose(turned.distance, [[0, np.sqrt(18)], [0, 0]], atol=1e-4)
    for response in (moved, turned):
        np.testing.assert_allclose(response.norm, [3, 3])
        np.testing.assert_allclose(response.unrelated, [np.sqrt(15 + 4), 13], rtol=1e-6)
        np.testing.assert_allclose(response.untouched, sigmoid, rtol=1e-6)


def test_claims_by_hand():
    amount = np.array([2.0, 1, 0, 1, 2])
    distance = np.array([[[4.0, 2, 0, 2, 4], [9, 1, 0, 3, 9]]] * 2)
    unrelated = np.array([[8.0, 10], [8, 30]])
    probability = np.array([[0, 0.5, 1, 0.5, 0], [0.5] * 5])
    found = claims(distance, unrelated, probability, np.array([1, 0.5]), amount)
    np.testing.assert_allclose(found.small, [2 / 8, 2 / 20])
    assert found.straight[0] == pytest.approx(1)
    fit = np.polynomial.Polynomial.fit(amount, distance[0, 1], 1)
    residual = distance[0, 1] - fit(amount)
    assert found.straight[1] == pytest.approx(1 - residual.var() / distance[0, 1].var())
    assert found.kept == pytest.approx((2 + 2.5) / 5 / 1.5)


def test_what_does_not_vary_has_no_line_and_no_smallest_change():
    assert np.isnan(straightness(np.array([0.0, 1]), np.array([1.0, 1])))
    found = claims(np.zeros((1, 2, 2)), np.ones((1, 2)), np.ones((1, 2)), np.ones(1), np.zeros(2))
    assert np.isnan(found.small).all() and np.isnan(found.straight).all()


def test_a_turn_of_350_degrees_is_as_large_as_one_of_10():
    np.testing.assert_array_equal(TRANSFORMATIONS["rotation"].amount(np.array([0, 10, 180, 350])), [0, 10, 180, 10])
