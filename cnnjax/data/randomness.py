"""Where every random number on the device comes from: a key is a function of (seed, purpose, epoch, step).

No key is stored or passed along, so a resumed run draws what the uninterrupted one would have drawn.
"""

import enum

import jax
from jaxtyping import Array, Int, Key


class Purpose(enum.IntEnum):
    """What a random number is for. The values are part of every result: add, never renumber."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    STUDY = 4  # what a study of a trained network draws


def address(seed: int | Int[Array, ""], purpose: Purpose, *place: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key at this address: `address(seed, Purpose.ORDER, epoch)`, `address(seed, Purpose.DROPOUT, epoch, step)`.

    Args:
        seed: in [0, 2^31), may be traced.
        place: epoch, then step within it, as far as the purpose needs; each in [0, 2^32), may be traced.
    """
    # Named, so that JAX_DEFAULT_PRNG_IMPL does not change a result.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), int(purpose))
    for index in place:
        key = jax.random.fold_in(key, index)
    return key
