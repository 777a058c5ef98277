"""Figures on disk: a picture, and the arrays that it was drawn from."""

from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.atomic import replacing
from cnnjax.errors import InputError
from cnnjax.figures import settings


def make_folder(base: Path, *names: str) -> Path:
    """The folder BASE/NAME/…, made where it is not there; `base` must be, so that what was removed stays so.

    Raises:
        InputError: one of the names is a link, which may lead anywhere.
    """
    for name in names:
        base = base / name
        base.mkdir(exist_ok=True)
        if base.is_symlink():
            raise InputError(f"{base} must be a folder of its own, and is a link to {base.readlink()}")
    return base


@settings.own
def save(path: Path, figure: Any, **arrays: Any) -> Path:
    """Writes `path` (a .png) and the .npz beside it, each under a temporary name first, into a folder that is there.

    Args:
        figure: a matplotlib figure.
        arrays: what was drawn.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replacing(path) as file:
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=150, facecolor="white")
    save_arrays(path.with_suffix(".npz"), **arrays)
    return path


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz that needs no pickle to be read, into a folder that is there."""
    with replacing(path) as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in arrays.items()}, allow_pickle=False)
