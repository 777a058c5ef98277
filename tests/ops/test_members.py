import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops.members import members_in_turn
from tests.cases import some


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


@pytest.mark.parametrize("count", some([1, 3, 17], 3))
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


def derivatives(of):
    """Derivatives of `of` (a network) under vmap: in either mode, of second order, nested, in a loop, without vmap."""
    params, x = arguments(2)
    params, axes = {name: params[name] for name in ("w", "b")}, (0, None)

    def value(params, x):
        return of(params | {"step": jnp.int32(0)}, x)["value"]

    def loss(params, x):
        return jnp.sum(jnp.sin(value(params, x)))

    def layers(x):
        return jax.lax.scan(lambda x, _: (jax.vmap(value, axes)(params, x).mean(0)[:, :4], None), x, length=2)[0].sum()

    gradient = jax.grad(loss, (0, 1))
    return {
        "gradient of vmap": jax.grad(lambda *both: jnp.sum(jnp.sin(jax.vmap(value, axes)(*both))), (0, 1))(params, x),
        "jvp of vmap": jax.jvp(jax.vmap(value, axes), (params, x), (params, x)),
        "vmap of jvp": jax.vmap(lambda params: jax.jvp(value, (params, x), (params, x)))(params),
        "forward over reverse": jax.vmap(lambda p: jax.jvp(gradient, (p, x), (p, x)))(params),
        "reverse over reverse": jax.vmap(jax.grad(lambda p: jnp.sum(gradient(p, x)[1] ** 2)))(params),
        "nested": jax.vmap(jax.vmap(gradient, axes), (None, 0))(params, jnp.stack([x, 2 * x])),
        "alone": gradient(jax.tree.map(lambda leaf: leaf[0], params), x),
        "in a loop": jax.grad(layers)(x),
    }


@pytest.mark.long
def test_derivatives_are_those_of_vmap():
    turned, plain = (jax.jit(lambda of=of: derivatives(of))() for of in (members_in_turn(network), network))
    for name, wanted in plain.items():
        for ours, theirs in zip(jax.tree.leaves(turned[name]), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6, err_msg=name)


def test_the_work_of_a_derivative_does_not_grow_with_the_members():
    def value(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    def products(count):
        gradient = jax.vmap(jax.grad(members_in_turn(value)), in_axes=(0, None))
        return jax.jit(gradient).lower(jnp.ones((count, 4, 5)), jnp.ones((3, 4))).as_text().count("dot_general")

    assert products(3) == products(24) == 2


def test_the_derivative_by_what_is_shared_adds_up_in_float32():
    def product(w, x):
        return w * x

    shared, members = jnp.ones((), jnp.bfloat16), jnp.ones(600, jnp.bfloat16)
    gradient = jax.grad(lambda x: jax.vmap(members_in_turn(product), (0, None))(members, x).astype(float).sum())(shared)
    assert gradient == 600  # 256 where ones are added in bfloat16


def test_closed_over_arrays_and_integers_are_no_obstacle():
    weights, labels = jnp.arange(5.0), jnp.array([1, 3])

    def chosen(x, label):
        return jnp.max(x * weights), label + jnp.argmax(x * weights)

    x = jnp.array([[1.0, 2, 0, 1, 0], [0, 0, 3, 0, 1]])

    def both(function):
        pull = jax.vjp(lambda x: jax.vmap(function)(x, labels)[0], x)
        return pull[0], pull[1](jnp.ones(2))[0], jax.vmap(function)(x, labels)[1]

    for ours, theirs in zip(both(members_in_turn(chosen)), both(chosen), strict=True):
        np.testing.assert_array_equal(ours, theirs)
