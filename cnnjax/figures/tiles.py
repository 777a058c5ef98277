"""Small images in one: contrast, colour, their grid, and what is none. Grey levels are 0 (black) to 1 (white)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

BACKGROUND = 1.0  # between the tiles, as paper
EMPTY = 0.85  # in the place of a picture that there is not
OUTSIDE = 0.95  # of what is outside, under the hatching
HATCH, HATCH_GREY = "//////", "0.6"


def signed(values: Float[np.ndarray, "..."], scale: float | np.floating | np.ndarray) -> Float[np.ndarray, "..."]:
    """Zero to mid grey, -scale to black, scale to white; clipped, NaN as it is. A scale of 0 leaves mid grey."""
    return np.clip(0.5 + 0.5 * values / np.where(scale > 0, scale, 1), 0, 1)


def robust_scale(tile: Float[np.ndarray, "..."], percentile: float = 99.5) -> float:
    """The percentile of the absolute values: a few extreme pixels do not make the rest of the tile grey.

    NaN is left out; 0 where there is nothing else.
    """
    values = np.abs(tile[np.isfinite(tile)])
    return float(np.percentile(values, percentile)) if values.size else 0.0


def grid(
    tiles: Float[np.ndarray, "rows columns height width channels"], gap: int = 1
) -> Float[np.ndarray, "full_height full_width 3"]:
    """The tiles side by side with `gap` pixels of background between; grey ones become colour, NaN stays."""
    rows, columns, height, width, _ = tiles.shape
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), BACKGROUND)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = tiles[row, column]
    return canvas


def centres(count: int, size: int, gap: int = 1) -> np.ndarray:
    """Where the middle of each tile stands along one axis of a grid, in its pixels."""
    return np.arange(count) * (size + gap) + (size - 1) / 2


def block(tiles: Float[np.ndarray, "count height width channels"]) -> Float[np.ndarray, "full_height full_width 3"]:
    """The tiles as a square, in reading order; places that are left over are background."""
    side, gap = _side_and_gap(tiles)
    rows = -(-len(tiles) // side)
    full = np.full((rows * side, *tiles.shape[1:]), BACKGROUND)
    full[: len(tiles)] = tiles
    return grid(full.reshape(rows, side, *tiles.shape[1:]), gap)


def corners(tiles: Float[np.ndarray, "count height width channels"]) -> Int[np.ndarray, "count 2"]:
    """Row and column of the first pixel of each tile in their `block`."""
    side, gap = _side_and_gap(tiles)
    places = np.divmod(np.arange(len(tiles)), side)
    return np.stack(places, axis=-1) * (np.array(tiles.shape[1:3]) + gap)


def _side_and_gap(tiles: np.ndarray) -> tuple[int, int]:
    """How many stand side by side; of large tiles a gap of one pixel is not seen on paper."""
    return math.ceil(math.sqrt(len(tiles))), max(1, tiles.shape[1] // 32)


def show(axes: Any, canvas: Float[np.ndarray, "full_height full_width 3"]) -> None:
    """Draws the canvas, a pixel a unit of the axes; NaN, which is outside, is hatched: no picture looks so.

    The axes keep to the top of their place, so that the layout knows how much room is needed above them.
    """
    axes.set_anchor("N")
    outside = np.asarray(np.isnan(canvas).any(axis=-1))
    axes.imshow(np.where(outside[..., None], OUTSIDE, canvas), interpolation="nearest")
    if outside.any():
        from matplotlib.patches import PathPatch

        style = {"facecolor": "none", "edgecolor": HATCH_GREY, "linewidth": 0, "hatch": HATCH}
        axes.add_artist(PathPatch(_covering(outside), **style))


def _covering(pixels: Bool[np.ndarray, "height width"]) -> Any:
    """A path around these pixels, a rectangle for each run of them in a row."""
    from matplotlib.path import Path

    steps = np.diff(np.pad(pixels.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, lefts = np.nonzero(steps == 1)
    _, rights = np.nonzero(steps == -1)
    corners = [(lefts, rows), (rights, rows), (rights, rows + 1), (lefts, rows + 1), (lefts, rows)]
    vertices = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1) - 0.5
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
    return Path(vertices.reshape(-1, 2), np.tile(codes, len(rows)))


def mark(axes: Any, places: Float[np.ndarray, "places 2"]) -> None:
    """A cross with a pale edge at each place (row, column), in pixels of the canvas; none where it is NaN."""
    down, across = places[np.isfinite(places).all(axis=-1)].T
    axes.autoscale(False)
    for colour, width in (("white", 2.4), ("black", 0.9)):
        axes.plot(across, down, "+", color=colour, ms=5, mew=width)


def scales_in_words(scales: Sequence[float] | np.ndarray) -> str:
    """From the least to the largest of scales that differ by tile, "±0.02 to ±1.3"; one where they are alike."""
    least, most = (f"±{value:.2g}" for value in (np.min(scales), np.max(scales)))
    return least if least == most else f"{least} to {most}"
