"""Networks of others under the one contract: `init(key, images)` and `apply(variables, images) -> (logits, maps)`.

A Flax Linen or NNX module, an Equinox module (or any other callable pytree: one image at a time, channels first), or a
plain function of images, or of (weights, images). Feature maps are what it returns as a dict beside the logits; else
every ReLU's output, named by its scope. All maps come out with the batch first and the channels last.
"""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import InputError
from cnnjax.tracing.relus import named_feature_maps_of
from cnnjax.tracing.table import layout_of

Images = Any  # [batch, height, width, channels]
Outputs = Any  # logits, or (logits, feature maps by name)


class Foreign:
    """Somebody's network, wrapped.

    Attributes:
        name: as the user named it.
        trainable: whether `init` draws weights; else they come from a file, or stand in the function.
    """

    def __init__(self, name: str, init: Callable[..., Any] | None, call: Callable[..., tuple[Outputs, Any]]):
        """`call`: (variables, images, train, rngs) -> (outputs, changed variables or {})."""
        self.name, self.trainable, self._init, self._call = name, init is not None, init, call

    def init(self, key: Any, images: Images, **_) -> Any:
        """Raises InputError for a function, whose weights nobody knows how to draw."""
        if self._init is None:
            raise InputError(f"{self.name} must be a module to have initial weights, and is a function")
        return self._init(key["params"] if isinstance(key, Mapping) else key, images)

    def apply(
        self,
        variables: Any,
        images: Images,
        *,
        train: bool = False,
        rngs: Mapping[str, Any] | None = None,
        mutable: Any = False,
        **_,  # of our own networks alone: mask, dropout_rate, batch_norm_momentum
    ) -> Any:
        """(logits, feature_maps); with `mutable`, as Linen's, ((logits, feature_maps), changed variables)."""
        images = jnp.asarray(images)
        changed: Any = {}

        def outputs(images):
            nonlocal changed
            found, changed = self._call(variables, images, train, rngs or {})
            return found

        if returns_maps(jax.eval_shape(outputs, images), self.name):
            logits, maps = outputs(images)
        elif train:
            logits, maps = outputs(images), {}
        else:
            logits, maps = named_feature_maps_of(outputs)(images)
        maps = {name: channels_last(value, place) for name, (value, place) in self._placed(maps, variables, images)}
        return ((logits, maps), changed) if mutable else (logits, maps)

    def _placed(self, maps, variables, images):
        axes = self._axes(variables, images) if maps else {}
        return [(name, (value, axes.get(name))) for name, value in maps.items()]

    def _axes(self, variables, images) -> dict[str, tuple[int, ...] | None]:
        """Which axes of each map are height and width, where they can be told."""
        shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)

        def raw(variables, images):
            def outputs(images):
                return self._call(variables, images, False, {})[0]

            if returns_maps(jax.eval_shape(outputs, images), self.name):
                return outputs(images)
            return named_feature_maps_of(outputs)(images)

        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), variables)
        key = (shape.shape, jax.tree.structure(shapes), *(leaf.shape for leaf in jax.tree.leaves(shapes)))
        if getattr(self, "_known", (None,))[0] != key:
            self._known = (key, layout_of(raw, shapes, shape))
        return self._known[1]


def channels_last(value: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """[batch, ...] with height and width at `axes` -> [batch, height, width, channels]; as it is where there are none.

    Maps whose places cannot be told, as behind attention, stay as they are.
    """
    if value.ndim != 4 or axes is None or len(axes) != 2 or axes == (1, 2):
        return value
    rest = next(axis for axis in range(1, 4) if axis not in axes)
    return jnp.transpose(value, (0, *axes, rest))


def returns_maps(outputs: Any, name: str) -> bool:
    """Whether a network's outputs are (logits, feature maps) and not logits alone.

    Raises:
        InputError: they are neither.
    """
    maps = isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], Mapping)
    logits = outputs[0] if maps else outputs
    if getattr(logits, "ndim", None) != 2:
        shown = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"{name} must return logits [batch, classes], or (logits, dict of feature maps), got {shown}")
    return maps


# --- what a user may hand in ----------------------------------------------------------------------------------------


def wrapped(network: Any, name: str = "the network") -> Foreign:
    """Somebody's network under the contract.

    Raises:
        InputError: it is nothing that can be called with images.
    """
    if inspect.isclass(network) and _is_nnx(network):
        from flax import nnx

        return _nnx(lambda: network(rngs=nnx.Rngs(0)), None, name)
    if isinstance(network, nn.Module):
        return _linen(network, name)
    if _is_nnx(type(network)):
        return _nnx(lambda: network, network, name)
    if inspect.isclass(network):
        raise InputError(f"{name} must be a network and not its class; make one, as NAME = {network.__name__}(...)")
    if not callable(network):
        raise InputError(f"{name} must be a module or a function of images, got {type(network).__name__}")
    leaves = jax.tree.leaves(network)
    if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        return _pytree(network, name)
    return _function(network, name)


