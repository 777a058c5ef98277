"""Pooling in 1, 2 and 3 spatial dimensions, channels last, and its way back: unpooling with switches.

Max pooling is linear once the place of each maximum is known: the *switch*. The first maximum of a window, in
row-major order, is its switch; the values, the derivatives of every order and `unpool` all follow it. NaN counts as
larger than every number, so that it comes through, and takes its gradient with it.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from cnnjax.errors import InputError
from cnnjax.explicit_axes import automatic
from cnnjax.geometry import Ints, Padding, Rounding, as_ints, place_windows
from cnnjax.ops.precision import sum_dtype
from cnnjax.ops.selection import PoolWindows, max_with_choice


class Pooled(NamedTuple):
    """What `max_pool_with_switches` returns."""

    values: Num[Array, "batch *output channels"]
    switches: Int[Array, "batch *output channels"]  # int32, row-major place in the unpadded spatial shape


def max_pool(
    images: Num[Array | np.ndarray, "batch *spatial channels"],
    window: Ints,
    *,
    strides: Ints | None = None,
    padding: Padding = 0,
    rounding: Rounding = "floor",
) -> Num[Array, "batch *output channels"]:
    """The largest value of each window, of each channel.

    The gradient goes to the first maximum; the padding never wins.

    Args:
        window: size of the window, for all dimensions or one for each.
        strides: pixels that the window moves; None is the window, so that windows touch without overlap.
        padding: places around the images that count as minus infinity (`cnnjax.geometry`).
        rounding: what happens where the window does not fit: "floor" leaves the last pixels out, "ceil" lets the last
            window reach over the edge (cuda-convnet), "exact" refuses.

    Raises:
        InputError: the window does not fit, or some window would lie wholly in the padding.
    """
    images = jnp.asarray(images)
    return max_with_choice(images, windows=_pool_windows(images, window, strides, padding, rounding))[0]


def max_pool_with_switches(
    images: Num[Array | np.ndarray, "batch *spatial channels"],
    window: Ints,
    *,
    strides: Ints | None = None,
    padding: Padding = 0,
    rounding: Rounding = "floor",
) -> Pooled:
    """`max_pool`, with the place of each maximum (Zeiler & Fergus 2014, section 2.1: "switches").

    Differentiable in the values; the switches are integers. Arguments and errors as `max_pool`.
    """
    images = jnp.asarray(images)
    windows = _pool_windows(images, window, strides, padding, rounding)
    values, choice = max_with_choice(images, windows=windows)
    return Pooled(values, _switches(choice, windows))


def unpool(
    values: Num[Array | np.ndarray, "batch *output channels"],
    switches: Int[Array | np.ndarray, "batch *output channels"],
    spatial: Sequence[int],
    *,
    overlap: Literal["sum", "overwrite"] = "sum",
) -> Num[Array, "batch *spatial channels"]:
    """Puts each value back where its maximum was, zeros elsewhere. Linear in `values`.

    Args:
        switches: as `max_pool_with_switches` returns them.
        spatial: the spatial shape of the images that were pooled.
        overlap: what happens where windows overlap and share a maximum: "sum" adds their values (the transpose of
            pooling, the gradient), "overwrite" keeps the last window's in row-major order.

    Raises:
        InputError: the shapes of values and switches differ, or switches are not integers.
    """
    values, switches = jnp.asarray(values), jnp.asarray(switches)
    _check_rank(values, "values")
    if switches.shape != values.shape or not jnp.issubdtype(switches.dtype, jnp.integer):
        raise InputError(
            f"switches must be integers of the shape of values {values.shape}, got {switches.dtype} {switches.shape}"
        )
    if overlap not in ("sum", "overwrite"):
        raise InputError(f"overlap must be 'sum' or 'overwrite', got {overlap!r}")
    spatial = as_ints(tuple(spatial), values.ndim - 2, "spatial")
    return _unpool(values, switches, spatial=spatial, overlap=overlap)


@automatic(lambda values, switches, **_: (values[0], *[None] * (len(values) - 2), values[-1]))
def _unpool(values, switches, *, spatial, overlap):
    batch, *output, channels = values.shape
    flat_values = values.reshape(batch, math.prod(output), channels)
    flat_switches = switches.reshape(flat_values.shape)
    if overlap == "overwrite":
        flat_values = jnp.where(_is_last(flat_switches, math.prod(spatial)), flat_values, 0)
    # No window is known here, so this is a scatter; the gradient of max_pool has the fast form.
    places = jnp.zeros((batch, math.prod(spatial), channels), sum_dtype(values.dtype))
    # Image by image, so that XLA sees that each needs nothing of another, which may lie on another device.
    columns = jnp.arange(channels)
    sums = jax.vmap(lambda places, switches, values: places.at[switches, columns].add(values))(
        places, flat_switches, flat_values.astype(places.dtype)
    )
    return sums.astype(values.dtype).reshape(batch, *spatial, channels)


def avg_pool(
    images: Float[Array | np.ndarray, "batch *spatial channels"],
    window: Ints,
    *,
    strides: Ints | None = None,
    padding: Padding = 0,
    rounding: Rounding = "floor",
) -> Float[Array, "batch *output channels"]:
    """The mean of each window, of each channel. Padding is not counted: the mean is over the pixels that are there.

    Arguments and errors as `max_pool`.
    """
    images = jnp.asarray(images)
    windows = _pool_windows(images, window, strides, padding, rounding)
    counts = np.ones((), np.float64)
    sums = images.astype(sum_dtype(images.dtype))
    for axis in range(len(windows.window)):
        sums = _window_sums(sums, axis + 1, windows, axis)
        counts = np.multiply.outer(counts, _pixel_counts(windows, axis))
    means = sums / jnp.asarray(counts[None, ..., None], sums.dtype)
    return means if sums.dtype == images.dtype else means.astype(images.dtype)


def adaptive_avg_pool(
    images: Float[Array | np.ndarray, "batch *spatial channels"], output: Ints
) -> Float[Array, "batch *output channels"]:
    """The means of `output` bins along each dimension; images of that size already come back as they are.

    Of N pixels and B bins, bin i takes the pixels from floor(i·N/B) to before ceil((i + 1)·N/B), as in PyTorch: bins
    overlap where B does not divide N, and pixels repeat where there are fewer than bins.
    """
    images = jnp.asarray(images)
    _check_rank(images, "images")
    bins = as_ints(output, images.ndim - 2, "output")
    means = images.astype(sum_dtype(images.dtype))
    for axis, (size, count) in enumerate(zip(images.shape[1:-1], bins, strict=True), 1):
        if size == count:
            continue
        first, end = np.arange(count) * size // count, -(-np.arange(1, count + 1) * size // count)
        pixels = np.arange(size)[:, None]
        shares = ((first <= pixels) & (pixels < end)) / (end - first)
        product = jnp.tensordot(means, jnp.asarray(shares, means.dtype), (axis, 0), precision=lax.Precision.HIGHEST)
        means = jnp.moveaxis(product, -1, axis)
    return means.astype(images.dtype)


def _pool_windows(images, window, strides, padding, rounding) -> PoolWindows:
    _check_rank(images, "images")
    spatial = images.shape[1:-1]
    window = as_ints(window, len(spatial), "window")
    strides = window if strides is None else as_ints(strides, len(spatial), "strides")
    placement = place_windows(spatial, window, strides=strides, padding=padding, rounding=rounding)
    lows, highs = zip(*placement.padding, strict=True)
    windows = PoolWindows(spatial, window, strides, lows, placement.output, highs)
    for axis, (low, high) in enumerate(placement.padding):
        if _pixel_counts(windows, axis).min() < 1:
            raise InputError(
                f"padding must leave some pixel of the image in every window of {window[axis]} with stride "
                f"{strides[axis]} on {spatial[axis]} pixels, got ({low}, {high})"
                + (" (the last made by rounding 'ceil')" if rounding == "ceil" else "")
            )
    return windows


def _check_rank(array, name: str) -> None:
    if array.ndim not in (3, 4, 5):
        raise InputError(
            f"{name} must be [batch, *spatial, channels] with 1, 2 or 3 spatial dimensions, got shape {array.shape}"
        )


def _pixel_counts(windows: PoolWindows, axis: int) -> np.ndarray:
    """Pixels of the image, not of the padding, in each window along one dimension."""
    first = np.arange(windows.output[axis]) * windows.strides[axis] - windows.low[axis]
    return np.minimum(first + windows.window[axis], windows.spatial[axis]) - np.maximum(first, 0)


def _switches(choice, windows: PoolWindows):
    """The place of offset `choice` of each window in the unpadded image: row-major, int32."""
    offsets = jnp.unravel_index(choice.astype(jnp.int32), windows.window)
    place = jnp.zeros((), jnp.int32)
    for axis, offset in enumerate(offsets):
        first = np.arange(windows.output[axis], dtype=np.int32) * windows.strides[axis] - windows.low[axis]
        shape = [-1 if dimension == axis + 1 else 1 for dimension in range(choice.ndim)]
        place = place * windows.spatial[axis] + offset + first.reshape(shape)
    return place.astype(jnp.int32)


def _is_last(switches, places: int):
    """Whether no later window has the same switch. [batch, windows, channels] -> booleans of that shape."""
    count, channels = switches.shape[1:]
    columns, order = jnp.arange(channels), jnp.arange(count, dtype=jnp.int32)[:, None]

    def of_image(switches):
        last = jnp.full((places, channels), -1, jnp.int32).at[switches, columns].max(order)
        return last[switches, columns] == order

    return jax.vmap(of_image)(switches)


def _window_sums(images, dimension: int, windows: PoolWindows, axis: int):
    """Sums over the window along one dimension.

    The rows are split into blocks of `stride`, so that only neighbouring blocks are added: slices with a stride have
    gradients that XLA:CPU pads and adds slowly.
    """
    size, window, stride = images.shape[dimension], windows.window[axis], windows.strides[axis]
    low, output = windows.low[axis], windows.output[axis]
    taps = -(-window // stride)
    blocks = output + taps - 1
    config = [(0, 0, 0)] * images.ndim
    config[dimension] = (low, blocks * stride - size - low, 0)
    padded = lax.pad(images, jnp.zeros((), images.dtype), config)
    shape = images.shape
    split = padded.reshape(*shape[:dimension], blocks, stride, *shape[dimension + 1 :])
    parts = []
    for tap in range(taps):
        rows = lax.slice_in_dim(split, tap, tap + output, axis=dimension)
        part = lax.slice_in_dim(rows, 0, min(stride, window - tap * stride), axis=dimension + 1).sum(dimension + 1)
        parts.append(part)
    return functools.reduce(operator.add, parts)
