"""Images with the classes that a network finds most probable, as bars."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from cnnjax.figures import settings
from cnnjax.figures.colours import SKY
from cnnjax.figures.texts import filled, shortened

TRUE, OTHER = SKY, "#d9d9d9"  # light enough for black letters
ACROSS = 3  # images beside one another
NAME = 30  # characters of a class that a bar has room for


class Answer(NamedTuple):
    """One image and its most probable classes, the most probable first."""

    image: UInt8[np.ndarray, "height width channels"]
    name: str
    classes: Sequence[str]
    probabilities: Float[np.ndarray, " classes"]
    true: str | None  # none: not known
    place: int | None  # of the true class among all, from 1


@settings.own
def draw(answers: Sequence[Answer], note: str) -> Any:
    """Each image with bars from 0 to 1; the true class in bold letters, hatched, and named above with its place."""
    from matplotlib.figure import Figure

    across = min(ACROSS, len(answers))
    down = -(-len(answers) // across)
    bars = max(len(answer.classes) for answer in answers)
    wide = max(6.5, 4.6 * across + 0.2)
    title = filled(f"The {bars} most probable classes of each image: {note}", 0.96 * wide, 11)
    said = filled("Bars: probability; the true class hatched, in bold letters.", 0.96 * wide, 8)
    # All sizes are known, in inches; a layout engine would take seconds for so many axes.
    high, gap, below = max(1.1, 0.22 * bars), 0.62, 0.5 + 0.14 * said.count("\n")
    above = 0.8 + 0.18 * title.count("\n")
    whole = above + down * high + (down - 1) * gap + below
    figure = Figure(figsize=(wide, whole))
    grid = figure.subplots(
        down, 2 * across, squeeze=False, width_ratios=[0.75, 1.6] * across,
        gridspec_kw={
            "left": 0.1 / wide, "right": 1 - 0.2 / wide, "bottom": below / whole, "top": 1 - above / whole,
            "hspace": gap / high, "wspace": 0.1,
        },
    )  # fmt: skip
    for axes in grid.flat:
        axes.set_axis_off()
    for answer, (picture, chart) in zip(answers, grid.reshape(-1, 2), strict=False):
        grey = answer.image.shape[-1] == 1
        shown = answer.image[..., 0] if grey else answer.image
        picture.imshow(shown, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
        _draw_bars(chart, answer, bars)
    figure.text(0.5, 1 - 0.08 / whole, title, fontsize=11, ha="center", va="top")
    figure.text(0.5, 0.08 / whole, said, fontsize=8, ha="center", va="bottom")
    return figure


def _draw_bars(axes: Any, answer: Answer, bars: int) -> None:
    axes.set_axis_on()
    title = [shortened(answer.name, NAME)]
    if answer.true is not None:
        title.append(f"true: {shortened(answer.true, NAME - 8)}, {_ordinal(answer.place)}")
    axes.set_title("\n".join(title), fontsize=8, loc="left")
    for down, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True)):
        right = name == answer.true and answer.place == down + 1
        axes.barh(down, probability, color=TRUE if right else OTHER, hatch="//" if right else None, edgecolor="white")
        said = f"{shortened(name, NAME)}  {probability:.2f}"
        axes.text(0.02, down, said, va="center", fontsize=8, fontweight="bold" if right else "normal")
    axes.set_xlim(0, 1)
    axes.set_ylim(bars - 0.5, -0.5)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=7)
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _ordinal(place: int | None) -> str:
    return "most probable" if place == 1 else f"place {place:,}"
