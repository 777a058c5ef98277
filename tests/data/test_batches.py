import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import batches, epoch_order
from cnnjax.errors import InputError


@pytest.mark.parametrize("batch_size", [1, 7, 15, 30, 64])
def test_batches_show_every_image_once_in_order_and_in_one_shape(small_dataset, batch_size):
    split = small_dataset.train
    found = list(batches(split, batch_size))
    assert {batch.images.shape for batch in found} == {(batch_size, 4, 5, 3)}
    assert {(batch.labels.shape, batch.mask.shape) for batch in found} == {((batch_size,), (batch_size,))}
    assert sum(batch.mask.sum() for batch in found) == 30
    real = [np.concatenate([getattr(batch, name)[batch.mask == 1] for batch in found]) for name in ("images", "labels")]
    np.testing.assert_array_equal(real[0], split.images)
    np.testing.assert_array_equal(real[1], split.labels)
    assert all((batch.images[batch.mask == 0] == 0).all() for batch in found)


def test_batches_refuse_a_batch_size_of_0(small_dataset):
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        batches(small_dataset.train, 0)


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (10, 3), (12, 4), (5, 8)])
def test_epoch_order_is_a_padded_permutation(n, batch_size):
    indices, mask = epoch_order(0, 1, n, batch_size)
    assert indices.shape == mask.shape == (-(-n // batch_size), batch_size)
    assert indices.dtype == jnp.int32
    assert mask.sum() == n
    flat, flags = np.asarray(indices).ravel(), np.asarray(mask).ravel()
    np.testing.assert_array_equal(np.sort(flat[flags == 1]), np.arange(n))
    assert (flat[flags == 0] == 0).all() and (np.diff(flags) <= 0).all()


@pytest.mark.parametrize(("n", "batch_size", "name"), [(0, 4, "n"), (10, 0, "batch_size")])
def test_epoch_order_refuses_nothing_to_order(n, batch_size, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        epoch_order(0, 0, n, batch_size)


def test_epoch_order_is_a_pure_function_of_seed_and_epoch():
    first, again = (np.asarray(epoch_order(3, 5, 100, 10)[0]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for seed, epoch in ((4, 5), (3, 6), (5, 3)):
        assert not np.array_equal(first, epoch_order(seed, epoch, 100, 10)[0])


def test_epoch_order_is_jittable_and_runs_over_seeds_by_vmap():
    order = functools.partial(epoch_order, n=10, batch_size=4)
    seeds = jnp.arange(3)
    many = jax.jit(jax.vmap(order, in_axes=(0, None)))(seeds, 2)
    for seed in range(3):
        np.testing.assert_array_equal(many[0][seed], order(seed, 2)[0])
        np.testing.assert_array_equal(many[1][seed], order(seed, 2)[1])
