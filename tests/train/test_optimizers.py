import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.config import Hyperparams, TrainConfig
from cnnjax.models.building import dotted
from cnnjax.train.optimizers import (
    clip_filter_rms,
    kernels,
    learning_rate,
    make_optimizer,
    renormalize_filters,
    scaled_at_first,
)
from tests.cases import normal


def rms(kernel):
    return np.sqrt(np.mean(np.asarray(kernel) ** 2, axis=(0, 1, 2)))


@pytest.mark.parametrize("radius", [0.05, 0.1])
def test_large_filters_are_brought_onto_the_radius(radius):
    kernel = normal(0, (7, 7, 3, 16))
    np.testing.assert_allclose(rms(clip_filter_rms(kernel, radius)), radius, rtol=1e-5)


def test_small_and_zero_filters_are_left_alone():
    kernel = jnp.stack([jnp.zeros((3, 3, 1)), jnp.full((3, 3, 1), 0.05)], axis=-1)
    np.testing.assert_array_equal(clip_filter_rms(kernel, 0.1), kernel)
    np.testing.assert_array_equal(clip_filter_rms(10 * kernel, np.inf), 10 * kernel)


def test_renormalization_leaves_dense_layers_biases_and_small_filters_to_the_bit():
    params = {
        "conv1": {"kernel": jnp.full((3, 3, 1, 2), 0.01), "bias": jnp.full(2, 5.0)},
        "fc2": {"kernel": jnp.full((4, 2), 5.0)},
    }
    updates = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.03), params)
    updates["conv1"]["kernel"] = updates["conv1"]["kernel"].at[..., 1].set(3.0)
    new, _ = renormalize_filters(0.1).update(updates, optax.EmptyState(), params)
    after = optax.apply_updates(params, new)
    np.testing.assert_array_equal(new["conv1"]["bias"], updates["conv1"]["bias"])
    np.testing.assert_array_equal(new["fc2"]["kernel"], updates["fc2"]["kernel"])
    np.testing.assert_array_equal(new["conv1"]["kernel"][..., 0], updates["conv1"]["kernel"][..., 0])
    np.testing.assert_allclose(rms(after["conv1"]["kernel"]), [0.04, 0.1], rtol=1e-5)


