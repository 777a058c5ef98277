"""How features evolve over the epochs of a training (Zeiler & Fergus 2014, figure 4).

For every kept epoch and feature map: the strongest activation over all training images with that epoch's weights,
and that one activation projected to the pixels with that epoch's weights and its image's switches.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cnnjax import ops
from cnnjax.geometry import ReceptiveField
from cnnjax.tracing.relus import unbounded_maps_of
from cnnjax.tracing.table import Layer
from cnnjax.visualize.deconvnet import Rule, project

LEAST_CONTRAST = 16.0  # of an image that shows something, in grey levels
GROUP = 64  # images in a forward pass or a projection: they stay in the cache; 128 took longer an image
MOST_BYTES = 2**30  # of all feature maps of a group

Fields = tuple[ReceptiveField, ...] | None  # of a layer's units, along height and width; None: they see the whole image
FeatureMaps = Callable[[Any, Array], Mapping[str, Any]]  # (variables, images) -> activations by layer
Projector = Callable[..., Array]  # (variables, images, units, signal) -> pixels, from `make_projector`


class Strongest(NamedTuple):
    """The strongest activations of every map of a layer over a data set, at most one an image.

    With a first axis of ranks, the strongest first, as they are found; without it as `at_rank` takes one out. A map
    that never fires has value 0; where there are fewer images than ranks the value is -inf.
    """

    value: Float[np.ndarray | Array, "*rank maps"]
    image: Int[np.ndarray | Array, "*rank maps"]  # index into the data set; the first one on ties
    unit: Int[np.ndarray | Array, "*rank maps axes"]  # (row, column) in the map; no axes for a dense layer

    def at_rank(self, rank: int) -> "Strongest":
        return Strongest(self.value[rank], self.image[rank], self.unit[rank])


class Evolution(NamedTuple):
    """Figure 4 of one layer, in numbers. A tile is what the unit sees, as `crop` cuts it."""

    maps: Int[np.ndarray, " rows"]
    epochs: Int[np.ndarray, " epochs"]
    value: Float[np.ndarray, "rows epochs"]  # 0: dead at that epoch
    image: Int[np.ndarray, "rows epochs"]
    projections: Float[np.ndarray, "rows epochs height width channels"]  # units of the network's input, signed
    patches: Float[np.ndarray, "rows epochs height width channels"]  # grey levels 0 to 255; NaN outside the image
    unit: Int[np.ndarray, "rows epochs axes"]  # (row, column) in the map
    place: Float[np.ndarray, "rows epochs 2"]  # of the unit in its tile, (row, column) in pixels


def group_size(layers: Iterable[Layer]) -> int:
    """Images at a time: GROUP, or as few as keep all their feature maps within MOST_BYTES; one at the least.

    A projection keeps about as much, a forward pass less. It depends on the network and the size of its images alone,
    so that results do not depend on how many images there are.
    """
    of_an_image = sum(4 * math.prod(row.output_shape) for row in layers)
    return max(1, min(GROUP, MOST_BYTES // of_an_image))


def in_groups(count: int, most: int) -> Iterator[Int[np.ndarray, " size"]]:
    """The numbers from 0 to count - 1 in as few groups as can be, all of one size; the last begins again with its own.

    The first `count` of all together are the numbers in order.
    """
    size = -(-count // -(-count // most))
    return (np.resize(np.arange(start, min(start + size, count)), size) for start in range(0, count, size))


def unbounded(feature_maps: FeatureMaps, layers: Iterable[Layer]) -> FeatureMaps:
    """The same activations, but of a ReLU with a bound (ReLU6) what it would let pass without.

    Many images reach the bound, so that none of them is the strongest; and at the bound no signal comes down. What is
    above the layer still gets what the bound leaves.
    """
    relus = {row.name: row.relu for row in layers if row.relu is not None}

    def maps(variables: Any, images: Any) -> Mapping[str, Any]:
        found = feature_maps(variables, images)
        if not relus.keys() & found.keys():
            return found
        bounded = unbounded_maps_of(lambda images: feature_maps(variables, images))(images)[1]
        return {name: bounded.get(relus.get(name, -1), of_layer) for name, of_layer in found.items()}

    return maps


def make_look(
    feature_maps: FeatureMaps, preprocess: Callable[[Any], Array], count: int = 1
) -> Callable[..., dict[str, Strongest]]:
    """Returns the compiled (variables, images, mask, seen, best) -> best: one more group of images looked through.

    `seen` is the number of images before this group; `best` is what was found in them, the `count` strongest
    activations of each map. What was found stays on the device.
    """

    def look(variables, images, mask, seen, best):
        maps = feature_maps(variables, preprocess(images))
        best = best or {layer: _nothing(count, found.shape[-1], found.ndim - 2) for layer, found in maps.items()}
        return {layer: _stronger(best[layer], activations, mask, seen) for layer, activations in maps.items()}

    return ops.jit(look)


def _nothing(count: int, maps: int, axes: int) -> Strongest:
    """What is found in no image."""
    ranks = (count, maps)
    return Strongest(jnp.full(ranks, -jnp.inf), jnp.zeros(ranks, jnp.int32), jnp.zeros((*ranks, axes), jnp.int32))


def _stronger(best: Strongest, activations: Float[Array, "group *space maps"], mask, seen) -> Strongest:
    """`best` with the activations of one more group; earlier images, and earlier places in them, win ties."""
    count, space = len(best.value), activations.shape[1:-1]
    rows = activations.reshape(len(activations), *(space or (1,))[:1], -1, activations.shape[-1])
    by_row = jnp.max(rows, axis=2)
    by_image = jnp.where(mask[:, None] > 0, jnp.max(by_row, axis=1), -jnp.inf)
    candidates = jnp.concatenate([best.value, by_image])
    value, chosen = (part.T for part in jax.lax.top_k(candidates.T, count))  # of equal ones the first
    # The row, then the place in it: gathering whole maps took longer than finding the strongest.
    image, maps = jnp.maximum(chosen - count, 0), jnp.arange(activations.shape[-1])
    row = jnp.argmax(by_row[image, :, maps], axis=-1)
    place = row * rows.shape[2] + jnp.argmax(rows[image, row, :, maps], axis=-1)
    unit = jnp.stack(jnp.unravel_index(place, space), axis=-1) if space else best.unit
    rank, is_old = jnp.minimum(chosen, count - 1), chosen < count
    return Strongest(
        value,
        jnp.where(is_old, best.image[rank, maps], chosen - count + seen),
        jnp.where(is_old[..., None], best.unit[rank, maps], unit),
    )


def strongest_activations(
    look: Callable[..., dict[str, Strongest]],
    variables: Any,
    batches: Iterable[Any],
    *,
    group: int = GROUP,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Strongest]:
    """For every layer and map the strongest activations over all batches, in one pass; the first image on ties.

    The images are looked through in groups of one size whatever the batches: a matrix product of another size rounds
    differently, and a different image would then win where many are equal up to rounding (blank corners, say).

    Args:
        look: from `make_look`; the same one for every epoch, so that it is compiled once.
        batches: with `images` and `mask`, 0 for padding, which is left out.
        group: images a forward pass, on each device.
        devices: that share the work; None: all of this process.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices() if devices is None else devices), ("data",))
    by_image, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    variables = jax.device_put(variables, whole)
    size = group * mesh.size
    best, seen = None, 0
    for images, mask in _regrouped(batches, size):
        if best is None:  # of the shapes that `look` returns, so that it is not compiled for None too
            shapes = jax.eval_shape(look, variables, images, mask, seen, None)
            best = jax.device_put({layer: _nothing(*found.unit.shape) for layer, found in shapes.items()}, whole)
        images, mask = jax.device_put((images, mask), by_image)
        # Waited for, because programs that are queued on a CPU run into one another.
        best = jax.block_until_ready(look(variables, images, mask, seen, best))
        seen += size
    return {layer: Strongest(*(np.asarray(part) for part in found)) for layer, found in (best or {}).items()}


