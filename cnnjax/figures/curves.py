"""Learning curves: loss and error by epoch, of one training or of several on one figure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cnnjax.figures import settings
from cnnjax.figures.convergence import MARKERS
from cnnjax.figures.invariance import COLOURS
from cnnjax.figures.texts import filled, headed, shortened

MEASURES = {"loss": "loss", "error": "error, %"}  # what has a panel, and the name of its axis
STYLES = {"test": "-", "validation": "--", "train": ":"}  # of the images' split
_SPLIT_COLOURS = {"test": COLOURS[0], "validation": COLOURS[1], "train": COLOURS[4]}  # of a single training
_OF_TRAIN = "train: mean over the epoch, of images as they are augmented, with dropout"
_MOST_LETTERS = 120  # of a name in the legend
_LEGEND_INCHES, _LINE_INCHES = 2.2, 0.17  # width of the legend's text, height of a line


class Curves(NamedTuple):
    """The numbers of one training by epoch."""

    name: str
    epochs: Int[np.ndarray, " epochs"]
    values: dict[str, Float[np.ndarray, " epochs"]]  # by field of metrics.jsonl; NaN where a line lacks it

    def of(self, split: str, measure: str) -> Float[np.ndarray, " epochs"] | None:
        """None where no epoch has it."""
        return self.values.get(f"{split}_{measure}")


def curves_of(name: str, lines: Sequence[Mapping[str, Any]]) -> Curves:
    """The curves in the lines of a metrics.jsonl, which may have no number but the epoch."""
    fields = [field for line in lines for field, value in line.items() if field != "epoch" and value is not None]
    values = {
        field: np.array([np.nan if line.get(field) is None else line[field] for line in lines], float)
        for field in dict.fromkeys(fields)
    }
    return Curves(name, np.array([line["epoch"] for line in lines], np.int64), values)


def measures_of(every: Sequence[Curves]) -> list[str]:
    """Those of `MEASURES` that any of the trainings has."""
    return [
        measure for measure in MEASURES if any(one.of(split, measure) is not None for one in every for split in STYLES)
    ]


@settings.own
def draw(every: Sequence[Curves], measures: Sequence[str], title: str, notes: Sequence[str] = ()) -> Any:
    """A panel a measure: a line a training and split, of which the style says the split.

    The colour says the split too where there is one training, else the training. Losses that are all above 0 and spread
    over more than a factor of 50 are on a logarithmic axis.

    Args:
        measures: of `MEASURES`, at least one.
        notes: lines below the panels.
    """
    from matplotlib.figure import Figure

    names = [filled(shortened(one.name, _MOST_LETTERS), _LEGEND_INCHES, 8) for one in every]
    lines = sum(name.count("\n") + 1 for name in names) + len(STYLES) + 1
    figure = Figure(
        figsize=(4.4 * len(measures) + 2.6, max(4.0, 1.2 + _LINE_INCHES * lines) + 0.2 * len(notes) + 0.2),
        layout="constrained",
    )
    alone, seen = len(every) == 1, set()
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        drawn = []
        for number, one in enumerate(every):
            for split, style in STYLES.items():
                line = one.of(split, measure)
                if line is None:
                    continue
                colour = _SPLIT_COLOURS[split] if alone else COLOURS[number % len(COLOURS)]
                shown = 100 * line if measure == "error" else line
                axes.plot(one.epochs, shown, ls=style, color=colour, lw=1.4, **_marker(number, line))
                drawn.append(shown)
                seen.add(split)
        numbers = np.concatenate(drawn)
        numbers = numbers[np.isfinite(numbers)]
        if measure == "loss" and numbers.size and numbers.min() > 0 and numbers.max() > 50 * numbers.min():
            settings.make_logarithmic(axes, "y")
        else:
            axes.set_ylim(0, None)
        axes.set_xlabel("epoch")
        axes.set_ylabel(MEASURES[measure])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    handles = _handles([split for split in STYLES if split in seen], names)
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    headed(figure, title, "\n".join([*([_OF_TRAIN] if "train" in seen else []), *notes]))
    return figure


def _marker(number: int, line: Float[np.ndarray, " epochs"]) -> dict[str, Any]:
    """Of a training whose colour another one has already; and of a single epoch, which has no line."""
    turn = number // len(COLOURS)
    single = np.isfinite(line).sum() == 1
    if not turn and not single:
        return {}
    return {"marker": MARKERS[(turn - 1 if turn else 0) % len(MARKERS)], "ms": 4, "markevery": max(1, len(line) // 12)}


def _handles(splits: Sequence[str], names: Sequence[str]) -> list[Any]:
    """Of the legend: the splits by their style, and of several trainings their names by colour and marker."""
    from matplotlib.lines import Line2D

    alone = len(names) == 1
    found = [
        Line2D([], [], color=_SPLIT_COLOURS[split] if alone else "0.35", ls=STYLES[split], label=split)
        for split in splits
    ]
    if alone:
        return found
    full = np.zeros(2)
    return found + [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=name, **_marker(number, full))
        for number, name in enumerate(names)
    ]


def arrays(every: Sequence[Curves]) -> dict[str, np.ndarray]:
    """What was drawn, by the fields of metrics.jsonl; of several trainings with their number, and `names`."""
    if len(every) == 1:
        return {"epochs": every[0].epochs, **every[0].values}
    found = {"names": np.array([one.name for one in every])}
    for number, one in enumerate(every):
        found |= {f"{field}_{number}": values for field, values in {"epochs": one.epochs, **one.values}.items()}
    return found
