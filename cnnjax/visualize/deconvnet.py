"""The deconvnet (Zeiler & Fergus 2014, section 2.1), as a transformation of functions.

A deconvnet is the backward pass with another rule at each ReLU: convolution, switches and unpooling are then the
ordinary transposes. So `with_relu_rule` evaluates a function's jaxpr with every ReLU replaced by one whose backward
rule is the wanted one, and `project` takes the vector-Jacobian product with one activation as cotangent. Biases drop
out, because they are added; there is no ReLU behind the last transposed convolution, so the pixels are signed. The
same walk hands out every ReLU's output (`feature_maps_of`) and adds to one of them (`with_offset`).
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, Int

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.models import ConvNet

Rule = Literal["gradient", "deconvnet", "guided"]

# How the signal from above passes a ReLU, from the forward input and that signal (paper; Springenberg et al. 2014).
BACKWARD: dict[str, Callable[[Array, Array], Array]] = {
    "deconvnet": lambda forward, signal: jnp.maximum(signal, 0),
    "guided": lambda forward, signal: jnp.where(forward > 0, jnp.maximum(signal, 0), 0),
}

# Functions through which the signal passes unchanged, by the name under which they are jitted. The ECCV edition of
# the paper leaves contrast normalization out of the reconstruction.
PASSED_UNCHANGED = ("local_response_norm",)


class _Kind(enum.IntEnum):
    """How a value depends on the function's arguments, the data. Of two values added, the higher kind holds."""

    CONSTANT = 0  # not at all (weights, running statistics), or by a choice alone (a pool's switches)
    STATISTIC = 1  # a nonlinear function of sums over the data, as the standard deviation in a normalization
    SUM = 2  # a sum or mean over the data
    SIGNAL = 3  # linearly, for fixed ReLUs, choices and statistics
    NONLINEAR = 4  # any other way; a sum makes it a statistic, and anything else must not follow


# Primitives by what they are in the data.
_COMPARING = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
_SELECTING = frozenset(
    """argmax argmin cummax cummin max_with_choice reduce_and reduce_max reduce_min reduce_or reduce_window_max
    reduce_window_min select_and_gather_add sort top_k""".split()  # noqa: SIM905
)
_LINEAR = frozenset(
    """add add_any broadcast_in_dim concatenate convert_element_type copy cumsum device_put dynamic_slice
    dynamic_update_slice expand_dims gather neg optimization_barrier pad place_in_windows reduce_precision reduce_sum
    reduce_window_sum reshape rev scatter scatter-add select_and_scatter_add select_in_windows sharding_constraint
    slice split spread_channels squeeze stack stop_gradient sub sum_channels tile transpose unstack""".split()  # noqa: SIM905
)
_BILINEAR = frozenset(("dot_general", "conv_general_dilated", "windowed_product"))  # linear, if one side is weights
_SUMMING = frozenset(("reduce_sum", "reduce_window_sum", "sum_channels"))
_NORMALIZING = frozenset(
    "abs and exp exp2 integer_pow log max min not or pow rsqrt sign sqrt square".split()  # noqa: SIM905
)
_KEEPING_A_NUMBER = frozenset(("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"))


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """A value of the walk, with what is known of it."""

    array: Any
    kind: _Kind = _Kind.CONSTANT
    name: str = ""  # of the function that made it nonlinear
    number: float | None = None  # which the array holds everywhere
    side: "tuple[_Value, bool] | None" = None  # (x, True) for x > 0, (x, False) for x < 0; equality does not matter


@dataclasses.dataclass(frozen=True)
class _Walk:
    """What happens on the way through a jaxpr."""

    relu: Callable[[Array], Array]  # in the place of every ReLU
    strict: bool = True  # other nonlinearities are refused
    loops: bool = True  # ReLUs may stand in the body of a loop or the branch of a choice


