"""Weights by the names and in the layout that PyTorch gives them, from and to a network's variables.

The layer `name` of `cnnjax.models.building` is the module `name` there: kernels [height, width, in, out] are
`name.weight` [out, in, height, width], dense ones [in, out] are [out, in]; scale, bias and running statistics of a
normalization are `weight`, `bias`, `running_mean` and `running_var`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cnnjax.errors import InputError

_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def named(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """PyTorch's name of every array -> the array in PyTorch's layout."""
    found = {}
    for (_, layer, part), array in _leaves(variables):
        array = np.asarray(array)
        found[f"{layer}.{_NAMES[part]}"] = np.moveaxis(array, (-1, -2), (0, 1)) if part == "kernel" else array
    return found


def variables_of(arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, of the shapes in `like`, from PyTorch's arrays by name; the inverse of `named`.

    Raises:
        InputError: names that are missing or not expected, or arrays of another shape, all at once.
    """
    wanted = named(jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
    given = {name for name in arrays if not name.endswith(".num_batches_tracked")}
    missing, unexpected = sorted(wanted.keys() - given), sorted(given - wanted.keys())
    other = [
        f"{name} {arrays[name].shape} for {array.shape}"
        for name, array in wanted.items()
        if name in given and arrays[name].shape != array.shape
    ]
    if missing or unexpected or other:
        raise InputError(
            f"the weights must be those of the network; missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}; of another shape: {', '.join(other) or 'none'}"
        )

    def read(path, _):
        _, layer, part = (key.key for key in path)
        array = np.asarray(arrays[f"{layer}.{_NAMES[part]}"])
        return np.moveaxis(array, (0, 1), (-1, -2)) if part == "kernel" else array

    return jax.tree_util.tree_map_with_path(read, dict(like))


def _leaves(variables: Mapping[str, Any]):
    return [
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(dict(variables))[0]
    ]
