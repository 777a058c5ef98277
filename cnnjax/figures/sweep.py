"""What a sweep found: error over each axis, learning curves, two axes at once, importance, filters by member."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings, texts, tiles

CURVE_COLOURS = "viridis"
MOST_TICKS = 10  # values that get a tick each, and a line through them
MOST_NAMED, MOST_NAMED_BEST = 12, 4  # curves that the legend names
LINE_STYLES = ("-", "--", ":", "-.")


def text_of(value: Any) -> str:
    """An axis's value, short."""
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def split_of(field: str) -> str:
    """Of a field of the metrics: "validation" of "validation_error"."""
    return field.partition("_")[0]


def _positions(axes: Any, values: Sequence[Any]) -> np.ndarray:
    """Where the values stand: as numbers, on a logarithmic scale where most are small beside the largest; where they
    are none, or would stand too close for a tick each, at equal distances."""
    numeric = all(isinstance(value, (int, float)) and np.isfinite(value) for value in values)
    numbers = np.array(values, float) if numeric else np.arange(len(values), dtype=float)
    largest = numbers.max()
    if numbers.min() > 0 and largest >= 20 * numbers.min() and np.median(numbers) < largest / 4:
        settings.make_logarithmic(axes, "x")
    elif len(values) <= MOST_TICKS and np.diff(numbers).min(initial=np.inf) < 0.15 * np.ptp(numbers):
        numbers = np.arange(len(values))
    if len(values) <= MOST_TICKS or not numeric:
        labels = [text_of(value) for value in values]
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, labels)) > 24 else {}
        axes.set_xticks(numbers, labels, minor=False, **turned)
        axes.minorticks_off()
    return numbers


@settings.own
def draw_axes(
    names: Sequence[str],
    values: Sequence[Sequence[Any]],
    mean: Sequence[np.ndarray],
    low: Sequence[np.ndarray],
    high: Sequence[np.ndarray],
    epoch: int,
    split: str = "test",
) -> Any:
    """A panel an axis: the mean error at each of its values over all other axes and seeds, and the whole span.

    All panels have one scale of errors. Many values, as of a draw, are dots without a line through them.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(5.2, 3.4 * columns + 0.6), 2.7 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).reshape(-1)
    for axes, name, axis, middle, bottom, top in zip(panels, names, values, mean, low, high, strict=False):
        positions = _positions(axes, axis)
        if len(axis) <= MOST_TICKS:
            axes.fill_between(positions, 100 * bottom, 100 * top, color="tab:blue", alpha=0.2, lw=0)
            axes.plot(positions, 100 * middle, color="tab:blue", marker="o", ms=4)
        else:
            axes.vlines(positions, 100 * bottom, 100 * top, color="tab:blue", alpha=0.4, lw=2)
            axes.plot(positions, 100 * middle, "o", color="tab:blue", ms=4)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for row in panels.reshape(rows, columns):
        row[0].set_ylabel(f"{split} error at epoch {epoch}, %")
    figure.supxlabel("dots: mean over everything else; shaded: from the best to the worst member", fontsize=8)
    figure.suptitle("Error over each axis", fontsize=11)
    return figure


@settings.own
def draw_curves(
    epochs: Sequence[int],
    errors: Float[np.ndarray, "members epochs"],
    name: str,
    values: Sequence[Any],
    labels: Sequence[str],
    best: Sequence[int],
    split: str = "test",
) -> Any:
    """The error of every member by epoch, coloured by one axis; NaN where a member was stopped.

    Up to `MOST_NAMED` members are named in the legend, of which those of one colour have a style each; of more only
    the best are, which stand out.

    Args:
        name, values: of the axis, and each member's.
        labels: what the members are called.
        best: rows of the best members, the best first.
    """
    import matplotlib
    from matplotlib.figure import Figure

    order = list(dict.fromkeys(values))
    colours = matplotlib.colormaps[CURVE_COLOURS](np.linspace(0, 0.9, len(order)))
    all_named = len(labels) <= MOST_NAMED
    named = range(len(labels)) if all_named else best[:MOST_NAMED_BEST]
    texts_of = {row: texts.filled(labels[row], 2.3, 8) for row in named}
    height = 0.9 + 0.17 * (2 + sum(text.count("\n") + 1 for text in texts_of.values()))
    figure = Figure(figsize=(9, max(4.2, height)), layout="constrained")
    axes: Any = figure.subplots()
    handles: dict[int, Any] = {}
    of_colour: dict[int, int] = {}
    for row, (line, value) in enumerate(zip(errors, values, strict=True)):
        index = order.index(value)
        place = of_colour.setdefault(index, 0)
        of_colour[index] += 1
        look: dict[str, Any] = {"color": colours[index], "lw": 0.9, "alpha": 0.8}
        if all_named:
            look |= {"lw": 1.4, "alpha": 1.0, "ls": LINE_STYLES[place % len(LINE_STYLES)]}
        elif row in texts_of:
            look = {"color": "black", "lw": 1.8, "ls": LINE_STYLES[list(named).index(row)], "zorder": 3}
        (handle,) = axes.plot(epochs, 100 * line, **look)
        if row in texts_of:
            handle.set_label(texts_of[row])
            handles[row] = handle
        last = int(np.flatnonzero(np.isfinite(line))[-1])
        if last < len(epochs) - 1:
            axes.plot(epochs[last], 100 * line[last], "x", color=look["color"], ms=5)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{split} error, %")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    title = "member" if all_named else f"the best {len(handles)} of {len(labels)} members"
    shown = [handles[row] for row in named]
    figure.legend(handles=shown, title=title, loc="outside right center", frameon=False, fontsize=8)
    notes = [f"from dark to light: {name} from {text_of(order[0])} to {text_of(order[-1])}"] if len(order) > 1 else []
    if not np.isfinite(errors).all():
        notes.append("x: stopped early")
    if notes:
        figure.supxlabel("; ".join(notes), fontsize=8)
    figure.suptitle(f"Learning curves of {len(labels)} members", fontsize=11)
    return figure


@settings.own
def draw_heat(
    first: str,
    rows: Sequence[Any],
    second: str,
    columns: Sequence[Any],
    cells: Float[np.ndarray, "rows columns"],
    epoch: int,
    split: str = "test",
) -> Any:
    """The mean error of each combination of two axes' values; empty where there is none."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(max(4.5, 1.9 + 0.75 * len(columns)), max(3.2, 1.6 + 0.45 * len(rows))), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(100 * cells, cmap="cividis_r", aspect="auto")
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), [text_of(value) for value in columns], **turned)
    axes.set_yticks(range(len(rows)), [text_of(value) for value in rows])
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    middle = 100 * (np.nanmin(cells) + np.nanmax(cells)) / 2
    for i, j in np.ndindex(*cells.shape):
        if np.isfinite(cells[i, j]):
            dark = 100 * cells[i, j] > middle
            text = f"{100 * cells[i, j]:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    figure.set_layout_engine("constrained", w_pad=0.1)  # a colour bar's label is wider than the layout takes it for
    texts.headed(figure, f"Error over {first} and {second}")
    figure.colorbar(image, label=f"mean {split} error at epoch {epoch}, %")
    return figure


