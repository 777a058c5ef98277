"""The deconvnet (Zeiler & Fergus 2014, section 2.1), as a transformation of functions.

A deconvnet is the backward pass with another rule at each ReLU: convolution, switches and unpooling are then the
ordinary transposes. So `with_relu_rule` evaluates a function's jaxpr with every ReLU replaced by one whose backward
rule is the wanted one, and `project` takes the vector-Jacobian product with one activation as cotangent. Biases drop
out, because they are added; there is no ReLU behind the last transposed convolution, so the pixels are signed. The
same walk hands out every ReLU's output (`feature_maps_of`) and adds to one of them (`with_offset`).
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array, Float, Int

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.models import ConvNet
from cnnjax.ops.normalization import local_response_norm_p
from cnnjax.tracing import values
from cnnjax.tracing.values import Kind, Value

Rule = Literal["gradient", "deconvnet", "guided"]

# How the signal from above passes a ReLU, from the forward input and that signal (paper; Springenberg et al. 2014).
BACKWARD: dict[str, Callable[[Array, Array], Array]] = {
    "deconvnet": lambda forward, signal: jnp.maximum(signal, 0),
    "guided": lambda forward, signal: jnp.where(forward > 0, jnp.maximum(signal, 0), 0),
}

# Primitives through which the signal passes unchanged. The ECCV edition of the paper leaves contrast normalization out
# of the reconstruction.
PASSED_UNCHANGED = (local_response_norm_p,)

_KEEPING_A_NUMBER = frozenset(("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"))
# Functions of JAX that are no more than the primitives in them. Any other, jitted under its own name (gelu, softplus),
# is one nonlinearity, whatever it is made of.
MADE_OF_PRIMITIVES = ("clip", "maximum", "minimum", "_where", "where", "select", "_piecewise")


@dataclasses.dataclass(frozen=True)
class _Walk:
    """What happens on the way through a jaxpr."""

    # In the place of every ReLU: (input, the bound above or None, which) -> output. A ReLU that turns out to be bounded
    # comes a second time as the same one, with its bound, in the place of the first.
    relu: Callable[[Array, float | None, object], Array]
    strict: bool = True  # other nonlinearities are refused
    loops: bool = True  # ReLUs may stand in the body of a loop or the branch of a choice
    relus: dict[Value, tuple[Value, object]] = dataclasses.field(default_factory=dict)  # output -> input, which

    def settled(self, value: Value) -> Value:
        """A nonlinear function, where that is allowed, is data again. Variances are kept, to tell them from ReLUs."""
        if self.strict or value.kind <= Kind.SPREAD:
            return value
        return dataclasses.replace(values.data(value.array), side=value.side)


def with_relu_rule(function: Callable[..., Any], rule: Rule = "deconvnet") -> Callable[..., Any]:
    """The same function of arrays, whose reverse derivative uses `rule` at every ReLU; the function for "gradient".

    A ReLU is `jax.nn.relu`, `jnp.maximum(x, 0)`, `jnp.clip(x, 0)`, `jnp.where(x > 0, x, 0)`, `x * (x > 0)` or
    `-jnp.minimum(-x, 0)`, however the zero is made (`0 * x` as well), wherever it stands in `function`: jitted parts,
    checkpoints, the bodies of `lax.scan` and the branches of `lax.cond` included, `while` and functions with a
    `custom_vjp` of their own excluded.

    A ReLU with a bound, `jax.nn.relu6`, `jnp.minimum(relu(x), 6)`, `jnp.clip(x, 0, 6)` or another positive number, is a
    ReLU that passes no signal where the bound holds: of the paper's deconvnet the ReLU on the way back belongs to the
    ReLU, and a clip, as the switches of a pool do, passes a signal only to what made its output. So "deconvnet" passes
    max(signal, 0) where x < 6, "guided" where 0 < x < 6.

    For "deconvnet" and "guided" all else must be linear in the arguments, for fixed ReLUs and choices, because there
    is no rule for other nonlinearities (`cnnjax.tracing.values` proves it). Allowed are therefore

    - sums, products with weights, moving and padding;
    - choices among independent values, that is elements of one map at different places: max pooling, sort, top_k,
      maxout among the outputs of one product, if no two are multiples of each other, and `where` by such a comparison;
      or of a branch, by the comparison of a *sum* of the data;
    - a normalization: dividing by a root or power of a *sum* of squares or absolute values (batch, layer, group, RMS
      norm; differentiated as it is), with `ops.local_response_norm` passed unchanged;
    - anything that is computed from weights alone, as running statistics;
    - a softmax, its logarithm or a logsumexp at the end.

    All else is refused, behind a sum or at the end of the function too: tanh, sigmoid, gelu, attention, x², gates, a
    choice among x and a function of the same x (leaky ReLU, |x|, two products with weights) or a constant, medians and
    quantiles (take the middle of `jnp.sort`), and rarer spellings of a ReLU (`jnp.select`, `jnp.piecewise`, the largest
    of a stack with zeros, a bound before the ReLU). Weights must be closed over and not be arguments.

    Raises:
        InputError: for a rule that does not exist; when called, for a nonlinearity without a rule, by its name.
    """
    if rule not in get_args(Rule):
        raise InputError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if rule == "gradient":
        return function

    def relu(x, most, _):
        @jax.custom_vjp
        def by_rule(x):
            return _rectify(x, most)

        def backward(x, signal):
            passed = BACKWARD[rule](x, signal)
            return (passed if most is None else jnp.where(x >= most, 0, passed),)

        by_rule.defvjp(lambda x: (_rectify(x, most), x), backward)
        return by_rule(x)

    return lambda *args: _transformed(function, args, _Walk(relu))


def feature_maps_of(function: Callable[..., Any], *, before: bool = False) -> Callable[..., tuple[Any, list[Array]]]:
    """The function of the same arguments that returns (output, [the output of every ReLU, in order]).

    So the layers of any network, in one call; other nonlinearities may stand around them. A ReLU is known by its
    spelling, as in `with_relu_rule`, whatever it is applied to. The maximum of a value and zero is none
    where it is part of another function of JAX (gelu, softplus, hard_swish), and where the value is a sum of squares,
    less that of the mean or not: normalizations guard a variance so. A `jax.nn.relu` always is one. Of a ReLU with a
    bound (relu6, `jnp.clip(x, 0, 255)`) the map is what the bound leaves.

    Args:
        before: the input of every ReLU instead.

    Raises:
        InputError: when called, for a ReLU in a loop, a choice or a function with a `custom_vjp`, which has no one map.
    """

    def kept(*args):
        maps: dict[object, Array] = {}

        def relu(x, most, which):
            rectified = _rectify(x, most)
            maps[which] = x if before else rectified
            return rectified

        output = _transformed(function, args, _Walk(relu, strict=False, loops=False))
        return output, list(maps.values())

    return kept


def with_offset(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function of (offset, *arguments) that adds `offset` to the output of ReLU `number`, counted from 0.

    Its derivative by the offset, at zero, is that by this feature map.

    Raises:
        InputError: as `feature_maps_of`; when called, for a number that no ReLU has.
    """

    def moved(offset, *args):
        numbers: dict[object, int] = {}

        def relu(x, most, which):
            rectified = _rectify(x, most)
            return rectified + offset if numbers.setdefault(which, len(numbers)) == number else rectified

        output = _transformed(function, args, _Walk(relu, strict=False, loops=False))
        if not 0 <= number < len(numbers):
            raise InputError(f"number must be that of a ReLU, 0 to {len(numbers) - 1}, got {number}")
        return output

    return moved


