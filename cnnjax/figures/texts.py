"""Words that fit the place that there is for them."""

import re
import textwrap

_LETTERS = 130  # of 1 point that fit an inch, in words as they come; 143 to 150 were measured


def shortened(text: str, most: int) -> str:
    """The text, with an ellipsis in its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def filled(text: str, inches: float, points: float) -> str:
    """The text in lines that are at most so wide in letters of that size; the lines that it has stay apart."""
    most = max(1, int(_LETTERS * inches / points))
    return "\n".join(textwrap.fill(line, most) for line in text.split("\n"))


def broken(name: str, most: int) -> str:
    """A name in lines of at most `most` characters, if dots, slashes, underscores and spaces let it be broken so."""
    lines = [""]
    for piece in re.split(r"(?<=[./ ])|(?=_)", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)
