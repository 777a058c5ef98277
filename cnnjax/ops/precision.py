"""The type in which sums are added up."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def sum_dtype(dtype: DTypeLike) -> jnp.dtype:
    """float32 for the floating-point types narrower than that, else the type itself.

    A sum in bfloat16 stands still at 256 ones, and one in float16 is infinite beyond 65504. XLA adds up in float32
    within one product or one reduction, but not across what is written as several additions.
    """
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32 if narrow else dtype)
