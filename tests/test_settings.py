"""JAX's settings, from the environment or from user code: the same training, working scripts, working library."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import cli
from cnnjax.settings import pinned
from cnnjax.train import run
from cnnjax.visualize.attribution import grad_cam, integrated_gradients, smooth_grad
from cnnjax.visualize.evolution import make_look, strongest_activations
from cnnjax.visualize.invariance import make_respond
from cnnjax.visualize.maximization import maximize
from cnnjax.visualize.occlusion import bootstrap_interval
from tests.cases import some
from tests.sweep import sweeps

OTHER = {
    "jax_enable_x64": True,
    "jax_threefry_partitionable": False,
    "jax_default_prng_impl": "rbg",
    "jax_random_seed_offset": 3,
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_legacy_prng_key": "error",
    "jax_softmax_custom_jvp": True,
    "jax_debug_nans": True,
    "jax_optimization_level": "O0",
}


@contextlib.contextmanager
def configured(settings):
    before = {name: jax.config.values[name] for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_training_is_the_same_to_the_bit_under_all_other_settings(tmp_path):
    """With batch norm, dropout and augmentation; and what one process has written, the other reads."""
    dataset = sweeps.dataset()
    plain = run.run(sweeps.CONFIG, dataset, tmp_path / "plain")
    with configured(OTHER):
        other = run.run(sweeps.CONFIG, dataset, tmp_path / "other")
        read = run.load_epoch(tmp_path / "plain", sweeps.CONFIG, plain.network, dataset, 2)
        assert jnp.ones(2).dtype == jnp.float64  # and it is the caller's again
    for states in ((other.states[2], plain.states[2]), (read, plain.states[2])):
        jax.tree.map(np.testing.assert_array_equal, *states)
    assert other.metrics == plain.metrics


def test_scripts_run_in_the_default_settings(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script"])
    seen = []
    with configured({"jax_enable_x64": True, "jax_numpy_rank_promotion": "raise"}), jax.enable_x64(True):
        cli.run(lambda arguments, progress: seen.append((jnp.ones((2, 1)) + jnp.ones(3)).dtype))
    assert seen == [jnp.float32]


def test_an_error_gives_the_settings_back():
    with configured({"jax_optimization_level": "O0"}):
        with pytest.raises(KeyError), pinned():
            raise KeyError
        assert jax.config.values["jax_optimization_level"] == "O0"


IMAGES = jnp.linspace(-1, 1, 2 * 8 * 8 * 3, dtype=jnp.float32).reshape(2, 8, 8, 3)
KEYS = jax.vmap(jax.random.key)(jnp.arange(2))


def scores(images):
    return jax.nn.relu(images).sum((1, 2))


def look():
    make = make_look(lambda variables, images: {"conv1": images * variables}, lambda images: images / 2)
    return strongest_activations(make, jnp.float32(2), [type("Batch", (), {"images": IMAGES, "mask": np.ones(2)})])


def respond():
    outputs = make_respond(lambda variables, images: (images, images, scores(images)), np.zeros((8, 8, 3), np.float32))
    return outputs(None, IMAGES[0], IMAGES[1], 1, {"rotation": np.float32([0.0, 30.0])})


STUDIES = {
    "smooth_grad": lambda: smooth_grad(scores, IMAGES, jnp.array([1, 2], jnp.int32), KEYS, samples=3),
    "integrated_gradients": lambda: integrated_gradients(scores, IMAGES, jnp.array([1, 2], jnp.int32), steps=3),
    "grad_cam": lambda: grad_cam(scores, IMAGES, jnp.array([1, 2], jnp.int32), relu=0),
    "maximize": lambda: maximize(lambda images: scores(images)[:, 0], KEYS, (8, 8, 3), steps=2, jitter=1),
    "bootstrap_interval": lambda: bootstrap_interval(KEYS[0], np.float32([1, 2, 4]), resamples=100),
    "strongest_activations": look,
    "make_respond": respond,
}


@pytest.mark.parametrize("name", some(STUDIES, list(STUDIES)[-1]))
def test_studies_of_float32_images_are_the_same_with_x64(name):
    expected = STUDIES[name]()
    with jax.enable_x64(True):
        found = STUDIES[name]()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_noise_and_its_maps_have_the_type_of_the_images():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            maps = smooth_grad(scores, IMAGES.astype(dtype), jnp.array([1, 2]), KEYS, samples=2)
            assert maps.dtype == dtype
