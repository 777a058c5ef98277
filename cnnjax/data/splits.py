"""Seeded choices on the host: which image goes to the test, where a patch is cut.

NumPy promises never to change the numbers of `RandomState`, unlike those of `default_rng`, so a split is the same on
every machine and with every version.
"""

import numpy as np
from jaxtyping import Int, Int64

from cnnjax.errors import InputError

_VALIDATION = 1 << 20  # in an address, where a split has a class or a photograph, which are fewer


def random_state(seed: int, *address: int) -> np.random.RandomState:
    """A generator that is a function of (seed, address): independent streams for different addresses.

    Args:
        seed: at least 0 and below 2^32; a larger one would be taken apart, and its upper half be part of an address.
        address: integers of the same range, such as the index of a class.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, *address])))


def stratified_split(
    labels: np.ndarray, *, test_fraction: float, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test images, both ascending, each class in the same proportion.

    Of a class of n images, round(n * test_fraction) go to the test, but at least 1 and at most n - 1.

    Args:
        labels: integers of at least 0, [n].
        test_fraction: in (0, 1).
        seed: as `random_state` takes it.
        name: of the data set, for the error.

    Raises:
        InputError: for a label below 0; if a class has a single image, which cannot be in both splits.
    """
    if labels.size and labels.min() < 0:
        raise InputError(f"{name}: labels must be at least 0, got {labels.min()} at index {labels.argmin()}")
    test = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise InputError(f"{name}: a seeded split needs at least 2 images of each class, got 1 of class {label}")
        count = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        test.append(random_state(seed, int(label)).permutation(members)[:count])
    test_indices = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test_indices), test_indices


def validation_rows(
    labels: Int[np.ndarray, " n"], *, fraction: float, seed: int, name: str
) -> tuple[Int64[np.ndarray, " rest"], Int64[np.ndarray, " chosen"]]:
    """Rows of the images that stay in the training and of those for validation, both rising.

    round(n * fraction) images are chosen, at least 1, of each class in proportion: its whole part first, and what is
    left goes to the classes with the largest remainders. Each class keeps an image in the training, so that of one with
    a single image none is chosen.

    Args:
        fraction: in (0, 1).
        seed: as `random_state` takes it.
        name: of the data set, for the error.

    Raises:
        InputError: no class has two images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * fraction
    quota = np.floor(exact).astype(np.int64)
    wanted = max(1, round(len(labels) * fraction)) - quota.sum()
    ties = random_state(seed, _VALIDATION).permutation(len(classes))
    order = np.lexsort((ties, quota - exact))
    quota[order[quota[order] < counts[order] - 1][:wanted]] += 1
    if not quota.any():
        raise InputError(f"data.validation_fraction must be 0 for {name}, of which no class has 2 training images")
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [
        random_state(seed, _VALIDATION, 1 + int(label)).permutation(rows)[:count]
        for label, rows, count in zip(classes, by_class, quota, strict=True)
    ]
    chosen = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def of_all_classes(labels: Int[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " rows"]:
    """The rows of at most `count` images, rising: the first ones if all classes are among them, else of as many classes
    as there can be.

    Then they are the first image of each class, the second of each, and so on; where these are more than are left, some
    of them at equal distances. So a set that lies in order of its classes is not judged by the first of them.
    """
    if len(np.unique(labels[:count])) == len(np.unique(labels)):
        return np.arange(min(count, len(labels)))
    seen: dict[int, int] = {}
    turns: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        turns.setdefault(seen[label], []).append(row)
    chosen: list[int] = []
    for turn in range(1, len(turns) + 1):
        left = min(count - len(chosen), len(turns[turn]))
        chosen += [turns[turn][place * len(turns[turn]) // left] for place in range(left)]
    return np.sort(np.array(chosen, np.int64))
