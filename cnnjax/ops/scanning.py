"""Scanning with a multilayer perceptron, in 1, 2 and 3 spatial dimensions: what makes it a convolutional network.

An MLP that decides on one window of a sound, an image or a volume is moved over the whole of it. The copies at all
positions are one large network with shared subnets. Computed layer by layer instead of position by position, the
first layer is a convolution with the MLP's window and every later one a convolution with a window of 1.

Several scans behind each other, ReLU or pooling between, are the distributed scan, whose later layers see windows too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cnnjax.errors import InputError
from cnnjax.explicit_axes import automatic
from cnnjax.geometry import Ints, as_ints, place_windows
from cnnjax.ops.bias import add_bias
from cnnjax.ops.convolution import conv
from cnnjax.ops.dense import dense


class DenseLayer(NamedTuple):
    """One layer of an MLP."""

    kernel: Float[Array | np.ndarray, "inputs units"]
    bias: Float[Array | np.ndarray, " units"]


def apply_mlp(
    layers: Sequence[DenseLayer], x: Float[Array | np.ndarray, "*batch inputs"]
) -> Float[Array, "*batch units"]:
    """The MLP on one input: ReLU between the layers and none behind the last.

    Raises:
        InputError: no layers, or shapes or types disagree.
    """
    x = jnp.asarray(x)
    if x.ndim < 1:
        raise InputError(f"x must be [*batch, inputs], got shape {x.shape}")
    first, *later = _checked(layers, x.dtype, x.shape[-1], f"the inputs of x, whose shape is {x.shape}")
    outputs = dense(x, *first)
    for layer in later:
        outputs = dense(jax.nn.relu(outputs), *layer)
    return outputs


def scan_mlp(
    layers: Sequence[DenseLayer],
    inputs: Float[Array | np.ndarray, "batch *spatial channels"],
    window: Ints,
    *,
    strides: Ints = 1,
) -> Float[Array, "batch *output units"]:
    """The MLP's outputs at every position of its window, as convolutions made of its weights.

    Args:
        layers: an MLP on a flattened window (row-major, channels last): prod(window) · channels inputs. ReLU stands
            between the layers and none behind the last.
        inputs: 1, 2 or 3 spatial dimensions.
        window: what the MLP sees at one position, for all dimensions or one for each.
        strides: pixels that the window moves; pixels at the high end that no whole window reaches are left out.

    Raises:
        InputError: no layers, layers that do not chain or do not take the window, or a window that does not fit.
    """
    inputs, window, (first, *later) = _scan_operands(layers, inputs, window)
    kernel = first.kernel.reshape(*window, inputs.shape[-1], -1)
    maps = add_bias(conv(inputs, kernel, strides=strides), first.bias)
    for layer in later:
        pointwise = layer.kernel.reshape((1,) * len(window) + layer.kernel.shape)
        maps = add_bias(conv(jax.nn.relu(maps), pointwise), layer.bias)
    return maps


def scan_mlp_literally(
    layers: Sequence[DenseLayer],
    inputs: Float[Array | np.ndarray, "batch *spatial channels"],
    window: Ints,
    *,
    strides: Ints = 1,
) -> Float[Array, "batch *output units"]:
    """`scan_mlp` as its words say: a loop over the positions, at each of which the window is cut out and flattened.

    Slow; for teaching and for tests. Arguments and errors as `scan_mlp`.
    """
    inputs, window, layers = _scan_operands(layers, inputs, window)
    steps = as_ints(strides, len(window), "strides")
    output = place_windows(inputs.shape[1:-1], window, strides=steps, rounding="floor").output
    outputs = []
    for position in np.ndindex(*output):
        corner = [place * step for place, step in zip(position, steps, strict=True)]
        cut = tuple(slice(start, start + size) for start, size in zip(corner, window, strict=True))
        outputs.append(apply_mlp(layers, _flattened(inputs[(slice(None), *cut)])))
    return jnp.stack(outputs, axis=1).reshape(len(inputs), *output, layers[-1].bias.size)


@automatic(lambda pixels: (pixels[0], None))
def _flattened(pixels):
    return pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))


def _scan_operands(layers, inputs, window) -> tuple[jax.Array, tuple[int, ...], list[DenseLayer]]:
    inputs = jnp.asarray(inputs)
    if inputs.ndim not in (3, 4, 5):
        raise InputError(
            f"inputs must be [batch, *spatial, channels] with 1, 2 or 3 spatial dimensions, got shape {inputs.shape}"
        )
    window = as_ints(window, inputs.ndim - 2, "window")
    factors = (*window, inputs.shape[-1])
    why = f"prod(window) · channels = {'·'.join(map(str, factors))}"
    return inputs, window, _checked(layers, inputs.dtype, math.prod(factors), why)


def _checked(layers: Sequence[DenseLayer], dtype, rows: int, why: str) -> list[DenseLayer]:
    """The layers as arrays. `rows` is what the first kernel must have; `why` is the reason, for the error."""
    if len(layers) == 0:
        raise InputError("layers must hold at least 1 layer, got none")
    checked = []
    for number, layer in enumerate(layers):
        kernel, bias = map(jnp.asarray, layer)
        name = f"layers[{number}]"
        if kernel.ndim != 2:
            raise InputError(f"{name}.kernel must be [inputs, units], got shape {kernel.shape}")
        if kernel.shape[0] != rows:
            raise InputError(f"{name}.kernel must have {rows} rows ({why}), got shape {kernel.shape}")
        if bias.shape != kernel.shape[1:]:
            raise InputError(f"{name}.bias must have one entry for each unit ({kernel.shape[1]}), got {bias.shape}")
        for part, array in (("kernel", kernel), ("bias", bias)):
            if array.dtype != dtype:
                raise InputError(f"{name}.{part} must have the type of the inputs ({dtype}), got {array.dtype}")
        checked.append(DenseLayer(kernel, bias))
        rows, why = kernel.shape[1], f"the units of {name}"
    return checked
