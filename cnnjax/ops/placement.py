"""Where arrays lie: what lets the operations here run on any mesh of devices.

JAX's types say two things of it. On a mesh with *Explicit* axes they say over which axes an array is divided; inside
`jax.shard_map` over which (*Manual*) axes it differs from device to device, it *varies*. On a mesh with *Auto* axes
they say nothing, and XLA's partitioner finds out.

So all primitives of this project are of the class below, which knows of varying axes, and are lowered by `lowering`,
since inside a form there is nothing to be said of either. What is called from outside is `automatic`
(`cnnjax.explicit_axes`), so that no primitive meets an Explicit axis.
"""

import contextvars
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import core, lax
from jax.extend import core as extended
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh


class Primitive(extended.Primitive):
    """A primitive whose operands are made to vary alike, as JAX's own are."""

    def bind(self, *operands, **params):
        return super().bind(*alike(*operands), **params)


def alike(*operands: Any) -> tuple[Any, ...]:
    """The operands, each made varying over the axes of `jax.shard_map` over which any of them varies."""
    every = frozenset().union(*map(_varying, operands))
    return tuple(_made_varying(operand, every) for operand in operands) if every else operands


def varying_with(tree: Any, others: Any) -> Any:
    """The arrays of `tree`, made varying over the axes of `jax.shard_map` over which any of `others` varies.

    For what a loop begins with: it must vary as what comes out of the loop.
    """
    every = frozenset().union(*map(_varying, jax.tree.leaves(others)))
    return jax.tree.map(lambda leaf: _made_varying(leaf, every), tree)


def _varying(array: Any) -> frozenset[Any]:
    return jax.typeof(array).manual_axis_type.varying


def _made_varying(array: Any, axes: frozenset[Any]) -> Any:
    missing = axes - _varying(array)
    return lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def result(operand: core.ShapedArray, shape: tuple[int, ...], dtype: Any) -> core.ShapedArray:
    """The type of a primitive's result: it varies as `operand` does."""
    mesh = operand.sharding.mesh
    if mesh.empty:
        return core.ShapedArray(shape, dtype)
    undivided = NamedSharding(mesh, PartitionSpec(*[None] * len(shape)))
    return core.ShapedArray(shape, dtype, sharding=undivided, manual_axis_type=operand.manual_axis_type)


def lowering(form: Callable[..., Any], *, multiple_results: bool = False) -> Callable[..., Any]:
    """How a primitive becomes `form`, whatever mesh the program is for: `form` is written for one device."""
    lower = mlir.lower_fun(form, multiple_results=multiple_results)

    def rule(context, *operands, **params):
        token = _divided_over.set(_devices(context.module_context.axis_context))
        try:
            if all(operand.sharding.mesh.empty for operand in context.avals_in):
                return lower(context, *operands, **params)
            plain = [core.ShapedArray(operand.shape, operand.dtype) for operand in context.avals_in]
            with use_abstract_mesh(AbstractMesh((), ())):
                return lower(context.replace(avals_in=plain), *operands, **params)
        finally:
            _divided_over.reset(token)

    return rule


_divided_over = contextvars.ContextVar("_divided_over", default=1)


def _devices(axes: Any) -> int:
    """Over how many devices XLA divides the program that is lowered: those of axes that are not Manual."""
    if isinstance(axes, mlir.SPMDAxisContext):
        return math.prod(size for name, size in axes.mesh.shape.items() if name not in axes.manual_axes)
    return axes.num_devices


def shares(batch: int) -> int:
    """Into how many parts of one length XLA may divide so many examples in the program that is lowered now.

    A form that goes through the batch piece by piece takes a piece of every share at once: pieces that lie on one
    device would have to be sent to all others.
    """
    return math.gcd(batch, _divided_over.get()) if batch else 1
