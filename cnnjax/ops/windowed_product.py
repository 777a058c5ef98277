"""Convolution as one primitive whose derivatives are itself.

A convolution and its two gradients are the three faces of one trilinear form: with images x, kernel w and the output's
cotangent g,

    form(x, w, g) = sum over b, o, k, i, c of  x[b, o·stride + k·dilation - low, i] · w[k, i, c] · g[b, o, c].

Leave out one of the three and what remains is the array that the other two make: the *output* from (x, w), the
gradient for the *images* from (g, w), the gradient for the *kernel* from (x, g). Each face is bilinear and its
transposes are the other two faces, so derivatives of any order, in either mode, never leave this file; none of them
is ever written with dimension numbers or dilations that XLA:CPU has no library for.

Groups split the channels: the in channels in order into groups, the out channels in the same order.

Under `vmap`, members that have only images of their own are folded into the batch, members that have only a kernel
of their own into its out (or in) channels. Members with both are a primitive of their own, which knows where it runs:
on a CPU one member after another, elsewhere all at once, by the form that suits the face (`member_forms`). XLA's rule,
a grouped convolution, is slow on a CPU, and for gradients on a GPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from cnnjax.explicit_axes import Spec, automatic
from cnnjax.geometry import Pair, effective_window
from cnnjax.ops import compiler, convolution_forms, member_forms, placement
from cnnjax.ops.placement import Primitive
from cnnjax.ops.precision import sum_dtype

Face: TypeAlias = Literal["output", "images", "kernel"]


class Windows(NamedTuple):
    """The static part of a convolution, one entry a spatial dimension. `high` padding may be negative: rows unused."""

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[Pair, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(
            (size + low + high - effective_window(window, dilation)) // stride + 1
            for size, window, stride, (low, high), dilation in zip(*self[:5], strict=True)
        )


def _divided(lhs: Spec, rhs: Spec, *, face: Face, windows: Windows) -> Spec:
    """Batch and channels stay divided as they are; a window is not, nor are channels that groups put together."""
    undivided = (None,) * len(windows.window)
    out_channels, in_channels = rhs[-1], rhs[-2] if windows.groups == 1 else None
    if face == "kernel":
        return (*undivided, lhs[-1] if windows.groups == 1 else None, out_channels)
    return (lhs[0], *undivided, out_channels if face == "output" else in_channels)


@automatic(_divided)
def windowed_product(lhs: jax.Array, rhs: jax.Array, *, face: Face, windows: Windows) -> jax.Array:
    """One face of the form: (images, kernel) -> output, (output, kernel) -> images or (images, output) -> kernel."""
    return windowed_product_p.bind(lhs, rhs, face=face, windows=windows)


windowed_product_p = Primitive("windowed_product")
windowed_products_p = Primitive("windowed_products")  # of members: a leading axis on both operands and on the result


def _result_shape(lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...], face: Face, windows: Windows):
    if face == "output":
        return (lhs_shape[0], *windows.output, rhs_shape[-1])
    if face == "images":
        return (lhs_shape[0], *windows.spatial, rhs_shape[-2] * windows.groups)
    return (*windows.window, lhs_shape[-1] // windows.groups, rhs_shape[-1])


@windowed_product_p.def_abstract_eval
def _abstract(lhs, rhs, *, face: Face, windows: Windows):
    return placement.result(lhs, _result_shape(lhs.shape, rhs.shape, face, windows), lhs.dtype)


@windowed_products_p.def_abstract_eval
def _abstract_members(lhs, rhs, *, face: Face, windows: Windows):
    shape = _result_shape(lhs.shape[1:], rhs.shape[1:], face, windows)
    return placement.result(lhs, (lhs.shape[0], *shape), lhs.dtype)


# face -> the faces that give the left and the right operand's cotangent
_TRANSPOSES: dict[Face, tuple[Face, Face]] = {
    "output": ("images", "kernel"),
    "images": ("output", "kernel"),
    "kernel": ("images", "output"),
}


def _define(primitive: Primitive, form: Callable, form_for_cpu: Callable) -> None:
    """Evaluation, lowering and transposes. `form` is XLA's own, the right one on a GPU or TPU."""

    @functools.cache
    def compiled(face: Face, windows: Windows):
        return compiler.eager(functools.partial(primitive.bind, face=face, windows=windows))

    @primitive.def_impl
    def evaluate(lhs, rhs, *, face: Face, windows: Windows):
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # the compiled form would come back here
            return form(lhs, rhs, face=face, windows=windows)
        return compiled(face, windows)(lhs, rhs)

    def by_lhs(cotangent, lhs, rhs, *, face: Face, windows: Windows):
        # images face: (output, kernel); its output's cotangent is that of images, so the operands keep their places
        operands = {"output": (cotangent, rhs), "images": (cotangent, rhs), "kernel": (rhs, cotangent)}[face]
        return primitive.bind(*operands, face=_TRANSPOSES[face][0], windows=windows)

    def by_rhs(cotangent, lhs, rhs, *, face: Face, windows: Windows):
        operands = {"output": (lhs, cotangent), "images": (cotangent, lhs), "kernel": (lhs, cotangent)}[face]
        return primitive.bind(*operands, face=_TRANSPOSES[face][1], windows=windows)

    ad.defbilinear(primitive, by_lhs, by_rhs)
    mlir.register_lowering(primitive, placement.lowering(form))
    mlir.register_lowering(primitive, compiler.cpu_lowering(form_for_cpu), platform="cpu")


