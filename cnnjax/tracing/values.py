"""What each value of a traced function is in the function's arguments, the data.

`outputs_of` says it of one equation of a jaxpr. Every value has a `Kind`. What is not proven to be one of the others is
NONLINEAR, and stays it, so that a function of which nothing is known is never taken for a linear one.

A choice (a maximum, a sort, `where` by a comparison) is linear, once it is made, if it is one among *independent*
values: the maximum of x and 0, of x and x/10, or of x and -x is an elementwise nonlinearity of x in disguise. So each
value knows its *roots*, which are the data and what mixes many values (a product with weights, a sum), and for each
the *form* in which it holds the root's elements. Moving and choosing keep a form, every change makes a new one, and a
choice may meet one form only of roots that come from the same data, and no constant: it is one among elements at
different places. Two products of the same data are taken for dependent, because x and x @ (I/10) are; the outputs of
one product are independent if no two of them are multiples of each other. Weights whose numbers are not known while
tracing, because they are arguments of an enclosing `jit`, are taken for such.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive, primitives

from cnnjax.ops import bias, normalization, selection, windowed_product

# What is known of a primitive is known by what it is and not by its name, which any other may have.
_KNOWN = {
    entry
    for module in (primitives, lax, bias, normalization, selection, windowed_product)
    for entry in vars(module).values()
    if isinstance(entry, Primitive)
}


class Kind(enum.IntEnum):
    """How a value depends on the data, for fixed ReLUs and choices."""

    CONSTANT = 0  # not at all: weights, running statistics
    CHOICE = 1  # by a choice among independent values alone: a pool's switches
    SUM = 2  # linearly, a sum over several elements
    LINEAR = 3  # linearly
    BRANCH = 4  # by the comparison of a SUM with a constant; may only choose
    SQUARE = 5  # |x| or an even power, elementwise; must be summed
    SQUARED_SUM = 6  # the same of a SUM; must be summed, or taken from a SPREAD
    SPREAD = 7  # a sum of squares, less the square of a mean: a variance
    DIVISOR = 8  # a root of it, or with an epsilon; may divide
    INVERSE = 9  # one over that; may multiply
    EXP = 10  # exp(x)
    EXP_SUM = 11  # the denominator of a softmax
    LOG_SUM = 12
    SOFTMAX = 13  # nothing may follow
    LOG_SOFTMAX = 14
    NONLINEAR = 15  # any other way


LINEAR = (Kind.SUM, Kind.LINEAR)
SQUARES = (Kind.SQUARE, Kind.SQUARED_SUM)
STATISTICS = (Kind.SPREAD, Kind.DIVISOR, Kind.INVERSE)
AT_THE_END = (Kind.LOG_SUM, Kind.SOFTMAX, Kind.LOG_SOFTMAX)

MIXED = object()  # in the place of a form: several forms of this root
# In the place of a root:
CONSTANTS = "constants"  # some elements are constants, in the form ZERO or MIXED
ZERO = object()


class _Root:
    """Data, or what mixes many values of some."""

    def __init__(self, mixed: "Sequence[Value]" = ()):
        roots = [root for value in mixed for root in value.forms if isinstance(root, _Root)]
        self.origins: frozenset[Any] = frozenset().union(*(root.origins for root in roots)) or frozenset({self})


@dataclasses.dataclass(frozen=True, eq=False)
class _Mask:
    """In the place of a root: a constant, with which the elements were multiplied; some by zero, maybe."""

    constant: "Value"

    def has_zeros(self) -> bool:
        numbers = numbers_of(self.constant)
        return numbers is not None and not numbers.all()


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value of a traced function, with what is known of it."""

    array: Any
    kind: Kind = Kind.CONSTANT
    name: str = ""  # of the function that made it other than linear
    number: float | None = None  # which the array holds everywhere
    forms: Mapping[Any, object] = dataclasses.field(default_factory=dict)  # by root
    repeated: frozenset[int] = frozenset()  # axes along which an element of a root may stand more than once
    copies: frozenset[int] = frozenset()  # axes along which the same element stands and nothing else: x, x/10, ...
    nonnegative: bool = False
    side: "tuple[Value, bool] | None" = None  # (x, True) for x > 0, (x, False) for x < 0; equality does not matter
    negative_of: "Value | None" = None
    made: Callable[[], np.ndarray | None] | None = None  # the numbers of a constant that is being traced

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.array)


def data(array, kind: Kind = Kind.LINEAR) -> Value:
    """A value of which nothing else is known: a root of its own."""
    return Value(array, kind, forms={_Root(): object()})


