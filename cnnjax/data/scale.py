"""From grey levels to the numbers that a network takes, and what it needs to go back."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from cnnjax.config import DataConfig
from cnnjax.data.dataset import Dataset, mean_image
from cnnjax.errors import InputError


class Scale(NamedTuple):
    """A network takes (grey level - mean) / deviation."""

    mean: Float32[np.ndarray, "height width channels"]  # in grey levels
    deviation: float | Float32[np.ndarray, " channels"]  # in grey levels


def scale_of(config: DataConfig, dataset: Dataset) -> Scale:
    """`config.mean`, else the mean image of the training set; `config.deviation`, else `config.unit`.

    Raises:
        InputError: for a mean or a deviation that has not one number a channel of the images, nor one for all.
    """
    height, width, channels = dataset.image_shape
    for name in ("mean", "deviation"):
        given = getattr(config, name)
        if given is not None and len(given) not in (1, channels):
            raise InputError(
                f"data.{name} must have one number for each of the {channels} channels of {dataset.name}, got {given}"
            )
    if config.mean is None:
        mean = mean_image(dataset.train)
    else:
        mean = np.broadcast_to(np.asarray(config.mean, np.float32), (height, width, channels))
    if config.deviation is None:
        return Scale(mean, config.unit)
    return Scale(mean, np.broadcast_to(np.asarray(config.deviation, np.float32), (channels,)))
