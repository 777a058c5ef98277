"""Curves over the epochs as what an SVG draws: paths, ticks, and the numbers beside them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 420, 260  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34  # of the space around the curves
COLOURS, DASHES, MARKERS = 7, 4, 6  # that the style sheet and the template tell apart


class Line(NamedTuple):
    """One curve; NaN where it has no number."""

    name: str
    epochs: Sequence[float]
    values: Sequence[float]
    colour: int
    dash: int = 0


class Chart(NamedTuple):
    """Curves on one pair of axes, from 0 up.

    Where `kept` is given these epochs stand at equal distances, and the lines have values there only.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    kept: tuple[int, ...] = ()


class DrawnLine(NamedTuple):
    name: str
    path: str  # of an SVG
    points: tuple[tuple[float, float], ...]  # of the markers, where the epochs are few
    colour: int
    dash: int
    values: tuple[str, ...]  # at the epochs that the page can be set to; empty text where there is none


class Drawn(NamedTuple):
    title: str
    unit: str
    lines: tuple[DrawnLine, ...]
    across: tuple[tuple[float, str], ...]  # ticks: place and text
    up: tuple[tuple[float, str], ...]
    by_kept: bool


MARKED = 16  # epochs at most that have markers


def drawn(chart: Chart, epochs: Sequence[int], last: float) -> Drawn:
    """The chart with places in its own units.

    Args:
        epochs: that the page can be set to.
        last: the epoch at the right end.
    """
    values = [value for line in chart.lines for value in line.values if math.isfinite(value)]
    ticks = _ticks(max(values, default=1.0))
    top, inner = ticks[-1], (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)

    def x(epoch: float) -> float:
        share = chart.kept.index(int(epoch)) / max(1, len(chart.kept) - 1) if chart.kept else epoch / max(last, 1)
        return round(LEFT + share * inner[0], 1)

    def y(value: float) -> float:
        return round(TOP + (1 - value / top) * inner[1], 1)

    lines = []
    for line in chart.lines:
        places = [
            (x(epoch), y(value)) if math.isfinite(value) else None
            for epoch, value in zip(line.epochs, line.values, strict=True)
        ]
        by_epoch = dict(zip(line.epochs, line.values, strict=True))
        told = tuple(text_of(round(by_epoch.get(epoch, math.nan), 6)) for epoch in epochs)
        points = tuple(place for place in places if place is not None) if len(places) <= MARKED else ()
        lines.append(DrawnLine(line.name, _path(places), points, line.colour % COLOURS, line.dash % DASHES, told))
    across = [(x(epoch), str(epoch)) for epoch in chart.kept or _whole_ticks(last)]
    return Drawn(
        chart.title, chart.unit, tuple(lines), tuple(across), tuple((y(tick), f"{tick:g}") for tick in ticks),
        bool(chart.kept),
    )  # fmt: skip


def text_of(value: float) -> str:
    """Three significant digits; nothing for what is no number."""
    return f"{value:.3g}" if math.isfinite(value) else ""


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    """Straight lines between neighbours; a place without a number is a gap."""
    words, drawing = [], False
    for place in places:
        if place is not None:
            words.append(f"{'L' if drawing else 'M'}{place[0]:g} {place[1]:g}")
        drawing = place is not None
    return "".join(words)


def _step(span: float, most: int) -> float:
    """The least of 1, 2, 5 times a power of ten that divides the span into at most `most` parts."""
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))


def _ticks(highest: float) -> list[float]:
    """From 0 to at least the highest value."""
    if not highest > 0:
        return [0.0, 1.0]
    step = _step(highest, 5)
    return [round(number * step, 12) for number in range(math.ceil(highest / step * (1 - 1e-9)) + 1)]


def _whole_ticks(last: float) -> list[int]:
    step = max(1, int(_step(max(last, 1), 8)))
    return list(range(0, int(last) + 1, step))
