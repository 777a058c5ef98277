"""Normalization across channels, and the statistics of batch normalization."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Float, Num

from cnnjax.errors import InputError
from cnnjax.ops.bias import channel_sums
from cnnjax.ops.precision import sum_dtype


def batch_moments(
    x: Float[Array | np.ndarray, "batch *places channels"],
    mask: Num[Array | np.ndarray, " batch"] | Bool[Array | np.ndarray, " batch"] | None = None,
) -> tuple[Float[Array, " channels"], Float[Array, " channels"], Float[Array, ""]]:
    """Mean and variance of each channel over all places, and the number of places; float32 for narrower types.

    The variance is the mean squared distance from the mean, in two passes: mean(x²) - mean(x)² has no right digit
    where the mean is 1000 deviations.

    Args:
        mask: 0 for an image that does not count; None: all do.
    """
    x = jnp.asarray(x)
    x = x.astype(sum_dtype(x.dtype))
    counts = jnp.ones(x.shape[:1], bool) if mask is None else jnp.asarray(mask) > 0
    counts = counts.reshape(-1, *[1] * (x.ndim - 1))
    count = jnp.maximum(jnp.sum(counts, dtype=x.dtype) * math.prod(x.shape[1:-1]), 1)
    mean = channel_sums(jnp.where(counts, x, 0)) / count
    centred = jnp.where(counts, x - mean, 0)
    return mean, channel_sums(centred * centred) / count, count


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
    return local_response_norm_p.bind(jnp.asarray(x), size=size, bias=bias, alpha=scale, beta=beta)


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
local_response_norm_p.def_abstract_eval(lambda x, **_: core.ShapedArray(x.shape, x.dtype))
mlir.register_lowering(local_response_norm_p, mlir.lower_fun(_local_response_norm, multiple_results=False))
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
