"""Damage to a checkpoint: refused by name, never other values, and moved aside."""

import gc
import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import serialization

from cnnjax.config import to_json
from cnnjax.errors import InputError, Terminated
from cnnjax.train import interruption
from cnnjax.train import run as running
from cnnjax.train.checkpoints import Checkpoints, Damaged, read, verify, write
from cnnjax.train.lock import locked
from tests.cases import normal, some
from tests.train.small import CONFIG, VALUES, same


@pytest.fixture
def copied(whole, tmp_path):
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


DAMAGES = ["flipped", "cut", "emptied", "missing", "no manifest", "of another epoch"]


@pytest.mark.parametrize("damage", some(DAMAGES, "flipped", "missing", "of another epoch"))
def test_a_damaged_epoch_is_moved_aside_and_made_again(dataset, copied, damage):
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


def test_what_is_no_checkpoint_is_moved_aside(dataset, copied):
    finished, workdir = copied
    epochs = workdir / "checkpoints" / "epochs"
    (epochs / "99").mkdir()
    (epochs / "98").write_text("")
    (epochs / "007").mkdir()
    said = []
    same(running.run(CONFIG, dataset, workdir, say=said.append).states, finished.states)
    assert len(said) == 3 and {path.name for path in epochs.iterdir()} == {"0", "1", "2"}


def put_in(workdir, kind, number, state, texts, **of_record):
    """A checkpoint, whole and rightly sealed, whose copy of config.json says something else."""
    record = json.loads(texts["config.json"]) | of_record
    temporary, folder = (workdir / "checkpoints" / place for place in ("tmp/put", f"{kind}/{number}"))
    shutil.rmtree(folder, ignore_errors=True)
    texts = dict(texts, **{"config.json": running.sealed(record)})
    write(folder, temporary, jax.tree.map(np.asarray, state), texts, kind)


def other_seed():
    config = to_json(CONFIG)
    return {"config": config | {"hyper": config["hyper"] | {"seed": 1}}}


def test_checkpoints_of_others_are_moved_aside_and_made_anew(dataset, copied):
    """Whole, rightly sealed, of the same shapes: of another run, of other data, of another epoch, of another step."""
    finished, workdir = copied
    texts = {
        epoch: read(workdir / "checkpoints" / "epochs" / str(epoch), finished.states[epoch]).texts
        for epoch in (0, 1, 2)
    }
    put_in(workdir, "epochs", 0, finished.states[0], texts[0], **other_seed())
    put_in(workdir, "epochs", 1, finished.states[2], texts[1])
    put_in(workdir, "epochs", 2, finished.states[2], texts[2], data={"name": "digits", "sha256": 64 * "0"})
    put_in(workdir, "latest", 30, finished.states[1], texts[1])
    with pytest.raises(InputError, match=r"epochs/2 is of another run \(other data\); train again"):
        running.load_epoch(workdir, CONFIG, finished.network, dataset, 2)
    said = []
    again = running.run(CONFIG, dataset, workdir, say=said.append)
    same(again.states, finished.states)
    assert again.metrics == finished.metrics
    expected = {
        "epochs/0": "is of another run (hyper.seed: 0 here, 1 there); moved to ",
        "epochs/2": "is of another run (other data); moved to ",
        "latest/30": "holds the state of step 23; moved to ",
        "epochs/1": "holds the state of step 46; moved to ",
    }
    moved = [line for line in said if "moved to" in line]
    for line, (place, why) in zip(moved, expected.items(), strict=True):
        assert line.startswith(f"{workdir}/checkpoints/{place} {why}"), line


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:1], "not those of its epochs"),
        (lambda lines: lines + lines[1:], "not those of its epochs"),
        (lambda lines: [lines[1], lines[0]], "not those of its epochs"),
        (lambda lines: ["[]\n", "{}\n"], "not those of its epochs"),
        (lambda lines: [10**4 * "[" + "\n", *lines], "not those of its epochs"),
        (lambda lines: [lines[0], lines[1].replace('"train_loss": ', '"train_loss": 1')], "not those of its state"),
    ],
)
def test_metrics_that_do_not_fit_a_checkpoint_are_found(dataset, copied, change, why):
    finished, workdir = copied
    folder = workdir / "checkpoints" / "epochs" / "1"
    texts = read(folder, finished.states[1]).texts
    lines = change(texts["metrics.jsonl"].splitlines(keepends=True))
    put_in(workdir, "epochs", 1, finished.states[1], texts | {"metrics.jsonl": "".join(lines)})
    with pytest.raises(Damaged, match=f"epochs/1 has metrics that are {why}"):
        read(folder, finished.states[1], running.of_run(CONFIG, dataset))


