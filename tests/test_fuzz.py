"""Random input at every door: a result, or one readable line; never another exception."""

import gzip
import io
import json
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cnnjax import cli
from cnnjax.config import Config, DataConfig, from_json, to_json
from cnnjax.data import load, prepared
from cnnjax.data.prepared import SetName
from cnnjax.data.published import read_cifar, read_idx, read_tar
from cnnjax.errors import InputError
from cnnjax.train import run as running
from tests.faults.counts import count
from tests.faults.runs import SEED
from tests.train.test_golden import NEW as GOLDEN


def examples(few, many):
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.faults)])


SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)


def every(number, strategy, what, door):
    """Opens `door` with `number` values of the strategy."""

    @seed(SEED)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=SLOW)
    @given(strategy)
    def holds(value):
        try:
            door(value)
            outcome = "harmless"
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            outcome = "refused"
        count(f"random input: {what}", outcome)

    holds()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["inf", "nan", "mlp"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def leaves(tree, path=()):
    if not isinstance(tree, dict):
        return [path]
    return [path, *(leaf for name, value in tree.items() for leaf in leaves(value, (*path, name)))]


DEFAULT = to_json(Config())


@st.composite
def configs(draw):
    """The default config as JSON, with a few of its branches replaced."""
    tree = json.loads(json.dumps(DEFAULT))
    for path in draw(st.lists(st.sampled_from(leaves(DEFAULT)), min_size=1, max_size=3)):
        place = tree
        for name in path[:-1]:
            place = place[name] if isinstance(place, dict) and name in place else {}
        if not path:
            return draw(JSON)
        if isinstance(place, dict):
            place[path[-1]] = draw(JSON)
    return tree


@examples(80, 5000)
def test_configs(number):
    def door(tree):
        config = from_json(tree)
        assert from_json(to_json(config)) == config

    every(number, configs(), "configs", door)


OPTIONS = [f"--{'.'.join(path).replace('_', '-')}" for path in leaves(DEFAULT) if path] + ["--config", "--workdir"]
WORDS = st.text(max_size=6) | st.sampled_from(
    ["1", "-1", "0", "1e400", "nan", "inf", "None", "True", "9" * 30, "digits", "x.json", "configs", "lenet", "--", "-"]
)
COMMANDS = st.lists(st.one_of(st.sampled_from(OPTIONS), WORDS, st.text(max_size=5).map("--".__add__)), max_size=5)


@examples(15, 600)
def test_command_lines(number, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a word that is a file's name finds none here

    def door(arguments):
        try:
            cli.parse(arguments)
        except SystemExit as stop:
            assert stop.code == 0 and {"-h", "--help"} & set(arguments)

    every(number, COMMANDS, "command lines", door)


def mutated(draw, content):
    """`content` with a few bytes changed, cut, or with others in between."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["change", "cut", "insert"])):
            case "change" if content:
                content[place] = draw(st.integers(0, 255))
            case "cut":
                del content[place:]
            case _:
                content[place:place] = draw(st.binary(max_size=8))
    return bytes(content)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "EPS")


@st.composite
def images(draw):
    """A file's name and its bytes: an image of any mode, size and format, perhaps damaged; or anything."""
    name = draw(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
    if draw(st.integers(0, 9)) == 0:
        return name, draw(st.binary(max_size=200))
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    buffer = io.BytesIO()
    try:
        Image.new(draw(st.sampled_from(MODES)), size, 1).save(buffer, draw(st.sampled_from(FORMATS)))
    except (OSError, KeyError, ValueError, TypeError):  # a format that has no such mode, or is not compiled in
        return name, draw(st.binary(max_size=200))
    return name, mutated(draw, buffer.getvalue())


@examples(100, 2500)
def test_image_folders(number, tmp_path):
    folder = tmp_path / "images"
    for place in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / place)

    def door(value):
        (name, content), size, channels = value
        path = folder / "a" / f"{name}"[:60]
        if path.exists() or path.name in (".", ".."):
            return
        try:
            path.write_bytes(content)
            data = DataConfig(folder=str(folder), data_dir=str(tmp_path / "kept"), image_size=size, channels=channels)
            dataset = load(data)
            assert len(dataset.train) + len(dataset.test) == 5 - name.startswith(".")
        finally:
            path.unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "kept", ignore_errors=True)

    sides = st.sampled_from([None, 1, 8, 33])
    every(number, st.tuples(images(), sides, st.sampled_from([None, 1, 3])), "images", door)


ANY_ARRAY = arrays.arrays(
    st.one_of(arrays.scalar_dtypes(), arrays.unicode_string_dtypes(max_len=4), st.just(np.dtype(np.uint8))),
    arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3),
)


@st.composite
def archives(draw):
    """An .npz that is nearly right."""
    pixels, labels = np.zeros((4, 3, 3), np.uint8), np.arange(4) % 2
    members = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}
    for name in draw(st.lists(st.sampled_from([*members, "class_names", "other"]), max_size=2)):
        members[name] = draw(ANY_ARRAY)
    for name in draw(st.lists(st.sampled_from(["y_train", "y_test"]), max_size=1)):
        members[name] = draw(arrays.arrays(arrays.integer_dtypes(), 4))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw(st.sampled_from([np.savez, np.savez_compressed]))(buffer, **members)
    return mutated(draw, buffer.getvalue())


