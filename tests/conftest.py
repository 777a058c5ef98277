import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """Many tests compile the same program; in a session what takes long to compile is compiled once a worker."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def only_on_cpu():
    """For a test of what only a CPU's programs are like."""
    if jax.default_backend() != "cpu":
        pytest.skip("of the forms and the devices that only a CPU has")
