"""A grey square over an image: which pixels it covers, and what a network that is known in full says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import InputError
from cnnjax.visualize.occlusion import bootstrap_interval, corners_along, falls, make_respond, occlude, occlusion

HEIGHT, WIDTH = 8, 10


def preprocess(images):
    return jnp.asarray(images).astype(jnp.float32) / 100


def feature_maps(variables, images):
    """Two maps, the image's first channel and thrice its second one; the classes are bright and dark at the middle."""
    middle = images[:, 3:5, 4:6].mean(axis=(1, 2, 3))
    return {"conv1": images[..., :2] * jnp.array([1.0, 3.0]), "fc2": jnp.stack([middle, 1 - middle], axis=1)}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (70, HEIGHT, WIDTH, 3), dtype=np.uint8)


def covered_by_hand(image, top, left, side, grey):
    image = image.copy()
    image[top : top + side, left : left + side] = grey
    return image


@pytest.mark.parametrize("side", [0, 1, 3])
def test_the_square_covers_its_pixels_and_no_others(images, side):
    corners = np.array([[0, 0], [2, 5], [5, 7], [7, 9]])
    mine = occlude(jnp.asarray(images[:4]), jnp.asarray(corners), side, 77)
    assert mine.dtype == np.uint8
    for image, (top, left), result in zip(images, corners, mine, strict=False):
        np.testing.assert_array_equal(result, covered_by_hand(image, top, left, side, 77))


@pytest.mark.parametrize(("size", "side", "step"), [(32, 8, 2), (28, 7, 1), (10, 3, 4), (224, 56, 14), (8, 7, 5)])
def test_the_positions_reach_both_borders_and_are_at_most_a_step_apart(size, side, step):
    corners = corners_along(size, side, step)
    assert corners[0] == 0 and corners[-1] == size - side
    assert np.diff(corners).min() >= 1 and np.diff(corners).max() <= step
    assert len(corners) == np.ceil((size - side) / step) + 1


@pytest.mark.parametrize(("side", "step", "said"), [
    (0, 1, "side must be from 1 to 9 pixels for an image of 10, got 0"),
    (10, 1, "side must be from 1 to 9 pixels for an image of 10, got 10"),
    (3, 0, "step must be at least 1 pixel, got 0"),
])  # fmt: skip
def test_squares_that_do_not_suit_are_refused(side, step, said):
    with pytest.raises(InputError, match=said):
        corners_along(10, side, step)


@pytest.mark.parametrize("activity", ["sum", "max"])
@pytest.mark.parametrize("group", [20, 64])
def test_every_position_by_a_plain_loop(images, activity, group):
    """9 × 7 positions are not a whole number of groups: the padding must not show."""
    respond = make_respond(feature_maps, "conv1", "fc2", preprocess, activity)
    seen = occlusion(respond, None, images[0], side=2, step=1, grey=50, group=group)
    assert seen.covered.activity.shape == (7, 9, 2) and seen.covered.probabilities.shape == (7, 9, 2)
    for row, top in enumerate(seen.tops):
        for column, left in enumerate(seen.lefts):
            image = covered_by_hand(images[0], top, left, 2, 50) / 100.0
            active = getattr(np, activity)(image[..., :2] * [1, 3], axis=(0, 1))
            np.testing.assert_allclose(seen.covered.activity[row, column], active, rtol=1e-5)
            middle = image[3:5, 4:6].mean()
            wanted = 1 / (1 + np.exp([1 - 2 * middle, 2 * middle - 1]))
            np.testing.assert_allclose(seen.covered.probabilities[row, column], wanted, rtol=1e-5)
    bare = images[0] / 100.0
    np.testing.assert_allclose(
        seen.whole.activity, getattr(np, activity)(bare[..., :2] * [1, 3], axis=(0, 1)), rtol=1e-5
    )


def test_a_dense_layer_has_one_position(images):
    respond = make_respond(feature_maps, "fc2", "fc2", preprocess)
    seen = occlusion(respond, None, images[0], side=3, step=2, grey=0)
    middle = images[0, 3:5, 4:6].mean() / 100
    np.testing.assert_allclose(seen.whole.activity, [middle, 1 - middle], rtol=1e-5)


def test_a_network_that_looks_at_the_middle_falls_there_and_not_in_the_corners(images):
    """p(bright) is sigmoid(2 · middle - 1); a black square on the middle makes it sigmoid(-1)."""
    respond = make_respond(feature_maps, "conv1", "fc2", preprocess)
    labels = np.zeros(70, np.int32)
    centre, corners, whole = falls(respond, None, images, labels, side=4, grey=0)
    middle = images[:, 3:5, 4:6].mean(axis=(1, 2, 3)) / 100
    np.testing.assert_allclose(whole[:, 0], 1 / (1 + np.exp(1 - 2 * middle)), rtol=1e-5)
    np.testing.assert_allclose(centre, whole[:, 0] - 1 / (1 + np.exp(1)), atol=1e-6)
    assert corners.shape == (70, 4)
    np.testing.assert_array_equal(corners, 0)
    other = falls(respond, None, images, labels + 1, side=4, grey=0)[0]
    np.testing.assert_allclose(other, -centre, atol=1e-6)


def test_the_interval_is_that_of_the_normal_distribution_for_many_values():
    """The mean of 400 values of deviation 2 has a deviation of 0.1: 95 % are within 1.96 of them."""
    values = np.random.default_rng(1).normal(3, 2, 400).astype(np.float32)
    low, high = bootstrap_interval(jax.random.key(0), values)
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.1 * error)
    assert (low, high) == bootstrap_interval(jax.random.key(0), values)
    assert bootstrap_interval(jax.random.key(0), np.ones(10, np.float32)) == (1, 1)
    narrow = bootstrap_interval(jax.random.key(0), values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high
