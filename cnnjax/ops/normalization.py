"""Normalization: of a batch, and across channels."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Float, Num

from cnnjax.errors import InputError
from cnnjax.explicit_axes import automatic
from cnnjax.ops import placement
from cnnjax.ops.bias import channel_sums, spread_channels
from cnnjax.ops.placement import Primitive
from cnnjax.ops.precision import sum_dtype


class BatchNormed(NamedTuple):
    """What `batch_norm` returns; all in float32 where x is narrower."""

    values: Float[Array, "batch *places channels"]
    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]  # the mean squared distance from the mean
    count: Float[Array, ""]  # of the places that count, at least 1


def batch_norm(
    x: Float[Array | np.ndarray, "batch *places channels"],
    scale: Float[Array | np.ndarray, " channels"],
    bias: Float[Array | np.ndarray, " channels"],
    mask: Num[Array | np.ndarray, " batch"] | Bool[Array | np.ndarray, " batch"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> BatchNormed:
    """Each channel less its mean over the batch, over its deviation, times `scale`, plus `bias`.

    The variance is taken in two passes: mean(x²) - mean(x)² has no right digit where the mean is 1000 deviations.

    Args:
        mask: 0 for an image that does not count in mean and variance; None: all do.
        epsilon: added to the variance.

    Source: Ioffe & Szegedy 2015, algorithm 1.
    """
    x = jnp.asarray(x)
    x = x.astype(sum_dtype(x.dtype))
    counts = jnp.ones(x.shape[:1], bool) if mask is None else jnp.asarray(mask) > 0
    count = jnp.maximum(jnp.sum(counts, dtype=x.dtype) * math.prod(x.shape[1:-1]), 1)
    operands = x, jnp.asarray(scale), jnp.asarray(bias), counts, count
    values, mean, variance = _normed_by_batch(*operands, epsilon=epsilon)
    return BatchNormed(values, mean, variance, count)


@automatic(lambda x, *_, **__: [x, x[-1:], x[-1:]])
def _normed_by_batch(x, scale, bias, counts, count, *, epsilon):
    return _batch_norm(epsilon, x, scale, bias, counts.reshape(-1, *[1] * (x.ndim - 1)), count)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _batch_norm(epsilon, x, scale, bias, counts, count):
    mean = channel_sums(jnp.where(counts, x, 0)) / count
    centred = jnp.where(counts, x - mean, 0)
    variance = channel_sums(centred * centred) / count
    return (x - mean) * (scale * lax.rsqrt(variance + epsilon)) + bias, mean, variance


@_batch_norm.defjvp
def _batch_norm_jvp(epsilon, primals, tangents):
    """Its transpose takes two sums over the places; each use of x would have its own if the formula were derived."""
    x, scale, _, counts, count = primals
    change, scale_change, bias_change = tangents[:3]
    values, mean, variance = _batch_norm(epsilon, *primals)
    inverse = lax.rsqrt(variance + epsilon)
    normal = (x - mean) * inverse
    factor = scale * inverse
    mean_change = channel_sums(jnp.where(counts, change, 0)) / count
    deviation_change = channel_sums(jnp.where(counts, change * normal, 0)) / count
    places = x.shape[:-1]
    of_values = (
        change * factor
        + spread_channels(bias_change - mean_change * factor, places)
        + normal * spread_channels(scale_change - deviation_change * factor, places)
    )
    return (values, mean, variance), (of_values, mean_change, 2 * deviation_change / inverse)


def local_response_norm(
    x: Float[Array | np.ndarray, "*batch channels"],
    *,
    size: int = 5,
    bias: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    alpha_over_n: bool = False,
) -> Float[Array, "*batch channels"]:
    """x / (bias + alpha · sum of the squares of `size` neighbouring channels) ** beta.

    The window is centred on the channel (for an even size one more below than above) and cut off at the first and
    last channel. The numbers are static.

    Args:
        size: channels in the window, at least 1.
        alpha_over_n: divide alpha by `size`, as cuda-convnet, Caffe and PyTorch do; the paper does not.

    Raises:
        InputError: size below 1, or bias not above 0.

    Source: Krizhevsky, Sutskever, Hinton 2012, section 3.3.
    """
    if size < 1:
        raise InputError(f"size must be at least 1, got {size}")
    if not bias > 0:
        raise InputError(f"bias must be above 0, got {bias}")
    scale = alpha / size if alpha_over_n else alpha
    return _normed(jnp.asarray(x), size=size, bias=bias, alpha=scale, beta=beta)


@automatic(lambda x, **_: x)
def _normed(x, **numbers):
    return local_response_norm_p.bind(x, **numbers)


# A primitive, so that the deconvnet knows it in a jaxpr, and takes no other function of that name for it.
local_response_norm_p = Primitive("local_response_norm")


@functools.partial(jax.jit, static_argnames=("size", "bias", "alpha", "beta"))
def _local_response_norm(x, *, size: int, bias: float, alpha: float, beta: float):
    wide = x.astype(sum_dtype(x.dtype))
    normed = wide * _inverse_power(bias + alpha * _neighbour_sum(wide * wide, size), beta)
    return normed if wide.dtype == x.dtype else normed.astype(x.dtype)


def _jvp(primals, tangents, **numbers):
    return jax.jvp(
        functools.partial(_local_response_norm, **numbers), primals, tuple(map(ad.instantiate_zeros, tangents))
    )


def _batch(operands, axes, **numbers):
    return local_response_norm_p.bind(jnp.moveaxis(operands[0], axes[0], 0), **numbers), 0


local_response_norm_p.def_impl(_local_response_norm)
local_response_norm_p.def_abstract_eval(lambda x, **_: placement.result(x, x.shape, x.dtype))
mlir.register_lowering(local_response_norm_p, placement.lowering(_local_response_norm))
ad.primitive_jvps[local_response_norm_p] = _jvp
batching.primitive_batchers[local_response_norm_p] = _batch


def _neighbour_sum(squares, size: int):
    """Sums over neighbouring channels, as a product with a banded matrix of ones."""
    channels = squares.shape[-1]
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]  # column: the channel that is summed for
    band = (-((size - 1) // 2) <= distance) & (distance <= size // 2)
    return lax.dot_general(
        squares,
        jnp.asarray(band, squares.dtype),
        (((squares.ndim - 1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _inverse_power(x, beta: float):
    """x ** -beta for x > 0; square roots where they do it, since a power is a logarithm and an exponential."""
    if beta == 0.75:
        root = lax.rsqrt(x)
        return root * lax.sqrt(root)
    if beta == 0.5:
        return lax.rsqrt(x)
    return x**-beta


@_inverse_power.defjvp
def _inverse_power_jvp(beta: float, primals, tangents):
    (x,), (tangent,) = primals, tangents
    power = _inverse_power(x, beta)
    return power, tangent * (-beta * power / x)
