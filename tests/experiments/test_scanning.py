"""The study of scanned networks on tiny files in the layouts of the real ones."""

import gzip
import io
import json
import struct
import zipfile

import jax
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import InputError
from experiments import scanning
from tests.cases import some
from tests.experiments.test_filter_evolution import Quiet


def write_sound(folder, count=30):
    """Digits 0 to 2 are three tones of 0.1 s at any time and of any loudness."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    sound = np.zeros((count, 8000))
    for row, label in zip(sound, labels, strict=True):
        start = generator.integers(0, 1000)
        row[start : start + 800] = generator.uniform(0.01, 1) * np.sin(np.arange(800) * (0.2 + 0.4 * label))
    code = np.round(127 * np.sign(sound) * np.log1p(255 * np.abs(sound)) / np.log(256)).astype(np.int8)
    np.savez(
        folder / "spoken_digits.npz", audio_mulaw=code, length=np.full(count, 2000, np.int32),
        label=labels.astype(np.uint8), is_test=np.arange(count) >= count - 9,
    )  # fmt: skip
    return sound


def write_images(folder):
    (folder / "fashion-mnist").mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("t10k", 12)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = generator.integers(0, 100, (count, 28, 28)).astype(np.uint8) + 100 * labels[:, None, None]
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            path = folder / "fashion-mnist" / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_volumes(folder, side=32):
    arrays = {}
    for split, count in (("train", 24), ("val", 4), ("test", 10)):
        labels = (np.arange(count) % 3 == 0).astype(np.uint8)  # a third is hyperplasia: larger
        volumes = np.zeros((count, side, side, side), np.uint8)
        for volume, label in zip(volumes, labels, strict=True):
            volume[8 : 14 + 8 * label, 8:14, 8:14] = 255
        arrays |= {f"{split}_images": volumes, f"{split}_labels": labels[:, None]}
    np.savez_compressed(folder / "adrenal3d_32.npz", **arrays)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_sound(folder)
    write_images(folder)
    write_volumes(folder)
    return folder


@pytest.mark.long
def test_the_study_trains_each_network_and_writes_its_errors(data, tmp_path):
    said = []
    quiet = Quiet()
    quiet.say = said.append
    scanning.main(scanning.Options(data=data, out=tmp_path / "new" / "out", epochs=2), quiet)
    results = json.loads((tmp_path / "new" / "out" / "results.json").read_text())
    assert results["seed"] == 0 and list(results) == ["seed", "sound", "image", "volume"]
    for name, (train, test) in {"sound": (21, 9), "image": (40, 12), "volume": (24, 10)}.items():
        result = results[name]
        assert (result["train"], result["test"], result["epochs"]) == (train, test, 2)
        assert np.isfinite(result["train_loss"]) and result["weights"] > 1000
        rows = {row["method"]: row for row in result["rows"]}
        wanted = ["scanned network", "logistic regression", "nearest class mean", "most frequent class"]
        assert list(rows) == wanted
        assert all(0 <= row["error"] <= 1 and row["seconds"] >= 0 for row in rows.values())
    by_class = results["volume"]["rows"][-1]  # 4 of 10 are of the rarer class
    assert (by_class["error"], by_class["balanced_error"], by_class["auc"]) == (0.4, 0.5, 0.5)
    assert results["image"]["rows"][1]["error"] == 0 and results["image"]["rows"][2]["error"] == 0
    assert results["volume"]["rows"][1]["auc"] == 1
    assert len(said) == 1 and said[0].row_count == 12


def test_a_page_gets_the_rows_of_what_was_run_and_keeps_the_others(tmp_path):
    def result(title: str, error: float, auc: float | None):
        rows = [{"method": method, "error": error, "auc": auc} for method in scanning.METHODS]
        return {"data": title, "train": 1200, "test": 10, "rows": rows}

    both = {"sound": result("digits", 0.25, None), "volume": result("glands", 0.5, 0.75)}
    first = scanning.page_table(both, 0, "")
    second = scanning.page_table({"sound": result("digits", 0.125, None)}, 3, first)
    title, ruled, sound, volume = second.splitlines()
    assert [title, ruled, volume] == [line for line in first.splitlines() if "digits" not in line]
    assert sound == "| sound: digits, 1,200 to train, 10 to test, seed 3 |" + " 12.5 % |" * 4
    assert volume == "| volume: glands, 1,200 to train, 10 to test, seed 0 |" + " 50.0 % (AUC 0.750) |" * 4


def test_a_page_without_markers_is_refused_before_anything_is_read(data, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("words\n")
    with pytest.raises(InputError, match="^--markdown must have <!-- scanning -->"):
        scanning.main(scanning.Options(data=data, out=tmp_path / "new", markdown=page), Quiet())
    assert page.read_text() == "words\n" and not (tmp_path / "new").exists()


def test_sound_is_decoded_and_split_as_published(tmp_path):
    sound = write_sound(tmp_path)
    signals = scanning.read_sound([tmp_path / "spoken_digits.npz"])
    train, test = signals.dataset.train, signals.dataset.test
    assert train.images.shape == (21, 8000, 1, 1) and test.images.shape == (9, 8000, 1, 1)
    assert train.labels.tolist() == [0, 1, 2] * 7 and signals.shape == (8000, 1)
    # up to its loudness each is the tone that was written, at the 37 dB of the mu-law
    inputs = signals.inputs(test)
    for mine, wanted in zip(inputs, sound[-9:], strict=True):
        assert np.corrcoef(mine, wanted)[0, 1] > 0.999
    # the loudness is that of the sound up to its last sample that is not silent
    lengths = [np.flatnonzero(one)[-1] + 1 for one in inputs - inputs[:, -1:]]
    loudness = np.sqrt(np.sum((inputs - inputs[:, -1:]) ** 2, axis=1) / lengths)
    np.testing.assert_allclose(loudness, loudness[0], rtol=1e-5)
    seen = signals.inputs(train)
    np.testing.assert_allclose([seen.mean(), seen.std()], [0, 1], atol=1e-5)


def test_mu_law_by_its_formula():
    """ITU-T G.711's continuous law, mu = 255, of a code in 127 steps a side."""
    code = np.array([128, 129, 191, 255, 1], np.uint8).reshape(1, -1, 1, 1)
    levels = np.array([0, 1, 63, 127, -127]) / 127
    expanded = np.sign(levels) * (256.0 ** np.abs(levels) - 1) / 255
    wanted = expanded / np.sqrt(np.sum(expanded**2) / 5)
    np.testing.assert_allclose(np.asarray(scanning.decoded(code)).reshape(-1), wanted, rtol=1e-5, atol=1e-7)
    assert not np.asarray(scanning.decoded(np.full((2, 9, 1, 1), 128, np.uint8))).any()  # silence stays silent