def _rectify(x: Array, most: float | None) -> Array:
    """The derivative is 0 at the bound too, as `jax.nn.relu6`'s is."""
    return jax.nn.relu(x) if most is None else jnp.where(x >= most, jnp.asarray(most, x.dtype), jax.nn.relu(x))


def _transformed(function: Callable[..., Any], args: tuple, walk: _Walk) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    outputs = _evaluate(closed.jaxpr, closed.consts, [values.data(leaf) for leaf in jax.tree.leaves(args)], walk)
    for output in outputs:
        if walk.strict and output.kind > Kind.LINEAR and output.kind not in values.AT_THE_END:
            raise InputError(f"function must have ReLUs only as its nonlinearities, got {output.name}")
    return jax.tree.unflatten(jax.tree.structure(shape), [output.array for output in outputs])


def _evaluate(jaxpr: core.Jaxpr, consts, inputs: Sequence[Value], walk: _Walk, within: str = "") -> list[Value]:
    """The values of the jaxpr's outputs, equation by equation; `within` is the function of JAX that it is of."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(Value, consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))
    uses: collections.Counter[Any] = collections.Counter(
        variable
        for variables in (*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars)
        for variable in variables
        if not isinstance(variable, core.Literal)
    )

    def read(variable) -> Value:
        return Value(variable.val) if isinstance(variable, core.Literal) else known[variable]

    done: dict[Any, list[Value]] = {}
    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        relu = _relu(equation, inputs, walk, within)
        if relu is not None:
            shared = any(uses[v] > 1 for v, x in zip(equation.invars, inputs, strict=True) if x in walk.relus)
            outputs = [_evaluate_relu(equation, relu, walk, shared)]
        elif _inner_jaxprs(equation) or equation.effects:
            outputs = _evaluate_equation(equation, inputs, walk, within)
        else:
            # What is written twice, as the f(x) in where(f(x) > 0, f(x), 0), is one value; but two ReLUs are two rules.
            operands = (str(v) if isinstance(v, core.Literal) else id(known[v]) for v in equation.invars)
            written = (equation.primitive, str(equation.params), *operands)
            if written not in done:
                done[written] = _evaluate_equation(equation, inputs, walk, within)
            outputs = done[written]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _evaluate_equation(equation, inputs: list[Value], walk: _Walk, within: str) -> list[Value]:
    primitive, params = values.known_name(equation.primitive), equation.params
    inner: Any = params.get("jaxpr") or params.get("call_jaxpr")
    arrays = [value.array for value in inputs]
    if primitive == "jit":
        return _evaluate(inner.jaxpr, inner.consts, inputs, walk, _function_of_jax(inner.jaxpr, inputs, within))
    if primitive == "remat2":
        return _evaluate(inner, (), inputs, walk, within)  # what is stored and what is computed again changes no value
    if not any(value.kind for value in inputs):
        number = values.number_of(inputs[0]) if primitive in _KEEPING_A_NUMBER else None
        made = _made(equation, inputs)
        return [
            Value(array, number=number, made=functools.partial(_entry, made, place))
            for place, array in enumerate(_bind(equation, arrays))
        ]
    if primitive == "scan":
        return _evaluate_scan(equation, inputs, walk, within)
    if primitive == "cond":
        return _evaluate_cond(equation, inputs, walk, within)
    if primitive in ("custom_jvp_call", "custom_vjp_call"):
        within = _function_of_jax(inner.jaxpr, inputs, within)
        relus, looked = _look(inner, inputs, walk, within)
        if relus and primitive == "custom_jvp_call":
            return _evaluate(inner.jaxpr, inner.consts, inputs, walk, within)
        if relus:
            _refuse_inside(primitive)
        return [dataclasses.replace(v, array=a) for v, a in zip(looked, _bind(equation, arrays), strict=True)]
    if any(_contains_relu(jaxpr) for jaxpr in _inner_jaxprs(equation)):
        _refuse_inside(primitive)
    known = values.outputs_of(equation, inputs, within or equation.primitive.name)
    evaluate = _straight_through if walk.strict and equation.primitive in PASSED_UNCHANGED else _bind
    arrays = evaluate(equation, arrays)
    return [walk.settled(dataclasses.replace(v, array=a)) for v, a in zip(known, arrays, strict=True)]


def _bind(equation, arrays: list) -> list[Array]:
    outputs = equation.primitive.bind(*arrays, **equation.primitive.get_bind_params(equation.params))
    return outputs if equation.primitive.multiple_results else [outputs]


def _made(equation, inputs: Sequence[Value]) -> Callable[[], list[np.ndarray] | None]:
    """A function that computes the equation's constants while it is traced, and returns None where it cannot."""

    @functools.cache
    def made():
        arrays = [values.numbers_of(value) for value in inputs]
        if equation.effects or any(array is None for array in arrays):
            return None
        with jax.ensure_compile_time_eval():
            return [np.asarray(array) for array in _bind(equation, arrays)]

    return made


