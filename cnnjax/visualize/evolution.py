"""How features evolve over the epochs of a training (Zeiler & Fergus 2014, figure 4).

For every kept epoch and feature map: the strongest activation over all training images with that epoch's weights,
and that one activation projected to the pixels with that epoch's weights and its image's switches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cnnjax import ops
from cnnjax.geometry import ReceptiveField
from cnnjax.visualize.deconvnet import project

FeatureMaps = Callable[[Any, Array], Mapping[str, Any]]  # (variables, images) -> activations by layer


class Strongest(NamedTuple):
    """The strongest activation of every map of a layer over a data set. A map that never fires has value 0."""

    value: Float[np.ndarray | Array, " maps"]
    image: Int[np.ndarray | Array, " maps"]  # index into the data set; the first one on ties
    unit: Int[np.ndarray | Array, "maps axes"]  # (row, column) in the map; no axes for a dense layer


class Evolution(NamedTuple):
    """Figure 4 of one layer, in numbers. A tile is the unit's receptive field, grey outside the image."""

    maps: Int[np.ndarray, " rows"]
    epochs: Int[np.ndarray, " epochs"]
    value: Float[np.ndarray, "rows epochs"]  # 0: dead at that epoch
    image: Int[np.ndarray, "rows epochs"]
    projections: Float[np.ndarray, "rows epochs height width channels"]  # units of the network's input, signed
    patches: Float[np.ndarray, "rows epochs height width channels"]  # grey levels 0 to 255; NaN outside the image


def best_of_batch(
    activations: Float[Array, "batch *space maps"], mask: Float[Array, " batch"]
) -> tuple[Float[Array, " maps"], Int[Array, " maps"], Int[Array, "maps axes"]]:
    """The value, the image and the place of the strongest activation of each map in a batch; the first one on ties."""
    flat = activations.reshape(activations.shape[0], -1, activations.shape[-1])
    flat = jnp.where(mask[:, None, None] > 0, flat, -jnp.inf)
    over_space = _max_by_halves(flat)
    image = jnp.argmax(over_space, axis=0)
    maps = jnp.arange(flat.shape[-1])
    space = activations.shape[1:-1]
    places = jnp.unravel_index(jnp.argmax(flat[image, :, maps], axis=1), space) if space else []
    return over_space[image, maps], image, jnp.stack([*places], axis=-1) if space else jnp.zeros((len(maps), 0), int)


def _max_by_halves(x: Float[Array, "batch space maps"]) -> Float[Array, "batch maps"]:
    """The maximum over space, as the maximum of its two halves, and so on.

    XLA:CPU's reduction over the middle axis takes one strided read after another: 4.3 ms for 128×1024×24, this 0.5.
    """
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        rest = x[:, 2 * half :]
        x = jnp.concatenate([jnp.maximum(x[:, :half], x[:, half : 2 * half]), rest], axis=1)
    return x[:, 0]


def make_look(feature_maps: FeatureMaps, preprocess: Callable[[Any], Array]) -> Callable[..., dict[str, Strongest]]:
    """Returns the compiled (variables, images, mask, seen, best) -> best: one more batch looked through.

    `seen` is the number of images before this batch; `best` is what was found in them, None before the first batch.
    What was found stays on the device.
    """

    def look(variables, images, mask, seen, best):
        maps = feature_maps(variables, preprocess(images))
        found = {layer: best_of_batch(activations, mask) for layer, activations in maps.items()}
        new = {layer: Strongest(value, image + seen, unit) for layer, (value, image, unit) in found.items()}
        return new if best is None else {layer: _stronger(best[layer], new[layer]) for layer in new}

    return ops.jit(look)


def _stronger(old: Strongest, new: Strongest) -> Strongest:
    better = new.value > old.value
    return Strongest(
        jnp.where(better, new.value, old.value),
        jnp.where(better, new.image, old.image),
        jnp.where(better[:, None], new.unit, old.unit),
    )


def strongest_activations(
    look: Callable[..., dict[str, Strongest]], variables: Any, batches: Iterable[Any]
) -> dict[str, Strongest]:
    """For every layer and map the strongest activation over all batches, in one pass; the first one on ties.

    Args:
        look: from `make_look`; the same one for every epoch, so that it is compiled once.
        batches: with `images` and `mask`, 0 for padding.
    """
    best, seen = None, 0
    for batch in batches:
        # Waited for, because programs that are queued on a CPU run into one another: 17.7 ms a batch against 22.5.
        best = jax.block_until_ready(look(variables, batch.images, batch.mask, seen, best))
        seen += len(batch.mask)
    return {layer: Strongest(*(np.asarray(part) for part in found)) for layer, found in (best or {}).items()}


def choose_maps(final: Strongest, count: int, seed: int) -> Int[np.ndarray, " rows"]:
    """A seeded random choice of `count` maps, in order, out of those alive at the last epoch; dead ones fill up.

    The same rows then stand for all epochs. Source: figure 4 shows a random subset; paper silent on dead maps.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(final.value))
    alive_first = np.concatenate([order[final.value[order] > 0], order[final.value[order] <= 0]])
    return np.sort(alive_first[:count])


def tile_evolution(
    feature_maps: FeatureMaps,
    layer: str,
    variables_by_epoch: dict[int, Any],
    strongest_by_epoch: dict[int, Strongest],
    maps: Sequence[int] | np.ndarray,
    images: np.ndarray,
    preprocess: Callable[[Any], Array],
    field: ReceptiveField,
) -> Evolution:
    """The projections of one layer's chosen maps at every epoch, each beside the patch of its image.

    Args:
        images: the data set from which `strongest_by_epoch` was taken.
        field: receptive field, jump and start of the layer's units.
    """
    maps = np.asarray(maps)

    @ops.jit
    def projections_of(variables, chosen, units):
        return project(lambda x: feature_maps(variables, x)[layer], preprocess(chosen), units)

    values, indices, projections, patches = [], [], [], []
    for epoch, variables in variables_by_epoch.items():
        strongest = strongest_by_epoch[epoch]
        image, unit = strongest.image[maps], strongest.unit[maps]
        chosen = images[image]
        pixels = np.asarray(projections_of(variables, chosen, np.column_stack([unit, maps])))
        values.append(np.maximum(strongest.value[maps], 0))
        indices.append(image)
        projections.append([crop(p, field, u, fill=0.0) for p, u in zip(pixels, unit, strict=True)])
        patches.append([crop(c.astype(np.float32), field, u) for c, u in zip(chosen, unit, strict=True)])
    return Evolution(
        maps,
        np.array(list(variables_by_epoch)),
        np.stack(values, axis=1),
        np.stack(indices, axis=1),
        np.stack([np.stack(row) for row in projections], axis=1).astype(np.float32),
        np.stack([np.stack(row) for row in patches], axis=1).astype(np.float32),
    )


def crop(
    image: Float[np.ndarray, "height width channels"],
    field: ReceptiveField,
    unit: Int[np.ndarray, " axes"],
    fill: float = np.nan,
) -> Float[np.ndarray, "side side channels"]:
    """What the unit at (row, column) sees of the image, `fill` outside; the whole image where it sees as much."""
    height, width = image.shape[:2]
    if field.size >= max(height, width) or unit.size == 0:
        return image
    side = field.size
    tile = np.full((side, side, image.shape[2]), fill, image.dtype)
    top, left = (int(np.ceil(field.start + field.jump * int(p) - (side - 1) / 2)) for p in unit)
    rows = slice(max(top, 0), min(top + side, height))
    columns = slice(max(left, 0), min(left + side, width))
    tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return tile
