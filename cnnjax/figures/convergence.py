"""Curves that say how far each layer is from its final self at each epoch."""

from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings
from cnnjax.figures.texts import broken, epoch_axis, fitting, headed, shortened

MARKERS = "osD^vP*X"


def half_way(epochs: tuple[int, ...], share: Float[np.ndarray, " epochs"]) -> float:
    """The epoch at which a curve that starts at 1 first falls to 1/2, by straight lines between the kept epochs."""
    below = int(np.argmax(share <= 0.5))
    if below == 0:
        return float("nan")
    high, low = share[below - 1], share[below]
    return float(epochs[below - 1] + (high - 0.5) / (high - low) * (epochs[below] - epochs[below - 1]))


@settings.own
def draw(
    epochs: tuple[int, ...],
    layers: tuple[str, ...],
    filter_distance: Float[np.ndarray, "layers epochs"],
    dead: Float[np.ndarray, "layers epochs"],
    moved: Float[np.ndarray, "layers epochs"],
) -> Any:
    """Three panels with a line a layer; the kept epochs stand at equal distances.

    The cosine distance is drawn as a share of its value at the first epoch: layers that start from large random
    weights turn by a small angle only, and would lie on the axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    share = filter_distance / np.where(filter_distance[:, :1] > 0, filter_distance[:, :1], 1)
    panels = (
        (
            share,
            f"cosine distance of the filters to those of epoch {epochs[-1]},\nas a share of that at epoch {epochs[0]}",
        ),
        (100 * dead, "dead feature maps, %\n(zero on every training image)"),
        (100 * moved, "maps whose strongest image is another\nthan at the kept epoch before, %"),
    )
    labels = []
    for layer, curve in zip(layers, share, strict=True):
        half = half_way(epochs, curve)
        reached = f"half way at\nepoch {half:.1f}" if np.isfinite(half) else "not half way\nbetween these"
        labels.append(f"{broken(shortened(layer, 40), 20)}: {reached}")
    lines = sum(1.3 + label.count("\n") for label in labels)
    figure = Figure(figsize=(13.0, max(4.2, 0.15 * lines + 0.8)), layout="constrained")
    positions = range(len(epochs))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for axes, (curves, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for index, curve in enumerate(curves):
            look = {"color": colours[index], "marker": MARKERS[index % len(MARKERS)], "ms": 5}
            axes.plot(positions, curve, label=labels[index], **look)
        ticks = [str(epoch) for epoch in epochs]
        axes.set_xticks(positions, ticks, fontsize=fitting(ticks, 2.9 / len(epochs), 10))
        axes.set_xlabel(epoch_axis(epochs))
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0, 1.05 * max(1.0 if curves is share else 10.0, np.nan_to_num(curves).max()))
        axes.grid(alpha=0.3)
    headed(figure, "How far each layer is from its final self")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure
