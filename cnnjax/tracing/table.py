"""The table of a network's layers, from the network's own trace: nothing asks how it was built.

A row is a feature map, in network order, or the logits, and what stands between it and the maps before it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from cnnjax.errors import InputError
from cnnjax.geometry import Pair, ReceptiveField
from cnnjax.tracing import sights
from cnnjax.tracing.relus import feature_maps_of
from cnnjax.tracing.sights import Sights

Kind = Literal["conv", "pool", "norm", "dense", "sum", "product", "concatenation", "other"]


class Layer(NamedTuple):
    """One row of the table; sizes in pixels, work for one image. Tuples have one entry a dimension of the window."""

    name: str  # as in feature_maps
    kind: Kind  # what makes it, where ReLUs, biases and scales are left aside
    parameters: tuple[str, ...]  # paths of those between this row and the rows before, "conv1/kernel"
    relu: int | None  # which ReLU's output it is, in the order of `feature_maps_of`; None: of none
    kernel: str | None  # path of the own kernel of the convolution or product, or of the convolution that is pooled
    kernel_axes: tuple[int, ...]  # of that kernel: those of the window, of the in channels and of the out channels
    input_shape: tuple[int, ...]  # height, width, channels, or units alone
    output_shape: tuple[int, ...]
    window: tuple[int, ...]  # of the filter or of the pooling window; () where there is none
    strides: tuple[int, ...]
    padding: tuple[Pair, ...]  # zeros at the low and at the high end
    dilation: tuple[int, ...]
    groups: int  # of channels
    fields: tuple[ReceptiveField, ...] | None  # of height and width; None where a unit sees the whole image
    weights: int
    biases: int
    multiply_adds: int


@dataclasses.dataclass(eq=False)
class _Node:
    """A value of the trace."""

    shape: tuple[int, ...]
    equation: Any = None
    inputs: tuple["_Node", ...] = ()
    sees: Sights | None = None  # None: no data
    parameters: frozenset[str] = frozenset()  # of which it is made, where it is no data

    @property
    def made_by(self) -> str:
        return self.equation.primitive.name if self.equation is not None else ""

    @property
    def data(self) -> list["_Node"]:
        return [node for node in self.inputs if node.sees is not None]


def table(
    apply: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]], variables: Any, images: jax.ShapeDtypeStruct
) -> list[Layer]:
    """The layers in network order, the logits last.

    Args:
        apply: (variables, images) -> (logits, feature maps by name), all with the batch first and channels last.
        variables: shapes are enough. What stands under "params", or all where nothing does, counts as parameters.
        images: one image, [1, height, width, channels].
    """
    names: list[str] = []
    relus: list[int] = []

    def ordered(variables, images):
        logits, maps = apply(variables, images)
        names[:] = maps
        return [*maps.values(), logits]

    def with_relus(variables, images):
        found, of_relus = feature_maps_of(lambda images: ordered(variables, images))(images)
        relus[:] = range(len(found), len(found) + len(of_relus))
        return [*found, *of_relus]

    try:
        closed = jax.make_jaxpr(with_relus)(variables, images)
    except InputError:  # a ReLU in a loop has no one map
        relus.clear()
        closed = jax.make_jaxpr(ordered)(variables, images)
    sizes = {path: math.prod(leaf.shape) for path, leaf in parameters_of(variables).items()}
    image = _images(images)
    nodes = _walk(closed.jaxpr, [*_constants(closed.consts), *_leaves(variables), image])
    numbers = {nodes[place]: number for number, place in enumerate(relus)}
    nodes = nodes[: len(names) + 1]
    rows, seen_before, claimed = [], {image}, set()
    for name, node in zip([*names, "logits"], nodes, strict=True):
        own = _unmoved(node)
        row = _row(name, node, seen_before - {node, own}, claimed, sizes)
        rows.append(row._replace(relu=numbers.get(own)))
        seen_before |= {node, own}
    return [*rows[:-1], _named(rows[-1], names)]


def layout_of(
    apply: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]], variables: Any, images: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...] | None]:
    """Which axes of each feature map are the image's height and width; None where it cannot be told.

    Args:
        apply: as `table` takes it, but for the order of its maps' axes.
    """
    names: list[str] = []

    def maps_of(variables, images):
        _, maps = apply(variables, images)
        names[:] = maps
        return list(maps.values())

    closed = jax.make_jaxpr(maps_of)(variables, images)
    nodes = _walk(closed.jaxpr, [*_constants(closed.consts), *_leaves(variables), _images(images)])
    return {name: _places(node) for name, node in zip(names, nodes, strict=True)}


def _places(node: _Node) -> tuple[int, ...] | None:
    if node.sees is None or None in node.sees:
        return None
    axes = [[axis for axis, jump in enumerate(sight.jumps) if jump] for sight in node.sees if sight is not None]
    return tuple(of[0] for of in axes) if all(len(of) == 1 for of in axes) else None


def _images(images: jax.ShapeDtypeStruct) -> _Node:
    return _Node(images.shape, sees=sights.of_images((1, 2), 4))


def _unmoved(node: _Node) -> _Node:
    """What a transposed map is made of: the same map."""
    while node.made_by == "transpose":
        node = node.data[0]
    return node


def _named(logits: Layer, names: Sequence[str]) -> Layer:
    """The logits' row is called as the layer that its kernel is of."""
    layer = logits.kernel.rpartition("/")[0] if logits.kernel else ""
    return logits._replace(name=layer if layer and layer not in names else "logits")


