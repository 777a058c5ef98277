import dataclasses
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.sweep import engine, space, study
from cnnjax.sweep.space import by_program
from cnnjax.train import run
from tests.sweep import sweeps

QUICK = dataclasses.replace(sweeps.CONFIG, model=ModelConfig("mlp", dense=(4,)))
STEPS = 3  # an epoch of 32 images in batches of 12


@pytest.fixture(scope="module")
def dataset():
    return sweeps.dataset()


@pytest.fixture(scope="module")
def members():
    """Members 0 and 1 share a seed; member 2 has its own."""
    wild, tame, other = sweeps.members(learning_rate=[1e3, 0.05, 0.01])
    other = other._replace(
        config=dataclasses.replace(other.config, hyper=dataclasses.replace(other.config.hyper, seed=1))
    )
    return [wild, tame, other]


@pytest.fixture(scope="module")
def together(dataset, members, tmp_path_factory):
    return study.run_sweep(sweeps.CONFIG, members, dataset, tmp_path_factory.mktemp("sweep") / "together", size=3)


@pytest.fixture(scope="module")
def in_sequence(dataset, members, tmp_path_factory):
    return study.run_sweep(sweeps.CONFIG, members, dataset, tmp_path_factory.mktemp("sweep") / "sequence", size=0)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_member_is_the_training_alone(dataset, members, together, in_sequence, tmp_path):
    """With dropout, augmentation, batch statistics and a masked last batch.

    In sequence bit for bit, weights and metrics; together within rounding (here, on a CPU, measured: bit for bit too).
    """
    member = members[2]
    alone = run.run(member.config, dataset, tmp_path)
    for epoch, state in alone.states.items():
        same(in_sequence.state_of(member, epoch), state)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
            together.state_of(member, epoch),
            state,
        )
    assert in_sequence.results[2].metrics == alone.metrics
    for ours, theirs in zip(together.results[2].metrics, alone.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_one_seed_is_one_start_and_one_order_of_batches(members, together):
    wild, tame, other = (together.state_of(member, 0).params for member in members)
    same(wild, tame)
    assert not np.array_equal(tame["conv1"]["kernel"], other["conv1"]["kernel"])


@pytest.mark.parametrize("engine_name", ["together", "in_sequence"])
def test_a_member_that_diverges_stands_still_and_is_marked(members, request, engine_name):
    swept = request.getfixturevalue(engine_name)
    wild, tame, _ = swept.results
    state = swept.state_of(members[0], 2)
    step = int(state.step)  # those that it has taken
    assert 0 < step < 2 * STEPS and tame.state == "finished"
    assert wild.state == f"diverged at epoch {step // STEPS + 1}, step {step % STEPS + 1} of {STEPS}"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    if step <= STEPS:
        same(state.params, swept.state_of(members[0], 1).params)
    assert [line["epoch"] for line in wild.metrics] == [0, 1, 2] and "train_loss" not in wild.metrics[2]


def test_a_member_counts_the_step_at_which_it_diverges_as_a_run_alone_does(dataset, members, together, tmp_path):
    with pytest.raises(InputError) as ended:
        run.run(members[0].config, dataset, tmp_path)
    assert together.results[0].state.removeprefix("diverged at ") in str(ended.value)


def test_who_diverges_changes_no_bit_of_the_others(dataset):
    """One program, twice: with a first member whose weights are huge, and with a calm one."""
    members = sweeps.members(QUICK, initial_scale=[3.0, 1.0, 2.0])
    group = engine.group_of(members)
    made = engine.programs(group, dataset, sequential=False)

    def trained(first):
        hyper = engine.stacked(group, members)
        hyper = dataclasses.replace(hyper, initial_scale=hyper.initial_scale.at[0].set(first))
        return made.chunk(hyper, made.init(hyper), made.feeds()[0].portion(hyper, 0)[0], 0, STEPS)

    wild, calm = trained(1e30), trained(3.0)
    assert list(wild.unsound > 0) == [True, False, False] and not np.any(calm.unsound)
    same(*(jax.tree.map(lambda leaf: leaf[1:], state) for state in (wild, calm)))


@pytest.fixture
def traces(monkeypatch):
    """How often the train chunk has been traced by the engine."""
    counted = []
    make = engine.make_train_chunk

    def make_counted(*arguments):
        chunk = make(*arguments)

        def traced(*given):
            counted.append(None)
            return chunk(*given)

        return traced

    monkeypatch.setattr(engine, "make_train_chunk", make_counted)
    return counted


def test_numbers_compile_once(dataset, tmp_path, traces):
    """Three learning rates in chunks of two, of which the second is padded."""
    study.run_sweep(QUICK, sweeps.members(QUICK, learning_rate=[0.1, 0.2, 0.3]), dataset, tmp_path / "sweep", size=2)
    assert len(traces) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 100])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 16, 1000])
