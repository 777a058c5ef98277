import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.ops import compiler


@pytest.fixture(autouse=True)
def forget():
    compiler._known_options.cache_clear()
    yield
    compiler._known_options.cache_clear()


def test_options_are_for_the_cpu_and_for_an_xla_that_knows_them(monkeypatch):
    assert set(ops.compiler_options()) <= {"xla_cpu_experimental_ynn_fusion_type"}
    once = set(ops.compiler_options(runs_once=True)) - set(ops.compiler_options())
    assert once == ({"xla_backend_optimization_level"} if jax.default_backend() == "cpu" else set())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops.compiler_options() == ops.compiler_options(runs_once=True) == {}


def test_an_unknown_option_is_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert ops.compiler_options() == {}
    assert ops.jit(lambda x: x + 1)(1) == 2


LINE = "jaxlib 0.10.2 computes some sums wrong on a CPU (jax-ml/jax #39103): compile with ops.jit, or with "


@pytest.mark.parametrize("version, flags, faulty", [
    ("0.10.1", "", False), ("0.10.2", "", True), ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=", False),
    ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=reduce", True),
])  # fmt: skip
def test_a_version_whose_defaults_are_wrong_is_named_once_to_who_uses_them(monkeypatch, version, flags, faulty):
    monkeypatch.setattr(compiler, "version", lambda name: version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(compiler, "_options_were_asked_for", False)
    fault = ops.fault_of_defaults()
    assert (fault is not None and fault.startswith(LINE) and "\n" not in fault) if faulty else fault is None

    def compiled(jit):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jit(lambda x: ops.max_pool(x, 2)).lower(jnp.ones((1, 4, 4, 1))).compile()
        return [str(warning.message) for warning in caught]

    ops.max_pool(jnp.ones((1, 6, 4, 1)), 2)  # a program of our own
    assert compiled(jax.jit) == ([fault] if faulty and jax.default_backend() == "cpu" else [])
    assert compiled(jax.jit) == []
    monkeypatch.setattr(compiler, "_options_were_asked_for", False)
    assert compiled(ops.jit) == compiled(jax.jit) == []


def test_options_come_as_a_copy():
    ops.compiler_options()["other"] = 1
    assert "other" not in ops.compiler_options()


def test_a_program_that_runs_once_makes_the_same_bits():
    def weights(key):
        return jax.nn.initializers.he_normal()(key, (5, 5, 3, 8)), jax.random.normal(key, (64, 10)) * 0.01

    for one, other in zip(
        *(ops.jit(weights, runs_once=once)(jax.random.key(3)) for once in (False, True)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_jit_takes_the_arguments_of_jax_jit():
    double = ops.jit(lambda x, times: x * times, static_argnames="times")
    assert double(jnp.ones(2), times=2).tolist() == [2, 2]


@pytest.mark.usefixtures("only_on_cpu")
def test_isolated_stays_a_call_under_every_transformation():
    function = compiler.isolated(lambda x, *, power: jnp.where(x > 0, x**power, 0))

    def whole(x):
        return jnp.sum(function(x + 1, power=2) * 3)

    x = jnp.array([-3.0, 0.5, 2.0])
    np.testing.assert_allclose(jax.grad(whole)(x), [0, 9, 18])
    np.testing.assert_allclose(jax.vmap(whole)(x[:, None]), [0, 6.75, 27])
    text = compiler.jit(whole).lower(x).compile().as_text()
    assert text.count(" call(") == 1  # what is inside, `jnp.where` too, is one piece
