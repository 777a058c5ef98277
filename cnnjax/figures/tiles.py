"""Small images in one: contrast, colour and their grid. Grey levels are 0 (black) to 1 (white)."""

import numpy as np
from jaxtyping import Float

BACKGROUND = 1.0  # between the tiles, as paper
OUTSIDE = 0.85  # outside the image


def signed(values: Float[np.ndarray, "..."], scale: float | np.floating | np.ndarray) -> Float[np.ndarray, "..."]:
    """Zero to mid grey, -scale to black, scale to white; clipped. A scale of 0 leaves mid grey."""
    return np.clip(0.5 + 0.5 * values / np.where(scale > 0, scale, 1), 0, 1)


def robust_scale(tile: Float[np.ndarray, "..."], percentile: float = 99.5) -> float:
    """The percentile of the absolute values: a few extreme pixels do not make the rest of the tile grey."""
    return float(np.percentile(np.abs(tile), percentile))


def grid(
    tiles: Float[np.ndarray, "rows columns height width channels"], gap: int = 1
) -> Float[np.ndarray, "full_height full_width 3"]:
    """The tiles side by side with `gap` pixels of background between; grey ones become colour, NaN the outside."""
    rows, columns, height, width, _ = tiles.shape
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), BACKGROUND)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = np.nan_to_num(tiles[row, column], nan=OUTSIDE)
    return canvas


def centres(count: int, size: int, gap: int = 1) -> np.ndarray:
    """Where the middle of each tile stands along one axis of a grid, in its pixels."""
    return np.arange(count) * (size + gap) + (size - 1) / 2
