"""Which pixels made the network say a class, method by method; and whether the weights matter (Adebayo et al. 2018)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Real

from cnnjax.figures import settings, tiles
from cnnjax.figures.convergence import MARKERS
from cnnjax.figures.texts import broken, fitting, headed, shortened, width_of

NAME = 32  # characters of a line of a row's label
PERCENTILE = 99.0  # of a map, drawn as its largest value


@settings.own
def draw(
    images: Real[np.ndarray, "images height width channels"],
    maps: Mapping[str, Float[np.ndarray, "images height width"]],
    projections: Mapping[str, Float[np.ndarray, "images height width channels"]],
    labels: Sequence[str],
    note: str,
) -> Any:
    """A row an image, a column a method: magnitudes as brightness, and signed projections with zero as mid grey.

    Args:
        images: grey levels, 0 to 255.
        maps: by method, not negative; each tile has its own scale, from 0 to its 99th percentile.
        projections: by method, signed; each tile has its own scale, the 99.5th percentile of its absolute values.
        labels: of the rows.
        note: what the rows are, for the title.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bright = matplotlib.colormaps["viridis"]
    columns = {"image": images / 255}
    for name, of in maps.items():
        top = np.percentile(of, PERCENTILE, axis=(1, 2), keepdims=True)
        columns[name] = bright(np.clip(of / np.where(top > 0, top, 1), 0, 1))[..., :3]
    for name, of in projections.items():
        columns[name] = np.stack([tiles.signed(tile, tiles.robust_scale(tile)) for tile in of])
    colour = [np.broadcast_to(column, (*column.shape[:3], 3)) for column in columns.values()]
    shown = np.stack(colour, axis=1)
    rows, count, height, width, _ = shown.shape
    cell = 1.05
    lines = [[broken(shortened(line, NAME), 18) for line in label.split("\n")] for label in labels]
    rows_called = ["\n".join(of) for of in lines]
    called = [name.replace(" ", "\n") for name in columns]
    wide = max(6.5, count * cell + 0.5 + max(width_of(label, 8) for label in rows_called))
    figure = Figure(figsize=(wide, rows * cell + 1.6), layout="constrained")
    axes = figure.subplots()
    tiles.show(axes, tiles.grid(shown))
    axes.set_xticks(tiles.centres(count, width), called, fontsize=fitting(called, cell, 8))
    axes.set_yticks(tiles.centres(rows, height), rows_called, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    said = []
    if maps:
        tops = [np.percentile(of, PERCENTILE, axis=(1, 2)) for of in maps.values()]
        bright = tiles.scales_in_words(np.concatenate(tops)).replace("±", "")
        said.append(f"{', '.join(maps)}: dark 0, bright the tile's {PERCENTILE:g}th percentile, {bright}")
    if projections:
        scales = tiles.scales_in_words([tiles.robust_scale(tile) for of in projections.values() for tile in of])
        said.append(f"{', '.join(projections)}: mid grey 0, contrast by tile, white {scales}")
    headed(figure, note, ";\n".join(said))
    return figure


@settings.own
def draw_sanity(
    stages: Sequence[str],
    rank: Mapping[str, Float[np.ndarray, "stages images"]],
    structure: Mapping[str, Float[np.ndarray, "stages images"]],
    note: str,
) -> Any:
    """How alike the maps remain while layers are randomized from the top down: a line a method, mean over images.

    Args:
        stages: the layer that was randomized last, the first one "none".
        note: over which images, for the title.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rank)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, curves, title in zip(
        panels, (rank, structure), ("rank correlation (Spearman)", "structural similarity (SSIM)"), strict=True
    ):
        for number, (name, values) in enumerate(curves.items()):
            alive = ~np.isnan(values)
            mean = np.where(alive, values, 0).sum(axis=1) / np.maximum(alive.sum(axis=1), 1)
            mean = np.where(alive.any(axis=1), mean, np.nan)
            axes.plot(mean, color=colours[number], marker=MARKERS[number % len(MARKERS)], ms=5, label=name)
        named = [shortened(stage, 24) for stage in stages]
        axes.set_xticks(range(len(stages)), named, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xlabel("layers with random weights: from the last one down to")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.axhline(0, color="0.5", lw=0.8)
    panels[0].set_ylabel("with the map of the trained network")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    headed(figure, note)
    return figure
