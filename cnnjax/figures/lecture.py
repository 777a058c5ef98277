"""The lecture's figures: grids of numbers with the window in view, feature maps of a photograph, two curves.

Nothing is told by colour alone: windows are outlined, curves have markers, numbers stand in their cells.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from cnnjax.figures import settings
from cnnjax.figures.colours import BLUE, VERMILION
from cnnjax.figures.convergence import MARKERS
from cnnjax.figures.texts import fitting, headed

OUTLINE = VERMILION  # which stays apart from greys and blues for every reader
SHADES = ("#ffffff", "#d6e6f4", "#a9cfe8", "#d9d9d9")  # light enough for black numbers
BESIDE = 0.5  # cells of space at either side of a grid
CELL = 0.36  # inches at least
BRIGHTEST = 99.5  # percentile that is drawn white: a few extreme pixels do not make the rest black


class Fit(NamedTuple):
    """One filter laid along one row of pixels: `output` windows, or None where it does not fit."""

    size: int
    window: int
    stride: int
    padding: int
    output: int | None


@settings.own
def draw_scanner(
    image: Int[np.ndarray, "height width"],
    kernel: Int[np.ndarray, "window window"],
    output: Int[np.ndarray, "rows columns"],
) -> Any:
    """Image, filter and output; the first window and what comes of it are outlined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=_widths(image, kernel, output))
    tallest = image.shape[0]
    _numbers(left, image, f"image, {_by(image)}", tallest, filled=image == 1)
    _numbers(middle, kernel, f"filter, {_by(kernel)}", tallest, filled=kernel == 1)
    _numbers(right, output, f"output, {_by(output)}", tallest)
    _outline(left, (0, 0), kernel.shape)
    _outline(right, (0, 0), (1, 1))
    note = f"The filter over the outlined window: the products add up to {output[0, 0]}. Stride 1, no padding."
    headed(figure, "A filter scans an image", note)
    return figure


