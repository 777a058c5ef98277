"""Every ReLU of a function: its output, or something added to it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cnnjax.errors import InputError
from cnnjax.tracing.walk import Walk, rectify, transformed


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
            rectified = rectify(x, most)
            maps[which] = x if before else rectified
            return rectified

        output = transformed(function, args, Walk(relu, strict=False, loops=False))
        return output, list(maps.values())

    return kept


def unbounded_maps_of(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[int, Array]]]:
    """The function of the same arguments that returns (output, {number: map}), an entry a ReLU with a bound.

    The map is what the ReLU would let pass without its bound; `function` itself keeps it. Numbers count all ReLUs, from
    0, as `feature_maps_of` has them.
    """

    def kept(*args):
        maps: dict[int, Array] = {}
        numbers: dict[object, int] = {}

        def relu(x, most, which):
            number = numbers.setdefault(which, len(numbers))
            if most is not None:
                maps[number] = jax.nn.relu(x)
            # As a walk of what comes out knows it again.
            return jax.nn.relu(x) if most is None else jnp.minimum(jax.nn.relu(x), most)

        return transformed(function, args, Walk(relu, strict=False, loops=False)), maps

    return kept


def named_feature_maps_of(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """As `feature_maps_of`, the maps by name: the scopes (`jax.named_scope`, a Flax module's name) and a number.

    The scope that all are in is left out; numbers count the ReLUs of a scope, from 1, where it has several.
    """

    def kept(*args):
        maps: dict[object, Array] = {}
        scopes: dict[object, list[str]] = {}

        def relu(x, most, which):
            maps[which] = rectify(x, most)
            scopes[which] = [part for scope in walk.scope for part in scope.split("/") if part]
            return maps[which]

        walk = Walk(relu, strict=False, loops=False)
        output = transformed(function, args, walk)
        return output, dict(zip(_names(list(scopes.values())), maps.values(), strict=True))

    return kept


def _names(scopes: list[list[str]]) -> list[str]:
    while scopes and all(scope and scope[0] == scopes[0][0] for scope in scopes):
        scopes = [scope[1:] for scope in scopes]
    joined = [".".join(scope) for scope in scopes]
    names = []
    for place, scope in enumerate(joined):
        number = joined[: place + 1].count(scope)
        several = joined.count(scope) > 1 or not scope
        names.append(".".join(part for part in (scope, f"relu{number}" if several else "") if part))
    return names


def with_offset(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function of (offset, *arguments) that adds `offset` to the output of ReLU `number`, counted from 0.

    Its derivative by the offset, at zero, is that by this feature map.

    Raises:
        InputError: as `feature_maps_of`; when called, for a number that no ReLU has.
    """

    def moved(offset, *args):
        numbers: dict[object, int] = {}

        def relu(x, most, which):
            rectified = rectify(x, most)
            return rectified + offset if numbers.setdefault(which, len(numbers)) == number else rectified

        output = transformed(function, args, Walk(relu, strict=False, loops=False))
        if not 0 <= number < len(numbers):
            raise InputError(f"number must be that of a ReLU, 0 to {len(numbers) - 1}, got {number}")
        return output

    return moved
