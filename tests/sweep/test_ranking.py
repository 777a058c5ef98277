import math

import numpy as np
import pytest

from cnnjax.sweep import ranking, study
from tests.sweep import sweeps


def results(errors, states=None, **axes):
    """Members of a grid, of which each has this validation error; their test errors would rank them the other way."""
    members = sweeps.members(**axes)
    states = states or ["finished"] * len(members)
    return [
        study.Result(member, state, [{"epoch": 1, "validation_error": error, "test_error": 1 - error}], 1.0, [])
        for member, error, state in zip(members, errors, states, strict=True)
    ]


def test_settings_are_ranked_by_the_mean_over_their_seeds():
    """The best single member is of a setting that is not."""
    found = ranking.ranked(results([0.1, 0.9, 0.4, 0.5], learning_rate=[0.1, 0.2], seed=[0, 1]), "validation_error")
    assert [one.values for one in found] == [{"learning_rate": 0.2}, {"learning_rate": 0.1}]
    assert found[0].error.mean == pytest.approx(0.45) and found[0].error.count == 2
    assert found[0].error.deviation == pytest.approx(np.std([0.4, 0.5], ddof=1))
    assert [result.member.number for result in found[1].results] == [0, 1]
    (other, _) = ranking.ranked(results([0.1, 0.9, 0.4, 0.5], learning_rate=[0.1, 0.2], seed=[0, 1]), "test_error")
    assert other.values == {"learning_rate": 0.1}


def test_without_an_axis_of_seeds_each_member_is_a_setting():
    found = ranking.ranked(results([0.3, 0.1], learning_rate=[0.1, 0.2]), "validation_error")
    assert [one.results[0].member.number for one in found] == [1, 0]
    assert math.isnan(found[0].error.deviation) and found[0].error.percent() == "10.00 %"


def test_a_setting_of_which_a_seed_diverged_comes_after_those_that_are_whole():
    """And its error is that of the seeds that finished; one of which none did comes last."""
    lost = "diverged at epoch 1, step 1 of 3"
    states = [lost, lost, "finished", lost, "finished", "finished"]
    found = ranking.ranked(
        results([0.1, 0.1, 0.2, 0.1, 0.8, 0.9], states, learning_rate=[0.1, 0.2, 0.3], seed=[0, 1]), "validation_error"
    )
    assert [one.values["learning_rate"] for one in found] == [0.3, 0.2, 0.1]
    assert (found[1].error.mean, found[1].error.count, found[1].has_all) == (0.2, 1, False)
    assert found[1].results[0].state == "finished" and found[2].error.count == 0


def test_a_spread_is_written_with_its_deviation():
    assert ranking.spread([0.1, 0.2]).percent() == "15.00 ± 7.07 %"
    assert math.isnan(ranking.spread([]).mean)


def test_members_are_ranked_by_validation_where_there_are_such_images():
    plain = sweeps.dataset()
    assert ranking.criterion(plain) == "test_error"
    assert ranking.criterion(plain.__class__(**vars(plain) | {"validation": plain.test})) == "validation_error"
