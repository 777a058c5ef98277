"""The strongest activations of a trained network, projected to the pixels (Zeiler & Fergus 2014, figure 2).

For each chosen feature map the images of a data set that excite it most, at most one place in each image (the paper
does not say; else nine neighbours in one image would fill a block), and each of these activations projected alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cnnjax.visualize.evolution import GROUP, Fields, Projector, Strongest, places_in_tiles, tile_units


class Activations(NamedTuple):
    """Figure 2 of one layer, in numbers; the strongest first. A tile is what the unit sees."""

    maps: Int[np.ndarray, " rows"]
    value: Float[np.ndarray, "rows count"]  # 0 where fewer images than that excite the map
    image: Int[np.ndarray, "rows count"]  # index into the data set; the first one on ties
    unit: Int[np.ndarray, "rows count axes"]  # (row, column) in the map; no axes for a dense layer
    projections: Float[np.ndarray, "rows count height width channels"]  # units of the network's input, signed
    patches: Float[np.ndarray, "rows count height width channels"]  # grey levels 0 to 255; NaN outside the image
    place: Float[np.ndarray, "rows count 2"]  # of the unit in its tile, (row, column) in pixels; NaN for a dense layer


def tile_activations(
    projector: Projector,
    variables: Any,
    strongest: Strongest,
    maps: Sequence[int] | np.ndarray,
    images: Any,
    fields: Fields,
    *,
    group: int = GROUP,
) -> Activations:
    """The projections of the strongest activations of the chosen maps, each beside the patch of its image.

    Args:
        projector: of this layer, from `evolution.make_projector`.
        strongest: of this layer, as `evolution.strongest_activations` finds them in `images`.
        images: the data set, an array or what gives arrays for rows as one does; only those that are among the
            strongest are read.
        fields: of the layer's units.
        group: projections at a time, at most.
    """
    maps = np.asarray(maps)
    value, image, unit = (np.swapaxes(part[:, maps], 0, 1) for part in strongest)
    count = image.shape[1]
    projections, patches = tile_units(
        projector,
        variables,
        images,
        image.reshape(-1),
        unit.reshape(image.size, -1),
        np.repeat(maps, count),
        fields,
        group=group,
    )
    blocks = (len(maps), count, *projections.shape[1:])
    place = places_in_tiles(fields, unit.reshape(image.size, -1), images.shape[1:3]).reshape(*image.shape, 2)
    return Activations(maps, value, image, unit, projections.reshape(blocks), patches.reshape(blocks), place)