def _entry(made: Callable[[], list[np.ndarray] | None], place: int) -> np.ndarray | None:
    arrays = made()
    return None if arrays is None else arrays[place]


def _function_of_jax(jaxpr: core.Jaxpr, inputs: Sequence[Value], within: str) -> str:
    """The name of the function of JAX that the jaxpr is the whole or a part of; empty where it is somebody else's."""
    name, file = jaxpr.debug_info.func_name, jaxpr.debug_info.func_filename or ""
    if not file.startswith(os.path.dirname(jax.__file__) + os.sep):
        return ""
    if within:
        return within
    if name == "clip" and len(inputs) == 3:
        least, most = (values.number_of(value) for value in inputs[1:])
        return "" if least == 0 or most == np.inf else name
    return "" if name in MADE_OF_PRIMITIVES else name


@dataclasses.dataclass(frozen=True)
class _Relu:
    """That an equation is the ReLU of `x`, or its negative."""

    x: Value
    negative: bool = False
    most: float | None = None
    which: object = None  # of the ReLUs before, where this is one of those with its bound


def _relu(equation, inputs: list[Value], walk: _Walk, within: str) -> _Relu | None:
    primitive = values.known_name(equation.primitive)
    if within not in ("", "relu", "relu6") or not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact):
        return None
    if primitive in ("max", "min"):
        x, bound = inputs if inputs[0].kind else inputs[::-1]
        number = None if bound.kind else values.number_of(bound)
        if not x.kind or number is None:
            return None
        if primitive == "max":
            variance = x.kind == Kind.SPREAD and not within
            return None if number != 0 or variance else _Relu(x)
        if number == 0:
            return None if x.negative_of is None else _Relu(x.negative_of, negative=True)
        if x in walk.relus and 0 < number < np.inf:
            of, which = walk.relus[x]
            return _Relu(of, most=number, which=which)
        return None
    if primitive == "clamp" and inputs[1].kind and not inputs[0].kind and not inputs[2].kind:
        least, most = values.number_of(inputs[0]), values.number_of(inputs[2])
        return _Relu(inputs[1], most=most) if least == 0 and most is not None and 0 < most < np.inf else None
    if primitive == "select_n" and len(inputs) == 3 and inputs[0].side is not None:
        of, above = inputs[0].side
        x, zero = (inputs[2], inputs[1]) if above else (inputs[1], inputs[2])
        return _Relu(x) if x is of and not zero.kind and values.number_of(zero) == 0 else None
    if primitive == "mul":
        for x, mask in (inputs, inputs[::-1]):
            if mask.side == (x, True):
                return _Relu(x)
    return None


