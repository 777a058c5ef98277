"""A grey square over an image, and what the network then says (Zeiler & Fergus 2014, figure 7)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from cnnjax.figures import settings, tiles
from cnnjax.figures.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from cnnjax.figures.projections import NAMES, Made, depends_in_words, masked
from cnnjax.figures.texts import broken, filled, headed, shortened

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, VERMILION)
ANOTHER = GREY
WIDE, PANEL = 15.0, 2.0  # inches of the figure, and that a panel has for its title
NAME = 28  # characters at most of a class's name


class Row(NamedTuple):
    """One image of the figure."""

    number: int  # the image's index
    label: int
    image: UInt8[np.ndarray, "height width channels"]
    tops: Int[np.ndarray, " rows"]
    lefts: Int[np.ndarray, " columns"]
    map: int
    activity: Float[np.ndarray, "rows columns"]  # of that map
    whole_activity: float
    probability: Float[np.ndarray, "rows columns"]  # of the label
    whole_probability: float
    best: Int[np.ndarray, "rows columns"]  # the most probable class
    projections: Float[np.ndarray, "count height width channels"]  # this image's, then other images'
    patches: Float[np.ndarray, "count height width channels"]  # of those images; NaN outside
    alike: Float[np.ndarray, " count"]  # cosine of each projection with that through another image; NaN: none
    file: str = ""  # the image's, where it is none of the run's


@settings.own
def draw(
    rows: Sequence[Row],
    class_names: Sequence[str],
    layer: str,
    activity: str,
    side: int,
    grey: int,
    target: str = "true class",
    rule: str = "deconvnet",
) -> Any:
    """A row an image: as it is, (a) with the square, (b) the strongest map's activity, (c) projections, (d), (e) class.

    In (b), (d) and (e) a cell stands where the centre of the square is; (d) has one scale, 0 to 1, (b) one a row, from
    0. In (e) the classes beyond the seven most frequent ones share a grey.

    Args:
        activity: how a map's activity is taken over its positions, "sum" or "max".
        side: of the square, in pixels.
        grey: its grey level, 0 to 255.
        target: what the labels are.
        rule: of the projections.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = class_colours([row.best for row in rows])
    figure = Figure(figsize=(WIDE, 2.45 * len(rows) + 1.7))
    figure.set_layout_engine("constrained", h_pad=0.1)
    for row, (plain, picture, active, projected, probable, classes) in zip(
        rows, figure.subplots(len(rows), 6, squeeze=False), strict=True
    ):
        _draw_image(plain, row.image)
        name, answer = shortened(row.file, NAME) or f"test image {row.number}", "answer" if row.file else "class"
        _title(plain, f"{name},\n{answer}: {shortened(class_names[row.label], NAME)}")
        _draw_image(picture, _covered(row, side, grey))
        _title(picture, "(a) with the square\nwhere (d) is lowest")
        top = max(float(row.activity.max()), row.whole_activity)
        shown = _over_places(active, row, side, row.activity, cmap="viridis", vmin=0, vmax=top if top > 0 else 1)
        figure.colorbar(shown, ax=active, shrink=0.75)
        _title(active, f"(b) {activity} of map {row.map};\nno square: {row.whole_activity:.3g}")
        _draw_projections(projected, masked(row.projections, row.patches))
        _title(projected, f"(c) map {row.map} projected: this\nimage (framed) and others")
        shown = _over_places(probable, row, side, row.probability, cmap="viridis", vmin=0, vmax=1)
        figure.colorbar(shown, ax=probable, shrink=0.75)
        _title(probable, f"(d) probability of the {target}; no square: {row.whole_probability:.2f}")
        _over_places(classes, row, side, _rgb(row.best, colours))
        _title(classes, "(e) most probable class")
    names = [
        Patch(color=colour, label=broken(shortened(class_names[number], NAME), 16))
        for number, colour in colours.items()
        if colour != ANOTHER
    ]
    others = [Patch(color=ANOTHER, label="another class")] if ANOTHER in colours.values() else []
    figure.legend(handles=names + others, loc="outside right center", fontsize=9, title="(e) class", frameon=False)
    scales = [tiles.robust_scale(tile) for row in rows for tile in masked(row.projections, row.patches)]
    note = (
        "map: the most active one without the square; (b), (d), (e): a cell stands where the centre of the square is, "
        "in pixels of the image; "
        f"(c): by {NAMES[rule]}, mid grey 0, contrast by tile, white {tiles.scales_in_words(scales)} in units of the "
        "network's input; hatched: what the unit does not see"
    )
    depends = depends_in_words(Made.of(rule, np.concatenate([row.alike for row in rows]), None, ""))
    note += f"; {depends}" if depends else ""
    headed(figure, f"A {side}×{side} square of grey level {grey} over the image; maps of {layer}", note)
    return figure


def class_colours(best: Sequence[Int[np.ndarray, "rows columns"]]) -> dict[int, str]:
    """A colour for each class that occurs, the most frequent first; one grey for those beyond the colours there are."""
    found, counts = np.unique(np.concatenate([part.ravel() for part in best]), return_counts=True)
    ordered = found[np.argsort(-counts, kind="stable")]
    return {int(number): COLOURS[index] if index < len(COLOURS) else ANOTHER for index, number in enumerate(ordered)}


def _rgb(best: Int[np.ndarray, "rows columns"], colours: dict[int, str]) -> Float[np.ndarray, "rows columns 3"]:
    from matplotlib.colors import to_rgb

    return np.array([[to_rgb(colours[int(number)]) for number in row] for row in best])


def _title(axes: Any, title: str) -> None:
    axes.set_title(filled(title, PANEL, 9), fontsize=9)


def _covered(row: Row, side: int, grey: int) -> UInt8[np.ndarray, "height width channels"]:
    """The image with the square at the place where it lowers the label's probability most."""
    top, left = np.unravel_index(np.argmin(row.probability), row.probability.shape)
    covered = row.image.copy()
    covered[row.tops[top] : row.tops[top] + side, row.lefts[left] : row.lefts[left] + side] = grey
    return covered


def _draw_image(axes: Any, image: UInt8[np.ndarray, "height width channels"]) -> None:
    height, width = image.shape[:2]
    axes.imshow(tiles.grid(image[None, None] / 255), interpolation="nearest", extent=(0, width, height, 0))
    axes.tick_params(labelsize=7)


def _over_places(axes: Any, row: Row, side: int, values: np.ndarray, **scale: Any) -> Any:
    """A cell for each position of the square, where its centre is, on axes of the image's size."""
    height, width = row.image.shape[:2]
    drawn = axes.pcolormesh(row.lefts + side / 2, row.tops + side / 2, values, shading="nearest", **scale)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", facecolor=str(tiles.EMPTY))
    axes.tick_params(labelsize=7)
    return drawn


def _draw_projections(axes: Any, projections: Float[np.ndarray, "count height width channels"]) -> None:
    """Every projection on its own robust scale, NaN hatched, this image's in a black frame."""
    from matplotlib.patches import Rectangle

    shown = np.stack([tiles.signed(tile, tiles.robust_scale(tile)) for tile in projections])
    tiles.show(axes, tiles.block(shown))
    axes.set_anchor("C")  # as the panels beside it
    height, width = projections.shape[1:3]
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="black", linewidth=2, clip_on=False))
    axes.set_axis_off()
