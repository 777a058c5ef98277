"""Which parts of an image a network relies on: a grey square at every position (Zeiler & Fergus 2014, figure 7).

Where covering a place makes the strongest feature map weak, that place holds what excites the map; where it makes the
true class improbable, the network tells the class by it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.visualize.evolution import GROUP, FeatureMaps

Activity = Literal["sum", "max"]

# How active a map is, from its activations over all positions; the paper's is the sum.
ACTIVITIES: dict[str, Callable[..., Array]] = {"sum": jnp.sum, "max": jnp.max}


class Responses(NamedTuple):
    """What a network says of images, one a row."""

    activity: Float[np.ndarray, "*places maps"]  # of each map of one layer, over all its positions
    probabilities: Float[np.ndarray, "*places classes"]


class Occlusion(NamedTuple):
    """Figure 7 of one image, in numbers."""

    tops: Int[np.ndarray, " rows"]  # the first row of pixels that the square covers
    lefts: Int[np.ndarray, " columns"]
    whole: Responses  # of the image without a square
    covered: Responses  # places: rows, columns


def occlude(
    images: UInt8[Array, "batch height width channels"],
    corners: Int[Array, "batch 2"],
    side: int | Int[Array, ""],
    grey: int | Int[Array, ""],
) -> UInt8[Array, "batch height width channels"]:
    """Each image with a square of one grey level, its top left pixel at the corner (row, column); side 0: no square."""
    height, width = images.shape[1:3]
    down, across = (
        (jnp.arange(size) >= corner[:, None]) & (jnp.arange(size) < corner[:, None] + side)
        for size, corner in ((height, corners[:, 0]), (width, corners[:, 1]))
    )
    covered = down[:, :, None, None] & across[:, None, :, None]
    return jnp.where(covered, jnp.asarray(grey, images.dtype), images)


def corners_along(size: int, side: int, step: int) -> Int[np.ndarray, " positions"]:
    """Where the square begins along an axis of `size` pixels: from border to border, at most `step` pixels apart.

    Raises:
        InputError: for a square as large as the image or without a pixel, and for a step below 1.
    """
    if not 1 <= side < size:
        raise InputError(f"side must be from 1 to {size - 1} pixels for an image of {size}, got {side}")
    if step < 1:
        raise InputError(f"step must be at least 1 pixel, got {step}")
    return np.round(np.linspace(0, size - side, -(-(size - side) // step) + 1)).astype(np.int32)


def make_respond(
    feature_maps: FeatureMaps, layer: str, logits: str, preprocess: Callable[[Any], Array], activity: Activity = "sum"
) -> Callable[..., tuple[Array, Array]]:
    """Returns the compiled (variables, images, corners, side, grey) -> (activity, probabilities), as in `Responses`.

    Args:
        layer: whose activity is wanted.
        logits: the name of the last layer in `feature_maps`.
    """

    def respond(variables, images, corners, side, grey):
        maps = feature_maps(variables, preprocess(occlude(images, corners, side, grey)))
        positions = tuple(range(1, maps[layer].ndim - 1))
        return ACTIVITIES[activity](maps[layer], axis=positions), jax.nn.softmax(maps[logits])

    return ops.jit(respond)


def responses(
    respond: Callable[..., tuple[Array, Array]],
    variables: Any,
    images: UInt8[np.ndarray, "n height width channels"],
    corners: Int[np.ndarray, "n 2"],
    side: int,
    grey: int,
    *,
    group: int = GROUP,
) -> Responses:
    """What the network says of each image with a square at its corner, a group at a time; side 0: without one."""
    parts = []
    for start in range(0, len(images), group):
        rows = np.arange(start, start + group) % len(images)  # the last group is filled up, so that all have one shape
        parts.append(jax.device_get(respond(variables, images[rows], corners[rows], side, grey)))
    return Responses(*(np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)))


def occlusion(
    respond: Callable[..., tuple[Array, Array]],
    variables: Any,
    image: UInt8[np.ndarray, "height width channels"],
    *,
    side: int,
    step: int,
    grey: int,
    group: int = GROUP,
) -> Occlusion:
    """The responses to one image with the square at every position of a grid, a group of them at a time.

    Raises:
        InputError: for a side or a step that does not suit the image.
    """
    tops, lefts = (corners_along(size, side, step) for size in image.shape[:2])
    corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
    images = np.broadcast_to(image, (len(corners), *image.shape))
    covered = responses(respond, variables, images, corners, side, grey, group=group)
    whole = responses(respond, variables, image[None], corners[:1], 0, grey, group=group)
    places = (len(tops), len(lefts))
    return Occlusion(
        tops,
        lefts,
        Responses(*(part[0] for part in whole)),
        Responses(*(part.reshape(*places, -1) for part in covered)),
    )


def falls(
    respond: Callable[..., tuple[Array, Array]],
    variables: Any,
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    *,
    side: int,
    grey: int,
    group: int = GROUP,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 4"], Float[np.ndarray, "n classes"]]:
    """By how much the true class of each image falls in probability under a square at its centre, and at each corner.

    The centre stands for the object, the corners for its surroundings: photographs mostly have their object there.

    Returns:
        the fall under the centre square, under each corner square, and the probabilities without a square.
    """
    down, right = (size - side for size in images.shape[1:3])
    places = ((down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right))
    every = np.arange(len(images))

    def probabilities(place: tuple[int, int], side: int) -> np.ndarray:
        corners = np.tile(place, (len(images), 1))
        return responses(respond, variables, images, corners, side, grey, group=group).probabilities

    whole = probabilities((0, 0), 0)
    fall = [(whole - probabilities(place, side))[every, labels] for place in places]
    return fall[0], np.stack(fall[1:], axis=1), whole


def bootstrap_interval(
    key: Key[Array, ""], values: Float[np.ndarray, " n"], *, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """A percentile bootstrap interval of the mean: n of the n values drawn again and again, with replacement."""
    drawn = jnp.asarray(values)

    def mean_of_one(key: Key[Array, ""]) -> Float[Array, ""]:
        return jnp.mean(drawn[jax.random.randint(key, drawn.shape, 0, len(drawn), jnp.int32)])

    means = jax.lax.map(mean_of_one, jax.random.split(key, resamples), batch_size=100)
    low, high = np.quantile(np.asarray(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
