import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.config import Hyperparams
from cnnjax.data import Purpose, address, epoch_order
from cnnjax.data.augment import augment
from cnnjax.errors import InputError
from tests.cases import some


def data(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_addresses_differ_in_every_part_and_repeat():
    places = [(0,), (1,), (0, 0), (0, 1), (1, 0), ()]
    keys = {data(address(seed, purpose, *place)) for seed in (0, 1) for purpose in Purpose for place in places}
    assert len(keys) == 2 * len(Purpose) * len(places)
    assert data(address(7, Purpose.DROPOUT, 3, 4)) == data(address(7, Purpose.DROPOUT, 3, 4))


def test_purposes_are_never_renumbered():
    # Part of every published result.
    known = {"INIT": 0, "ORDER": 1, "AUGMENT": 2, "DROPOUT": 3, "STUDY": 4, "CROP": 5}
    assert {purpose.name: purpose.value for purpose in Purpose} == known


def test_address_takes_traced_numbers():
    traced = jax.jit(lambda seed, epoch: jax.random.key_data(address(seed, Purpose.ORDER, epoch)))(5, 6)
    assert tuple(np.asarray(traced).tolist()) == data(address(5, Purpose.ORDER, 6))


@contextlib.contextmanager
def configured(name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def drawn() -> list[np.ndarray]:
    """What every kind of draw of a training and of the studies gives, with and without `jit` and `vmap`."""
    key = address(7, Purpose.STUDY, 3)
    images = jnp.linspace(-1, 1, 96, dtype=jnp.float32).reshape(2, 4, 4, 3)
    parts = [
        jax.random.key_data(key),
        jax.random.key_data(jax.random.split(key, 3)),
        jax.random.normal(key, (5,), jnp.float32),
        jax.vmap(lambda one: jax.random.randint(one, (3,), 0, 100, jnp.int32))(jax.random.split(key, 2)),
        jax.jit(lambda seed: epoch_order(seed, 1, 7, 4))(3)[0],
        augment(key, images, Hyperparams(shift=1.0, contrast=0.5, tint=0.3)),
        ops.dropout(key, images, 0.5),
    ]
    return [np.asarray(part) for part in parts]


SETTINGS = [
    ("jax_threefry_partitionable", False),
    ("jax_default_prng_impl", "rbg"),
    ("jax_random_seed_offset", 5),
    ("jax_enable_x64", True),
    ("jax_legacy_prng_key", "error"),
    ("jax_enable_custom_prng", True),
]


@pytest.mark.parametrize(("name", "value"), some(SETTINGS, SETTINGS[0]))
def test_no_setting_of_jax_changes_a_draw(name, value):
    with configured(name, value):
        found = drawn()
    for one, expected in zip(found, drawn(), strict=True):
        np.testing.assert_array_equal(one, expected)
        assert one.dtype == expected.dtype


def test_draws_are_those_of_jax_by_its_defaults():
    with jax.threefry_partitionable(True):
        theirs = jax.random.fold_in(jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 4), 3)
        numbers = jax.random.uniform(theirs, (4,), jnp.float32)
    ours = address(7, Purpose.STUDY, 3)
    assert data(ours) == data(theirs)
    np.testing.assert_array_equal(jax.random.uniform(ours, (4,), jnp.float32), numbers)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32])
def test_a_seed_that_would_alias_another_is_refused(seed):
    with pytest.raises(InputError, match=f"seed must be between 0 and 2147483647, got {seed}"):
        address(seed, Purpose.INIT)


@pytest.mark.parametrize("draw", [
    lambda key: jax.random.uniform(key, (3, 2), jnp.float32),
    lambda key: jax.random.randint(key, (4,), 0, 300, jnp.int16),
    lambda key: jax.random.bits(key, (0, 3), jnp.uint32),
], ids=["32 bits", "16 bits", "none"])  # fmt: skip
def test_under_vmap_each_key_draws_what_it_draws_alone(draw):
    keys = jax.random.split(address(7, Purpose.STUDY, 3), 6).reshape(2, 3)
    together = jax.jit(jax.vmap(jax.vmap(draw)))(keys)
    alone = [[draw(keys[row, column]) for column in range(3)] for row in range(2)]
    np.testing.assert_array_equal(together, alone)
