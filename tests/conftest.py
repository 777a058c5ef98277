from pathlib import Path

import jax
import jaxtyping
import pytest

from tests import typechecker

# Before the first import of the package, so that shapes and types in all its signatures are checked in every test.
# Not in `config`: it checks its own fields, and under `jax.vmap` a `Hyperparams` holds arrays in the place of numbers.
_PACKAGE = Path(__file__).parent.parent / "cnnjax"
_CHECKED = [f"cnnjax.{path.stem}" for path in _PACKAGE.iterdir() if path.stem[:2] != "__" and path.stem != "config"]
jaxtyping.install_import_hook(_CHECKED, f"{typechecker.__name__}.checked")


@pytest.fixture(autouse=True)
def types_are_checked(request):
    """Unless the test is marked `wrong_types`: it hands in what a signature does not allow, to see it refused."""
    wrong = request.node.get_closest_marker("wrong_types") is not None
    jaxtyping.config.update("jaxtyping_disable", wrong)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """Many tests compile the same program; in a session what takes long to compile is compiled once a worker.

    Its child processes too, which leave the user's own cache alone with that.
    """
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        yield


@pytest.fixture
def only_on_cpu():
    """For a test of what only a CPU's programs are like."""
    if jax.default_backend() != "cpu":
        pytest.skip("of the forms and the devices that only a CPU has")