def test_a_config_that_is_lost_does_not_come_from_another_run(dataset, copied):
    finished, workdir = copied
    texts = read(workdir / "checkpoints" / "epochs" / "0", finished.states[0]).texts
    put_in(workdir, "epochs", 0, finished.states[0], texts, **other_seed())
    (workdir / "config.json").unlink()
    with running.claimed(workdir, CONFIG, dataset, print):
        assert (workdir / "config.json").read_text() == texts["config.json"]


@pytest.mark.parametrize("field", ["format", "cnnjax", "kind", "number", "arrays", "files"])
def test_a_manifest_of_another_form_is_one_line(copied, field):
    finished, workdir = copied
    folder = workdir / "checkpoints" / "epochs" / "1"
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    inner = [None, *manifest[field]][:3] if isinstance(manifest[field], dict) else [None]
    for name in inner:
        for value in VALUES:
            changed = manifest | {field: value if name is None else manifest[field] | {name: value}}
            path.write_text(running.sealed(changed))
            try:
                same(read(folder, finished.states[1]).state, finished.states[1])
            except (Damaged, InputError) as error:
                assert "\n" not in str(error)
    for name in ("/dev/zero", "../../../lock", "state/../../0/manifest.json", "none"):
        path.write_text(running.sealed(manifest | {"files": manifest["files"] | {name: 64 * "0"}}))
        with pytest.raises(Damaged, match="is missing or cannot be read"):
            read(folder, finished.states[1])


def test_a_damaged_newest_state_is_answered_by_an_older_one(dataset, copied):
    finished, workdir = copied
    shutil.rmtree(workdir / "checkpoints" / "epochs" / "2")
    newest = workdir / "checkpoints" / "latest" / "30"
    with Checkpoints(workdir) as checkpoints:
        state = finished.states[1]._replace(step=jax.numpy.int32(30))  # no state that the run ever had
        checkpoints.save_latest(30, state, checkpoints.load("epochs", 1, finished.states[1]).texts)
    verify(newest)
    flip(newest / "manifest.json", 77)
    said = []
    same(running.run(CONFIG, dataset, workdir, say=said.append).states, finished.states)
    assert len(said) == 1 and str(newest) in said[0]


def test_metrics_and_config_come_back_from_the_checkpoints(dataset, copied):
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


def test_a_save_that_fails_leaves_loggers_and_hooks_as_they_were(copied, capfd, monkeypatch):
    """And nothing that is left of it complains later, when it is collected."""
    finished, workdir = copied
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    hook, levels = sys.unraisablehook, [logging.getLogger(name).level for name in ("absl", "asyncio")]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, unlimited[1]))
    try:
        with pytest.raises(InputError, match="could not be saved: "), Checkpoints(workdir) as checkpoints:
            checkpoints.save_latest(23, finished.states[1], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert sys.unraisablehook is hook
    assert [logging.getLogger(name).level for name in ("absl", "asyncio")] == levels
    gc.collect()
    assert complaints == [] and capfd.readouterr().err == ""


@pytest.mark.long
@pytest.mark.parametrize("gone", ["moved", "deleted"])
def test_a_folder_that_goes_in_the_middle_of_a_save_is_not_made_anew(tmp_path, gone):
    """Orbax and TensorStore make the folders above what they write, at any time, even after a save has failed."""
    state = {str(name): normal(name, (200, 300)) for name in range(30)}
    for wait in np.linspace(0, 0.12, 12):
        workdir = tmp_path / f"run{wait}"
        workdir.mkdir()

        def go(workdir=workdir, wait=wait):
            time.sleep(wait)
            if gone == "moved":
                workdir.rename(f"{workdir}.moved")
            while workdir.exists():  # what is written meanwhile can keep a folder from going
                shutil.rmtree(workdir, ignore_errors=True)

        with pytest.raises(InputError, match="was removed while|could not be saved"), Checkpoints(workdir) as saving:
            thread = threading.Thread(target=go)
            thread.start()
            for epoch in range(10):
                saving.save_epoch(epoch, state, {})
        thread.join()
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
    read_shard, sent = serialization._read_shard, []

    def interrupted(*args, **kwargs):
        if not sent:  # a second SIGINT is meant to end what is going on
            sent.append(number)
            signal.raise_signal(number)
        return read_shard(*args, **kwargs)

    def terminated(*_):
        raise Terminated

    monkeypatch.setattr(serialization, "_read_shard", interrupted)
    # In a background shell SIGINT is ignored.
    handlers = {signal.SIGTERM: terminated, signal.SIGINT: signal.default_int_handler}
    before = {one: signal.signal(one, handler) for one, handler in handlers.items()}
    try:
        with pytest.raises(exception):
            read(workdir / "checkpoints" / "epochs" / "1", finished.states[1])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_two_processes_do_not_share_a_folder(dataset, copied):
    _, workdir = copied
    with locked(workdir), pytest.raises(InputError, match=rf"is \(pid {os.getpid()} on "):
        running.run(CONFIG, dataset, workdir)
    running.run(CONFIG, dataset, workdir)
