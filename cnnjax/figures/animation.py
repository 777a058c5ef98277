"""The evolution as a moving picture: first-layer filters and projections of every layer, a frame an epoch."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from cnnjax.atomic import replacing
from cnnjax.figures import settings, tiles
from cnnjax.figures.projections import scales_of
from cnnjax.figures.texts import fitting, headed

NOTE = "mid grey 0: a filter on one scale over all epochs, a projection on its own; hatched: outside; plain grey: dead"
FRAME_MILLISECONDS, LAST_MILLISECONDS = 700, 2500


@settings.own
def draw(
    kernels: Float[np.ndarray, "epochs height width channels filters"],
    projections: dict[str, Float[np.ndarray, "_rows epochs _height _width channels"]],
    dead: dict[str, Bool[np.ndarray, "_rows epochs"]],
    epochs: tuple[int, ...],
    first_layer: str,
) -> list[np.ndarray]:
    """One uint8 colour image an epoch: the filters on the left, a row of projections a layer on the right.

    Args:
        projections: signed, NaN outside the image; each tile has its own scale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_filter = np.moveaxis(kernels, 4, 0)
    filters = tiles.signed(by_filter, np.abs(by_filter).max(axis=(1, 2, 3, 4), keepdims=True))
    columns = int(np.ceil(np.sqrt(len(filters))))
    filler = np.full((-len(filters) % columns, *filters.shape[1:]), tiles.BACKGROUND)
    filters = np.concatenate([filters, filler]).reshape(-1, columns, *filters.shape[1:])
    shown = {}
    for layer, of_layer in projections.items():
        contrasted = tiles.signed(of_layer, scales_of(of_layer, "tile")[:, :, None, None, None])
        shown[layer] = np.where(dead[layer][:, :, None, None, None], tiles.EMPTY, contrasted)
    points = min(fitting([layer], 1.6, 9) for layer in shown)
    frames = []
    for index, epoch in enumerate(epochs):
        figure = Figure(figsize=(10, max(4.4, 0.9 * len(shown) + 0.9)), layout="constrained", dpi=80)
        canvas = FigureCanvasAgg(figure)
        left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
        axes = left.subplots()
        tiles.show(axes, tiles.grid(filters[:, :, index]))
        axes.set_title(f"filters of {first_layer}", fontsize=fitting([f"filters of {first_layer}"], 3.1, 9))
        axes.set_axis_off()
        for axes, (layer, tile) in zip(right.subplots(len(shown), 1, squeeze=False)[:, 0], shown.items(), strict=True):
            tiles.show(axes, tiles.grid(tile[None, :, index]))
            axes.set_ylabel(layer, fontsize=points, rotation=0, ha="right", va="center")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        headed(figure, f"epoch {epoch}: filters, and the strongest activation of maps, projected", NOTE)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def save(path: Path, frames: list[np.ndarray]) -> None:
    """Writes an animated GIF that stays longer on its last frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame).quantize(256) for frame in frames]
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_MILLISECONDS]
    with replacing(path) as file:
        pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
