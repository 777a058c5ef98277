"""A layer's strongest activations: projections beside image patches (Zeiler & Fergus 2014, figure 2)."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cnnjax.figures import settings, tiles
from cnnjax.figures.projections import NAMES, Made, depends_in_words, masked, tile_in_words
from cnnjax.figures.texts import headed

MAPS_ACROSS = 3


@settings.own
def draw(
    projections: Float[np.ndarray, "rows count height width channels"],
    patches: Float[np.ndarray, "rows count height width channels"],
    place: Float[np.ndarray, "rows count 2"],
    value: Float[np.ndarray, "rows count"],
    maps: Int[np.ndarray, " rows"],
    layer: str,
    searched: str,
    made: Made,
) -> Any:
    """A pair of blocks a map, projections left and patches right, the strongest first, in reading order.

    Args:
        projections: signed; one scale a map, the 99.5th percentile of the absolute values of its projections.
        patches: grey levels 0 to 255, NaN outside the image.
        place: of the units in their patches, (row, column), marked there; NaN: none.
        value: the activations; a tile whose activation is not above 0 is left empty.
        searched: the images that were searched, in words.
    """
    from matplotlib.figure import Figure

    count, height, width = projections.shape[1:4]
    across = min(MAPS_ACROSS, len(maps))
    down = -(-len(maps) // across)
    figure = Figure(figsize=(max(6.5, 3.2 * across + 0.3), 1.75 * down * height / width + 1.6))
    figure.set_layout_engine("constrained", wspace=0.07, hspace=0.03)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    scales = []
    projections = masked(projections, patches)
    for axes, number, projected, seen, own, active in zip(
        grid, maps, projections, patches, place, value > 0, strict=False
    ):
        scales += [tiles.robust_scale(projected[active])] if active.any() else []
        pair = (tiles.signed(projected, scales[-1] if active.any() else 0.0), seen / 255)
        left, right = (tiles.block(np.where(active[:, None, None, None], of, tiles.EMPTY)) for of in pair)
        gap = np.full((len(left), max(2, left.shape[0] // 16), 3), tiles.BACKGROUND)
        tiles.show(axes, np.concatenate([left, gap, right], axis=1))
        beside = np.array([0, left.shape[1] + gap.shape[1]])
        tiles.mark(axes, (tiles.corners(seen) + beside + own)[active])
        axes.set_title(f"map {number}" + ("" if active.any() else ", dead"), fontsize=9)
    title = (
        f"The {count} images that excite each map of {layer} most, of {searched}\n"
        f"left the activation's projection ({NAMES[made.rule]}), right the part of the image that the unit sees"
    )
    white = f", white {tiles.scales_in_words(scales)} in units of the network's input" if scales else ""
    said = (
        f"maps: {made.chosen}", f"{tile_in_words(made, (height, width))}; +: the unit's place",
        "the strongest first, one place an image; plain grey: no image is left that excites the map",
        f"projections: mid grey 0, one scale a map{white}", depends_in_words(made),
    )  # fmt: skip
    headed(figure, title, "; ".join(filter(None, said)))
    return figure
