"""What lets a function of arrays run on a mesh with *Explicit* axes, which `jax.make_mesh` makes.

There JAX's types say over which mesh axes an array is divided, and many operations refuse to guess how their result is.
A function that is `automatic` says how its result is divided, and leaves to XLA how to get there, as on a mesh with
Auto axes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, auto_axes

Spec = tuple[Any, ...]  # for each axis of an array: the mesh axes over which it is divided, None for none


def automatic(divided: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of arrays, or of trees of them, and of keywords that are none, one of Explicit axes too.

    Args:
        divided: (specs of the arrays, as tuples; keywords) -> spec of the result, as a tuple; of several a list.
            Of mesh axes that it names twice the second is left out.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def placed(*operands, **keywords):
            meshes = [jax.typeof(array).sharding.mesh for array in jax.tree.leaves(operands)]
            mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
            if mesh is None:
                return function(*operands, **keywords)
            operands = jax.tree.map(jnp.asarray, operands)
            specs = divided(*jax.tree.map(_spec, operands), **keywords)
            shardings = [NamedSharding(mesh, _once(spec)) for spec in (specs if isinstance(specs, list) else [specs])]

            def flat(*operands):
                return jax.tree.leaves(function(*operands, **keywords))

            results: Any = auto_axes(flat, axes=mesh.explicit_axes, out_sharding=shardings)(*operands)
            return tuple(results) if isinstance(specs, list) else results[0]

        return placed

    return decorate


def _spec(array: jax.Array) -> Spec:
    return (*jax.typeof(array).sharding.spec, *[None] * array.ndim)[: array.ndim]


def _once(spec: Spec) -> PartitionSpec:
    """The spec, without mesh axes that are named before."""
    named, entries = set(), []
    for entry in spec:
        axes = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        entries.append(tuple(axis for axis in axes if axis not in named) or None)
        named.update(axes)
    return PartitionSpec(*entries)
