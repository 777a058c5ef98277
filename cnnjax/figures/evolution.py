"""A layer's feature maps by epoch: projections beside their image patches (Zeiler & Fergus 2014, figure 4)."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cnnjax.figures import settings, tiles
from cnnjax.figures.projections import NAMES, Made, depends_in_words, masked, scales_of, tile_in_words
from cnnjax.figures.texts import epoch_axis, fitting, headed


@settings.own
def draw(
    projections: Float[np.ndarray, "rows epochs height width channels"],
    patches: Float[np.ndarray, "rows epochs height width channels"],
    place: Float[np.ndarray, "rows epochs 2"],
    dead: Bool[np.ndarray, "rows epochs"],
    maps: Int[np.ndarray, " rows"],
    epochs: tuple[int, ...],
    layer: str,
    made: Made,
    contrast: str = "tile",
    searched: str = "all training images",
) -> Any:
    """Rows are maps, columns epochs; left the projections, right the patches inside the units' receptive fields.

    Args:
        projections: signed.
        patches: grey levels 0 to 255, NaN outside the image.
        place: of the units in their patches, (row, column), marked there; NaN: none.
        dead: maps that are zero on every image at that epoch, drawn as empty tiles with the word.
        contrast: the scale of a projection is the 99.5th percentile of its absolute values ("tile"), or the largest of
            these over the epochs ("map").
    """
    from matplotlib.figure import Figure

    rows, columns, height, width, _ = projections.shape
    cell = min(0.62, max(9.0 / rows, 0.14))
    figure = Figure(figsize=(max(7.5, 2 * columns * cell + 1.8), rows * cell + 1.8), layout="constrained")
    projections = masked(projections, patches)
    scales = scales_of(projections, contrast)
    contrasted = tiles.signed(projections, scales[:, :, None, None, None])
    across, down = tiles.centres(columns, width), tiles.centres(rows, height)
    labels, numbers = [str(epoch) for epoch in epochs], [str(number) for number in maps]
    panels = figure.subplots(1, 2)
    for axes, shown, title in zip(
        panels, (contrasted, patches / 255), ("projections", "image patches, + the unit's place"), strict=True
    ):
        tiles.show(axes, tiles.grid(np.where(dead[:, :, None, None, None], tiles.EMPTY, shown)))
        axes.set_xticks(across, labels, fontsize=fitting(labels, cell, 10))
        axes.set_yticks(down, numbers, fontsize=min(10, 50 * cell))
        for row, column in np.argwhere(dead):
            axes.text(across[column], down[row], "dead", ha="center", va="center", fontsize=fitting(["dead"], cell, 8))
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel(epoch_axis(epochs), fontsize=9)
        axes.set_title(title, fontsize=11)
        axes.set_ylabel("feature map", fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    first = np.stack(np.meshgrid(down - (height - 1) / 2, across - (width - 1) / 2, indexing="ij"), axis=-1)
    tiles.mark(panels[1], np.where(dead[..., None], np.nan, first + place).reshape(-1, 2))
    alive = scales[~dead]
    by = {"tile": "tile", "map": "map, one over all epochs"}[contrast]
    white = f", white {tiles.scales_in_words(alive)} in units of the network's input" if alive.size else ""
    title = f"Strongest activation of each map of {layer} over {searched}, by epoch ({NAMES[made.rule]})"
    said = (
        f"maps: {made.chosen}", tile_in_words(made, (height, width)),
        f"projections: mid grey 0, contrast by {by}{white}", depends_in_words(made),
    )  # fmt: skip
    headed(figure, title, "; ".join(filter(None, said)))
    return figure