@settings.own
def draw_importance(names: Sequence[str], shares: Float[np.ndarray, " axes"], split: str = "test") -> Any:
    """A bar an axis: the share of the errors' variance that its values explain by themselves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.1 + 0.4 * len(names)), layout="constrained")
    figure.suptitle("Which axis decides the error", fontsize=11)
    axes = figure.subplots()
    order = np.argsort(shares)
    axes.barh([names[i] for i in order], 100 * shares[order], color="tab:blue")
    for place, index in enumerate(order):
        axes.text(float(100 * shares[index] + 1), place, f"{100 * shares[index]:.0f}", va="center", fontsize=8)
    axes.set_xlim(0, 108)
    axes.set_xlabel(f"share of the variance of the final {split} errors, % (main effect)")
    return figure


@settings.own
def draw_filters(
    kernels: Sequence[Float[np.ndarray, "epochs _height _width _channels _filters"]],
    labels: Sequence[str],
    epochs: Sequence[int],
    name: str,
    errors: Float[np.ndarray, " rows"],
    split: str = "test",
) -> Any:
    """First-layer filters by member: a row a value of one axis, a column an epoch, in each cell the same filters.

    Members may have filters of several sizes, all of 1 or 3 input channels.

    One scale a cell, its largest weight, which is written below it: rates differ in how large they make the weights.
    """
    from matplotlib.figure import Figure

    rows, columns = len(kernels), len(epochs)
    largest = np.stack([np.abs(row).max(axis=(1, 2, 3, 4)) for row in kernels])
    figure = Figure(figsize=(max(4.0, 1.5 + 1.4 * columns), 1.2 + 1.5 * rows))
    figure.set_layout_engine("constrained", wspace=0.12)  # wider than the gaps between the filters of a cell
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for i, j in np.ndindex(rows, columns):
        shown = tiles.signed(np.moveaxis(kernels[i][j], -1, 0), largest[i, j])
        across = int(np.ceil(np.sqrt(len(shown))))
        missing = -len(shown) % across
        block = np.concatenate([shown, np.full((missing, *shown.shape[1:]), tiles.BACKGROUND)])
        axes = panels[i, j]
        axes.imshow(tiles.grid(block.reshape(-1, across, *shown.shape[1:])), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"±{largest[i, j]:.2g}", fontsize=7, labelpad=1)
        if i == 0:
            axes.set_title(f"epoch {epochs[j]}", fontsize=9)
        if j == 0:
            axes.set_ylabel(f"{labels[i]}\n{100 * errors[i]:.1f} % {split} error", fontsize=8)
    note = (
        "each row the member most like the best one in all else\n"
        "one scale a cell: mid grey 0, black and white ± its largest weight, given below it"
    )
    texts.headed(figure, f"First-layer filters by {name}", note)
    return figure
