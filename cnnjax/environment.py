"""What the bits of a training depend on besides its config and its data: recorded, and compared when it goes on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import cnnjax
from cnnjax.ops.compiler import compiler_options, fault_of_defaults, options_of_user
from cnnjax.settings import pinned

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
# As a training has them: most that decide a number are held by `settings.pinned`.
_JAX_SETTINGS = (
    *("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset", "jax_enable_x64"),
    "jax_exec_time_optimization_effort",
)
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC", "PJRT_NPROC")  # XLA takes its number of threads from NPROC
_VECTORS = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "neon", "sve", "bf16", "i8mm")


@pinned()
def environment() -> dict[str, Any]:
    """Versions, devices, cores, processor, and the settings of JAX and XLA; what JSON can hold."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return machine() | {"device": device, "compiler_options": compiler_options()}


@pinned()
def machine() -> dict[str, Any]:
    """`environment` but for the devices, which JAX begins when it is asked for them."""
    return {
        "versions": {"cnnjax": cnnjax.__version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "cores": usable_cores(),
        "processor": _processor(),
        "settings": {name: getattr(jax.config, name, None) for name in _JAX_SETTINGS},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def flags_of_user() -> str | None:
    """One line that says which compiler options of ours the user's XLA_FLAGS give another value; None if none."""
    named = options_of_user()
    if not named:
        return None
    guards = "xla_cpu_experimental_ynn_fusion_type" in named and fault_of_defaults() is not None
    wrong = "; some sums come out wrong with it" if guards else ""
    return f"XLA_FLAGS holds for {', '.join(named)}, otherwise set here on a CPU{wrong}"


def usable_cores() -> int:
    """Those that this process may use, where the system tells it; XLA on a CPU starts as many threads.

    A container's share of the time of a core is not among it: XLA does not look at that.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> dict[str, Any]:
    """Model, vector instructions, sizes of the caches: by these XLA and Eigen choose instructions and blocks."""
    found: dict[str, Any] = {"machine": platform.machine(), "model": platform.processor()}
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return found
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found["model"] = " ".join(said[name] for name in ("model name", "cpu family", "model", "CPU part") if name in said)
    features = said.get("flags", said.get("Features", "")).split()
    found["vectors"] = sorted(name for name in features if name.startswith(_VECTORS))
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    found["caches"] = [path.read_text().strip() for path in caches]
    return found


def changes(here: dict[str, Any], there: Any) -> list[str]:
    """One text a thing that is recorded there and is another here: "cores: 1 here, 2 there"."""
    there = there if isinstance(there, dict) else {}
    ours = _flat(here)
    theirs = _flat({name: value for name, value in there.items() if name in here})
    known = {name for name in ours.keys() | theirs.keys() if name.partition(".")[0] in there}
    return [
        f"{name}: {ours.get(name)} here, {theirs.get(name)} there"
        for name in sorted(known)
        if ours.get(name) != theirs.get(name)
    ]


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """By dotted name, two levels deep."""
    return {
        f"{name}.{inner}" if inner else name: leaf
        for name, value in tree.items()
        for inner, leaf in (value.items() if isinstance(value, dict) else {"": value}.items())
    }
