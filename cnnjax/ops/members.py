"""How the members of a `vmap` run on a CPU: one after another."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from cnnjax.ops import compiler


def members_in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of pytrees of arrays, whose `vmap` on a CPU runs the members one after another in one program.

    For large pieces of work, such as the gradient of a whole network. Each member is a called program in a loop, so
    that compile time and temporaries do not grow with the members, and a member's weights are read once out of the
    stacked ones: fused with what uses them, the member's index is computed again for every pixel, which made the
    gradient of max pooling 8 times slower. A training step of a small LeNet (5x5xW, pool, 5x5x2W, pool, dense 64;
    batch 64) over 8 members costs, a member, of a single training's step: W = 8 0.96 to 1.08, W = 16 0.95 to 1.13
    (several runs on two busy cores; 0.88 and 1.0 on one). Unrolled and inlined it was 1.3 and 1.2: half of the excess
    were page faults, since the temporaries of all members (40 and 63 MB) come anew from the system at every call.

    On a GPU or TPU, and without `vmap`, it is `function` itself. The value is the same up to rounding.
    """

    @custom_vmap
    def in_turn(*args):
        return function(*args)

    @in_turn.def_vmap
    def rule(axis_size, in_batched, *args):
        def one(member):
            own = jax.tree.map(
                lambda leaf, batched: lax.dynamic_index_in_dim(leaf, member, keepdims=False) if batched else leaf,
                args,
                tuple(in_batched),
            )
            return compiler.isolated(in_turn)(*own)

        outputs = lax.map(one, jnp.arange(axis_size))
        return outputs, jax.tree.map(lambda _: True, outputs)

    @functools.wraps(function)
    def chosen(*args):
        return in_turn(*args) if jax.default_backend() == "cpu" else function(*args)

    return chosen
