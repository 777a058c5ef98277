"""Networks of others under the one contract: `init(key, images)` and `apply(variables, images) -> (logits, maps)`.

A Flax Linen or NNX module, an Equinox module (or any other callable pytree: one image at a time, channels first), or a
plain function of images, or of (weights, images). Feature maps are what it returns as a dict beside the logits; else
every ReLU's output, named by its scope. All maps come out with the batch first and the channels last.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
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
        holds: whether the object that was handed in holds its weights.
    """

    def __init__(
        self,
        name: str,
        init: Callable[..., Any] | None,
        call: Callable[..., tuple[Outputs, Any]],
        *,
        holds: bool = False,
    ):
        """`call`: (variables, images, train, rngs) -> (outputs, changed variables or {})."""
        self.name, self.trainable, self.holds, self._init, self._call = name, init is not None, holds, init, call
        self._known: tuple[Any, dict] = None, {}  # what was traced last, and the places of its maps' height and width

    def own(self, image_shape: tuple[int, ...]) -> Any:
        """The variables that the object holds. Raises InputError where it holds none."""
        if not self.trainable:
            return {"params": {}}
        if not self.holds:
            raise InputError(f"variables must be given: {self.name} is a module without weights of its own")
        return self.init(jax.random.key(0), jnp.zeros((1, *image_shape)))

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

        logits, maps = self._with_maps(outputs, images, train)
        axes = self._axes(variables, images) if maps else {}
        maps = {name: channels_last(value, axes.get(name)) for name, value in maps.items()}
        return ((logits, maps), changed) if mutable else (logits, maps)

    def _with_maps(self, outputs: Callable, images: Images, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Logits and maps: those that the network returns, else, when it is looked into, every ReLU's output."""
        if returns_maps(jax.eval_shape(outputs, images), self.name):
            return outputs(images)
        return (outputs(images), {}) if train else named_feature_maps_of(outputs)(images)

    def _axes(self, variables, images) -> dict[str, tuple[int, ...] | None]:
        """Which axes of each map are height and width, where they can be told."""
        shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)

        def raw(variables, images):
            return self._with_maps(lambda images: self._call(variables, images, False, {})[0], images)

        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), variables)
        key = (shape.shape, jax.tree.structure(shapes), *(leaf.shape for leaf in jax.tree.leaves(shapes)))
        if self._known[0] != key:
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

        try:
            make: Any = network
            module = make(rngs=nnx.Rngs(0))
        except TypeError as error:
            raise InputError(f"{name} must be made by {network.__name__}(rngs=...), or be a module: {error}") from None
        return _nnx(module, lambda key: make(rngs=nnx.Rngs(key)), name, holds=False)
    if isinstance(network, nn.Module):
        return _linen(network, name)
    if _is_nnx(type(network)):
        return _nnx(network, lambda key: network, name, holds=True)
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


def _linen(network: nn.Module, name: str) -> Foreign:
    module: Any = network  # whose options are its own

    def init(key, images):
        variables = dict(module.init({"params": key, "dropout": key}, images, **_accepted(module.__call__, False)))
        if others := variables.keys() - {"params", "batch_stats"}:
            raise InputError(f"{name} must keep nothing but params and batch_stats, and keeps {', '.join(others)}")
        return variables

    def call(variables, images, train, rngs):
        options = _accepted(module.__call__, train)
        if train and variables.get("batch_stats"):
            return module.apply(variables, images, **options, rngs=rngs, mutable=["batch_stats"])
        return module.apply(variables, images, **options, rngs=rngs), {}

    return Foreign(name, init, call)


def _is_nnx(kind: type) -> bool:
    return any(base.__module__.startswith("flax.nnx") for base in kind.__mro__)


def _nnx(module: Any, make: Callable[[Any], Any], name: str, holds: bool) -> Foreign:
    """`make`: key -> a module of the same shapes with initial weights."""
    from flax import nnx

    graph, params, statistics, rest = _parts(module)

    def variables_of(params, statistics):
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(statistics)}

    def init(key, images):
        return variables_of(*_parts(make(key))[1:3])

    def call(variables, images, train, rngs):
        states = []
        for kind, of in (("params", params), ("batch_stats", statistics)):
            states.append(jax.tree.map(lambda leaf: leaf, of))  # a copy
            nnx.replace_by_pure_dict(states[-1], variables[kind])
        own = nnx.merge(graph, *states, jax.tree.map(lambda leaf: leaf, rest))
        (own.train if train else own.eval)()
        if train and rngs:
            nnx.reseed(own, **rngs)
        outputs = own(images)
        return outputs, {"batch_stats": nnx.to_pure_dict(_parts(own)[2])} if train else {}

    return Foreign(name, init, call, holds=holds)


