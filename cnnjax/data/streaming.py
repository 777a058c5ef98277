"""Batches of the next steps, read and decoded by Grain's threads while the last ones are worked on.

The order is not Grain's: which image stands where is said by whoever asks, so that it stays a pure function of (seed,
epoch), and the position in it one integer.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from cnnjax.data.batches import Batch
from cnnjax.data.dataset import ImagesByIndex, Split
from cnnjax.data.randomness import Purpose
from cnnjax.data.splits import random_state
from cnnjax.errors import InputError

_BLOCK_BYTES = 1 << 21  # of decoded images that a thread makes at a time


class Step(NamedTuple):
    """The images of one step, by their rows in the split; -1 is padding."""

    rows: Int32[np.ndarray, " batch"]  # of the global batch
    epoch: int = 0  # with `step` the address of the random crops
    step: int = 0


@runtime_checkable
class Steps(Protocol):
    """The steps to come: a list, or what works each out when it is asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Step: ...


class _Block(NamedTuple):
    step: int  # index into the steps
    part: slice  # of this process's share of the batch


def stream(
    split: Split,
    steps: Steps,
    *,
    seed: int = 0,
    training: bool = True,
    columns: slice = slice(None),
    threads: int | None = None,
    ahead: int = 2,
) -> Iterator[Batch]:
    """One batch a step, in the order of `steps`; padding comes out as zeros with label 0 and mask 0.

    How an image is cut at random depends on (seed, epoch, step, its place in the global batch) and on nothing else, so
    neither the number of threads nor that of processes changes a bit. The threads end with the iterator or the process.

    Args:
        steps: an item is asked for when its turn comes, more than once and from several threads.
        training: images are cut at random where the split has that; else all as in evaluation.
        columns: this process's share of each batch.
        threads: that read and decode; None: one a usable core.
        ahead: batches that are made ahead.

    Raises:
        InputError: at the call, if `threads` or `ahead` is less than 1; from the iterator, whatever reading raises.
    """
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    for name, value in (("threads", threads), ("ahead", ahead)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    return _batches(split, steps, seed, training, columns, threads, ahead)


def _batches(
    split: Split, steps: Steps, seed: int, training: bool, columns: slice, threads: int, ahead: int
) -> Iterator[Batch]:
    import grain  # pyright: ignore[reportMissingImports]

    if not len(steps):
        return
    share = len(steps[0].rows[columns])
    length = max(1, _BLOCK_BYTES // int(np.prod(split.image_shape)))
    parts = [slice(start, min(start + length, share)) for start in range(0, share, length)]

    def block(which: _Block) -> tuple[np.ndarray, np.ndarray]:
        return _read(split, steps[which.step], seed, training, columns, which.part)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead * len(parts)))
    blocks = iter(grain.MapDataset.source(_Blocks(len(steps), parts)).map(block).to_iter_dataset(options))
    try:
        for step in range(len(steps)):
            images, labels = np.empty((share, *split.image_shape), np.uint8), np.empty(share, np.int32)
            for part in parts:
                images[part], labels[part] = next(blocks)
            yield Batch(images, labels, (steps[step].rows[columns] >= 0).astype(np.float32))
    finally:
        blocks.close()


class _Blocks:
    """A source of Grain's: every part of every step."""

    def __init__(self, steps: int, parts: list[slice]):
        self._steps, self._parts = steps, parts

    def __len__(self) -> int:
        return self._steps * len(self._parts)

    def __getitem__(self, index: int) -> _Block:
        step, part = divmod(index, len(self._parts))
        return _Block(step, self._parts[part])


def _read(
    split: Split, step: Step, seed: int, training: bool, columns: slice, part: slice
) -> tuple[np.ndarray, np.ndarray]:
    rows = step.rows[columns][part]
    counts = rows >= 0
    images, labels = np.zeros((len(rows), *split.image_shape), np.uint8), np.zeros(len(rows), np.int32)
    source = split.images
    if training and isinstance(source, ImagesByIndex) and source.num_draws:
        address = random_state(seed, Purpose.CROP, step.epoch, step.step)
        draws = address.random_sample((len(step.rows), source.num_draws))[columns][part]
        images[counts], labels[counts] = source.read(rows[counts], draws[counts]), split.labels[rows[counts]]
    else:
        images[counts], labels[counts] = split.__getitems__(rows[counts])
    return images, labels