def with_relu_rule(function: Callable[..., Any], rule: Rule = "deconvnet") -> Callable[..., Any]:
    """The same function of arrays, whose reverse derivative uses `rule` at every ReLU; the function for "gradient".

    A ReLU is `jax.nn.relu`, `jnp.maximum(x, 0)`, `jnp.clip(x, 0)` or `jnp.where(x > 0, x, 0)`, however the zero is
    made, wherever it stands in `function`: jitted parts, checkpoints, the bodies of `lax.scan` and the branches of
    `lax.cond` included, `while` and functions with a `custom_vjp` of their own excluded.

    For "deconvnet" and "guided" all else must be linear in the arguments, for fixed ReLUs and choices, because there
    is no rule for other nonlinearities. Allowed are therefore: sums, products with weights, moving and padding;
    choices of one value among others (max pooling, sort, top_k, maximum of two computed values, and `where` by such a
    comparison); a normalization, that is, adding or multiplying by a nonlinear function of *sums* over the data (batch,
    layer, group, RMS norm; differentiated as it is), with `ops.local_response_norm` passed unchanged; anything that
    is computed from weights alone, as running statistics; and a softmax at the end. All else (tanh, sigmoid, gelu,
    leaky_relu, relu6, attention, x², ...) is refused, at the end of the function too. Weights must be closed over and
    not be arguments.

    Raises:
        InputError: for a rule that does not exist; when called, for a nonlinearity without a rule, by its name.
    """
    if rule not in get_args(Rule):
        raise InputError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if rule == "gradient":
        return function

    @jax.custom_vjp
    def relu(x):
        return jax.nn.relu(x)

    relu.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, signal: (BACKWARD[rule](x, signal),))
    return lambda *args: _transformed(function, args, _Walk(relu))


def feature_maps_of(function: Callable[..., Any], *, before: bool = False) -> Callable[..., tuple[Any, list[Array]]]:
    """The function of the same arguments that returns (output, [the output of every ReLU, in order]).

    So the layers of any network, in one call; other nonlinearities may stand between them.

    Args:
        before: the input of every ReLU instead.

    Raises:
        InputError: when called, for a ReLU in a loop, a choice or a function with a `custom_vjp`, which has no one map.
    """

    def kept(*args):
        maps: list[Array] = []

        def relu(x):
            maps.append(x if before else jax.nn.relu(x))
            return jax.nn.relu(x)

        output = _transformed(function, args, _Walk(relu, strict=False, loops=False))
        return output, maps

    return kept


