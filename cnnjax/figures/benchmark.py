"""Members trained an hour by how many are trained at once: where training together begins to pay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings
from cnnjax.figures.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from cnnjax.figures.texts import filled, headed

COLOURS = (BLACK, BLUE, ORANGE, PURPLE, GREEN, SKY, VERMILION, GREY, "#8c510a", "#b2abd2")
MARKERS = "osDv^<>pP*"
PANEL = 4.2  # inches

Measured = Sequence[float] | Float[np.ndarray, " counts"]  # NaN where it was not


@settings.own
def draw_crossover(
    panels: Sequence[str],
    counts: Sequence[int],
    engines: Sequence[str],
    per_hour: Float[np.ndarray, "panels engines counts"],
    member: str,
    machine: str,
) -> Any:
    """A panel a network, a line an engine; NaN where an engine was not measured, and no line where it never was.

    Args:
        counts: members that are trained in one sweep.
        engines: ours first; the legends say from how many members on it is ahead of each other one.
        member: what one member's training is.
        machine: what it was measured on.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(max(6.5, 0.8 + PANEL * len(panels)), 5.0), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for name, lines, axes in zip(panels, per_hour, every, strict=True):
        for place, (line, engine) in enumerate(zip(lines, engines, strict=True)):
            if np.isnan(line).all():
                continue
            first = ahead_from(counts, lines[0], line)
            crossing = (
                f"behind {engines[0]} from {first} on" if first else f"ahead of {engines[0]}, or level, at the end"
            )
            look = {"color": COLOURS[place], "marker": MARKERS[place], "lw": 1.2 if place else 2.2}
            label = filled(f"{engine} ({crossing})" if place else engine, PANEL - 0.9, 8)
            axes.plot(counts, line, ms=5, label=label, **look)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_xlabel("members in the sweep")
        axes.set_title(name, fontsize=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)
    every[0].set_ylabel("members an hour")
    every[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    every[0].yaxis.set_major_formatter("{x:g}")
    every[0].yaxis.minorticks_off()
    headed(figure, f"Members trained an hour\n{member}\n{machine}")
    return figure


def ahead_from(counts: Sequence[int], ours: Measured, theirs: Measured) -> int | None:
    """The least number of members from which on ours is ahead at every number that was measured, or None."""
    behind = [place for place, (our, their) in enumerate(zip(ours, theirs, strict=True)) if not our > their]
    first = behind[-1] + 1 if behind else 0
    return counts[first] if first < len(counts) else None
