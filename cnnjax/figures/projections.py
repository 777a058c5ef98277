"""What every figure with projections says of them: by which rule they came down, and what their tiles hold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cnnjax.figures import tiles
from cnnjax.geometry import ReceptiveField

NAMES = {"deconvnet": "deconvnet", "guided": "guided backpropagation", "gradient": "gradient"}  # of the rules
ALIKE = 0.95  # cosine from which on two projections are told apart by no eye


class Made(NamedTuple):
    """How the projections of a figure were made."""

    rule: str  # at the ReLUs on the way down, one of NAMES
    alike: float  # mean cosine with the same units' projections through another image; NaN: not known
    field: tuple[int, int] | None  # height and width of what a unit sees, in px; None: the whole image
    chosen: str  # how the maps were chosen

    @staticmethod
    def of(
        rule: str, alike: Float[np.ndarray, " units"], fields: Sequence[ReceptiveField] | None, chosen: str
    ) -> "Made":
        """From the cosines of single units, NaN where there is none, and what these see."""
        found = alike[np.isfinite(alike)]
        field = None if fields is None else (fields[0].size, fields[1].size)
        return Made(rule, float(found.mean()) if found.size else float("nan"), field, chosen)

    def arrays(self) -> dict[str, Any]:
        """For the numbers behind a figure; `field` is empty where a unit sees the whole image."""
        return self._asdict() | {"field": self.field or ()}


def drawn_by_lot(count: int, of: int, seed: int, among: str) -> str:
    """That the maps are a seeded choice, of others only where there are too few of those."""
    return f"all {of}" if count >= of else f"{count} of {of}, drawn by lot (seed {seed}), first among those {among}"


def depends_in_words(made: Made) -> str:
    """How much the projections depend on the image."""
    if not np.isfinite(made.alike):
        return ""
    said = f"mean cosine {made.alike:.2f} with the same units' projections through another image"
    if made.alike < ALIKE:
        return said
    way = ", which a deconvnet sees by pooling switches only" if made.rule == "deconvnet" else ""
    return f"these projections hardly depend on the image{way}: {said}"


def tile_in_words(made: Made, shape: tuple[int, int]) -> str:
    """What a tile of this height and width shows."""
    size = f"{shape[0]}×{shape[1]} px"
    if made.field is None:
        return f"a unit sees the whole image: tiles of {size}"
    if made.field == shape:
        return f"a tile is the {size} that a unit sees; hatched: outside of the image"
    field = f"{made.field[0]}×{made.field[1]} px"
    return f"a unit's field of {field} is cut to the image: tiles of {size}; hatched: outside of the field"


def masked(
    projections: Float[np.ndarray, "*tiles height width channels"],
    patches: Float[np.ndarray, "*tiles height width channels"],
) -> Float[np.ndarray, "*tiles height width channels"]:
    """The projections with NaN where their patches have it: there is nothing, which is other than a zero."""
    return np.where(np.isnan(patches), np.nan, projections)


def scales_of(
    projections: Float[np.ndarray, "rows columns height width channels"], contrast: str
) -> Float[np.ndarray, "rows columns"]:
    """What is drawn as white, of every tile: its own robust scale ("tile") or the largest of its row ("map")."""
    own = np.array([[tiles.robust_scale(tile) for tile in row] for row in projections])
    return own if contrast == "tile" else np.broadcast_to(own.max(axis=1, keepdims=True), own.shape)