def _evaluate_relu(equation, relu: _Relu, walk: _Walk, shared: bool) -> Value:
    """`shared`: what is bounded here is used without the bound too, so that there are two ReLUs of one value."""
    which = object() if relu.which is None or shared else relu.which
    array = walk.relu(jnp.broadcast_to(relu.x.array, equation.outvars[0].aval.shape), relu.most, which)
    known = values.rectified(relu.x)
    if relu.negative:
        return walk.settled(dataclasses.replace(known, array=-array, nonnegative=False))
    output = walk.settled(dataclasses.replace(known, array=array))
    if relu.most is None:
        walk.relus[output] = relu.x, which
    return output


def _look(closed: core.ClosedJaxpr, inputs: Sequence[Value], walk: _Walk, within: str) -> tuple[int, list[Value]]:
    """How many ReLUs a function holds, and what is known of its outputs, without computing them."""
    relus, outputs = set(), []

    def relu(x, most, which):
        relus.add(which)
        return x

    def abstractly(arrays):
        held = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        looking = dataclasses.replace(walk, relu=relu, relus={})
        results = _evaluate(closed.jaxpr, closed.consts, held, looking, within)
        outputs.extend(dataclasses.replace(_within_itself(value), array=None) for value in results)
        return [value.array for value in results]

    jax.eval_shape(abstractly, [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals])
    return len(relus), outputs


