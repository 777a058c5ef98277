"""Runs that other versions have written: format 1, which every later version reads, and the one before it.

golden/format-1 was made by version 0.2 with
    python -m experiments.train --config digits --model.name mlp --model.widths None --model.filters None
        --model.paddings None --model.init None --model.dense 2 --train.epochs 1 --train.batch-size 512 --hyper.shift 0
golden/before-0.2 with the same command by version 0.1, without its epoch 0. Never make them anew: a format that has
changed gets a number and a folder of its own.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cnnjax import cli
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run as running
from cnnjax.train.checkpoints import verify

GOLDEN = Path(__file__).parent / "golden"
NEW, OLD = GOLDEN / "format-1", GOLDEN / "before-0.2"


@pytest.fixture(scope="module")
def dataset():
    return load(running.read_config(NEW / "config.json").data)


def test_a_run_in_format_1_has_the_values_that_it_was_saved_with(dataset):
    config = running.read_config(NEW / "config.json")
    assert (config.model.name, config.model.dense, config.train.epochs) == ("mlp", (2,), 1)
    assert running.kept_epochs(NEW) == [0, 1]
    running.check_data(NEW, dataset)
    state = running.load_epoch(NEW, config, running.build(config, dataset), dataset, 1)
    np.testing.assert_array_equal(
        state.params["fc1"]["bias"], np.array([-0.05543120577931404, -0.024736622348427773], np.float32)
    )
    assert int(state.step) == 3
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    assert digest.hexdigest() == "b0b920b8952f39b1c7e3631ea6b392f2073ea5cef3d6cd542932d15bd8c35041"
    assert running.read_metrics(NEW)[1]["test_loss"] == 2.973824248672528


def test_a_run_in_format_1_is_found_finished(dataset, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(NEW, workdir)
    calls, said = [], []
    config = running.read_config(workdir / "config.json")
    finished = running.run(config, dataset, workdir, lambda *call: calls.append(call), said.append)
    assert not calls and not said and list(finished.states) == [0, 1]


def test_a_checkpoint_without_digests_is_refused_and_stays_where_it_is(dataset, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(OLD, workdir)
    before = sorted(workdir.rglob("*"))
    message = (
        r"checkpoints/epochs/1 is from a cnnjax before 0.2, which kept no digests, so it cannot be trusted; "
        "train again in a new folder, or look into it with that version"
    )
    config = cli.load_config(str(workdir / "config.json"))  # the config itself can be used again
    with pytest.raises(InputError, match=message):
        running.run(config, dataset, workdir)
    with pytest.raises(InputError, match=message):
        running.load_epoch(workdir, config, running.build(config, dataset), dataset, 1)
    assert sorted(workdir.rglob("*")) == before


def test_a_later_format_is_refused_with_the_version_to_use(tmp_path):
    folder = tmp_path / "epochs" / "1"
    shutil.copytree(NEW / "checkpoints" / "epochs" / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"format": 2, "cnnjax": "7.1"}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}))
    with pytest.raises(
        InputError, match=r"is of format 2, written by cnnjax 7\.1; .* reads format 1: use that version"
    ):
        verify(folder)
