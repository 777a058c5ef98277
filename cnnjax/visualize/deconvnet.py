"""The deconvnet (Zeiler & Fergus 2014, section 2.1), as a transformation of functions.

A deconvnet is the backward pass with another rule at each ReLU: convolution, switches and unpooling are then the
ordinary transposes. So `with_relu_rule` evaluates a function's jaxpr with every ReLU replaced by one whose backward
rule is the wanted one, and `project` takes the vector-Jacobian product with one activation as cotangent. Biases drop
out, because they are added; there is no ReLU behind the last transposed convolution, so the pixels are signed. The
same walk hands out every ReLU's output (`feature_maps_of`) and adds to one of them (`with_offset`).
"""

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
# Functions of JAX that are no more than the primitives in them. Any other, jitted under its own name (gelu, relu6), is
# one nonlinearity, whatever it is made of.
MADE_OF_PRIMITIVES = ("clip", "maximum", "minimum", "_where", "where", "select", "_piecewise")


@dataclasses.dataclass(frozen=True)
class _Walk:
    """What happens on the way through a jaxpr."""

    relu: Callable[[Array], Array]  # in the place of every ReLU
    strict: bool = True  # other nonlinearities are refused
    loops: bool = True  # ReLUs may stand in the body of a loop or the branch of a choice

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

    All else is refused, behind a sum or at the end of the function too: tanh, sigmoid, gelu, relu6, attention, x²,
    gates, a choice among x and a function of the same x (leaky ReLU, |x|, two products with weights) or a constant,
    medians and quantiles (take the middle of `jnp.sort`), and rarer spellings of a ReLU (`jnp.select`,
    `jnp.piecewise`, the largest of a stack with zeros). Weights must be closed over and not be arguments.

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

    So the layers of any network, in one call; other nonlinearities may stand around them. A ReLU is known by its
    spelling, as in `with_relu_rule`, whatever it is applied to. The maximum of a value and zero is none
    where it is part of another function of JAX (gelu, relu6, softplus) or bounded from above at once (relu6 by hand),
    and where the value is a sum of squares, less that of the mean or not: normalizations guard a variance so. A
    `jax.nn.relu` always is one.

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
    outputs = _evaluate(closed.jaxpr, closed.consts, [values.data(leaf) for leaf in jax.tree.leaves(args)], walk)
    for output in outputs:
        if walk.strict and output.kind > Kind.LINEAR and output.kind not in values.AT_THE_END:
            raise InputError(f"function must have ReLUs only as its nonlinearities, got {output.name}")
    return jax.tree.unflatten(jax.tree.structure(shape), [output.array for output in outputs])


def _evaluate(jaxpr: core.Jaxpr, consts, inputs: Sequence[Value], walk: _Walk, within: str = "") -> list[Value]:
    """The values of the jaxpr's outputs, equation by equation; `within` is the function of JAX that it is of."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(Value, consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))
    capped = _capped(jaxpr)

    def read(variable) -> Value:
        return Value(variable.val) if isinstance(variable, core.Literal) else known[variable]

    done: dict[Any, list[Value]] = {}
    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        part_of = within or ("min" if capped.intersection(equation.outvars) else "")
        if _inner_jaxprs(equation) or equation.effects or _rectified(equation, inputs, part_of):
            outputs = _evaluate_equation(equation, inputs, walk, part_of)
        else:
            # What is written twice, as the f(x) in where(f(x) > 0, f(x), 0), is one value; but two ReLUs are two rules.
            operands = (str(v) if isinstance(v, core.Literal) else id(known[v]) for v in equation.invars)
            written = (equation.primitive, str(equation.params), part_of, *operands)
            if written not in done:
                done[written] = _evaluate_equation(equation, inputs, walk, part_of)
            outputs = done[written]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _capped(jaxpr: core.Jaxpr) -> set:
    """Maxima that are bounded from above at once: parts of a relu6 and the like, and no ReLUs."""
    maxima = {equation.outvars[0] for equation in jaxpr.eqns if equation.primitive is primitives.max_p}
    return maxima & {
        variable
        for equation in jaxpr.eqns
        if equation.primitive is primitives.min_p
        and any(isinstance(v, core.Literal) and np.all(np.isfinite(np.asarray(v.val))) for v in equation.invars)
        for variable in equation.invars
        if not isinstance(variable, core.Literal)
    }


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
    rectified = _rectified(equation, inputs, within)
    if rectified is not None:
        x, sign = rectified
        array = sign * walk.relu(jnp.broadcast_to(x.array, equation.outvars[0].aval.shape))
        known = values.rectified(x) if sign > 0 else dataclasses.replace(values.rectified(x), nonnegative=False)
        return [walk.settled(dataclasses.replace(known, array=array))]
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
    if name == "clip" and len(inputs) == 3 and values.number_of(inputs[2]) != np.inf:
        return name
    return "" if name in MADE_OF_PRIMITIVES else name


def _rectified(equation, inputs: list[Value], within: str) -> tuple[Value, int] | None:
    """(x, 1) where the primitive is the ReLU of x, and (x, -1) where it is the negative; None where it is none."""
    primitive = values.known_name(equation.primitive)
    if within not in ("", "relu") or not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact):
        return None
    if primitive in ("max", "min"):
        x, zero = inputs if inputs[0].kind else inputs[::-1]
        if not x.kind or zero.kind or values.number_of(zero) != 0:
            return None
        if primitive == "min":
            return None if x.negative_of is None else (x.negative_of, -1)
        return None if x.kind == Kind.SPREAD and within != "relu" else (x, 1)
    if primitive == "select_n" and len(inputs) == 3 and inputs[0].side is not None:
        of, above = inputs[0].side
        x, zero = (inputs[2], inputs[1]) if above else (inputs[1], inputs[2])
        return (x, 1) if x is of and not zero.kind and values.number_of(zero) == 0 else None
    if primitive == "mul":
        for x, mask in (inputs, inputs[::-1]):
            if mask.side == (x, True):
                return x, 1
    return None


def _look(closed: core.ClosedJaxpr, inputs: Sequence[Value], walk: _Walk, within: str) -> tuple[int, list[Value]]:
    """How many ReLUs a function holds, and what is known of its outputs, without computing them."""
    relus, outputs = 0, []

    def relu(x):
        nonlocal relus
        relus += 1
        return x

    def abstractly(arrays):
        held = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        results = _evaluate(closed.jaxpr, closed.consts, held, dataclasses.replace(walk, relu=relu), within)
        outputs.extend(dataclasses.replace(_within_itself(value), array=None) for value in results)
        return [value.array for value in results]

    jax.eval_shape(abstractly, [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals])
    return relus, outputs


def _within_itself(value: Value) -> Value:
    """The value without what refers to others, which do not exist outside of a body."""
    made = None if value.kind else functools.partial(values.numbers_of, value)
    return dataclasses.replace(value, number=values.number_of(value), side=None, negative_of=None, made=made)


def _walked(closed: core.ClosedJaxpr, inputs: Sequence[Value], walk: _Walk, within: str) -> core.ClosedJaxpr:
    """The same function with the walk's ReLUs in it."""

    def body(*arrays):
        held = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        return [value.array for value in _evaluate(closed.jaxpr, closed.consts, held, walk, within)]

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
