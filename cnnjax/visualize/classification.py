"""What a network says of whole images: several views of each, errors as the ImageNet challenge counts them, confusions.

An image counts as wrong at k if its class is not among the k most probable ones (Russakovsky et al. 2015, section 4.1).
Classes that are as probable as the true one count against it, so that a network that says the same of every class is
not called right.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, UInt8

ENLARGED = 256 / 224  # side of the image to side of the view (Krizhevsky et al. 2012, section 4.1)


def centre_view(
    images: UInt8[np.ndarray, "n height width channels"], side: int
) -> UInt8[np.ndarray, "n 1 side side channels"]:
    """The square in the middle of each image; where it cannot be in the middle, half a pixel up and to the left."""
    top, left = ((length - side) // 2 for length in _room(images, side))
    return images[:, None, top : top + side, left : left + side]


def ten_views(
    images: UInt8[np.ndarray, "n height width channels"], side: int
) -> UInt8[np.ndarray, "n 10 side side channels"]:
    """The squares in the four corners and in the middle, then their mirror images, left to right.

    Source: Krizhevsky, Sutskever & Hinton 2012, section 4.1.
    """
    height, width = _room(images, side)
    corners = [(top, left) for top in (0, height - side) for left in (0, width - side)]
    cut = [images[:, top : top + side, left : left + side] for top, left in corners]
    five = np.stack([*cut, centre_view(images, side)[:, 0]], axis=1)
    return np.concatenate([five, five[:, :, :, ::-1]], axis=1)


def _room(images: np.ndarray, side: int) -> tuple[int, int]:
    height, width = images.shape[1:3]
    if not 1 <= side <= min(height, width):
        raise ValueError(f"side must be from 1 to {min(height, width)} for images of {height}×{width}, got {side}")
    return height, width


def mean_probabilities(
    logits: Callable[[Any], Any], views: UInt8[np.ndarray, "n views height width channels"], size: int
) -> Float64[np.ndarray, "n classes"]:
    """The softmax of each view's logits, averaged over the views of an image.

    Args:
        logits: uint8 images [size, height, width, channels] to [size, classes].
        size: images at once; the last of them are filled up with zeros, so that one program serves all.
    """
    flat = views.reshape(-1, *views.shape[2:])
    parts = []
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        filled = np.pad(part, [(0, size - len(part))] + [(0, 0)] * 3)
        parts.append(np.asarray(logits(filled), np.float64)[: len(part)])  # in float32 more classes would tie at 0
    values = np.concatenate(parts)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return shares.reshape(*views.shape[:2], -1).mean(axis=1)


def most_probable(probabilities: Float[np.ndarray, "n classes"], count: int) -> Int64[np.ndarray, "n count"]:
    """The classes of the largest probabilities, the largest first, of equal ones the first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :count]


def ranks(probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many other classes are at least as probable as the true one: 0 where the network is right."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    return (probabilities >= true).sum(axis=1) - 1


def top_error(ranks: Int[np.ndarray, " n"], k: int) -> float:
    """The share of images whose class is not among the k most probable."""
    return float(np.mean(ranks >= k))


def answers(probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The most probable class; of equally probable ones another than the true one, as `ranks` counts."""
    others = probabilities.copy()
    np.put_along_axis(others, labels[:, None], -1.0, axis=1)
    return np.where(ranks(probabilities, labels) == 0, labels, others.argmax(axis=1))


def confusion(
    labels: Int[np.ndarray, " n"], answers: Int[np.ndarray, " n"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """How many images of the class of the row were taken for that of the column."""
    return np.bincount(labels.astype(np.int64) * classes + answers, minlength=classes**2).reshape(classes, classes)


class Pairs(NamedTuple):
    """Confusions of two different classes, the most frequent first."""

    true: Int64[np.ndarray, " pairs"]
    said: Int64[np.ndarray, " pairs"]
    images: Int64[np.ndarray, " pairs"]


def most_confused(counts: Int[np.ndarray, "classes classes"], most: int) -> Pairs:
    """At most `most` pairs that occur; of equally frequent ones the first in the order of the classes."""
    wrong = counts.astype(np.int64) * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    order = order[wrong.flat[order] > 0]
    true, said = np.unravel_index(order, wrong.shape)
    return Pairs(true, said, wrong[true, said])
