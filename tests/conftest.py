import os

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """Many tests compile the same program; it is compiled once a session, whatever the number of workers."""
    base = tmp_path_factory.getbasetemp()
    of_all_workers = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(of_all_workers / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
