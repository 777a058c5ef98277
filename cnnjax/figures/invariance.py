"""Features and answer against what is done to the image (Zeiler & Fergus 2014, figure 5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, tiles
from cnnjax.figures.convergence import MARKERS
from cnnjax.figures.texts import broken, shortened

AXES = {"translation": "vertical translation, px (down +)", "scale": "scale ratio", "rotation": "rotation, degrees"}
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#d55e00", "#999999")  # Okabe & Ito


@settings.own
def draw(
    examples: Mapping[str, Float[np.ndarray, "images shown height width channels"]],
    shown: Mapping[str, Float[np.ndarray, " shown"]],
    values: Mapping[str, Float[np.ndarray, " values"]],
    distance: Mapping[str, Float[np.ndarray, "images 2 values"]],
    probability: Mapping[str, Float[np.ndarray, "images values"]],
    names: Sequence[str],
    layers: tuple[str, str],
    unit: str,
    target: str = "true class",
) -> Any:
    """A row a transformation: the images, both distances, the probability of a class; a curve an image.

    Args:
        examples: the images at some of the values, by transformation; grey levels, 0 to 255.
        shown: those values.
        names: of the images, for the legend.
        unit: of the distances.
        target: whose probability it is.
    """
    from matplotlib.figure import Figure

    names = [shortened(name, 28) for name in names]
    figure = Figure(figsize=(13.0, 3.1 * len(values) + 1.1), layout="constrained")
    panels = figure.subplots(len(values), 4, width_ratios=(1.15, 1, 1, 1), squeeze=False)
    handles = []
    for (picture, *curves), (name, amounts) in zip(panels, values.items(), strict=True):
        _pictures(picture, examples[name], shown[name], AXES[name], names)
        rows = (distance[name][:, 0], distance[name][:, 1], probability[name])
        for axes, lines in zip(curves, rows, strict=True):
            handles = [_line(axes, amounts, line, number, names[number]) for number, line in enumerate(lines)]
            axes.set_xlabel(AXES[name])
    _label(panels[:, 1:], layers, unit, target)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 5), frameon=False, fontsize=9)
    return figure


@settings.own
def draw_average(
    values: Mapping[str, Float[np.ndarray, " values"]],
    distance: Mapping[str, Float[np.ndarray, "images 2 values"]],
    probability: Mapping[str, Float[np.ndarray, "images values"]],
    unrelated: Float[np.ndarray, " 2"],
    layers: tuple[str, str],
    unit: str,
    note: str,
    target: str = "true class",
) -> Any:
    """The same over many images: mean, median, and a band from the lower to the upper quartile.

    Args:
        unrelated: mean distance to another image, drawn as a level.
        note: which images, for the title.
        target: whose probability it is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 2.9 * len(values) + 1.2), layout="constrained")
    panels = figure.subplots(len(values), 3, squeeze=False)
    handles = []
    for row, (name, amounts) in zip(panels, values.items(), strict=True):
        curves = (distance[name][:, 0], distance[name][:, 1], probability[name])
        for axes, lines, level in zip(row, curves, (*unrelated, None), strict=True):
            low, median, high = np.percentile(lines, (25, 50, 75), axis=0)
            band = axes.fill_between(amounts, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="quartiles")
            (middle,) = axes.plot(amounts, median, color=COLOURS[0], label="median")
            (mean,) = axes.plot(amounts, lines.mean(axis=0), color=COLOURS[6], ls="--", label="mean")
            handles = [*handles[3:], mean, middle, band][-3:]
            if level is not None:
                other = axes.axhline(level, color="black", ls=":", label="mean distance to another image")
            axes.set_xlabel(AXES[name])
    _label(panels, layers, unit, target)
    figure.legend(handles=[*handles, other], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(note, fontsize=11)
    return figure


def _pictures(axes: Any, examples: np.ndarray, shown: np.ndarray, what: str, names: Sequence[str]) -> None:
    """The images, a row each and a column a value."""
    height, width = examples.shape[2:4]
    axes.imshow(tiles.grid(np.clip(examples / 255, 0, 1)), interpolation="nearest")
    axes.set_xticks(tiles.centres(len(shown), width), [f"{value:g}" for value in shown])
    axes.set_yticks(tiles.centres(len(examples), height), names, fontsize=8)
    for number, tick in enumerate(axes.get_yticklabels()):
        tick.set_color(COLOURS[number % len(COLOURS)])
    axes.set_xlabel(what)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _line(axes: Any, amounts: np.ndarray, line: np.ndarray, number: int, name: str) -> Any:
    marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
    every = max(1, len(amounts) // 8)
    return axes.plot(amounts, line, color=colour, marker=marker, ms=4, markevery=(number % every, every), label=name)[0]


def _label(panels: Any, layers: tuple[str, str], unit: str, target: str) -> None:
    """One scale a column; a title on its top panel."""
    titles = (*(f"Euclidean distance at {broken(layer, 16)}{unit}" for layer in layers), f"probability of the {target}")
    for column, title in zip(panels.T, titles, strict=True):
        top = max(axes.dataLim.y1 for axes in column)
        for axes in column:
            axes.set_ylim(0, 1.02 if title is titles[2] else 1.05 * top)
            axes.margins(x=0.02)
            axes.grid(alpha=0.3)
        column[0].set_title(title, fontsize=10)