@examples(150, 4000)
def test_npz_files(number, tmp_path):
    path = tmp_path / "any.npz"

    def door(content):
        path.write_bytes(content)
        load(DataConfig(npz=str(path)))

    every(number, archives(), "npz files", door)


def _tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("a/b.bin")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@st.composite
def published(draw):
    content = draw(st.binary(max_size=60))
    plain = bytes([0, 0, 8, draw(st.integers(0, 4))]) + content
    return draw(st.sampled_from(["idx", "tar", "cifar"])), mutated(
        draw, draw(st.sampled_from([content, gzip.compress(mutated(draw, plain)), _tar(content)]))
    )


@examples(80, 5000)
def test_published_files(number, tmp_path):
    path = tmp_path / "any.tar.gz"

    def door(value):
        kind, content = value
        if kind == "idx":
            read_idx(content, "any.gz")
        elif kind == "cifar":
            read_cifar(content, "any")
        else:
            path.write_bytes(content)
            read_tar(path)

    every(number, published(), "published files", door)


# The description of a set as TensorFlow Datasets writes it.
DESCRIPTION = {
    "dataset_info.json": {
        "fileFormat": "array_record",
        "name": "any_set",
        "splits": [
            {
                "name": "train",
                "shardLengths": ["3", "4"],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            },
            {"name": "test", "shardLengths": ["2"]},
        ],
        "version": "1.0.0",
    },
    "features.json": {
        "featuresDict": {
            "features": {
                "image": {
                    "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}},
                    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
                },
                "label": {
                    "classLabel": {"numClasses": "2"},
                    "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
                },
            }
        },
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    },
}


@st.composite
def descriptions(draw):
    """The files of a set without its records, one of them damaged or with a branch replaced."""
    files = {name: json.dumps(tree).encode() for name, tree in DESCRIPTION.items()}
    files["label.labels.txt"] = b"even\nodd"
    name = draw(st.sampled_from([*files, "cnnjax_sha256.json"]))
    if name in DESCRIPTION and draw(st.booleans()):
        tree = json.loads(files[name])
        place, key = {"whole": tree}, "whole"
        while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place[key] = draw(JSON)
        return files | {name: json.dumps(tree if key != "whole" else place["whole"]).encode()}
    return files | {name: mutated(draw, files.get(name, b"{}"))}


@examples(80, 5000)
def test_descriptions_of_prepared_sets(number, tmp_path):
    folder = tmp_path / "any_set" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (
        "train.array_record-00000-of-00002",
        "train.array_record-00001-of-00002",
        "test.array_record-00000-of-00001",
    ):
        (folder / f"any_set-{file}").write_bytes(bytes(1000))

    def door(files):
        (folder / "cnnjax_sha256.json").unlink(missing_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found = prepared.read(folder, SetName("any_set", None, None))
        assert set(found.shards) <= {"train", "test"} and len(found.class_names) == 2

    every(number, descriptions(), "descriptions of prepared sets", door)


PLACES = (
    "config.json", "config.json.tmp", "metrics.jsonl", "lock", "figures", "checkpoints", "checkpoints/epochs",
    "checkpoints/latest", "checkpoints/tmp", "checkpoints/damaged", "checkpoints/epochs/0", "checkpoints/epochs/1",
    "checkpoints/epochs/2", "checkpoints/epochs/99", "checkpoints/epochs/x", "checkpoints/latest/3",
    "checkpoints/epochs/1/manifest.json", "checkpoints/epochs/1/config.json", "checkpoints/epochs/1/state",
    "checkpoints/epochs/1/state/_METADATA", "checkpoints/epochs/1/state/manifest.ocdbt", "checkpoints/epochs/²",
    "throughput.jsonl", "tensorboard",
)  # fmt: skip
JUNK = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        st.sampled_from(["file", "folder", "gone", "link"]),
        st.binary(max_size=20) | JSON.map(lambda tree: json.dumps(tree).encode()),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def put(workdir: Path, place: str, kind: str, content: bytes) -> None:
    path = workdir / place
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # a file stands there now
        return
    if kind == "file":
        path.write_bytes(content)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")


@examples(15, 1000)
def test_run_folders(number, tmp_path):
    """A run folder is read as scripts read it; damage gives no other values."""
    config = running.read_config(GOLDEN / "config.json")
    dataset = load(config.data)
    network = running.build(config, dataset)
    expected = np.asarray(running.load_epoch(GOLDEN, config, network, dataset, 1).params["fc1"]["kernel"])
    workdir = tmp_path / "run"

    def door(junk):
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(GOLDEN, workdir)
        for place, kind, content in junk:
            put(workdir, place, kind, content)
        refused = []
        for read in (
            lambda: running.check(workdir, config),
            lambda: running.read_config(workdir / "config.json"),
            lambda: running.check_data(workdir, dataset),
            lambda: running.read_metrics(workdir),
        ):
            try:
                read()
            except InputError as error:
                refused.append(error)
        found = running.load_epoch(workdir, config, network, dataset, 1)
        np.testing.assert_array_equal(found.params["fc1"]["kernel"], expected)
        if refused:
            raise refused[0]

    every(number, JUNK, "run folders", door)
