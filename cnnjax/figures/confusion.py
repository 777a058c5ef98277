"""Which classes are taken for which: a matrix where its names can be read, the most frequent confusions otherwise."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cnnjax.figures import settings
from cnnjax.figures.colours import BLUE
from cnnjax.figures.texts import headed, shortened

MOST_NAMED, MOST_NUMBERED, MOST_DRAWN = 30, 16, 200  # classes with names, with numbers in the cells, with a matrix
NAME = 24  # characters of a class
ABSENT = "0.85"  # a class without images


@settings.own
def draw(
    counts: Int[np.ndarray, "classes classes"], names: Sequence[str], pairs: Sequence[tuple[int, int, int]], note: str
) -> Any:
    """The matrix (row: true class, column: answer; shade: share of the row) and, of many classes, a bar a pair.

    Args:
        pairs: (true class, answer, images), the most frequent first.
        note: which images.
    """
    from matplotlib.figure import Figure

    classes = len(names)
    if classes <= MOST_NAMED:
        side = 2.6 + 0.42 * classes
        figure = Figure(figsize=(max(side + 1.4, 5.6), max(side, 4.6)), layout="constrained")
        _draw_matrix(figure, figure.subplots(), counts, names)
    else:
        matrix = classes <= MOST_DRAWN
        height = max(5.0, 0.24 * len(pairs) + 1.6)
        figure = Figure(figsize=(13.0 if matrix else 7.5, height), layout="constrained")
        *left, right = figure.subplots(1, 1 + matrix, squeeze=False, width_ratios=(1.2, 1) if matrix else None)[0]
        for axes in left:
            _draw_matrix(figure, axes, counts, None)
        _draw_pairs(right, names, pairs)
    figure.set_layout_engine("constrained", w_pad=0.1)  # a colour bar's label is wider than the layout takes it for
    headed(figure, "Which classes are taken for which", note)
    return figure


def _draw_matrix(figure: Any, axes: Any, counts: np.ndarray, names: Sequence[str] | None) -> None:
    import matplotlib

    shares = row_shares(counts)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=ABSENT)
    drawn = axes.imshow(np.ma.masked_invalid(100 * shares), cmap=colours, vmin=0, vmax=100, interpolation="nearest")
    axes.set_xlabel("answer of the network")
    axes.set_ylabel("true class")
    if names is None:
        axes.set_title(f"all {len(counts)} classes, by number", fontsize=10)
    else:
        places, labels = range(len(names)), short_names(names)
        turned = {"rotation": 90} if max(map(len, labels)) > 2 else {}
        axes.set_xticks(places, labels, fontsize=8, **turned)
        axes.set_yticks(places, labels, fontsize=8)
    if len(counts) <= MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "black"
            if count:
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(drawn, ax=axes, label="% of the true class", shrink=0.8)


def _draw_pairs(axes: Any, names: Sequence[str], pairs: Sequence[tuple[int, int, int]]) -> None:
    down = np.arange(len(pairs))
    short = short_names(names)
    labels = [f"{short[true]} → {short[said]}" for true, said, _ in pairs]
    axes.barh(down, [images for *_, images in pairs], color=BLUE)
    axes.set_yticks(down, labels, fontsize=8)
    axes.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("images")
    axes.set_title("most frequent confusions: true class → answer" if pairs else "no confusions", fontsize=10)


def short_names(names: Sequence[str]) -> list[str]:
    """At most NAME characters each; with the number of the class before them where several would be alike."""
    short = [shortened(name, NAME) for name in names]
    numbered = [shortened(f"{number} {name}", NAME) for number, name in enumerate(names)]
    alike = {name for name, times in Counter(short).items() if times > 1}
    return [long if name in alike else name for name, long in zip(short, numbered, strict=True)]


def row_shares(counts: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, "classes classes"]:
    """Each row as shares of its sum; NaN where that is 0."""
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)
