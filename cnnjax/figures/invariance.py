"""Features and answer against what is done to the image (Zeiler & Fergus 2014, figure 5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, tiles
from cnnjax.figures.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from cnnjax.figures.texts import broken, fitting, headed, shortened

AXES = {"translation": "vertical translation, px (down +)", "scale": "scale ratio", "rotation": "rotation, degrees"}
UNCHANGED = {"translation": 0.0, "scale": 1.0, "rotation": 0.0}  # the value that leaves an image as it is
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, SKY, VERMILION, GREY)
LANE, TILE = 0.75, 0.6  # share of a lane that its scale takes; height of a lane and of a picture beside it, inches


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
    """A block a transformation: an image a row, and beside it in lanes both distances and the probability of a class.

    All lanes of a column have one scale, from 0, whatever the transformation.

    Args:
        examples: the images at some of the values, by transformation; grey levels, 0 to 255.
        shown: those values.
        names: of the images.
        unit: of the distances.
        target: whose probability it is.
    """
    from matplotlib.figure import Figure

    names = [broken(shortened(name, 28), 16) for name in names]
    height, width = next(iter(examples.values())).shape[2:4]
    pictures = max(len(at) for at in shown.values()) * TILE * width / height
    figure = Figure(
        figsize=(pictures + 12.5, len(values) * (max(2.4, TILE * len(names)) + 1.0) + 0.8), layout="constrained"
    )
    panels = figure.subplots(len(values), 4, width_ratios=(pictures + 0.3, 3.4, 3.4, 3.4), squeeze=False)
    tops = [max(float(of[:, place].max()) for of in distance.values()) for place in (0, 1)]
    titles = (*_titles(layers, unit), f"probability of the {target}")
    for (picture, *lanes), (name, amounts) in zip(panels, values.items(), strict=True):
        _pictures(picture, examples[name], shown[name], name, names)
        rows = (distance[name][:, 0], distance[name][:, 1], probability[name])
        for axes, lines, top, title in zip(lanes, rows, (*tops, 1.0), titles, strict=True):
            _lanes(axes, amounts, lines, top if top > 0 else 1.0)
            axes.axvline(UNCHANGED[name], color="0.4", ls=":", lw=0.9)
            axes.set_xlabel(AXES[name])
            axes.set_title(title, fontsize=10)
    note = "a lane an image, all of a column on one scale; dotted: the image as it is"
    headed(figure, "What features and answer notice when an image is moved, enlarged or turned", note)
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

    figure = Figure(figsize=(11.0, 3.1 * len(values) + 1.2), layout="constrained")
    panels = figure.subplots(len(values), 3, squeeze=False)
    titles = (*_titles(layers, unit), f"probability of the {target}")
    handles = []
    for row, (name, amounts) in zip(panels, values.items(), strict=True):
        curves = (distance[name][:, 0], distance[name][:, 1], probability[name])
        for axes, lines, level, title in zip(row, curves, (*unrelated, None), titles, strict=True):
            low, median, high = np.percentile(lines, (25, 50, 75), axis=0)
            band = axes.fill_between(amounts, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="quartiles")
            (middle,) = axes.plot(amounts, median, color=COLOURS[0], label="median")
            (mean,) = axes.plot(amounts, lines.mean(axis=0), color=COLOURS[6], ls="--", label="mean")
            handles = [*handles[3:], mean, middle, band][-3:]
            if level is not None:
                other = axes.axhline(level, color="black", ls=":", label="mean distance to another image")
            axes.set_xlabel(AXES[name])
            axes.set_title(title, fontsize=10)
            axes.margins(x=0.02)
            axes.grid(alpha=0.3)
    for column in panels[:, :2].T:  # one scale a column
        top = max(axes.dataLim.y1 for axes in column)
        for axes in column:
            axes.set_ylim(0, 1.05 * top)
    for axes in panels[:, 2]:
        axes.set_ylim(0, 1.02)
    figure.legend(handles=[*handles, other], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    headed(figure, note)
    return figure


def _titles(layers: tuple[str, str], unit: str) -> list[str]:
    return [f"Euclidean distance at {broken(layer, 20)}{unit}" for layer in layers]


def _pictures(axes: Any, examples: np.ndarray, shown: np.ndarray, name: str, names: Sequence[str]) -> None:
    """The images, a row each and a column a value."""
    height, width = examples.shape[2:4]
    axes.imshow(tiles.grid(np.clip(examples / 255, 0, 1)), interpolation="nearest")
    labels = [f"{value:g}" for value in shown]
    axes.set_xticks(tiles.centres(len(shown), width), labels, fontsize=fitting(labels, TILE * width / height, 9))
    axes.set_yticks(tiles.centres(len(examples), height), names, fontsize=8)
    for number, tick in enumerate(axes.get_yticklabels()):
        tick.set_color(COLOURS[number % len(COLOURS)])
    axes.set_xlabel(AXES[name])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _lanes(axes: Any, amounts: np.ndarray, lines: Float[np.ndarray, "images values"], top: float) -> None:
    """A curve an image, each above its own zero; the first one uppermost."""
    zeros = np.arange(1, len(lines) + 1)
    for number, (zero, line) in enumerate(zip(zeros, lines, strict=True)):
        colour, curve = COLOURS[number % len(COLOURS)], zero - LANE * line / top
        axes.fill_between(amounts, curve, zero, color=colour, alpha=0.2, lw=0)
        axes.plot(amounts, curve, color=colour, lw=1.3)
    axes.set_yticks(np.sort([*zeros, *(zeros - LANE)]), [f"{top:.3g}", "0"] * len(lines), fontsize=7)
    axes.set_ylim(len(lines) + 0.02, 0)
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    axes.hlines(zeros, *axes.get_xlim(), color="0.4", lw=0.6)
