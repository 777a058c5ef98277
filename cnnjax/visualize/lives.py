"""The life of every map of a layer over the kept epochs: when it is born, how far it turns, whether it dies.

Zeiler & Fergus 2014, section 4.1, see it in figure 4: sudden jumps of a row are changes of its strongest image.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cnnjax.visualize.convergence import filter_distance
from cnnjax.visualize.evolution import Strongest

NEVER = -1  # in the place of an epoch's index


class Lives(NamedTuple):
    """Of every map of a layer, a column an epoch."""

    value: Float[np.ndarray, "maps epochs"]  # the strongest activation over all images; 0: dead at that epoch
    image: Int[np.ndarray, "maps epochs"]  # the image that it is in
    turned: Float[np.ndarray, "maps epochs"]  # 1 - cosine of its filter with that of the last epoch; NaN: not one alone


class Measures(NamedTuple):
    """Of every map of a layer. An epoch is meant by its index among the kept ones; `NEVER` where there is none."""

    born: Int[np.ndarray, " maps"]  # from which on the strongest image is the last one; before the last epoch, or never
    changes: Int[np.ndarray, " maps"]  # times that the strongest image is another than at the kept epoch before
    drift: Float[np.ndarray, " maps"]  # 1 - cosine of the first epoch's filter with the last one's
    died: Int[np.ndarray, " maps"]  # from which on it is zero on every image


def lives(kernels: Sequence[Sequence[np.ndarray]], strongest: Mapping[int, Strongest]) -> Lives:
    """The numbers of one layer.

    Args:
        kernels: at every epoch those that lead to the layer, [..., filters]; a map has a filter of its own where there
            is one kernel with as many filters as maps.
        strongest: over all images, by epoch, in the same order.
    """
    value, image = (np.stack([getattr(of, name) for of in strongest.values()], axis=1) for name in ("value", "image"))
    own = all(len(of) == 1 and of[0].shape[-1] == len(value) for of in kernels)
    turned = np.full(value.shape, np.nan)
    if own:
        turned = np.stack([filter_distance(of[0], kernels[-1][0]) for of in kernels], axis=1)
    return Lives(np.maximum(value, 0), image, turned)


def measures(of: Lives) -> Measures:
    """What the numbers say of each map.

    A map is born where its strongest image settles: at the first kept epoch from which on it stays the same. One that
    has another at the last epoch than before it is not seen to settle, and one that is dead at the end is not born.
    """
    alive = of.value > 0
    epochs = alive.shape[1]
    settled = _first_of_end(alive & (of.image == of.image[:, -1:]))
    other = (of.image[:, 1:] != of.image[:, :-1]) & alive[:, 1:] & alive[:, :-1]
    return Measures(
        np.where(settled < epochs - 1, settled, NEVER),
        other.sum(axis=1),
        of.turned[:, 0],
        np.where(alive[:, -1], NEVER, _first_of_end(~alive)),
    )


def _first_of_end(true: np.ndarray) -> np.ndarray:
    """The first column from which on a row is true to its end; the number of columns where it ends with false."""
    return true.shape[1] - np.logical_and.accumulate(true[:, ::-1], axis=1).sum(axis=1)
