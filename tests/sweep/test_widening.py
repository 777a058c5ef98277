"""A sweep that is started again with more members: those that it has are read, the others trained."""

import csv
import dataclasses

import jax
import numpy as np
import pytest

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.sweep import study, tables, widening
from cnnjax.sweep.study import NO_HALVING, Halving
from cnnjax.train import run
from tests.sweep import sweeps

CONFIG = dataclasses.replace(
    sweeps.CONFIG,
    model=ModelConfig("mlp", dense=(4,)),
    train=dataclasses.replace(sweeps.CONFIG.train, epochs=1, keep_epochs=()),
)


@pytest.fixture(scope="module")
def dataset():
    return sweeps.dataset()


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with sweeps.programs_shared():
        yield


def trained(dataset, workdir, calls=None, said=None, config=CONFIG, halving=NO_HALVING, join=False, **axes):
    """The sweep over these axes; `calls` is told which steps were trained."""
    return widening.run(
        config,
        sweeps.members(config, **axes),
        dataset,
        workdir,
        halving=halving,
        join=join,
        size=2,
        progress=lambda *call: calls is not None and calls.append(call),
        say=(said if said is not None else []).append,
    )


@pytest.fixture(scope="module")
def widened(dataset, tmp_path_factory):
    """Two rates; then a rate between them, with the old ones in another order; then all with a second seed."""
    workdir, calls = tmp_path_factory.mktemp("widening") / "sweep", []
    stages = [
        trained(dataset, workdir, calls, learning_rate=[0.1, 0.3]),
        trained(dataset, workdir, calls, learning_rate=[0.3, 0.2, 0.1]),
        trained(dataset, workdir, calls, learning_rate=[0.1, 0.2, 0.3], seed=[0, 1]),
    ]
    return stages, workdir, calls


def test_only_members_that_are_not_there_are_trained(widened):
    """A chunk of two, one of one, and three members in two chunks, of one epoch of 3 steps each."""
    _, workdir, calls = widened
    done = [done for _, done, _ in calls]
    assert sum(1 for one, following in zip(done, [*done[1:], 0], strict=True) if following < one) == 3
    assert sum(one for one, following in zip(done, [*done[1:], 0], strict=True) if following < one) == 3 + 3 + 6
    for folder, count in ((workdir, 1), (workdir / "wider-1", 1), (workdir / "wider-2", 2)):
        assert len(list((folder / "chunks").iterdir())) == count


def test_a_member_keeps_its_number_and_has_the_axes_that_are_asked_for(widened):
    (_, second, third), workdir, _ = widened
    assert [one.member.values for one in second.results] == [{"learning_rate": rate} for rate in (0.1, 0.3, 0.2)]
    expected = [(0.1, 0), (0.3, 0), (0.2, 0), (0.1, 1), (0.2, 1), (0.3, 1)]
    assert [tuple(one.member.values.values()) for one in third.results] == expected
    assert [one.member.number for one in third.results] == list(range(6))
    rows = list(csv.DictReader((workdir / "members.csv").read_text().splitlines()))
    assert [(int(row["member"]), float(row["learning_rate"]), int(row["seed"])) for row in rows] == [
        (number, *values) for number, values in enumerate(expected)
    ]
    assert list(tables.read_curves(workdir / "curves.csv")) == list(range(6))
    members, _ = widening.recorded(workdir)
    assert [(member.number, member.config) for member in members] == [
        (one.member.number, one.member.config) for one in third.results
    ]


def test_each_member_has_the_bits_of_a_sweep_that_had_all_at_once(dataset, widened, tmp_path):
    (*_, third), _, _ = widened
    at_once = trained(dataset, tmp_path / "sweep", learning_rate=[0.1, 0.2, 0.3], seed=[0, 1])
    theirs = {one.member.config: one for one in at_once.results}
    for ours in third.results:
        other = theirs[ours.member.config]
        assert ours.metrics == other.metrics
        for epoch in (0, 1):
            states = third.state_of(ours.member, epoch), at_once.state_of(other.member, epoch)
            jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_same_command_trains_nothing(dataset, widened):
    (*_, third), workdir, _ = widened
    calls = []
    again = trained(dataset, workdir, calls, learning_rate=[0.1, 0.2, 0.3], seed=[0, 1])
    assert not calls
    assert [(one.member, one.metrics) for one in again.results] == [(one.member, one.metrics) for one in third.results]


def test_what_was_stopped_while_it_was_widened_goes_on(dataset, widened, tmp_path):
    class Stop(Exception):
        pass

    class Stopping(list):
        def append(self, call):
            raise Stop

    axes = {"learning_rate": [0.1, 0.2]}
    trained(dataset, tmp_path / "sweep", learning_rate=[0.1])
    with pytest.raises(Stop):
        trained(dataset, tmp_path / "sweep", Stopping(), **axes)
    swept = trained(dataset, tmp_path / "sweep", **axes)
    assert [one.state for one in swept.results] == ["finished"] * 2
    assert not (tmp_path / "sweep" / "wider-2").exists()


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"learning_rate": [0.1, 0.2]}, "holds another sweep .4 other members, .*, the first with learning_rate 0.3.$"),
        ({"learning_rate": [0.1, 0.3]}, "4 other members, which are not asked for, the first with learning_rate 0.2.$"),
        ({"learning_rate": [0.1, 0.2, 0.3], "seed": [0, 1], "halving": Halving((1,))}, "other halving"),
        (
            {
                "learning_rate": [0.1, 0.2, 0.3],
                "seed": [0, 1],
                "config": dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, epochs=3)),
            },
            r"train.epochs: 3 here, 1 there",
        ),
        ({"learning_rate": [0.1, 0.2, 0.3], "seed": [0, 1, 2], "join": True}, "--join must find a sweep .*wider-3"),
    ],
    ids=["another", "as it was begun", "halving", "config", "join"],
)
def test_a_sweep_that_has_other_members_or_another_config_is_refused(dataset, widened, how, match):
    _, workdir, _ = widened
    before = sorted(workdir.rglob("*"))
    with pytest.raises(InputError, match=match) as caught:
        trained(dataset, workdir, **how)
    assert "\n" not in str(caught.value) and sorted(workdir.rglob("*")) == before


def test_a_sweep_that_stops_members_early_is_not_widened(dataset, tmp_path):
    how = {"halving": Halving((1,)), "config": sweeps.CONFIG}
    (tmp_path / "sweep").mkdir()
    record = run.new_record(sweeps.CONFIG, dataset) | {"members": [{"learning_rate": 0.1}]}
    record |= {"halving": how["halving"], "plans": [[1, [], 1]]}
    (tmp_path / "sweep" / "sweep.json").write_text(run.sealed(record))
    with pytest.raises(InputError, match="--halve-at must be left out for a sweep that is widened"):
        trained(dataset, tmp_path / "sweep", learning_rate=[0.1, 0.2], **how)
    assert not (tmp_path / "sweep" / "wider-1").exists()


def test_two_members_of_one_setting_and_seed_are_two(dataset, tmp_path):
    workdir = tmp_path / "sweep"
    trained(dataset, workdir, learning_rate=[0.1])
    swept = trained(dataset, workdir, learning_rate=[0.1, 0.1])
    assert len(swept.results) == 2 and study.begun_with(workdir / "wider-1") == [{"learning_rate": 0.1}]
