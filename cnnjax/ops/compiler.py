"""The compiler options of the whole project, in one place, and `jit` with them."""

import contextvars
import functools
import os
import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import mlir

# XLA:CPU sends convolutions and reductions to a library (YNN); this switches it off. In reductions it is wrong: sums
# over the product of a broadcast constant and something else come out at a fraction of their value, from about a
# thousand rows on (jax-ml/jax #39103), and some of rank 7 and 8 crash (#39257). In convolutions it reaches half the
# machine's matrix rate, and a third of that in the gradient of a kernel: whole steps of LeNet 107 -> 72 ms, of three
# convolutions 317 -> 195 ms. XLA's own sum over leading axes is 4 to 8 times slower, hence `add_bias`.
_CPU_OPTIONS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
# For a program that runs once, of which LLVM makes as little as it can: initial weights, every layer with a random
# generator of its own, 2.8 -> 0.8 s (digits), 3.6 -> 1.6 s (photos), with the same bits. A step became 10 % slower.
_ONCE: dict[str, Any] = {"xla_backend_optimization_level": 1}

# jaxlib whose default options compute wrong sums on a CPU: those of which the reproducer in README was run.
WRONG_BY_DEFAULT = ("0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1")

_options_were_asked_for = False  # by the user of this package, in any way
_compiled_by_us = contextvars.ContextVar("_compiled_by_us", default=False)


def compiler_options(runs_once: bool = False) -> dict[str, Any]:
    """Options for `jax.jit(..., compiler_options=...)` on the default backend; {} where none help or none are known."""
    global _options_were_asked_for
    _options_were_asked_for = True
    return dict(_known_options(jax.default_backend(), runs_once))


def jit(fun: Callable, *, runs_once: bool = False, **kwargs: Any) -> Any:
    """`jax.jit` with this project's compiler options: for whole programs, at the edge.

    `runs_once` is for a program that takes longer to compile than to run.

    JAX takes compiler options only for an outermost `jit`; inside it use `jax.jit`. The first call asks which backend
    there is, so call it where the program is built and not while a module is imported.
    """
    return jax.jit(fun, compiler_options=compiler_options(runs_once), **kwargs)


def fault_of_defaults() -> str | None:
    """One line that says what the installed jaxlib's default options compute wrong; None where nothing is known.

    Where an operation of this package is compiled on a CPU by a process that has asked for `jit` or `compiler_options`
    nowhere, the line is given once as a warning.
    """
    switched_off = re.search(r"xla_cpu_experimental_ynn_fusion_type=(-reduce)?(\s|$)", os.environ.get("XLA_FLAGS", ""))
    if version("jaxlib") not in WRONG_BY_DEFAULT or switched_off:
        return None
    return (
        f"jaxlib {version('jaxlib')} computes some sums wrong on a CPU (jax-ml/jax #39103): compile with ops.jit, or "
        "with jax.jit(..., compiler_options=ops.compiler_options())"
    )


@functools.cache
def _known_options(backend: str, runs_once: bool) -> dict[str, Any]:
    if backend != "cpu":
        return {}
    options = _CPU_OPTIONS | _ONCE if runs_once else _CPU_OPTIONS
    trial = jax.jit(lambda value: value + 1, compiler_options=options)
    try:  # an XLA before jaxlib 0.8.1 refuses options that it does not know
        trial.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation that is called outside any `jit`: a program of its own, with our options."""
    compiled = jax.jit(function, compiler_options=_known_options(jax.default_backend(), False))

    @functools.wraps(function)
    def called(*operands):
        token = _compiled_by_us.set(True)
        try:
            return compiled(*operands)
        finally:
            _compiled_by_us.reset(token)

    return called


def cpu_lowering(form: Callable[..., Any], *, multiple_results: bool = False) -> Callable[..., Any]:
    """How a primitive becomes `form` in a program for a CPU; warns where its user does not know of the options."""
    lower = mlir.lower_fun(form, multiple_results=multiple_results)

    def rule(context, *operands, **params):
        global _options_were_asked_for
        fault = None if _options_were_asked_for or _compiled_by_us.get() else fault_of_defaults()
        if fault is not None:
            _options_were_asked_for = True  # said once
            warnings.warn(fault, stacklevel=2)
        return lower(context, *operands, **params)

    return rule


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
