"""How far features and answer move when the image is moved, enlarged or turned (Zeiler & Fergus 2014, figure 5)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

from cnnjax import ops
from cnnjax.visualize.evolution import GROUP, in_groups

Interpolation = Literal["bilinear", "nearest"]
_ORDERS: dict[str, int] = {"nearest": 0, "bilinear": 1}


class Affine(NamedTuple):
    """Where a transformed image is read: the pixel at p shows the image at centre + matrix (p - centre) + offset.

    Places are (row, column) in pixels; the centre is that of the image, between the pixels where a side is even.
    """

    matrix: Float[Array, "*values 2 2"]
    offset: Float[Array, "*values 2"]


def translation(pixels: float | Float[Array | np.ndarray, "*values"]) -> Affine:
    """Moves the image down by so many pixels."""
    pixels = jnp.asarray(pixels, float)
    offset = jnp.stack([-pixels, jnp.zeros_like(pixels)], axis=-1)
    return Affine(jnp.broadcast_to(jnp.eye(2), (*pixels.shape, 2, 2)), offset)


def scaling(ratio: float | Float[Array | np.ndarray, "*values"]) -> Affine:
    """Enlarges the image about its centre by this ratio, > 0; below 1 it shrinks."""
    ratio = jnp.asarray(ratio, float)
    return Affine(jnp.eye(2) / ratio[..., None, None], jnp.zeros((*ratio.shape, 2)))


def rotation(degrees: float | Float[Array | np.ndarray, "*values"]) -> Affine:
    """Turns the image about its centre, counter-clockwise as it is looked at."""
    angle = jnp.deg2rad(jnp.asarray(degrees, float))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack([jnp.stack([cosine, sine], axis=-1), jnp.stack([-sine, cosine], axis=-1)], axis=-2)
    return Affine(matrix, jnp.zeros((*angle.shape, 2)))


class Transformation(NamedTuple):
    """One of the ways in which an image is changed."""

    affine: Callable[[float | Float[Array | np.ndarray, "*values"]], Affine]
    amount: Callable[[np.ndarray], np.ndarray]  # how far each value is from the one that leaves the image as it is


TRANSFORMATIONS = {
    "translation": Transformation(translation, np.abs),
    "scale": Transformation(scaling, lambda ratio: np.abs(ratio - 1)),
    "rotation": Transformation(rotation, lambda degrees: np.abs((degrees + 180) % 360 - 180)),
}


def warp(
    image: Float[Array, "height width channels"],
    affine: Affine,
    background: Float[Array | np.ndarray, "height width channels"] | None,
    interpolation: Interpolation = "bilinear",
) -> Float[Array, "height width channels"]:
    """The image transformed; the identity gives back the same bits.

    Args:
        affine: one transformation, without a leading axis.
        background: what is seen where the image does not reach (a pixel that it covers in part is mixed); None
            repeats the pixels at its edge.
    """
    height, width, _ = image.shape
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    # "highest": an accelerator would round the places to three digits
    turned = jnp.einsum("ij,hwj->ihw", affine.matrix, grid - centre, precision="highest")
    places = list(turned + (centre + affine.offset)[:, None, None])

    def read(plane: Float[Array, "height width"]) -> Float[Array, "height width"]:
        mode = "nearest" if background is None else "constant"
        return map_coordinates(plane, places, _ORDERS[interpolation], mode=mode)

    seen = jax.vmap(read, in_axes=-1, out_axes=-1)(image)
    if background is None:
        return seen
    return seen + (1 - read(jnp.ones((height, width), image.dtype)))[..., None] * background


class Response(NamedTuple):
    """What the network makes of one image under one transformation; distances are Euclidean, [low, high] layer."""

    distance: Float[Array | np.ndarray, "2 values"]  # to the features of the image as it is
    probability: Float[Array | np.ndarray, " values"]  # of the true class
    norm: Float[Array | np.ndarray, " 2"]  # of the features of the image as it is
    unrelated: Float[Array | np.ndarray, " 2"]  # distance between the features of the image and of another one
    untouched: Float[Array | np.ndarray, ""]  # probability of the true class of the image as it is


Outputs = Callable[[Any, Float[Array, "batch height width channels"]], tuple[Array, Array, Array]]


def make_respond(
    outputs: Outputs,
    background: Float[np.ndarray, "height width channels"] | None,
    interpolation: Interpolation = "bilinear",
    *,
    group: int = GROUP,
) -> Callable[..., dict[str, Response]]:
    """Returns the function (variables, image, other, label, values) -> Response by transformation.

    `image` and `other` are in grey levels, 0 to 255; `values` maps names of TRANSFORMATIONS to arrays.

    Args:
        outputs: (variables, images in grey levels) -> (features of the low layer, of the high layer, logits).
        background: see `warp`; in grey levels.
        group: images in a forward pass, which is compiled once; three at the least.
    """

    def look(
        variables: Any,
        image: Float[Array, "height width channels"],
        other: Float[Array, "height width channels"],
        label: Int[Array, ""],
        affines: Affine,
    ) -> Response:
        """Of one group of versions. The image itself is in each, so that all that is compared is rounded alike."""
        image, other = jnp.asarray(image, jnp.float32), jnp.asarray(other, jnp.float32)
        warped = jax.vmap(lambda affine: warp(image, affine, background, interpolation))(affines)
        low, high, logits = outputs(variables, jnp.concatenate([image[None], other[None], warped]))
        features = [layer.reshape(layer.shape[0], -1) for layer in (low, high)]
        distance = jnp.stack([jnp.linalg.norm(layer - layer[0], axis=-1) for layer in features])
        norm = jnp.stack([jnp.linalg.norm(layer[0]) for layer in features])
        probability = jax.nn.softmax(logits)[:, label]
        return Response(distance[:, 2:], probability[2:], norm, distance[:, 1], probability[0])

    compiled = ops.jit(look)

    def respond(variables: Any, image: Any, other: Any, label: Any, values: Mapping[str, Any]) -> dict[str, Response]:
        affines = [TRANSFORMATIONS[name].affine(amounts) for name, amounts in values.items()]
        every = jax.tree.map(lambda *parts: np.concatenate(parts), *affines)
        ends = np.cumsum([0, *(len(amounts) for amounts in values.values())])
        of_groups = [
            jax.device_get(
                compiled(variables, image, other, label, jax.tree.map(lambda part, rows=rows: part[rows], every))
            )
            for rows in in_groups(len(every.offset), max(1, group - 2))
        ]
        distance, probability = (np.concatenate(parts, axis=-1) for parts in list(zip(*of_groups, strict=True))[:2])
        return {
            name: of_groups[0]._replace(distance=distance[:, start:end], probability=probability[start:end])
            for name, start, end in zip(values, ends[:-1], ends[1:], strict=True)
        }

    return respond


class Claims(NamedTuple):
    """What the paper says of figure 5, as numbers; those of layers are [low, high]. NaN where one does not exist."""

    small: Float[np.ndarray, " 2"]  # mean distance at the smallest change, as a share of that to another image
    straight: Float[np.ndarray, " 2"]  # R² of the mean distance against the size of the change
    kept: float  # mean probability of the true class over all values, as a share of that of the image as it is


def claims(
    distance: Float[np.ndarray, "images 2 values"],
    unrelated: Float[np.ndarray, "images 2"],
    probability: Float[np.ndarray, "images values"],
    untouched: Float[np.ndarray, " images"],
    amount: Float[np.ndarray, " values"],
) -> Claims:
    """The claims for one transformation, over images.

    Args:
        amount: of the transformation's values.
    """
    curves = distance.mean(axis=0)
    changed = np.where(amount > 0, amount, np.inf)
    nearest = np.isclose(changed, changed.min()) & np.isfinite(changed)
    small = curves[:, nearest].mean(axis=1) / unrelated.mean(axis=0) if nearest.any() else np.full(2, np.nan)
    return Claims(
        small, np.array([straightness(amount, curve) for curve in curves]), float(probability.mean() / untouched.mean())
    )


def straightness(amount: Float[np.ndarray, " values"], distance: Float[np.ndarray, " values"]) -> float:
    """R² of the least-squares line of `distance` against `amount`; NaN where one of them does not vary."""
    if np.ptp(amount) == 0 or np.ptp(distance) == 0:
        return float("nan")
    return float(np.corrcoef(amount, distance)[0, 1] ** 2)
