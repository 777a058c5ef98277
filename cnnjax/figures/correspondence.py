"""The covered images (Zeiler & Fergus 2014, figure 8) and table 1 drawn."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, tiles

SERIES = {  # colours of Okabe & Ito, a marker each; hollow between classes
    "part": ("same part", "#0072b2", "o", "#0072b2"),
    "random": ("random boxes", "#d55e00", "s", "#d55e00"),
    "part_between": ("same part, images of two classes", "#0072b2", "o", "white"),
    "random_between": ("random boxes, images of two classes", "#d55e00", "s", "white"),
}


@settings.own
def draw(
    shown: Float[np.ndarray, "images columns height width channels"],
    names: Sequence[str],
    columns: Sequence[str],
    parts: Sequence[str],
    layers: tuple[str, str],
    table: Mapping[str, Float[np.ndarray, "parts layers 3"]],
    spread: int,
    note: str,
) -> Any:
    """Left the images, as they are and covered; right Delta of each part at both layers, with its ±.

    Args:
        shown: grey levels, 0 to 255; NaN where an image lacks the part.
        names: of the images.
        columns: what is covered.
        table: the names in SERIES: mean and two deviations; NaN where there is none. "p": [parts, layers].
        spread: which of the deviations, 1 or 2, is drawn.
    """
    from matplotlib.figure import Figure

    height, width = shown.shape[2:4]
    figure = Figure(figsize=(13.0, max(3.6, 0.75 * len(shown) + 1.5, 0.45 * len(parts) + 2.0)), layout="constrained")
    left, *panels = figure.subplots(1, 3, width_ratios=(0.2 * len(columns) + 0.4, 1, 1))
    left.imshow(tiles.grid(shown / 255), interpolation="nearest")
    left.set_xticks(tiles.centres(len(columns), width), columns, fontsize=8, rotation=45, ha="left")
    left.set_yticks(tiles.centres(len(shown), height), names, fontsize=8)
    left.xaxis.tick_top()
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    panels[0].sharex(panels[1])
    down = np.arange(len(parts))
    handles = []
    for place, (axes, layer) in enumerate(zip(panels, layers, strict=True)):
        series = [name for name in SERIES if np.isfinite(table[name][:, place, 0]).any()]
        for number, name in enumerate(series):
            label, colour, marker, face = SERIES[name]
            mean, deviation = table[name][:, place, 0], np.nan_to_num(table[name][:, place, spread])
            aside = down + 0.2 * (number - (len(series) - 1) / 2)
            style = {"fmt": marker, "color": colour, "mfc": face, "capsize": 2, "ms": 5}
            bars = axes.errorbar(mean, aside, xerr=deviation, label=label, **style)
            handles = [*handles, bars][-len(series) :]
        labels = [f"{part}\np = {p:.4f}" for part, p in zip(parts, table["p"][:, place], strict=True)]
        axes.set_yticks(down, labels, fontsize=8)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.grid(alpha=0.3, axis="x")
        axes.set_xlabel("Δ, share of the features")
        axes.set_title(layer, fontsize=10)
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
    over = ("pairs of images", "images")[spread - 1]
    said = f"Bars: ± standard deviation over {over}; p: how often random boxes have as small a Δ. {note}"
    figure.supxlabel(textwrap.fill(said, 170), fontsize=8)
    return figure
