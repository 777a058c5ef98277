"""Images that excite a unit as much as their contrast allows (Erhan et al. 2009; Olah et al. 2017).

The image is a random spectrum that is moved uphill, with amplitudes scaled by 1/frequency as in natural images, so
that large shapes grow as fast as single pixels; and what the network sees is a window of it that jumps by a few pixels
from step to step, so that nothing grows that only works at one place. Instead of Olah et al.'s sigmoid, the contrast
of the image is held: of all images of this RMS the most exciting one is asked for, which for a linear unit is its
filter.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from cnnjax.errors import InputError


class Maximum(NamedTuple):
    """What was found for each key."""

    images: Float[Array, "batch height width channels"]  # the network's input
    values: Float[Array, " batch"]  # of the objective at these images
    history: Float[Array, "steps batch"]  # of the objective on the way, at the shifted windows


def maximize(
    objective: Callable[[Array], Any],
    keys: Key[Array, " batch"],
    shape: tuple[int, int, int],
    *,
    rms: float | Float[Array | np.ndarray, " batch"] = 1.0,
    steps: int = 128,
    rate: float = 0.05,
    jitter: int = 4,
    decay: float = 1.0,
    colours: Float[np.ndarray, "channels channels"] | None = None,
) -> Maximum:
    """One image a key that the objective likes best, out of those of this RMS.

    Args:
        objective: from images [batch, height, width, channels] to a number an image, e.g. one unit's activation
            *before* a ReLU, or its gradient is zero where the unit starts dead.
        shape: height, width and channels of an image.
        rms: root mean square of the images, in the network's input; one for all or one an image.
        rate: of Adam, on the coefficients of the spectrum, which start from N(0, 1).
        jitter: largest shift in pixels to either side, a different one at each step.
        decay: exponent of 1/frequency; 0 for pixels that grow independently.
        colours: directions of colour, in rows, by which the channels of the spectrum are mixed; see
            `colour_directions`. None: the channels are independent.

    Source: Olah et al. 2017, "Feature Visualization", on transformation robustness and preconditioning.
    """
    is_known = not isinstance(rms, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
    if steps < 1 or jitter < 0 or (is_known and not np.all(np.asarray(rms) > 0)):
        raise InputError(f"steps must be >= 1, jitter >= 0 and rms > 0, got {steps}, {jitter} and {rms}")
    height, width, channels = shape
    canvas = (height + 2 * jitter, width + 2 * jitter)
    frequency = np.hypot(np.fft.fftfreq(canvas[0])[:, None], np.fft.rfftfreq(canvas[1])[None])
    # The lowest frequencies that the image has bound the scale, as there is no amplitude for frequency 0.
    scale = jnp.asarray(np.maximum(frequency, 1 / max(canvas)) ** -decay, jnp.float32)[:, :, None]
    mix = jnp.eye(channels, dtype=jnp.float32) if colours is None else jnp.asarray(colours, jnp.float32)
    optimizer = optax.adam(rate)

    def picture(spectrum, shift, rms):
        pixels = jnp.fft.irfft2(scale * jax.lax.complex(*spectrum), canvas, axes=(0, 1)) @ mix
        seen = jax.lax.dynamic_slice(pixels, (*shift, jnp.int32(0)), shape)
        return seen * rms / jnp.sqrt(jnp.mean(seen**2))

    rms_of_each = jnp.broadcast_to(jnp.asarray(rms, jnp.float32), keys.shape)
    middle = jnp.full((keys.shape[0], 2), jitter, jnp.int32)

    def pictures(spectra, shifts):
        return jax.vmap(picture)(spectra, shifts, rms_of_each)

    def total(spectra, shifts):
        values = objective(pictures(spectra, shifts))
        return -values.sum(), values

    def shifts_of(step):
        return jax.vmap(
            lambda key: jax.random.randint(jax.random.fold_in(key, step), (2,), 0, 2 * jitter + 1, jnp.int32)
        )(keys)

    def climb(state, step):
        spectra, moments = state
        gradient, values = jax.grad(total, has_aux=True)(spectra, shifts_of(step))
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(spectra, updates), moments), values

    def start(key):
        return jax.random.normal(jax.random.fold_in(key, steps), (2, *frequency.shape, channels), jnp.float32)

    real_and_imaginary = jax.vmap(start, out_axes=1)(keys)
    spectra = (real_and_imaginary[0], real_and_imaginary[1])
    (spectra, _), history = jax.lax.scan(climb, (spectra, optimizer.init(spectra)), jnp.arange(steps))
    images = pictures(spectra, middle)
    return Maximum(images, objective(images), history)


def colour_directions(
    parts: Iterable[Float[np.ndarray, "_n height width channels"]],
) -> Float[np.ndarray, "channels channels"]:
    """The square root of the channels' covariance over all pixels, so that mixed channels vary as those of the images.

    Scaled to a mean square of 1 a channel. Source: Olah et al. 2017 (decorrelated colours).

    Args:
        parts: the images, some at a time, at least two pixels in all.
    """
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for images in parts:
        pixels = np.asarray(images, np.float64).reshape(-1, images.shape[-1])
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + pixels.T @ pixels
    covariance = (squares - np.outer(total, total) / count) / (count - 1)
    variances, directions = np.linalg.eigh(covariance)
    root = directions * np.sqrt(np.maximum(variances, 0)) @ directions.T
    return root / np.sqrt(np.mean(np.sum(root**2, axis=0)))