def numbers_of(value: Value) -> np.ndarray | None:
    """The numbers of a constant, where they are known while tracing."""
    if value.kind or value.array is None or jnp.issubdtype(jnp.result_type(value.array), jax.dtypes.extended):
        return None
    if not isinstance(value.array, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        return np.asarray(value.array)
    return value.made() if value.made else None


def number_of(value: Value) -> float | None:
    """The number that a constant holds everywhere, where that is known while tracing."""
    if value.kind or value.number is not None or value.array is None:
        return value.number
    if isinstance(value.array, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(value.array), jnp.number):  # pyright: ignore[reportAttributeAccessIssue]
        return None
    array = np.asarray(value.array)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None


def rectified(value: Value) -> Value:
    """What a ReLU makes of it."""
    if value.kind not in (Kind.CHOICE, *LINEAR):
        return Value(None, Kind.NONLINEAR, value.name or "relu")
    return Value(None, Kind.LINEAR, "", None, _changed(value), value.repeated, value.copies, nonnegative=True)


def chosen(chooser: Value, cases: Sequence[Value]) -> Value:
    """What is known of a value that is one of the cases, as the chooser says."""
    kind = _join(cases)
    held = [value for value in cases if value.kind]
    if chooser.kind not in (Kind.CONSTANT, Kind.CHOICE, Kind.BRANCH) or kind is None:
        return Value(None, Kind.NONLINEAR, _name_of((chooser, *cases), "cond"))
    if chooser.kind and kind not in STATISTICS:
        step = chooser.kind == Kind.BRANCH and kind < Kind.SUM
        if step or kind > Kind.LINEAR or not all(_agree([chooser, case]) for case in held):
            return Value(None, Kind.NONLINEAR, _name_of((chooser, *held), "select_n"))
        if kind <= Kind.CHOICE:
            return Value(None, Kind.CHOICE, forms=_together([chooser, *held]))
    return _merged(cases, kind, _union(held, "repeated"), _union(held, "copies")) if kind else Value(None)


def sliced(value: Value) -> Value:
    """What is known of the parts of a value along its first axis, one after another."""
    repeated, copies = (frozenset(axis - 1 for axis in axes if axis) for axes in (value.repeated, value.copies))
    return dataclasses.replace(value, repeated=repeated, copies=copies, made=None)


def carried(inputs: Sequence[Value], before: Value, after: Value, widened: bool) -> Value:
    """What is known of a value that goes round a loop, `before` and `after` a step; `before` itself once that is all.

    Args:
        inputs: the loop's, of which it may become any function.
        widened: `before` is from here.
    """
    if before.made or before.number not in (None, after.number):
        return Value(None)
    kind = _join([before, after])
    kind = Kind.NONLINEAR if kind is None else kind
    before_forms, after_forms = _forms(before), _forms(after)
    if kind == before.kind:
        if not widened and after_forms.items() <= before_forms.items() and after.repeated <= before.repeated:
            return before
        if widened and (MIXED in before_forms.values() or MIXED not in after_forms.values()):
            return before
    forms = _together([before, after])
    form = MIXED if MIXED in after_forms.values() else object()
    constants = {CONSTANTS: MIXED} if CONSTANTS in forms else {}
    roots = (forms.keys() | _together(inputs).keys()) - {CONSTANTS}
    forms = {**dict.fromkeys(roots, form), _Root([before, after, *inputs]): form, **constants}
    return Value(None, kind, before.name or after.name, forms=forms)


def stacked(value: Value, fixed: Sequence[Value]) -> Value:
    """What is known of what a loop's steps put out, along a new first axis.

    Args:
        fixed: values that are there in each step, so that each may put out another function of them.
    """
    repeated, copies = (frozenset(axis + 1 for axis in axes) for axes in (value.repeated, value.copies))
    origins = _Root(fixed).origins
    again = {root for root, _ in _rooted(value) if root.origins & origins}
    forms = {root: MIXED if root in again else form for root, form in value.forms.items()}
    marked = frozenset({0} if again else ())
    return dataclasses.replace(value, forms=forms, repeated=repeated | marked, copies=copies | marked)


# --- forms ---------------------------------------------------------------------------------------------------------


def _forms(value: Value) -> Mapping[Any, object]:
    """An infinite number bounds nothing, and is no element that a choice would take."""
    if value.kind:
        return value.forms
    number = number_of(value)
    return {} if number in (np.inf, -np.inf) else {CONSTANTS: ZERO if number == 0 else MIXED}


def _together(values: Iterable[Value]) -> dict[Any, object]:
    forms: dict[Any, object] = {}
    for value in values:
        for root, form in _forms(value).items():
            forms[root] = form if forms.get(root, form) is form else MIXED
    return forms


def _changed(*values: Value, apart: bool = False) -> dict[Any, object]:
    """The forms of an elementwise function of the values; a constant is left where all have one.

    Args:
        apart: elements that are the same may become different.
    """
    form = MIXED if apart else object()
    forms = {root: MIXED if old is MIXED else form for root, old in _together(values).items() if root != CONSTANTS}
    constants = [value.forms.get(CONSTANTS) for value in values]
    if all(constants):
        forms[CONSTANTS] = ZERO if all(entry is ZERO for entry in constants) else MIXED
    return forms


def _independent(one: Value, other: Value) -> bool:
    """Whether no element of one can be another function of the same elements as one of the other."""
    for root, form in _rooted(one):
        for also, its_form in _rooted(other):
            if root.origins & also.origins and (form is MIXED or form is not its_form):
                return False
    return True


def _rooted(value: Value) -> list[tuple[_Root, object]]:
    return [(root, form) for root, form in value.forms.items() if isinstance(root, _Root)]


def _mixture(value: Value, kind: Kind, repeated: frozenset[int], multiples: bool = False) -> Value:
    """Sums of many elements of a value.

    Args:
        repeated: axes along which the sums may be of the same elements.
        multiples: and may be multiples of each other.
    """
    form = MIXED if multiples or (repeated and not _independent(value, value)) else object()
    return Value(None, kind, forms={_Root([value]): form}, repeated=repeated)


def _bounded(value: Value, largest: bool) -> bool:
    """Whether constants among its elements bound a choice: all do, but zeros below what is never negative."""
    return CONSTANTS in value.forms and not (largest and value.nonnegative and value.forms[CONSTANTS] is ZERO)


def _merged(values: Sequence[Value], kind: Kind, repeated=frozenset(), copies=frozenset()) -> Value:
    """A value whose elements are those of the others."""
    nonnegative = all(value.nonnegative or number_of(value) == 0 for value in values)
    return Value(None, kind, _name_of(values, ""), None, _together(values), repeated, copies, nonnegative)


def _name_of(values: Sequence[Value], name: str) -> str:
    return next((value.name for value in values if value.name), name)


def _union(values: Sequence[Value], field: str) -> frozenset[int]:
    return frozenset().union(*(getattr(value, field) for value in values))


def _join(values: Sequence[Value]) -> Kind | None:
    """The kind of a value that holds elements of all of these."""
    kinds = {value.kind for value in values if value.kind}
    if len(kinds) < 2:
        return kinds.pop() if kinds else Kind.CONSTANT
    if kinds <= {Kind.CHOICE, *LINEAR}:
        return max(kinds)
    return Kind.DIVISOR if kinds == {Kind.SPREAD, Kind.DIVISOR} else None


def known_name(primitive: Primitive) -> str:
    """The primitive's name, if it is of JAX or of our operations; empty for any other, of which nothing is known."""
    return primitive.name if primitive in _KNOWN else ""


# --- one equation --------------------------------------------------------------------------------------------------


def outputs_of(equation, inputs: Sequence[Value], name: str) -> list[Value]:
    """What is known of the outputs of an equation that has data among its inputs; their arrays are left out.

    Args:
        name: what to call the equation's function, if it is nonlinear.
    """
    primitive, outputs = known_name(equation.primitive), [variable.aval for variable in equation.outvars]
    held = [value for value in inputs if value.kind]
    opened = next((value for value in held if value.kind == Kind.NONLINEAR), None)
    if opened is not None:
        return [Value(None, Kind.NONLINEAR, opened.name, side=_side_kept(primitive, inputs)) for _ in outputs]
    if all(value.kind in (Kind.CHOICE, Kind.BRANCH) for value in held):
        return [_discrete(primitive, inputs, output) for output in outputs]
    if primitive == "optimization_barrier":
        return list(inputs)
    rule = _RULES.get(primitive)
    known = rule(_Equation(primitive, equation.params, inputs, name, outputs)) if rule else None
    if known is None:
        name = _name_of(held, name) if rule and rule is not _power else name
        return [Value(None, Kind.NONLINEAR, name, side=_side(primitive, inputs)) for _ in outputs]
    return known if isinstance(known, list) else [known] * len(outputs)


def _discrete(primitive: str, inputs: Sequence[Value], output) -> Value:
    """Any function of choices alone is one."""
    held = [value for value in inputs if value.kind]
    kind = max(value.kind for value in held)
    if kind == Kind.BRANCH and jnp.issubdtype(output.dtype, jnp.inexact):
        kind = Kind.NONLINEAR
    return Value(None, kind, _name_of(held, ""), forms=_together(held), side=_side_kept(primitive, inputs))


@dataclasses.dataclass(frozen=True)
class _Equation:
    primitive: str
    params: Mapping[str, Any]
    inputs: Sequence[Value]
    name: str
    outputs: Sequence[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outputs[0].shape


_Known = Value | list[Value] | None


def _side(primitive: str, inputs: Sequence[Value]) -> tuple[Value, bool] | None:
    if primitive not in ("gt", "ge", "lt", "le"):
        return None
    above = primitive in ("gt", "ge")
    one, other = inputs
    if one.kind and not other.kind and number_of(other) == 0:
        return one, above
    return (other, not above) if other.kind and not one.kind and number_of(one) == 0 else None


def _side_kept(primitive: str, inputs: Sequence[Value]) -> tuple[Value, bool] | None:
    """Of a comparison of something that is nonlinear already, or of what became of one."""
    side = inputs[0].side
    if primitive in ("convert_element_type", "copy"):
        return side
    if primitive == "not" and side is not None:
        return side[0], not side[1]
    return _side(primitive, inputs)


def _axes(equation: _Equation, value: Value, marked: frozenset[int], unknown: bool) -> frozenset[int]:
    """Where the marked axes of the operand are in the output; `unknown` says whether an axis of no one origin is."""
    params, before, after = equation.params, value.shape, equation.shape
    if not marked or equation.primitive in _KEEPING_AXES:
        return marked
    if equation.primitive == "transpose":
        return frozenset(params["permutation"].index(axis) for axis in marked)
    if equation.primitive == "broadcast_in_dim":
        return frozenset(int(params["broadcast_dimensions"][axis]) for axis in marked)
    if equation.primitive == "reshape":
        origin = {(math.prod(before[:axis]), size): axis not in marked for axis, size in enumerate(before) if size > 1}
        places = [(math.prod(after[:axis]), size) for axis, size in enumerate(after)]
        return frozenset(
            axis
            for axis, place in enumerate(places)
            if place[1] > 1 and (not origin[place] if place in origin else unknown)
        )
    gone = params.get("dimensions") if equation.primitive == "squeeze" else params.get("axes")
    if equation.primitive == "sum_channels":
        gone = range(params["members"], len(before) - 1)
    if gone is not None:
        left = [axis for axis in range(len(before)) if axis not in gone]
        return frozenset(place for place, axis in enumerate(left) if axis in marked)
    return frozenset(range(len(after))) if unknown else frozenset()


def _move(equation: _Equation) -> _Known:
    """Elements of one value, moved, repeated or left out."""
    value, rest = equation.inputs[0], equation.inputs[1:]
    if not value.kind or not jnp.issubdtype(equation.outputs[0].dtype, jnp.inexact):
        return None
    if any(index.kind != Kind.CHOICE for index in rest if index.kind):
        return None
    if any(index.kind for index in rest) and not _agree([value, *rest]):
        return None
    repeated = _axes(equation, value, value.repeated, True)
    copies = _axes(equation, value, value.copies, False)
    forms = value.forms
    if equation.primitive == "broadcast_in_dim":
        kept = dict(zip(equation.params["broadcast_dimensions"], value.shape, strict=True))
        grown = {axis for axis, size in enumerate(equation.shape) if size > 1 and kept.get(axis, 1) == 1}
        repeated, copies = repeated | grown, copies | grown
    if equation.primitive == "spread_channels":
        first = len(value.shape) - 1
        repeated = frozenset(range(len(equation.shape)))
        copies = frozenset(range(first, first + len(equation.params["places"])))
    if equation.primitive in ("gather", "tile"):
        repeated = frozenset(range(len(equation.shape)))
        if "FILL" in str(equation.params.get("mode")).upper():
            forms = {**forms, CONSTANTS: MIXED}
    same = equation.primitive in ("convert_element_type", "copy")
    return dataclasses.replace(
        value,
        array=None,
        number=None,
        forms=forms,
        repeated=repeated,
        copies=copies,
        side=None,
        negative_of=value.negative_of if same else None,
    )


def _agree(values: Sequence[Value]) -> bool:
    """Whether each root has one form in all of them; constants do not matter."""
    forms = _together(value for value in values if value.kind)
    return MIXED not in [form for root, form in forms.items() if isinstance(root, _Root)]


def _join_parts(equation: _Equation) -> _Known:
    """Elements of several values side by side."""
    primitive, params, parts = equation.primitive, equation.params, equation.inputs
    indices: Sequence[Value] = ()
    if primitive == "dynamic_update_slice":
        parts, indices = parts[:2], parts[2:]
    elif primitive == "scatter":
        parts, indices = (parts[0], parts[2]), (parts[1],)
    kind = _join(parts)
    if kind is None or any(index.kind for index in indices):
        return None
    held = [value for value in parts if value.kind]
    repeated, copies = _union(held, "repeated"), _union(held, "copies")
    if primitive == "pad":
        grows = any(low > 0 or high > 0 or inner for low, high, inner in params["padding_config"])
        return _merged(parts if grows else parts[:1], kind, repeated, copies)
    if primitive in ("concatenate", "stack"):
        axis = int(params["dimension"] if primitive == "concatenate" else params["axis"])
        if primitive == "stack":
            repeated, copies = (frozenset(a + (a >= axis) for a in axes) for axes in (repeated, copies))
        related = sum(len(value.forms) for value in held) > len(_together(held)) or not all(
            _independent(value, also) for place, value in enumerate(held) for also in held[:place]
        )
        if len(held) < len(parts) or related:
            repeated |= {axis}
            single = primitive == "stack" or all(value.shape[axis] == 1 for value in parts)
            copies |= {axis} if single else set()
    else:
        repeated = frozenset(range(len(equation.shape)))
    return _merged(parts, kind, repeated, copies)


def _choose_between(equation: _Equation) -> _Known:
    """`select_n`."""
    return chosen(equation.inputs[0], equation.inputs[1:])


def _add(equation: _Equation) -> _Known:
    one, other = equation.inputs
    subtracting = equation.primitive == "sub"
    if one is other and subtracting:
        return Value(None, number=0.0)
    if not (one.kind and other.kind):
        value, constant = (one, other) if one.kind else (other, one)
        kind = {Kind.SPREAD: Kind.DIVISOR}.get(value.kind, value.kind)
        if kind in (Kind.INVERSE, Kind.EXP, Kind.EXP_SUM, Kind.SOFTMAX):
            return None
        number = number_of(constant)
        if number == 0 and not (subtracting and value is other) and value.shape == equation.shape:
            return dataclasses.replace(value, array=None)
        repeated, copies = _widened(equation, value)
        forms = _changed(value, apart=bool(repeated) and _is_distinct(constant))
        return Value(None, kind, value.name, None, forms, repeated, copies)
    kinds = {one.kind, other.kind}
    if kinds <= {Kind.CHOICE, *LINEAR}:
        nonnegative = one.nonnegative and other.nonnegative and not subtracting
        repeated, copies = _narrowed(equation)
        return Value(None, max(kinds), "", None, _changed(one, other), repeated, copies, nonnegative)
    name = _name_of((one, other), "")
    if kinds <= {Kind.SQUARED_SUM, Kind.SPREAD, Kind.DIVISOR} and max(kinds) > Kind.SQUARED_SUM:
        return Value(None, max(kinds), name)
    if Kind.SQUARE in kinds and one is not other and _independent(one, other) and not subtracting:
        same = _together([one, other]).keys() - {CONSTANTS} == one.forms.keys() - {CONSTANTS}
        if kinds == {Kind.SQUARE} or (kinds == {Kind.SQUARE, Kind.SPREAD} and same and one.forms):
            return Value(None, Kind.SPREAD, name, None, _together([one, other]))
    if Kind.LOG_SUM in kinds and min(kinds) in LINEAR:
        linear, log_sum = (one, other) if one.kind in LINEAR else (other, one)
        if not subtracting:
            return dataclasses.replace(log_sum, array=None)
        if linear is one and linear.forms.keys() <= log_sum.forms.keys():
            return Value(None, Kind.LOG_SOFTMAX, "softmax")
    return None


def _widened(equation: _Equation, value: Value) -> tuple[frozenset[int], frozenset[int]]:
    """The axes of an operand with a constant, which may have more axes of size 1 filled."""
    if len(value.shape) != len(equation.shape):
        every = frozenset(range(len(equation.shape)))
        return every, every
    grown = {axis for axis, size in enumerate(value.shape) if size == 1 < equation.shape[axis]}
    return value.repeated | grown, value.copies | grown


def _narrowed(equation: _Equation) -> tuple[frozenset[int], frozenset[int]]:
    """The axes of a function of two values: along which neither has an element of its own."""
    (one, same), (other, equal) = (_widened(equation, value) for value in equation.inputs)
    return one & other, same & equal


def _is_distinct(constant: Value) -> bool:
    """Whether it may hold more than one number."""
    return number_of(constant) is None and math.prod(constant.shape) != 1


def _scaled(
    equation: _Equation, value: Value, number: float | None, distinct: bool, mask: Value | None = None
) -> Value:
    """The value times a constant, which is this number, or not the same for all elements and maybe zero for some."""
    repeated, copies = _widened(equation, value)
    forms = _changed(value, apart=distinct and bool(repeated))
    if mask is not None:
        forms[_Mask(mask)] = object()
    if value.kind == Kind.EXP_SUM:
        forms = value.forms
    negative_of = value if number == -1 and value.shape == equation.shape else None
    nonnegative = value.nonnegative and (number or -1) >= 0
    return Value(None, value.kind, value.name, None, forms, repeated, copies, nonnegative, None, negative_of)


def _normalized(equation: _Equation, value: Value) -> Value:
    return dataclasses.replace(_scaled(equation, value, None, True), kind=Kind.LINEAR)


def _multiply(equation: _Equation) -> _Known:
    one, other = equation.inputs
    if not (one.kind and other.kind):
        value, constant = (one, other) if one.kind else (other, one)
        number = number_of(constant)
        if number == 0:
            return Value(None, number=0.0)
        return _scaled(equation, value, number, _is_distinct(constant), constant if _is_distinct(constant) else None)
    if one is other:
        return _even_power(equation, one)
    low, high = sorted((one, other), key=lambda value: value.kind)
    name = _name_of((one, other), "")
    if low.kind in LINEAR and high.kind == Kind.INVERSE:
        return _normalized(equation, low)
    if low.kind == Kind.CHOICE and high.kind in LINEAR and _agree([low, high]):
        forms = {CONSTANTS: ZERO, **_changed(low, high)}
        return Value(None, Kind.LINEAR, "", None, forms, *_widened(equation, high))
    if low.kind == high.kind == Kind.INVERSE:
        return Value(None, Kind.INVERSE, name)
    if {low.kind, high.kind} <= {Kind.SPREAD, Kind.DIVISOR}:
        return Value(None, Kind.DIVISOR, name)
    return None


def _divide(equation: _Equation) -> _Known:
    one, other = equation.inputs
    if not other.kind:
        number = number_of(other)
        return _scaled(equation, one, 1 / number if number else None, _is_distinct(other))
    if not one.kind:
        inverse = {Kind.SPREAD: Kind.INVERSE, Kind.DIVISOR: Kind.INVERSE, Kind.INVERSE: Kind.DIVISOR}.get(other.kind)
        return None if inverse is None else Value(None, inverse, other.name)
    if one.kind in LINEAR and other.kind in (Kind.SPREAD, Kind.DIVISOR):
        return _normalized(equation, one)
    if one.kind == Kind.EXP and other.kind == Kind.EXP_SUM and one.forms == other.forms:
        return Value(None, Kind.SOFTMAX, "softmax")
    return None


def _larger(equation: _Equation) -> _Known:
    """`max` and `min` that are no ReLU."""
    one, other = equation.inputs
    largest = equation.primitive == "max"
    if not (one.kind and other.kind):
        value, constant = (one, other) if one.kind else (other, one)
        number = number_of(constant)
        if number == (-np.inf if largest else np.inf):
            return dataclasses.replace(value, array=None)
        if value.kind == Kind.SPREAD and number == 0:
            return dataclasses.replace(value, array=None)
        if value.kind in STATISTICS:
            return Value(None, Kind.INVERSE if value.kind == Kind.INVERSE else Kind.DIVISOR, value.name)
        return None
    if one.kind not in LINEAR or other.kind not in LINEAR or not _independent(one, other):
        return None
    if _bounded(one, largest) or _bounded(other, largest):
        return None
    (repeated, copies), (also, equal) = (_widened(equation, value) for value in equation.inputs)
    nonnegative = (any if largest else all)(value.nonnegative for value in (one, other))
    known = _merged([one, other], max(one.kind, other.kind), repeated | also, copies & equal)
    return dataclasses.replace(known, nonnegative=nonnegative)


def _choose_along(equation: _Equation) -> _Known:
    """The largest, smallest, sorted of the elements along some axes, and their places."""
    primitive, params, inputs = equation.primitive, equation.params, equation.inputs
    value = inputs[0]
    if primitive == "sort":
        axes, keys = (params["dimension"],), inputs[: params["num_keys"]]
    else:
        keys, rank = (value,), len(value.shape)
        if primitive == "max_with_choice":
            axes = tuple(axis for axis, size in enumerate(params["windows"].window, 1) if size > 1)
        elif primitive.startswith("reduce_window"):
            axes = tuple(axis for axis, size in enumerate(params["window_dimensions"]) if size > 1)
        elif primitive == "top_k":
            axes = (params.get("axis", rank - 1) % rank,)
        else:
            axes = params["axes"] if "axes" in params else (params["axis"],)
    if any(key.kind not in (*LINEAR, *AT_THE_END) for key in keys):
        return None
    held = [each for each in inputs if each.kind]
    several = any(value.shape[axis] > 1 for axis in axes)
    largest = primitive in ("reduce_max", "reduce_window_max", "max_with_choice", "argmax", "cummax")
    for each in held if several else ():
        if _bounded(each, largest) or (each.repeated & set(axes) and not _independent(each, each)):
            return None
    if len(held) > 1 and not _agree(held):
        return None
    operands = inputs if primitive == "sort" else [value] * len(equation.outputs)
    known = []
    for output, operand in zip(equation.outputs, operands, strict=True):
        if not jnp.issubdtype(output.dtype, jnp.inexact) or not operand.kind:
            known.append(Value(None, Kind.CHOICE, forms=_together(held)))
            continue
        repeated, copies = (_axes(equation, operand, marked, True) for marked in (operand.repeated, operand.copies))
        known.append(
            dataclasses.replace(
                operand, array=None, repeated=repeated, copies=copies, side=None, negative_of=None, number=None
            )
        )
    return known


def _sum(equation: _Equation) -> _Known:
    (value, *others), params = equation.inputs, equation.params
    if equation.primitive == "psum" and (others or not all(isinstance(axis, int) for axis in params["axes"])):
        return None  # over an axis with a name
    if equation.primitive == "cumsum":
        if value.kind not in LINEAR:
            return None
        return Value(
            None, Kind.LINEAR, "", None, _changed(value, apart=bool(value.repeated)), value.repeated, value.copies
        )
    if equation.primitive == "reduce_window_sum":
        axes = {axis for axis, size in enumerate(params["window_dimensions"]) if size > 1}
    else:
        every = range(params["members"], len(value.shape) - 1) if "members" in params else params["axes"]
        axes = {axis for axis in every if value.shape[axis] > 1}
    repeated, copies = _axes(equation, value, value.repeated, True), _axes(equation, value, value.copies, True)
    if value.kind in (Kind.INVERSE, *AT_THE_END):
        return None if axes else dataclasses.replace(value, array=None, repeated=repeated, copies=copies)
    if not axes:
        return dataclasses.replace(value, array=None, side=None, repeated=repeated, copies=copies, negative_of=None)
    if axes <= value.copies:  # the sum of copies is elementwise
        if value.kind == Kind.EXP:
            return None
        kind = Kind.LINEAR if value.kind == Kind.SUM else value.kind
        return Value(None, kind, value.name, None, _changed(value), repeated, copies, value.nonnegative)
    bare = _is_bare(value)
    if value.kind in LINEAR:
        known = _mixture(value, Kind.LINEAR if bare else Kind.SUM, repeated)
        return dataclasses.replace(known, nonnegative=value.nonnegative)
    if value.kind in SQUARES and bare:
        return None
    if value.kind == Kind.EXP and axes & value.repeated and not _independent(value, value):
        return None
    kind = {Kind.EXP: Kind.EXP_SUM, **dict.fromkeys(SQUARES, Kind.SPREAD)}.get(value.kind, value.kind)
    return Value(None, kind, value.name, None, value.forms)


def _is_bare(value: Value) -> bool:
    """Whether a sum of its elements may be one of a single element and zeros."""
    return CONSTANTS in value.forms or any(isinstance(root, _Mask) and root.has_zeros() for root in value.forms)


def _product(equation: _Equation) -> _Known:
    """A product with weights, of two operands, that sums over some axes of both."""
    one, other = equation.inputs
    value, weights = (one, other) if one.kind else (other, one)
    terms = _terms(equation)
    if weights.kind:
        return _product_of_data(equation, one, other, terms)
    if number_of(weights) == 0:
        return Value(None, number=0.0)
    if value.kind in LINEAR and terms > 1:
        return _mixture(value, Kind.LINEAR, *_places(equation, value, weights))
    if value.kind in (*LINEAR, *SQUARES):
        if terms > 1 and not _is_bare(value) and _adds_up(equation, weights):
            return Value(None, Kind.SPREAD, value.name)
        every = frozenset(range(len(equation.shape)))
        forms = dict.fromkeys(value.forms, MIXED)
        return Value(None, Kind.LINEAR if value.kind in LINEAR else value.kind, value.name, None, forms, every, every)
    if value.kind in (Kind.SPREAD, Kind.DIVISOR):
        return Value(None, value.kind, value.name)
    return None


def _places(equation: _Equation, value: Value, weights: Value) -> tuple[frozenset[int], bool]:
    """The axes of a product along which the same elements are summed up again, and whether so to multiples."""
    params, every = equation.params, range(len(equation.shape))
    number = 0 if value is equation.inputs[0] else 1
    spread: set[int] = set()  # in space: each element stands in several sums, with other weights
    if equation.primitive == "dot_general":
        contracted, batch = (sides[number] for sides in params["dimension_numbers"])
        free = [axis for axis in range(len(value.shape)) if axis not in (*contracted, *batch)]
        start = len(batch) if number == 0 else len(every) - len(free)
        origin = dict(enumerate(batch)) | {start + place: axis for place, axis in enumerate(free)}
    elif number or params.get("face") == "kernel" or params.get("batch_group_count", 1) > 1:
        return frozenset(every), True
    elif equation.primitive == "conv_general_dilated":
        before, _, after = params["dimension_numbers"]
        origin = dict(zip((after[0], *after[2:]), (before[0], *before[2:]), strict=True))
        spread = {after[axis] for axis, step in enumerate(params["lhs_dilation"], 2) if step > 1}
    else:
        origin = {axis: axis for axis in every[:-1]}
        steps = params["windows"].strides if params["face"] == "images" else ()
        first = 2 if equation.primitive == "windowed_products" else 1  # behind the batch
        spread = {axis for axis, step in enumerate(steps, first) if step > 1}
    again = frozenset(axis for axis, source in origin.items() if axis in spread or source in value.repeated)
    if not _distinct(equation, weights):
        return again | {axis for axis in every if axis not in origin}, True
    return again, bool(spread)


_ROWS = 64  # are mostly enough to tell two columns apart


def _by_output(equation: _Equation, weights: Value) -> np.ndarray | None:
    """The weights as a matrix, one column an output; None where they are not known while tracing."""
    numbers = numbers_of(weights)
    if numbers is None or np.iscomplexobj(numbers):
        return None
    params = equation.params
    if equation.primitive == "dot_general":
        summed = params["dimension_numbers"][0][0 if weights is equation.inputs[0] else 1]
        rows = tuple(summed)
    elif equation.primitive == "conv_general_dilated":
        rows = tuple(axis for axis in range(numbers.ndim) if axis != params["dimension_numbers"].rhs_spec[0])
    else:
        out = numbers.ndim - (2 if params["face"] == "images" else 1)
        kept = {out, 0} if equation.primitive == "windowed_products" else {out}  # members first
        rows = tuple(axis for axis in range(numbers.ndim) if axis not in kept)
    numbers = np.moveaxis(numbers, rows, range(len(rows)))
    return numbers.reshape(math.prod(numbers.shape[: len(rows)]), -1).astype(np.float32, copy=False)


def _adds_up(equation: _Equation, weights: Value) -> bool:
    """Whether each output is a sum of several elements."""
    columns = _by_output(equation, weights)
    return columns is None or bool((np.count_nonzero(columns, axis=0) > 1).all())


def _distinct(equation: _Equation, weights: Value) -> bool:
    """Whether no output is zero or a multiple of another."""
    columns = _by_output(equation, weights)
    if columns is None:
        return True
    rounding = float(jnp.finfo(jnp.result_type(weights.array)).eps)
    return _no_multiples(columns[:_ROWS], rounding) or (len(columns) > _ROWS and _no_multiples(columns, rounding))


def _no_multiples(columns: np.ndarray, rounding: float) -> bool:
    # Multiples have the same direction in any plane; few others have.
    plane = np.random.default_rng(0).normal(size=(2, len(columns))).astype(columns.dtype) @ columns
    if not plane.any(axis=0).all():
        return False
    angles = np.arctan2(*plane) % np.pi
    order = np.argsort(angles)
    gaps = np.diff(angles[order], append=angles[order[0]] + np.pi)
    near = (gaps < max(1e-4, 4 * rounding)) & (len(order) > 1)
    one, other = (columns[:, places[near]].astype(np.float64) for places in (order, np.roll(order, -1)))
    products = [np.einsum("rc,rc->c", left, right) for left, right in ((one, other), (one, one), (other, other))]
    return bool((products[0] ** 2 < (1 - max(1e-9, 8 * rounding**2)) * products[1] * products[2]).all())


def _product_of_data(equation: _Equation, one: Value, other: Value, terms: int) -> _Known:
    if equation.primitive != "dot_general":
        return None
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    if one is other:
        whole = len(contracted) + len(batch) == len(one.shape) and terms > 1
        return Value(None, Kind.SPREAD, "dot_general") if one.kind in LINEAR and whole else None
    low, high = sorted((one, other), key=lambda value: value.kind)
    every = frozenset(range(len(equation.shape)))
    if (low.kind in LINEAR and high.kind == Kind.INVERSE) or (
        low.kind == Kind.CHOICE and high.kind in LINEAR and _agree([low, high])
    ):
        return Value(None, Kind.LINEAR, "", None, dict.fromkeys(_together([low, high]), MIXED), every, every)
    return None


def _terms(equation: _Equation) -> int:
    """How many products are added up in each element of the output."""
    one, weights = equation.inputs
    if equation.primitive == "dot_general":
        return math.prod(one.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
    if equation.primitive == "conv_general_dilated":
        out, *_ = equation.params["dimension_numbers"].rhs_spec
        return math.prod(weights.shape) // weights.shape[out]
    windows = equation.params["windows"]
    channels = one.shape[-1] // windows.groups
    return math.prod(windows.window) * channels


def _follow_choice(equation: _Equation) -> _Known:
    """Linear in the first operand, moved as another says: what pools and their transposes do."""
    value, *choosers = equation.inputs
    if value.kind not in LINEAR or not _agree([value, *choosers]):
        return None
    if any(chooser.kind not in (Kind.CONSTANT, Kind.CHOICE, *LINEAR) for chooser in choosers):
        return None
    forms = {**_changed(value, *(chooser for chooser in choosers if chooser.kind)), CONSTANTS: ZERO}
    return Value(None, Kind.LINEAR, "", None, forms, frozenset(range(len(equation.shape))))


def _scatter_add(equation: _Equation) -> _Known:
    onto, index, updates = equation.inputs
    if any(value.kind not in (Kind.CONSTANT, *LINEAR) for value in (onto, updates)) or index.kind > Kind.CHOICE:
        return None
    held = [value for value in equation.inputs if value.kind]
    if not _agree(held):
        return None
    forms = {**dict.fromkeys(_together(held), MIXED), CONSTANTS: MIXED}
    return Value(None, Kind.LINEAR, "", None, forms, frozenset(range(len(equation.shape))))


def _compare(equation: _Equation) -> _Known:
    one, other = equation.inputs
    if one is other:
        return Value(None)  # whether it is a number at all
    if one.kind and other.kind:
        if one.kind in STATISTICS and other.kind in STATISTICS:
            return Value(None, Kind.CHOICE)
        if one.kind in LINEAR and other.kind in LINEAR and _independent(one, other):
            if CONSTANTS in one.forms or CONSTANTS in other.forms:
                return None
            return Value(None, Kind.CHOICE, forms=_together([one, other]))
        return None
    value, constant = (one, other) if one.kind else (other, one)
    if number_of(constant) in (np.inf, -np.inf):
        return Value(None)
    if value.kind in STATISTICS:
        return Value(None, Kind.CHOICE)
    if value.kind == Kind.SUM:  # a choice by a sum of the data; by the sum's own sign it would be a ReLU or the like
        side = _side(equation.primitive, equation.inputs)
        return Value(None, Kind.BRANCH, equation.name, forms=_changed(value), side=side)
    return None


def _even_power(equation: _Equation, value: Value) -> _Known:
    if value.kind in LINEAR or value.kind in SQUARES:
        kind = Kind.SQUARED_SUM if value.kind in (Kind.SUM, Kind.SQUARED_SUM) else Kind.SQUARE
        name = value.name or equation.name
        return Value(None, kind, name, None, _changed(value), value.repeated, value.copies, nonnegative=True)
    if value.kind in STATISTICS:
        return dataclasses.replace(value, array=None)
    return None


_INVERTED = {Kind.SPREAD: Kind.INVERSE, Kind.DIVISOR: Kind.INVERSE, Kind.INVERSE: Kind.DIVISOR}
_ROOTED = {Kind.SPREAD: Kind.DIVISOR, Kind.DIVISOR: Kind.DIVISOR, Kind.INVERSE: Kind.INVERSE}


def _power(equation: _Equation) -> _Known:
    """Powers and roots, exponentials and logarithms: the functions that normalizations and softmaxes are made of."""
    primitive, value = equation.primitive, equation.inputs[0]
    if primitive in ("exp", "log"):
        made = {
            ("exp", Kind.LOG_SOFTMAX): Kind.SOFTMAX,
            ("log", Kind.SOFTMAX): Kind.LOG_SOFTMAX,
            ("exp", Kind.LOG_SUM): Kind.EXP_SUM,
            ("log", Kind.EXP_SUM): Kind.LOG_SUM,
        }
        if primitive == "exp" and value.kind in LINEAR and CONSTANTS not in value.forms:
            return Value(None, Kind.EXP, equation.name, None, _changed(value), value.repeated, value.copies)
        kind = made.get((primitive, value.kind))
        return None if kind is None else dataclasses.replace(value, array=None, kind=kind)
    if primitive == "abs" and value.kind in (Kind.EXP, Kind.EXP_SUM):
        return dataclasses.replace(value, array=None)
    if primitive in ("square", "abs"):
        return _even_power(equation, value)
    exponent = {"sqrt": 0.5, "rsqrt": -0.5}.get(primitive)
    if primitive == "integer_pow":
        exponent = equation.params["y"]
    elif primitive == "pow":
        exponent = number_of(equation.inputs[1])
    if not value.kind or not exponent:
        return None
    if primitive == "integer_pow" and exponent > 0 and exponent % 2 == 0:
        return _even_power(equation, value)
    if value.kind in SQUARES and exponent > 0:
        return dataclasses.replace(value, array=None, forms=_changed(value))
    kind = (_ROOTED if exponent > 0 else _INVERTED).get(value.kind)
    return None if kind is None else Value(None, kind, value.name)


def _normalize_elementwise(equation: _Equation) -> _Known:
    """Which is passed unchanged, and moves nothing."""
    (value,) = equation.inputs
    if value.kind not in LINEAR:
        return None
    return Value(None, Kind.LINEAR, "", None, _changed(value), value.repeated, value.copies, value.nonnegative)


def _negate(equation: _Equation) -> _Known:
    return _scaled(equation, equation.inputs[0], -1.0, distinct=False)


_KEEPING_AXES = frozenset(
    """convert_element_type copy device_put reduce_precision rev sharding_constraint slice dynamic_slice split
    stop_gradient sort top_k cummax cummin reduce_window_max reduce_window_min reduce_window_sum
    max_with_choice""".split()  # noqa: SIM905
)
_RULES: dict[str, Callable[[_Equation], _Known]] = {
    primitive: rule
    for primitives, rule in (
        (
            """broadcast_in_dim convert_element_type copy device_put dynamic_slice gather reduce_precision reshape rev
            sharding_constraint slice split spread_channels squeeze stop_gradient tile transpose unstack""",
            _move,
        ),
        ("concatenate dynamic_update_slice pad scatter stack", _join_parts),
        ("select_n", _choose_between),
        ("add add_any sub", _add),
        ("mul", _multiply),
        ("div", _divide),
        ("neg", _negate),
        ("max min", _larger),
        (
            "argmax argmin cummax cummin max_with_choice reduce_max reduce_min reduce_window_max reduce_window_min "
            "sort top_k",
            _choose_along,
        ),
        ("reduce_sum reduce_window_sum sum_channels cumsum psum", _sum),
        ("dot_general conv_general_dilated windowed_product windowed_products", _product),
        ("place_in_windows select_in_windows select_and_gather_add select_and_scatter_add", _follow_choice),
        ("scatter-add", _scatter_add),
        ("eq ne lt le gt ge", _compare),
        ("abs exp integer_pow log pow rsqrt sqrt square", _power),
        ("is_finite", lambda _: Value(None)),
        ("local_response_norm", _normalize_elementwise),
    )
    for primitive in primitives.split()
}