@settings.own
def draw_rgb(
    padded: Int[np.ndarray, "channels height width"],
    kernels: Int[np.ndarray, "channels window window"],
    sums: Int[np.ndarray, " channels"],
    bias: int,
    total: int,
    names: Sequence[str],
) -> Any:
    """A row of panels a channel: pixels with their zeros, filter, and the sum over the outlined first window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 9.0), layout="constrained")
    rows = figure.subplots(len(padded), 3, squeeze=False, width_ratios=(*_widths(padded[0], kernels[0]), 2.6))
    for panels, pixels, kernel, part, name in zip(rows, padded, kernels, sums, names, strict=True):
        tallest = len(pixels)
        _numbers(panels[0], pixels, f"{name}: the corner, with zeros", tallest, filled=pixels == 0, fill=SHADES[3])
        _outline(panels[0], (0, 0), kernel.shape)
        _numbers(panels[1], kernel, "its part of the filter", tallest)
        panels[2].set_axis_off()
        panels[2].text(0.5, 0.5, f"sum: {_signed(part)}", ha="center", va="center", fontsize=13)
    terms = " + ".join(f"({_signed(part)})" if part < 0 else f"{part}" for part in sums)
    headed(figure, "A filter over several channels", f"first output:  {terms} + {bias} (bias) = {_signed(total)}")
    return figure


@settings.own
def draw_strides(fits: Sequence[Fit]) -> Any:
    """One panel a case: the row of pixels with its zeros, and below it every place of the filter."""
    from matplotlib.figure import Figure

    tried = [_places(fit) for fit in fits]
    most_zeros = max(fit.padding for fit in fits)
    reach = max(max(fit.size + fit.padding, places[-1] + fit.window) for fit, places in zip(fits, tried, strict=True))
    heights = [len(places) + 2 for places in tried]
    figure = Figure(figsize=(5.6, 0.36 * sum(heights) + 1.0), layout="constrained")
    panels = figure.subplots(len(fits), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, fit, places, height in zip(panels, fits, tried, heights, strict=True):
        for pixel in range(-fit.padding, fit.size + fit.padding):
            inside = 0 <= pixel < fit.size
            _box(axes, pixel, 0, 1, facecolor="white" if inside else SHADES[3], edgecolor="black")
            axes.text(pixel + 0.5, 0.5, str(pixel + 1) if inside else "0", ha="center", va="center", fontsize=8)
        for row, place in enumerate(places):
            over = place + fit.window > fit.size + fit.padding
            style = {"facecolor": "white", "edgecolor": OUTLINE, "hatch": "////"} if over else {"facecolor": BLUE}
            _box(axes, place, row + 1.25, fit.window, height=0.6, **style)
        zeros = "no padding" if fit.padding == 0 else f"padding {fit.padding}"
        end = "does not fit" if fit.output is None else f"{fit.output} outputs"
        axes.set_title(f"stride {fit.stride}, {zeros}: {end}", fontsize=10, loc="left")
        axes.set(xlim=(-most_zeros - 0.1, reach + 0.1), ylim=(height - 0.6, -0.1))
        axes.set_axis_off()
    note = (
        f"{fits[0].size} pixels (cells) and every place of a filter of {fits[0].window} (bars); zeros in grey; "
        "hatched: the place that reaches over the edge"
    )
    headed(figure, "Stride, padding, and what does not fit", note)
    return figure


@settings.own
def draw_pooling(
    image: Int[np.ndarray, "height width"],
    switches: Int[np.ndarray, "rows columns"],
    output: Int[np.ndarray, "rows columns"],
    window: int,
) -> Any:
    """Input and output; each window has its shade in both, and its largest pixel (its switch) is outlined."""
    from matplotlib.figure import Figure

    cells = image.shape[1] + output.shape[1] + 4 * BESIDE
    figure = Figure(figsize=(max(6.6, CELL * cells), max(4.1, CELL * image.shape[0] + 1.0)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=_widths(image, output))
    shades = np.add.outer(output.shape[1] * np.arange(output.shape[0]), np.arange(output.shape[1])) % len(SHADES)
    tallest = image.shape[0]
    _numbers(left, image, f"input, {_by(image)}", tallest, shades=np.kron(shades, np.ones((window, window), int)))
    _numbers(right, output, f"output, {_by(output)}", tallest, shades=shades)
    for switch in switches.ravel():
        _outline(left, divmod(int(switch), image.shape[1]), (1, 1))
    headed(figure, f"Max pooling, F = {window}, S = {window}", "the largest of each window (outlined) stays")
    return figure


@settings.own
def draw_feature_maps(
    photograph: Num[np.ndarray, "height width"],
    maps: Float[np.ndarray, "map_height map_width filters"],
    names: Sequence[str],
    kernels: Sequence[Int[np.ndarray, "window window"]],
    divisors: Sequence[int],
) -> Any:
    """The photograph and its maps after ReLU, each on its own scale: 0 black, its 99.5th percentile white."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 8.4), layout="constrained")
    columns = 3
    panels = figure.subplots(-(-(len(names) + 1) // columns), columns).ravel()
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(photograph, cmap="gray", vmin=0, vmax=255)
    panels[0].set_title(f"photograph, {_by(photograph)}", fontsize=10)
    shown = zip(panels[1 : len(names) + 1], np.moveaxis(maps, 2, 0), names, kernels, divisors, strict=True)
    for axes, image, name, kernel, divisor in shown:
        axes.imshow(image, cmap="gray", vmin=0, vmax=max(np.percentile(image, BRIGHTEST), 1e-9))
        rows = "\n".join(" ".join(f"{_signed(weight):>2}" for weight in row) for row in kernel)
        share = "" if divisor == 1 else f", 1/{divisor} of"
        axes.set_title(f"{name}{share}\n{rows}", family="monospace", fontsize=9)
    note = f"the filter stands above its map; each map on its own scale: 0 black, its {BRIGHTEST}th percentile white"
    headed(figure, "Feature maps of a photograph after ReLU", note)
    return figure


@settings.own
def draw_relu(
    before: Float[np.ndarray, "height width filters"],
    after: Float[np.ndarray, "height width filters"],
    names: Sequence[str],
) -> Any:
    """A column a filter: its map before the ReLU, zero mid grey, and after it, zero black; each on its own scale."""
    from matplotlib.figure import Figure

    cell = 2.0
    figure = Figure(figsize=(max(6.4, cell * len(names) + 0.6), 2 * cell + 1.5), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        signal, passed = before[..., column], after[..., column]
        scale = max(np.percentile(np.abs(signal), BRIGHTEST), 1e-9)
        panels[0, column].imshow(signal, cmap="gray", vmin=-scale, vmax=scale)
        panels[1, column].imshow(passed, cmap="gray", vmin=0, vmax=scale)
        size = fitting([name], cell, 10)
        panels[0, column].set_title(name, fontsize=size)
        panels[1, column].set_xlabel(f"{100 * (passed > 0).mean():.0f} % pass", fontsize=9)
        for axes in panels[:, column]:
            axes.set(xticks=[], yticks=[])
    panels[0, 0].set_ylabel("before", fontsize=10)
    panels[1, 0].set_ylabel("after", fontsize=10)
    note = f"before: mid grey 0; after: black 0; white the {BRIGHTEST}th percentile of the absolute values before"
    headed(figure, "What the ReLU lets pass: max(0, x)", note)
    return figure


@settings.own
def draw_weights(kernels: Float[np.ndarray, "window window filters"], title: str) -> Any:
    """The filters as pictures beside each other, on one scale: zero mid grey."""
    from matplotlib.figure import Figure

    count = kernels.shape[2]
    figure = Figure(figsize=(max(6.4, 0.8 * count + 0.6), 2.1), layout="constrained")
    scale = max(np.abs(kernels).max(), 1e-9)
    for number, axes in enumerate(figure.subplots(1, count, squeeze=False)[0]):
        axes.imshow(kernels[..., number], cmap="gray", vmin=-scale, vmax=scale)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(str(number), fontsize=8)
    headed(figure, title, f"{_by(kernels[..., 0])} weights each; mid grey 0, white {scale:.2g}, black −{scale:.2g}")
    return figure


@settings.own
def draw_bars(
    class_names: Sequence[str], bars: dict[str, Float[np.ndarray, " classes"]], title: str, note: str, what: str
) -> Any:
    """A group of bars a class, one for each of `bars`, with the numbers at them; `what` they are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 0.8 * len(class_names) * len(bars)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    colours, hatches = (BLUE, "white", SHADES[2]), ("", "////", "..")
    for index, (name, values) in enumerate(bars.items()):
        places = np.arange(len(values)) + (index - (len(bars) - 1) / 2) * width
        style = index % len(colours)
        drawn = axes.bar(
            places, values, width, edgecolor="black", label=name, color=colours[style], hatch=hatches[style]
        )
        axes.bar_label(drawn, [_signed(f"{value:.3g}") for value in values], fontsize=8, padding=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(class_names)), class_names, fontsize=fitting(class_names, 0.8 * len(bars), 10))
    lowest = min(0.0, *(values.min() for values in bars.values()))
    axes.set_ylim(1.25 * lowest, 1.45)
    axes.set_ylabel(what)
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=len(bars))
    headed(figure, title, note)
    return figure


@settings.own
def draw_invariance(
    inputs: Num[np.ndarray, "shown height width"],
    input_shifts: Int[np.ndarray, " shown"],
    shifts: Int[np.ndarray, " shifts"],
    curves: dict[str, Float[np.ndarray, " shifts"]],
) -> Any:
    """The shifted input, and how far each representation is from that of the input in its place."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.6))
    panels = left.subplots(len(inputs), 1, squeeze=False)[:, 0]
    for axes, image, shift in zip(panels, inputs, input_shifts, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"moved by {shift} pixel{'' if shift == 1 else 's'}", fontsize=10)
        axes.set(xticks=[], yticks=[])
    axes = right.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    for (name, curve), marker, colour in zip(curves.items(), MARKERS, colours, strict=False):
        axes.plot(shifts, curve, marker=marker, color=colour, label=name, ms=5, clip_on=False)
    axes.set_xticks(shifts)
    axes.set_xlim(0, max(shifts))
    axes.set_ylim(0, 1.06 * max(curve.max() for curve in curves.values()))
    axes.set_xlabel("shift to the right, pixels")
    axes.set_ylabel("distance from the unshifted one,\nas a share of its norm")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    headed(figure, "What is left of a shift, representation by representation")
    return figure


@settings.own
def draw_training(
    class_names: Sequence[str],
    target: Float[np.ndarray, " classes"],
    outputs: dict[str, Float[np.ndarray, " classes"]],
    errors: Float[np.ndarray, " outputs"],
    steps: Int[np.ndarray, " steps"],
    total_error: Float[np.ndarray, " steps"],
    wrong: Float[np.ndarray, " steps"],
    title: str,
) -> Any:
    """The lecture's probabilities beside their target, and a training that really ran: total error and wrong share."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.8, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = ["target", *(f"{name}: total error {error:.3g}" for name, error in zip(outputs, errors, strict=True))]
    colours = ["white", *matplotlib.colormaps["Blues"](np.linspace(0.3, 1, len(outputs)))]
    width = 0.8 / len(labels)
    for index, (label, values, colour) in enumerate(zip(labels, [target, *outputs.values()], colours, strict=True)):
        places = np.arange(len(values)) + (index - (len(labels) - 1) / 2) * width
        hatch = "" if index else "////"
        bars = left.bar(places, values, width, color=colour, edgecolor="black", hatch=hatch, label=label)
        written = [f"{value:.3g}" for value in values]
        points = fitting(written, 3.4 * width / len(values), 7)
        left.bar_label(bars, written, fontsize=max(points, 6), rotation=0 if points >= 6 else 90)
    left.set_xticks(range(len(class_names)), class_names)
    left.set_ylim(0, 1.5)
    left.set_yticks((0, 0.5, 1))
    left.set_ylabel("probability")
    left.set_title("the lecture's image of a boat", fontsize=10)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    right.plot(steps, total_error, color=BLUE, marker="o", ms=4, label="total error an image (left axis)")
    right.set_xlabel("updates")
    right.set_ylabel("total error, mean over the images")
    right.set_ylim(0, None)
    share = right.twinx()
    share.plot(steps, 100 * wrong, color=OUTLINE, marker="s", ms=4, ls="--", label="wrong class (right axis)")
    share.set_ylabel("wrong, %")
    share.set_ylim(0, 100)
    right.set_title(title, fontsize=10)
    right.grid(alpha=0.3)
    right.legend(handles=[*right.lines, *share.lines], fontsize=8, frameon=False, loc="upper right")
    headed(figure, "Training: total error down to few wrong answers")
    return figure


def _numbers(axes, grid, title: str, tallest: int, *, filled=None, fill: str = SHADES[1], shades=None) -> None:
    """The numbers of a grid in square cells, in the middle of `tallest` rows: cells of all panels have one size."""
    for (row, column), value in np.ndenumerate(grid):
        shade = SHADES[shades[row, column]] if shades is not None else "white"
        colour = fill if filled is not None and filled[row, column] else shade
        _box(axes, column, row, 1, facecolor=colour, edgecolor="0.4")
        axes.text(column + 0.5, row + 0.5, _signed(value), ha="center", va="center", fontsize=11)
    height, width = grid.shape
    above = (tallest - height) / 2 + 0.1
    axes.set(xlim=(-BESIDE, width + BESIDE), ylim=(height + above, -above), aspect="equal")
    axes.set_axis_off()
    axes.text(width / 2, -0.2, title, ha="center", va="bottom", fontsize=10)


def _widths(*grids: np.ndarray) -> list[float]:
    """Widths of the panels of `_numbers`, in cells."""
    return [grid.shape[1] + 2 * BESIDE for grid in grids]


def _outline(axes, corner: tuple[int, int], shape: tuple[int, ...]) -> None:
    row, column = corner
    _box(axes, column, row, shape[1], height=shape[0], facecolor="none", edgecolor=OUTLINE, linewidth=3, zorder=3)


def _box(axes, left: float, top: float, width: float, *, height: float = 1, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, **style))


def _places(fit: Fit) -> list[int]:
    """Where the filter begins each time; the last one reaches over the edge if it does not fit."""
    end = fit.size + fit.padding
    inside = list(range(-fit.padding, end - fit.window + 1, fit.stride))
    return inside if fit.output is not None else [*inside, inside[-1] + fit.stride]


def _by(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape))


def _signed(value: Any) -> str:
    return f"{value}".replace("-", "−")
