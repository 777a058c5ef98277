"""Many small pictures in one file: a page shows one of them by moving the sheet behind a window of its size."""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

LARGEST = 96  # pixels of a small picture's longer side on a page; larger ones are scaled down to it
SHOWN = 64  # pixels on the screen that a small picture has at least, about


class Sheet(NamedTuple):
    """Pictures of one size in rows and columns."""

    name: str  # of its file, where it is one; and of its class in the style sheet
    png: bytes
    rows: int
    columns: int
    width: int  # of one picture as it is shown, in CSS pixels
    height: int
    reduced_from: tuple[int, int] | None  # height and width before it was scaled down; None: it was not


def sheet(name: str, tiles: UInt8[np.ndarray, "rows columns height width 3"]) -> Sheet:
    """The sheet of these pictures; each shown at a whole multiple of its size, or scaled down to LARGEST."""
    from PIL import Image

    rows, columns, height, width, _ = tiles.shape
    reduced = None
    if max(height, width) > LARGEST:
        reduced = (height, width)
        size = [max(1, round(side * LARGEST / max(reduced))) for side in reduced]
        flat = [
            Image.fromarray(tile).resize(size[::-1], Image.Resampling.BOX) for tile in tiles.reshape(-1, *reduced, 3)
        ]
        tiles = np.stack([np.asarray(tile) for tile in flat]).reshape(rows, columns, *size, 3)
        height, width = size
    canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    times = max(1, round(SHOWN / max(height, width)))
    return Sheet(name, png(canvas), rows, columns, times * width, times * height, reduced)


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The picture as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=6)
    return file.getvalue()
