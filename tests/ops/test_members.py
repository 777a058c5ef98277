import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops.members import members_in_turn


def network(params, x):
    return {"value": jnp.tanh(x @ params["w"]) + params["b"], "step": params["step"] + 1}


def arguments(count):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (count, 4, 5)),
        "b": jax.random.normal(keys[1], (count, 5)),
        "step": jnp.arange(count),
    }
    return params, jax.random.normal(keys[2], (3, 4))


@pytest.mark.parametrize("count", [1, 3, 17])
@pytest.mark.parametrize("shared", [True, False])
def test_members_in_turn_are_the_members_of_vmap(count, shared):
    params, x = arguments(count)
    x = x if shared else jnp.stack([x + member for member in range(count)])
    axes = (0, None if shared else 0)
    turned = jax.jit(jax.vmap(members_in_turn(network), in_axes=axes))(params, x)
    batched = jax.vmap(network, in_axes=axes)(params, x)
    np.testing.assert_allclose(turned["value"], batched["value"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(turned["step"], batched["step"])


@pytest.mark.usefixtures("only_on_cpu")
def test_a_member_is_the_call_alone_up_to_the_last_place():
    params, x = arguments(3)
    turned = jax.jit(jax.vmap(members_in_turn(network), in_axes=(0, None)))(params, x)
    for member in range(3):
        alone = jax.jit(network)(jax.tree.map(lambda leaf: leaf[member], params), x)
        np.testing.assert_array_max_ulp(np.asarray(turned["value"][member]), np.asarray(alone["value"]), maxulp=4)


def test_compiled_work_does_not_grow_with_the_members():
    def products(count):
        params, x = arguments(count)
        lowered = jax.jit(jax.vmap(members_in_turn(network), in_axes=(0, None))).lower(params, x)
        return lowered.as_text().count("dot_general")

    assert products(1) == products(3) == products(24) == 1


@pytest.mark.usefixtures("only_on_cpu")
def test_temporaries_do_not_grow_with_the_members():
    def wide(w, x):
        return jnp.sum(jnp.tanh(x @ w) @ w.T)  # 4 MB between the products

    def temporaries(count):
        w, x = jnp.ones((count, 8, 1024)), jnp.ones((1024, 8))
        gradient = jax.vmap(members_in_turn(jax.grad(wide)), in_axes=(0, None))
        return jax.jit(gradient).lower(w, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 1.5 * temporaries(2)


def test_without_vmap_and_under_vmap_of_vmap():
    params, x = arguments(4)
    single = jax.tree.map(lambda leaf: leaf[0], params)
    np.testing.assert_array_equal(members_in_turn(network)(single, x)["value"], network(single, x)["value"])
    square = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), params)
    twice = jax.vmap(jax.vmap(members_in_turn(network), (0, None)), (0, None))(square, x)["value"]
    flat = jax.vmap(network, (0, None))(params, x)["value"]
    np.testing.assert_allclose(twice.reshape(flat.shape), flat, rtol=1e-5, atol=1e-6)
