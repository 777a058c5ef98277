"""Networks of others under the one contract: `init(key, images)` and `apply(variables, images) -> (logits, maps)`.

A Flax Linen or NNX module, an Equinox module (or any other callable pytree: one image at a time, channels first), or a
plain function of images, or of (weights, images). Feature maps are what it returns as a dict beside the logits; else
every ReLU's output, named by its scope. All maps come out with the batch first and the channels last.
"""

import contextlib
import copy
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import InputError
from cnnjax.models.building import dotted, is_of, smallest_side
from cnnjax.tracing.relus import named_feature_maps_of
from cnnjax.tracing.table import layout_of
from cnnjax.tracing.walk import inner_jaxprs

Images = Any  # [batch, height, width, channels]
Outputs = Any  # logits, or (logits, feature maps by name)


class Foreign:
    """Somebody's network, wrapped.

    Attributes:
        name: as the user named it.
        trainable: whether `init` draws weights; else they come from a file, or stand in the function.
        holds: whether the object that was handed in holds its weights.
        frozen: layers (`is_of`, by their paths) whose batch normalization keeps to its running statistics in a
            training too.
    """

    frozen: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        init: Callable[..., Any] | None,
        call: Callable[..., tuple[Outputs, Any]],
        *,
        holds: bool = False,
    ):
        """`call`: (variables, images, train, rngs, frozen) -> (outputs, changed variables or {})."""
        self.name, self.trainable, self.holds, self._init, self._call = name, init is not None, holds, init, call
        self._known: tuple[Any, dict] = None, {}  # what was traced last, and the places of its maps' height and width

    def clone(self, *, frozen: tuple[str, ...]) -> "Foreign":
        """The same network with these layers frozen."""
        other = copy.copy(self)
        other.frozen = frozen
        return other

    @property
    def draws(self) -> bool:
        """Whether `init` draws other weights from every key, and does not hand out those that stand in the object."""
        return self.trainable and not self.holds

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
        """(logits, feature_maps); with `mutable`, as Linen's, ((logits, feature_maps), changed variables).

        It takes no mask: in a training every image of the batch counts, in its batch statistics too.
        """
        images = jnp.asarray(images)
        changed: Any = {}

        def outputs(images):
            nonlocal changed
            found, changed = self._call(variables, images, train, rngs or {}, self.frozen)
            return found

        logits, maps = self._with_maps(outputs, images, train)
        axes = self._axes(variables, images) if maps else {}
        maps = {name: channels_last(value, axes.get(name)) for name, value in maps.items()}
        return ((logits, maps), changed) if mutable else (logits, maps)

    def _with_maps(self, outputs: Callable, images: Images, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Logits and maps: those that the network returns, else, when it is looked into, every ReLU's output."""
        if returns_maps(jax.eval_shape(outputs, images), len(images), self.name):
            return outputs(images)
        return (outputs(images), {}) if train else named_feature_maps_of(outputs)(images)

    def _axes(self, variables, images) -> dict[str, tuple[int, ...] | None]:
        """Which axes of each map are height and width, where they can be told."""
        shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)

        def raw(variables, images):
            return self._with_maps(lambda images: self._call(variables, images, False, {}, ())[0], images)

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


def returns_maps(outputs: Any, batch: int, name: str) -> bool:
    """Whether a network's outputs are (logits, feature maps) and not logits alone.

    Args:
        batch: how many images they are of.

    Raises:
        InputError: they are neither, or not of so many images.
    """
    rule = f"{name} must return logits [batch, classes], or (logits, dict of feature maps by name)"
    maps = isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], Mapping)
    logits: Any = outputs[0] if maps else outputs
    shape = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[0] != batch or shape[1] < 1:
        shown = shape if hasattr(logits, "shape") else type(logits).__name__
        raise InputError(f"{rule}, got {shown} for {batch} images")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"{rule}, got logits that are no floats but {logits.dtype}")
    for key, value in outputs[1].items() if maps else ():
        if not isinstance(key, str) or getattr(value, "shape", ())[:1] != (batch,):
            shown = getattr(value, "shape", type(value).__name__)
            raise InputError(f"{rule}, got {key!r}: {shown} for {batch} images")
    return maps


