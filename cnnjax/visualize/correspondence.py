"""Does covering the same part change the features of different images alike? (Zeiler & Fergus 2014, §4.4, table 1)

The change of image i is eps_i = x_i - x~_i: its features less those of the image with the part covered. Two changes are
compared by the Hamming distance of their signs, as a share of the features; Delta is its mean over pairs of images. It
is lower where the network ties the part together across images, and that is read against random places.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8, Real

from cnnjax import ops
from cnnjax.visualize.evolution import GROUP, in_groups

Zeros = Literal["symbol", "half", "negative", "drop"]
# A change below this share of the layer's largest activation is taken as rounding, whose sign has no meaning. On a CPU
# an untouched feature is the same to the bit wherever its image stands in a batch; no other backend promises that.
ROUNDING = 1e-6
LEVEL = 0.05  # of the permutation test, at which its band ends
_CHUNK = 1000  # designations at a time
_FEATURES = 4096  # at a time: as float32 they are four times as large


def cover(
    image: Float[Array | np.ndarray, "height width channels"],
    boxes: Int[Array | np.ndarray, "boxes 4"],
    background: Float[Array | np.ndarray, "height width channels"],
) -> Float[Array, "boxes height width channels"]:
    """The image with each box (top, left, height, width) shown as the background."""
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])[None, :]

    def one(box: Int[Array, " 4"]) -> Float[Array, "height width channels"]:
        top, left, height, width = box
        inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        return jnp.where(inside[..., None], background, image)

    return jax.vmap(one)(jnp.asarray(boxes))


def change_signs(
    features: Float[Array, " *shape"], covered: Float[Array, "boxes *shape"]
) -> Int8[Array, "boxes features"]:
    """The signs of features - covered; 0 where a feature changes by no more than rounding does."""
    change = (features - covered).reshape(covered.shape[0], -1)
    return jnp.where(jnp.abs(change) > ROUNDING * jnp.abs(features).max(), jnp.sign(change), 0).astype(jnp.int8)


def make_look(
    outputs: Callable[[Any, Float[Array, "batch height width channels"]], Sequence[Array]],
    background: Float[np.ndarray, "height width channels"],
    *,
    group: int = GROUP,
) -> Callable[..., tuple[Int8[np.ndarray, "boxes features"], ...]]:
    """Returns the function (variables, image, boxes) -> signs of the changes, an array a layer.

    Args:
        outputs: (variables, images in grey levels) -> features of each layer.
        group: images in a forward pass, which is compiled once: the image and covered versions of it; two at the least.
    """

    def look(variables: Any, image: Real[Array, "height width channels"], boxes: Int[Array, "boxes 4"]):
        image = jnp.asarray(image, jnp.float32)
        layers = outputs(variables, jnp.concatenate([image[None], cover(image, boxes, background)]))
        return tuple(change_signs(layer[0], layer[1:]) for layer in layers)

    compiled = ops.jit(look)

    def signs(variables: Any, image: Any, boxes: Any) -> tuple[np.ndarray, ...]:
        of_groups = [
            jax.device_get(compiled(variables, image, boxes[rows])) for rows in in_groups(len(boxes), max(1, group - 1))
        ]
        return tuple(np.concatenate(parts)[: len(boxes)] for parts in zip(*of_groups, strict=True))

    return signs


def hamming(
    signs: Int8[np.ndarray, "vectors features"], zeros: Zeros = "symbol"
) -> Float[np.ndarray, "vectors vectors"]:
    """The Hamming distance of each two vectors of signs (-1, 0, 1), as a share of the features.

    Args:
        zeros: where a feature does not change: "symbol": 0 is a sign of its own, equal to 0 only; "half": 0 against
            -1 or 1 counts a half; "negative": 0 is read as -1; "drop": a symbol, and features that are 0 in both are
            left out of the share (which is 0 where none is left). The paper does not say.
    """
    positive, none = signs > 0, signs == 0
    negative = signs < 0

    def count(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Features that are in a and in b; exact."""
        total = np.zeros((len(a), len(b)))
        for start in range(0, a.shape[1], _FEATURES):
            some, others = (of[:, start : start + _FEATURES].astype(np.float32) for of in (a, b))
            total += some @ others.T
        return total

    features = signs.shape[1]
    opposite = count(positive, negative) + count(negative, positive)
    if zeros == "negative":
        return (opposite + count(positive, none) + count(none, positive)) / features
    neither = count(none, none)
    one_sided = features - neither - opposite - count(positive, positive) - count(negative, negative)
    if zeros == "half":
        return (opposite + one_sided / 2) / features
    share_of = np.maximum(features - neither, 1) if zeros == "drop" else features
    return (opposite + one_sided) / share_of


