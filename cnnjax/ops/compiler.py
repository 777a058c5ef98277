"""The compiler options of the whole project, in one place, and `jit` with them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

# XLA:CPU sends convolutions to a library (YNN) that reaches half the machine's matrix rate, and a third of that in
# the gradient of a kernel; with this option only reductions go there. Whole steps: LeNet
# 107 -> 72 ms, three convolutions 317 -> 195 ms. Leaving the reductions out too makes a bias gradient 22 times slower.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# For a program that runs once, of which LLVM makes as little as it can: initial weights, every layer with a random
# generator of its own, 2.8 -> 0.8 s (digits), 3.6 -> 1.6 s (photos), with the same bits. A step became 10 % slower.
_CPU_OPTIONS_ONCE = _CPU_OPTIONS | {"xla_backend_optimization_level": 1}


def compiler_options(runs_once: bool = False) -> dict[str, Any]:
    """Options for `jax.jit(..., compiler_options=...)` on the default backend; {} where none help or none are known."""
    return dict(_known_options(jax.default_backend(), runs_once))


def jit(fun: Callable, *, runs_once: bool = False, **kwargs: Any) -> Any:
    """`jax.jit` with this project's compiler options: for whole programs, at the edge.

    `runs_once` is for a program that takes longer to compile than to run.

    JAX takes compiler options only for an outermost `jit`; inside it use `jax.jit`. The first call asks which backend
    there is, so call it where the program is built and not while a module is imported.
    """
    return jax.jit(fun, compiler_options=compiler_options(runs_once), **kwargs)


@functools.cache
def _known_options(backend: str, runs_once: bool) -> dict[str, Any]:
    if backend != "cpu":
        return {}
    options = _CPU_OPTIONS_ONCE if runs_once else _CPU_OPTIONS
    trial = jax.jit(lambda value: value + 1, compiler_options=options)
    try:  # an XLA before jaxlib 0.8.1 refuses options that it does not know
        trial.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays as a called program within the program: XLA fuses nothing into it or out of it."""

    def inside(*args, **params):
        with set_xla_metadata(inlineable="true"):
            return function(*args, **params)

    @functools.wraps(function)
    def called(*args, **params):
        with set_xla_metadata(inlineable="false"):
            return jax.jit(functools.partial(inside, **params))(*args)

    return called
