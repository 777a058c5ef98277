"""Weights by the names and in the layout that PyTorch gives them, from and to a network's variables.

The layer `name` of a network is the module `name` there: kernels [height, width, in, out] are `name.weight`
[out, in, height, width], dense ones [in, out] are [out, in]; scale, bias and running statistics of a normalization are
`weight`, `bias`, `running_mean` and `running_var`. So `features.0` of a VGG; `conv1`, `norm1`, `fc3` of a `ConvNet`.

The known networks flatten their maps as PyTorch does, channels first. A `ConvNet` flattens rows, columns, channels, so
the kernel of its first dense layer is brought into the other order, by the shape of the map (`flattened_maps`).

In other files the same array may have another name: all may begin with `module.` (DataParallel), DenseNets may have
`norm.1` for `norm1`, and timm's VGGs have their dense layers as convolutions over the whole map. Nothing is ever taken
by its position. A momentum is no weight, and so in no file: PyTorch's is 1 minus `batch_norm_momentum` here.
"""

import concurrent.futures
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import ml_dtypes
import numpy as np

from cnnjax import models
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError

_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that only a training needs, of GoogLeNet and Inception
_TIMM_VGG = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
_LISTED = 4  # names in a report
_BLOCK = 2**16  # numbers whose values are checked at once
_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))

Map = tuple[int, int, int]  # height, width, channels


class Stored(Protocol):
    """An array, or one in a file that is read by `np.asarray`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def without(variables: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The variables but for the arrays of these names of PyTorch's."""
    left: dict[str, Any] = {kind: {} for kind in variables}
    for (kind, layer, part), leaf in _leaves(variables):
        if _name(layer, part) not in names:
            left[kind].setdefault(layer, {})[part] = leaf
    return left


def named(variables: Mapping[str, Any], flattened: Mapping[str, Map] | None = None) -> dict[str, np.ndarray]:
    """PyTorch's name of every array -> the array in PyTorch's layout.

    Args:
        flattened: as from `flattened_maps`.
    """
    found = {}
    for (_, layer, part), array in _leaves(variables):
        array = np.asarray(array)
        found[_name(layer, part)] = _to_torch(array, part, (flattened or {}).get(layer))
    return found


def shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """PyTorch's name of every array -> its shape in PyTorch's layout; of arrays or their shapes."""
    return {
        _name(layer, part): (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2]) if part == "kernel" else leaf.shape
        for (_, layer, part), leaf in _leaves(variables)
    }


