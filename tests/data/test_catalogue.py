"""TensorFlow Datasets, without a network: small files in the published layouts, and sets of builders made here."""

import dataclasses
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import compute_url_info

from cnnjax.config import DataConfig
from cnnjax.data import Dataset, fingerprint, load
from cnnjax.data.preparation import prepare
from cnnjax.data.prepared import SEAL, find, parse_name
from cnnjax.data.published import FILES, make_builder
from cnnjax.errors import InputError
from tests.data.prepared_sets import png, prepare_own
from tests.data.test_published import idx

COUNTS = {"train": 40, "test": 20}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every request goes to a port where nobody listens, so that no test depends on the machine's network."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, np.uint8)


def write_published(name: str, folder) -> dict[str, dict[bytes, int]]:
    """Writes the published files of a set with a few random images; returns the label of each image by split."""
    folder.mkdir(exist_ok=True)
    if name.endswith("mnist"):
        return write_idx(folder)
    truth, files = {}, {}
    layouts = {
        "cifar10": (
            "cifar-10-binary.tar.gz",
            {"batches.meta.txt": 10},
            [f"data_batch_{i}.bin" for i in range(1, 6)],
            ["test_batch.bin"],
        ),
        "cifar100": (
            "cifar-100-binary.tar.gz",
            {"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
            ["train.bin"],
            ["test.bin"],
        ),
    }
    archive_name, names, *parts = layouts[name]
    for file, count in names.items():
        files[file] = "\n".join(f"{file[:4]}{index}" for index in range(count)).encode() + b"\n\n"
    for seed, (split, part) in enumerate(zip(COUNTS, parts, strict=True)):
        images = random_images(seed, COUNTS[split], 32, 32, 3)
        labels = np.stack([random_images(seed, COUNTS[split]) % count for count in names.values()], axis=-1)
        truth[split] = {image.tobytes(): int(row[-1]) for image, row in zip(images, labels, strict=True)}
        records = [bytes(row) + image.transpose(2, 0, 1).tobytes() for row, image in zip(labels, images, strict=True)]
        per_file = len(records) // len(part)
        files |= {file: b"".join(records[i * per_file : (i + 1) * per_file]) for i, file in enumerate(part)}
    with tarfile.open(folder / archive_name, "w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"inside/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return truth


def write_idx(folder) -> dict[str, dict[bytes, int]]:
    truth = {}
    for seed, (split, stem) in enumerate((("train", "train"), ("test", "t10k"))):
        images, labels = random_images(seed, COUNTS[split], 28, 28), random_images(seed, COUNTS[split]) % 10
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        truth[split] = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    return truth


def prepare_small(name: str, config: DataConfig, progress=None):
    """Prepares with the checksums of the small files in place of the published ones."""
    stock = make_builder(name, Path(config.data_dir)).url_infos
    infos = {url: compute_url_info(Path(config.manual_dir) / url.rsplit("/", 1)[1]) for url in stock}
    return prepare(parse_name(name), Path(config.data_dir), config.manual_dir, progress, url_infos=infos)


def labels_by_image(dataset: Dataset) -> dict[str, dict[bytes, int]]:
    return {
        name: {image.tobytes(): int(label) for image, label in zip(split.images, split.labels, strict=True)}
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_prepared_without_tensorflow_and_read_by_name(name, tmp_path, capfd):
    truth = write_published(name, tmp_path / "files")
    config = DataConfig(name=name, data_dir=str(tmp_path / "sets"), manual_dir=str(tmp_path / "files"))
    reports = []
    prepare_small(name, config, lambda *report: reports.append(report))
    assert (f"prepare {name} train", 40, 40) in reports
    dataset = load(config)
    assert labels_by_image(dataset) == truth
    assert dataset.num_classes == (100 if name == "cifar100" else 10)
    if name == "cifar100":
        assert dataset.class_names[:2] == ("fine0", "fine1")
    assert capfd.readouterr().out == ""  # the library prints; this room does not


def test_the_order_of_the_records_is_the_stock_one(tmp_path):
    # The library orders records by a hash of their keys; the keys are the running index as in the stock builder, so the
    # order of 40 is a constant. A change of keys would change what "the first 10 test images" are.
    (tmp_path / "files").mkdir()
    for stem, count in (("train", 40), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count)
        (tmp_path / "files" / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (tmp_path / "files" / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    config = DataConfig(name="mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path / "files"))
    prepare_small("mnist", config)
    assert load(config).test.images[:6, 0, 0, 0].tolist() == [16, 13, 19, 15, 6, 1]


def test_a_prepared_set_is_decoded_once(tmp_path):
    write_published("mnist", tmp_path / "files")
    config = DataConfig(name="mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path / "files"))
    prepare_small("mnist", config)
    reports = []
    first = fingerprint(load(config, lambda *report: reports.append(report)))
    assert reports[-1] == ("decode mnist", 60, 60)
    assert fingerprint(load(config, lambda *report: pytest.fail("decoded again"))) == first


def test_a_file_that_is_not_the_published_one_is_named_and_leaves_nothing_behind(tmp_path):
    write_published("mnist", tmp_path / "files")
    config = DataConfig(name="mnist", data_dir=str(tmp_path / "sets"), manual_dir=str(tmp_path / "files"))
    for _ in range(2):  # the failed attempt is not taken for a prepared set
        with pytest.raises(InputError, match=r"wrong checksum: '.*idx3-ubyte\.gz' is not the file that was published"):
            load(config)
    assert list((tmp_path / "sets").rglob("*")) == [tmp_path / "sets" / "cnnjax_cache"]


def test_a_failure_while_records_are_written_leaves_nothing_behind(tmp_path):
    write_published("mnist", tmp_path / "files")
    (tmp_path / "files" / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(19, np.uint8)))  # for 20 images
    config = DataConfig(name="mnist", data_dir=str(tmp_path / "sets"), manual_dir=str(tmp_path / "files"))
    with pytest.raises(InputError, match="must agree, got 20 images and 19 labels"):
        prepare_small("mnist", config)
    assert list((tmp_path / "sets").rglob("*")) == [tmp_path / "sets" / "cnnjax_cache"]


def test_missing_files_and_no_network_are_one_line_that_says_what_to_put_where(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot be reached.*: put cifar-10-binary\.tar\.gz into a folder .*--data\.manual-dir"
    ):
        load(DataConfig(name="cifar10", data_dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"data\.manual_dir must be a folder, got '/nowhere'"):
        load(DataConfig(name="cifar10", data_dir=str(tmp_path), manual_dir="/nowhere"))
    with pytest.raises(
        InputError, match=r"data\.manual_dir must hold .* lacks train-images-idx3-ubyte\.gz, train-labels"
    ):
        load(DataConfig(name="mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"data\.name kmnist is not prepared .* tfds build kmnist"):
        load(DataConfig(name="kmnist", data_dir=str(tmp_path)))


def test_a_published_file_that_is_a_pipe_is_refused_at_once(tmp_path):
    write_published("mnist", tmp_path / "files")
    target = tmp_path / "files" / "train-images-idx3-ubyte.gz"
    target.unlink()
    os.mkfifo(target)
    with pytest.raises(InputError, match=r"data\.manual_dir .*not a regular file"):
        load(DataConfig(name="mnist", data_dir=str(tmp_path / "sets"), manual_dir=str(tmp_path / "files")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fashion_minst",
            r"must be objects, photos, digits or NAME.*, got 'fashion_minst'; did you mean fashion_mnist",
        ),
        ("photo", "did you mean photos"),
        ("qqqqqq", "got 'qqqqqq'$"),
        ("mnist/none", "is prepared here as mnist:3.0.1 only, got mnist/none:3.0.1"),
        ("mnist:1.0.0", "is prepared here as mnist:3.0.1 only, got mnist:1.0.0"),
        # What the library would take for a path, a module, options or the code of somebody else.
        ("../x", r"got '\.\./x'"),
        ("mnist/../../x", "data.name must be"),
        ("os:system", "data.name must be"),
        ("kaggle:mnist", "data.name must be"),
        ("huggingface:mnist/mnist", "data.name must be"),
        ("mnist/data_dir=x", "data.name must be"),
    ],
)
def test_an_unknown_name_is_one_line_with_close_matches(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as error:
        load(DataConfig(name=name, data_dir=str(tmp_path)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.fixture
def own_set(tmp_path):
    """`make(images by split, features, generate)`: the library prepares the set; returns the config that names it."""

    def make(images, features=None, generate=None, **change) -> DataConfig:
        prepare_own(tmp_path, images, features, generate)
        return DataConfig(name="own_set", data_dir=str(tmp_path), **change)

    return make


def test_validation_is_the_test_split_where_there_is_no_other(own_set):
    images = {"train": list(random_images(0, 8, 5, 5, 3)), "validation": list(random_images(1, 4, 5, 5, 3))}
    dataset = load(own_set(images))
    assert dataset.class_names == ("even", "odd")
    expected = {
        ours: {image.tobytes(): index % 2 for index, image in enumerate(images[theirs])}
        for ours, theirs in (("train", "train"), ("test", "validation"))
    }
    assert labels_by_image(dataset) == expected


def test_a_single_split_is_parted_by_class(own_set):
    images = list(random_images(0, 20, 5, 5, 3))
    dataset = load(own_set({"train": images}, test_fraction=0.3))
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [3, 3])
    found = labels_by_image(dataset)
    assert found["train"] | found["test"] == {image.tobytes(): index % 2 for index, image in enumerate(images)}


def test_mixed_sizes_and_modes_need_their_options(own_set):
    images = [random_images(0, 9, 9, 3), random_images(0, 9, 9), random_images(0, 7, 9, 3), random_images(0, 9, 9, 3)]
    features = {
        "image": tfds.features.Image(shape=(None, None, None)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    config = {"train": images, "test": images}
    with pytest.raises(InputError, match=r"data\.channels must be given .*own_set/1.0.0 record"):
        load(own_set(config, features, image_size=8))
    with pytest.raises(InputError, match=r"data\.image_size must be given .*own_set/1.0.0 record"):
        load(own_set(config, features, channels=3))
    assert load(own_set(config, features, channels=3, image_size=8)).train.images.shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("features", "record", "found"),
    [
        ({"text": tfds.features.Text()}, {"text": "a"}, r"text \(Text\)"),
        (
            {
                "image": tfds.features.Tensor(shape=(2,), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=2),
            },
            {"image": np.zeros(2, np.uint8), "label": 0},
            r"image \(Tensor\)",
        ),
        (
            {"image": tfds.features.Image(), "label": tfds.features.Text()},
            {"image": png(np.zeros((2, 2, 3), np.uint8)), "label": "a"},
            r"label \(Text\)",
        ),
    ],
)
def test_a_set_without_image_and_class_says_what_it_has(own_set, features, record, found):
    with pytest.raises(
        InputError, match=rf"must have the features image \(Image\) and label \(ClassLabel\), got .*{found}"
    ):
        load(own_set({"train": [None], "test": [None]}, features, lambda index: record))


def test_a_set_without_train_says_what_it_has(own_set):
    with pytest.raises(InputError, match="must have a split train, got test"):
        load(own_set({"test": list(random_images(0, 4, 5, 5, 3))}))


def test_damaged_records_are_one_line(own_set, tmp_path):
    config = own_set({"train": list(random_images(0, 20, 5, 5, 3)), "test": list(random_images(1, 4, 5, 5, 3))})
    (file,) = (tmp_path / "own_set").rglob("*train.array_record*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"data\.name own_set/1.0.0: the prepared files cannot be read") as error:
        load(config)
    assert "\n" not in str(error.value)


LABEL = ("featuresDict", "features", "label")
TWO_SPLITS = {"train": list(random_images(0, 20, 5, 5, 3)), "test": list(random_images(1, 4, 5, 5, 3))}


def change_json(path: Path, *keys: str, to) -> None:
    tree = json.loads(path.read_text())
    place = tree
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("place", ["whole", "image", "label", "other"])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_that_a_set_names_is_imported(own_set, tmp_path, monkeypatch, place, legacy):
    config = own_set(TWO_SPLITS)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "payload_of_a_set.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Feature: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    file = tmp_path / "own_set" / "1.0.0" / "features.json"
    name = "payload_of_a_set.Feature"
    feature = {"type": name, "content": {}} if legacy else {"pythonClassName": name, "jsonFeature": {"json": "{}"}}
    if place == "whole":
        file.write_text(json.dumps(feature))
    else:
        change_json(file, "featuresDict", "features", place, to=feature)
    change_json(file.with_name("dataset_info.json"), "moduleName", to="payload_of_a_set")
    if place == "other":  # a feature that is not read
        assert len(load(config).train) == 20
    else:
        with pytest.raises(InputError, match="own_set/1.0.0.*(must hold a FeaturesDict|must have the features image)"):
            load(config)
    assert not (tmp_path / "ran").exists() and "payload_of_a_set" not in sys.modules


@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        ("dataset_info.json", ("fileFormat",), "tfrecord", "in another format than array_record"),
        ("dataset_info.json", ("splits", 0, "filepathTemplate"), "../{SPLIT}", "files must be named"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["20", "1"], "No such file"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["21"], "has 20 records, and its description says 21"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["999999999999"], "bytes, and .* 999,999,999,999 records"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["-1"], "must give the number of records"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), {}, "must give the number of records"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), [], "must hold at least 1 image"),
        ("dataset_info.json", ("splits",), "train", "must have a split train, got none"),
        ("features.json", ("featuresDict",), [], "must hold a FeaturesDict"),
        ("features.json", ("featuresDict", "features", "image", "image", "dtype"), "float32", "must have the features"),
        ("features.json", (*LABEL, "classLabel"), None, "the classes cannot be read"),
        (
            "features.json",
            ("featuresDict", "features", "label", "classLabel", "numClasses"),
            "3",
            "must name 3 classes",
        ),
    ],
)
def test_a_description_of_another_form_is_one_line(own_set, tmp_path, file, keys, value, message):
    config = own_set(TWO_SPLITS)
    change_json(tmp_path / "own_set" / "1.0.0" / file, *keys, to=value)
    with pytest.raises(InputError, match=rf"data\.name own_set.*{message}") as error:
        load(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json", "label.labels.txt", "*train.array_record*"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, None])
def test_a_file_of_another_form_or_a_pipe_is_one_line(own_set, tmp_path, file, content):
    config = own_set(TWO_SPLITS)
    (path,) = (tmp_path / "own_set" / "1.0.0").glob(file)
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.name own_set") as error:
        load(config)
    assert "\n" not in str(error.value)


def test_the_newest_version_is_read_unless_another_is_named(own_set, tmp_path):
    config = own_set(TWO_SPLITS)
    for version in ("1.2.0", "1.10.0"):
        (tmp_path / "own_set" / version).mkdir()
        (tmp_path / "own_set" / version / "dataset_info.json").touch()
    assert find(parse_name("own_set"), tmp_path).name == "1.10.0"
    assert find(parse_name("own_set:1.0.0"), tmp_path).name == "1.0.0"
    assert find(parse_name("own_set:1.0.1"), tmp_path) is None
    assert len(load(dataclasses.replace(config, name="own_set:1.0.0")).train) == 20


def test_a_configuration_is_found_and_must_be_named_where_there_are_several(own_set, tmp_path):
    own_set(TWO_SPLITS)
    (tmp_path / "other" / "first").mkdir(parents=True)
    (tmp_path / "own_set" / "1.0.0").rename(tmp_path / "other" / "first" / "1.0.0")
    assert find(parse_name("other"), tmp_path) == find(parse_name("other/first"), tmp_path)
    (tmp_path / "other" / "second" / "1.0.0").mkdir(parents=True)
    (tmp_path / "other" / "second" / "1.0.0" / "dataset_info.json").touch()
    with pytest.raises(InputError, match=r"data\.name must be one of other/first, other/second"):
        find(parse_name("other"), tmp_path)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_set_that_was_prepared_here_is_as_it_was_then_or_refused(tmp_path):
    write_published("mnist", tmp_path / "files")
    config = DataConfig(name="mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path / "files"))
    folder = prepare_small("mnist", config)
    before = fingerprint(load(config))
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            flip(path, place)
            with pytest.raises(InputError, match=r"data\.name mnist/3\.0\.1"):
                load(config)
        path.unlink()
        if path.name != SEAL:  # without it the set is as one that others have prepared
            with pytest.raises(InputError, match=r"data\.name mnist/3\.0\.1|is no prepared set: move it away"):
                load(config)
        path.write_bytes(content)
    assert fingerprint(load(config)) == before


@pytest.mark.parametrize("number", [30, pytest.param(3000, marks=pytest.mark.faults)])
def test_damaged_records_of_others_give_no_other_images(own_set, tmp_path, number):
    # No seal: the checksums inside the files alone.
    config = own_set(TWO_SPLITS)
    expected = fingerprint(load(config))
    (path,) = (tmp_path / "own_set").rglob("*train.array_record*")
    content = path.read_bytes()
    written = np.flatnonzero(np.frombuffer(content, np.uint8))
    random = np.random.RandomState(0)
    for _ in range(number):
        damaged = bytearray(content)
        place = random.choice(written)
        damaged[place] ^= 1 << random.randint(8)
        path.write_bytes(damaged[:place] if random.randint(4) == 0 else damaged)
        try:
            assert fingerprint(load(config)) == expected
        except InputError as error:
            assert "\n" not in str(error)