def _regrouped(batches: Iterable[Any], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images that `mask` counts in groups of `size` with their mask; zeros fill up the last group."""
    images = (
        image for batch in batches for image, counts in zip(np.asarray(batch.images), batch.mask, strict=True) if counts
    )
    while group := list(itertools.islice(images, size)):
        missing = size - len(group)
        yield np.stack(group + [np.zeros_like(group[0])] * missing), (np.arange(size) < size - missing)


def choose_maps(
    final: Strongest, count: int, seed: int, blank: Bool[np.ndarray, " maps"] | None = None
) -> Int[np.ndarray, " rows"]:
    """A seeded random choice of `count` maps, in order, of those alive at the last epoch; dead ones fill up.

    The same rows then stand for all epochs. Source: figure 4 shows a random subset; paper silent on dead maps.

    Args:
        blank: maps that are taken only where there are too few others, from `sees_nothing`.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(final.value))
    dead = final.value[order] <= 0
    last = np.zeros(len(order)) if blank is None else blank[order]
    return np.sort(order[np.argsort(2 * dead + last, kind="stable")][:count])


def sees_nothing(
    images: Any, strongest: Strongest, fields: Fields, least: float = LEAST_CONTRAST
) -> Bool[np.ndarray, " maps"]:
    """Whether what a map's strongest unit sees of its image has nearly one colour.

    Args:
        images: the data set from which `strongest` was taken, one activation a map.
        least: the deviation of the grey levels in a channel, of 255, below which that is so in all channels.
    """
    patches = (
        crop(images[image : image + 1][0].astype(np.float32), fields, unit)
        for image, unit in zip(np.asarray(strongest.image), np.asarray(strongest.unit), strict=True)
    )
    seen = (patch[~np.isnan(patch[..., 0])] for patch in patches)  # a unit at the border may see nothing but padding
    return np.array([len(pixels) == 0 or pixels.std(axis=0).max() < least for pixels in seen])