# --- what a user may hand in ----------------------------------------------------------------------------------------


def wrapped(network: Any, name: str = "the network") -> Foreign:
    """Somebody's network under the contract.

    Raises:
        InputError: it is nothing that can be called with images.
    """
    made = network.func if isinstance(network, functools.partial) else network
    if inspect.isclass(made):
        return _of_class(network, made, name)
    if isinstance(network, nn.Module):
        return _linen(network, name)
    if _is_nnx(type(network)):
        return _nnx(network, lambda key: network, name, holds=True)
    if not callable(network):
        raise InputError(f"{name} must be a module or a function of images, got {type(network).__name__}")
    if any(map(_is_array, jax.tree.leaves(network))):
        return _pytree(network, name)
    return _function(network, name)


def _of_class(make: Any, made: type, name: str) -> Foreign:
    """Of a class, or a partial of one, that makes an NNX module of `rngs`, or a callable pytree of a `key`."""
    from flax import nnx

    argument = "rngs" if _is_nnx(made) else "key"

    def drawn(key):
        return make(**{argument: nnx.Rngs(key) if _is_nnx(made) else key})

    try:
        module = drawn(jax.random.key(0))
    except TypeError as error:
        raise InputError(
            f"{name} must be a network and not its class; make one, as NAME = {made.__name__}(...), because of"
            f" {argument} alone it cannot be made ({_in_a_line(error)})"
        ) from None
    return _nnx(module, drawn, name, holds=False) if _is_nnx(made) else _pytree(module, name, drawn)


# How a module is told whether it is in training, by the names that the field uses.
_TOLD: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "is_training": lambda train: train,
    "deterministic": lambda train: not train,
    "inference": lambda train: not train,
    "use_running_average": lambda train: not train,
}


def _accepted(function: Callable, train: bool) -> dict[str, bool]:
    parameters = inspect.signature(function).parameters
    return {name: told(train) for name, told in _TOLD.items() if name in parameters}


def _statistics_kept(frozen: tuple[str, ...]) -> Callable[..., Any]:
    """For `nn.intercept_methods`: the batch normalizations of these layers are as in evaluation."""

    def keep(call, arguments, options, context):
        layer, called = context.module, context.method_name
        if isinstance(layer, nn.BatchNorm) and called == "__call__" and is_of(".".join(layer.path), frozen):
            object.__setattr__(layer, "use_running_average", None)  # it may be told in one way only
            arguments, options = arguments[:1], options | {"use_running_average": True}
        return call(*arguments, **options)

    return keep


def _linen(network: nn.Module, name: str) -> Foreign:
    module: Any = network  # whose options are its own

    def init(key, images):
        variables = dict(module.init({"params": key, "dropout": key}, images, **_accepted(module.__call__, False)))
        if others := variables.keys() - {"params", "batch_stats"}:
            raise InputError(f"{name} must keep nothing but params and batch_stats, and keeps {', '.join(others)}")
        return variables

    def call(variables, images, train, rngs, frozen):
        options = _accepted(module.__call__, train)
        if not (train and variables.get("batch_stats")):
            return module.apply(variables, images, **options, rngs=rngs), {}
        if not options:
            told = ", ".join(_TOLD)
            raise InputError(f"{name} must take one of {told}, for its batch statistics to be those of a training")
        with nn.intercept_methods(_statistics_kept(frozen)):
            return module.apply(variables, images, **options, rngs=rngs, mutable=["batch_stats"])

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

    def call(variables, images, train, rngs, frozen):
        states = []
        for kind, of in (("params", params), ("batch_stats", statistics)):
            states.append(jax.tree.map(lambda leaf: leaf, of))  # a copy
            nnx.replace_by_pure_dict(states[-1], variables[kind])
        own = nnx.merge(graph, *states, jax.tree.map(lambda leaf: leaf, rest))
        (own.train if train else own.eval)()
        if train and rngs:
            # Each of its streams, whatever it is called: that of `nnx.Rngs(0)` is "default", for dropout too.
            tags = sorted({part.tag for _, part in nnx.iter_graph(own) if isinstance(part, nnx.RngStream)})
            keys = jax.random.split(rngs["dropout"], len(tags)) if tags else ()
            nnx.reseed(own, **dict(zip(tags, keys, strict=True)))
        for path, part in nnx.iter_modules(own):
            if isinstance(part, nnx.BatchNorm) and is_of(".".join(map(str, path)), frozen):
                part.use_running_average = True
        outputs = own(images)
        return outputs, {"batch_stats": nnx.to_pure_dict(_parts(own)[2])} if train else {}

    return Foreign(name, init, call, holds=holds)


