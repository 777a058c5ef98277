"""Bits flipped, files cut, emptied, taken away, put in: never another value than the one that was written."""

import contextlib
import itertools
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import fingerprint, load
from cnnjax.errors import InputError
from cnnjax.train import run as running
from cnnjax.train.checkpoints import Damaged, read
from tests.faults import runs
from tests.faults.counts import count

LONG = pytest.mark.faults


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@contextlib.contextmanager
def flipped(path, generator):
    before = path.read_bytes()
    flip(path, int(generator.integers(8 * len(before))))
    yield
    path.write_bytes(before)


@pytest.fixture
def damaged(reference, new):
    """A copy of the run that may be damaged."""
    workdir = new()
    shutil.copytree(reference.workdir, workdir)
    return workdir


def command_again(workdir):
    """The same command within this process; what it said."""
    config, said = running.read_config(workdir / "config.json"), []
    running.run(config, load(config.data), workdir, say=said.append)
    return said


@pytest.mark.parametrize("number", [20, pytest.param(runs.times(1500), marks=LONG)])
def test_a_flipped_bit_in_a_checkpoint_is_refused_by_name(reference, damaged, number):
    generator = np.random.default_rng(runs.SEED)
    epochs = running.kept_epochs(damaged)
    expected = {epoch: runs.state(damaged, epoch) for epoch in epochs}
    found = {epoch: list(runs.files(damaged / "checkpoints" / "epochs" / str(epoch))) for epoch in epochs}
    places = [(epoch, path) for epoch in epochs for path in found[epoch]]
    assert len(places) >= 40
    for index in range(number):
        epoch, path = places[index % len(places)]
        with flipped(path, generator), pytest.raises(Damaged) as refused:
            read(damaged / "checkpoints" / "epochs" / str(epoch), expected[epoch])
        assert path.name in str(refused.value)
    for epoch in epochs:
        after = read(damaged / "checkpoints" / "epochs" / str(epoch), expected[epoch]).state
        jax.tree.map(np.testing.assert_array_equal, after, expected[epoch])
    count("a bit flipped in a checkpoint", "refused", number)


@pytest.mark.parametrize("number", [30, pytest.param(runs.times(400), marks=LONG)])
def test_a_flipped_bit_in_config_json_never_gives_another_config(damaged, number):
    generator = np.random.default_rng(runs.SEED + 1)
    path = damaged / "config.json"
    config = running.read_config(path)
    for _ in range(number):
        with flipped(path, generator):
            try:
                assert running.read_config(path) == config  # 1e-06 and 1E-06 are one number
                outcome = "harmless"
            except InputError:
                outcome = "refused"
        count("a bit flipped in config.json", outcome)


@pytest.mark.parametrize("number", [1, pytest.param(runs.times(40), marks=LONG)])
def test_the_same_command_mends_what_is_damaged(reference, new, number):
    """Any number of files at once, checkpoints, config.json and metrics.jsonl, in any of five ways."""

    def chain(turns):
        generator = np.random.default_rng((runs.SEED, 2, turns[0]))
        workdir = new()
        shutil.copytree(reference.workdir, workdir)
        return [_damage_and_mend(workdir, reference, generator, turn) for turn in turns]

    for found in itertools.chain(*runs.two_at_once(chain, range(number))):
        for outcome, times in found.items():
            count("files damaged in a run folder", outcome, times)


def _damage_and_mend(workdir, reference, generator, turn):
    places = list(runs.files(workdir))
    chosen = generator.choice(len(places), size=int(generator.integers(1, 6)), replace=False)
    for place in chosen:
        path = places[place]
        kind = ("flipped", "cut", "emptied", "missing", "junk")[int(generator.integers(5))]
        size = path.stat().st_size
        if kind == "flipped":
            flip(path, int(generator.integers(8 * size)))
        elif kind == "missing":
            path.unlink()
        elif kind == "junk":
            path.write_bytes(generator.bytes(int(generator.integers(1, 2 * size))))
        else:
            path.write_bytes(path.read_bytes()[: 0 if kind == "emptied" else int(generator.integers(size))])
    _junk(workdir, generator, turn)
    ended, found = runs.end(runs.begin(workdir)), {}
    if "config.json" in {places[place].name for place in chosen} and ended.status == 2:
        # Every copy of the config is gone, too: the file itself was taken away.
        runs.one_line(ended)
        found["refused"] = len(chosen)
        shutil.copy(reference.workdir / "config.json", workdir / "config.json")
        ended = runs.end(runs.begin(workdir))
    assert ended.status == 0, ended.error
    text = (workdir / "config.json").read_bytes()
    if text != reference.everything["config.json"]:  # a flip that changed no value
        assert running.read_config(workdir / "config.json")
        shutil.copy(reference.workdir / "config.json", workdir / "config.json")
    runs.same_end(workdir, reference)
    return found | {"mended": len(chosen)}


def _junk(workdir, generator, turn):
    """What is no checkpoint, with higher numbers than any that is one."""
    epochs, latest = (workdir / "checkpoints" / kind for kind in ("epochs", "latest"))
    match turn % 4:
        case 0:
            (epochs / "999").mkdir()
        case 1:
            shutil.copytree(epochs / "2", latest / "2000", dirs_exist_ok=True)
        case 2:
            (latest / "31").write_bytes(generator.bytes(50))
        case 3:
            (epochs / "-1").mkdir()
            (latest / "٣").mkdir()  # an Arabic digit, which Python takes for a number


@pytest.mark.parametrize("number", [40, pytest.param(runs.times(400), marks=LONG)])
def test_a_flipped_bit_in_the_decoded_images_is_mended(tmp_path, number):
    """The cache of a folder of images is made again from the images."""
    generator = np.random.default_rng(runs.SEED + 3)
    for name in ("a/1", "a/2", "b/1", "b/2"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 6), np.uint8)).save(path)
    config = DataConfig(folder=str(tmp_path / "images"), data_dir=str(tmp_path / "kept"))
    expected = fingerprint(load(config))
    for turn in range(number):
        places = list(runs.files(tmp_path / "kept"))
        path = places[turn % len(places)]
        flip(path, int(generator.integers(8 * path.stat().st_size)))
        assert fingerprint(load(config)) == expected
    count("a bit flipped in the decoded images", "mended", number)


@pytest.mark.parametrize("number", [100, pytest.param(runs.times(4000), marks=LONG)])
def test_a_flipped_bit_in_an_npz_never_gives_other_data(tmp_path, number):
    generator = np.random.default_rng(runs.SEED + 4)
    path = tmp_path / "a.npz"
    images, labels = generator.integers(0, 256, (20, 5, 5), np.uint8), np.arange(20) % 3
    for save in (np.savez, np.savez_compressed):
        save(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
        expected = fingerprint(load(DataConfig(npz=str(path))))
        for _ in range(number // 2):
            with flipped(path, generator):
                try:
                    assert fingerprint(load(DataConfig(npz=str(path)))) == expected
                    outcome = "harmless"
                except InputError:
                    outcome = "refused"
            count("a bit flipped in an .npz of images", outcome)


@LONG
def test_a_cut_line_of_metrics_comes_back(reference, damaged):
    path = damaged / "metrics.jsonl"
    text = path.read_bytes()
    for size in range(0, len(text), 97):
        path.write_bytes(text[:size])
        assert command_again(damaged) == []
        runs.same_end(damaged, reference)
    count("metrics.jsonl cut", "mended", len(range(0, len(text), 97)))
