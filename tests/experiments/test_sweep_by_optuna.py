"""Batches that Optuna proposes: made once, finished first, as many as asked for."""

import pytest

from cnnjax.sweep import space
from experiments import sweep_by_optuna as sweeping

optuna = pytest.importorskip("optuna")


def test_a_batch_that_was_begun_comes_first_and_no_more_are_proposed_than_asked():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposals = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    options = sweeping.Options(trials=5, batch=3)
    axes = {"learning_rate": space.parse_axis("learning_rate", "log:1e-3:1"), "seed": space.parse_axis("seed", "4,7")}
    distributions = {name: sweeping.distribution(optuna, values) for name, values in axes.items()}

    def batch():
        return sweeping.next_batch(optuna, proposals, options, distributions)

    assert batch() == 0 and batch() == 0  # the second time it is only found again
    first = [trial for trial in proposals.get_trials() if trial.user_attrs["batch"] == 0]
    assert len(first) == 3
    for trial in first:
        assert 1e-3 <= trial.params["learning_rate"] <= 1
        assert sweeping._value(axes["seed"], trial.params["seed"]) in (4, 7)
        proposals.tell(trial.number, 0.5)
    assert batch() == 1
    second = [trial for trial in proposals.get_trials() if trial.user_attrs["batch"] == 1]
    assert len(second) == 2
    for trial in second:
        proposals.tell(trial.number, 0.4)
    assert batch() is None and proposals.best_value == 0.4
