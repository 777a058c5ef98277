"""Any function in segments of which the backward pass computes the inside again, rather than keep it.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cnnjax import ops


def in_segments(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same function, of whose backward pass `count` segments, one at a time, hold their inside.

    A segment is a run of the equations that the function is made of; all make about as many bytes, and the cuts are
    where few have to be kept. The last segment, whose backward pass comes first, is not computed twice. What stands in
    one call (`jit`, a loop) is not cut. Functions of fewer equations have fewer segments.

    Args:
        function: pure, of pytrees of arrays.
    """
    if count == 1:
        return function

    def called(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        known.update(zip(jaxpr.invars, jax.tree.leaves(args), strict=True))
        bounds = [0, *_cuts(jaxpr, count), len(jaxpr.eqns)]
        for start, stop in itertools.pairwise(bounds):
            reads, writes = _interface(jaxpr, start, stop)
            part = jaxpr.replace(constvars=[], invars=reads, outvars=writes, eqns=jaxpr.eqns[start:stop])
            segment = core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))
            segment = segment if stop == len(jaxpr.eqns) else jax.checkpoint(segment)
            known.update(zip(writes, segment(*(known[variable] for variable in reads)), strict=True))
        outputs = [v.val if isinstance(v, core.Literal) else known[v] for v in jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return called


@functools.cache
def computes_again() -> bool:
    """Whether XLA on this backend computes segments again; that of jaxlib 0.10 on a CPU finds that it need not."""

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(16):
            x = jnp.tanh(x @ x)
        return x

    def needed(count: int) -> int:
        gradient = jax.grad(lambda x: jnp.sum(in_segments(chain, count)(x)))
        program = ops.jit(gradient, runs_once=True).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
        analysis = program.memory_analysis()
        return 0 if analysis is None else analysis.temp_size_in_bytes

    return needed(4) <= needed(1)


def _cuts(jaxpr: core.Jaxpr, count: int) -> list[int]:
    """The places between equations at which segments meet, in ascending order."""
    made = np.cumsum([sum(map(_bytes, equation.outvars)) for equation in jaxpr.eqns])
    kept = _kept_at(jaxpr)
    cuts = []
    for number in range(1, count):
        low, high = np.searchsorted(made, made[-1] * (np.array([number - 0.5, number + 0.5]) / count), side="right")
        low = max(low, cuts[-1] + 1 if cuts else 1)
        places = range(low, max(min(high, len(jaxpr.eqns) - 1), low) + 1)
        if places[-1] < len(jaxpr.eqns):
            cuts.append(min(places, key=lambda place: kept[place]))
    return cuts


def _kept_at(jaxpr: core.Jaxpr) -> list[int]:
    """For each place between equations the bytes that are made before it and used behind it."""
    last = {v: place for place, equation in enumerate(jaxpr.eqns) for v in _variables(equation.invars)}
    changes = [0] * (len(jaxpr.eqns) + 1)
    for place, equation in enumerate(jaxpr.eqns):
        for variable in equation.outvars:
            if last.get(variable, -1) > place:
                changes[place + 1] += _bytes(variable)
                changes[last[variable] + 1] -= _bytes(variable)
    return list(itertools.accumulate(changes))


def _interface(jaxpr: core.Jaxpr, start: int, stop: int) -> tuple[list[Any], list[Any]]:
    """What the equations from `start` to `stop` take from outside, and what others, or the caller, take from them."""
    inside = jaxpr.eqns[start:stop]
    made = dict.fromkeys(variable for equation in inside for variable in equation.outvars)
    reads = dict.fromkeys(v for equation in inside for v in _variables(equation.invars) if v not in made)
    later = {v for equation in jaxpr.eqns[stop:] for v in _variables(equation.invars)}
    later |= set(_variables(jaxpr.outvars))
    return list(reads), [variable for variable in made if variable in later]


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _bytes(variable: Any) -> int:
    return math.prod(variable.aval.shape) * getattr(variable.aval.dtype, "itemsize", 8)