def _parts(module: Any) -> tuple[Any, Any, Any, Any]:
    """Graph, weights, batch statistics, and the rest (keys of dropout)."""
    from flax import nnx

    graph, params, statistics, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    return graph, params, statistics, rest


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

    return Foreign(name, lambda key, images: {"params": weights}, call, holds=True)


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
    except (Exception, SystemExit) as error:
        raise InputError(f"--network must be code that runs, and {file} raises {_in_a_line(error)}") from None
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        known = ", ".join(entry for entry in vars(module) if not entry.startswith("_")) or "nothing"
        raise InputError(f"--network must name what {file} holds ({known}), got {name!r}")
    return wrapped(getattr(module, name), given), hashlib.sha256(path.read_bytes()).hexdigest()


def variables_from(network: Foreign, arrays: Mapping[str, Any] | None, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The network's variables, from arrays by name: the path of each in the network's own tree, in its own layout.

    `Conv_0.kernel` or `params.Conv_0.kernel`, `batch_stats.BatchNorm_0.mean` of Flax, `layers.0.weight` of Equinox. A
    function of (weights, images) is handed all arrays by their names.

    Raises:
        InputError: names that are missing or not expected, and arrays of other shapes, all at once.
    """
    if not network.trainable:
        _check_finite(arrays or {})
        return {"params": {name: jnp.asarray(array) for name, array in (arrays or {}).items()}}
    if arrays is None:
        raise InputError(f"--weights must be given: {network.name} is a module, whose weights are in a file")
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    like = jax.eval_shape(network.init, jax.random.key(0), images)
    named = {_dotted(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    given = {name if name in named else f"params.{name}": array for name, array in arrays.items()}
    missing, unexpected = sorted(named.keys() - given.keys()), sorted(given.keys() - named.keys())
    other = [
        f"{name} {tuple(given[name].shape)} for {leaf.shape}"
        for name, leaf in named.items()
        if name in given and tuple(given[name].shape) != leaf.shape
    ]
    if missing or unexpected or other:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": other}
        told = "; ".join(f"{what}: {_few(names)}" for what, names in lists.items() if names)
        raise InputError(f"--weights must be those of {network.name}; {told}")
    _check_finite(given)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(np.asarray(given[_dotted(path)]), leaf.dtype), dict(like)
    )


@contextlib.contextmanager
def readable(network: Foreign) -> Iterator[None]:
    """Makes an InputError of what somebody's code raises when it is called."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{network.name} must take the images, and raises {_in_a_line(error)}") from None


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def arrays_of(variables: Any) -> dict[str, np.ndarray]:
    """Each array by its path in the network's own tree, as `variables_from` takes them."""
    return {_dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]}


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _check_finite(arrays: Mapping[str, Any]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise InputError(f"--weights must be finite numbers, and {name} has a NaN or an infinity")


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_ALLOWED: dict[str, Foreign] = {}  # by name in a config


def is_code(name: str) -> bool:
    """Whether a config's model.name is FILE.py:NAME."""
    return ".py:" in name


def code_sha256(name: str) -> str:
    """The SHA-256 of FILE.py, which is not run. Raises InputError if there is no such file."""
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise InputError(f"model.name must name a file that exists, got {name!r}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def allow(given: str, name: str | None = None) -> str:
    """Runs the file, as the user asks for on the command line: from now on `models.build` knows the network.

    Args:
        given: FILE.py:NAME.
        name: how a config names it, where it stands elsewhere now.

    Returns:
        The file's SHA-256.
    """
    network, digest = from_file(given)
    network.name = name or given
    _ALLOWED[name or given] = network
    return digest


def allowed(name: str) -> Foreign:
    """Raises InputError for code that no user has asked to be run: a run's record or a config alone runs nothing."""
    if name not in _ALLOWED:
        raise InputError(f"model.name {name} is code, which runs only where --model.name or --network names it")
    return _ALLOWED[name]


def check_images_apart(network: Any, variables: Any, images: Any, name: str) -> None:
    """Raises InputError if what the network says of an image depends on the images beside it."""
    both = np.asarray(network.apply(variables, images[:2])[0])
    alone = np.asarray(network.apply(variables, images[:1])[0])
    if not np.allclose(both[:1], alone, rtol=1e-2, atol=1e-3 * (1 + np.abs(alone).max())):
        raise InputError(f"{name} must say the same of an image whatever stands beside it in the batch, and does not")
