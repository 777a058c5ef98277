"""A layer's strongest activations: projections beside image patches (Zeiler & Fergus 2014, figure 2)."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cnnjax.figures import settings, tiles
from cnnjax.figures.texts import filled

MAPS_ACROSS = 3


@settings.own
def draw(
    projections: Float[np.ndarray, "rows count height width channels"],
    patches: Float[np.ndarray, "rows count height width channels"],
    value: Float[np.ndarray, "rows count"],
    maps: Int[np.ndarray, " rows"],
    layer: str,
    searched: str,
) -> Any:
    """A pair of blocks a map, projections left and patches right, the strongest first, in reading order.

    Args:
        projections: signed; one scale a map, the 99.5th percentile of the absolute values of its projections.
        patches: grey levels 0 to 255, NaN outside the image.
        value: the activations; a tile whose activation is not above 0 is left empty.
        searched: the images that were searched, in words.
    """
    from matplotlib.figure import Figure

    count, height, width = projections.shape[1:4]
    across = min(MAPS_ACROSS, len(maps))
    down = -(-len(maps) // across)
    size = (3.2 * across + 0.3, 1.75 * down * height / width + 1.1)
    figure = Figure(figsize=size)
    figure.set_layout_engine("constrained", wspace=0.07, hspace=0.03)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for index, (axes, number) in enumerate(zip(grid, maps, strict=False)):
        empty = (value[index] <= 0)[:, None, None, None]
        scale = tiles.robust_scale(projections[index][value[index] > 0]) if (value[index] > 0).any() else 0.0
        pair = (tiles.signed(projections[index], scale), patches[index] / 255)
        axes.imshow(_side_by_side([block(np.where(empty, np.nan, part)) for part in pair]), interpolation="nearest")
        axes.set_title(f"map {number}" + (", dead" if empty.all() else ""), fontsize=9)
    said = (
        f"The {count} images that excite each map of {layer} most, of {searched}\n"
        "left the activation's projection, right the part of the image that the unit sees"
    )
    figure.suptitle(filled(said, size[0], 10), fontsize=10)
    caption = (
        f"tiles {height}×{width} px, the strongest first; one place an image; projections: mid grey 0, one scale a "
        "map; light grey: outside the image, and where no image is left that excites the map"
    )
    figure.supxlabel(filled(caption, size[0], 8), fontsize=8)
    return figure


def block(some: Float[np.ndarray, "count height width channels"]) -> Float[np.ndarray, "full_height full_width 3"]:
    """The tiles of one map as a square, in reading order; places that are left over are background."""
    side = math.ceil(math.sqrt(len(some)))
    rows = -(-len(some) // side)
    full = np.full((rows * side, *some.shape[1:]), tiles.BACKGROUND)
    full[: len(some)] = some
    gap = max(1, some.shape[1] // 32)  # of large tiles one pixel is not seen on paper
    return tiles.grid(full.reshape(rows, side, *some.shape[1:]), gap)


def _side_by_side(blocks: list[np.ndarray]) -> np.ndarray:
    gap = np.full((len(blocks[0]), max(2, blocks[0].shape[1] // 16), 3), tiles.BACKGROUND)
    return np.concatenate([blocks[0], gap, blocks[1]], axis=1)
