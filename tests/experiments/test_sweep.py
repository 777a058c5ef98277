"""A small sweep from the command line to its figures and its best member, and what is refused."""

import csv
import dataclasses
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from cnnjax import cli
from cnnjax.config import ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.sweep import ranking, space, study
from cnnjax.train import run
from experiments import sweep
from tests.experiments.test_filter_evolution import Quiet
from tests.sweep import sweeps

SMALL = [
    "--config", "digits", "--model.widths", "2", "--model.filters", "3", "--model.paddings", "1", "--model.dense", "4",
    "--train.epochs", "2", "--train.keep-epochs", "1", "--train.batch-size", "256",
]  # fmt: skip


def told(*words):
    axes, rest = sweep.take_axes(sweeps.last_of_each(*SMALL, *words))
    return cli.parse(rest, sweep.Options())._replace(taken=axes)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    words = ["--sweep.learning-rate", "1e-3,1e-1", "--sweep.momentum=0.5,0.9", "--chunk", "2", "--halve-at", "1"]
    arguments = told(*words, "--workdir", str(folder / "sweep"), "--best", str(folder / "best"))
    sweep.main(arguments, Quiet())
    return arguments, folder


def test_a_sweep_leaves_a_table_and_every_figure_with_its_numbers(swept):
    _, folder = swept
    with open(folder / "sweep" / "members.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["learning_rate"]), float(row["momentum"])) for row in rows] == [
        (1e-3, 0.5), (1e-3, 0.9), (1e-1, 0.5), (1e-1, 0.9)
    ]  # fmt: skip
    assert sorted(row["state"] for row in rows) == ["finished"] * 2 + ["stopped"] * 2
    names = {path.name for path in (folder / "sweep" / "figures").iterdir()}
    assert {"curves.png", "curves.npz", "filters.png", "filters.npz"} <= names
    assert {name[:-4] for name in names if name.endswith(".png")} == {n[:-4] for n in names if n.endswith(".npz")}
    with np.load(folder / "sweep" / "figures" / "curves.npz") as arrays:
        assert arrays["errors"].shape == (4, 3)
        for row, errors in zip(rows, arrays["errors"], strict=True):
            shown = [row[f"test_error_{epoch}"] for epoch in range(3)]
            np.testing.assert_allclose(errors, [float(text) if text else np.nan for text in shown], atol=1e-6)


def test_the_best_member_is_a_run_that_every_script_takes(swept):
    _, folder = swept
    with open(folder / "sweep" / "members.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "finished"]
    best = min(rows, key=lambda row: float(row["test_error_2"]))
    config = run.read_config(folder / "best" / "config.json")
    assert config.hyper.learning_rate == float(best["learning_rate"])
    calls = []
    found = run.run(config, load(config.data), folder / "best", lambda *call: calls.append(call))
    assert not calls and list(found.states) == [0, 1, 2]
    assert found.metrics[2]["test_error"] == pytest.approx(float(best["test_error_2"]), abs=1e-6)


def test_axes_are_taken_from_among_the_other_options():
    axes, rest = sweep.take_axes(["--config", "digits", "--sweep.seed", "0:2", "--yes", "--sweep.model.norm=none,lrn"])
    assert axes == {"seed": [0, 1], "model.norm": ["none", "lrn"]}
    assert rest == ["--config", "digits", "--yes"]
    with pytest.raises(InputError, match="--sweep.seed must be given once, got it twice"):
        sweep.take_axes(["--sweep.seed", "0:2", "--sweep.seed", "3"])
    with pytest.raises(InputError, match="--sweep.seed must be followed by values, got nothing"):
        sweep.take_axes(["--config", "digits", "--sweep.seed"])


BAD = [
    (["--sweep.rate", "1"], "--sweep.NAME must be one of learning_rate, momentum, .*, got 'rate'"),
    (["--sweep.seed", "2:0"], "--sweep.seed must be a rising range"),
    ([], "--sweep must be given an axis"),
    (["--sweep.dropout-rate", "0,1"], "member 1: hyper.dropout_rate must be less than 1"),
    (["--sweep.seed", "0:200000"], "--yes must be given for more than 100,000 members, got 200,000"),
    (["--sweep.seed", "0:2", "--engine", "parallel"], "--engine must be together or sequential, got 'parallel'"),
    (["--sweep.seed", "0:2", "--chunk", "0"], "--chunk must be at least 1"),
    (["--sweep.seed", "0:2", "--chunk", "4", "--engine", "sequential"], "--chunk .* goes with --engine together"),
    *((["--sweep.seed", "0:2", "--memory-gb", text], "--memory-gb must be a finite") for text in ("nan", "inf", "0")),
    (["--sweep.seed", "0:2", "--wait-minutes", "nan"], "--wait-minutes must be a finite number > 0, got nan"),
    (["--sweep.seed", f"0:{'9' * 5000}"], "--sweep.seed must be values of type int"),
    (["--sweep.filter-rms", "uniform:0:inf"], "--sweep.filter_rms must be uniform:LOW:HIGH"),
    (["--sweep.seed", "0:2", "--samples", "0"], "--samples must be at least 1"),
    (["--sweep.seed", "0:2", "--halve-at", "2"], "--halve-at must be epochs from 1 to 1"),
    (["--sweep.seed", "0:2", "--halve-at", "1", "--keep", "1"], "--keep must be a share between 0 and 1"),
    (["--sweep.seed", "0:2", "--members", "members.csv"], "--members and --sweep exclude each other"),
    (["--members", "missing.csv"], "--members must be a CSV file, got missing.csv"),
    (["--sweep.seed", "0:2", "--train.on-nan", "skip"], "train.on_nan must be stop in a sweep"),
    (["--sweep.seed", "0:2", "--train.start", "a.npz"], "train.start must be None in a sweep"),
    (
        ["--sweep.batch-norm-momentum", "0.5,0.9"],
        "--sweep.batch_norm_momentum must be left out for lenet, which has no",
    ),
    (["--sweep.seed", "0:2", "--hyper.batch-norm-momentum", "0.5"], "--hyper.batch-norm-momentum must be left out"),
    (["--sweep.model.filters", "3,30"], "conv1: a 30×30 filter with stride 1 does not fit 8×8"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words)[:60] or "nothing" for words, _ in BAD])
def test_bad_input_is_refused_before_anything_is_written(tmp_path, words, message):
    with pytest.raises(InputError, match=message) as caught:
        sweep.main(told(*words, "--workdir", str(tmp_path / "new")), Quiet())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("best", ["sweep", "sweep/best", "sweep/../sweep/figures", "link/best", "."])
def test_the_best_members_folder_is_apart_from_the_sweeps(tmp_path, best):
    """Before anything is trained, or written."""
    (tmp_path / "link").symlink_to("sweep")
    words = ["--sweep.seed", "0:2", "--workdir", str(tmp_path / "sweep"), "--best", str(tmp_path / best)]
    with pytest.raises(InputError, match="--best must be a folder apart from --workdir, got"):
        sweep.main(told(*words), Quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_best_folder_with_the_run_of_no_member_is_refused_before_training(swept, tmp_path):
    _, folder = swept
    words = ["--sweep.seed", "0:2", "--workdir", str(tmp_path / "new"), "--best", str(folder / "best")]
    with pytest.raises(InputError, match="--best must be new, empty or the run of a member, and .* holds another run"):
        sweep.main(told(*words), Quiet())
    assert list(tmp_path.iterdir()) == []


def test_members_from_a_pipe_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "members.csv")
    with pytest.raises(InputError, match="--members must be a CSV file, got .*members.csv, which is none"):
        sweep.main(told("--members", str(tmp_path / "members.csv"), "--workdir", str(tmp_path / "new")), Quiet())


def test_first_filters_are_drawn_of_any_network_each_member_with_its_own(tmp_path):
    """Whatever its layers are called, and whatever the filters' sizes; a network without filters is left out."""
    base = cli.load_config("digits")
    kinds = [ModelConfig("resnet20", width=0.1), ModelConfig("squeezenet1_1", width=0.1), ModelConfig("mlp", dense=())]
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, image_size=32), train=TrainConfig(epochs=1))
    dataset = load(config.data)
    members = [
        space.Member(number, {"model.name": kind.name}, dataclasses.replace(config, model=kind))
        for number, kind in enumerate(kinds)
    ]
    metrics = [{"epoch": epoch, "test_error": 0.5} for epoch in (0, 1)]

    def weights(member, epoch):
        network = run.build(member.config, dataset)
        shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32))["params"]
        generator = np.random.default_rng((member.number, epoch))
        return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)

    def state_of(member, epoch):
        return types.SimpleNamespace(params=weights(member, epoch))

    finished = [study.Result(member, "finished", metrics, 1.0, []) for member in members]
    whole = study.Sweep(config, finished, [], state_of)
    sweep.draw_filters(tmp_path, whole, dataset, ranking.ranked(finished, "test_error"))
    with np.load(tmp_path / "filters.npz") as arrays:
        assert sorted(arrays) == ["epochs", "kernels_0", "kernels_1", "members"]
        assert arrays["kernels_0"].shape == (2, 3, 3, 1, 2) and arrays["kernels_1"].shape == (2, 3, 3, 1, 6)
        for epoch in (0, 1):
            np.testing.assert_array_equal(arrays["kernels_0"][epoch], weights(members[0], epoch)["conv1"]["kernel"])
            np.testing.assert_array_equal(
                arrays["kernels_1"][epoch], weights(members[1], epoch)["features.0"]["kernel"]
            )
    sweep.draw_filters(tmp_path / "none", whole, dataset, ranking.ranked(finished[2:], "test_error"))
    assert not (tmp_path / "none").exists()


@pytest.mark.long
def test_where_all_members_diverge_there_is_no_best(tmp_path):
    """The table says so, and no run is written."""
    said = []
    quiet = Quiet()
    quiet.say = said.append
    words = ["--hyper.initial-scale", "1e3", "--hyper.learning-rate", "1e3", "--sweep.momentum", "0.5,0.9"]
    arguments = told(
        *words, *sweeps.MLP, "--chunk", "2", "--workdir", str(tmp_path / "sweep"), "--best", str(tmp_path / "best")
    )
    with pytest.raises(InputError, match="--best must have a member that finished, and none did"):
        sweep.main(arguments, quiet)
    assert "no member has finished: all 2 diverged" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]
    with open(tmp_path / "sweep" / "members.csv") as file:
        assert all((row["state"], row["diverged_epoch"]) == ("diverged", "2") for row in csv.DictReader(file))


def test_bad_input_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", *SMALL, "--sweep.learning-rate", "0.1,-1"]
    done = subprocess.run([*command, "--workdir", str(tmp_path / "new")], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: member 1: hyper.learning_rate must be between 0 and 1000, got -1.0")
    assert not (tmp_path / "new").exists()