class Delta(NamedTuple):
    """An entry of table 1."""

    mean: float  # over the pairs of images
    over_pairs: float  # standard deviation over the pairs (n - 1); NaN for one pair
    over_images: float  # the same of each image's mean distance to the others


def pairs(groups: Int[np.ndarray, " images"], *, same: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """First and second image of every pair of one group, or of two."""
    first, second = np.triu_indices(len(groups), 1)
    taken = (groups[first] == groups[second]) == same
    return first[taken], second[taken]


def delta(
    distances: Float[np.ndarray, "images images"], groups: Int[np.ndarray, " images"], *, same: bool = True
) -> Delta:
    """The mean distance over the pairs of one group (or of two), at least one, with both that its ± may mean."""
    first, second = pairs(groups, same=same)
    found = distances[first, second]
    by_image = [found[(first == image) | (second == image)].mean() for image in np.union1d(first, second)]
    return Delta(float(found.mean()), deviation(found), deviation(by_image))


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation of a sample; NaN for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


class Permutations(NamedTuple):
    """What a permutation test finds."""

    p: float
    low: float  # p <= LEVEL exactly where the part's mean distance is below this
    middle: float  # the median mean distance over the designations
    high: float  # as far from the largest one as `low` is from the smallest


def permutation_test(
    distances: Float[np.ndarray, "images boxes images boxes"],
    groups: Int[np.ndarray, " images"],
    draws: int,
    generator: np.random.Generator,
    *,
    same: bool = True,
) -> Permutations:
    """How often one box of each image, taken at random, gives a mean distance as small as box 0 of each does.

    If the place of box 0 (the part) meant nothing, each box of an image could as well have been called the part. All
    boxes^images designations are tried where they are no more than `draws`; else so many random ones and the actual
    one, so that p is at least 1 / (draws + 1).

    Args:
        same: over the pairs of one group; else over those of two.
    """
    images, boxes = distances.shape[:2]
    first, second = pairs(groups, same=same)

    def means(chosen: Int[np.ndarray, "designations images"]) -> np.ndarray:
        return distances[first, chosen[:, first], second, chosen[:, second]].mean(axis=1)

    if boxes**images <= draws:
        designations = np.array(list(itertools.product(range(boxes), repeat=images)))
    else:
        random = generator.integers(boxes, size=(draws, images))
        designations = np.concatenate([np.zeros((1, images), int), random])
    of_part = means(designations[:1])[0]  # the first one, in both cases, is box 0 of every image
    blocks = np.array_split(designations, -(-len(designations) // _CHUNK))
    found = np.sort(np.concatenate([means(block) for block in blocks]))
    # The tolerance keeps equal means equal whatever the order in which they were added up
    p = float(np.mean(found <= of_part + 1e-9))
    outside = math.floor(LEVEL * len(found))
    return Permutations(p, float(found[outside]), float(np.median(found)), float(found[-1 - outside]))


def random_boxes(
    generator: np.random.Generator, boxes: Int[np.ndarray, "images 4"], within: Int[np.ndarray, "images 4"], count: int
) -> Int[np.ndarray, "images count 4"]:
    """Boxes as large as each image's own, anywhere (uniformly) in `within`, a box that is no smaller."""
    reach = within[:, 2:] - boxes[:, 2:]
    corners = within[:, None, :2] + generator.integers(reach[:, None] + 1, size=(len(boxes), count, 2))
    sizes = np.broadcast_to(boxes[:, None, 2:], (len(boxes), count, 2))
    return np.concatenate([corners, sizes], axis=-1)
