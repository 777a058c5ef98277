"""The walk through a function's jaxpr: evaluated equation by equation, with something else in the place of every ReLU.

What each value is in the data, by `cnnjax.tracing.values`, tells a ReLU from all else that looks like one.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array

from cnnjax.errors import InputError
from cnnjax.ops.normalization import local_response_norm_p
from cnnjax.tracing import values
from cnnjax.tracing.values import Kind, Value

# Primitives through which the signal passes unchanged. The ECCV edition of the paper leaves contrast normalization out
# of the reconstruction.
PASSED_UNCHANGED = (local_response_norm_p,)

_KEEPING_A_NUMBER = frozenset(("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze"))
# Functions of JAX that are no more than the primitives in them. Any other, jitted under its own name (gelu, softplus),
# is one nonlinearity, whatever it is made of.
MADE_OF_PRIMITIVES = ("clip", "maximum", "minimum", "_where", "where", "select", "_piecewise")


@dataclasses.dataclass(frozen=True)
class Walk:
    """What happens on the way through a jaxpr."""

    # In the place of every ReLU: (input, the bound above or None, which) -> output. A ReLU that turns out to be bounded
    # comes a second time as the same one, with its bound, in the place of the first.
    relu: Callable[[Array, float | None, object], Array]
    strict: bool = True  # other nonlinearities are refused
    loops: bool = True  # ReLUs may stand in the body of a loop or the branch of a choice
    relus: dict[Value, tuple[Value, object]] = dataclasses.field(default_factory=dict)  # output -> input, which
    scope: list[str] = dataclasses.field(default_factory=list)  # `jax.named_scope`s around what is evaluated now

    def settled(self, value: Value) -> Value:
        """A nonlinear function, where that is allowed, is data again. Variances are kept, to tell them from ReLUs."""
        if self.strict or value.kind <= Kind.SPREAD:
            return value
        return dataclasses.replace(values.data(value.array), side=value.side)


def rectify(x: Array, most: float | None) -> Array:
    """The derivative is 0 at the bound too, as `jax.nn.relu6`'s is."""
    return jax.nn.relu(x) if most is None else jnp.where(x >= most, jnp.asarray(most, x.dtype), jax.nn.relu(x))


def transformed(function: Callable[..., Any], args: tuple, walk: Walk) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    outputs = _evaluate(closed.jaxpr, closed.consts, [values.data(leaf) for leaf in jax.tree.leaves(args)], walk)
    for output in outputs:
        if walk.strict and output.kind > Kind.LINEAR and output.kind not in values.AT_THE_END:
            raise InputError(f"function must have ReLUs only as its nonlinearities, got {output.name}")
    return jax.tree.unflatten(jax.tree.structure(shape), [output.array for output in outputs])


def _evaluate(jaxpr: core.Jaxpr, consts, inputs: Sequence[Value], walk: Walk, within: str = "") -> list[Value]:
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
        walk.scope.append(str(equation.source_info.name_stack))
        relu = _relu(equation, inputs, walk, within)
        if relu is not None:
            shared = any(uses[v] > 1 for v, x in zip(equation.invars, inputs, strict=True) if x in walk.relus)
            outputs = [_evaluate_relu(equation, relu, walk, shared)]
        elif inner_jaxprs(equation) or equation.effects:
            outputs = _evaluate_equation(equation, inputs, walk, within)
        else:
            # What is written twice, as the f(x) in where(f(x) > 0, f(x), 0), is one value; but two ReLUs are two rules.
            operands = (str(v) if isinstance(v, core.Literal) else id(known[v]) for v in equation.invars)
            written = (equation.primitive, str(equation.params), *operands)
            if written not in done:
                done[written] = _evaluate_equation(equation, inputs, walk, within)
            outputs = done[written]
        walk.scope.pop()
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _evaluate_equation(equation, inputs: list[Value], walk: Walk, within: str) -> list[Value]:
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
    if any(_contains_relu(jaxpr) for jaxpr in inner_jaxprs(equation)):
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


def _relu(equation, inputs: list[Value], walk: Walk, within: str) -> _Relu | None:
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


def _evaluate_relu(equation, relu: _Relu, walk: Walk, shared: bool) -> Value:
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


def _look(closed: core.ClosedJaxpr, inputs: Sequence[Value], walk: Walk, within: str) -> tuple[int, list[Value]]:
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


def _walked(closed: core.ClosedJaxpr, inputs: Sequence[Value], walk: Walk, within: str) -> core.ClosedJaxpr:
    """The same function with the walk's ReLUs in it."""

    def body(*arrays):
        held = [dataclasses.replace(value, array=array) for value, array in zip(inputs, arrays, strict=True)]
        inside = dataclasses.replace(walk, relus={})
        return [value.array for value in _evaluate(closed.jaxpr, closed.consts, held, inside, within)]

    return jax.make_jaxpr(body)(*(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals))


def _evaluate_scan(equation, inputs: list[Value], walk: Walk, within: str) -> list[Value]:
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


def _evaluate_cond(equation, inputs: list[Value], walk: Walk, within: str) -> list[Value]:
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
        or any(_contains_relu(inner) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation) -> list[core.Jaxpr]:
    """The jaxprs that an equation holds: the body of a loop, the branches of a choice, the function of a call."""
    held = [entry for value in equation.params.values() for entry in (value if isinstance(value, tuple) else (value,))]
    opened = [entry.jaxpr if isinstance(entry, core.ClosedJaxpr) else entry for entry in held]
    return [entry for entry in opened if isinstance(entry, core.Jaxpr)]
