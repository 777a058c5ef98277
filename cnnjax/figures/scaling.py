"""Hours of a training by the number of devices, and where more of them stop to pay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings
from cnnjax.figures.colours import BLUE, GREEN, PURPLE, VERMILION
from cnnjax.figures.texts import headed

COLOURS, MARKERS = (BLUE, VERMILION, GREEN, PURPLE), "osDv"


@settings.own
def draw(
    devices: Sequence[int],
    networks: Sequence[str],
    hours: Float[np.ndarray, "networks devices"],
    perfect: Float[np.ndarray, "networks devices"],
    last: Sequence[int],
    machine: str,
    epochs: int,
) -> Any:
    """Both axes by powers; dashed what one device's time divided by their number is.

    Args:
        last: of each network the most devices of which each still does half of what one alone does.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.subplots()
    for place, (name, line, ideal) in enumerate(zip(networks, hours, perfect, strict=True)):
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)]}
        axes.plot(devices, ideal, ls="--", lw=1, **look)
        label = f"{name}: pays up to {last[place]} devices"
        axes.plot(devices, line, marker=MARKERS[place % len(MARKERS)], ms=5, label=label, **look)
    axes.plot([], [], ls="--", lw=1, color="0.4", label="one device's hours divided by their number")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(devices, [str(count) for count in devices])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("devices")
    axes.set_ylabel(f"hours for {epochs} epochs of ImageNet, computed")
    headed(figure, f"Data parallel training on {machine}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure
