"""Figures on disk: a picture, and the arrays that it was drawn from."""

from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.atomic import replacing


def save(path: Path, figure: Any, **arrays: Any) -> None:
    """Writes `path` (a .png) and the .npz beside it, each under a temporary name first.

    Args:
        figure: a matplotlib figure.
        arrays: what was drawn.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called "$"
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150, facecolor="white")
    save_arrays(path.with_suffix(".npz"), **arrays)


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz that needs no pickle to be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in arrays.items()}, allow_pickle=False)
