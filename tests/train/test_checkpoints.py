"""Damage to a checkpoint: refused by name, never other values, and moved aside."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import serialization

from cnnjax.errors import InputError, Terminated
from cnnjax.train import checkpoints as checkpoints_of
from cnnjax.train import interruption
from cnnjax.train import run as running
from cnnjax.train.checkpoints import Checkpoints, Damaged, read, verify, write
from cnnjax.train.lock import locked
from tests.train.test_run import CONFIG, dataset, same, whole  # noqa: F401 - fixtures


@pytest.fixture
def copied(whole, tmp_path):  # noqa: F811
    finished, workdir = whole
    shutil.copytree(workdir, tmp_path / "run")
    return finished, tmp_path / "run"


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_checkpoint_holds_what_was_saved(copied):
    finished, workdir = copied
    kept = read(workdir / "checkpoints" / "epochs" / "1", finished.states[1])
    same(kept.state, finished.states[1])
    assert [json.loads(line)["epoch"] for line in kept.texts["metrics.jsonl"].splitlines()] == [0, 1]
    assert kept.texts["config.json"] == (workdir / "config.json").read_text()


def test_every_flipped_bit_is_refused_with_the_file_in_which_it_is(copied):
    finished, workdir = copied
    folder = workdir / "checkpoints" / "epochs" / "2"
    generator = np.random.default_rng(0)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(paths) > 5
    for path in paths:
        for bit in generator.integers(8 * path.stat().st_size, size=3):
            flip(path, bit)
            with pytest.raises(Damaged, match=path.name.replace(".", r"\.")):
                read(folder, finished.states[2])
            flip(path, bit)
    same(read(folder, finished.states[2]).state, finished.states[2])


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing", "no manifest", "of another epoch"])
def test_a_damaged_epoch_is_moved_aside_and_made_again(dataset, copied, damage):  # noqa: F811
    finished, workdir = copied
    folder = workdir / "checkpoints" / "epochs" / "1"
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if damage == "flipped":
        flip(path, 1001)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        shutil.rmtree(folder)
        shutil.copytree(workdir / "checkpoints" / "epochs" / "2", folder)
    said = []
    again = running.run(CONFIG, dataset, workdir, say=said.append)
    same(again.states, finished.states)
    assert again.metrics == finished.metrics
    (line,) = said
    assert str(folder) in line and "moved to" in line and (workdir / "checkpoints" / "damaged" / "epochs-1-1").is_dir()


def test_what_is_no_checkpoint_is_moved_aside(dataset, copied):  # noqa: F811
    finished, workdir = copied
    epochs = workdir / "checkpoints" / "epochs"
    (epochs / "99").mkdir()
    (epochs / "98").write_text("")
    (epochs / "007").mkdir()
    said = []
    same(running.run(CONFIG, dataset, workdir, say=said.append).states, finished.states)
    assert len(said) == 3 and {path.name for path in epochs.iterdir()} == {"0", "1", "2"}


def test_a_damaged_newest_state_is_answered_by_an_older_one(dataset, copied):  # noqa: F811
    finished, workdir = copied
    shutil.rmtree(workdir / "checkpoints" / "epochs" / "2")
    newest = workdir / "checkpoints" / "latest" / "30"
    with Checkpoints(workdir) as checkpoints:
        state = finished.states[1]._replace(step=jax.numpy.int32(30))  # no state that the run ever had
        checkpoints.save_latest(30, state, {"metrics.jsonl": "", "config.json": ""})
    verify(newest)
    flip(newest / "manifest.json", 77)
    said = []
    same(running.run(CONFIG, dataset, workdir, say=said.append).states, finished.states)
    assert len(said) == 1 and str(newest) in said[0]


def test_metrics_and_config_come_back_from_the_checkpoints(dataset, copied):  # noqa: F811
    finished, workdir = copied
    config, metrics = ((workdir / name).read_bytes() for name in ("config.json", "metrics.jsonl"))
    for name, bit in (("config.json", 999), ("metrics.jsonl", 333)):
        flip(workdir / name, bit)
    said = []
    again = running.run(CONFIG, dataset, workdir, say=said.append)
    assert again.metrics == finished.metrics and len(said) == 1 and "config.json was not as it was written" in said[0]
    assert (workdir / "config.json").read_bytes() == config and (workdir / "metrics.jsonl").read_bytes() == metrics
    with pytest.raises(InputError, match="not a run's config.json as it was written"):
        running.read_config(workdir / "config.json.damaged-1")
    (workdir / "config.json").unlink()
    running.run(CONFIG, dataset, workdir, say=said.append)
    assert (workdir / "config.json").read_bytes() == config


def test_a_state_of_another_network_is_refused_and_stays(copied):
    finished, workdir = copied
    folder = workdir / "checkpoints" / "epochs" / "1"
    other = finished.states[1]._replace(step=jax.numpy.zeros(3))
    with pytest.raises(InputError, match=r"\.step is int32\[\] there and float32\[3\] here"):
        read(folder, other)
    verify(folder)


def test_a_save_that_fails_is_an_error_and_leaves_the_others(copied):
    finished, workdir = copied
    with pytest.raises(InputError, match="must stay where it is, and was removed"), Checkpoints(workdir) as checkpoints:
        workdir.rename(workdir.with_name("elsewhere"))
        checkpoints.save_latest(23, finished.states[1], {})
    assert not workdir.exists()


def test_a_folder_that_goes_in_the_middle_of_a_save_is_not_made_anew(copied, monkeypatch):
    """Orbax makes the folders above what it writes, wherever they are gone."""
    finished, workdir = copied

    def going(folder, temporary, *rest):
        workdir.rename(workdir.with_name("elsewhere"))
        temporary.mkdir(parents=True)
        write(folder, temporary, *rest)

    monkeypatch.setattr(checkpoints_of, "write", going)
    with pytest.raises(InputError, match="must stay where it is, and was removed"), Checkpoints(workdir) as checkpoints:
        checkpoints.save_latest(23, finished.states[1], {})
    assert not workdir.exists()


def test_what_goes_wrong_in_a_removed_folder_is_said_to_be_its_removal(copied):
    _, workdir = copied
    with pytest.raises(InputError, match="must stay where it is, and was removed"), Checkpoints(workdir):
        workdir.rename(workdir.with_name("elsewhere"))
        (workdir / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("number", "exception"), interruption.SIGNALS.items())
def test_a_signal_while_a_checkpoint_is_read_is_no_damage(copied, monkeypatch, number, exception):
    """Where Orbax reads a shard it makes an Exception of whatever is raised."""
    finished, workdir = copied
    read_shard, handler, sent = serialization._read_shard, signal.getsignal(signal.SIGTERM), []

    def interrupted(*args, **kwargs):
        if not sent:  # a second SIGINT is meant to end what is going on
            sent.append(number)
            signal.raise_signal(number)
        return read_shard(*args, **kwargs)

    def terminated(*_):
        raise Terminated

    monkeypatch.setattr(serialization, "_read_shard", interrupted)
    signal.signal(signal.SIGTERM, terminated)
    try:
        with pytest.raises(exception):
            read(workdir / "checkpoints" / "epochs" / "1", finished.states[1])
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_two_processes_do_not_share_a_folder(dataset, copied):  # noqa: F811
    _, workdir = copied
    with locked(workdir), pytest.raises(InputError, match=rf"is \(pid {os.getpid()} on "):
        running.run(CONFIG, dataset, workdir)
    running.run(CONFIG, dataset, workdir)
