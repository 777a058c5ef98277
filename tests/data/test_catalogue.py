"""TensorFlow Datasets, without a network: small files in the published layouts, and sets of builders made here."""

import importlib.util
import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download.checksums import compute_url_info

from cnnjax.config import DataConfig
from cnnjax.data import Dataset, fingerprint, load
from cnnjax.data.preparation import is_prepared, prepare
from cnnjax.data.published import FILES, make_builder
from cnnjax.errors import InputError
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


def builder_for(name: str, folder, data_dir, progress=None):
    """Our builder, told the checksums of the small files in place of the published ones."""
    stock = make_builder(name, data_dir).url_infos
    infos = {url: compute_url_info(folder / url.rsplit("/", 1)[1]) for url in stock}
    return make_builder(name, data_dir, progress=progress, url_infos=infos)


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
    prepare(builder_for(name, tmp_path / "files", tmp_path / "sets", lambda *report: reports.append(report)), config)
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
    prepare(builder_for("mnist", tmp_path / "files", tmp_path), config)
    assert load(config).test.images[:6, 0, 0, 0].tolist() == [16, 13, 19, 15, 6, 1]


def test_a_prepared_set_is_decoded_once(tmp_path):
    write_published("mnist", tmp_path / "files")
    config = DataConfig(name="mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path / "files"))
    prepare(builder_for("mnist", tmp_path / "files", tmp_path), config)
    reports = []
    first = fingerprint(load(config, lambda *report: reports.append(report)))
    assert reports[-1] == ("decode mnist", 60, 60)
    assert fingerprint(load(config, lambda *report: pytest.fail("decoded again"))) == first


def test_a_file_that_is_not_the_published_one_is_named_and_leaves_no_set_behind(tmp_path):
    write_published("mnist", tmp_path / "files")
    config = DataConfig(name="mnist", data_dir=str(tmp_path / "sets"), manual_dir=str(tmp_path / "files"))
    for _ in range(2):  # the failed attempt is not taken for a prepared set
        with pytest.raises(
            InputError, match=r"wrong checksum: '.*idx._ubyte\.gz' is not the file that was published".replace("_", "-")
        ):
            load(config)
    assert not is_prepared(make_builder("mnist", tmp_path / "sets"))


def test_a_failure_while_records_are_written_leaves_no_set_behind(tmp_path):
    write_published("mnist", tmp_path / "files")
    (tmp_path / "files" / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(19, np.uint8)))  # for 20 images
    config = DataConfig(name="mnist", data_dir=str(tmp_path / "sets"), manual_dir=str(tmp_path / "files"))
    builder = builder_for("mnist", tmp_path / "files", tmp_path / "sets")
    with pytest.raises(InputError, match="must agree, got 20 images and 19 labels"):
        prepare(builder, config)
    assert not is_prepared(builder)
    assert not list((tmp_path / "sets").rglob("*incomplete*"))


def test_missing_files_and_no_network_are_one_line_that_says_what_to_put_where(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot be reached: put cifar-10-binary\.tar\.gz into a folder .*--data\.manual-dir"
    ):
        load(DataConfig(name="cifar10", data_dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"data\.manual_dir must be a folder, got '/nowhere'"):
        load(DataConfig(name="cifar10", data_dir=str(tmp_path), manual_dir="/nowhere"))
    with pytest.raises(
        InputError, match=r"data\.manual_dir must hold .* lacks train-images-idx3-ubyte\.gz, train-labels"
    ):
        load(DataConfig(name="mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"data\.name kmnist is not prepared .* cannot be reached"):
        load(DataConfig(name="kmnist", data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fashion_minst",
            "must be photos, digits or a name in TensorFlow Datasets, got 'fashion_minst'; did you mean fashion_mnist",
        ),
        ("photo", "did you mean photos"),
        ("qqqqqq", "got 'qqqqqq'$"),
        ("mnist/none", "'mnist/none' cannot be used"),
        ("../x", "'../x' cannot be used"),
    ],
)
def test_an_unknown_name_is_one_line_with_close_matches(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as error:
        load(DataConfig(name=name, data_dir=str(tmp_path)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def own_builder(data_dir, images: dict[str, list[np.ndarray]], features=None, generate=None):
    """A builder of a set "own_set" that no catalogue knows; its classes alternate."""

    class OwnSet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "own_set"
        pkg_dir_path = None

        def _info(self):
            default = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["even", "odd"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features or default))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(part) for split, part in images.items()}

        def _generate_examples(self, part):
            for index, pixels in enumerate(part):
                yield index, generate(index) if generate else {"image": png(pixels), "label": index % 2}

    return OwnSet(data_dir=str(data_dir))


@pytest.fixture
def own_set(tmp_path):
    """`make(images by split, features, generate)` prepares the set; returns the config that names it."""

    def make(images, features=None, generate=None, **change) -> DataConfig:
        with registered.skip_registration():
            builder = own_builder(tmp_path, images, features, generate)
        config = DataConfig(name="own_set", data_dir=str(tmp_path), **change)
        prepare(builder, config)
        return config

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


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_a_builder_that_needs_tensorflow_says_what_to_install(own_set, capfd):
    def generate(index):
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

        return tensorflow.io.gfile

    with pytest.raises(InputError, match=r"own_set is not prepared under .* needs tensorflow: pip install tensorflow"):
        own_set({"train": [None]}, generate=generate)
    assert capfd.readouterr().out == ""
