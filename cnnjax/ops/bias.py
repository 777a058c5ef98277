"""A bias: one number a channel, added at every place; its gradient is a sum over all places.

Both are primitives, linear and each other's transposes, so that the sum, which every training step takes for every
layer, has a form of its own on a CPU under every transformation. Members of a `vmap` stand first.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Num

from cnnjax.errors import InputError
from cnnjax.explicit_axes import automatic
from cnnjax.ops import compiler, placement
from cnnjax.ops.placement import Primitive, alike
from cnnjax.ops.precision import sum_dtype

SUMMED_AS_PRODUCT = 2**14  # from so many numbers a member on; below, calling the library takes longer than the sum
ROWS_OF_PRODUCT = 128  # at most: longer columns of a product are added up without a tree, which costs digits


def add_bias(
    x: Num[Array | np.ndarray, "*places channels"], bias: Num[Array | np.ndarray, " channels"]
) -> Num[Array, "*places channels"]:
    """x + bias, whose gradient for the bias is fast on a CPU, and in float32 for narrower types.

    Raises:
        InputError: channels or types disagree.
    """
    x, bias = jnp.asarray(x), jnp.asarray(bias)
    if x.ndim < 1 or bias.shape != x.shape[-1:]:
        raise InputError(f"bias must have one entry for each channel of x (shape {x.shape}), got shape {bias.shape}")
    if x.dtype != bias.dtype:
        raise InputError(f"bias must have the type of x ({x.dtype}), got {bias.dtype}")
    return _add(x, bias)


def channel_sums(x: Num[Array | np.ndarray, "*places channels"]) -> Num[Array, " channels"]:
    """The sum over all places of each channel, fast on a CPU, in float32 for narrower types and then rounded."""
    return _channel_sums(jnp.asarray(x))


@automatic(lambda x, bias: x)
def _add(x, bias):
    x, bias = alike(x, bias)  # here, so that devices add up their sums and not what these are made of
    return x + spread_p.bind(bias, places=x.shape[:-1])


@automatic(lambda x: x[-1:])
def _channel_sums(x):
    return sum_p.bind(x, members=0)


def spread_channels(values: Num[Array, " channels"], places: tuple[int, ...]) -> Num[Array, "*places channels"]:
    """The same numbers at every place; its transpose is `channel_sums`."""
    return spread_p.bind(values, places=places)


spread_p = Primitive("spread_channels")  # [*members, channels] -> [*members, *places, channels]
sum_p = Primitive("sum_channels")  # and back; `members` is how many axes of members there are


def _spread(bias, *, places):
    members = bias.ndim - 1
    axes = (*range(members), members + len(places))
    return lax.broadcast_in_dim(bias, (*bias.shape[:members], *places, bias.shape[-1]), axes)


def _sum(values, *, members):
    wide = values.astype(sum_dtype(values.dtype))
    return jnp.sum(wide, tuple(range(members, values.ndim - 1))).astype(values.dtype)


def _sum_for_cpu(values, *, members):
    """Products of ones with blocks of whole rows, then what is left: XLA is slow at a sum over the leading axes.

    Nothing is fused with it: the gradients behind a pool would be computed in the shape of the blocks, in loops that
    divide for every number's place.
    """
    shares = placement.shares(values.shape[members]) if values.ndim - 1 > members else 1
    if shares > 1:
        wide = values.astype(sum_dtype(values.dtype))
        lead, (images, *rest) = values.shape[:members], values.shape[members:]
        by_share = wide.reshape(*lead, shares, images // shares, *rest)
        return _sum(_sum_on_one(by_share, members=members + 1), members=members).astype(values.dtype)
    return _sum_on_one(values, members=members)


def _sum_on_one(values, *, members):
    count, channels = math.prod(values.shape[members:-1]), values.shape[-1]
    rows = max((size for size in range(1, ROWS_OF_PRODUCT + 1) if count % size == 0), default=1)
    if count * channels < SUMMED_AS_PRODUCT or rows < 8 or not jnp.issubdtype(values.dtype, jnp.floating):
        return _sum(values, members=members)
    return compiler.isolated(_sum_by_products)(values, members=members, rows=rows)


def _sum_by_products(values, *, members, rows):
    lead, channels = values.shape[:members], values.shape[-1]
    wide = values.astype(sum_dtype(values.dtype)).reshape(*lead, rows, -1)
    parts = jnp.ones((*lead, 1, rows), wide.dtype) @ wide
    return _sum(parts.reshape(*lead, -1, channels), members=members).astype(values.dtype)


@functools.cache
def _compiled(members: int):
    return compiler.eager(functools.partial(sum_p.bind, members=members))


def _evaluate_sum(values, *, members):
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # the compiled form would come back here
        return _sum(values, members=members)
    return _compiled(members)(values)


spread_p.def_impl(_spread)
sum_p.def_impl(_evaluate_sum)


@spread_p.def_abstract_eval
def _abstract_spread(bias, *, places):
    return placement.result(bias, (*bias.shape[:-1], *places, bias.shape[-1]), bias.dtype)


@sum_p.def_abstract_eval
def _abstract_sum(values, *, members):
    return placement.result(values, (*values.shape[:members], values.shape[-1]), values.dtype)


mlir.register_lowering(spread_p, placement.lowering(_spread))
mlir.register_lowering(sum_p, placement.lowering(_sum))
mlir.register_lowering(sum_p, compiler.cpu_lowering(_sum_for_cpu), platform="cpu")


def _transpose_spread(cotangent, bias, *, places):
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(bias.aval)]
    return [sum_p.bind(cotangent, members=bias.aval.ndim - 1)]


def _transpose_sum(cotangent, values, *, members):
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(values.aval)]
    return [spread_p.bind(cotangent, places=values.aval.shape[members:-1])]


ad.deflinear2(spread_p, _transpose_spread)
ad.deflinear2(sum_p, _transpose_sum)


def _batch_spread(operands, axes, *, places):
    return spread_p.bind(jnp.moveaxis(operands[0], axes[0], 0), places=places), 0


def _batch_sum(operands, axes, *, members):
    return sum_p.bind(jnp.moveaxis(operands[0], axes[0], 0), members=members + 1), 0


batching.primitive_batchers[spread_p] = _batch_spread
batching.primitive_batchers[sum_p] = _batch_sum
