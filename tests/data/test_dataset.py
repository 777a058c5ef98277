import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import ImagesByIndex, batches, checked_dataset, fingerprint, mean_image
from cnnjax.data.dataset import Split, array_sha256
from cnnjax.errors import InputError

IMAGES = np.zeros((4, 3, 3, 1), np.uint8)
LABELS = np.array([0, 1, 0, 1])


def build(*, class_names=("a", "b"), images=IMAGES, labels=LABELS, test_images=IMAGES):
    return checked_dataset("set", class_names, train=(images, labels), test=(test_images, LABELS))


def test_checked_dataset_keeps_pixels_and_makes_labels_int32():
    dataset = build()
    assert dataset.train.labels.dtype == np.int32
    assert dataset.train.images is IMAGES
    assert (dataset.image_shape, dataset.num_classes, len(dataset.test)) == ((3, 3, 1), 2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a",)}, "set: the number of classes must be at least 2, got 1"),
        ({"labels": np.array([0, 1, 2, -1])}, r"set: train labels must be in \[0, 2\), got 2 at index 2"),
        ({"labels": np.array([0, -1, 2, 0])}, r"got -1 at index 1"),
        ({"labels": LABELS.astype(float)}, "train labels must be integers, got float64"),
        ({"labels": LABELS[:3]}, r"train labels must be one for each of the 4 images, got shape \[3\]"),
        ({"images": IMAGES.astype(np.float32)}, "train images must be uint8, got float32"),
        ({"images": IMAGES[..., 0]}, r"must have shape \[n, height, width, 1 or 3 channels\], got \[4, 3, 3\]"),
        ({"images": np.zeros((4, 3, 3, 2), np.uint8)}, r"1 or 3 channels\], got \[4, 3, 3, 2\]"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "the train split must hold at least 1 image"),
        ({"test_images": np.zeros((4, 3, 2, 1), np.uint8)}, r"one shape, got \(3, 3, 1\) and \(3, 2, 1\)"),
    ],
)
def test_checked_dataset_refuses(change, message):
    with pytest.raises(InputError, match=message) as error:
        build(**change)
    assert "\n" not in str(error.value)


def test_fingerprint_changes_with_one_pixel_one_label_one_name_and_nothing_else(small_dataset):
    before = fingerprint(small_dataset)
    assert fingerprint(dataclasses.replace(small_dataset, name="other")) == before
    assert fingerprint(dataclasses.replace(small_dataset, class_names=("a", "b", "d"))) != before
    for field in ("images", "labels"):
        array = getattr(small_dataset.test, field).copy()
        array.flat[-1] ^= 1
        changed = dataclasses.replace(small_dataset, test=dataclasses.replace(small_dataset.test, **{field: array}))
        assert fingerprint(changed) != before


def test_array_sha256_does_not_depend_on_the_memory_layout():
    array = np.random.RandomState(0).randint(0, 256, (3000, 5000), np.uint8)  # two blocks
    assert array_sha256(np.asfortranarray(array)) == array_sha256(array)
    array[-1, -1] ^= 1
    assert array_sha256(array) != array_sha256(np.asfortranarray(array) ^ 1)


def test_mean_image_is_the_exact_mean_over_more_images_than_a_block():
    images = np.random.RandomState(0).randint(0, 256, (2500, 2, 3, 1), np.uint8)
    mean = mean_image(Split(images, np.zeros(2500, np.int32)))
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, images.astype(np.float64).mean(axis=0).astype(np.float32))


class OnDisk(ImagesByIndex):
    """Stands for a file: counts what is read of it."""

    def __init__(self, array: np.ndarray):
        self.array, self.name, self.shape, self.sha256 = array, "the photographs", array.shape, array_sha256(array)
        self.reads: list[int] = []

    def read(self, rows, draws=None):
        self.reads += rows.tolist()
        return self.array[rows]

    def mean(self):
        return np.full(self.shape[1:], 7, np.float32)


@pytest.fixture
def on_disk():
    array = np.random.RandomState(2).randint(0, 256, (10, 3, 4, 3), np.uint8)
    return array, OnDisk(array)


@pytest.mark.parametrize(
    "index",
    [0, -1, slice(2, 5), slice(None, None, -3), slice(7, 99), [9, 0, 0], np.array([[1, 2], [-10, 4]]), [], np.int32(3),
     np.arange(10) % 2 == 0],
    ids=str,
)  # fmt: skip
def test_images_by_index_are_indexed_as_an_array_and_no_other_is_read(on_disk, index):
    array, images = on_disk
    chosen = np.array(index, int) if isinstance(index, list) else index  # NumPy takes [] for numbers with a point
    np.testing.assert_array_equal(images[index], array[chosen])
    assert images.reads == np.ravel(np.arange(10)[chosen]).tolist()


@pytest.mark.parametrize("index", [10, -11, [0, 10], 1.0, ["a"]], ids=str)
def test_a_row_that_is_none_is_refused_and_not_read(on_disk, index):
    with pytest.raises(IndexError, match="the photographs: "):
        on_disk[1][index]
    assert on_disk[1].reads == []


@pytest.mark.parametrize("whole", [np.asarray, jnp.asarray], ids=lambda whole: whole.__name__)
def test_whoever_needs_all_images_at_once_is_refused_in_one_line(on_disk, whole):
    with pytest.raises(InputError, match="the photographs .10 images of 3×4×3, 360 bytes. lie on disk") as error:
        whole(on_disk[1])
    assert "\n" not in str(error.value)


def test_a_split_gives_the_same_by_index_as_from_memory(on_disk):
    array, images = on_disk
    labels = np.arange(10) % 3
    large, small = (
        checked_dataset("set", "abc", train=(part, labels), test=(part, labels)) for part in (images, array)
    )
    assert not large.train.in_memory and small.train.in_memory and large.image_shape == (3, 4, 3)
    for ours, theirs in zip(large.train.__getitems__([8, 1]), small.train.__getitems__([8, 1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(batches(large.test, 4), batches(small.test, 4), strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)


def test_mean_and_fingerprint_of_images_by_index_are_what_is_kept_of_them(on_disk):
    images = on_disk[1]
    dataset = checked_dataset("set", "ab", train=(images, np.arange(10) % 2), test=(images, np.arange(10) % 2))
    assert np.all(mean_image(dataset.train) == 7)
    before = fingerprint(dataset)
    images.sha256 = "0" * 64
    assert fingerprint(dataset) != before and images.reads == []