def variables_of(
    arrays: Mapping[str, Any],
    like: Mapping[str, Any],
    flattened: Mapping[str, Map] | None = None,
    *,
    left_out: Iterable[str] = (),
    called: str = "the weights",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The variables of the shapes in `like`, on the device, from PyTorch's arrays by name; the inverse of `named`.

    Each array is checked, and copied once, straight to its place. Half precision becomes float32, and so does float64.

    Args:
        arrays: arrays, or what `Stored` describes.
        flattened: as from `flattened_maps`.
        left_out: PyTorch's names of arrays that are not in `like` and may be among the arrays.
        called: in errors, the file.
        say: told in a line each what was left out or made another type.

    Raises:
        InputError: one line: names that are missing or not expected and arrays of another shape, all at once, and which
            known network the arrays look like; an array that is not of floats, has a NaN or an infinity, or a running
            variance below 0.
    """
    places = _places(arrays, shapes(like), set(left_out), called, say)
    kinds = {name: np.dtype(arrays[place].dtype) for name, place in places.items()}
    for name, kind in kinds.items():
        if kind not in _FLOATS:
            raise InputError(f"{called}: {_shown(places[name])} must be of floats, got {kind}")
    others = sorted({str(kind) for kind in kinds.values()} - {"float32"})
    if others:
        say(f"{called}: {' and '.join(others)} became float32")

    checks: list[concurrent.futures.Future[None]] = []

    def read(path, leaf):
        _, layer, part = (key.key for key in path)
        place = places[_name(layer, part)]
        array = np.asarray(arrays[place])
        if array.dtype != np.float32:
            with np.errstate(over="ignore"):  # what is too large for float32 is refused as an infinity
                array = array.astype(np.float32)
        what, least = f"{called}: {_shown(place)}", 0.0 if part == "var" else -math.inf
        checks.append(beside.submit(_check_values, array, what, least))
        if part == "kernel":
            array = array.reshape(leaf.shape[-1], -1)  # a dense kernel may be a convolution over the whole map
            array = _from_torch(array, leaf.shape, (flattened or {}).get(layer))
        if array.flags.c_contiguous or array.shape != leaf.shape:
            # JAX might take it as it is, in the file's memory.
            array = np.array(array, order="C").reshape(leaf.shape)
        return jax.device_put(array)  # brings the axes of a view into their order, on a CPU faster than NumPy

    with concurrent.futures.ThreadPoolExecutor(1) as beside:  # values are checked while arrays go to their places
        found = jax.tree_util.tree_map_with_path(read, dict(like))
        for check in checks:
            check.result()
    return jax.block_until_ready(found)  # the file may change from now on


def _to_torch(array: np.ndarray, part: str, of: Map | None) -> np.ndarray:
    if part != "kernel":
        return array
    if of is not None:
        array = np.moveaxis(array.reshape(*of, -1), 2, 0).reshape(array.shape)
    return np.moveaxis(array, (-1, -2), (0, 1))


def _from_torch(array: np.ndarray, shape: tuple[int, ...], of: Map | None) -> np.ndarray:
    """The kernel [out, everything else] as it is seen in our order of axes, out last."""
    if of is not None:
        height, width, channels = of
        return array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
    return np.moveaxis(array.reshape(shape[-1], shape[-2], *shape[:-2]), (0, 1), (-1, -2))


def _check_values(array: np.ndarray, what: str, least: float = -math.inf) -> None:
    # The extremes are NaN where anything is. A block at a time: the second of the two is read from the cache.
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        lowest, highest = float(block.min()), float(block.max())
        if not math.isfinite(lowest) or not math.isfinite(highest):
            raise InputError(f"{what} must be finite numbers, and has a NaN or an infinity")
        if lowest < least:
            raise InputError(f"{what} must be variances of at least {least:g}, got {lowest:.3g}")


class _Matches(NamedTuple):
    """Which array of a file belongs where, and what does not."""

    places: dict[str, str]  # the network's name -> the file's
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]  # of the network's names
    auxiliary: list[str]  # heads that the network has not
    twice: list[str]  # names of the file that come to one and the same


def _match(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> _Matches:
    prefix = "module." if found and all(name.startswith("module.") for name in found) else ""
    matches = _Matches({}, [], [], [], [], [])
    for place, shape in found.items():
        name = _renamed(place.removeprefix(prefix), wanted)
        if name in matches.places:
            matches.twice.append(place)
        elif name in wanted:
            matches.places[name] = place
            if shape != wanted[name] and not _is_over_the_whole_map(shape, wanted[name]):
                matches.misshapen.append(name)
        elif name.startswith(_AUXILIARY):
            matches.auxiliary.append(place)
        elif not name.endswith(".num_batches_tracked"):
            matches.unexpected.append(place)
    matches.missing.extend(name for name in wanted if name not in matches.places)
    return matches


def _renamed(name: str, wanted: Mapping[str, Any]) -> str:
    """The network's name for what a file calls otherwise; else the name itself."""
    if name in wanted:
        return name
    layer, _, part = name.rpartition(".")
    for other in (re.sub(r"\b(norm|conv)\.([12])$", r"\1\2", layer), _TIMM_VGG.get(layer, layer)):
        if f"{other}.{part}" in wanted:
            return f"{other}.{part}"
    return name


def _is_over_the_whole_map(shape: tuple[int, ...], dense: tuple[int, ...]) -> bool:
    return len(shape) == 4 and len(dense) == 2 and (shape[0], math.prod(shape[1:])) == dense


def _places(
    arrays: Mapping[str, Any],
    wanted: Mapping[str, tuple[int, ...]],
    left_out: set[str],
    called: str,
    say: Callable[[str], None],
) -> dict[str, str]:
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    free = dict.fromkeys(left_out - wanted.keys(), ())
    matches = _match(found, {**free, **wanted})
    missing = [name for name in matches.missing if name not in free]
    misshapen = [name for name in matches.misshapen if name not in free]
    if missing or matches.unexpected or misshapen or matches.twice:
        other = [f"{name} {list(found[matches.places[name]])} for {list(wanted[name])}" for name in misshapen]
        told = {"missing": missing, "unexpected": matches.unexpected, "of another shape": other, "twice": matches.twice}
        parts = "; ".join(f"{what}: {listed(names)}" for what, names in told.items() if names)
        raise InputError(f"{called} must hold the network's arrays; {parts}; {look_alike(found)}")
    if matches.auxiliary:
        heads = sorted({name.split(".")[-3 if name.startswith("module.") else 0] for name in matches.auxiliary})
        say(f"{called}: {len(matches.auxiliary)} arrays of auxiliary heads are left out ({', '.join(heads)})")
    return {name: place for name, place in matches.places.items() if name in wanted}


def look_alike(found: Mapping[str, tuple[int, ...]]) -> str:
    """ "they look like resnet50", by names and shapes of arrays; or that no known network fits."""
    others: dict[str, int] = {}  # networks with these names -> arrays of another shape
    for name in models.KNOWN:
        matches = _match(found, _known_shapes(name))
        if not (matches.missing or matches.unexpected or matches.twice):
            others[name] = len(set(matches.misshapen) - _known_head(name) if matches.misshapen else ())
            if not others[name]:
                return f"they look like {name}"
    if not others:
        return "they look like no known network"
    return f"they look like {min(others, key=lambda name: others[name])} of other widths"


class Known(NamedTuple):
    shapes: dict[str, tuple[int, ...]]  # of every array, in PyTorch's layout
    head: frozenset[str]  # the arrays whose shape depends on the number of classes


@functools.cache
def layout(config: ModelConfig, image_shape: tuple[int, int, int], classes: int) -> Known:
    """The arrays of the network that `config` names, and which of them are its head's; computes nothing."""
    free = dataclasses.replace(config, classes=None)
    models.build(free, image_shape, classes)  # raises what is wrong with it
    of, more = (
        shapes(like(models.NETWORKS[config.name](free, count), image_shape)) for count in (classes, classes + 1)
    )
    return Known(of, frozenset(name for name, shape in of.items() if more[name] != shape))


def like(network: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The shapes of the network's variables."""
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), np.float32))


