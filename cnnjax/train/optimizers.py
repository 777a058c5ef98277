"""Optimizers: optax transformations built inside the traced step, so that every number in them may be traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from cnnjax.config import Hyperparams, TrainConfig
from cnnjax.models.building import dotted, is_of

# Share of the full learning rate, by position in the training (0 at the start, 1 at the end).
SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda position: 0.5 * (1 + jnp.cos(jnp.pi * position)),
    "steps": lambda position: jnp.where(position < 0.5, 1.0, jnp.where(position < 0.75, 0.1, 0.01)),
}


def learning_rate(
    config: TrainConfig, base: float | Float[Array, ""], step: Array, steps_per_epoch: int
) -> Float[Array, ""]:
    """The rate at `step` (from 0): `base` times the schedule, rising linearly over the warm-up."""
    position = step / (config.epochs * steps_per_epoch)
    rate = base * SCHEDULES[config.schedule](position)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return rate * jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else rate


def make_optimizer(
    config: TrainConfig, hyper: Hyperparams, rate: Float[Array, ""], taken: bool | Bool[Array, ""] = True
) -> optax.GradientTransformation:
    """The whole update: weight decay, momentum or Adam, learning rate, filter renormalization.

    "sgd" adds the decay to the gradient (as Krizhevsky et al. 2012 did), "adamw" to the update (Loshchilov & Hutter
    2019). Biases and norms are not decayed. Where the step is not `taken` the state stays as it is.
    """
    decay = optax.add_decayed_weights(hyper.weight_decay, mask=kernels)
    core = {
        "sgd": lambda: [decay, momentum(hyper.momentum, taken)],  # pyright: ignore[reportArgumentType]
        "adamw": lambda: [_where(taken, optax.scale_by_adam(b1=hyper.momentum)), decay],  # pyright: ignore[reportArgumentType]
    }[config.optimizer]()
    return optax.chain(*core, optax.scale(-rate), renormalize_filters(hyper.filter_rms))  # pyright: ignore[reportArgumentType]


def momentum(decay: float | Float[Array, ""], taken: bool | Bool[Array, ""]) -> optax.GradientTransformation:
    """As `optax.trace`; where the step is not taken its state stays as it is.

    The update waits for the state: computed from the old one beside the new one, it would keep XLA from writing the new
    one in its place, and of a large layer the copy of the old one takes longer than its gradient.
    """

    def update(updates, state, params=None):
        new = jax.tree.map(lambda change, old: jnp.where(taken, change + decay * old, old), updates, state.trace)
        return lax.optimization_barrier(new), optax.TraceState(trace=new)

    return optax.GradientTransformation(optax.trace(0.0).init, update)


def _where(taken: bool | Bool[Array, ""], optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer; where the step is not taken its state stays as it is."""

    def update(updates, state, params=None):
        updates, new = optimizer.update(updates, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(taken, new, old), new, state)

    return optax.GradientTransformation(optimizer.init, update)


def kernels(params: Any) -> Any:
    """True at each leaf that is a kernel.

    It is called "kernel", as in Flax, or "weight", as in Equinox, and has at least two axes; a weight that has the
    shape of the "bias" beside it is none, but scales value by value, as a LayerNorm's does.
    """
    shapes = {dotted(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def is_kernel(path, leaf) -> bool:
        layer, _, name = dotted(path).rpartition(".")
        scales = shapes.get(f"{layer}.bias") == jnp.shape(leaf)
        return name in _OUT_AXES and jnp.ndim(leaf) > 1 and not scales

    return jax.tree_util.tree_map_with_path(is_kernel, params)


# By the name of a kernel, the axis of its out channels: Flax's [*window, in, out], Equinox's [out, in, *window].
_OUT_AXES = {"kernel": -1, "weight": 0}


def _out_axis(path: tuple) -> int:
    return _OUT_AXES[dotted(path).rpartition(".")[2]]


def clip_filter_rms(
    kernel: Float[Array, "*window in_channels out_channels"], radius: float | Float[Array, ""]
) -> Float[Array, "*window in_channels out_channels"]:
    """Every filter whose RMS exceeds `radius`, scaled back to that radius; the others, all-zero ones too, unchanged.

    A filter is all weights of one output channel. Source: Zeiler & Fergus 2014, section 3 (radius 10^-1).
    """
    rms = jnp.sqrt(jnp.mean(kernel**2, axis=tuple(range(kernel.ndim - 1)), keepdims=True))
    return jnp.where(rms > radius, kernel * (radius / rms), kernel)


def scaled_at_first(params: Any, radius: float, frozen: tuple[str, ...] = ()) -> str | None:
    """A sentence on the convolutions whose initial filters exceed the radius, as He's do where they see few inputs.

    None where there are none that are not frozen. The first update brings such filters onto the radius, whatever the
    gradient.
    """
    found = []
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), is_kernel in zip(leaves, jax.tree.leaves(kernels(params)), strict=True):
        layer, _, _ = dotted(path).rpartition(".")
        if is_kernel and leaf.ndim > 2 and not is_of(layer, frozen):
            kernel = np.moveaxis(np.asarray(leaf), _out_axis(path), -1)
            rms = np.sqrt(np.mean(np.square(kernel), axis=tuple(range(kernel.ndim - 1)))).max()
            if rms > 1.0001 * radius:  # those that were brought onto it differ by rounding
                found.append(f"{layer} (RMS up to {rms:.3g})")
    if not found:
        return None
    layers = ", ".join(found)
    return f"the first step scales filters down to hyper.filter_rms {radius:g}, above which they start: {layers}"


def renormalize_filters(radius: float | Float[Array, ""]) -> optax.GradientTransformation:
    """Changes the update so that every filter of a convolution ends with an RMS of at most `radius`.

    Dense kernels (two axes) and everything that is no kernel pass unchanged. Goes last in a chain, because it looks
    at the parameters as they will be. Source: Zeiler & Fergus 2014, section 3.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("renormalize_filters: params are needed by update, got None")

        def clip(path, change, old, is_kernel):
            if not (is_kernel and old.ndim > 2):
                return change
            new, axis = old + change, _out_axis(path)
            clipped = jnp.moveaxis(clip_filter_rms(jnp.moveaxis(new, axis, -1), radius), -1, axis)
            return jnp.where(clipped == new, change, clipped - old)  # filters inside keep their update to the bit

        return jax.tree_util.tree_map_with_path(clip, updates, params, kernels(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
