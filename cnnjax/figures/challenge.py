"""Top-5 error of the ImageNet challenge by year, and measured points beside it on the same scale."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from cnnjax.figures import settings
from cnnjax.figures.colours import BLUE, GREEN, PURPLE, VERMILION
from cnnjax.figures.texts import headed


class Entry(NamedTuple):
    """One result of the challenge, or around it."""

    year: int
    team: str
    percent: float  # of the test images
    kind: str  # one of KINDS


class Point(NamedTuple):
    """A result of somebody's own."""

    name: str
    percent: float
    note: str = ""  # on what


# Colour, marker, its face, years to the right, what the legend says, and of each entry.
KINDS = {
    "winner": (BLUE, "o", BLUE, 0.0, "the winning team, with the challenge's training images only", ""),
    "extra": (BLUE, "s", "white", 0.2, "the same team with more training images", "{0.year}: {0.percent:g} %"),
    "second": (GREEN, "v", GREEN, 0.2, "the second", "{0.team} {0.year}: {0.percent:g} %"),
    "paper": (VERMILION, "D", "white", 0.2, "Zeiler & Fergus", "{0.team}: {0.percent:g} %"),
}
OWN, HUMAN = PURPLE, "0.35"
LINE = 26  # characters of a name; longer ones are broken


@settings.own
def draw(entries: Sequence[Entry], human: float, points: Sequence[Point], note: str) -> Any:
    """Left a line through the winners, right the points, if there are any; the human error is a line through both.

    Args:
        entries: the winners in the order of the years; percentages stand below, and in the legend for other entries.
        human: error of a person, in percent.
    """
    from matplotlib.figure import Figure

    names = [
        "\n".join([f"{of.percent:.3g} %", *textwrap.wrap(of.name, LINE), *textwrap.wrap(of.note, LINE)])
        for of in points
    ]
    each = max([0.55, *(0.17 * (1 + name.count("\n")) for name in names)])  # inches of a point and its name
    width = 9.6 + (0.9 + each * len(points) if points else 0)
    figure = Figure(figsize=(width, 7.6 if points else 6.2), layout="constrained")
    ratios = (8.6, 0.3 + each * len(points)) if points else None
    challenge, *own = figure.subplots(1, len(ratios or "1"), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for kind, (colour, marker, face, aside, said, form) in KINDS.items():
        found = [entry for entry in entries if entry.kind == kind]
        told = f"{said} ({'; '.join(map(form.format, found))})" if form else said
        challenge.plot(
            [entry.year + aside for entry in found], [entry.percent for entry in found], color=colour, marker=marker,
            mfc=face, ms=8, lw=0 if form else 1.5, label="\n".join(textwrap.wrap(told, 70)), zorder=3,
        )  # fmt: skip
    winners = [entry for entry in entries if entry.kind == "winner"]
    labels = ["\n".join([f"{of.year}", f"{of.percent:g} %", *textwrap.wrap(of.team, 13)]) for of in winners]
    challenge.set_xticks([entry.year for entry in winners], labels, fontsize=9)
    challenge.set_xlim(winners[0].year - 0.5, winners[-1].year + 0.5)
    challenge.set_xlabel("year and winner")
    challenge.set_ylabel("top-5 error, % of the test images")
    challenge.set_ylim(0, 1.08 * max(place.percent for place in (*entries, *points)))
    for axes in figure.axes:
        axes.axhline(human, color=HUMAN, ls="--", lw=1.2, label=f"a person: about {human:g} %")
        axes.grid(alpha=0.3, axis="y")
    challenge.legend(loc="upper right", fontsize=9, framealpha=0.95)
    for axes in own:
        axes.plot([point.percent for point in points], color=OWN, marker="*", ms=13, lw=0, zorder=3, clip_on=False)
        axes.set_xticks(range(len(points)), names, rotation=90, fontsize=9)
        axes.set_xlim(-0.6, len(points) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.set_title("your own", fontsize=10)
    headed(figure, "ImageNet challenge: top-5 error by year", note)
    return figure