@functools.cache
def _known_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return shapes(like(models.KNOWN[name](ModelConfig(name), 1000), (224, 224, 3)))


@functools.cache
def _known_head(name: str) -> frozenset[str]:
    return layout(ModelConfig(name), (224, 224, 3), 1000).head


def classes_of(arrays: Mapping[str, Any], known: Known) -> int | None:
    """The number of classes that the arrays of the head in a file are for; None where there is none."""
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    places = _match(found, known.shapes).places
    counts = {found[places[name]][:1] for name in known.head if name in places} - {()}
    return next(iter(counts))[0] if len(counts) == 1 else None


def flattened_maps(network: Any, image_shape: tuple[int, int, int]) -> dict[str, Map]:
    """The dense layer of a `ConvNet` that sees a map, and the map's shape; of other networks nothing."""
    if not isinstance(network, models.ConvNet):
        return {}
    seen: list[Map] = [image_shape]

    def watch(images):
        variables = network.init(jax.random.key(0), images)
        for of_layer in network.apply(variables, images)[1].values():  # in network order only while it is traced
            if of_layer.ndim == 4:
                seen.append(of_layer.shape[1:])

    jax.eval_shape(watch, jax.ShapeDtypeStruct((1, *image_shape), np.float32))
    return {f"fc{len(network.convolutions) + 1}": seen[-1]}


def listed(names: Sequence[str]) -> str:
    """The first few names and how many there are more, as they can stand in one line."""
    shown = ", ".join(_shown(name) for name in names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def _shown(name: str) -> str:
    shown = ascii(name)[1:-1]
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _name(layer: str, part: str) -> str:
    return f"{layer}.{_NAMES[part]}"


def _leaves(variables: Mapping[str, Any]):
    return [
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(dict(variables))[0]
    ]
