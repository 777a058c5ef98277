"""A sweep over a loop of your own: your state, your step, your numbers, one program for all members."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax import ops
from cnnjax.data.batches import Batch, epoch_order
from cnnjax.data.dataset import Split
from cnnjax.errors import InputError
from cnnjax.sweep.engine import member_mesh, over_members
from cnnjax.train.training import Progress


class Trained(NamedTuple):
    """All members; every leaf has a leading member axis."""

    states: Any  # at the end
    history: Any  # what the step has returned beside the state, [members, steps, ...]


def train_members(
    init: Callable[[Any], Any],
    step: Callable[[Any, Any, Batch], tuple[Any, Any]],
    hyper: Any,
    split: Split,
    *,
    batch_size: int,
    epochs: int,
    seed: int = 0,
    report: Progress | None = None,
) -> Trained:
    """Trains all members by one compiled program, each with its own numbers.

    All see the same batches in the same order, so that they differ in their numbers only. A member whose numbers become
    NaN harms no other. The members are divided evenly among as many devices as can be; on a CPU those of a device run
    one after another, an epoch each, elsewhere as a batch. Of one member alone the result is the same up to rounding.

    Args:
        init: the numbers of one member -> its state, any pytree of arrays. Called under `jax.vmap`.
        step: (the numbers of one member, its state, batch) -> (state, anything to be kept of the step, such as its
            loss); pure. Where `batch.mask` is 0 an image is padding and must not count. `train.step.make_train_step`
            makes such a step.
        hyper: the members' numbers, any pytree. A leaf with axes has the members first; a number is shared by all.
        split: images and labels, in memory; all of it is brought to the devices.
        batch_size: images of a step; an epoch's last batch is padded.
        epochs: times that each image is seen, >= 1.
        seed: of the order of the images.
        report: called with (description, epochs done, epochs).

    Raises:
        InputError: no leaf of `hyper` has a member axis, or two differ in its length; there are no images, or the
            batch size or the epochs are less than 1; the images are read by index.
    """
    axes, members = _member_axes(hyper)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("len(split)", len(split))):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not split.in_memory:
        raise InputError(f"split must have its images in memory, got {type(split.images).__name__}")
    order = ops.jit(lambda epoch: epoch_order(seed, epoch, len(split), batch_size))
    mesh = member_mesh(members)

    def epoch_of(hyper: Any, state: Any, images: Any, labels: Any, order: tuple[Any, Any]) -> tuple[Any, Any]:
        def one(state: Any, row: tuple[Any, Any]) -> tuple[Any, Any]:
            rows, mask = row
            new, kept = step(hyper, state, Batch(images[rows], labels[rows], mask))
            return ops.varying_with(new, state), kept

        return lax.scan(one, state, order)

    shared = (None, None, None)
    begin = ops.jit(over_members(init, (axes,), mesh), runs_once=True)
    program = ops.jit(over_members(ops.members_in_turn(epoch_of), (axes, 0, *shared), mesh), donate_argnums=1)
    hyper = jax.tree.map(jnp.asarray, hyper)
    states, images, labels = begin(hyper), jnp.asarray(split.images), jnp.asarray(split.labels)
    kept = []
    for epoch in range(epochs):
        states, of_epoch = program(hyper, states, images, labels, order(epoch))
        kept.append(of_epoch)
        if report is not None:
            jax.block_until_ready(states)
            report(f"{members} members", epoch + 1, epochs)
    return Trained(states, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *kept))


def _member_axes(hyper: Any) -> tuple[Any, int]:
    """0 for what differs between the members and None for what they share, in the form of `hyper`; and how many."""
    lengths = {
        jax.tree_util.keystr(path): len(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        if np.ndim(leaf)
    }
    if not lengths:
        raise InputError("hyper must have an array with an entry a member, got numbers only")
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        found = ", ".join(f"{length} at {path}" for path, length in lengths.items())
        raise InputError(f"hyper must have one entry a member in each of its arrays, got {found}")
    return jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, hyper), next(iter(lengths.values()))
