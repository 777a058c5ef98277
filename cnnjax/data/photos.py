"""The embedded data set: 32x32 patches of ten photographs that scikit-image and scikit-learn ship in their wheels.

The class of a patch is the photograph it is cut from. Each photograph is cut into tiles; a tile belongs to the training
or to the test, and so does every patch inside it: no pixel is in both. Nothing is downloaded.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from cnnjax.config import DataConfig
from cnnjax.data.dataset import Dataset, checked_dataset
from cnnjax.data.images import Fitting, fit_arrays
from cnnjax.data.shipped import shipped_file
from cnnjax.data.splits import random_state

# (class name, package, file inside it). The files are opened directly: `skimage.data.retina()` and its kin would try
# the network if a later wheel left a file out.
PHOTOGRAPHS = (
    ("astronaut", "skimage", "data/astronaut.png"),
    ("cat", "skimage", "data/chelsea.png"),
    ("coffee", "skimage", "data/coffee.png"),
    ("hubble", "skimage", "data/hubble_deep_field.jpg"),
    ("tissue", "skimage", "data/ihc.png"),
    ("motorcycle", "skimage", "data/motorcycle_left.png"),
    ("retina", "skimage", "data/retina.jpg"),
    ("rocket", "skimage", "data/rocket.jpg"),
    ("china", "sklearn", "datasets/images/china.jpg"),
    ("flower", "sklearn", "datasets/images/flower.jpg"),
)
CLASS_NAMES = tuple(name for name, _, _ in PHOTOGRAPHS)
_TEST_SHARE = 5  # every fifth tile


class Boxes(NamedTuple):
    """Where patches are cut: row i is (photograph, top, left), in pixels of the scaled photograph."""

    train: Int[np.ndarray, "train_patches 3"]
    test: Int[np.ndarray, "test_patches 3"]


def load(config: DataConfig) -> Dataset:
    """The patches at `patch_boxes(config)`; the class of patch i is i modulo the number of photographs.

    Raises:
        InputError: if an installed package lacks a photograph.
    """
    pictures = photographs(config)
    boxes = _boxes(config, [picture.shape[:2] for picture in pictures])
    train, test = (fit_arrays(_cut(pictures, part, config.photos.patch_size), Fitting.of(config)) for part in boxes)
    return checked_dataset("photos", CLASS_NAMES, train=(train, boxes.train[:, 0]), test=(test, boxes.test[:, 0]))


def photographs(config: DataConfig) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The ten photographs in RGB, in the order of the classes, scaled to `config.photos.shorter_side`."""
    from PIL import Image

    pictures = []
    for _, package, file in PHOTOGRAPHS:
        with Image.open(shipped_file("photos", package, file)) as image:
            scale = config.photos.shorter_side / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            pictures.append(np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)))
    return pictures


def patch_boxes(config: DataConfig) -> Boxes:
    """Where the patches are cut: a pure function of `config.photos` and `config.split_seed`."""
    return _boxes(config, [picture.shape[:2] for picture in photographs(config)])


def _boxes(config: DataConfig, sizes: list[tuple[int, int]]) -> Boxes:
    settings = config.photos
    tiles = [_tile_corners(size, settings.tile, config.split_seed, index) for index, size in enumerate(sizes)]
    parts = []
    for part, count in enumerate((settings.train_patches, settings.test_patches)):
        boxes = np.zeros((count, 3), np.int64)
        for index in range(len(sizes)):
            rows = slice(index, count, len(sizes))  # classes take turns: equal numbers, to within one
            corners = tiles[index][part]
            random = random_state(config.split_seed, index, 1 + part)
            places = np.arange(count)[rows].size
            corner = corners[random.randint(len(corners), size=places)]
            offset = random.randint(settings.tile - settings.patch_size + 1, size=(places, 2))
            boxes[rows] = np.column_stack([np.full(places, index), corner + offset])
        parts.append(boxes)
    return Boxes(*parts)


def _tile_corners(size: tuple[int, int], tile: int, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(top, left) of the training and of the test tiles of one photograph; a remainder below a tile is unused."""
    rows, columns = size[0] // tile, size[1] // tile
    corners = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2) * tile
    order = random_state(seed, index, 0).permutation(len(corners))
    test = max(len(corners) // _TEST_SHARE, 1)
    return corners[order[test:]], corners[order[:test]]


def _cut(pictures: list[np.ndarray], boxes: np.ndarray, side: int) -> UInt8[np.ndarray, "n side side 3"]:
    patches = np.empty((len(boxes), side, side, 3), np.uint8)
    for patch, (index, top, left) in zip(patches, boxes, strict=True):
        patch[:] = pictures[index][top : top + side, left : left + side]
    return patches
