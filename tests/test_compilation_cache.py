"""Programs compiled once are there at the next start: whole ones only, and no others than those of this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cnnjax import compilation_cache
from cnnjax.compilation_cache import compiled_programs_kept, seal, tidy

ROOT = Path(__file__).parent.parent
# As a script does: a program that takes XLA a moment, and what JAX says of the cache.
SCRIPT = """
import sys, jax, jax.monitoring, jax.numpy as jnp
from cnnjax import cli, compilation_cache
compilation_cache.SECONDS = 0.0
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
sys.argv = ["script"]
def main(_, progress):
    print(float(jax.jit(lambda x: jnp.sort(jnp.sin(x) @ x))(jnp.ones((9, 9)))[4, 4]))
cli.run(main)
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def started(home, **environment):
    variables = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], env=variables, cwd=home, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    value, (hits, misses) = float(ended.stdout.split()[0]), map(int, ended.stdout.split()[1:])
    return value, hits, misses, ended.stderr


def test_the_second_start_compiles_nothing_and_a_damaged_entry_is_compiled_anew(tmp_path):
    value, hits, misses, said = started(tmp_path)
    assert hits == 0 and misses > 0 and said == ""
    assert started(tmp_path) == (value, misses, 0, "")
    (entry,) = tmp_path.rglob("jit__lambda*-cache")
    code = bytearray(entry.read_bytes())
    code[len(code) // 2] ^= 1
    entry.write_bytes(bytes(code))
    assert started(tmp_path) == (value, misses - 1, 1, "")
    (tmp_path / "cnnjax").rename(tmp_path / "moved")
    (tmp_path / "cnnjax").write_text("no folder")
    value_without, hits, misses, said = started(tmp_path)
    assert (value_without, hits) == (value, 0)
    assert said.startswith("compiled programs cannot be kept, so every start compiles them anew: ")
    assert started(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[-1] == ""


@pytest.fixture
def entries(tmp_path):
    place = tmp_path / "compiled" / "key"
    place.mkdir(parents=True)
    for number in range(4):
        (place / f"program{number}-cache").write_bytes(bytes(100))
    seal(place)
    return place


def names(place):
    return sorted(path.name for path in place.iterdir())


def test_what_is_damaged_or_without_its_digest_is_removed_and_no_more_is_kept_than_fits(entries, monkeypatch):
    whole = names(entries)
    tidy(entries)
    assert names(entries) == whole and len(whole) == 8
    (entries / "program0-cache").write_bytes(bytes(99) + b"x")
    (entries / "program1-cache.sha256").unlink()
    tidy(entries)
    assert names(entries) == [name for name in whole if name[7] in "23"]
    shutil.copytree(entries, entries.with_name("older"))
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 250)
    for number, name in enumerate(("program2-cache", "program3-cache")):
        os.utime(entries / name, (10**9 + number, 10**9 + number))
        os.utime(entries.with_name("older") / name, (10**8 + number, 10**8 + number))
    tidy(entries)
    assert names(entries) == [name for name in whole if name[7] in "23"] and names(entries.with_name("older")) == []
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 150)
    tidy(entries)
    assert names(entries) == [name for name in whole if name[7] == "3"]


def test_a_cache_of_the_users_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir  # the tests' own
    assert before is not None
    with compiled_programs_kept(print):
        assert jax.config.jax_compilation_cache_dir == before
    assert names(tmp_path) == []


@pytest.mark.parametrize("flag, kept", [("", True), ("=true", False), ("=1 --xla_foo=2", False), ("=false", True)])
def test_nothing_is_kept_where_the_user_asks_for_onednn_throughout(tmp_path, monkeypatch, flag, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_experimental_onednn_custom_call{flag}" if flag else "")
    before, told = jax.config.jax_compilation_cache_dir, []
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with compiled_programs_kept(told.append):
            assert (jax.config.jax_compilation_cache_dir is not None) == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert len(told) == (not kept)


def test_another_processor_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compilation_cache.folder()
    monkeypatch.setattr(compilation_cache, "machine", lambda: {"processor": "another"})
    assert compilation_cache.folder().parent == here.parent and compilation_cache.folder() != here
