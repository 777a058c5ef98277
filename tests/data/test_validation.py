"""Images for validation: none is in the training too, wherever they lie; the fraction is part of what the data are."""

import dataclasses

import numpy as np
import pytest

from cnnjax.config import DataConfig
from cnnjax.data import checked_dataset, fingerprint, load, mean_image, records
from cnnjax.data.images import Fitting
from cnnjax.data.validation import with_validation
from cnnjax.errors import InputError
from tests.data.packed_sets import write_packed

CONFIG = DataConfig(validation_fraction=0.25, split_seed=7)


def dataset():
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 1), np.uint8)
    return checked_dataset("noise", ("a", "b"), train=(images, np.arange(40) % 2), test=(images[:4], np.arange(4) % 2))


def rows_of(images, among):
    """Where these images stand."""
    return [next(row for row, other in enumerate(among) if np.array_equal(image, other)) for image in images]


def test_each_training_image_is_of_the_training_or_of_the_validation():
    whole = dataset()
    parted = with_validation(whole, CONFIG)
    rest, chosen = (rows_of(split.images, whole.train.images) for split in (parted.train, parted.validation))
    assert sorted(rest + chosen) == list(range(40)) and len(chosen) == 10
    for split, rows in ((parted.train, rest), (parted.validation, chosen)):
        np.testing.assert_array_equal(split.labels, whole.train.labels[rows])
    np.testing.assert_array_equal(parted.test.images, whole.test.images)


def test_the_mean_image_is_of_the_training_images_alone():
    whole = dataset()
    parted = with_validation(whole, CONFIG)
    rest = rows_of(parted.train.images, whole.train.images)
    np.testing.assert_allclose(mean_image(parted.train), whole.train.images[rest].mean(axis=0), rtol=1e-6)


def test_the_fingerprint_says_which_images_are_for_validation():
    whole = dataset()
    found = {
        fingerprint(with_validation(whole, dataclasses.replace(CONFIG, **change)))
        for change in ({}, {"validation_fraction": 0.2}, {"split_seed": 8})
    }
    assert len(found | {fingerprint(whole)}) == 4
    assert fingerprint(with_validation(whole, CONFIG)) == fingerprint(with_validation(whole, CONFIG))


def test_without_a_fraction_there_is_none():
    plain = load(DataConfig(name="digits"))
    assert plain.validation is None
    parted = load(DataConfig(name="digits", validation_fraction=0.1))
    assert len(parted.validation) == round(0.1 * len(plain.train))
    assert len(parted.validation) + len(parted.train) == len(plain.train) and len(parted.test) == len(plain.test)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(InputError, match="data.validation_fraction must be at least 0 and below 1, got"):
        DataConfig(validation_fraction=fraction)


def test_images_by_index_are_parted_where_they_lie(tmp_path, monkeypatch):
    """As those in memory are, pixels, labels and mean; none is read to part them, and training crops stay."""
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    counts = {"train": [14, 6], "test": [2, 2]}
    write_packed(
        tmp_path / "set",
        counts,
        lambda split, index: images[index + 20 * (split == "test")].tobytes(),
        images="pixels",
        fitting=Fitting(8, 3, False),
        shape=(8, 8, 3),
    )
    config = DataConfig(packed=str(tmp_path / "set"), data_dir=str(tmp_path / "kept"), validation_fraction=0.3)
    in_memory = load(config)
    monkeypatch.setattr(records, "IN_MEMORY", 0)
    by_index = load(config)
    assert not by_index.train.in_memory and not by_index.validation.in_memory
    for split in ("train", "validation"):
        ours, theirs = getattr(by_index, split), getattr(in_memory, split)
        np.testing.assert_array_equal(ours.images[:], theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(mean_image(by_index.train), mean_image(in_memory.train))
    others = load(dataclasses.replace(config, split_seed=1))
    assert fingerprint(others) != fingerprint(by_index) == fingerprint(load(config))

    cut = load(dataclasses.replace(config, train_crop="random", image_size=5, shorter_side=8))
    assert cut.train.images.num_draws == 4 and cut.validation.images.num_draws == 0
    (corner,) = cut.train.images.read(np.array([3]), np.zeros((1, 4)))
    np.testing.assert_array_equal(corner, in_memory.train.images[3, :5, :5])
