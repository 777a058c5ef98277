"""The fully connected layer and its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray

from cnnjax.errors import InputError
from cnnjax.explicit_axes import automatic
from cnnjax.ops.bias import add_bias


def dense(
    x: Num[Array | np.ndarray, "*batch in_features"],
    kernel: Num[Array | np.ndarray, "in_features out_features"],
    bias: Num[Array | np.ndarray, " out_features"] | None = None,
) -> Num[Array, "*batch out_features"]:
    """x · kernel + bias, over the last axis of x.

    Raises:
        InputError: features or types disagree.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if x.ndim < 1 or kernel.ndim != 2 or x.shape[-1] != kernel.shape[0]:
        raise InputError(
            f"kernel must be [in_features, out_features] with the in_features of x (shape {x.shape}), "
            f"got shape {kernel.shape}"
        )
    if bias is not None and jnp.shape(bias) != kernel.shape[1:]:
        raise InputError(f"bias must have one entry for each out feature ({kernel.shape[1]}), got {jnp.shape(bias)}")
    if x.dtype != kernel.dtype:
        raise InputError(f"kernel must have the type of x ({x.dtype}), got {kernel.dtype}")
    product = _product(x, kernel)
    return product if bias is None else add_bias(product, jnp.asarray(bias))


@automatic(lambda x, kernel: (*x[:-1], kernel[-1]))
def _product(x, kernel):
    return x @ kernel


def dropout(
    key: PRNGKeyArray, x: Float[Array | np.ndarray, "*shape"], drop_rate: float | Float[Array | np.ndarray, ""]
) -> Float[Array, "*shape"]:
    """Sets each entry to zero with probability `drop_rate` and divides the others by 1 - drop_rate.

    `drop_rate` may be traced; it must lie in [0, 1), which the config checks. At 0 the result is exactly `x`.

    Source: Srivastava et al. 2014; scaled in training, so that testing needs no scaling.
    """
    return _dropout(jnp.asarray(x), key, jnp.asarray(drop_rate, jnp.float32))


@automatic(lambda x, key, drop_rate: x)
def _dropout(x, key, drop_rate):
    keep = jax.random.uniform(key, x.shape, jnp.float32) >= drop_rate
    scale = jnp.asarray(1 / (1 - drop_rate), x.dtype)
    return jnp.where(keep, x * scale, 0)
