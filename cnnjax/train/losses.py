"""Losses: one number an example, the mean left to the caller."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Loss = Callable[[Float[Array, "batch classes"], Int[Array, " batch"], Float[Array, ""] | float], Float[Array, " batch"]]


def targets(
    labels: Int[Array, " batch"], num_classes: int, label_smoothing: float | Float[Array, ""]
) -> Float[Array, "batch classes"]:
    """1 at the label and 0 elsewhere, mixed with the uniform distribution by `label_smoothing` in [0, 1]."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], label_smoothing: float | Float[Array, ""] = 0.0
) -> Float[Array, " batch"]:
    """-sum target * log softmax(logits), in nats (Zeiler & Fergus 2014, section 3)."""
    return optax.softmax_cross_entropy(logits, targets(labels, logits.shape[-1], label_smoothing))


def squared_error(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], label_smoothing: float | Float[Array, ""] = 0.0
) -> Float[Array, " batch"]:
    """The lecture's total error: sum over classes of (target - output)^2 / 2, output = softmax(logits)."""
    difference = targets(labels, logits.shape[-1], label_smoothing) - jax.nn.softmax(logits)
    return 0.5 * jnp.sum(difference**2, axis=-1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
