"""The embedded data set of 1,797 handwritten digits, 8x8 grey, that scikit-learn ships."""

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data.dataset import Dataset, checked_dataset
from cnnjax.data.images import Fitting, fit_arrays
from cnnjax.data.shipped import shipped_file
from cnnjax.data.splits import stratified_split

_WHITE = 16  # the largest value in scikit-learn's file


def load(config: DataConfig) -> Dataset:
    """Grey levels 0..16 become round(v * 255 / 16); split by class with `config.test_fraction` and `config.split_seed`.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998; `sklearn.datasets.load_digits`.
    """
    path = shipped_file("digits", "sklearn", "datasets/data/digits.csv.gz")
    pixels_and_label = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images, labels = pixels_and_label[:, :-1], pixels_and_label[:, -1]
    grey = np.rint(images.reshape(-1, 8, 8, 1) * (255 / _WHITE)).astype(np.uint8)
    grey = fit_arrays(grey, Fitting.of(config))
    train, test = stratified_split(labels, test_fraction=config.test_fraction, seed=config.split_seed, name="digits")
    return checked_dataset(
        "digits",
        [str(digit) for digit in range(10)],
        train=(grey[train], labels[train]),
        test=(grey[test], labels[test]),
    )
