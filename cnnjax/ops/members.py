"""How the members of a `vmap` run on a CPU: one after another."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from cnnjax.ops import compiler
from cnnjax.ops.precision import sum_dtype


def members_in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of pytrees of arrays, whose `vmap` on a CPU runs the members one after another in one program.

    For large pieces of work, such as the gradient of a whole network. Each member is a called program in a loop, so
    that compile time and temporaries do not grow with the members, and a member's weights are read once out of the
    stacked ones: fused with what uses them, the member's index is computed again for every pixel, which made the
    gradient of max pooling slow. Unrolled and inlined, the temporaries of all members would come anew from the system
    at every call.

    Derivatives, forward and reverse, are functions whose members run in turn too.

    On a GPU or TPU, and without `vmap`, it is `function` itself. The value is the same up to rounding.
    """

    @functools.wraps(function)
    def chosen(*args):
        if jax.default_backend() != "cpu":
            return function(*args)
        leaves, tree = jax.tree.flatten(args)
        result_tree = None

        def flat(*leaves):
            nonlocal result_tree
            results, result_tree = jax.tree.flatten(function(*jax.tree.unflatten(tree, leaves)))
            return results

        results = _in_turn(flat, *leaves)
        assert result_tree is not None  # `flat` has been traced
        return jax.tree.unflatten(result_tree, results)

    return chosen


# A function of arrays, given as a jaxpr, that is called as it is until a `vmap` meets it.
_in_turn_p = core.Primitive("members_in_turn")
_in_turn_p.multiple_results = True


def _in_turn(function: Callable[..., Any], *operands) -> list[jax.Array]:
    """`function`, which returns a list of arrays; what it closes over becomes an operand."""
    closed = jax.make_jaxpr(function)(*operands)
    return _in_turn_p.bind(*closed.consts, *operands, jaxpr=closed.jaxpr, consts=len(closed.consts))


def _call(*operands, jaxpr: core.Jaxpr, consts: int) -> list[jax.Array]:
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, operands[:consts]))(*operands[consts:])


@_in_turn_p.def_abstract_eval
def _abstract(*_, jaxpr: core.Jaxpr, consts: int):
    return [variable.aval for variable in jaxpr.outvars]


_in_turn_p.def_impl(_call)
mlir.register_lowering(_in_turn_p, mlir.lower_fun(_call, multiple_results=True))


def _batch(operands, axes, **params):
    members = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    # A derivative by a shared operand is a sum over the members.
    operands = [
        jnp.asarray(operand, sum_dtype(operand.dtype)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    dtypes = [variable.aval.dtype for variable in (*params["jaxpr"].constvars, *params["jaxpr"].invars)]

    def one(member):
        own = [
            operand.astype(dtype) if axis is None else lax.dynamic_index_in_dim(operand, member, keepdims=False)
            for operand, axis, dtype in zip(operands, axes, dtypes, strict=True)
        ]
        return compiler.isolated(functools.partial(_in_turn_p.bind, **params))(*own)

    outputs = lax.map(one, jnp.arange(members))
    return outputs, [0] * len(outputs)


def _jvp(primals, tangents, **params):
    """Of the operands that move: their linearization, whose intermediate values go from one function to the other."""
    moves = [not isinstance(tangent, ad.Zero) for tangent in tangents]
    tangents = [tangent for tangent, moving in zip(tangents, moves, strict=True) if moving]
    avals = [variable.aval for variable in params["jaxpr"].outvars]
    smooth = [jnp.issubdtype(aval.dtype, jnp.inexact) for aval in avals]
    linear_jaxpr: Any = None

    def linearized(*primals):
        nonlocal linear_jaxpr
        moving = [primal for primal, moves_ in zip(primals, moves, strict=True) if moves_]

        def of_moving(*moving):
            outputs = _call(*_merged(moves, moving, primals), **params)
            return _where(smooth, outputs), outputs

        _, linear, outputs = jax.linearize(of_moving, *moving, has_aux=True)
        closed = jax.make_jaxpr(linear)(*moving)
        linear_jaxpr = closed.jaxpr
        return [*outputs, *closed.consts]

    results = _in_turn(linearized, *primals)
    outputs, middle = results[: len(avals)], results[len(avals) :]
    changes = iter(_in_turn_p.bind(*middle, *tangents, jaxpr=linear_jaxpr, consts=len(middle)))
    zeros = (ad.Zero(aval.to_tangent_aval()) for aval in avals)
    return outputs, [next(changes) if known else zero for known, zero in zip(smooth, zeros, strict=True)]


def _transpose(cotangents, *operands, **params):
    """By the operands in which the function is linear; the others are known."""
    linear = [ad.is_undefined_primal(operand) for operand in operands]
    avals = [operand.aval for operand, unknown in zip(operands, linear, strict=True) if unknown]
    known = [operand for operand, unknown in zip(operands, linear, strict=True) if not unknown]
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]

    def transposed(*known_and_cotangents):
        known, cotangents = known_and_cotangents[: len(linear) - len(avals)], known_and_cotangents[-len(avals_out) :]

        def of_linear(*unknown):
            merged = _merged(linear, unknown, _merged([not one for one in linear], known, [None] * len(linear)))
            return _call(*merged, **params)

        return list(jax.linear_transpose(of_linear, *avals)(list(cotangents)))

    avals_out = params["jaxpr"].outvars
    results = iter(_in_turn(transposed, *known, *cotangents))
    return [next(results) if unknown else None for unknown in linear]


def _where(chosen, values):
    return [value for value, here in zip(values, chosen, strict=True) if here]


def _merged(chosen, values, others):
    """`others` with `values`, in order, in the chosen places."""
    values = iter(values)
    return [next(values) if here else other for here, other in zip(chosen, others, strict=True)]


batching.primitive_batchers[_in_turn_p] = _batch
ad.primitive_jvps[_in_turn_p] = _jvp
ad.primitive_transposes[_in_turn_p] = _transpose
