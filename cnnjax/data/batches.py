"""Equal-shaped batches: in order for a test, in the order of (seed, epoch) for a training."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, UInt8

from cnnjax.data.dataset import Split
from cnnjax.data.randomness import Purpose, address
from cnnjax.errors import InputError


class Batch(NamedTuple):
    """A batch; where `mask` is 0 the entry is padding, which stands behind the images, and must not count."""

    images: UInt8[np.ndarray | Array, "batch height width channels"]
    labels: Int32[np.ndarray | Array, " batch"]
    mask: Float32[np.ndarray | Array, " batch"]


def batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """The split in its own order, each image once; the last batch is padded, so that all have one shape.

    Raises:
        InputError: if `batch_size` is less than 1; at the call, not at the first batch.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return (_batch(split, start, batch_size) for start in range(0, len(split), batch_size))


def _batch(split: Split, start: int, batch_size: int) -> Batch:
    images, labels = split.images[start : start + batch_size], split.labels[start : start + batch_size]
    mask = np.ones(len(labels), np.float32)
    missing = batch_size - len(labels)
    if missing == 0:
        return Batch(images, labels, mask)
    return Batch(*(np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for part in (images, labels, mask)))


def in_order(
    n: int, batch_size: int
) -> tuple[Int32[np.ndarray, "steps batch_size"], Float32[np.ndarray, "steps batch_size"]]:
    """As `epoch_order`, with 0..n-1 as they are; padded with the last index."""
    rows = np.arange(math.ceil(n / batch_size) * batch_size, dtype=np.int32).reshape(-1, batch_size)
    return np.minimum(rows, n - 1), (rows < n).astype(np.float32)


def epoch_order(
    seed: int | Int[Array, ""], epoch: int | Int[Array, ""], n: int, batch_size: int
) -> tuple[Int32[Array, "steps batch_size"], Float32[Array, "steps batch_size"]]:
    """Which image stands where in one epoch: a permutation of 0..n-1 in rows of a batch each.

    A pure function, jittable with `n` and `batch_size` static; `seed` and `epoch` may be traced. The last row is padded
    with index 0 and mask 0.

    Raises:
        InputError: if `n` or `batch_size` is less than 1.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    steps = math.ceil(n / batch_size)
    order = jax.random.permutation(address(seed, Purpose.ORDER, epoch), n).astype(jnp.int32)
    shape = (steps, batch_size)
    # Computed: a program would hold an array that is there when it is compiled.
    mask = (jnp.arange(steps * batch_size) < n).astype(jnp.float32)
    return jnp.pad(order, (0, steps * batch_size - n)).reshape(shape), mask.reshape(shape)
