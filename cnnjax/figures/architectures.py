"""Several architectures side by side: first-layer filters with their spectra, and what the second layer sees.

Zeiler & Fergus 2014, figure 6.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cnnjax.figures import settings, tiles
from cnnjax.figures.convergence import MARKERS
from cnnjax.figures.projections import ALIKE, NAMES, Made, depends_in_words
from cnnjax.figures.texts import filled, headed

COLUMNS = 3  # blocks of filters in a row, so that the figure fits a page


@settings.own
def draw(
    kernels: Sequence[Float[np.ndarray, "_height _width _channels _filters"]],
    names: Sequence[str],
    notes: Sequence[str],
    frequencies: Float[np.ndarray, " rings"],
    spectra: Float[np.ndarray, "networks rings"],
    bands: tuple[float, float],
) -> Any:
    """A block of filters a network, strongest first, on one scale a network; below them the networks' mean spectra.

    Args:
        kernels: with 1 or 3 input channels.
        notes: what stands under each name.
        frequencies: middles of the rings, in cycles a pixel.
        spectra: mean power of a ring, white noise as 1.
        bands: where the middle band begins and ends, in cycles a pixel.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = -(-len(kernels) // COLUMNS)
    wide = 8.0
    figure = Figure(figsize=(wide, 2.1 * rows + 4.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.1 * rows + 0.4, 3.6))
    blocks = upper.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in blocks:
        axes.set_axis_off()
    for axes, kernel, name, note in zip(blocks, kernels, names, notes, strict=False):
        tiles.show(axes, tiles.grid(block(kernel)))
        axes.set_title(f"{name}\n{note}", fontsize=8)
    figure.suptitle("First-layer filters of several architectures, strongest first, and their spectra", fontsize=11)
    scales = tiles.scales_in_words([float(np.abs(kernel).max()) for kernel in kernels])
    said = (
        f"one scale a network: mid grey 0, black and white ± its largest weight ({scales}); "
        "blocks are as wide for any filters"
    )
    upper.supxlabel(filled(said, 0.96 * wide, 8), fontsize=8)
    axes = lower.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    styles = ("-", "--", ":", "-.")
    for index, (name, curve) in enumerate(zip(names, spectra, strict=True)):
        axes.plot(
            frequencies, curve, color=colours[index], linestyle=styles[index % 4], ms=4,
            marker=MARKERS[index % len(MARKERS)], label=name,
        )  # fmt: skip
    axes.axvspan(*bands, color="0.9", zorder=0, label="middle band")
    axes.axhline(1, color="0.5", linewidth=0.8, label="white noise")
    axes.set_xlim(0, 0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own has exponents in a notation that files.save leaves raw
    axes.set_xlabel("frequency, cycles a pixel")
    axes.set_ylabel("mean power of the filters,\nrelative to white noise")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


@settings.own
def draw_projections(
    projections: Sequence[Float[np.ndarray, "maps _height _width _channels"]],
    dead: Sequence[Bool[np.ndarray, " maps"]],
    names: Sequence[str],
    made: Sequence[Made],
    layer: str,
    searched: str,
) -> Any:
    """A block of projections a network, a tile a feature map, in the order of the maps.

    Args:
        projections: signed, NaN outside the image; each tile has its own scale, the 99.5th percentile of its absolute
            values.
        dead: maps that no image excites, left empty.
        made: how each network's were made, all by one rule.
        searched: the images that were searched, in words.
    """
    from matplotlib.figure import Figure

    rows, columns = -(-len(names) // COLUMNS), min(COLUMNS, len(names))
    figure = Figure(figsize=(8.0, 2.0 * rows + 1.5))
    figure.set_layout_engine("constrained", hspace=0.04)
    blocks = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in blocks:
        axes.set_axis_off()
    scales = []
    for axes, tile, empty, name, one in zip(blocks, projections, dead, names, made, strict=False):
        own = np.array([tiles.robust_scale(one) for one in tile])
        shown = np.where(empty[:, None, None, None], tiles.EMPTY, tiles.signed(tile, own[:, None, None, None]))
        scales += list(own[~empty])
        tiles.show(axes, tiles.grid(_in_rows(shown)))
        note = f", {empty.sum()} dead" if empty.any() else ""
        note += f", cosine {one.alike:.2f}" if np.isfinite(one.alike) else ""
        axes.set_title(f"{name}\ntiles {tile.shape[1]}×{tile.shape[2]} px{note}", fontsize=8)
    white = f", white {tiles.scales_in_words(scales)} in units of the network's input" if scales else ""
    alike = "cosine: mean with the same units' projections through another image; 1: the image does not matter"
    said = (
        f"maps: {made[0].chosen}", "a tile is what the unit sees; hatched: outside of the image",
        f"mid grey 0, contrast by tile{white}", "blocks are as wide for any tiles",
        *([alike] if np.isfinite([one.alike for one in made]).any() else []),
        *(f"{name}: {depends_in_words(one)}" for name, one in zip(names, made, strict=True) if one.alike >= ALIKE),
    )  # fmt: skip
    title = (
        f"The strongest activation of maps of {layer}, projected to the pixels ({NAMES[made[0].rule]});\n"
        f"searched: {searched}"
    )
    headed(figure, title, "; ".join(said))
    return figure


def block(
    kernel: Float[np.ndarray, "height width channels filters"],
) -> Float[np.ndarray, "rows columns height width channels"]:
    """The filters as tiles in a nearly square block, strongest first, on one scale; the rest of the block is white."""
    if kernel.shape[2] not in (1, 3):
        raise ValueError(f"kernels must have 1 or 3 input channels, got {kernel.shape[2]}")
    order = np.argsort(-np.mean(kernel**2, axis=(0, 1, 2)), kind="stable")
    shown = tiles.signed(np.moveaxis(kernel[..., order], -1, 0), np.abs(kernel).max())
    return _in_rows(shown)


def _in_rows(
    shown: Float[np.ndarray, "n height width channels"],
) -> Float[np.ndarray, "rows columns height width channels"]:
    columns = int(np.ceil(np.sqrt(1.5 * len(shown))))
    missing = -len(shown) % columns
    filled = np.concatenate([shown, np.full((missing, *shown.shape[1:]), tiles.BACKGROUND)])
    return filled.reshape(-1, columns, *shown.shape[1:])
