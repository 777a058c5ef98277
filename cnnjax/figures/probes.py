"""Error of a linear classifier on each layer's features (Zeiler & Fergus 2014, table 7, as curves)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnnjax.figures import settings
from cnnjax.figures.colours import BLUE, VERMILION
from cnnjax.figures.texts import headed, shortened

COLOURS = (BLUE, VERMILION)
MARKERS = "os"


@settings.own
def draw(
    accuracy: Float[np.ndarray, "weights folds layers classifiers counts"],
    weights: Sequence[str],
    layers: Sequence[str],
    classifiers: Sequence[str],
    per_class: Sequence[int],
    chance: float,
    title: str,
) -> Any:
    """A panel a number of training images; error in percent by layer, its mean and standard deviation over folds.

    Args:
        weights: names of the networks that are compared; the first is drawn filled, the others open and dashed.
        chance: accuracy of guessing.
    """
    from matplotlib.figure import Figure

    panels = len(per_class)
    figure = Figure(figsize=(max(6.5, 1.8 + 4.2 * panels), 4.4), layout="constrained")
    error = 100 * (1 - accuracy)
    for column, axes in enumerate(figure.subplots(1, panels, sharey=True, squeeze=False)[0]):
        for network, name in enumerate(weights):
            for kind, classifier in enumerate(classifiers):
                folds = error[network, :, :, kind, column]
                shift = 0.08 * (kind - (len(classifiers) - 1) / 2)  # so that error bars do not cover one another
                axes.errorbar(
                    np.arange(len(layers)) + shift, folds.mean(axis=0), folds.std(axis=0), capsize=3, ms=6,
                    color=COLOURS[kind % 2], marker=MARKERS[kind % 2], linestyle="--" if network else "-",
                    markerfacecolor="white" if network else None, label=f"{classifier}, {name}",
                )  # fmt: skip
        axes.axhline(100 * (1 - chance), color="0.5", linestyle=":", label="chance", zorder=0)
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, layers)) > 40 else {}
        axes.set_xticks(range(len(layers)), [shortened(layer, 24) for layer in layers], **turned)
        axes.set_xlabel("features of")
        axes.set_title(f"{per_class[column]} training images a class", fontsize=10)
        axes.grid(alpha=0.3)
    axes = figure.axes[0]
    axes.set_ylim(-3, 105)
    axes.set_ylabel("error, mean over classes, %")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False, fontsize=8)
    folds = f"{error.shape[1]} folds" if error.shape[1] > 1 else "one fold"
    headed(figure, f"{title}\nmean ± standard deviation over {folds}")
    return figure