def _parts(module: Any) -> tuple[Any, Any, Any, Any]:
    """Graph, weights, batch statistics, and the rest (keys of dropout)."""
    from flax import nnx

    graph, params, statistics, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    return graph, params, statistics, rest


def _pytree(network: Any, name: str, make: Callable[[Any], Any] | None = None) -> Foreign:
    """Equinox and the like: the arrays in it are its weights, by the path of each; it takes one image.

    `make`: key -> such a network with initial weights; None: it holds those that it begins with.
    """
    found, tree = jax.tree_util.tree_flatten_with_path(network)
    paths = [dotted(path) for path, _ in found]

    def init(key, images):
        leaves = jax.tree_util.tree_leaves_with_path(network if make is None else make(key))
        return {"params": {dotted(path): leaf for path, leaf in leaves if _is_array(leaf)}}

    def call(variables, images, train, rngs, frozen):
        leaves = [variables["params"].get(path, leaf) for path, (_, leaf) in zip(paths, found, strict=True)]
        own = _in_mode(jax.tree_util.tree_unflatten(tree, leaves), train)
        images = jnp.moveaxis(images, -1, 1)
        if "key" not in inspect.signature(own).parameters:
            return jax.vmap(own)(images), {}
        if not (train and rngs):
            return jax.vmap(lambda image: own(image, key=None))(images), {}
        keys = jax.random.split(rngs["dropout"], len(images))
        return jax.vmap(lambda image, key: own(image, key=key))(images, keys), {}

    return Foreign(name, init, call, holds=make is None)


def _in_mode(network: Any, train: bool) -> Any:
    """An Equinox module with its layers (dropout) in training or in inference."""
    equinox = sys.modules.get("equinox")  # there, where a module of it is
    if equinox is None or not isinstance(network, equinox.Module):
        return network
    return equinox.nn.inference_mode(network, value=not train)


def _is_array(leaf: Any) -> bool:
    """Of numbers that can be trained: a table of integers or a key is part of the code."""
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _function(function: Callable, name: str) -> Foreign:
    """Of images alone, or of a dict of weights by name and images."""
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(required) not in (1, 2):
        raise InputError(f"{name} must be a function of (images) or of (weights, images), and takes {len(required)}")

    def call(variables, images, train, rngs, frozen):
        return (function(images) if len(required) == 1 else function(variables["params"], images)), {}

    return Foreign(name, None, call)


