"""Every seed that a study takes is one of 0 to 2^31 - 1: a larger one would be another's random numbers."""

import pytest

from cnnjax.errors import InputError
from experiments import (
    activations,
    architectures,
    attribution,
    correspondence,
    filter_evolution,
    lecture,
    maximization,
    occlusion,
    probes,
    scanning,
    sweep,
    sweep_by_optuna,
    transfer,
)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32])
@pytest.mark.parametrize("module", [attribution, correspondence, lecture, maximization, occlusion, probes, scanning])
def test_a_seed_out_of_range_is_refused(module, seed):
    with pytest.raises(InputError, match=f"^--seed must be between 0 and 2147483647, got {seed}$"):
        module.Options(seed=seed)
    module.Options(seed=2**31 - 1)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (activations, "maps_seed"),
        (architectures, "maps_seed"),
        (filter_evolution, "maps_seed"),
        (sweep, "sampling_seed"),
        (sweep_by_optuna, "sampling_seed"),
    ],
)
def test_a_seed_of_a_choice_out_of_range_is_refused(module, name, seed):
    option = name.replace("_", "-")
    with pytest.raises(InputError, match=f"^--{option} must be between 0 and 2147483647, got {seed}$"):
        module.Options(**{name: seed})


def test_the_seed_of_a_transfer_is_that_of_its_hyperparameters():
    hyper = transfer.Options().hyper
    with pytest.raises(InputError, match="hyper.seed must be between 0 and 2147483647, got 4294967296"):
        transfer.Options(hyper=type(hyper)(seed=2**32))