@pytest.mark.wrong_types
def test_chunks_hold_all_members_and_are_nearly_even(count, size):
    members = list(range(count))
    cut = engine.chunks(members, size)
    lengths = [len(chunk) for chunk in cut]
    assert [member for chunk in cut for member in chunk] == members
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= max(size, 1)
    assert len(cut) == -(-count // max(size, 1))  # no more chunks than needed
    length = engine.chunk_length(count, size, 1)
    assert length == max(lengths)
    assert engine.chunk_length(count, length, 1) == length  # the length is a size that leads to itself
    assert all(len(engine.padded(chunk, length)) == length for chunk in cut)


def test_no_members_are_no_chunks():
    assert engine.chunks([], 4) == []


def test_what_differs_has_an_axis_and_what_is_shared_has_none():
    (group,) = by_program(sweeps.members(momentum=[0.5, 0.9], seed=[3]))
    group = engine.group_of(group)
    assert (group.axes.momentum, group.axes.seed, group.axes.learning_rate) == (0, None, None)
    hyper = engine.stacked(group, group.members)
    np.testing.assert_array_equal(hyper.momentum, np.float32([0.5, 0.9]))
    assert hyper.seed.shape == () and int(hyper.seed) == 3


def two_members():
    (members,) = by_program(sweeps.members(QUICK, learning_rate=[0.1, 0.2]))
    return engine.group_of(members)


def test_the_plan_stays_within_the_memory_and_says_why(dataset):
    group = two_members()
    made = engine.programs(group, dataset, sequential=True)
    hyper = engine.stacked(group, group.members[:1])
    shapes = jax.eval_shape(made.init, hyper)
    portion, _ = made.feeds()[0].portion(hyper, 0)
    analysis = made.chunk.lower(hyper, shapes, portion, 0, 1).compile().memory_analysis()
    least = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    least += dataset.test.images.nbytes  # they lie on the device too

    said = []
    plan, made = engine.plan(group, dataset, least, said.append)
    assert plan.size == 0 and len(plan.reasons) == 2 and len(said) == 1
    assert any(reason.startswith("2 members need") for reason in plan.reasons)
    assert said[0].startswith("1 at a time: ") and said[0] in plan.reasons
    # what it hands back trains on
    state = made.chunk(hyper, made.init(hyper), portion, 0, STEPS)
    assert int(state.step[0]) == STEPS
    with pytest.raises(InputError, match="--memory-gb must be at least what one member needs: 1 members need .* MB"):
        engine.plan(group, dataset, least - 1, said.append)
    with pytest.raises(InputError, match="--memory-gb must be at least"):
        engine.plan(group, dataclasses.replace(dataset, validation=dataset.test), least, said.append)


def candidate(size, seconds, megabytes=1.0):
    programs = f"programs of {size}"
    return engine._Candidate(0 if size == 1 else size, programs, megabytes, "described", 0.0, lambda: seconds)


def test_the_fastest_size_is_taken_where_it_is_timed():
    made = {1: candidate(1, 4.0), 4: candidate(4, 3.0), 16: candidate(16, 3.1), 64: candidate(64, 9.0)}
    said = []
    best = engine._fastest(made.get, 64, 10.0, said_too := [], said.append)
    assert best is made[4] and said == said_too and len(said) == 4  # 16 is within 5 %, so 64 is tried
    assert said[2] == "16 at a time: 3100.00 ms a step and member (in turn with 3000.00), described"
    large = {1: candidate(1, 4.0), 4: candidate(4, 3.0, 20.0)}
    assert engine._fastest(large.get, 4, 10.0, reasons := [], said.append) is large[1]
    assert reasons[1] == "4 members need 20 MB, more than the 10 MB allowed"


def test_one_size_is_compiled_where_more_members_are_no_faster():
    tried = []

    def made(size):
        tried.append(size)
        return candidate(size, 1.0, megabytes=size)

    assert engine._largest(made, 12, 20.0, [], lambda text: None).size == 12 and tried == [12]
    assert engine._largest(made, 100, 5.0, reasons := [], lambda text: None).size == 4 and tried[1:] == [16, 8, 4]
    assert reasons == [
        "16 members need 16 MB, more than the 5 MB allowed", "8 members need 8 MB, more than the 5 MB allowed",
        "4 at a time: described",
    ]  # fmt: skip
    assert engine._largest(made, 3, 0.5, reasons, lambda text: None) is None


def test_fewer_members_than_the_plan_compiled_for_train_too(dataset):
    """As halving leaves them: the plan's own program takes two members and no other number."""
    group = two_members()
    plan, made = engine.plan(group, dataset, 2**30, lambda text: None)
    assert plan.size == 2
    for count in (2, 1):
        hyper = engine.stacked(group, group.members[:count])
        portion, _ = made.feeds()[0].portion(hyper, 0)
        state = made.chunk(hyper, made.init(hyper), portion, 0, STEPS)
        assert list(state.step) == [STEPS] * count


@pytest.mark.usefixtures("only_on_cpu")
@pytest.mark.long
def test_chunks_are_no_longer_than_what_stopping_early_leaves(dataset):
    members = sweeps.members(QUICK, learning_rate=[0.1 + 0.01 * index for index in range(9)])
    plan, _ = engine.plan(engine.group_of(members), dataset, 2**30, lambda text: None, left=2)
    assert plan.size <= engine.FEWEST
    assert plan.reasons[0] == "at most 4 at a time, so that one program serves until stopping early leaves 2"
    whole, _ = engine.plan(engine.group_of(members), dataset, 2**30, lambda text: None)
    assert "at most" not in whole.reasons[0]


ON_DEVICES = """
import pickle, sys
from pathlib import Path
from tests.sweep import test_engine
with open(sys.argv[2], "wb") as file:
    pickle.dump(test_engine.halved_to_one(Path(sys.argv[1]), int(sys.argv[3])), file)
"""


def halved_to_one(workdir, size):
    """Four members of two seeds, of which one is left: fewer than the devices. Their number, and every weight."""
    values = [{"learning_rate": rate, "seed": number % 2} for number, rate in enumerate((0.1, 0.2, 0.3, 0.4))]
    members = [space.member(number, one, QUICK) for number, one in enumerate(values)]
    swept = study.run_sweep(QUICK, members, sweeps.dataset(), workdir, size=size, halving=study.Halving((1,), 0.1))
    (last,) = [result.member for result in swept.results if result.state == "finished"]
    states = [swept.state_of(member, 1) for member in members] + [swept.state_of(last, 2)]
    return jax.device_count(), last.number, [np.asarray(leaf) for leaf in jax.tree.leaves(states)]


@pytest.mark.usefixtures("only_on_cpu")
@pytest.mark.long
def test_members_on_eight_devices_are_those_on_one(tmp_path):
    command = [sys.executable, "-c", ON_DEVICES, str(tmp_path / "eight"), str(tmp_path / "states"), "4"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    count, number, eight = pickle.loads((tmp_path / "states").read_bytes())
    _, best, one = halved_to_one(tmp_path / "one", 1)
    assert count == 8 and number == best
    for ours, theirs in zip(eight, one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    _, number, again = halved_to_one(tmp_path / "eight", 4)  # begun on eight devices, read where there is one
    assert number == best
    same(eight, again)
