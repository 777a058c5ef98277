"""How the convolutions of many members can run in one program: the forms from which the batching rule may choose.

Each form stands in for the project's own rule where both operands have a member axis, so that whole trainings can be
measured by it. What is shared by the members (the first layer's images) is left to the project's rule.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import batching

from cnnjax import ops
from cnnjax.ops import convolution_forms
from cnnjax.ops.member_forms import patches
from cnnjax.ops.windowed_product import _batch, windowed_product, windowed_product_p


def grouped(lhs, rhs, *, face, windows):
    """What `vmap` makes of XLA's own convolution: one with a group a member."""
    return jax.vmap(functools.partial(convolution_forms.plain, face=face, windows=windows))(lhs, rhs)


def unrolled(lhs, rhs, *, face, windows):
    """One convolution after another, each written out in the program."""
    product = functools.partial(windowed_product, face=face, windows=windows)
    return jnp.stack([product(lhs[member], rhs[member]) for member in range(lhs.shape[0])])


def folded(lhs, rhs, *, face, windows, pixels):
    """One matrix product with a batch of members, of the windows' pixels side by side (im2col)."""
    if windows.groups != 1:
        return grouped(lhs, rhs, face=face, windows=windows)
    members = lhs.shape[0]
    rows = jax.vmap(functools.partial(pixels, windows=windows))  # -> [members, batch·output, window·channels]
    if face == "output":
        product = rows(lhs) @ rhs.reshape(members, -1, rhs.shape[-1])
        return product.reshape(members, lhs.shape[1], *windows.output, rhs.shape[-1])
    if face == "kernel":
        product = rows(lhs).swapaxes(1, 2) @ rhs.reshape(members, -1, rhs.shape[-1])
        return product.reshape(members, *windows.window, lhs.shape[-1], rhs.shape[-1])
    kernel = rhs.reshape(members, -1, rhs.shape[-1])
    products = lhs.reshape(members, -1, lhs.shape[-1]) @ kernel.swapaxes(1, 2)
    images = jax.ShapeDtypeStruct((members, lhs.shape[1], *windows.spatial, rhs.shape[-2]), lhs.dtype)
    return jax.linear_transpose(rows, images)(products)[0]


def patches_by_convolution(images, windows):
    """XLA's own way to take patches, a convolution with ones and zeros."""
    letters = "DHW"[-len(windows.window) :]
    found = lax.conv_general_dilated_patches(
        images, windows.window, windows.strides, windows.padding, rhs_dilation=windows.dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"), precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    by_channel = found.reshape(*found.shape[:-1], images.shape[-1], math.prod(windows.window))
    return by_channel.swapaxes(-1, -2).reshape(-1, found.shape[-1])


# "mapped" is no rule of the convolution: the members' whole trainings run one after another
FORMS: dict[str, Callable | None] = {
    "mapped": None,
    "unrolled": unrolled,
    "grouped": grouped,
    "folded": functools.partial(folded, pixels=patches_by_convolution),
    "folded slices": functools.partial(folded, pixels=patches),
}


@contextlib.contextmanager
def chosen(form: str) -> Iterator[None]:
    """Programs that are made and traced inside take `form` wherever both operands of a convolution have members."""
    rule = FORMS[form]

    def batched(operands, axes, *, face, windows):
        if rule is None or None in axes:
            return _batch(operands, axes, face=face, windows=windows)
        lhs, rhs = (jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes, strict=True))
        return rule(lhs, rhs, face=face, windows=windows), 0

    batching.primitive_batchers[windowed_product_p] = batched
    try:  # without `members_in_turn` a CPU batches too
        with mock.patch.object(ops, "members_in_turn", lambda function: function):
            yield
    finally:
        batching.primitive_batchers[windowed_product_p] = _batch


def together(form: str, function: Callable, axes: tuple, members: int) -> Callable[..., Any]:
    """`function` of all members: `jax.vmap`, or one after another in a loop."""
    if form != "mapped":
        return jax.vmap(function, in_axes=axes)

    def one_after_another(*args):
        def one(member):
            def own(axis, part):
                return part if axis is None else jax.tree.map(lambda leaf: leaf[member], part)

            return function(*jax.tree.map(own, axes, args, is_leaf=lambda axis: axis is None))

        return lax.map(one, jnp.arange(members))

    return one_after_another
