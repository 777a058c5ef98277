"""The compiler options of the whole project, in one place, and `jit` with them."""

import contextlib
import contextvars
import functools
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from cnnjax.ops import placement

# XLA:CPU sends convolutions and reductions to a library (YNN); this switches it off. In reductions it is wrong: sums
# over the product of a broadcast constant and something else come out at a fraction of their value, from about a
# thousand rows on (jax-ml/jax #39103), and some of rank 7 and 8 crash (#39257). In convolutions it reaches half the
# machine's matrix rate. XLA's own sum over leading axes is slow, hence `add_bias`.
_CPU_OPTIONS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
# XLA contains oneDNN's convolution from jaxlib 0.12 on; one before knows the option and does nothing with it.
_ONEDNN: dict[str, Any] = {"xla_cpu_experimental_onednn_custom_call": True}
# For a program that runs once, of which LLVM makes as little as it can, with the same bits.
_ONCE: dict[str, Any] = {"xla_backend_optimization_level": 1}

# jaxlib whose default options compute wrong sums on a CPU: those of which the reproducer in docs/operations.md was run.
WRONG_BY_DEFAULT = ("0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1")

_options_were_asked_for = False  # by the user of this package, in any way
_compiled_by_us = contextvars.ContextVar("_compiled_by_us", default=False)
_lowers_for_onednn = contextvars.ContextVar("_lowers_for_onednn", default=False)

_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"  # of compiling, for JAX to keep a program
_keeping, _unkept, _kept_from = threading.Lock(), 0, 0.0


def compiler_options(runs_once: bool = False) -> dict[str, Any]:
    """Options for `jax.jit(..., compiler_options=...)` on the default backend; {} where none help or none are known."""
    global _options_were_asked_for
    _options_were_asked_for = True
    return dict(_known_options(jax.default_backend(), runs_once))


def jit(fun: Callable, *, runs_once: bool = False, onednn: bool = False, **kwargs: Any) -> Any:
    """`jax.jit` with this project's compiler options: for whole programs, at the edge.

    JAX takes compiler options only for an outermost `jit`; inside it use `jax.jit`. The first call asks which backend
    there is, so call it where the program is built and not while a module is imported.

    Args:
        runs_once: the program takes longer to compile than to run.
        onednn: on a CPU, where XLA has oneDNN's convolution, use it. Such a program runs faster, and is compiled anew
            in every process: XLA cannot write it down, so JAX's persistent compilation cache does not get it.
        kwargs: as `jax.jit` takes them.
    """
    if onednn and jax.default_backend() == "cpu" and has_onednn():
        return _ByOneDNN(fun, compiler_options() | _ONEDNN, kwargs)
    return jax.jit(fun, compiler_options=compiler_options(runs_once), **kwargs)


class _ByOneDNN:
    """A program by oneDNN: called, or lowered and compiled, as `jax.jit`'s."""

    def __init__(self, fun: Callable, options: dict[str, Any], kwargs: dict[str, Any]):
        @functools.wraps(fun)
        def own(*args, **static):  # of its own, since JAX keeps by function what it has lowered otherwise
            return fun(*args, **static)

        self._jitted = jax.jit(own, compiler_options=options, **kwargs)
        functools.update_wrapper(self, fun)

    def __call__(self, *args, **kwargs):
        with _by_onednn():
            return self._jitted(*args, **kwargs)

    def lower(self, *args, **kwargs) -> "_Lowered":
        with _by_onednn():
            return _Lowered(self._jitted.lower(*args, **kwargs))


class _Lowered:
    """What `lower` gives, as far as it is used: its text, and the compiled program."""

    def __init__(self, lowered: Any):
        self._lowered = lowered

    def as_text(self) -> str:
        return self._lowered.as_text()

    def compile(self) -> Any:
        with _by_onednn():
            return self._lowered.compile()


@contextlib.contextmanager
def _by_onednn() -> Iterator[None]:
    """Convolutions that are lowered within are for oneDNN, and no program that is compiled within is kept.

    XLA cannot write one down: it asks for impossible memory (jaxlib 0.12.0.1), so JAX must not try.
    """
    global _unkept, _kept_from
    token = _lowers_for_onednn.set(True)
    with _keeping:
        _unkept += 1
        if _unkept == 1:
            _kept_from = jax.config.values[_LEAST_SECONDS]
            jax.config.update(_LEAST_SECONDS, math.inf)
    try:
        yield
    finally:
        with _keeping:
            _unkept -= 1
            if _unkept == 0:
                jax.config.update(_LEAST_SECONDS, _kept_from)
        _lowers_for_onednn.reset(token)


def lowers_for_onednn() -> bool:
    """Whether what is lowered now is compiled with oneDNN's convolution."""
    return _lowers_for_onednn.get()


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


def options_of_user() -> tuple[str, ...]:
    """The options of ours that `XLA_FLAGS` gives a value of its own, which holds, by name."""
    given = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return tuple(name for name in _CPU_OPTIONS | _ONEDNN | _ONCE if name in given)


@functools.cache
def _known_options(backend: str, runs_once: bool) -> dict[str, Any]:
    if backend != "cpu":
        return {}
    wanted = _CPU_OPTIONS | _ONCE if runs_once else _CPU_OPTIONS
    options = {name: value for name, value in wanted.items() if name not in options_of_user()}
    trial = jax.jit(lambda value: value + 1, compiler_options=options)
    try:  # an XLA before jaxlib 0.8.1 refuses options that it does not know
        trial.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


@functools.cache
def has_onednn() -> bool:
    """Whether XLA:CPU gives convolutions to oneDNN where it is asked to: with a jaxlib from 0.12 on, for x86."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    images, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in ((1, 8, 8, 8), (3, 3, 8, 8))
    )

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    options = _known_options("cpu", False)
    if _ONEDNN.keys() & set(options_of_user()):
        return False
    with _by_onednn():
        trial = jax.jit(convolve, compiler_options=options | _ONEDNN).lower(images, kernel)
        try:  # as in `_known_options`
            trial = trial.compile()
        except jax.errors.JaxRuntimeError:
            return False
    return "__onednn$convolution" in (trial.as_text() or "")


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
    lower = placement.lowering(form, multiple_results=multiple_results)

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
