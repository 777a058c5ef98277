"""Small images and sets that several tests of the data room use."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import Dataset, checked_dataset


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, np.uint8)


@pytest.fixture
def small_dataset() -> Dataset:
    """30 training and 10 test images of 4x5 pixels in 3 classes."""
    return checked_dataset(
        "small",
        ("a", "b", "c"),
        train=(random_images(0, 30, 4, 5, 3), np.arange(30) % 3),
        test=(random_images(1, 10, 4, 5, 3), np.arange(10) % 3),
    )


@pytest.fixture
def image_folder(tmp_path):
    """`make({"cat/1.png": array, …}) -> root`: writes images under a new folder, as the suffix says."""

    def make(images: dict[str, np.ndarray], name: str = "images", **save):
        root = tmp_path / name
        for path, pixels in images.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path, **save)
        return root

    return make
