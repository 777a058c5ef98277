"""JAX's settings that decide a number, at their defaults while a script or a training runs.

They may come from the environment (JAX_ENABLE_X64=1 in a shell's profile) or from `jax.config`, and would change the
bits of a result, or stop it on its way, without a word.
"""

import contextlib
from collections.abc import Iterator

import jax

# Those for which JAX has no context manager; a version that does not know one has nothing to hold.
_GLOBAL = {
    "jax_accurate_erf_inv": False,
    "jax_use_direct_linearize": True,
    "jax_use_hlo_logistic_lowering": None,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_memory_fitting_level": "O2",
}


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Holds the settings, also against a `with jax.enable_x64(True)` around it; also as `@pinned()` on a function.

    A not-a-number is answered by the training itself, so JAX does not look for one.
    """
    before = {name: jax.config.values[name] for name in _GLOBAL if name in jax.config.values}
    with contextlib.ExitStack() as stack:
        for context in (
            jax.enable_x64(False),
            jax.threefry_partitionable(True),
            jax.default_prng_impl("threefry2x32"),
            jax.default_matmul_precision(None),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.softmax_custom_jvp(False),
            jax.allow_f16_reductions(True),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.disable_jit(False),
            jax.transfer_guard("allow"),
        ):
            stack.enter_context(context)
        for name, value in before.items():
            jax.config.update(name, _GLOBAL[name])
            stack.callback(jax.config.update, name, value)
        yield
