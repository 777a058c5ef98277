"""The embedded data set of 640 photographs: 64 of each of ten classes of Caltech-101.

They lie in `objects.zip` beside this file, under their names in Caltech-101: drawn at random within their class, scaled
to 72 pixels on the shorter side and written as JPEG. The photographs are CC BY 4.0, as LICENSES.md says.

Source: F.-F. Li, M. Andreeto, M. Ranzato, P. Perona, Caltech 101, CaltechDATA 2022, doi 10.22002/D1.20086.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data.dataset import Dataset, checked_dataset
from cnnjax.data.images import Fitting, fit
from cnnjax.data.splits import stratified_split

ARCHIVE = Path(__file__).with_name("objects.zip")
CREDIT = (
    "Photographs: Caltech 101, F.-F. Li, M. Andreeto, M. Ranzato, P. Perona, 2022, doi 10.22002/D1.20086, CC BY 4.0;"
    " scaled and cut."
)
SIDE = 64  # pixels, where data.image_size says nothing
# What a class is called here, by its folder in Caltech-101.
CLASS_NAMES = {
    "Faces_easy": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "butterfly": "butterfly",
    "car_side": "car",
    "cougar_face": "cougar",
    "dalmatian": "dalmatian",
    "ketch": "ketch",
    "sunflower": "sunflower",
    "watch": "watch",
}


def load(config: DataConfig) -> Dataset:
    """The centre square of each photograph in RGB, scaled to `config.image_size` (64 pixels if None).

    Each class is split by `config.test_fraction` and `config.split_seed`.
    """
    from PIL import Image

    fitting = Fitting.of(
        dataclasses.replace(config, image_size=config.image_size or SIDE, channels=config.channels or 3)
    )
    folders = list(CLASS_NAMES)
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = archive.namelist()
        pictures = [fit(Image.open(io.BytesIO(archive.read(name))), fitting) for name in names]
    images, labels = np.stack(pictures), np.array([folders.index(name.split("/")[0]) for name in names])
    train, test = stratified_split(labels, test_fraction=config.test_fraction, seed=config.split_seed, name="objects")
    return checked_dataset(
        "objects", tuple(CLASS_NAMES.values()), train=(images[train], labels[train]), test=(images[test], labels[test])
    )
