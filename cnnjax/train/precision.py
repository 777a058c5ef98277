"""The type in which a network computes, while its parameters, its statistics and the loss stay in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.config import Precision


def in_precision(apply: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    """The network's `apply`, with its parameters and images rounded to `precision`, and the logits in float32 again.

    Gradients come back through the rounding in float32. The statistics of a batch normalization, and what is added up
    in a convolution, are float32 throughout. With "float32" it is `apply` itself.
    """
    if precision == "float32":
        return apply
    dtype = jnp.dtype(precision)

    def rounded(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    def applied(variables: dict[str, Any], images: jax.Array, **kwargs: Any) -> Any:
        output = apply(variables | {"params": rounded(variables["params"])}, rounded(images), **kwargs)
        return (_widened(output[0]), output[1]) if kwargs.get("mutable") else _widened(output)

    return applied


def _widened(output: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
    logits, feature_maps = output
    return logits.astype(jnp.float32), feature_maps
