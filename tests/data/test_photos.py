import dataclasses

import numpy as np
import pytest

from cnnjax.config import DataConfig, PhotosConfig
from cnnjax.data import fingerprint, load, photos

SMALL = DataConfig(photos=PhotosConfig(patch_size=16, train_patches=203, test_patches=57, shorter_side=144, tile=48))


@pytest.mark.parametrize("config", [DataConfig(), SMALL, dataclasses.replace(SMALL, split_seed=5)])
def test_training_and_test_share_no_pixel(config):
    sizes = [picture.shape[:2] for picture in photos.photographs(config)]
    boxes = photos.patch_boxes(config)
    seen = []
    for part in boxes:
        masks = [np.zeros(size, bool) for size in sizes]
        side = config.photos.patch_size
        for index, top, left in part:
            assert top >= 0 and left >= 0
            assert top + side <= sizes[index][0] and left + side <= sizes[index][1]
            masks[index][top : top + side, left : left + side] = True
        seen.append(masks)
    for train, test in zip(*seen, strict=True):
        assert train.any() and test.any()
        assert not (train & test).any()


def test_patches_are_the_pixels_of_their_boxes_and_the_label_is_the_photograph():
    dataset, pictures, boxes = load(SMALL), photos.photographs(SMALL), photos.patch_boxes(SMALL)
    for split, part in ((dataset.train, boxes.train), (dataset.test, boxes.test)):
        np.testing.assert_array_equal(split.labels, part[:, 0])
        for image, (index, top, left) in zip(split.images, part, strict=True):
            np.testing.assert_array_equal(image, pictures[index][top : top + 16, left : left + 16])


def test_classes_are_balanced_to_within_one_patch():
    dataset = load(SMALL)
    for split, count in ((dataset.train, 203), (dataset.test, 57)):
        counts = np.bincount(split.labels, minlength=10)
        assert counts.sum() == count and counts.max() - counts.min() <= 1


def test_photos_are_a_pure_function_of_the_config():
    assert fingerprint(load(SMALL)) == fingerprint(load(SMALL))
    assert fingerprint(load(SMALL)) != fingerprint(load(dataclasses.replace(SMALL, split_seed=1)))


def test_the_default_set_has_ten_colour_classes_and_4000_and_1000_patches():
    dataset = load(DataConfig())
    assert dataset.train.images.shape == (4000, 32, 32, 3) and dataset.test.images.shape == (1000, 32, 32, 3)
    assert len(set(dataset.class_names)) == 10
    for label in range(10):  # every class is in colour, the nearly black sky of hubble too
        assert np.ptp(dataset.train.images[dataset.train.labels == label], axis=-1).mean() > 3


def test_a_wide_tile_still_leaves_a_test_tile_in_every_photograph():
    config = DataConfig(photos=PhotosConfig(train_patches=20, test_patches=20, shorter_side=96, tile=32))
    assert set(photos.patch_boxes(config).test[:, 0]) == set(range(10))


def test_photos_can_be_grey_and_of_another_size():
    dataset = load(dataclasses.replace(SMALL, channels=1, image_size=8))
    assert dataset.image_shape == (8, 8, 1)