def from_file(given: str, option: str = "--network") -> tuple[Foreign, str]:
    """The network NAME of FILE.py, which is run; and the file's SHA-256.

    Args:
        given: "FILE.py:NAME".
        option: what named it, in errors.

    Raises:
        InputError: there is no such file or name, the file raises, or the name is no network.
    """
    file, _, name = given.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"{option} must be FILE.py:NAME, got {given!r}")
    path, source = Path(file), _code(file, option)
    digest = hashlib.sha256(source).hexdigest()
    # Not by Python's import, which takes what it has compiled of a file before for what the file is now.
    module = types.ModuleType(f"network_{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look
    beside = str(path.parent.resolve())
    sys.path.insert(0, beside)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"{option} must be code that runs, and {file} raises {_in_a_line(error)}") from None
    finally:
        sys.dont_write_bytecode = writes
        with contextlib.suppress(ValueError):
            sys.path.remove(beside)
    if name not in vars(module):
        known = [entry for entry in vars(module) if not entry.startswith("_")]
        raise InputError(f"{option} must name what {file} holds ({_few(known, 12) or 'nothing'}), got {name!r}")
    try:
        return wrapped(vars(module)[name], given), digest
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"{option} must name a network, and {given} raises {_in_a_line(error)}") from None


def _code(file: str, option: str) -> bytes:
    """What is in the file. Raises InputError if there is none that can be read."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{option} must name a file that exists, got {file!r}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{option} must name a file that can be read, got {file!r}: {error.strerror}") from None


def variables_from(
    network: Foreign, arrays: Mapping[str, Any] | None, image_shape: tuple[int, ...], option: str = "--weights"
) -> dict[str, Any]:
    """The network's variables, from arrays by name: the path of each in the network's own tree, in its own layout.

    `Conv_0.kernel` or `params.Conv_0.kernel`, `batch_stats.BatchNorm_0.mean` of Flax, `layers.0.weight` of Equinox. A
    function of (weights, images) is handed all arrays by their names.

    Args:
        option: what named the arrays, in errors.

    Raises:
        InputError: names that are missing or not expected, and arrays of other shapes, all at once.
    """
    if not network.trainable:
        _check_numbers(arrays or {}, option)
        return {"params": {name: jnp.asarray(array) for name, array in (arrays or {}).items()}}
    if arrays is None:
        raise InputError(f"{option} must be given: {network.name} is a module, whose weights are in a file")
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    like = jax.eval_shape(network.init, jax.random.key(0), images)
    named = {dotted(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
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
        raise InputError(f"{option} must be those of {network.name}; {told}")
    _check_numbers(given, option)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(np.asarray(given[dotted(path)]), leaf.dtype), dict(like)
    )


@contextlib.contextmanager
def readable(network: Foreign) -> Iterator[None]:
    """Makes an InputError of what somebody's code raises when it is called."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an exit too
        raise InputError(f"{network.name} must take the images, and raises {_in_a_line(error)}") from None


def _in_a_line(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # it is somebody's own
        lines = []
    return f"{type(error).__name__}: {(lines or ['(no more is said)'])[0]}"


def arrays_of(variables: Any) -> dict[str, np.ndarray]:
    """Each array by its path in the network's own tree, as `variables_from` takes them."""
    return {dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]}


def _check_numbers(arrays: Mapping[str, Any], option: str) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biu" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{option} must be numbers, and {name} is {array.dtype}")
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise InputError(f"{option} must be finite numbers, and {name} has a NaN or an infinity")


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_ALLOWED: dict[str, Foreign] = {}  # by name in a config


def is_code(name: str) -> bool:
    """Whether a config's model.name is FILE.py:NAME."""
    return ".py:" in name


def code_sha256(name: str) -> str:
    """The SHA-256 of FILE.py, which is not run. Raises InputError if there is no such file."""
    return hashlib.sha256(_code(name.rpartition(":")[0], "model.name")).hexdigest()


def allow(given: str, name: str | None = None, option: str = "--model.name") -> str:
    """Runs the file, as the user asks for on the command line: from now on `models.build` knows the network.

    Args:
        given: FILE.py:NAME.
        name: how a config names it, where it stands elsewhere now.
        option: what named it, in errors.

    Returns:
        The file's SHA-256.
    """
    network, digest = from_file(given, option)
    network.name = name or given
    _ALLOWED[name or given] = network
    return digest


