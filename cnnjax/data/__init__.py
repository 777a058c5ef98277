"""Images and labels: one source a file, all of which end in `Dataset`; batches and augmentation.

`load` is the door. Nothing in this room prints: progress is handed to a callable.
"""

from collections.abc import Callable

from cnnjax.config import DataConfig
from cnnjax.data import catalogue, digits, folder, npz, photos
from cnnjax.data.augment import augment
from cnnjax.data.batches import Batch, batches, epoch_order
from cnnjax.data.dataset import Dataset, Split, checked_dataset, fingerprint, mean_image
from cnnjax.data.randomness import Purpose, address

__all__ = [
    "EMBEDDED",
    "Batch",
    "Dataset",
    "Progress",
    "Purpose",
    "Split",
    "address",
    "augment",
    "batches",
    "checked_dataset",
    "epoch_order",
    "fingerprint",
    "load",
    "mean_image",
]

Progress = Callable[[str, int, int], None]  # (description, done, total)

# The sets that need neither files nor a network.
EMBEDDED: dict[str, Callable[[DataConfig], Dataset]] = {"photos": photos.load, "digits": digits.load}


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The data set that the config names: `folder`, else `npz`, else an embedded set, else TensorFlow Datasets.

    Args:
        progress: called with (description, done, total) during work that takes longer than a moment.

    Raises:
        InputError: one line that says what to mend.
    """
    if config.folder is not None:
        return folder.load(config, progress)
    if config.npz is not None:
        return npz.load(config)
    if config.name in EMBEDDED:
        return EMBEDDED[config.name](config)
    return catalogue.load(config, progress, embedded=tuple(EMBEDDED))
