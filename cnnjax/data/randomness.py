"""Where every random number on the device comes from: a key is a function of (seed, purpose, epoch, step).

No key is stored or passed along, so a resumed run draws what the uninterrupted one would have drawn.
"""

import enum
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl
from jaxtyping import Array, Int, Key

from cnnjax.config import check_seed


class Purpose(enum.IntEnum):
    """What a random number is for. The values are part of every result: add, never renumber."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    STUDY = 4  # what a study of a trained network draws
    CROP = 5  # where images that are read from disk are cut


def _partitionable(draw: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(draw)
    def drawn(*args: Any) -> Any:
        with jax.threefry_partitionable(True):
            return draw(*args)

    return drawn


def _random_bits(key: Any, bit_width: int, shape: tuple[int, ...]) -> Any:
    return _flat_bits(bit_width, math.prod(shape))(key).reshape(shape)


@functools.cache
def _flat_bits(bit_width: int, size: int) -> Callable[[Any], Any]:
    """Returns the bits [size] of a key, hashed in one dimension, under `jax.vmap` over keys too.

    Each bit depends on its flat index alone, and XLA takes several times as long to compile hashes in more dimensions.
    """

    @_partitionable
    def bits(key: Any) -> Any:
        return threefry_prng_impl.random_bits(key, bit_width, (size,))

    def of_keys(count: int, _: Any, keys: Any) -> tuple[Any, bool]:
        if bit_width != 32:
            return jax.vmap(bits)(keys), True
        which, index = jnp.divmod(jnp.arange(count * size, dtype=jnp.uint32), jnp.uint32(max(size, 1)))
        first, second = (words[which] for words in keys.T)
        one, other = threefry2x32_p.bind(first, second, jnp.zeros_like(index), index)
        return (one ^ other).reshape(count, size), True

    flat = jax.custom_batching.custom_vmap(bits)
    flat.def_vmap(of_keys)
    return flat


# JAX's own Threefry (Salmon et al. 2011) as it is by default, in a key of its own kind: what is drawn from such a key
# is the same whatever jax_threefry_partitionable and jax_default_prng_impl say. Draws say their type, because
# jax_enable_x64 changes the default one.
_THREEFRY = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=_partitionable(threefry_prng_impl.split),
    random_bits=_random_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="threefry2x32, partitionable",
    tag="address",
)


def address(seed: int | Int[Array, ""], purpose: Purpose, *place: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key at this address: `address(seed, Purpose.ORDER, epoch)`, `address(seed, Purpose.DROPOUT, epoch, step)`.

    Args:
        seed: in [0, 2^31), may be traced.
        place: epoch, then step within it, as far as the purpose needs; each in [0, 2^32), may be traced.

    Raises:
        InputError: a seed that is out of range, where its value is known.
    """
    if isinstance(seed, int | np.integer):
        check_seed("seed", int(seed))
    # The words of `jax.random.key(seed)`, but for jax_random_seed_offset.
    words = jnp.stack([jnp.uint32(0), jnp.asarray(seed).astype(jnp.uint32)])
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl=_THREEFRY), int(purpose))
    for index in place:
        key = jax.random.fold_in(key, index)
    return key
