"""Where every text of a figure really lies once it is drawn."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

DPI = 100


class Box(NamedTuple):
    """One text on the page, in pixels from its lower left corner."""

    text: str
    rotation: float
    x0: float
    y0: float
    x1: float
    y1: float
    width: float  # of the page
    height: float

    def overlaps(self, other: "Box") -> bool:
        """By more than the edge of a letter; of turned texts the boxes say nothing."""
        if self.rotation % 90 or other.rotation % 90:
            return False
        return (
            min(self.x1, other.x1) - max(self.x0, other.x0) > 1 and min(self.y1, other.y1) - max(self.y0, other.y0) > 1
        )

    def leaves_the_page(self) -> bool:
        return min(self.x0, self.y0, self.width - self.x1, self.height - self.y1) < -0.5


@contextlib.contextmanager
def recorded(monkeypatch) -> Iterator[dict[object, list[Box]]]:
    """The texts that are drawn meanwhile, by figure; those that matplotlib leaves out are not among them."""
    found: dict[object, list[Box]] = {}
    draw = Text.draw

    def recording(text, renderer):
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            figure = text.get_figure(root=True)
            size = (figure.bbox.width, figure.bbox.height)
            box = text.get_window_extent(renderer).extents
            found.setdefault(figure, []).append(Box(text.get_text(), text.get_rotation(), *map(float, box), *size))

    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", recording)
        yield found


def of_figure(figure, monkeypatch) -> list[Box]:
    """The texts of a figure as it is saved, but for the resolution."""
    figure.set_dpi(DPI)
    with recorded(monkeypatch) as found:
        FigureCanvasAgg(figure).draw()
    return found[figure]


def faults(boxes: list[Box]) -> list[str]:
    """What is wrong, in words."""
    cut = [f"{box.text!r} leaves the page: {box[2:]}" for box in boxes if box.leaves_the_page()]
    over = [f"{a.text!r} overlaps {b.text!r}" for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    return cut + over