def _within_itself(value: Value) -> Value:
    """The value without what refers to others, which do not exist outside of a body."""
    made = None if value.kind else functools.partial(values.numbers_of, value)
    return dataclasses.replace(value, number=values.number_of(value), side=None, negative_of=None, made=made)


def _walked(closed: core.ClosedJaxpr, inputs: Sequence[Value], walk: _Walk, within: str) -> core.ClosedJaxpr:
    """The same function with the walk's ReLUs in it."""

    def body(*arrays):
        held = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        inside = dataclasses.replace(walk, relus={})
        return [value.array for value in _evaluate(closed.jaxpr, closed.consts, held, inside, within)]

    return jax.make_jaxpr(body)(*(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals))


def _evaluate_scan(equation, inputs: list[Value], walk: _Walk, within: str) -> list[Value]:
    params, body = equation.params, equation.params["jaxpr"]
    if "num_consts" in params:
        first, carries = params["num_consts"], params["num_carry"]
    else:  # JAX 0.12
        first, carries = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    inside = [_within_itself(value) for value in inputs]
    inside[first + carries :] = [values.sliced(value) for value in inside[first + carries :]]
    relus, outputs = _look(body, inside, walk, within)
    widened: set[int] = set()
    while True:  # until what is known of the carry holds after a step as well
        places = range(first, first + carries)
        carried = [
            values.carried(inputs, inside[place], out, place in widened)
            for place, out in zip(places, outputs[:carries], strict=True)
        ]
        changed = {place for place, value in zip(places, carried, strict=True) if value is not inside[place]}
        if not changed:
            break
        widened |= changed
        inside[first : first + carries] = carried
        relus, outputs = _look(body, inside, walk, within)
    if relus and not walk.loops:
        _refuse_inside("scan")
    changed = {"jaxpr": _walked(body, inside, walk, within)} if relus else {}
    outputs[carries:] = [values.stacked(value, inside[: first + carries]) for value in outputs[carries:]]
    return _bound_again(equation, inputs, changed, outputs)


def _evaluate_cond(equation, inputs: list[Value], walk: _Walk, within: str) -> list[Value]:
    branches = equation.params["branches"]
    inside = [_within_itself(value) for value in inputs[1:]]
    looked = [_look(branch, inside, walk, within) for branch in branches]
    if any(relus for relus, _ in looked) and not walk.loops:
        _refuse_inside("cond")
    outputs = [values.chosen(inputs[0], of_output) for of_output in zip(*(o for _, o in looked), strict=True)]
    changed = {"branches": tuple(_walked(branch, inside, walk, within) for branch in branches)}
    return _bound_again(equation, inputs, changed, [walk.settled(value) for value in outputs])


def _bound_again(equation, inputs: list[Value], changed: dict, known: list[Value]) -> list[Value]:
    """The equation's values with other inner functions, and with what is known of them."""
    arrays = equation.primitive.bind(
        *(value.array for value in inputs), **equation.primitive.get_bind_params(equation.params | changed)
    )
    return [dataclasses.replace(value, array=array) for value, array in zip(known, arrays, strict=True)]


def _refuse_inside(primitive: str) -> NoReturn:
    raise InputError(f"function must have its ReLUs outside {primitive}, where no rule reaches them")


def _straight_through(equation, arrays: list) -> list[Array]:
    """The equation forward, and the signal passed to its operand as it is."""

    @jax.custom_vjp
    def passed(x):
        return _bind(equation, [x])[0]

    passed.defvjp(lambda x: (passed(x), None), lambda _, signal: (signal,))
    return [passed(*arrays)]


def _contains_relu(jaxpr: core.Jaxpr) -> bool:
    """Whether a maximum of something and zero stands in it, which may be a ReLU."""
    return any(
        (
            equation.primitive is primitives.max_p
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
