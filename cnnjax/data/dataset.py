"""What every source of images ends in: two splits of uint8 images with integer labels, checked once.

Images are uint8 `[n, height, width, channels]`, grey levels 0..255; labels are int32 `[n]`, indices into `class_names`.
Where a set is larger than memory its images are `ImagesByIndex` in place of an array: they lie on disk, and
`split.images[rows]` or `split.__getitems__(rows)` reads those asked for. Labels and class names are always in memory.
"""

import abc
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from cnnjax.errors import InputError

_HASH_BLOCK = 1 << 24  # bytes; blocks are hashed in threads, and a memory-mapped array never stands in memory whole
_MEAN_BLOCK = 1024  # images


class ImagesByIndex(abc.ABC):
    """The images of a split that lie on disk: an array's shape and type, and rows of it as they are asked for.

    `images[row]`, `images[start:stop]` and `images[rows]`, with integers in any order and from the end where below 0,
    are arrays as those of an array in memory. Nothing makes one array of it all: `np.asarray` and `jnp.asarray` raise
    an InputError that says so in one line.

    Attributes:
        name: of the images, for errors.
        shape: (n, height, width, channels).
        sha256: hexadecimal text that is the same if and only if all pixels are.
        num_draws: of uniform numbers that a training draws for each image, to cut it at random; 0: none is cut so.
        why: they are read by index, in words; empty: it is not told.
    """

    name: str
    shape: tuple[int, int, int, int]
    sha256: str
    num_draws: int = 0
    why: str = ""
    dtype = np.dtype(np.uint8)
    ndim = 4

    @abc.abstractmethod
    def read(
        self, rows: Int[np.ndarray, " k"], draws: Float[np.ndarray, "k num_draws"] | None = None
    ) -> UInt8[np.ndarray, "k height width channels"]:
        """The images of these rows, each in [0, n), in their order; may be called from several threads at a time.

        Args:
            draws: uniform in [0, 1): each image is cut where they say; None: as in evaluation.

        Raises:
            InputError: what lies on disk is damaged.
        """

    @abc.abstractmethod
    def mean(self) -> Float32[np.ndarray, "height width channels"]:
        """The mean image, as `mean_image` gives it; computed once for all openings."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        if isinstance(index, slice):
            return self.read(np.arange(*index.indices(len(self))))
        rows = np.asarray(index)
        if rows.dtype == np.bool_:
            rows = np.arange(len(self))[rows]
        elif rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.dtype.kind not in "iu":
            raise IndexError(f"{self.name}: images are read by integers, got {rows.dtype}")
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self.name}: there are {len(self)} images, and row {rows.max()} or {rows.min()} is none")
        return self.read(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        count, *sides = self.shape
        size = f"{count:,} images of {'×'.join(map(str, sides))}, {self.nbytes:,} bytes"
        raise InputError(f"{self.name} ({size}) lie on disk and are read by index; this needs a set that fits memory")


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False: arrays have no single truth value
class Split:
    """Images and their labels; the arrays may be memory-mapped and read-only. A random-access source for Grain."""

    images: UInt8[np.ndarray, "n height width channels"] | ImagesByIndex
    labels: Int32[np.ndarray, " n"]

    @property
    def in_memory(self) -> bool:
        """Whether `images` is an array, which may be memory-mapped; else it is `ImagesByIndex`."""
        return isinstance(self.images, np.ndarray)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(
        self, rows: Sequence[int] | Int[np.ndarray, " k"]
    ) -> tuple[UInt8[np.ndarray, "k height width channels"], Int32[np.ndarray, " k"]]:
        """Images and labels of these rows, in their order; from memory or from disk."""
        rows = np.asarray(rows, np.int64)
        return self.images[rows], self.labels[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with the same classes and the same image shape. Build it with `checked_dataset`."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None  # images that would else be of the training; `validation.with_validation`

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.image_shape

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def checked_dataset(
    name: str,
    class_names: Sequence[str],
    *,
    train: tuple[np.ndarray | ImagesByIndex, np.ndarray],
    test: tuple[np.ndarray | ImagesByIndex, np.ndarray],
) -> Dataset:
    """The data set of these arrays, each split an (images, labels) pair.

    Args:
        name: stands in error messages, run folders and figures.
        class_names: the name of each label, at least two.
        train: uint8 images [n, height, width, 1 or 3], in memory or by index, and integer labels [n]; labels become
            int32.
        test: as `train`.

    Raises:
        InputError: for the first rule that is broken, with the index of the first bad label.
    """
    if len(class_names) < 2:
        raise InputError(f"{name}: the number of classes must be at least 2, got {len(class_names)}")
    for label in class_names:
        # They go to terminals, into figures and file names: nothing there may act on them.
        if not label.isprintable() or not 1 <= len(label) <= 255:
            raise InputError(f"{name}: class names must be 1 to 255 printable characters, got {ascii(label)[:300]}")
    splits = {
        split: Split(_checked_images(name, split, images), _checked_labels(name, split, labels, images, class_names))
        for split, (images, labels) in (("train", train), ("test", test))
    }
    shapes = {split: part.images.shape[1:] for split, part in splits.items()}
    if shapes["train"] != shapes["test"]:
        raise InputError(
            f"{name}: training and test images must have one shape, got {shapes['train']} and {shapes['test']}"
        )
    return Dataset(name, tuple(class_names), splits["train"], splits["test"])


def _checked_images(name: str, split: str, images: np.ndarray | ImagesByIndex) -> np.ndarray | ImagesByIndex:
    if images.dtype != np.uint8:
        raise InputError(f"{name}: {split} images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(
            f"{name}: {split} images must have shape [n, height, width, 1 or 3 channels], got {list(images.shape)}"
        )
    if 0 in images.shape:
        raise InputError(
            f"{name}: the {split} split must hold at least 1 image of at least 1 pixel, got {images.shape}"
        )
    return images


def _checked_labels(
    name: str, split: str, labels: np.ndarray, images: np.ndarray | ImagesByIndex, class_names: Sequence[str]
) -> np.ndarray:
    if labels.dtype.kind not in "iu":  # durations count as integers in NumPy's own hierarchy
        raise InputError(f"{name}: {split} labels must be integers, got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{name}: {split} labels must be one for each of the {len(images)} images, got shape {list(labels.shape)}"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if bad.size:
        raise InputError(
            f"{name}: {split} labels must be in [0, {len(class_names)}), got {labels[bad[0]]} at index {bad[0]}"
        )
    return labels.astype(np.int32, copy=False)


def fingerprint(dataset: Dataset) -> str:
    """SHA-256, as hexadecimal text, over class names, shapes, pixels and labels: equal if and only if the data are.

    The name of the set is left out, so the same arrays from another place have the same fingerprint. Of images by index
    their own `sha256` counts, and none is read.
    """
    splits = [dataset.train, dataset.test, *([] if dataset.validation is None else [dataset.validation])]
    arrays = [array for split in splits for array in (split.images, split.labels)]
    whole = hashlib.sha256(repr(dataset.class_names).encode())
    for array in arrays:
        whole.update(f"{array.dtype.str}{array.shape}".encode())
        whole.update(array_sha256(array).encode())
    return whole.hexdigest()


def array_sha256(array: np.ndarray | ImagesByIndex) -> str:
    """SHA-256 over the SHA-256 of each block of 16 MiB, so that all cores share the work (hashlib releases the GIL).

    Of images by index it is their own.
    """
    if isinstance(array, ImagesByIndex):
        return array.sha256
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    blocks = [flat[start : start + _HASH_BLOCK] for start in range(0, flat.size, _HASH_BLOCK)]
    whole = hashlib.sha256()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for digest in pool.map(lambda block: hashlib.sha256(block).digest(), blocks):
            whole.update(digest)
    return whole.hexdigest()


def mean_image(train: Split) -> Float32[np.ndarray, "height width channels"]:
    """The mean over the training images of each pixel and channel, in grey levels, exact before it is rounded.

    Works through blocks of images, so that its memory does not grow with the number of images; of images by index it is
    what is kept of them.

    Source: Zeiler & Fergus 2014, section 3 ("subtracting the per-pixel mean across all images").
    """
    if isinstance(train.images, ImagesByIndex):
        return train.images.mean()
    total = np.zeros(train.images.shape[1:], np.uint64)
    for start in range(0, len(train), _MEAN_BLOCK):
        total += train.images[start : start + _MEAN_BLOCK].sum(axis=0, dtype=np.uint32)  # 1024 * 255 < 2^32
    return (total / len(train)).astype(np.float32)