def _accepted(function: Callable, train: bool) -> dict[str, bool]:
    """How a module is told that it is in training, by the names that the field uses."""
    known = {
        "train": train,
        "training": train,
        "is_training": train,
        "deterministic": not train,
        "inference": not train,
    }
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in known.items() if name in parameters}


def _linen(module: nn.Module, name: str) -> Foreign:
    def init(key, images):
        return dict(module.init({"params": key, "dropout": key}, images, **_accepted(module.__call__, False)))

    def call(variables, images, train, rngs):
        options = _accepted(module.__call__, train)
        others = [kind for kind in variables if kind != "params"]
        if train and others:
            return module.apply(variables, images, **options, rngs=rngs, mutable=others)
        return module.apply(variables, images, **options, rngs=rngs), {}

    return Foreign(name, init, call)


def _is_nnx(kind: type) -> bool:
    return any(base.__module__.startswith("flax.nnx") for base in kind.__mro__)


def _nnx(make: Callable[[], Any], given: Any, name: str) -> Foreign:
    from flax import nnx

    try:
        module = given if given is not None else nnx.eval_shape(make)
    except TypeError as error:
        raise InputError(f"{name} must be made by NAME(rngs=...), or be a module: {error}") from None
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def variables_of(params, rest):
        return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(rest)}

    def init(key, images):
        fresh = make() if given is None else module
        _, params, rest = nnx.split(fresh, nnx.Param, ...)
        return variables_of(params, rest)

    def call(variables, images, train, rngs):
        states = []
        for kind, of in (("params", params), ("state", rest)):
            state = jax.tree.map(lambda leaf: leaf, of)  # a copy
            nnx.replace_by_pure_dict(state, variables[kind])
            states.append(state)
        merged = nnx.merge(graph, *states)
        (merged.train if train else merged.eval)()
        outputs = merged(images)
        if not train:
            return outputs, {}
        return outputs, {"state": nnx.to_pure_dict(nnx.split(merged, nnx.Param, ...)[2])}

    return Foreign(name, init, call)


def _pytree(network: Any, name: str) -> Foreign:
    """Equinox and the like: the arrays in it are its weights, by the path of each; it takes one image."""
    found, tree = jax.tree_util.tree_flatten_with_path(network)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    weights = {path: leaf for path, (_, leaf) in zip(paths, found, strict=True) if _is_array(leaf)}

    def call(variables, images, train, rngs):
        leaves = [variables["params"].get(path, leaf) for path, (_, leaf) in zip(paths, found, strict=True)]
        own = jax.tree_util.tree_unflatten(tree, leaves)
        options = {"key": None} if "key" in inspect.signature(own).parameters else {}
        return jax.vmap(lambda image: own(image, **options))(jnp.moveaxis(images, -1, 1)), {}

    return Foreign(name, lambda key, images: {"params": weights}, call)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _function(function: Callable, name: str) -> Foreign:
    """Of images alone, or of a dict of weights by name and images."""
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(required) not in (1, 2):
        raise InputError(f"{name} must be a function of (images) or of (weights, images), and takes {len(required)}")

    def call(variables, images, train, rngs):
        return (function(images) if len(required) == 1 else function(variables["params"], images)), {}

    return Foreign(name, None, call)


def from_file(given: str) -> tuple[Foreign, str]:
    """The network NAME of FILE.py, which is run; and the file's SHA-256.

    Args:
        given: "FILE.py:NAME".

    Raises:
        InputError: there is no such file or name, the file raises, or the name is no network.
    """
    file, _, name = given.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"--network must be FILE.py:NAME, got {given!r}")
    if not path.is_file():
        raise InputError(f"--network must name a file that exists, got {file!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # for what stands beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"--network must be code that runs, and {file} raises {type(error).__name__}: {error}"
        ) from None
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        known = ", ".join(entry for entry in vars(module) if not entry.startswith("_")) or "nothing"
        raise InputError(f"--network must name what {file} holds ({known}), got {name!r}")
    return wrapped(getattr(module, name), given), hashlib.sha256(path.read_bytes()).hexdigest()


def check_images_apart(network: Any, variables: Any, images: Any, name: str) -> None:
    """Raises InputError if what the network says of an image depends on the images beside it."""
    both = np.asarray(network.apply(variables, images[:2])[0])
    alone = np.asarray(network.apply(variables, images[:1])[0])
    if not np.allclose(both[:1], alone, rtol=1e-2, atol=1e-3 * (1 + np.abs(alone).max())):
        raise InputError(f"{name} must say the same of an image whatever stands beside it in the batch, and does not")
