"""The covered images (Zeiler & Fergus 2014, figure 8) and table 1 drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, tiles
from cnnjax.figures.colours import BLUE, VERMILION
from cnnjax.figures.texts import broken, headed, shortened, width_of

COLOURS = {"": BLUE, "_between": VERMILION}  # pairs of one class, pairs of two
NAME = 24  # characters of an image or of a part


@settings.own
def draw(
    shown: Float[np.ndarray, "images columns height width channels"],
    names: Sequence[str],
    columns: Sequence[str],
    parts: Sequence[str],
    layers: tuple[str, str],
    table: Mapping[str, Float[np.ndarray, "parts layers *numbers"]],
    note: str,
    are_parts: bool = True,
) -> Any:
    """Left the images, as they are and covered; right Delta of each part at both layers, with its test.

    The band is the test's: where the mean over random boxes lies in nine of ten designations. Delta is left of it
    exactly where p is at most 0.05.

    Args:
        shown: grey levels, 0 to 255; NaN where an image lacks the part.
        names: of the images.
        columns: what is covered.
        table: Delta first in "part", the band in "band", and "p"; the same with "_between", NaN where there are no
            pairs of two classes.
        are_parts: False: arbitrary places, the same in every image.
    """
    from matplotlib.figure import Figure

    what = "part" if are_parts else "place"
    height, width = shown.shape[2:4]
    several = bool(np.isfinite(table["part_between"]).any())
    columns, rows = [shortened(name, NAME) for name in columns], [broken(shortened(name, NAME), 18) for name in names]
    inches = max(0.62, *(0.15 * (1 + name.count("\n")) for name in rows))  # of an image
    pictures = inches * len(columns) * width / height + 0.3 + max(width_of(name, 8) for name in rows)
    wide = pictures + 9.0
    figure = Figure(figsize=(wide, max(4.6, inches * len(shown) + 3.2, 0.6 * len(parts) + 2.6)), layout="constrained")
    upper: Any = figure.subfigures(1, 1)  # below it, and below its legend, stands the note
    left, *panels = upper.subplots(1, 3, width_ratios=(pictures, 4.5, 4.5))
    lacking = np.isnan(shown).all(axis=(2, 3, 4), keepdims=True)
    tiles.show(left, tiles.grid(np.where(lacking, tiles.EMPTY, shown / 255)))
    left.set_xticks(tiles.centres(len(columns), width), columns, fontsize=8, rotation=45, ha="left")
    left.set_yticks(tiles.centres(len(shown), height), rows, fontsize=8)
    left.xaxis.tick_top()
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    panels[0].sharex(panels[1])
    endings = {"": "pairs of one class" if several else "all pairs"}
    endings |= {"_between": "pairs of two classes"} if several else {}
    for place, (axes, layer) in enumerate(zip(panels, layers, strict=True)):
        for ending, of in endings.items():
            down = np.arange(len(parts)) + 0.13 * (1 if ending else -several)
            low, middle, high = np.moveaxis(table["band" + ending][:, place], -1, 0)
            colour = COLOURS[ending]
            style = {"color": colour, "label": f"random boxes, {of}: 90 % of the means, median"}
            axes.errorbar(middle, down, xerr=(middle - low, high - middle), fmt="|", alpha=0.45, elinewidth=7, **style)
            face = {"ms": 6, "mfc": "white" if ending else colour, "label": f"the same {what}, {of}"}
            axes.plot(table["part" + ending][:, place, 0], down, "s" if ending else "o", color=colour, **face)
        ps = np.stack([table["p" + ending][:, place] for ending in endings], axis=1)
        labels = [
            f"{broken(shortened(part, NAME), 14)}\np = " + ", ".join(f"{p:.4f}" for p in of_part)
            for part, of_part in zip(parts, ps, strict=True)
        ]
        axes.set_yticks(np.arange(len(parts)), labels, fontsize=8)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.grid(alpha=0.3, axis="x")
        axes.set_xlabel("Δ, share of the features")
        axes.set_title(broken(layer, 24), fontsize=10)
    known = panels[0].get_legend_handles_labels()
    upper.legend(*known, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    said = (
        f"Δ left of its band: p ≤ 0.05, so many random boxes at most have as small a Δ"
        f"{' (p of one class, of two)' if several else ''}. {note}"
    )
    headed(figure, f"Does covering the same {what} in several images change the features alike?", said)
    return figure
