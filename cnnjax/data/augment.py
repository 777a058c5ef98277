"""Random changes of training images that keep the class: flip, shift, contrast, saturation, brightness, tint.

Every strength is a traced number, so one compilation serves all of them and `jax.vmap` can run over `Hyperparams`.
Images are float32 `[batch, height, width, channels]`, mean-subtracted, in the units of the network's input.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key

from cnnjax.config import Hyperparams
from cnnjax.explicit_axes import automatic


def augment(
    key: Key[Array, ""], images: Float32[Array, "batch height width channels"], hyper: Hyperparams
) -> Float32[Array, "batch height width channels"]:
    """Each image with its own random flip, shift and colours, in the order of the fields of `hyper`.

    What happens to an image depends on (key, its position in the batch) and on nothing else in the batch. With every
    strength 0 the images come back bit for bit (a negative zero may lose its sign).

    Args:
        hyper: the fields flip, shift, contrast, saturation, brightness, tint; the others are not read.

    Source: Krizhevsky et al. 2012, section 4.1 (shifts, flips, colour); the default strengths are a trial of our own.
    """
    return _augmented(images, key, hyper)


@automatic(lambda images, *_: images)
def _augmented(images: Array, key: Key[Array, ""], hyper: Hyperparams) -> Array:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(images)))
    return jax.vmap(_augment_image, in_axes=(0, 0, None))(keys, images, hyper)


def _augment_image(
    key: Key[Array, ""], image: Float32[Array, "height width channels"], hyper: Hyperparams
) -> Float32[Array, "height width channels"]:
    height, width, channels = image.shape
    draws = jax.random.uniform(key, (6 + channels,), jnp.float32)  # in [0, 1)
    flip, down, right, contrast, saturation, brightness = draws[:6]
    rows = _source_indices(height, down, hyper.shift)
    columns = _source_indices(width, right, hyper.shift)
    columns = jnp.where(flip < hyper.flip, width - 1 - columns, columns)
    image = image[rows][:, columns]

    image = image * (1 + hyper.contrast * _symmetric(contrast))
    if channels > 1:
        # Slices and not `image.mean(axis=-1)`: XLA is slow at a reduction over so short an axis.
        grey = sum(image[..., channel : channel + 1] for channel in range(channels)) / channels
        # x + (f - 1)(x - grey), not grey + f (x - grey): the second form rounds even if f is 1.
        image = image + hyper.saturation * _symmetric(saturation) * (image - grey)
    return image + hyper.brightness * _symmetric(brightness) + hyper.tint * _symmetric(draws[6:])


def _source_indices(size: int, draw: Float[Array, ""], shift: float | Float[Array, ""]) -> Array:
    """Where each row (or column) is read from after a shift by a whole number, uniform in [-shift, shift].

    A fraction of `shift` is dropped; places beyond the border read the border.
    """
    largest = jnp.floor(shift)
    steps = jnp.floor(draw * (2 * largest + 1)) - largest
    return jnp.clip(jnp.arange(size) - steps.astype(jnp.int32), 0, size - 1)


def _symmetric(draw: Float[Array, "..."]) -> Float[Array, "..."]:
    """U(0, 1) to U(-1, 1)."""
    return 2 * draw - 1