_define(windowed_product_p, convolution_forms.plain, convolution_forms.for_cpu)
_define(
    windowed_products_p,
    functools.partial(member_forms.together, convolution_forms.plain),
    functools.partial(member_forms.in_turn, convolution_forms.for_cpu),
)


def _batch_members(operands, axes, *, face: Face, windows: Windows):
    """More members of each member: all are members alike."""
    count = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    wide = sum_dtype(operands[0].dtype) if None in axes else operands[0].dtype  # a derivative by what is shared adds up

    def first(operand, axis):
        operand = operand.astype(wide)
        moved = (
            jnp.moveaxis(operand, axis, 0) if axis is not None else jnp.broadcast_to(operand, (count, *operand.shape))
        )
        return moved.reshape(-1, *moved.shape[2:])

    lhs, rhs = (first(operand, axis) for operand, axis in zip(operands, axes, strict=True))
    result = windowed_products_p.bind(lhs, rhs, face=face, windows=windows).astype(operands[0].dtype)
    return result.reshape(count, -1, *result.shape[1:]), 0


batching.primitive_batchers[windowed_products_p] = _batch_members


def _batch(operands, axes, *, face: Face, windows: Windows):
    lhs, rhs = operands
    lhs_axis, rhs_axis = axes
    lhs = lhs if lhs_axis is None else jnp.moveaxis(lhs, lhs_axis, 0)
    rhs = rhs if rhs_axis is None else jnp.moveaxis(rhs, rhs_axis, 0)
    product = functools.partial(windowed_product, face=face, windows=windows)
    if rhs_axis is None and face != "kernel":
        return _members_in_batch(product, lhs, rhs), 0
    if lhs_axis is not None and rhs_axis is not None:
        return windowed_products_p.bind(lhs, rhs, face=face, windows=windows), 0
    if windows.groups > 1:  # channels of a group must stay together, which folding would break
        return _one_shared(product, lhs, rhs, lhs_axis is None), 0
    if face == "output":  # members in the kernel's out channels
        return _unfold(product(lhs, _fold(rhs, -1)), rhs.shape[0], -1), 0
    if face == "images":  # members in the kernel's in channels
        return _unfold(product(lhs, _fold(rhs, -2)), rhs.shape[0], -1), 0
    if rhs_axis is None:  # members in the images' channels
        return _unfold(product(_fold(lhs, -1), rhs), lhs.shape[0], -2), 0
    return _unfold(product(lhs, _fold(rhs, -1)), rhs.shape[0], -1), 0


batching.primitive_batchers[windowed_product_p] = _batch


def _members_in_batch(product, lhs, rhs):
    folded = lhs.reshape(math.prod(lhs.shape[:2]), *lhs.shape[2:])
    result = product(folded, rhs)
    return result.reshape(*lhs.shape[:2], *result.shape[1:])


def _one_shared(product, lhs, rhs, lhs_is_shared: bool):
    # The derivative by what is shared adds up the members'.
    dtype = lhs.dtype
    lhs, rhs = lhs.astype(sum_dtype(dtype)), rhs.astype(sum_dtype(dtype))
    members = rhs if lhs_is_shared else lhs

    def one(member):
        return product(lhs, member) if lhs_is_shared else product(member, rhs)

    if members.shape[0] > member_forms.UNROLLED_MEMBERS:
        results = jax.lax.map(one, members)
    else:
        results = jnp.stack([one(members[member]) for member in range(members.shape[0])])
    return results.astype(dtype)


def _fold(array, axis: int):
    """[members, ..., n, ...] -> [..., members·n, ...], `axis` (negative) being that of n."""
    members, size = array.shape[0], array.shape[axis]
    array = jnp.moveaxis(array, 0, axis - 1)
    position = array.ndim + axis - 1
    return array.reshape(*array.shape[:position], members * size, *array.shape[position + 2 :])


def _unfold(array, members: int, axis: int):
    """The inverse of `_fold`."""
    position = array.ndim + axis
    shape = array.shape
    split = array.reshape(*shape[:position], members, shape[position] // members, *shape[position + 1 :])
    return jnp.moveaxis(split, position, 0)
