"""Runs and members side by side: what is drawn and said of them, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnjax.config import Config, from_json, to_json
from cnnjax.errors import InputError
from cnnjax.sweep import space, study, tables
from cnnjax.train import run
from experiments import compare
from tests.train.test_golden import NEW

RECORD = json.loads((NEW / "config.json").read_text())
CONFIG = from_json(RECORD["config"])


class Said:
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def a_run(folder: Path, config: Config = CONFIG, data: str = "0" * 64, lines: str | None = None) -> str:
    """The files of a run that are looked at."""
    folder.mkdir()
    record = RECORD | {"config": to_json(config), "data": {"name": "digits", "sha256": data}}
    (folder / "config.json").write_text(run.sealed(record))
    (folder / "metrics.jsonl").write_text((NEW / "metrics.jsonl").read_text() if lines is None else lines)
    return str(folder)


def a_sweep(folder: Path) -> str:
    """Two members, of which the second has an epoch more."""
    folder.mkdir()
    members = space.grid_and_draws(CONFIG, {"learning_rate": [0.5, 0.25]}, 1, 0)
    record = RECORD | {"members": [member.values for member in members], "data": {"name": "a", "sha256": "0" * 64}}
    (folder / "sweep.json").write_text(run.sealed(record))
    lines = [{"epoch": 0, "test_error": 0.75}, {"epoch": 1, "train_error": 0.5, "test_error": 0.625}]
    results = [study.Result(one, "finished", lines[: one.number + 1], 1.0, []) for one in members]
    (folder / "curves.csv").write_text(tables.curves_table(results))
    return str(folder)


def compared(tmp_path, *names):
    """What is said, and the arrays behind the figure."""
    said = Said()
    (picture,) = compare.main(compare.Options(names, tmp_path / "to" / "here"), said)
    with np.load(picture.with_suffix(".npz")) as arrays:
        return said.lines, dict(arrays)


def test_runs_are_drawn_together_and_their_fields_named(tmp_path):
    hyper = dataclasses.replace(CONFIG.hyper, learning_rate=0.5)
    train = dataclasses.replace(CONFIG.train, save_every_seconds=1.0)  # which changes no result
    other = dataclasses.replace(CONFIG, hyper=hyper, train=train)
    one, two = a_run(tmp_path / "one"), a_run(tmp_path / "two", other)
    said, arrays = compared(tmp_path, one, two)
    assert said[:2] == [
        "they differ in 1 field",
        f"hyper.learning_rate: {CONFIG.hyper.learning_rate} in {one}; 0.5 in {two}",
    ]
    lines = [json.loads(line) for line in (NEW / "metrics.jsonl").read_text().splitlines()]
    for number in (0, 1):
        np.testing.assert_array_equal(arrays[f"epochs_{number}"], [line["epoch"] for line in lines])
        np.testing.assert_array_equal(arrays[f"test_loss_{number}"], [line["test_loss"] for line in lines])
    assert list(arrays["names"]) == [
        f"{one}\nlearning_rate {CONFIG.hyper.learning_rate}", f"{two}\nlearning_rate 0.5"
    ]  # fmt: skip


def test_a_member_stands_beside_a_run_and_a_sweep_is_all_its_members(tmp_path):
    sweep, alone = a_sweep(tmp_path / "sweep"), a_run(tmp_path / "alone")
    _, arrays = compared(tmp_path, alone, f"{sweep}:1")
    np.testing.assert_array_equal(arrays["test_error_1"], [0.75, 0.625])
    said, arrays = compared(tmp_path, sweep)
    assert said[1] == f"hyper.learning_rate: 0.5 in {sweep}:0; 0.25 in {sweep}:1"
    np.testing.assert_array_equal(arrays["epochs_0"], [0])
    np.testing.assert_array_equal(arrays["test_error_1"], [0.75, 0.625])


def test_losses_of_two_kinds_are_left_out_and_other_data_are_named(tmp_path):
    squared = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, loss="squared_error"))
    names = a_run(tmp_path / "one"), a_run(tmp_path / "two", squared, data="1" * 64)
    said, _ = compared(tmp_path, *names)
    assert "the losses are left out: train.loss differ, so they are not of one kind" in said
    assert "the trainings are on different data: their errors may be of other images" in said
    assert f"data (SHA-256): 000000000000 in {names[0]}; 111111111111 in {names[1]}" in said


def test_networks_of_two_kinds_have_their_errors_side_by_side(tmp_path):
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, name="lenet"))
    said, arrays = compared(tmp_path, a_run(tmp_path / "one"), a_run(tmp_path / "two", other))
    assert any(line.startswith("model.name: mlp in ") for line in said) and "test_error_1" in arrays


def refused(match, tmp_path, *names, to="to"):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=match) as caught:
        compare.main(compare.Options(names, tmp_path / to), Said())
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    one, two, sweep = a_run(tmp_path / "one"), a_run(tmp_path / "two"), a_sweep(tmp_path / "sweep")
    empty = a_run(tmp_path / "empty", lines="")
    numberless = [a_run(tmp_path / name, lines='{"epoch": 0}\n') for name in ("a", "b")]
    shutil.copytree(sweep, tmp_path / "begun")
    (tmp_path / "begun" / "curves.csv").unlink()
    refused("DIR must be from 2 to 24 runs or members", tmp_path, one)
    refused("DIR must be from 2 to 24 runs or members", tmp_path)
    refused("DIR must be given once, got .*one twice", tmp_path, one, two, one)
    refused("DIR must be the folder of a run or of a sweep, got .*nowhere.*, which is none", tmp_path, one, "nowhere")
    refused("and .* has no config.json", tmp_path, one, str(tmp_path))
    refused("DIR must be a run with metrics, and .*empty' has none yet", tmp_path, one, empty)
    refused("DIR must be trainings of which an error is known", tmp_path, *numberless)
    refused("DIR:N must be a member from 0 to 1, got .*sweep:2", tmp_path, one, f"{sweep}:2")
    refused("must be a sweep's folder, and has no sweep.json", tmp_path, two, f"{one}:0")
    refused("and .*begun' has no curves.csv: the same command makes it", tmp_path, str(tmp_path / "begun"))
    refused("--to must be new, empty or that of a comparison, and .*one has config.json", tmp_path, one, two, to="one")


def test_a_folder_without_permission_is_refused(tmp_path):
    one, two = a_run(tmp_path / "one"), a_run(tmp_path / "two")
    Path(two).chmod(0)
    try:
        if os.access(two, os.R_OK):
            pytest.skip("this user may read everything")
        refused("DIR must be a folder that can be read, got .*two", tmp_path, one, two)
    finally:
        Path(two).chmod(0o700)


def test_bad_input_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "experiments.compare", "nowhere", "elsewhere", "--to", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: DIR must be the folder of a run")
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []
