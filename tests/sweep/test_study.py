import csv
import dataclasses
import json
import math
import os
import re
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.sweep import study, tables
from cnnjax.sweep.study import Halving
from cnnjax.train import run
from cnnjax.train.lock import locked
from tests.cases import some
from tests.sweep import sweeps

CONFIG = dataclasses.replace(
    sweeps.CONFIG,
    model=ModelConfig("mlp", dense=(4,)),
    train=dataclasses.replace(sweeps.CONFIG.train, save_every_seconds=1e-9),  # after every chunk of steps
)
MEMBERS = sweeps.members(CONFIG, learning_rate=[0.1, 0.02, 0.3], seed=[0, 1])
HALVING = Halving((1,), 0.5)


@pytest.fixture(scope="module")
def dataset():
    return sweeps.dataset()


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with sweeps.programs_shared():
        yield


def trained(dataset, workdir, progress=None, halving=HALVING, config=CONFIG, members=MEMBERS, **more):
    more = {"size": 2, "say": lambda text: None} | more
    return study.run_sweep(config, members, dataset, workdir, halving=halving, progress=progress, **more)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep") / "whole"
    calls = []
    return trained(dataset, workdir, lambda *call: calls.append(call)), workdir, calls


def outcome(swept):
    return [(result.state, result.metrics) for result in swept.results]


class Stop(Exception):
    pass


@pytest.mark.parametrize("share", some([0.45, 0.95], 0.95))  # in the first rung, in the second
def test_a_sweep_stopped_anywhere_ends_with_the_same_bits(dataset, whole, tmp_path, monkeypatch, share):
    """And says what is not as it was when it began, though here no bit depends on it."""
    finished, _, calls = whole
    description, place, _ = calls[round(share * len(calls)) - 1]

    def stop(now, done, total):
        if now == description and done >= place:  # how many calls come before depends on the machine's speed
            raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        trained(dataset, tmp_path / "sweep", stop)
    said = []
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--none")
    resumed = trained(dataset, tmp_path / "sweep", say=said.append)
    (others,) = [line for line in said if "it goes on otherwise than it began" in line]
    assert others.endswith("(variables.LIBTPU_INIT_ARGS: --none here, None there)")
    assert outcome(resumed) == outcome(finished)
    assert 0 < sum(result.seconds for result in resumed.results) < time.monotonic() - started
    for result in finished.results:
        last = 2 if result.state == "finished" else 1
        for epoch in range(last + 1):
            states = [swept.state_of(result.member, epoch) for swept in (finished, resumed)]
            jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_finished_sweep_is_only_read(dataset, whole):
    finished, workdir, _ = whole
    kept = ("chunks", "sweep.json")
    before = {
        path: path.stat().st_mtime_ns
        for path in workdir.rglob("*")
        if path.is_file() and path.relative_to(workdir).parts[0] in kept and path.name != "lock"
    }
    calls = []
    again = trained(dataset, workdir, lambda *call: calls.append(call))
    assert outcome(again) == outcome(finished)
    assert not calls
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_members_that_were_finished_are_not_trained_again(dataset, whole, tmp_path):
    """Only the chunk that is missing is trained."""
    finished, workdir, _ = whole
    shutil.copytree(workdir, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "chunks" / "0-0-1")
    calls = []
    again = trained(dataset, tmp_path / "sweep", lambda *call: calls.append(call))
    # it is the second of three, and each trains 3 steps to epoch 1
    assert {description for description, _, _ in calls} == {"members, to epoch 1"}
    assert all(3 < done <= 6 and total == 9 for _, done, total in calls)
    assert outcome(again) == outcome(finished)


def test_halving_keeps_the_best_share_of_settings_with_all_their_seeds(whole):
    """Members 2k and 2k + 1 are one learning rate with two seeds."""
    finished, _, _ = whole
    errors = np.array([result.metrics[1]["test_error"] for result in finished.results]).reshape(3, 2).mean(axis=1)
    best = sorted(range(3), key=lambda setting: (errors[setting], setting))[: math.ceil(3 * 0.5)]
    for result in finished.results:
        stays = result.member.number // 2 in best
        assert result.state == ("finished" if stays else "stopped at epoch 1")
        assert [line["epoch"] for line in result.metrics] == ([0, 1, 2] if stays else [0, 1])


def test_halving_says_how_many_it_leaves():
    assert [Halving((1, 2), 0.5).left(count) for count in (16, 15, 3, 1)] == [4, 4, 1, 1]
    assert Halving().left(7) == 7


def test_halving_trains_fewer_steps_and_goes_on_where_it_was(dataset, whole, tmp_path):
    """Six members for one epoch of 3 steps, four of them for one more, in twos: 5 of the 6 chunks of 3 steps. And the
    survivors end with the bits of the sweep without halving."""
    finished, workdir, calls = whole

    def steps(calls):
        return sum({description: done for description, done, _ in calls}.values())

    assert sorted(path.name for path in (workdir / "chunks").iterdir()) == ["0-0-0", "0-0-1", "0-0-2", "1-0-0", "1-0-1"]
    assert steps(calls) == 3 * 3 + 2 * 3
    all_calls = []
    full = trained(dataset, tmp_path / "full", lambda *call: all_calls.append(call), halving=study.NO_HALVING)
    assert steps(all_calls) == 3 * 6
    for result in finished.results:
        if result.state == "finished":
            states = [swept.state_of(result.member, 2) for swept in (finished, full)]
            jax.tree.map(np.testing.assert_array_equal, *states)
            assert result.metrics == full.results[result.member.number].metrics


def test_the_tables_have_every_number(whole):
    """A row a member in one; in the other a row a member, epoch and split, from which its metrics come back."""
    finished, workdir, _ = whole
    rows = list(csv.DictReader((workdir / "members.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "member", "learning_rate", "seed", "state", "diverged_epoch", "diverged_step", "seconds", "final_epoch",
        *(f"final_{split}_{name}" for split in ("train", "test") for name in ("loss", "error", "error_top5")),
        "test_error_0", "test_error_1", "test_error_2",
    ]  # fmt: skip
    for number, (row, result) in enumerate(zip(rows, finished.results, strict=True)):
        assert int(row["member"]) == number and row["state"] == result.state.split()[0]
        assert float(row["learning_rate"]) == result.member.config.hyper.learning_rate
        assert int(row["seed"]) == result.member.config.hyper.seed and float(row["seconds"]) > 0
        last = result.metrics[-1]
        assert int(row["final_epoch"]) == last["epoch"] == (2 if row["state"] == "finished" else 1)
        shown = {name.removeprefix("final_"): float(text) for name, text in row.items() if name.startswith("final_")}
        del shown["epoch"]
        assert shown == pytest.approx({name: value for name, value in last.items() if name != "epoch"}, abs=1e-6)
        errors = [line["test_error"] for line in result.metrics] + [None] * (3 - len(result.metrics))
        for epoch, error in enumerate(errors):
            text = row[f"test_error_{epoch}"]
            assert text == "" if error is None else float(text) == pytest.approx(error, abs=1e-6)
    curves = tables.read_curves(workdir / "curves.csv")
    assert list(curves) == list(range(6))
    for result in finished.results:
        for ours, theirs in zip(curves[result.member.number], result.metrics, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_another_sweep_in_the_folder_is_refused_naming_what_differs(dataset, whole):
    _, workdir, _ = whole
    before = sorted(str(path) for path in workdir.rglob("*"))
    longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, epochs=3))
    with pytest.raises(
        InputError, match=r"another sweep \(train.epochs: 3 here, 2 there; other members; other halving\)"
    ):
        trained(dataset, workdir, config=longer, members=MEMBERS[:3], halving=Halving((2,), 0.5))
    assert sorted(str(path) for path in workdir.rglob("*")) == before


def test_another_data_set_is_refused(dataset, whole):
    _, workdir, _ = whole
    changed = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=255 - dataset.train.images))
    with pytest.raises(InputError, match="on other data .sha256"):
        trained(changed, workdir)


def test_a_folder_of_something_else_is_refused_and_left_alone(dataset, tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match="--workdir must be new, empty or a sweep's"):
        trained(dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(InputError, match="--workdir must be a folder"):
        trained(dataset, tmp_path / "holiday.jpg" / "sweep")


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of the finished sweep that may be damaged, and what is said when the same command is given again."""
    _, workdir, _ = whole
    shutil.copytree(workdir, tmp_path / "sweep")
    return tmp_path / "sweep", []


def again(dataset, whole, copied):
    """The same command: every result is that of the sweep that nobody damaged."""
    workdir, said = copied
    said.clear()
    swept = trained(dataset, workdir, say=said.append)
    assert outcome(swept) == outcome(whole[0])
    for path in (whole[1] / "chunks").glob("*/metrics.jsonl"):
        assert (workdir / path.relative_to(whole[1])).read_bytes() == path.read_bytes()
    return swept


def same_states(swept, whole):
    for result in swept.results:
        for line in result.metrics:
            one, other = (each.state_of(result.member, line["epoch"]) for each in (swept, whole[0]))
            jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("place", ["0-0-0/checkpoints/epochs/0", "1-0-0/checkpoints/epochs/2"])
def test_a_damaged_checkpoint_changes_no_result_and_is_said(dataset, whole, copied, place):
    """The lines of the later epochs come back, and with them who goes on at epoch 1."""
    workdir, said = copied
    path = workdir / "chunks" / place / "metrics.jsonl"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    same_states(again(dataset, whole, copied), whole)
    assert [text for text in said if "is not as it was written; moved to" in text and place in text]


def test_a_chunks_lines_are_those_of_its_checkpoint_whatever_the_file_says(dataset, whole, copied):
    workdir, said = copied
    path = workdir / "chunks" / "0-0-1" / "metrics.jsonl"
    digit = path.read_text().replace("0.", "0.1", 1)
    for text in (digit, "", "\0", '{"epoch": 0}\n', None):
        path.unlink()
        if text is not None:
            path.write_text(text)
        again(dataset, whole, copied)
        assert [one for one in said if "0-0-1/metrics.jsonl was not as it was written" in one]


def test_a_chunk_of_other_members_is_named_and_trained_again(dataset, whole, copied):
    """Its arrays have the same shapes and its digests are right."""
    workdir, said = copied
    for ours, theirs in (("0-0-0", "0-0-1"), ("1-0-0", "1-0-1")):
        shutil.rmtree(workdir / "chunks" / ours)
        shutil.copytree(workdir / "chunks" / theirs, workdir / "chunks" / ours)
    same_states(again(dataset, whole, copied), whole)
    moved = [text for text in said if "belongs to another training, by its chunk.json; moved to" in text]
    assert len(moved) == 3  # epochs 0 and 1 of the first rung, epoch 2 of the second


def test_a_damaged_record_comes_back_from_a_checkpoints_copy(dataset, whole, copied):
    workdir, said = copied
    text = (workdir / "sweep.json").read_text()
    for damaged in (text.replace('"epochs": 2', '"epochs": 4'), text.replace(": ", ":  ", 1), text[:100]):
        (workdir / "sweep.json").write_text(damaged)
        again(dataset, whole, copied)
        assert (workdir / "sweep.json").read_text() == text
        assert "sweep.json was not as it was written; made anew" in said[0]
    (workdir / "sweep.json").unlink()
    again(dataset, whole, copied)


def test_a_damaged_record_without_a_copy_is_refused(dataset, whole, tmp_path):
    _, workdir, _ = whole
    text = (workdir / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(text.replace('"epochs": 2', '"epochs": 4'))
    with pytest.raises(InputError, match="sweep.json is not as it was written and no checkpoint has a copy"):
        trained(dataset, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"plans": None}, {"plans": []}, {"plans": [[2]]}, {"plans": [["2", [], 1]]}, {"plans": [[-1, [], 1]]},
        {"plans": [[2, [], 0]]}, {"plans": [[2, [7], 1]]}, {"plans": [[2, [], 10**9]]}, {"plans": {"size": 2}},
        {"members": 7}, {"halving": None}, {"data": {"sha256": 7}}, {"config": {"train": 7}}, {"config": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_another_form_is_refused_however_well_it_is_sealed(dataset, whole, tmp_path, changed):
    _, workdir, _ = whole
    record = json.loads((workdir / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(run.sealed(record | changed))
    with pytest.raises(InputError) as refused:
        trained(dataset, tmp_path)
    assert "\n" not in str(refused.value) and [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_a_record_nested_deeply_is_refused(dataset, tmp_path):
    (tmp_path / "sweep.json").write_text('{"config":' + 100_000 * "[")
    with pytest.raises(InputError, match="sweep.json is not as it was written"):
        trained(dataset, tmp_path)


def test_a_second_process_takes_the_chunks_that_nobody_is_at(dataset, whole, tmp_path):
    """The first stops at once; another holds chunk 1 until all the others of the rung are trained."""
    finished, _, _ = whole
    workdir, said = tmp_path / "sweep", []

    def stop(*call):
        raise Stop

    with pytest.raises(Stop):
        trained(dataset, workdir, stop)
    first, *others = [workdir / "chunks" / f"0-0-{index}" for index in (1, 0, 2)]
    first.mkdir()
    held = threading.Event()

    def hold():
        with locked(first):
            held.set()
            while not all((other / "checkpoints" / "epochs" / "1").exists() for other in others):
                time.sleep(0.01)
            untouched.append(not (first / "checkpoints").exists())

    untouched, holder = [], threading.Thread(target=hold)
    holder.start()
    held.wait()
    joined = trained(dataset, workdir, join=True, say=said.append)
    holder.join()
    assert untouched == [True] and outcome(joined) == outcome(finished)
    assert not (workdir / "members.csv").exists()

    def none_left(*call):
        raise AssertionError("trained again")

    assert outcome(trained(dataset, workdir, none_left)) == outcome(finished)
    assert (workdir / "members.csv").exists()


def test_who_is_waited_for_is_said_and_no_wait_is_without_end(dataset, copied):
    """As for a process that was suspended: it holds the lock and changes no file."""
    workdir, said = copied
    with locked(workdir / "chunks" / "0-0-2"), pytest.raises(InputError) as ended:
        trained(dataset, workdir, say=said.append, patience=0.1)
    whom = rf"chunk 0-0-2 of {workdir} \(held by pid {os.getpid()} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\)"
    assert [text for text in said if re.match(f"waits for {whom}; the last change there was seen 0 s ago", text)]
    assert re.fullmatch(
        f"{whom} must go on, and no file there has changed for .* minutes; wake or end .*", str(ended.value)
    )


def test_there_must_be_a_sweep_to_join(dataset, tmp_path):
    with pytest.raises(InputError, match="--join must find a sweep that was begun without it, and .*no sweep.json"):
        trained(dataset, tmp_path / "sweep", join=True)
    assert not (tmp_path / "sweep").exists()


def test_two_at_once_exclude_each_other(dataset, whole):
    _, workdir, _ = whole
    with locked(workdir), pytest.raises(InputError, match="must not be in use by another process, and is .pid"):
        trained(dataset, workdir)


@pytest.mark.parametrize(
    ("halving", "match"),
    [
        (Halving((2,), 0.5), "--halve-at must be epochs from 1 to 1, got"),
        (Halving((0,), 0.5), "--halve-at must be epochs from 1 to 1, got"),
        (Halving((1, 1), 0.5), "--halve-at must be rising epochs"),
        (Halving((1,), 1.0), "--keep must be a share between 0 and 1, got 1.0"),
        (Halving((1,), math.nan), "--keep must be a share"),
    ],
)
def test_bad_halving_is_refused_before_anything_is_written(dataset, tmp_path, halving, match):
    with pytest.raises(InputError, match=match):
        trained(dataset, tmp_path / "sweep", halving=halving)
    assert not (tmp_path / "sweep").exists()


def test_a_member_whose_network_does_not_fit_writes_nothing(dataset, tmp_path):
    members = sweeps.members(sweeps.CONFIG, model__filters=[(3,), (30,)])
    with pytest.raises(InputError, match="conv1: a 30×30 filter"):
        trained(dataset, tmp_path / "sweep", config=sweeps.CONFIG, members=members)
    assert not (tmp_path / "sweep").exists()


def test_a_member_becomes_a_run_of_its_own(dataset, whole, tmp_path):
    """`run` finds the exported folder finished: nothing is trained, and the bits are the sweep's."""
    finished, _, _ = whole
    result = next(result for result in finished.results if result.state == "finished")
    config = result.member.config
    states = {epoch: finished.state_of(result.member, epoch) for epoch in config.train.kept_epochs}
    run.export(tmp_path / "best", config, dataset, states, result.metrics)
    calls = []
    found = run.run(config, dataset, tmp_path / "best", lambda *call: calls.append(call))
    assert not calls and found.metrics == result.metrics
    jax.tree.map(np.testing.assert_array_equal, found.states, states)
    lines = (tmp_path / "best" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.metrics