# --- the trace as a graph -------------------------------------------------------------------------------------------


def _walk(jaxpr: core.Jaxpr, inputs: Sequence[_Node]) -> list[_Node]:
    known: dict[Any, _Node] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

    def read(variable) -> _Node:
        return _Node(jnp.shape(variable.val)) if isinstance(variable, core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        held = tuple(read(variable) for variable in equation.invars)
        inner = _called(equation)
        if inner is not None:
            found = _walk(inner.jaxpr, [*_constants(inner.consts), *held])
        else:
            found = _outputs(equation, held)
        known.update(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _called(equation) -> core.ClosedJaxpr | None:
    """The function that an equation calls as it stands."""
    if equation.primitive.name not in ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
                                       "remat2", "checkpoint"):  # fmt: skip
        return None
    inner: Any = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def _outputs(equation, inputs: tuple[_Node, ...]) -> list[_Node]:
    shapes = [variable.aval.shape for variable in equation.outvars]
    if all(node.sees is None for node in inputs):
        parameters = frozenset().union(*(node.parameters for node in inputs))
        return [_Node(shape, equation, inputs, parameters=parameters) for shape in shapes]
    seen = sights.through(equation, [(node.sees, node.shape) for node in inputs])
    return [_Node(shape, equation, inputs, sees) for shape, sees in zip(shapes, seen, strict=True)]


def _constants(values: Iterable[Any]) -> list[_Node]:
    return [_Node(jnp.shape(value)) for value in values]


def _leaves(variables: Any) -> list[_Node]:
    only = isinstance(variables, Mapping) and "params" in variables
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        is_parameter = not only or jax.tree_util.keystr(path[:1], simple=True) == "params"
        named = _path(path[1:] if only else path)
        found.append(_Node(leaf.shape, parameters=frozenset((named,)) if is_parameter else frozenset()))
    return found


def parameters_of(variables: Any) -> dict[str, Any]:
    """Path -> parameter, as the rows name them."""
    own = variables["params"] if isinstance(variables, Mapping) and "params" in variables else variables
    return {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(own)[0]}


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# --- rows -----------------------------------------------------------------------------------------------------------


def _row(name: str, node: _Node, before: set[_Node], claimed: set[_Node], sizes: dict[str, int]) -> Layer:
    """The row of a feature map; what it is made of is claimed, so that no other row counts it again."""
    made_of = [other for other in _between(node, before) if other not in claimed]
    claimed.update(made_of)
    weights, biases, work = set(), set(), 0
    for other in made_of:
        constants = frozenset().union(*(held.parameters for held in other.inputs if held.sees is None))
        (biases if other.made_by in ("add", "sub", "add_any") else weights).update(constants)
        work += _multiply_adds(other)
    main, kind = _main(node, before)
    window, strides, padding, dilation, groups = _window(main, kind)
    source = main.data[0] if kind in ("conv", "dense", "pool") and main.data else None
    return Layer(
        name,
        kind,
        tuple(sorted(weights | biases)),
        None,
        *_kernel(*_pooled(main, kind, before)),
        (source or _first_before(node, before)).shape[1:],
        node.shape[1:],
        window,
        strides,
        padding,
        dilation,
        groups,
        _fields(node),
        sum(sizes[path] for path in weights),
        sum(sizes[path] for path in biases - weights),
        work,
    )


def _pooled(main: _Node, kind: Kind, before: set[_Node]) -> tuple[_Node, Kind]:
    """What a pool takes, where that has no row of its own, as in convolution, pool, ReLU; else this itself."""
    while kind == "pool" and main.data:
        main, kind = _main(main.data[0], before)
    return main, kind


def _kernel(main: _Node, kind: Kind) -> tuple[str | None, tuple[int, ...]]:
    """Its path and its axes; where a parameter is moved or changed before it is used, none."""
    own = [place for place, node in enumerate(main.inputs) if node.parameters and node.equation is None]
    if kind not in ("conv", "dense") or len(own) != 1:
        return None, ()
    node = main.inputs[own[0]]
    if main.made_by == "windowed_product":
        axes = tuple(range(len(node.shape)))
    elif main.made_by == "conv_general_dilated":
        out, depth, *window = main.equation.params["dimension_numbers"].rhs_spec
        axes = (*window, depth, out)
    else:
        contracted = main.equation.params["dimension_numbers"][0][own[0]]
        axes = (*contracted, *(axis for axis in range(len(node.shape)) if axis not in contracted))
    return next(iter(node.parameters)), axes


def _between(node: _Node, before: set[_Node]) -> Iterator[_Node]:
    """The values made of data from those `before`, which are left out, up to this one."""
    waiting, done = [node], set()
    while waiting:
        other = waiting.pop()
        if other in done or other in before:
            continue
        done.add(other)
        yield other
        waiting += other.data


def _multiply_adds(node: _Node) -> int:
    """Of one equation for one image."""
    operands = [held.shape for held in node.inputs]
    if node.made_by == "windowed_product":
        return math.prod(node.shape[:-1]) * math.prod(operands[1])
    if node.made_by == "conv_general_dilated":
        numbers = node.equation.params["dimension_numbers"]
        out = node.shape[numbers.out_spec[1]]
        return math.prod(node.shape) // out * math.prod(operands[1])
    if node.made_by == "dot_general":
        (contracted, _), _ = node.equation.params["dimension_numbers"]
        return math.prod(node.shape) * math.prod(operands[0][axis] for axis in contracted)
    return 0


_KINDS: dict[str, Kind] = {
    "windowed_product": "conv",
    "conv_general_dilated": "conv",
    "max_with_choice": "pool",
    "reduce_window": "pool",
    "reduce_window_max": "pool",
    "reduce_window_min": "pool",
    "reduce_window_sum": "pool",
    "dot_general": "dense",
    "local_response_norm": "norm",
    "concatenate": "concatenation",
}
_MOVING = ("slice", "reshape", "squeeze", "pad", "transpose", "broadcast_in_dim", "add", "convert_element_type", "copy")


def _main(node: _Node, before: set[_Node]) -> tuple[_Node, Kind]:
    """What makes the map, and its kind: the last equation that is not a ReLU, a bias, a scale or a move."""
    scaled = False
    while node not in before and node.data:
        data = node.data
        kind = _KINDS.get(node.made_by)
        if kind == "concatenation" and len(data) == 1:
            kind = None
        if kind is not None:
            return node, kind
        if node.made_by.startswith("reduce_") and any(_spatial(data[0])):
            return node, "pool"
        if len(data) > 1:
            source = _windows_of(node, before)
            if source is not None:
                return dataclasses.replace(node, inputs=(source,)), "pool"
            full = [other for other in data if other.shape == node.shape and not _is_mask(other)]
            spread = len(full) < len([other for other in data if not _is_mask(other)])
            if len(full) > 1 and node.made_by in ("add", "add_any"):
                return node, "sum"
            if len(full) > 1 and node.made_by == "mul" and full[0] is not full[1]:
                return node, "product"
            scaled = scaled or spread
            node = (full or data)[0]
            continue
        scaled = scaled or any(other.parameters for other in node.inputs if other.sees is None)
        node = data[0]
    return node, "norm" if scaled else "other"


def _is_mask(node: _Node) -> bool:
    """A comparison, or what is spread from fewer numbers: a mean, a variance, a gate."""
    return node.made_by in ("gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not", "broadcast_in_dim")


def _windows_of(node: _Node, before: set[_Node]) -> _Node | None:
    """The one value of which shifted parts are added up: a mean pool written by hand. None where it is none."""
    sources, waiting, moved = set(), [node], False
    while waiting:
        other = waiting.pop()
        if other not in before and other.made_by in _MOVING and other.data:
            moved = moved or other.made_by in ("slice", "pad", "reshape")
            waiting += other.data
        else:
            sources.add(other)
    return sources.pop() if moved and len(sources) == 1 else None


def _window(main: _Node, kind: Kind) -> tuple[tuple, tuple, tuple, tuple, int]:
    """Window, strides, padding, dilation and groups of a convolution or a pool; empty for all else."""
    if kind not in ("conv", "pool"):
        return (), (), (), (), 1
    params = main.equation.params
    windows = params.get("windows")
    if main.made_by == "windowed_product":
        return windows.window, windows.strides, windows.padding, windows.dilation, windows.groups
    if main.made_by == "max_with_choice":
        ones = (1,) * len(windows.window)
        return windows.window, windows.strides, tuple(zip(windows.low, windows.high, strict=True)), ones, 1
    if main.made_by == "conv_general_dilated":
        numbers, kernel = params["dimension_numbers"], main.inputs[1].shape
        window = tuple(kernel[axis] for axis in numbers.rhs_spec[2:])
        strides, padding = tuple(params["window_strides"]), tuple(map(tuple, params["padding"]))
        return window, strides, padding, tuple(params["rhs_dilation"]), params["feature_group_count"]
    if main.made_by.startswith("reduce_window"):
        axes = [axis for axis, size in enumerate(params["window_dimensions"]) if size > 1]
        window, strides = (
            tuple(params[name][axis] for axis in axes) for name in ("window_dimensions", "window_strides")
        )
        return window, strides, tuple(tuple(params["padding"][axis]) for axis in axes), (1,) * len(axes), 1
    return _window_seen(main)


def _window_seen(main: _Node) -> tuple[tuple, tuple, tuple, tuple, int]:
    """Of a mean that is written by hand, from what is seen before and behind it."""
    old, new = (_spatial(other) for other in (main.data[0], main))
    window, strides, padding = [], [], []
    for before, behind in zip(old, new, strict=True):
        if before is None or behind is None:
            return (), (), (), (), 1
        (sight, jump, size), (seen, moved, _) = before, behind
        window.append((seen.size - sight.size) // jump + 1 if jump else size)
        strides.append(moved // jump if jump and moved else window[-1])
        low = round(((window[-1] - 1) / 2) - (seen.start - sight.start) / jump) if jump else 0
        padding.append((low, low))
    return tuple(window), tuple(strides), tuple(padding), (1,) * len(window), 1


def _spatial(node: _Node) -> list[tuple[Any, int, int] | None]:
    """(sight, jump, size along the axis) by dimension of the image; None where the whole is seen."""
    found = []
    for sight in node.sees or ():
        if sight is None:
            found.append(None)
            continue
        axis = next((axis for axis, jump in enumerate(sight.jumps) if jump), None)
        found.append((sight, 0, 1) if axis is None else (sight, abs(sight.jumps[axis]), node.shape[axis]))
    return found


def _first_before(node: _Node, before: set[_Node]) -> _Node:
    while node not in before and node.data:
        node = node.data[0]
    return node


def _fields(node: _Node) -> tuple[ReceptiveField, ...] | None:
    if len(node.shape) < 4 or node.sees is None or None in node.sees:
        return None
    fields = []
    for axis, sight in enumerate(node.sees, 1):
        assert sight is not None
        if any(jump for other, jump in enumerate(sight.jumps) if other != axis):
            return None
        fields.append(ReceptiveField(sight.size, sight.jumps[axis], sight.start))
    return tuple(fields)
