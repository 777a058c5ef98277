"""How far each layer is from its final self at each epoch.

Zeiler & Fergus 2014, section 4.1, say of figure 4 that lower layers settle within a few epochs and upper ones only
after 40 to 50. These are the numbers that show whether it holds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cnnjax.visualize.evolution import Strongest


class Convergence(NamedTuple):
    """Curves over the kept epochs, a row a layer. NaN where a number does not exist."""

    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    filter_distance: Float[np.ndarray, "layers epochs"]  # mean 1 - cosine of each filter with its final self
    dead: Float[np.ndarray, "layers epochs"]  # share of maps that are zero on every image
    moved: Float[np.ndarray, "layers epochs"]  # share of maps whose strongest image is another than at the epoch before


def filter_distance(
    kernel: Float[np.ndarray, "... filters"], final: Float[np.ndarray, "... filters"]
) -> Float[np.ndarray, " filters"]:
    """1 - cosine of the angle between each filter and its final self: 0 the same direction, 1 orthogonal."""
    a, b = kernel.reshape(-1, kernel.shape[-1]), final.reshape(-1, final.shape[-1])
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.maximum(0, 1 - np.sum(a * b, axis=0) / np.where(norms > 0, norms, 1))


def convergence(
    kernels: Mapping[str, Sequence[Sequence[np.ndarray]]], strongest_by_epoch: dict[int, dict[str, Strongest]]
) -> Convergence:
    """The curves of some layers.

    Args:
        kernels: of each layer at every epoch those that lead to it, [..., filters].
        strongest_by_epoch: in the same order.
    """
    layers, epochs = tuple(kernels), tuple(strongest_by_epoch)
    distance = np.zeros((len(layers), len(epochs)))
    dead, moved = np.zeros_like(distance), np.full_like(distance, np.nan)
    for row, layer in enumerate(layers):
        for column, epoch in enumerate(epochs):
            now = strongest_by_epoch[epoch][layer]
            pairs = zip(kernels[layer][column], kernels[layer][-1], strict=True)
            distance[row, column] = np.concatenate([filter_distance(*pair) for pair in pairs]).mean()
            dead[row, column] = np.mean(now.value <= 0)
            if column:
                moved[row, column] = np.mean(now.image != strongest_by_epoch[epochs[column - 1]][layer].image)
    return Convergence(layers, epochs, distance, dead, moved)
