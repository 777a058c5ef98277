import dataclasses

import numpy as np
from sklearn.datasets import load_digits

from cnnjax.config import DataConfig
from cnnjax.data import load

CONFIG = DataConfig(name="digits")


def test_digits_are_all_there_once_and_scaled_to_the_full_range():
    dataset = load(CONFIG)
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert images.shape == (1797, 8, 8, 1)
    published = np.rint(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, 64)
    assert sorted(map(bytes, images.reshape(1797, 64))) == sorted(map(bytes, published))
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}
    assert dataset.class_names == tuple("0123456789")


def test_digits_are_stratified_by_the_fraction_and_the_seed():
    dataset = load(dataclasses.replace(CONFIG, test_fraction=0.5))
    difference = np.bincount(dataset.train.labels) - np.bincount(dataset.test.labels)
    assert np.abs(difference).max() <= 1
    other = load(dataclasses.replace(CONFIG, test_fraction=0.5, split_seed=1))
    assert not np.array_equal(other.test.labels, dataset.test.labels)
