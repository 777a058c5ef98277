"""Which pixels made a network say a class: attribution methods for any function from images to logits.

Each is `f(logits, images, classes, ...) -> maps`, one class an image, in units of logit per unit of network input
unless it says otherwise; pure, and as memory-hungry as one forward and backward pass of the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cnnjax.errors import InputError
from cnnjax.tracing.relus import feature_maps_of, with_offset
from cnnjax.visualize.deconvnet import Rule, with_relu_rule

Logits = Callable[[Array], Any]  # images to [batch, classes]
Classes = Int[Array | np.ndarray, " batch"] | Sequence[int]  # one an image


class Similarity(NamedTuple):
    """How alike two maps of the same image are, an image a number; NaN where a map is the same everywhere."""

    rank: Float[np.ndarray, " batch"]  # Spearman's correlation of the magnitudes
    structure: Float[np.ndarray, " batch"]  # SSIM of the magnitudes, each scaled to a maximum of 1


def saliency(
    logits: Logits, images: Float[Array, "batch height width channels"], classes: Classes, *, rule: Rule = "gradient"
) -> Float[Array, "batch height width channels"]:
    """The logit of each image's class, brought down to the pixels; signed.

    With rule "gradient" the derivative (Simonyan et al. 2014, who show its `magnitude`), with "guided" guided
    backpropagation (Springenberg et al. 2014), with "deconvnet" the deconvnet started at a class.

    Raises:
        InputError: for a class that does not exist, and as `with_relu_rule`.
    """
    scores, backward = jax.vjp(with_relu_rule(logits, rule), images)
    classes = _checked_classes(classes, scores.shape)
    return backward(jax.nn.one_hot(classes, scores.shape[1], dtype=scores.dtype))[0]


def integrated_gradients(
    logits: Logits,
    images: Float[Array, "batch height width channels"],
    classes: Classes,
    *,
    baseline: Float[Array | np.ndarray, "..."] | float = 0.0,
    steps: int = 50,
) -> Float[Array, "batch height width channels"]:
    """The gradient averaged on the straight line from `baseline` to the image, times their difference; in logits.

    The pixels of a map add up to logit(image) - logit(baseline), up to the error of the integration.

    Args:
        baseline: in the network's input, broadcast to the images; 0 is the mean image where that is subtracted.
        steps: points of the Gauss-Legendre rule.

    Source: Sundararajan et al. 2017; the rule is that of captum.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    points, weights = np.polynomial.legendre.leggauss(steps)
    baseline = jnp.asarray(baseline, images.dtype)

    def add(total, point_and_weight):
        point, weight = point_and_weight
        return total + weight * saliency(logits, baseline + point * (images - baseline), classes), None

    line = jnp.asarray((points + 1) / 2, images.dtype), jnp.asarray(weights / 2, images.dtype)
    return (images - baseline) * jax.lax.scan(add, jnp.zeros_like(images), line)[0]


def smooth_grad(
    logits: Logits,
    images: Float[Array, "batch height width channels"],
    classes: Classes,
    keys: Key[Array, " batch"],
    *,
    noise: float = 0.15,
    samples: int = 50,
) -> Float[Array, "batch height width channels"]:
    """The mean gradient over noisy copies of each image.

    Args:
        keys: one an image, so that a map does not depend on the batch.
        noise: standard deviation, as a share of the image's range (largest minus smallest value).

    Source: Smilkov et al. 2017, who find 10 to 20 % noise and 50 samples enough.
    """
    if samples < 1 or noise < 0:
        raise InputError(f"samples must be at least 1 and noise at least 0, got {samples} and {noise}")
    spread = noise * (images.max(axis=(1, 2, 3), keepdims=True) - images.min(axis=(1, 2, 3), keepdims=True))

    def add(total, sample):
        drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:], jnp.float32))
        return total + saliency(logits, images + spread * drawn(keys).astype(images.dtype), classes), None

    return jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(samples))[0] / samples


