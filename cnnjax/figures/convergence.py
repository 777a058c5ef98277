"""Curves that say how far each layer is from its final self at each epoch."""

from typing import Any

import numpy as np
from jaxtyping import Float

MARKERS = "osD^vP*X"


def draw(
    epochs: tuple[int, ...],
    layers: tuple[str, ...],
    filter_distance: Float[np.ndarray, "layers epochs"],
    dead: Float[np.ndarray, "layers epochs"],
    moved: Float[np.ndarray, "layers epochs"],
) -> Any:
    """Three panels with a line a layer; the kept epochs stand at equal distances."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = (
        (filter_distance, "cosine distance of the filters\nto those of the last epoch"),
        (100 * dead, "dead feature maps, %"),
        (100 * moved, "maps whose strongest image is another\nthan at the epoch before, %"),
    )
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    positions = range(len(epochs))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for axes, (curves, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for index, (layer, curve) in enumerate(zip(layers, curves, strict=True)):
            axes.plot(positions, curve, color=colours[index], marker=MARKERS[index % len(MARKERS)], label=layer, ms=5)
        axes.set_xticks(positions, [str(epoch) for epoch in epochs])
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure
