"""Views by their pixels, errors by counting, confusions by loops."""

import numpy as np
import pytest

from cnnjax.visualize import classification as c


def test_the_ten_views_are_corners_centre_and_their_mirror_images():
    image = np.arange(6 * 7, dtype=np.uint8).reshape(1, 6, 7, 1)  # pixel = 7 row + column
    views = c.ten_views(image, 4)
    assert views.shape == (1, 10, 4, 4, 1)
    assert views[0, :, 0, 0, 0].tolist()[:5] == [0, 3, 14, 17, 8]  # the centre begins at (1, 1)
    np.testing.assert_array_equal(views[0, 4, :, :, 0], image[0, 1:5, 1:5, 0])
    np.testing.assert_array_equal(views[:, 5:], views[:, :5, :, ::-1])
    np.testing.assert_array_equal(c.centre_view(image, 4), views[:, 4:5])


def test_the_views_of_a_mirrored_image_are_the_same_ten():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    one, other = (c.ten_views(of, 6) for of in (images, images[:, :, ::-1]))
    for image in range(2):
        assert {view.tobytes() for view in one[image]} == {view.tobytes() for view in other[image]}


def test_a_view_as_large_as_the_image_is_the_image():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 1), np.uint8)
    np.testing.assert_array_equal(c.ten_views(images, 5)[:, :5], np.repeat(images[:, None], 5, axis=1))


@pytest.mark.parametrize("side", [0, 6])
def test_views_that_do_not_fit_are_refused(side):
    with pytest.raises(ValueError, match=f"side must be from 1 to 5 for images of 5×7, got {side}"):
        c.ten_views(np.zeros((1, 5, 7, 1), np.uint8), side)


def test_probabilities_are_averaged_over_the_views_of_an_image():
    views = np.random.default_rng(0).integers(0, 256, (3, 5, 2, 2, 1), np.uint8)
    seen = []

    def logits(images):
        seen.append(images.shape)
        return images.reshape(len(images), 4)[:, :3].astype(np.float32) / 64

    found = c.mean_probabilities(logits, views, 4)
    assert set(seen) == {(4, 2, 2, 1)}  # 15 views, filled up to 16
    for image in range(3):
        each = [np.exp(view.reshape(4)[:3] / 64) for view in views[image]]
        np.testing.assert_allclose(found[image], np.mean([one / one.sum() for one in each], axis=0), rtol=1e-6)


def test_large_logits_do_not_overflow_and_small_probabilities_do_not_tie():
    values = np.array([[1000.0, 800.0, 700.0, 600.0]], np.float32)
    found = c.mean_probabilities(lambda images: values, np.zeros((1, 1, 1, 1, 1), np.uint8), 1)
    assert found[0, 0] == 1 and (np.diff(found[0]) < 0).all()


def test_an_image_is_wrong_at_k_if_k_others_are_as_probable():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [1 / 3] * 3])
    labels = np.array([0, 0, 1, 2])
    found = c.ranks(probabilities, labels)
    assert found.tolist() == [0, 2, 1, 2]
    assert [c.top_error(found, k) for k in (1, 2, 3)] == [0.75, 0.5, 0.0]
    assert c.answers(probabilities, labels).tolist() == [0, 1, 0, 0]


def test_top_errors_are_those_of_sorting_where_nothing_ties():
    generator = np.random.default_rng(1)
    probabilities, labels = generator.dirichlet(np.ones(12), 200), generator.integers(0, 12, 200)
    order = np.argsort(probabilities, axis=1)[:, ::-1]
    for k in (1, 5, 12):
        expected = np.mean([label not in row[:k] for label, row in zip(labels, order, strict=True)])
        assert c.top_error(c.ranks(probabilities, labels), k) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(c.most_probable(probabilities, 5), order[:, :5])
    np.testing.assert_array_equal(c.answers(probabilities, labels), order[:, 0])


def test_equally_probable_classes_are_named_in_their_order():
    assert c.most_probable(np.array([[0.25, 0.5, 0.25, 0.0]]), 3).tolist() == [[1, 0, 2]]


def test_confusions_are_those_that_loops_count():
    generator = np.random.default_rng(2)
    labels, said = generator.integers(0, 4, (2, 100)).astype(np.int32)
    counts = c.confusion(labels, said, 5)
    expected = [[sum((labels == true) & (said == answer)) for answer in range(5)] for true in range(5)]
    np.testing.assert_array_equal(counts, expected)
    pairs = c.most_confused(counts, 100)
    listed = {(true, said): images for true, said, images in zip(*map(np.ndarray.tolist, pairs), strict=True)}
    assert listed == {(i, j): n for i, row in enumerate(expected) for j, n in enumerate(row) if i != j and n}
    assert (np.diff(pairs.images) <= 0).all()
    assert len(c.most_confused(counts, 3).images) == 3
    assert not len(c.most_confused(np.diag([3, 4]), 9).images)


def test_the_diagonal_counts_what_the_error_calls_right():
    probabilities = np.repeat([[0.5, 0.5, 0.0]], 4, axis=0)
    labels = np.array([0, 1, 1, 2])
    counts = c.confusion(labels, c.answers(probabilities, labels), 3)
    assert np.trace(counts) == 4 * (1 - c.top_error(c.ranks(probabilities, labels), 1)) == 0