def grad_cam(
    logits: Logits, images: Float[Array, "batch height width channels"], classes: Classes, *, relu: int
) -> Float[Array, "batch height width"]:
    """The maps of one ReLU, weighted by the mean gradient over each, added, rectified, enlarged to the image.

    Args:
        relu: number of the ReLU in the network, from 0; usually that of the last convolution. Its maps must be
            [batch, height, width, maps].

    Source: Selvaraju et al. 2017, equations 1 and 2; enlarged bilinearly.
    """
    scores, maps = feature_maps_of(logits)(images)
    classes = _checked_classes(classes, scores.shape)
    if not 0 <= relu < len(maps) or maps[relu].ndim != 4:
        good = [number for number, value in enumerate(maps) if value.ndim == 4]
        raise InputError(f"relu must be the number of one with maps in space, one of {good}, got {relu}")
    chosen = maps[relu]
    _, backward = jax.vjp(lambda offset: with_offset(logits, relu)(offset, images), jnp.zeros_like(chosen))
    gradient = backward(jax.nn.one_hot(classes, scores.shape[1], dtype=scores.dtype))[0]
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    cam = jax.nn.relu((weights * chosen).sum(axis=-1))
    return jax.image.resize(cam, images.shape[:3], "bilinear")


def magnitude(maps: Float[Array | np.ndarray, "*batch height width channels"]) -> Any:
    """The largest absolute value over the channels (Simonyan et al. 2014, section 3.1); [*batch, height, width]."""
    return abs(maps).max(axis=-1)


def randomized_from_the_top(params: Any, fresh: Any, groups: Sequence[Sequence[str]]) -> list[Any]:
    """The parameters with the last 0, 1, 2, ... of the groups replaced by those of `fresh`.

    Args:
        groups: paths of the parameters of each layer, in network order.

    Source: Adebayo et al. 2018, section 3.1 (cascading randomization).
    """

    def replaced(paths: set[str]) -> Any:
        def chosen(path, old, new):
            return new if jax.tree_util.keystr(path, simple=True, separator="/") in paths else old

        return jax.tree_util.tree_map_with_path(chosen, params, fresh)

    return [replaced(set().union(*groups[len(groups) - count :])) for count in range(len(groups) + 1)]


def similarity(
    maps: Float[np.ndarray, "batch height width"], others: Float[np.ndarray, "batch height width"]
) -> Similarity:
    """How alike magnitudes are, an image at a time.

    The windows in which structure is compared have 7 pixels a side, in smaller images as many as fit, an odd number;
    below 3 there is no structure, and it is NaN, as everything is of a map that is the same everywhere.
    """
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity

    def compared(one, other):
        if np.ptp(one) == 0 or np.ptp(other) == 0:
            return np.nan, np.nan
        scaled = (np.asarray(value, np.float64) / value.max() for value in (one, other))
        side = min(7, *one.shape)
        side -= side % 2 == 0
        structure = structural_similarity(*scaled, data_range=1.0, win_size=side) if side >= 3 else np.nan
        return spearmanr(one.ravel(), other.ravel())[0], structure

    both = np.array([compared(one, other) for one, other in zip(maps, others, strict=True)]).reshape(-1, 2)
    return Similarity(both[:, 0], both[:, 1])


def _checked_classes(classes: Any, shape: tuple[int, ...]) -> Array | np.ndarray:
    """`classes` as integers, one an image; values are checked where they are known, that is, not under `jit`."""
    classes = classes if isinstance(classes, jax.Array) else np.asarray(classes)
    if classes.shape != shape[:1] or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise InputError(f"classes must be integers of shape {shape[:1]}, got {classes.dtype}{classes.shape}")
    if not isinstance(classes, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        bad = [int(number) for number in np.asarray(classes) if not 0 <= number < shape[1]]
        if bad:
            raise InputError(f"classes must lie between 0 and {shape[1] - 1}, got {bad[0]}")
    return classes