def allowed(name: str) -> Foreign:
    """Raises InputError for code that no user has asked to be run: a run's record or a config alone runs nothing."""
    if name not in _ALLOWED:
        raise InputError(f"model.name {name} is code, which runs only where --model.name or --network names it")
    return _ALLOWED[name]


def check_images_apart(network: Any, variables: Any, images: Any, name: str) -> None:
    """Raises InputError if what the network says of an image is no number, or depends on the images beside it."""
    both = np.asarray(network.apply(variables, images[:2])[0])
    alone = np.asarray(network.apply(variables, images[:1])[0])
    if np.isnan(both).any() or np.isnan(alone).any():
        raise InputError(f"{name} must say numbers of the images, and says NaN")
    if not np.allclose(both[:1], alone, rtol=1e-2, atol=1e-3 * (1 + np.abs(alone).max())):
        raise InputError(f"{name} must say the same of an image whatever stands beside it in the batch, and does not")


@functools.lru_cache(maxsize=8)  # a run builds its network at several places
def check_trainable(network: Foreign, image_shape: tuple[int, ...], classes: int) -> None:
    """Nothing that is traced here does, in a training, raise anything.

    Raises:
        InputError: the network cannot be trained: it has not `classes` outputs, raises in evaluation or in training,
            leaves nothing of the images, or looks at the images beside an image where it does not train.
    """
    one, two = (jax.ShapeDtypeStruct((count, *image_shape), jnp.float32) for count in (1, 2))
    keys = {"dropout": jax.random.key(0)}
    with readable(network):
        variables = jax.eval_shape(network.init, jax.random.key(0), one)
        check_large_enough(network, None, image_shape)
        _, count = jax.eval_shape(network.apply, variables, one)[0].shape
        if count != classes:
            raise InputError(f"{network.name} must have an output for each of the {classes} classes, and has {count}")
        train = functools.partial(network.apply, train=True, mutable=["batch_stats"])
        _, changed = jax.eval_shape(lambda variables, images: train(variables, images, rngs=keys), variables, two)
        kept, statistics = changed.get("batch_stats", {}), variables.get("batch_stats", {})
        if jax.tree.map(jnp.shape, kept) != jax.tree.map(jnp.shape, statistics):
            raise InputError(f"{network.name} must keep the shapes of its batch statistics in a training, and does not")
        drawn = network.init(jax.random.key(0), np.zeros((1, *image_shape), np.float32))
        generator = np.random.default_rng(0)
        # Not as they begin: behind weights of zero, a head's often, nothing can be seen.
        moved = jax.tree.map(
            lambda leaf: leaf + 0.1 * generator.normal(size=leaf.shape).astype(leaf.dtype), drawn["params"]
        )
        images = generator.normal(size=(2, *image_shape)).astype(np.float32)
        check_images_apart(network, {**drawn, "params": moved}, images, network.name)


def check_large_enough(network: Foreign, variables: Any, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where a convolution or a pool has no place left in the images; it says the smallest size.

    Args:
        variables: or their shapes; None: as they are at first, for images of that size.
    """
    height, width, channels = image_shape

    def fits(side: int) -> bool:
        try:
            return not _leaves_nothing(network, variables, (side, side, channels))
        except Exception:  # somebody's code, at a size that it is not for
            return False

    if _leaves_nothing(network, variables, image_shape):
        least = smallest_side(fits, min(height, width))
        rule = "larger" if least is None else f"at least {least}×{least} pixels"
        raise InputError(f"images must be {rule} for {network.name}, got {height}×{width}")


def _leaves_nothing(network: Foreign, variables: Any, image_shape: tuple[int, ...]) -> bool:
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if variables is None:
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return _has_empty_maps(jax.make_jaxpr(network.apply)(variables, images).jaxpr)


def _has_empty_maps(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        windowed = equation.primitive.name.startswith(("conv_general_dilated", "reduce_window"))
        if windowed and any(0 in value.aval.shape for value in equation.outvars):
            return True
        if any(_has_empty_maps(within) for within in inner_jaxprs(equation)):
            return True
    return False