@pytest.mark.parametrize("name", some(["sound", "volume"], "sound"))
def test_the_network_is_the_same_with_loops_over_positions(name):
    scans = (scanning.Scan(4, (5, 4), 2, 2), scanning.Scan(2, (6,)))
    shape = {"sound": (40, 1), "volume": (12, 12, 12, 1)}[name]
    inputs = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    rows = inputs.reshape(2, -1, shape[-2], 1)
    network = scanning.Scanned(scans, shape, 3)
    variables = network.init(jax.random.key(0), rows)
    looped = scanning.features(variables["params"], scans, inputs, ops.scan_mlp_literally)
    np.testing.assert_allclose(scanning.features(variables["params"], scans, inputs), looped, atol=1e-5)
    assert looped.shape == (2, 6)
    scores, maps = network.apply(variables, rows)
    np.testing.assert_allclose(scores, ops.apply_mlp(variables["params"].scores, looped), atol=1e-5)
    assert maps == {}


def test_errors_count_each_class_alike_in_the_mean_over_classes():
    scores = np.array([[1.0, 0.0], [1, 0], [1, 0], [1, 0]])
    assert scanning.errors(scores, np.array([0, 0, 0, 1])) == (0.25, 0.5, 0.5)
    assert scanning.errors(np.eye(3), np.array([0, 1, 0])) == (1 / 3, 0.25, None)


def test_nearest_mean_chooses_the_nearest_mean():
    seen = np.array([[0.0], [2.0], [9.0], [11.0]])
    scores = scanning.nearest_mean(seen, np.array([0, 0, 1, 1]), np.array([[5.4], [5.6]]))  # the means are 1 and 10
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_a_missing_file_is_named_and_nothing_written(data, tmp_path):
    (data / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="^--data must hold fashion-mnist/t10k-labels-idx1-ubyte.gz, and "):
        scanning.main(scanning.Options(data=data, out=tmp_path / "new"), Quiet())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ("sound", "smell")}, "--only must be among sound, image, volume, got 'smell'"),
        ({"epochs": 0}, "--epochs must be between 1 and 100000, got 0"),
        ({"seed": -1}, "--seed must be between 0 and 2147483647, got -1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        scanning.Options(**options)


def test_broken_files_are_refused_by_name(data, tmp_path):
    path = data / "spoken_digits.npz"
    arrays = dict(np.load(path))
    for change, message in (
        ({"audio_mulaw": np.zeros(30)}, "audio_mulaw must have 2 dimensions, got shape (30,)"),
        ({"audio_mulaw": np.zeros((30, 9))}, "audio_mulaw must be int8, got float64"),
        ({"label": np.zeros(29)}, "the arrays must all hold 30 entries, got 29 in label"),
        ({"label": np.full(30, 4)}, "training labels must be all of 0, 1, ..., got [4]"),
        ({"is_test": np.zeros(30, bool)}, "each split must hold at least 1 input"),
    ):
        np.savez(path, **{**arrays, **change})
        with pytest.raises(InputError) as error:
            scanning.main(scanning.Options(data=data, only=("sound",), out=tmp_path / "new"), Quiet())
        assert "spoken_digits.npz" in str(error.value) and message in str(error.value)
    path.write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="--data must be a file that numpy.savez wrote, got .*spoken_digits.npz"):
        scanning.read_sound([path])
    np.savez(path, label=arrays["label"])
    with pytest.raises(InputError, match="--data must hold audio_mulaw, label, is_test; .* lacks audio_mulaw"):
        scanning.read_sound([path])
    # A header of a few bytes that asks for 2 TB.
    shape = np.lib.format.header_data_from_array_1_0(arrays["audio_mulaw"]) | {"shape": (2**41,)}
    np.savez(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive, io.BytesIO() as header:
        np.lib.format.write_array_header_1_0(header, shape)
        for name, member in members.items():
            archive.writestr(name, header.getvalue() if name == "audio_mulaw.npy" else member)
    with pytest.raises(InputError, match=r"--data: audio_mulaw in .* cannot be read: shape \[2199023255552\] of int8"):
        scanning.read_sound([path])
    assert not (tmp_path / "new").exists()
