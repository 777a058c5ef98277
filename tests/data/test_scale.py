"""What is subtracted from the pixels, and what they are divided by."""

import numpy as np
import pytest

from cnnjax.config import DataConfig
from cnnjax.data import checked_dataset, mean_image, scale_of
from cnnjax.errors import InputError
from cnnjax.train.step import make_preprocess


def dataset(channels=3):
    images = np.random.RandomState(0).randint(0, 256, (6, 4, 5, channels), np.uint8)
    labels = np.arange(6) % 2
    return checked_dataset("noise", ("a", "b"), train=(images, labels), test=(images[:2], labels[:2]))


def test_by_default_it_is_the_mean_image_and_the_unit():
    data = dataset()
    scale = scale_of(DataConfig(unit=50.0), data)
    np.testing.assert_array_equal(scale.mean, mean_image(data.train))
    assert scale.deviation == 50.0


def test_numbers_of_each_channel_are_those_of_torchvisions_normalize():
    """((x / 255) - mean) / deviation, as it is published for [0, 1], in grey levels."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    data = dataset()
    config = DataConfig(mean=tuple(255 * mean), deviation=tuple(255 * deviation))
    found = make_preprocess(*scale_of(config, data))(data.train.images)
    np.testing.assert_allclose(found, (data.train.images / 255 - mean) / deviation, atol=1e-6)


def test_one_number_is_that_of_all_channels_and_each_field_stands_alone():
    data = dataset()
    images = data.train.images
    found = make_preprocess(*scale_of(DataConfig(mean=(10.0,), unit=2.0), data))(images)
    np.testing.assert_allclose(found, (images - 10.0) / 2)
    found = make_preprocess(*scale_of(DataConfig(deviation=(1.0, 2.0, 4.0)), data))(images)
    np.testing.assert_allclose(found, (images - mean_image(data.train)) / [1, 2, 4], rtol=1e-6)


@pytest.mark.parametrize("name", ["mean", "deviation"])
def test_as_many_numbers_as_channels_are_needed(name):
    with pytest.raises(InputError, match=f"data.{name} must have one number for each of the 1 channels of noise, got"):
        scale_of(DataConfig(**{name: (1.0, 2.0, 3.0)}), dataset(1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", (1.0, 2.0)),
        ("mean", ()),
        ("mean", (float("nan"),)),
        ("deviation", (0.0,)),
        ("deviation", (1.0, -1.0, 1.0)),
        ("deviation", (float("inf"),)),
    ],
)
def test_what_is_no_scale_is_refused(field, value):
    with pytest.raises(InputError, match=f"data.{field} must be 1 or 3 finite numbers"):
        DataConfig(**{field: value})


@pytest.mark.parametrize("changes", [{"shorter_side": 9}, {"shorter_side": 9, "image_size": 10}])
def test_a_shorter_side_needs_a_size_that_can_be_cut_from_it(changes):
    with pytest.raises(InputError, match="data.shorter_side must be given with data.image_size, and not be less, got"):
        DataConfig(**changes)
