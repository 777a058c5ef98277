"""Images of many rows, read and decoded by Grain's threads.

Which rows, and in which order, is said by whoever asks: it is a pure function of (seed, epoch), and not Grain's.
"""

import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

BLOCK_BYTES = 1 << 21  # of decoded images that a thread makes at a time

Read = Callable[..., UInt8[np.ndarray, "k height width channels"]]  # (rows, draws)


def in_threads(
    read: Read,
    rows: Int[np.ndarray, " k"],
    draws: Float[np.ndarray, "k num_draws"] | None,
    image_shape: tuple[int, int, int],
    threads: int | None = None,
) -> UInt8[np.ndarray, "k height width channels"]:
    """What `read(rows, draws)` gives, in blocks that several threads read at a time; a single block is read as it is.

    The threads end with the call, or with the process.

    Args:
        threads: None: one a usable core.

    Raises:
        InputError: whatever `read` raises.
    """
    length = max(1, BLOCK_BYTES // int(np.prod(image_shape)))
    if len(rows) <= length:
        return read(rows, draws)
    import grain

    blocks = [slice(start, start + length) for start in range(0, len(rows), length)]

    def block(part: slice) -> np.ndarray:
        return read(rows[part], None if draws is None else draws[part])

    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    found = iter(grain.MapDataset.source(blocks).map(block).to_iter_dataset(options))
    images = np.empty((len(rows), *image_shape), np.uint8)
    try:
        for part in blocks:
            images[part] = next(found)
    finally:
        found.close()
    return images
