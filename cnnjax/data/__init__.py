"""Images and labels: one source a file, all of which end in `Dataset`; batches and augmentation.

`load` is the door. Nothing in this room prints: progress is handed to a callable.
"""

import logging
from collections.abc import Callable

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data import catalogue, digits, folder, npz, objects, packed, photos
from cnnjax.data.augment import augment
from cnnjax.data.batches import Batch, batches, epoch_order
from cnnjax.data.dataset import Dataset, ImagesByIndex, Split, checked_dataset, fingerprint, mean_image
from cnnjax.data.files import printable
from cnnjax.data.randomness import Purpose, address
from cnnjax.data.scale import Scale, scale_of
from cnnjax.data.validation import with_validation
from cnnjax.errors import InputError

__all__ = [
    "EMBEDDED",
    "Batch",
    "Dataset",
    "ImagesByIndex",
    "Progress",
    "Purpose",
    "Scale",
    "Split",
    "address",
    "augment",
    "batches",
    "checked_dataset",
    "credit_of",
    "epoch_order",
    "fingerprint",
    "load",
    "mean_image",
    "scale_of",
]

_logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (description, done, total)

# The sets that need neither files nor a network.
EMBEDDED: dict[str, Callable[[DataConfig], Dataset]] = {
    "objects": objects.load,
    "photos": photos.load,
    "digits": digits.load,
}


def credit_of(config: DataConfig) -> str:
    """Whose the images are, where their licence asks for it to be said on what is made of them; else empty."""
    is_named = config.folder is None and config.packed is None and config.npz is None
    return objects.CREDIT if is_named and config.name == "objects" else ""


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The data set that the config names: `folder`, `packed` or `npz`, else an embedded set, else TensorFlow Datasets.

    With `validation_fraction` some of its training images are its validation images instead.

    A warning is logged, in one line, for classes without a training image: the network has an output for each.

    Args:
        progress: called with (description, done, total) during work that takes longer than a moment.

    Raises:
        InputError: one line that says what to mend.
    """
    dataset = _load(config, progress)
    if config.validation_fraction:
        dataset = with_validation(dataset, config)
    unseen = sorted(set(range(dataset.num_classes)) - set(np.unique(dataset.train.labels).tolist()))
    if unseen:
        named = ", ".join(dataset.class_names[label] for label in unseen[:5]) + (", ..." if unseen[5:] else "")
        _logger.warning(
            "%s: no training image for %d of %d classes (%s), labels count from 0",
            printable(dataset.name), len(unseen), dataset.num_classes, named,
        )  # fmt: skip
    return dataset


def _load(config: DataConfig, progress: Progress | None) -> Dataset:
    if config.folder is not None:
        return folder.load(config, progress)
    if config.packed is not None:
        return packed.load(config, progress)
    if config.npz is not None:
        return npz.load(config)
    if config.name in EMBEDDED:
        if config.train_crop != "centre":
            raise InputError(f"data.train_crop must be centre for data.name {config.name}, got {config.train_crop}")
        return EMBEDDED[config.name](config)
    return catalogue.load(config, progress, embedded=tuple(EMBEDDED))
