"""Convolution and its transpose, in 1, 2 and 3 spatial dimensions, channels last.

Images are `[batch, *spatial, channels]`, kernels `[*window, in_channels, out_channels]`; the number of spatial
dimensions is read from the ranks. Both operands have one type, and the result has it too.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from cnnjax.errors import InputError
from cnnjax.geometry import Ints, Padding, Rounding, as_ints, place_windows
from cnnjax.ops.windowed_product import Windows, windowed_product


def conv(
    images: Num[Array | np.ndarray, "batch *spatial in_channels"],
    kernel: Num[Array | np.ndarray, "*window group_in_channels out_channels"],
    *,
    strides: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    rounding: Rounding = "floor",
) -> Num[Array, "batch *output out_channels"]:
    """Slides the kernel's filters over the images: output pixel o is the sum of window o times the filter.

    As everywhere in this field the filter is not flipped (a cross-correlation).

    Args:
        images: 1, 2 or 3 spatial dimensions.
        kernel: `in_channels / groups` in channels; filter c sees the channels of group c // (out_channels / groups).
        strides: pixels that the window moves, for all dimensions or one for each.
        padding: zeros around the images (`cnnjax.geometry`).
        dilation: distance of the filter's neighbouring weights in pixels; 1 is an ordinary filter.
        groups: parts into which the channels are split; the number of in channels makes it depthwise.
        rounding: what happens where the filter does not fit: "floor" leaves the last pixels out, "ceil" adds zeros
            at the high end (cuda-convnet), "exact" refuses.

    Raises:
        InputError: types or channels disagree, groups do not divide, or the filter does not fit; says what would fit.
    """
    images, kernel = jnp.asarray(images), jnp.asarray(kernel)
    _check_operands(images, kernel, "images")
    _check_groups(images.shape[-1], kernel, groups)
    windows = _windows(images.shape[1:-1], kernel, strides, padding, dilation, groups, rounding)
    return windowed_product(images, kernel, face="output", windows=windows)


def conv_transpose(
    outputs: Num[Array | np.ndarray, "batch *output out_channels"],
    kernel: Num[Array | np.ndarray, "*window group_in_channels out_channels"],
    spatial: Sequence[int],
    *,
    strides: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    rounding: Rounding = "floor",
) -> Num[Array, "batch *spatial in_channels"]:
    """The linear transpose of `conv` with the same arguments: every output pixel paints its filter into an image.

    The deconvnet's "filtering" (Zeiler & Fergus 2014, section 2.1: transposed filters).

    Args:
        outputs: an array of the shape that `conv` makes from images of `spatial` size.
        kernel: as `conv` takes it, in channels before out channels.
        spatial: the images' spatial shape; several sizes give the same output where strides leave pixels out.

    Raises:
        InputError: as `conv`, and where `outputs` is not what `conv` makes of `spatial`.
    """
    outputs, kernel = jnp.asarray(outputs), jnp.asarray(kernel)
    _check_operands(outputs, kernel, "outputs")
    if outputs.shape[-1] != kernel.shape[-1]:
        raise InputError(
            f"outputs must have the kernel's out channels ({kernel.shape[-1]}), got {outputs.shape[-1]} "
            f"(shape {outputs.shape})"
        )
    _check_groups(kernel.shape[-2] * _as_groups(groups), kernel, groups)
    spatial = as_ints(tuple(spatial), outputs.ndim - 2, "spatial")
    windows = _windows(spatial, kernel, strides, padding, dilation, groups, rounding)
    if outputs.shape[1:-1] != windows.output:
        raise InputError(
            f"outputs must have the spatial shape {windows.output} that conv makes of {spatial}, "
            f"got {outputs.shape[1:-1]}"
        )
    return windowed_product(outputs, kernel, face="images", windows=windows)


def _windows(spatial, kernel, strides, padding, dilation, groups, rounding) -> Windows:
    dimensions = len(spatial)
    window = kernel.shape[:-2]
    strides = as_ints(strides, dimensions, "strides")
    dilation = as_ints(dilation, dimensions, "dilation")
    placement = place_windows(spatial, window, strides=strides, padding=padding, dilation=dilation, rounding=rounding)
    return Windows(tuple(spatial), window, strides, placement.padding, dilation, int(groups))


def _check_operands(images: jax.Array, kernel: jax.Array, name: str) -> None:
    if images.ndim not in (3, 4, 5):
        raise InputError(
            f"{name} must be [batch, *spatial, channels] with 1, 2 or 3 spatial dimensions, got shape {images.shape}"
        )
    if kernel.ndim != images.ndim:
        raise InputError(
            f"kernel must be [*window, in_channels, out_channels] with {images.ndim - 2} window dimensions for {name} "
            f"of shape {images.shape}, got shape {kernel.shape}"
        )
    if images.dtype != kernel.dtype:
        raise InputError(f"kernel must have the type of the {name} ({images.dtype}), got {kernel.dtype}")


def _as_groups(groups: int) -> int:
    if not hasattr(groups, "__index__") or groups < 1:
        raise InputError(f"groups must be a positive integer, got {groups!r}")
    return int(groups)


def _check_groups(in_channels: int, kernel: jax.Array, groups: int) -> None:
    groups = _as_groups(groups)
    out_channels = kernel.shape[-1]
    if in_channels % groups or out_channels % groups:
        shared = [count for count in range(1, in_channels + 1) if in_channels % count == out_channels % count == 0]
        raise InputError(
            f"groups must divide the channels ({in_channels} in, {out_channels} out), got {groups}; "
            f"{', '.join(map(str, shared))} would fit"
        )
    if kernel.shape[-2] != in_channels // groups:
        raise InputError(
            f"kernel must have in_channels / groups = {in_channels}/{groups} = {in_channels // groups} in channels, "
            f"got {kernel.shape[-2]} (shape {kernel.shape})"
        )