LINEN = {
    "Conv_0": {"kernel": (3, 3, 1, 2), "bias": (2,)},
    "BatchNorm_0": {"scale": (2,), "bias": (2,)},
    "Dense_0": {"kernel": (2, 3), "bias": (3,)},
}
NNX = {"layers": {0: LINEN["Conv_0"], 1: LINEN["BatchNorm_0"]}, "head": LINEN["Dense_0"]}
ATTENTION = {"query": {"kernel": (4, 2, 2), "bias": (2, 2)}, "embed": {"embedding": (9, 4)}}
EQUINOX = {
    "layers.0.weight": (2, 1, 3, 3),
    "layers.0.bias": (2, 1, 1),
    "norm.weight": (2, 6, 6),  # a LayerNorm over channels and places
    "norm.bias": (2, 6, 6),
    "group.weight": (2,),
    "group.bias": (2,),
    "head.weight": (3, 2),
    "head.bias": (3,),
}


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (LINEN, {"Conv_0.kernel", "Dense_0.kernel"}),
        (NNX, {"layers.0.kernel", "head.kernel"}),
        (ATTENTION, {"query.kernel"}),
        (EQUINOX, {"layers.0.weight", "head.weight"}),
    ],
    ids=["linen", "nnx", "attention", "equinox"],
)
def test_kernels_alone_are_decayed_and_scaled_whatever_the_framework(shapes, wanted):
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda entry: isinstance(entry, tuple))
    hyper = Hyperparams(weight_decay=0.1, filter_rms=np.inf)
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(TrainConfig(optimizer=name), hyper, jnp.float32(0.5))
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        changed = {dotted(path): float(abs(leaf).max()) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
        assert {path for path, most in changed.items() if most} == wanted
        np.testing.assert_allclose([changed[path] for path in wanted], 0.05, rtol=1e-6)


def test_filters_are_those_of_the_out_channels_in_either_layout():
    """The same kernel, [*window, in, out] of Flax and [out, in, *window] of Equinox."""
    kernel = normal(0, (3, 3, 2, 4)) * jnp.array([0.01, 1.0, 3.0, 0.05])
    theirs = jnp.transpose(kernel, (3, 2, 0, 1))
    params = {"a": {"kernel": kernel}, "b.weight": theirs}
    update, _ = renormalize_filters(0.1).update(jax.tree.map(jnp.zeros_like, params), optax.EmptyState(), params)
    after = optax.apply_updates(params, update)
    np.testing.assert_allclose(rms(after["a"]["kernel"]), [*rms(kernel)[:1], 0.1, 0.1, *rms(kernel)[3:]], rtol=1e-5)
    np.testing.assert_allclose(jnp.transpose(after["b.weight"], (2, 3, 1, 0)), after["a"]["kernel"], rtol=1e-6)
    most = f"(RMS up to {rms(kernel).max():.3g})"
    assert scaled_at_first(params, 0.1).endswith(f"they start: a {most}, b {most}")
    assert scaled_at_first(params, 0.1, frozen=("a",)).endswith(f"they start: b {most}")
    assert scaled_at_first({"layers": {0: {"kernel": kernel}}}, 0.1).endswith(f"they start: layers.0 {most}")


def test_layers_that_start_above_the_radius_are_named():
    params = {
        "conv1": {"kernel": jnp.full((1, 1, 3, 2), 0.01).at[..., 1].set(0.8), "bias": jnp.full(2, 5.0)},
        "conv2": {"kernel": jnp.full((3, 3, 2, 2), 0.1)},
        "fc3": {"kernel": jnp.full((4, 2), 5.0)},
    }
    said = "the first step scales filters down to hyper.filter_rms 0.2, above which they start: conv1 (RMS up to 0.8)"
    assert scaled_at_first(params, 0.2) == said
    assert scaled_at_first(params, 0.05).endswith("conv1 (RMS up to 0.8), conv2 (RMS up to 0.1)")
    assert scaled_at_first(params, 0.8) is None and scaled_at_first(params, float("inf")) is None


def test_sgd_step_by_hand():
    """v = g + decay * w; w - rate * v, then v' = momentum * v + g + decay * w; no decay on biases."""
    config, hyper = TrainConfig(), Hyperparams(momentum=0.5, weight_decay=0.1, filter_rms=np.inf)
    params = {"fc1": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}}
    gradient = jax.tree.map(lambda leaf: jnp.ones_like(leaf), params)
    optimizer = make_optimizer(config, hyper, jnp.float32(0.1))
    state = optimizer.init(params)
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["fc1"]["kernel"], [[2 - 0.1 * 1.2]], rtol=1e-6)
    np.testing.assert_allclose(params["fc1"]["bias"], [1.9], rtol=1e-6)
    updates, _ = optimizer.update(gradient, state, params)
    np.testing.assert_allclose(updates["fc1"]["kernel"], [[-0.1 * (0.5 * 1.2 + 1 + 0.188)]], rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_that_is_not_taken_leaves_the_state_as_it_is(name):
    params = {"fc1": {"kernel": normal(0, (3, 2)), "bias": jnp.ones(2)}}
    gradient = jax.tree.map(jnp.sin, params)
    config, hyper, rate = TrainConfig(optimizer=name), Hyperparams(), jnp.float32(0.1)
    taken, state = make_optimizer(config, hyper, rate), make_optimizer(config, hyper, rate).init(params)
    _, state = taken.update(gradient, state, params)
    _, same = make_optimizer(config, hyper, rate, jnp.bool(False)).update(gradient, state, params)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    _, other = taken.update(gradient, state, params)
    assert not all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (other, state)), strict=True))


def test_adamw_is_optax_adamw():
    params = {"fc1": {"kernel": normal(0, (3, 2)), "bias": jnp.ones(2)}}
    gradient = jax.tree.map(jnp.sin, params)
    hyper = Hyperparams(momentum=0.8, weight_decay=0.02, filter_rms=np.inf)
    ours = make_optimizer(TrainConfig(optimizer="adamw"), hyper, jnp.float32(0.01))
    theirs = optax.adamw(0.01, b1=0.8, weight_decay=0.02, mask=kernels)
    for _ in range(3):
        mine, _ = ours.update(gradient, ours.init(params), params)
        other, _ = theirs.update(gradient, theirs.init(params), params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine, other)


@pytest.mark.parametrize(
    ("schedule", "shares"), [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0.0]), ("steps", [1, 0.1, 0.01])]
)
def test_schedules_at_the_start_the_middle_and_the_end(schedule, shares):
    config = TrainConfig(epochs=10, schedule=schedule)
    rates = [learning_rate(config, 2.0, jnp.int32(step), 4) for step in (0, 20, 40)]
    np.testing.assert_allclose(rates, 2.0 * np.array(shares), atol=1e-6)


def test_warm_up_rises_linearly():
    config = TrainConfig(epochs=10, schedule="constant", warmup_epochs=2)
    rates = [float(learning_rate(config, 1.0, jnp.int32(step), 4)) for step in range(10)]
    np.testing.assert_allclose(rates, [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1, 1], rtol=1e-6)