def tile_evolution(
    projector: Projector,
    variables_by_epoch: dict[int, Any],
    strongest_by_epoch: dict[int, Strongest],
    maps: Sequence[int] | np.ndarray,
    images: Any,
    fields: Fields,
    *,
    group: int = GROUP,
) -> Evolution:
    """The projections of one layer's chosen maps at every epoch, each beside the patch of its image.

    Args:
        projector: of this layer, from `make_projector`.
        images: the data set from which `strongest_by_epoch` was taken, an array or what gives arrays for rows as one.
        fields: of the layer's units.
        group: projections at a time, at most.
    """
    maps = np.asarray(maps)
    values, indices, units, projections, patches = [], [], [], [], []
    for epoch, variables in variables_by_epoch.items():
        strongest = strongest_by_epoch[epoch]
        image, unit = np.asarray(strongest.image)[maps], np.asarray(strongest.unit)[maps]
        projected, seen = tile_units(projector, variables, images, image, unit, maps, fields, group=group)
        values.append(np.maximum(strongest.value[maps], 0))
        indices.append(image)
        units.append(unit)
        projections.append(projected)
        patches.append(seen)
    places = [places_in_tiles(fields, unit, images.shape[1:3]) for unit in units]
    by_map = (np.stack(parts, axis=1) for parts in (values, indices, projections, patches, units, places))
    return Evolution(maps, np.array(list(variables_by_epoch)), *by_map)


def make_projector(
    feature_maps: FeatureMaps, layer: str, preprocess: Callable[[Any], Array], *, rule: Rule = "deconvnet"
) -> Projector:
    """Returns the compiled (variables, images, units, signal) -> pixels: one unit of `layer` in each image, projected.

    It is compiled once for every epoch, and for every signal, which need not be given.

    Args:
        rule: as `project` takes it, and `signal` too.
    """

    def projector(variables, images, units, signal):
        seen = preprocess(images)
        return project(lambda x: feature_maps(variables, x)[layer], seen, units, rule=rule, signal=signal)

    compiled = ops.jit(projector)
    return lambda variables, images, units, signal=math.nan: compiled(variables, images, units, signal)


