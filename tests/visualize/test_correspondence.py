"""Table 1's numbers by hand, by loops, and by trying every designation."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.visualize import correspondence
from cnnjax.visualize.correspondence import (
    LEVEL,
    change_signs,
    cover,
    delta,
    hamming,
    make_look,
    pairs,
    permutation_test,
    random_boxes,
)

# Two changes of six features: equal, opposite, none of both, none of the second, none of the first, equal
BY_HAND = np.array([[1, 1, 0, -1, 0, -1], [1, -1, 0, 0, 1, -1]], np.int8)


@pytest.mark.parametrize(
    ("zeros", "expected"),
    [
        ("symbol", (1 + 2) / 6),  # the opposite one, and the two where one has not changed
        ("half", (1 + 2 / 2) / 6),
        ("negative", (1 + 1) / 6),  # -1 against 0 agrees now
        ("drop", (1 + 2) / 5),  # the one that is 0 in both is left out
    ],
)
def test_hamming_distance_by_hand(zeros, expected):
    np.testing.assert_allclose(hamming(BY_HAND, zeros), [[0, expected], [expected, 0]])


def compare(a, b, zeros):
    """One pair of signs in a plain loop: the share in which they differ."""
    different, counted = 0.0, 0
    for s, t in zip(a, b, strict=True):
        if zeros == "drop" and s == t == 0:
            continue
        counted += 1
        if zeros == "negative":
            s, t = s or -1, t or -1
        different += abs(int(s) - int(t)) / 2 if zeros == "half" else s != t
    return different / counted if counted else 0.0


@pytest.mark.parametrize("zeros", ["symbol", "half", "negative", "drop"])
def test_hamming_distance_against_a_loop(zeros, monkeypatch):
    monkeypatch.setattr(correspondence, "_FEATURES", 13)  # so that 40 features are four parts
    signs = np.random.default_rng(0).integers(-1, 2, (7, 40)).astype(np.int8)
    signs[5:] = 0
    np.testing.assert_allclose(hamming(signs, zeros), [[compare(a, b, zeros) for b in signs] for a in signs])


def test_only_signs_count_and_rounding_has_none():
    features = jnp.array([[1.0, -2.0], [0.5, 4.0]])
    covered = jnp.stack([features + jnp.array([[1e-7, -3], [2, 0]]), features])
    signs = np.asarray(change_signs(features, covered))
    np.testing.assert_array_equal(signs, [[0, 1, -1, 0], [0] * 4])
    np.testing.assert_array_equal(change_signs(1000 * features, 1000 * covered), signs)
    np.testing.assert_array_equal(change_signs(-features, -covered), -signs)
    for zeros in ("symbol", "half", "drop"):
        np.testing.assert_array_equal(hamming(-signs, zeros), hamming(signs, zeros))


def test_delta_by_hand():
    distances = np.array([[0, 0.1, 0.3, 9], [0.1, 0, 0.2, 9], [0.3, 0.2, 0, 9], [9, 9, 9, 0]])
    groups = np.array([0, 0, 0, 1])
    found = delta(distances, groups)
    assert found.mean == pytest.approx(0.2)
    assert found.over_pairs == pytest.approx(0.1)
    assert found.over_images == pytest.approx(np.std([0.2, 0.15, 0.25], ddof=1))
    assert delta(distances, groups, same=False).mean == 9
    assert np.isnan(delta(distances[:2, :2], groups[:2]).over_pairs)
    assert sorted(zip(*pairs(groups), strict=True)) == [(0, 1), (0, 2), (1, 2)]


def random_distances(images, boxes):
    signs = np.random.default_rng(5).integers(-1, 2, (images * boxes, 12)).astype(np.int8)
    return hamming(signs).reshape(images, boxes, images, boxes)


@pytest.mark.parametrize("groups", [(0, 0, 0), (0, 0, 1, 1)])
def test_the_permutation_test_against_every_designation(groups):
    images, boxes = len(groups), 3
    distances = random_distances(images, boxes)

    def mean(chosen):
        within = [(i, j) for i, j in itertools.combinations(range(images), 2) if groups[i] == groups[j]]
        return sum(distances[i, chosen[i], j, chosen[j]] for i, j in within) / len(within)

    means = [mean(chosen) for chosen in itertools.product(range(boxes), repeat=images)]
    expected = sum(value <= means[0] + 1e-9 for value in means) / len(means)
    assert 0 < expected < 1
    generator = np.random.default_rng(0)
    assert permutation_test(distances, np.array(groups), boxes**images, generator).p == expected
    sampled = permutation_test(distances, np.array(groups), boxes**images - 1, generator).p
    assert sampled == pytest.approx(expected, abs=4 * np.sqrt(0.25 / boxes**images))


def test_p_is_smallest_where_only_the_parts_agree():
    distances = np.ones((4, 5, 4, 5))
    distances[:, 0, :, 0] = 0
    groups = np.zeros(4, int)
    assert permutation_test(distances, groups, 5**4, np.random.default_rng(0)).p == 1 / 5**4
    assert permutation_test(np.ones((4, 5, 4, 5)), groups, 99, np.random.default_rng(0)).p == 1
    far = np.ones((12, 5, 12, 5))
    far[:, 0, :, 0] = 0
    assert permutation_test(far, np.zeros(12, int), 999, np.random.default_rng(0)).p == 1 / 1000


def test_p_is_uniform_where_the_part_is_a_box_like_the_others():
    values = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        points = generator.normal(size=(4, 4))
        distances = np.abs(points[:, :, None, None] - points[None, None])
        values.append(permutation_test(distances, np.zeros(4, int), 4**4, generator).p)
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 300))


def test_a_part_lies_below_its_band_exactly_where_p_says_so():
    below = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        points = generator.normal(size=(4, 4))
        points[:, 0] *= 0.5  # so that about half are below
        distances = np.abs(points[:, :, None, None] - points[None, None])
        for same in (True, False):
            groups = np.array([0, 0, 1, 1])
            found = permutation_test(distances, groups, 4**4, generator, same=same)
            part = delta(distances[:, 0, :, 0], groups, same=same).mean
            below.append(part < found.low - 1e-9)
            assert below[-1] == (found.p <= LEVEL) and found.low <= found.middle <= found.high
    assert 0.1 < np.mean(below) < 0.9


def test_the_band_leaves_as_much_out_at_either_end():
    """Of two images with boxes at places 0 to 9 the mean distance is the distance of two places."""
    places = np.tile(np.arange(10.0), (2, 1))
    distances = np.abs(places[:, :, None, None] - places)
    found = permutation_test(distances, np.zeros(2, int), 100, np.random.default_rng(0))
    means = np.sort([abs(a - b) for a in range(10) for b in range(10)])
    assert found[1:] == (means[5], np.median(means), means[-6])


def test_random_boxes_have_the_size_of_the_part_and_lie_within():
    boxes, within = np.array([[0, 0, 2, 3], [1, 1, 4, 4]]), np.array([[1, 2, 4, 5], [0, 0, 4, 4]])
    found = random_boxes(np.random.default_rng(0), boxes, within, 500)
    assert found.shape == (2, 500, 4)
    assert (found[:, :, 2:] == boxes[:, None, 2:]).all()
    assert {tuple(corner) for corner in found[0, :, :2]} == set(itertools.product((1, 2, 3), (2, 3, 4)))
    assert (found[1, :, :2] == 0).all()


def test_a_box_is_covered_and_nothing_else():
    image, background = np.ones((5, 6, 3), np.float32), np.full((5, 6, 3), 9, np.float32)
    expected = image.copy()
    expected[1:3, 2:5] = 9
    found = cover(image, np.array([[1, 2, 2, 3], [0, 0, 5, 6]]), background)
    np.testing.assert_array_equal(found, [expected, background])


@pytest.mark.parametrize("group", [1, 3, 64])  # one box at a time, two, all
def test_the_look_of_a_network_that_adds_up_halves(group):
    """The features are the sums of the left and of the right half; a brighter or a darker box moves one of them."""
    image = np.full((4, 4, 1), 10, np.float32)
    background = np.full((4, 4, 1), 4, np.float32)
    background[:2] = 30

    def outputs(weight, images):
        halves = images.reshape(len(images), 4, 2, 2).sum(axis=(1, 3))
        return [weight * halves, images]

    look = make_look(outputs, background, group=group)
    boxes = np.array([[0, 0, 2, 2], [2, 3, 1, 1], [1, 0, 2, 1]])
    sums, pixels = look(jnp.float32(2), image, boxes)
    np.testing.assert_array_equal(sums, [[-1, 0], [0, 1], [-1, 0]])  # last: 30 and 4 for 10 and 10
    assert pixels.shape == (3, 16) and (np.abs(pixels).sum(axis=1) == [4, 1, 2]).all()
