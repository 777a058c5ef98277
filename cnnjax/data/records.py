"""Images that stand in records on disk, one each: read by index, decoded, cut, and averaged once.

What the records are is said by their source: `packed`, or `prepared` of TensorFlow Datasets. A set of either is read by
index where it is large or its images are cut at random; else it is decoded once.
"""

import math
import warnings
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from cnnjax.config import DataConfig
from cnnjax.data.dataset import ImagesByIndex
from cnnjax.data.decoding import Encoded, decode
from cnnjax.data.images import Crop, Fitting
from cnnjax.data.kept import kept
from cnnjax.data.reading import in_threads
from cnnjax.errors import InputError

IN_MEMORY = 2 << 30  # bytes of decoded images; a larger set is read by index
NUM_DRAWS = 4  # as `images.random_box` takes them
_ENCODED_BYTES = 1 << 24  # of records that a thread has at a time, about: files may be far larger than their images
_SUMMED, _SUMMED_BYTES = 256, 1 << 26  # images that are summed at a time, at most


def why_by_index(config: DataConfig, images_bytes: int) -> str | None:
    """Why a set of so many bytes, once decoded, is read by index; None: it is not.

    The rule asks nothing of the machine: whether images are read by index is part of what a run was trained on.
    """
    if config.train_crop != "centre":
        return f"data.train_crop {config.train_crop} cuts each training image anew"
    if images_bytes > IN_MEMORY:
        return f"more than {IN_MEMORY / 1e6:,.0f} MB are read by index"
    return None


@runtime_checkable
class Records(Protocol):
    """The records of one split, by row."""

    source: str  # the argument that they come from, for errors
    count: int
    record_bytes: int  # of one, on average

    def read(self, rows: Int[np.ndarray, " k"]) -> list[bytes]:
        """What stands for the image of each of these rows, in their order; may be called from several threads.

        Raises:
            InputError: naming the file that is damaged, or whose records are not those of these rows.
        """
        ...

    def name(self, row: int) -> str:
        """Of the image, for errors."""
        ...


class ImagesInRecords(ImagesByIndex):
    """The images of one split, encoded in its records."""

    def __init__(
        self,
        name: str,
        records: Records,
        shape: tuple[int, int, int],
        fitting: Fitting,
        config: DataConfig,
        sha256: str,
        *,
        training: bool,
    ):
        """`shape`: [height, width, channels] of every image, fitted. `training`: they are cut as the config says."""
        self.name, self.sha256 = name, sha256
        self.shape = (records.count, *shape)
        self._records, self._fitting = records, fitting
        self._crop: Crop = config.train_crop if training else "centre"
        self.num_draws = NUM_DRAWS if self._crop != "centre" else 0
        self._data_dir = config.data_dir
        from PIL import Image

        Image.init()  # which formats this Pillow knows
        # About odd metadata; for good, because filters are global and images are read in threads at any time.
        warnings.filterwarnings("ignore", module="PIL")

    def read(
        self, rows: Int[np.ndarray, " k"], draws: Float[np.ndarray, "k num_draws"] | None = None
    ) -> UInt8[np.ndarray, "k height width channels"]:
        return in_threads(self._read, rows, draws, self.shape[1:])

    def _read(
        self, rows: Int[np.ndarray, " k"], draws: Float[np.ndarray, "k num_draws"] | None
    ) -> UInt8[np.ndarray, "k height width channels"]:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        length = max(1, _ENCODED_BYTES // max(1, self._records.record_bytes))
        for start in range(0, len(rows), length):
            block = rows[start : start + length]
            for place, (row, content) in enumerate(zip(block.tolist(), self._records.read(block), strict=True), start):
                images[place] = self._checked(row, self._pixels(row, content, None if draws is None else draws[place]))
        return images

    def _checked(self, row: int, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape != self.shape[1:]:
            name = self._records.name(row)
            raise InputError(f"{self._records.source}: {name} must have shape {self.shape[1:]}, got {pixels.shape}")
        return pixels

    def _pixels(self, row: int, content: bytes, draws: Float[np.ndarray, "4"] | None) -> np.ndarray:
        """The image that stands in the record of this row."""
        encoded = Encoded(self._records.name(row), lambda: content)
        return decode(encoded, self._fitting, self._records.source, self._crop, draws).pixels

    def mean(self) -> Float32[np.ndarray, "height width channels"]:
        content = kept(
            self._data_dir, f"mean-{self.sha256}.bin", "the mean image", lambda: mean_of(self).astype("<f4").tobytes()
        )
        return np.frombuffer(content, "<f4").reshape(self.shape[1:]).astype(np.float32)


def mean_of(images: ImagesByIndex) -> Float32[np.ndarray, "height width channels"]:
    """The mean image, exact before it is rounded; reads every image."""
    total = np.zeros(images.shape[1:], np.uint64)
    length = max(1, min(_SUMMED, _SUMMED_BYTES // math.prod(images.shape[1:])))
    for start in range(0, len(images), length):
        total += images[start : start + length].sum(axis=0, dtype=np.uint32)  # 256 * 255 < 2^32
    return (total / len(images)).astype(np.float32)
