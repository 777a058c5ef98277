import dataclasses

import numpy as np
import pytest

from cnnjax.data import checked_dataset, fingerprint, mean_image
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
