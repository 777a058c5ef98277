"""Images for validation, taken out of the training images: what is chosen by them leaves the test images unseen."""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from cnnjax.config import DataConfig
from cnnjax.data.dataset import Dataset, ImagesByIndex, Split
from cnnjax.data.kept import kept
from cnnjax.data.memory import require_memory
from cnnjax.data.records import mean_of
from cnnjax.data.splits import validation_rows


def with_validation(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set with `config.validation_fraction` of its training images as `validation`, and the rest as `train`.

    They are drawn from `config.split_seed`, as `splits.validation_rows` says; images by index stay on disk.

    Raises:
        InputError: no class has two training images; the images that are left do not fit the memory.
    """
    train = dataset.train
    rest, chosen = validation_rows(
        train.labels, fraction=config.validation_fraction, seed=config.split_seed, name=dataset.name
    )
    if isinstance(train.images, np.ndarray):
        require_memory(train.images.nbytes, "data.validation_fraction: the images, parted,")
        parts = train.images[rest], train.images[chosen]
    else:
        parts = (
            ImagesOfRows(train.images, rest, config.data_dir, train.images.name, training=True),
            ImagesOfRows(train.images, chosen, config.data_dir, f"the validation images of {dataset.name}"),
        )
    splits = [Split(images, train.labels[rows]) for images, rows in zip(parts, (rest, chosen), strict=True)]
    return dataclasses.replace(dataset, train=splits[0], validation=splits[1])


class ImagesOfRows(ImagesByIndex):
    """Some of the images that lie on disk."""

    def __init__(
        self, images: ImagesByIndex, rows: Int[np.ndarray, " n"], data_dir: str, name: str, *, training: bool = False
    ):
        """`training`: they are cut at random where `images` can be."""
        self._images, self._rows, self._data_dir = images, rows.astype(np.int32), data_dir
        self.name, self.why = name, images.why
        self.shape = (len(rows), *images.shape[1:])
        self.sha256 = hashlib.sha256(images.sha256.encode() + self._rows.astype("<i4").tobytes()).hexdigest()
        self.num_draws = images.num_draws if training else 0

    def read(
        self, rows: Int[np.ndarray, " k"], draws: Float[np.ndarray, "k num_draws"] | None = None
    ) -> UInt8[np.ndarray, "k height width channels"]:
        return self._images.read(self._rows[rows], draws)

    def mean(self) -> Float32[np.ndarray, "height width channels"]:
        content = kept(
            self._data_dir, f"mean-{self.sha256}.bin", "the mean image", lambda: mean_of(self).astype("<f4").tobytes()
        )
        return np.frombuffer(content, "<f4").reshape(self.shape[1:]).astype(np.float32)