def tile_units(
    projector: Projector,
    variables: Any,
    images: np.ndarray,
    image: Int[np.ndarray, " units"],
    unit: Int[np.ndarray, "units axes"],
    maps: Int[np.ndarray, " units"],
    fields: Fields,
    *,
    group: int = GROUP,
) -> tuple[Float[np.ndarray, "units height width channels"], Float[np.ndarray, "units height width channels"]]:
    """What each unit's projection and each unit's image show within its receptive field.

    Args:
        projector: from `make_projector`.
        images: the data set, an array or what gives arrays for rows as one does; only those that `image` names are
            read.
        fields: of the layer's units.
        group: images in a forward pass; of projections three quarters as many are made at a time, at most.

    Returns:
        The projections, signed, in units of the network's input, 0 outside the image; and the patches, grey levels 0
        to 255, NaN outside the image.
    """
    projections, patches = [], []
    for rows in in_groups(len(image), max(1, 3 * group // 4)):  # it needs up to 1.3 times the maps of its images
        pixels = projector(variables, images[image[rows]], np.column_stack([unit, maps])[rows])
        for row, projection in zip(rows[: len(image) - len(projections)], np.asarray(pixels), strict=False):
            projections.append(crop(projection, fields, unit[row], 0.0))
            patches.append(crop(images[image[row]].astype(np.float32), fields, unit[row]))
    return np.stack(projections), np.stack(patches)


def crop(
    image: Float[np.ndarray, "height width channels"],
    fields: Fields,
    unit: Int[np.ndarray, " axes"],
    fill: float = np.nan,
) -> Float[np.ndarray, "tile_height tile_width channels"]:
    """What the unit at (row, column) sees of the image, as large as its field; `fill` outside the image.

    Where the field is larger than the image the tile is the image, with `fill` where this unit does not see it; where
    units have no fields they see all of it.
    """
    if fields is None or unit.size == 0:
        return image
    sides = [field.size for field in fields]
    firsts = [
        int(np.ceil(field.start + field.jump * int(place) - (field.size - 1) / 2))
        for field, place in zip(fields, unit, strict=True)
    ]
    # Clipped at both ends: a unit at the border may see nothing but padding.
    rows, columns = (
        slice(*np.clip((first, first + side), 0, length))
        for first, side, length in zip(firsts, sides, image.shape, strict=False)
    )
    if _is_whole(fields, image.shape[:2]):
        tile = np.full(image.shape, fill, image.dtype)
        top, left = 0, 0
    else:
        tile = np.full((*sides, image.shape[2]), fill, image.dtype)
        top, left = firsts
    tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return tile


def _is_whole(fields: tuple[ReceptiveField, ...], image: Sequence[int]) -> bool:
    """Whether a tile is the image, because the field is no smaller along any side."""
    return min(field.size for field in fields) >= max(image)


def places_in_tiles(
    fields: Fields, units: Int[np.ndarray, "units axes"], image: Sequence[int]
) -> Float[np.ndarray, "units 2"]:
    """Where the middle of each unit's field is in its tile from `crop`: (row, column) in pixels, NaN where none is.

    Args:
        image: height and width.
    """
    if fields is None or units.shape[-1] == 0:
        return np.full((len(units), 2), np.nan)
    starts, jumps, sides = (np.array([getattr(field, name) for field in fields]) for name in ("start", "jump", "size"))
    middles = starts + jumps * units
    return middles - (0 if _is_whole(fields, image) else np.ceil(middles - (sides - 1) / 2))


def alike_through_others(
    projector: Projector,
    variables: Any,
    images: Any,
    image: Int[np.ndarray, " units"],
    unit: Int[np.ndarray, "units axes"],
    maps: Int[np.ndarray, " units"],
    *,
    group: int = GROUP,
) -> Float[np.ndarray, " units"]:
    """The cosine of each unit's projection through its own image and through one half a data set away.

    It is 1 where projections depend on the weights alone, as a deconvnet's do below the first pool, and in a network
    without pools at all; NaN where nothing comes down, or there is one image only.

    Args:
        projector, images, image, unit, maps, group: as `tile_units` takes them.
    """
    found = []
    signal = 1.0  # so that the unit need not be active in the other image
    others = (image + len(images) // 2) % len(images)
    for rows in in_groups(len(image), max(1, 3 * group // 4)):
        places = np.column_stack([unit, maps])[rows]
        own, other = (
            np.asarray(projector(variables, images[of[rows]], places, signal)).reshape(len(rows), -1)
            for of in (image, others)
        )
        sizes = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
        cosines = np.sum(own * other, axis=1) / np.where(sizes > 0, sizes, np.nan)
        found.append(np.where(others[rows] == image[rows], np.nan, cosines))
    return np.concatenate(found)[: len(image)]