def with_offset(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function of (offset, *arguments) that adds `offset` to the output of ReLU `number`, counted from 0.

    Its derivative by the offset, at zero, is that by this feature map.

    Raises:
        InputError: as `feature_maps_of`; when called, for a number that no ReLU has.
    """

    def moved(offset, *args):
        seen = 0

        def relu(x):
            nonlocal seen
            seen += 1
            return jax.nn.relu(x) + offset if seen == number + 1 else jax.nn.relu(x)

        output = _transformed(function, args, _Walk(relu, strict=False, loops=False))
        if not 0 <= number < seen:
            raise InputError(f"number must be that of a ReLU, 0 to {seen - 1}, got {number}")
        return output

    return moved


def _transformed(function: Callable[..., Any], args: tuple, walk: _Walk) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    data = [_Value(leaf, _Kind.SIGNAL) for leaf in jax.tree.leaves(args)]
    outputs = _evaluate(closed.jaxpr, closed.consts, data, walk)
    for output in outputs:
        if output.kind == _Kind.NONLINEAR and output.name != "softmax" and walk.strict:
            _refuse(output.name)
    return jax.tree.unflatten(jax.tree.structure(shape), [output.array for output in outputs])


def _refuse(name: str) -> NoReturn:
    raise InputError(f"function must have ReLUs only as its nonlinearities, got {name}")


def _evaluate(jaxpr: core.Jaxpr, consts, inputs: Sequence[_Value], walk: _Walk, within: str = "") -> list[_Value]:
    """The values of the jaxpr's outputs, equation by equation; `within` is the function of `jax.nn` that it is of."""
    values: dict[Any, _Value] = dict(zip(jaxpr.constvars, map(_Value, consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable) -> _Value:
        return _Value(variable.val) if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        outputs = _evaluate_equation(equation, [read(variable) for variable in equation.invars], walk, within)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _evaluate_equation(equation, inputs: list[_Value], walk: _Walk, within: str) -> list[_Value]:
    primitive, params = equation.primitive.name, equation.params
    inner: Any = params.get("jaxpr") or params.get("call_jaxpr")
    arrays = [value.array for value in inputs]
    if primitive == "jit":
        if params["name"] in PASSED_UNCHANGED and walk.strict:
            return [_Value(_straight_through(core.jaxpr_as_fun(inner), arrays), _Kind.SIGNAL)]
        name = params["name"] if hasattr(jax.nn, params["name"]) else within
        return _evaluate(inner.jaxpr, inner.consts, inputs, walk, name)
    if primitive in ("checkpoint", "remat2"):
        return _evaluate(inner, (), inputs, walk, within)  # what is stored and what is computed again changes no value
    if not any(value.kind for value in inputs):
        number = _number(inputs[0]) if primitive in _KEEPING_A_NUMBER else None
        return [_Value(array, number=number) for array in _bind(equation, arrays)]
    if primitive == "scan":
        return _evaluate_scan(equation, inputs, walk, within)
    if primitive == "cond":
        return _evaluate_cond(equation, inputs, walk, within)
    if primitive in ("custom_jvp_call", "custom_vjp_call"):
        relus, looked = _look(inner, inputs, walk, within)
        if relus and primitive == "custom_jvp_call":
            return _evaluate(inner.jaxpr, inner.consts, inputs, walk, within)
        if relus:
            _refuse_inside(primitive)
        return [dataclasses.replace(v, array=a) for v, a in zip(looked, _bind(equation, arrays), strict=True)]
    if any(_contains_relu(jaxpr) for jaxpr in _inner_jaxprs(equation)):
        _refuse_inside(primitive)
    rectified = _rectified(primitive, inputs)
    if rectified is not None:
        return [_Value(walk.relu(rectified.array), _Kind.SIGNAL)]
    kind, name = _kind(primitive, inputs, walk, within)
    side = _side(primitive, inputs)
    outputs = [_Value(array, kind, name, side=side) for array in _bind(equation, arrays)]
    if primitive not in _SELECTING:
        return outputs
    return [v if jnp.issubdtype(v.array.dtype, jnp.inexact) else _Value(v.array) for v in outputs]  # switches


def _bind(equation, arrays: list) -> list[Array]:
    outputs = equation.primitive.bind(*arrays, **equation.primitive.get_bind_params(equation.params))
    return outputs if equation.primitive.multiple_results else [outputs]


def _kind(primitive: str, inputs: list[_Value], walk: _Walk, within: str) -> tuple[_Kind, str]:
    """The kind of the primitive's outputs, and the name of what made them nonlinear.

    Raises:
        InputError: for a nonlinearity without a rule, if the walk is strict.
    """
    data = [value for value in inputs if value.kind]
    strongest = max(data, key=lambda value: value.kind)
    kind, here = strongest.kind, within or primitive
    elementwise = primitive in _NORMALIZING or primitive in _COMPARING
    if primitive == "is_finite" or (primitive in _COMPARING and len(data) == 2 and kind != _Kind.NONLINEAR):
        return _Kind.CONSTANT, ""
    if primitive == "select_n":
        if inputs[0].kind != _Kind.NONLINEAR:
            return kind, strongest.name
        elementwise = not any(value.kind in (_Kind.SUM, _Kind.SIGNAL) for value in inputs[1:])
    if primitive == "div":
        if inputs[0].name == "exp" and inputs[1].kind == _Kind.STATISTIC:
            return _Kind.NONLINEAR, "softmax"
        return _kind_of_product(inputs[0], _nonlinear(inputs[1], here), here)
    if primitive == "mul":
        return _kind_of_product(inputs[0], inputs[1], here)
    if primitive in _SUMMING:
        return {_Kind.SIGNAL: _Kind.SUM, _Kind.NONLINEAR: _Kind.STATISTIC}.get(kind, kind), strongest.name
    if primitive in ("max", "min") and (len(data) == 2 or _is_bound(primitive, inputs)):
        return kind, strongest.name
    if primitive in _LINEAR or primitive in _SELECTING:
        return kind, strongest.name
    if primitive in _BILINEAR and len(data) == 1 and kind in (_Kind.SUM, _Kind.SIGNAL):
        return _Kind.SIGNAL, ""
    if elementwise:
        changed = _nonlinear(strongest, here)
        return changed.kind, changed.name
    if walk.strict:
        _refuse(strongest.name or here if primitive in _BILINEAR or primitive == "select_n" else here)
    return _Kind.SIGNAL, ""


def _nonlinear(value: _Value, name: str) -> _Value:
    """The kind of an elementwise nonlinear function of the value."""
    if value.kind in (_Kind.CONSTANT, _Kind.STATISTIC, _Kind.NONLINEAR):
        return value
    return _Value(value.array, _Kind.STATISTIC if value.kind == _Kind.SUM else _Kind.NONLINEAR, name)


def _kind_of_product(one: _Value, other: _Value, name: str) -> tuple[_Kind, str]:
    low, high = sorted((one, other), key=lambda value: value.kind)
    if low.kind in (_Kind.CONSTANT, _Kind.STATISTIC) or high.kind == _Kind.NONLINEAR:
        return high.kind, high.name
    return (_Kind.STATISTIC if high.kind == _Kind.SUM else _Kind.NONLINEAR), name


def _number(value: _Value) -> float | None:
    """The number that a constant holds everywhere, where that is known while tracing."""
    if value.kind or value.number is not None:
        return value.number
    if isinstance(value.array, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(value.array), jnp.number):  # pyright: ignore[reportAttributeAccessIssue]
        return None
    array = np.asarray(value.array)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None


def _is_bound(primitive: str, inputs: list[_Value]) -> bool:
    """Whether `max` or `min` has an infinite operand that bounds nothing, as in a softmax."""
    return any(_number(value) == {"max": -np.inf, "min": np.inf}[primitive] for value in inputs if not value.kind)


def _rectified(primitive: str, inputs: list[_Value]) -> _Value | None:
    """The x of max(x, 0) or where(x > 0, x, 0); None where the primitive is no ReLU of the signal."""
    if primitive == "max":
        x, zero = sorted(inputs, key=lambda value: value.kind, reverse=True)
    elif primitive == "select_n" and len(inputs) == 3 and inputs[0].side is not None:
        of, above = inputs[0].side
        x, zero = (inputs[2], inputs[1]) if above else (inputs[1], inputs[2])
        if x is not of:
            return None
    else:
        return None
    return x if x.kind in (_Kind.SUM, _Kind.SIGNAL) and not zero.kind and _number(zero) == 0 else None


def _side(primitive: str, inputs: list[_Value]) -> tuple[_Value, bool] | None:
    if primitive not in ("gt", "ge", "lt", "le"):
        return None
    above = primitive in ("gt", "ge")
    one, other = inputs
    if one.kind and not other.kind and _number(other) == 0:
        return one, above
    return (other, not above) if other.kind and not one.kind and _number(one) == 0 else None


def _look(closed: core.ClosedJaxpr, inputs: Sequence[_Value], walk: _Walk, within: str) -> tuple[int, list[_Value]]:
    """How many ReLUs a function holds, and what is known of its outputs, without computing them."""
    relus, outputs = 0, []

    def relu(x):
        nonlocal relus
        relus += 1
        return x

    def abstractly(arrays):
        values = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        results = _evaluate(closed.jaxpr, closed.consts, values, dataclasses.replace(walk, relu=relu), within)
        outputs.extend(_Value(None, value.kind, value.name) for value in results)
        return [value.array for value in results]

    jax.eval_shape(abstractly, [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals])
    return relus, outputs


def _walked(closed: core.ClosedJaxpr, inputs: Sequence[_Value], walk: _Walk, within: str) -> core.ClosedJaxpr:
    """The same function with the walk's ReLUs in it."""

    def body(*arrays):
        values = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        return [value.array for value in _evaluate(closed.jaxpr, closed.consts, values, walk, within)]

    return jax.make_jaxpr(body)(*(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals))


def _evaluate_scan(equation, inputs: list[_Value], walk: _Walk, within: str) -> list[_Value]:
    params, body = equation.params, equation.params["jaxpr"]
    if "num_consts" in params:
        first, carries = params["num_consts"], params["num_carry"]
    else:  # JAX 0.12
        first, carries = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    inputs = [dataclasses.replace(value, number=None, side=None) for value in inputs]
    relus, outputs = _look(body, inputs, walk, within)
    while any(out.kind > into.kind for out, into in zip(outputs[:carries], inputs[first:], strict=False)):
        for place, out in enumerate(outputs[:carries], first):
            kind = max(out.kind, inputs[place].kind)
            inputs[place] = dataclasses.replace(inputs[place], kind=kind, name=out.name or inputs[place].name)
        relus, outputs = _look(body, inputs, walk, within)
    if relus and not walk.loops:
        _refuse_inside("scan")
    changed = {"jaxpr": _walked(body, inputs, walk, within)} if relus else {}
    return _bound_again(equation, inputs, changed, outputs)


def _evaluate_cond(equation, inputs: list[_Value], walk: _Walk, within: str) -> list[_Value]:
    branches = equation.params["branches"]
    looked = [_look(branch, inputs[1:], walk, within) for branch in branches]
    if any(relus for relus, _ in looked) and not walk.loops:
        _refuse_inside("cond")
    outputs = [max(of_output, key=lambda value: value.kind) for of_output in zip(*(o for _, o in looked), strict=True)]
    changed = {"branches": tuple(_walked(branch, inputs[1:], walk, within) for branch in branches)}
    return _bound_again(equation, inputs, changed, outputs)


def _bound_again(equation, inputs: list[_Value], changed: dict, known: list[_Value]) -> list[_Value]:
    """The equation's values with other inner functions, and with what is known of them."""
    arrays = equation.primitive.bind(
        *(value.array for value in inputs), **equation.primitive.get_bind_params(equation.params | changed)
    )
    return [dataclasses.replace(value, array=array) for value, array in zip(known, arrays, strict=True)]


def _refuse_inside(primitive: str) -> NoReturn:
    raise InputError(f"function must have its ReLUs outside {primitive}, where no rule reaches them")


def _straight_through(function: Callable[..., Any], inputs: list[Array]) -> Array:
    """`function(x)` forward, and the signal passed to `x` as it is."""

    @jax.custom_vjp
    def passed(x):
        return function(x)[0]

    passed.defvjp(lambda x: (function(x)[0], None), lambda _, signal: (signal,))
    (x,) = inputs
    return passed(x)


def _contains_relu(jaxpr: core.Jaxpr) -> bool:
    """Whether a maximum of something and zero stands in it, which may be a ReLU."""
    return any(
        (
            equation.primitive.name == "max"
            and any(isinstance(v, core.Literal) and np.all(np.asarray(v.val) == 0) for v in equation.invars)
        )
        or any(_contains_relu(inner) for inner in _inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def _inner_jaxprs(equation) -> list[core.Jaxpr]:
    """The jaxprs that an equation holds: the body of a loop, the branches of a choice, the function of a call."""
    held = [entry for value in equation.params.values() for entry in (value if isinstance(value, tuple) else (value,))]
    opened = [entry.jaxpr if isinstance(entry, core.ClosedJaxpr) else entry for entry in held]
    return [entry for entry in opened if isinstance(entry, core.Jaxpr)]


def project(
    feature_map: Callable[[Float[Array, "batch height width channels"]], Float[Array, "batch *space maps"]],
    images: Float[Array, "batch height width channels"],
    units: Int[Array | np.ndarray, "batch axes"],
    *,
    rule: Rule = "deconvnet",
) -> Float[Array, "batch height width channels"]:
    """One activation of each image, projected to pixels; signed, in units of the network's input.

    Args:
        feature_map: from images to the activations of one layer.
        images: one image an activation; its own pooling switches are used.
        units: where each activation stands in its image's part of the layer, (row, column, map) or (unit,).
        rule: what happens at a ReLU on the way down.
    """
    units = _checked_units(units, jax.eval_shape(feature_map, images).shape)
    activations, backward = jax.vjp(with_relu_rule(feature_map, rule), images)
    index = (jnp.arange(images.shape[0]), *jnp.moveaxis(units, 1, 0))
    # All other units of the layer are set to zero, the other maps included.
    return backward(jnp.zeros_like(activations).at[index].set(activations[index]))[0]


def _checked_units(units: Any, shape: tuple[int, ...]) -> Array | np.ndarray:
    """`units` as integers, one row an image; values are checked where they are known, that is, not under `jit`."""
    units = units if isinstance(units, jax.Array) else np.asarray(units)
    wanted = (shape[0], len(shape) - 1)
    if units.shape != wanted or not jnp.issubdtype(units.dtype, jnp.integer):
        raise InputError(
            f"units must be integers of shape {wanted} for activations {shape}, got {units.dtype}{units.shape}"
        )
    if not isinstance(units, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        bad = np.argwhere((np.asarray(units) < 0) | (np.asarray(units) >= np.array(shape[1:])))
        if len(bad):
            raise InputError(f"units must lie within {shape[1:]}, got {np.asarray(units)[bad[0, 0]].tolist()}")
    return units


def project_by_switches(
    network: ConvNet,
    variables: Any,
    images: Float[Array, "batch height width channels"],
    layer: str,
    units: Int[Array | np.ndarray, "batch axes"],
) -> Float[Array, "batch height width channels"]:
    """The deconvnet as the paper draws it (figure 1): unpool by switches, rectify, filter transposed, layer by layer.

    The same as `project`, for this project's plain networks; kept to be read, and to check the other by.

    Raises:
        InputError: for a layer that is no convolution or pool of the network.
    """
    steps: list[tuple[str, Callable[[Array], Array]]] = []  # from the image upwards: how to come down through a step
    x = images
    for number, spec in enumerate(network.convolutions, 1):
        params = variables["params"][f"conv{number}"]
        window = {"strides": spec.stride, "padding": spec.padding, "rounding": network.rounding}

        def filter_transposed(signal, kernel=params["kernel"], size=x.shape[1:3], window=window):
            return ops.conv_transpose(jnp.maximum(signal, 0), kernel, size, **window)

        steps.append((f"conv{number}", filter_transposed))
        x = jax.nn.relu(ops.conv(x, params["kernel"], **window) + params["bias"])
        if layer == f"conv{number}":
            break
        if spec.pool is not None:
            pool = {"strides": spec.pool.stride, "padding": spec.pool.padding, "rounding": network.rounding}
            pooled, switches = ops.max_pool_with_switches(x, spec.pool.window, **pool)
            steps.append((f"pool{number}", lambda signal, s=switches, size=x.shape[1:3]: ops.unpool(signal, s, size)))
            x = pooled
            if layer == f"pool{number}":
                break
        if spec.norm == "batch":
            raise InputError(f"layer must be below norm{number}: batch normalization has no switches, got {layer!r}")
        if spec.norm == "lrn":
            x = ops.local_response_norm(x)
    else:
        raise InputError(f"layer must be one of {', '.join(name for name, _ in steps)}, got {layer!r}")
    units = _checked_units(units, x.shape)
    index = (jnp.arange(images.shape[0]), *jnp.moveaxis(units, 1, 0))
    signal = jnp.zeros_like(x).at[index].set(x[index])
    for _, down in reversed(steps):
        signal = down(signal)
    return signal
