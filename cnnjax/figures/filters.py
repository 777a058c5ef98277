"""First-layer filters by epoch (Zeiler & Fergus 2014, figure 4, layer 1)."""

from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, tiles
from cnnjax.figures.texts import epoch_axis, fitting, headed

BLOCKS = 2  # side by side, so that the figure fits a page


@settings.own
def draw(
    kernels: Float[np.ndarray, "epochs height width channels filters"], epochs: tuple[int, ...], layer: str
) -> Any:
    """A row a filter, a column an epoch; one contrast scale a filter, its largest weight over all epochs.

    Kernels with other than 1 or 3 input channels cannot be shown as colour and are refused.
    """
    from matplotlib.figure import Figure

    if kernels.shape[3] not in (1, 3):
        raise ValueError(f"kernels must have 1 or 3 input channels, got {kernels.shape[3]}")
    by_filter = np.moveaxis(kernels, 4, 0)
    shown = tiles.signed(by_filter, np.abs(by_filter).max(axis=(1, 2, 3, 4), keepdims=True))
    count, _, height, width, _ = shown.shape
    rows = -(-count // BLOCKS)
    cell = 0.34
    figure = Figure(
        figsize=(max(6.5, 1.2 + BLOCKS * (len(epochs) * cell + 0.6)), rows * cell + 1.3), layout="constrained"
    )
    for block, axes in enumerate(figure.subplots(1, BLOCKS, squeeze=False)[0]):
        part = shown[block * rows : (block + 1) * rows]
        if not len(part):
            axes.set_axis_off()
            continue
        tiles.show(axes, tiles.grid(part))
        labels = [str(epoch) for epoch in epochs]
        axes.set_xticks(tiles.centres(len(epochs), width), labels, fontsize=fitting(labels, cell, 10))
        numbers = range(block * rows, block * rows + len(part))
        axes.set_yticks(tiles.centres(len(part), height), [str(number) for number in numbers], fontsize=7)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel(epoch_axis(epochs), fontsize=8)
        axes.set_ylabel("filter")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    note = "one scale a filter over all epochs: mid grey 0, black and white ± its largest weight"
    scales = np.abs(by_filter).max(axis=(1, 2, 3, 4))
    headed(figure, f"Filters of {layer} by epoch", f"{note} ({tiles.scales_in_words(scales)})")
    return figure
