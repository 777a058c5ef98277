import dataclasses
import io
import zipfile

import numpy as np
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import credit_of, load, objects

CONFIG = DataConfig(name="objects")


def test_objects_are_all_there_once_by_class():
    dataset = load(CONFIG)
    assert dataset.image_shape == (64, 64, 3)
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert np.bincount(labels).tolist() == [64] * 10
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert len({image.tobytes() for image in images}) == 640  # none is in both splits, or twice
    assert np.bincount(dataset.test.labels).tolist() == [13] * 10


def test_an_object_is_the_centre_of_its_photograph():
    dataset = load(dataclasses.replace(CONFIG, image_size=72, test_fraction=0.5))
    images = np.concatenate([dataset.train.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    with zipfile.ZipFile(objects.ARCHIVE) as archive:
        picture = np.asarray(Image.open(io.BytesIO(archive.read("car_side/image_0001.jpg"))).convert("RGB"))
    left = (picture.shape[1] - 72) // 2
    found = [
        label for image, label in zip(images, labels, strict=True) if (image == picture[:, left : left + 72]).all()
    ]
    assert [dataset.class_names[label] for label in found] == ["car"]


def test_objects_are_small_and_name_their_origin():
    assert objects.ARCHIVE.stat().st_size < 2_500_000
    text = (objects.ARCHIVE.parents[2] / "LICENSES.md").read_text()
    assert "CC BY 4.0" in text and all(name in text for name in objects.CLASS_NAMES)
    assert "CC BY 4.0" in credit_of(CONFIG)
    assert credit_of(DataConfig(name="digits")) == credit_of(DataConfig(name="objects", folder="mine")) == ""
