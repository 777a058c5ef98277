"""Images that excite units the most, layer by layer (Olah et al. 2017)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, tiles
from cnnjax.figures.texts import broken, fitting, headed, shortened


@settings.own
def draw(
    images: Mapping[str, Float[np.ndarray, "units height width channels"]],
    values: Mapping[str, Float[np.ndarray, " units"]],
    best: Mapping[str, Float[np.ndarray, " units"]],
    labels: Mapping[str, Sequence[str]],
    note: str,
) -> Any:
    """A row a layer, each with its units' images, and under each how it compares with the best of the data.

    Args:
        images: grey levels 0 to 255, NaN outside the image.
        values: of the units at these images.
        best: of the units at the data's best image.
        labels: of the units.
    """
    from matplotlib.figure import Figure

    columns = max(len(of) for of in images.values())
    cell = 1.0
    wide = max(6.5, columns * cell + 1.2)
    figure = Figure(figsize=(wide, len(images) * (cell + 0.55) + 1.2), layout="constrained")
    panels = figure.subplots(len(images), columns, squeeze=False)
    for row, (layer, of) in zip(panels, images.items(), strict=True):
        row[0].set_ylabel(broken(layer, 15), fontsize=8)
        for axes in row[len(of) :]:
            axes.set_axis_off()
        for axes, image, value, rival, label in zip(row, of, values[layer], best[layer], labels[layer], strict=False):
            tiles.show(axes, tiles.grid(np.clip(image / 255, 0, 1)[None, None]))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(broken(shortened(label, 28), 14), fontsize=7, pad=3)
            below = f"{value:.3g} | {rival:.3g}"
            axes.set_xlabel(below, fontsize=fitting([below], cell, 7), labelpad=2)
            axes.spines[:].set_visible(False)
    said = "the value there | the same unit's largest over the training images that it is compared with"
    headed(figure, note, f"under each tile: {said}, both before the ReLU")
    return figure
