"""Words that fit the place that there is for them. Widths are in inches, sizes of letters in points."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_SPARE = 1.04  # widths are those without hinting, which moves the letters of a picture a little
_LEAST = 4.0  # points; smaller letters are no letters


def shortened(text: str, most: int) -> str:
    """The text, with an ellipsis in its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


@functools.lru_cache(maxsize=10_000)
def width_of(text: str, points: float) -> float:
    """How wide the longest line of the text is drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    letters = FontProperties(size=points)
    widths = [text_to_path.get_text_width_height_descent(line, letters, False)[0] for line in text.split("\n")]
    return _SPARE * max(widths) / 72


def filled(text: str, inches: float, points: float) -> str:
    """The text in lines that are at most so wide; the lines that it has stay apart.

    A word that is too wide for a line is broken behind a dot, slash, hyphen or underscore, or else anywhere.
    """
    return "\n".join(line for given in text.split("\n") for line in _lines(given, inches, points))


def _lines(text: str, inches: float, points: float) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        whole = width_of(word, points) <= inches
        for number, piece in enumerate([word] if whole else _pieces(word, inches, points)):
            longer = f"{lines[-1]}{' ' if lines[-1] and not number else ''}{piece}"
            if width_of(longer, points) <= inches or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(piece)
    return lines


def _pieces(word: str, inches: float, points: float) -> list[str]:
    pieces = []
    for piece in re.split(r"(?<=[./_-])", word):
        while width_of(piece, points) > inches and len(piece) > 1:
            fit = next((end for end in range(len(piece) - 1, 0, -1) if width_of(piece[:end], points) <= inches), 1)
            pieces.append(piece[:fit])
            piece = piece[fit:]
        pieces.append(piece)
    return pieces


def broken(name: str, most: int) -> str:
    """A name in lines of at most `most` characters, if dots, slashes, underscores and spaces let it be broken so."""
    lines = [""]
    for piece in re.split(r"(?<=[./ ])|(?=_)", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def fitting(labels: Sequence[str], inches: float, points: float) -> float:
    """The size, `points` at most, at which each of the labels is at most so wide."""
    widest = max((width_of(label, 1.0) for label in labels), default=0.0)
    return max(_LEAST, min(points, 0.9 * inches / widest)) if widest else points


def headed(figure: Any, title: str, note: str = "") -> None:
    """A title above the figure and, in smaller letters, a note below it, in lines that fit its width."""
    inches = 0.96 * figure.get_figwidth()
    figure.suptitle(filled(title, inches, 11), fontsize=11)
    if note:
        figure.supxlabel(filled(note, inches, 8.5), fontsize=8.5)


def epoch_axis(epochs: Sequence[int] | np.ndarray) -> str:
    """What an axis is called on which these epochs stand at equal distances."""
    even = len(np.unique(np.diff(epochs))) <= 1
    return "epoch" if even else "epoch (kept ones: the axis is not even)"
