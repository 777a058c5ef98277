import jax
import numpy as np

from cnnjax.data import Purpose, address


def data(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_addresses_differ_in_every_part_and_repeat():
    places = [(0,), (1,), (0, 0), (0, 1), (1, 0), ()]
    keys = {data(address(seed, purpose, *place)) for seed in (0, 1) for purpose in Purpose for place in places}
    assert len(keys) == 2 * len(Purpose) * len(places)
    assert data(address(7, Purpose.DROPOUT, 3, 4)) == data(address(7, Purpose.DROPOUT, 3, 4))


def test_purposes_are_never_renumbered():
    # Part of every published result.
    known = {"INIT": 0, "ORDER": 1, "AUGMENT": 2, "DROPOUT": 3, "STUDY": 4}
    assert {purpose.name: purpose.value for purpose in Purpose} == known


def test_address_takes_traced_numbers():
    traced = jax.jit(lambda seed, epoch: jax.random.key_data(address(seed, Purpose.ORDER, epoch)))(5, 6)
    assert tuple(np.asarray(traced).tolist()) == data(address(5, Purpose.ORDER, 6))
