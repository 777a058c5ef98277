"""A layer's feature maps by epoch: projections beside their image patches (Zeiler & Fergus 2014, figure 4)."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cnnjax.figures import settings, tiles
from cnnjax.figures.texts import filled


@settings.own
def draw(
    projections: Float[np.ndarray, "rows epochs height width channels"],
    patches: Float[np.ndarray, "rows epochs height width channels"],
    dead: Bool[np.ndarray, "rows epochs"],
    maps: Int[np.ndarray, " rows"],
    epochs: tuple[int, ...],
    layer: str,
) -> Any:
    """Rows are maps, columns epochs; left the projections, right the patches inside the units' receptive fields.

    Args:
        projections: signed; each tile has its own scale, the 99.5th percentile of its absolute values.
        patches: grey levels 0 to 255, NaN outside the image.
        dead: maps that are zero on every image at that epoch, drawn as empty tiles with the word.
    """
    from matplotlib.figure import Figure

    rows, columns, height, width, _ = projections.shape
    cell = min(0.62, 9.0 / rows)
    wide = max(7.5, 2 * columns * cell + 1.8)
    figure = Figure(figsize=(wide, rows * cell + 1.9), layout="constrained")
    for axes, shown, title in zip(
        figure.subplots(1, 2),
        (project_contrast(projections), patches / 255),
        ("projections", "image patches"),
        strict=True,
    ):
        shown = np.where(dead[:, :, None, None, None], np.nan, shown)
        axes.imshow(tiles.grid(shown), interpolation="nearest")
        across, down = tiles.centres(columns, width), tiles.centres(rows, height)
        axes.set_xticks(across, [str(epoch) for epoch in epochs], fontsize=10)
        axes.set_yticks(down, [str(number) for number in maps], fontsize=10)
        for row, column in np.argwhere(dead):
            axes.text(across[column], down[row], "dead", ha="center", va="center", fontsize=8, color="0.3")
        axes.xaxis.tick_top()
        axes.set_title(f"{title}, by epoch", fontsize=12)
        axes.set_ylabel("feature map", fontsize=11)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    said = f"Strongest activation of each map of {layer} over all training images"
    figure.suptitle(filled(said, wide, 14), fontsize=14)
    caption = (
        f"each tile is what the unit sees, {height}×{width} px; projections: mid grey 0, contrast by tile; "
        "patches: light grey outside the image"
    )
    figure.supxlabel(filled(caption, wide, 11), fontsize=11)
    return figure


def project_contrast(
    projections: Float[np.ndarray, "rows epochs height width channels"],
) -> Float[np.ndarray, "rows epochs height width channels"]:
    """Every tile on its own robust scale, zero as mid grey."""
    return np.stack([[tiles.signed(tile, tiles.robust_scale(tile)) for tile in row] for row in projections])
