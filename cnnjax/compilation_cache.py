"""Compiled programs kept from one start of a script to the next, by JAX's persistent compilation cache.

`~/.cache/cnnjax/compiled/KEY/` (or below XDG_CACHE_HOME) holds the entries; the key is a hash of everything that
machine code depends on besides the program: versions, processor, cores, settings. So no processor is given the code of
another one. JAX checks no entry it reads; here beside each stands its SHA-256, written when the script that made it
ends, and an entry without its right digest is removed before JAX can see it.

Whoever sets JAX_COMPILATION_CACHE_DIR has JAX's own cache there, as JAX keeps it, and whoever sets
JAX_ENABLE_COMPILATION_CACHE=false has none.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from cnnjax.atomic import write_text
from cnnjax.environment import machine
from cnnjax.paths import expanded

MOST_BYTES = 1 << 30  # of all entries; beyond it the oldest go
SECONDS = 0.1  # what compiles faster is not worth a file


def folder() -> Path:
    """Where the programs of this machine, these versions and these settings are kept. Raises OSError without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    key = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:16]
    return expanded(base) / "cnnjax" / "compiled" / key


@contextlib.contextmanager
def compiled_programs_kept(say: Callable[[str], None]) -> Iterator[None]:
    """Within it JAX reads and keeps compiled programs, unless the user has a cache of their own, or wants none.

    Args:
        say: told in one line if they cannot be kept; then everything is compiled anew.
    """
    if (
        jax.config.values["jax_compilation_cache_dir"] is not None
        or not jax.config.values["jax_enable_compilation_cache"]
    ):
        yield
        return
    if re.search(r"--xla_cpu_experimental_onednn_custom_call(=true|=1|\s|$)", os.environ.get("XLA_FLAGS", "")):
        say("compiled programs are not kept, since XLA_FLAGS asks for oneDNN, whose programs XLA cannot write down")
        yield
        return
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        tidy(place)
    except OSError as error:
        say(f"compiled programs cannot be kept, so every start compiles them anew: {error}")
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(place),
        "jax_persistent_cache_min_compile_time_secs": SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        with contextlib.suppress(OSError):  # what has no digest is compiled again
            seal(place)


def tidy(place: Path) -> None:
    """Removes what is damaged or left by a process that was killed; of all folders the oldest beyond MOST_BYTES."""
    for entry in _entries(place):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if not _digest_of(entry).exists() or _digest_of(entry).read_bytes() != _digest(entry):
                _remove(entry)
    found = []
    for entry in (entry for other in place.parent.iterdir() for entry in _entries(other)):
        with contextlib.suppress(FileNotFoundError):
            found.append((entry.stat().st_mtime, entry.stat().st_size, entry))
    left = MOST_BYTES
    for _, size, entry in sorted(found, reverse=True):
        left -= size
        if left < 0:
            _remove(entry)


def _remove(entry: Path) -> None:
    entry.unlink(missing_ok=True)
    _digest_of(entry).unlink(missing_ok=True)


def seal(place: Path) -> None:
    """Writes the digest of each entry that has none."""
    for entry in _entries(place):
        if not _digest_of(entry).exists():
            write_text(_digest_of(entry), _digest(entry).decode())


def _entries(place: Path) -> list[Path]:
    return sorted(place.glob("*-cache"))


def _digest_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.sha256")


def _digest(entry: Path) -> bytes:
    with open(entry, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()
