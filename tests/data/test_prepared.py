"""Sets of TensorFlow Datasets by index: the images that are decoded at once, read once for their labels, damaged."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnnjax.config import DataConfig
from cnnjax.data import fingerprint, load, mean_image, prepared, records
from cnnjax.data.decoding import Encoded, decode
from cnnjax.data.images import Fitting
from cnnjax.data.packing import pack
from cnnjax.data.shards import Shards
from cnnjax.errors import InputError
from cnnjax.train.feed import choose
from tests.data.prepared_sets import jpeg, prepare_own, rewrite

SIZES = [(40, 50), (64, 40), (33, 33)]
TRAIN = "own_set-train.array_record-00001-of-00003"  # the second of three


def photograph(index: int, mode: str = "RGB") -> bytes:
    return jpeg(index, *SIZES[index % 3], mode)


@pytest.fixture
def photographs(tmp_path):
    """`make(parts, mode, **changes)`: JPEGs of three sizes, three shards a split; returns the config that names it."""

    def make(parts=("train", "validation"), mode=lambda index: "RGB", **changes) -> DataConfig:
        label = tfds.features.ClassLabel(names=["cat", "dog"])
        features = {"image": tfds.features.Image(encoding_format="jpeg"), "label": label}
        counts = {"train": 12, "validation": 6, "test": 6}
        prepare_own(
            tmp_path / "sets",
            {split: range(counts[split]) for split in parts},
            features,
            lambda index: {"image": photograph(index, mode(index)), "label": index // 2 % 2},
            shards=3,
        )
        return DataConfig(**{"name": "own_set", "data_dir": str(tmp_path / "sets"), "image_size": 24} | changes)

    return make


@pytest.fixture
def by_index(monkeypatch):
    """No set is small enough to be decoded at once."""
    monkeypatch.setattr(records, "IN_MEMORY", 0)


def shard(config, name=TRAIN):
    return Path(config.data_dir) / "own_set" / "1.0.0" / name


@pytest.mark.parametrize("parts", [("train", "validation"), ("train",)], ids=["two splits", "one split, parted"])
@pytest.mark.parametrize("shorter_side", [None, 28])
def test_by_index_images_labels_and_mean_are_those_decoded_at_once(photographs, parts, shorter_side, monkeypatch):
    grey = {3: "L", 4: "CMYK"}
    config = photographs(parts, lambda index: grey.get(index, "RGB"), channels=3, shorter_side=shorter_side)
    theirs = load(config)
    monkeypatch.setattr(records, "IN_MEMORY", 0)
    ours = load(config)
    assert theirs.train.in_memory and not ours.train.in_memory and not ours.test.in_memory
    assert ours.class_names == theirs.class_names == ("cat", "dog") and ours.name == theirs.name
    for split in ("train", "test"):
        mine, other = getattr(ours, split), getattr(theirs, split)
        np.testing.assert_array_equal(mine.labels, other.labels)
        rows = np.random.RandomState(0).permutation(len(other))
        np.testing.assert_array_equal(mine.images[rows], other.images[rows])
    np.testing.assert_array_equal(mean_image(ours.train), mean_image(theirs.train))


@pytest.mark.parametrize("parts", [("train", "validation", "test"), ("train", "test")])
def test_a_test_split_without_labels_is_left(photographs, parts, monkeypatch):
    config = photographs(parts)
    for path in shard(config).parent.glob("own_set-test*"):
        rewrite(path, lambda examples: [labelled(example, -1) for example in examples])
    for most in (records.IN_MEMORY, 0):
        monkeypatch.setattr(records, "IN_MEMORY", most)
        dataset = load(config)
        assert (len(dataset.train), len(dataset.test)) == ((12, 6) if "validation" in parts else (10, 2))


def labelled(example, label):
    example.features.feature["label"].int64_list.value[0] = label
    return example


def test_images_of_one_size_need_none_and_keep_their_channels(tmp_path, monkeypatch):
    images = np.random.RandomState(0).randint(0, 256, (20, 5, 7), np.uint8)
    prepare_own(tmp_path, {"train": list(images), "test": list(images[:4])}, {
        "image": tfds.features.Image(shape=(None, None, 1)), "label": tfds.features.ClassLabel(num_classes=2)
    })  # fmt: skip
    config = DataConfig(name="own_set", data_dir=str(tmp_path))
    theirs = load(config)
    monkeypatch.setattr(records, "IN_MEMORY", 0)
    ours = load(config)
    assert ours.image_shape == (5, 7, 1) and not ours.train.in_memory
    np.testing.assert_array_equal(ours.train.images[:], theirs.train.images)


def test_the_size_once_decoded_decides_and_the_reason_is_told(photographs, monkeypatch):
    config = photographs()
    size = (12 + 6) * 24 * 24 * 3
    monkeypatch.setattr(records, "IN_MEMORY", size)
    assert load(config).train.in_memory
    cut = load(dataclasses.replace(config, train_crop="resized"))
    assert not cut.train.in_memory and "(data.train_crop resized cuts each training image anew)" in choose(cut).reason
    monkeypatch.setattr(records, "IN_MEMORY", size - 1)
    large = load(config)
    assert not large.train.in_memory
    choice = choose(large)
    assert choice.streamed and choice.reason.endswith("which lie on disk (more than 0 MB are read by index)")


def test_no_array_of_a_large_set_is_kept(photographs, by_index):
    config = photographs()
    load(config).train.images[:]
    kept = sorted(path.name.split("-")[0] for path in (shard(config).parents[2] / "cnnjax_cache").iterdir())
    assert kept == ["records"]


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_images_are_cut_where_their_draws_say_and_as_those_of_a_packed_set(photographs, tmp_path, crop):
    config = photographs(shorter_side=28, train_crop=crop)
    ours = load(config)
    draws = np.random.RandomState(1).random_sample((12, 4))
    found = ours.train.images.read(np.arange(12), draws)
    assert ours.test.images.num_draws == 0 and ours.train.images.num_draws == 4
    by_content = {photograph(index): index for index in range(12)}
    shards = prepared.read(shard(config).parent, prepared.parse_name("own_set"))
    order = [by_content[record.image] for record in prepared.records(shards, "train", range(12))]
    assert sorted(order) == list(range(12)) != order
    fitting = Fitting(24, 3, False, 28)
    expected = [
        decode(Encoded("a photograph", lambda index=index: photograph(index)), fitting, "", crop, draw).pixels
        for index, draw in zip(order, draws, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)
    for index in range(12):
        for split in ("train", "test"):
            path = tmp_path / "folder" / split / str(index // 2 % 2) / f"{index:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(index))
    pack(DataConfig(folder=str(tmp_path / "folder"), image_size=24), tmp_path / "packed")
    theirs = load(dataclasses.replace(config, packed=str(tmp_path / "packed"))).train
    in_folder = sorted(range(12), key=lambda index: (index // 2 % 2, index))
    places = [in_folder.index(index) for index in order]
    np.testing.assert_array_equal(theirs.images.read(np.array(places), draws), found)


@pytest.mark.parametrize("source", ["prepared", "packed"])
def test_few_large_files_of_small_images_stand_in_memory(photographs, tmp_path, by_index, monkeypatch, source):
    config = photographs(image_size=4)
    if source == "packed":
        for index in range(12):
            for split in ("train", "test"):
                path = tmp_path / "folder" / split / str(index % 2) / f"{index}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(photograph(index))
        pack(DataConfig(folder=str(tmp_path / "folder"), image_size=4), tmp_path / "packed")
        config = dataclasses.replace(config, packed=str(tmp_path / "packed"))
    images, most = load(config).train.images, 3 * max(len(photograph(index)) for index in range(12))
    whole, read, sizes = images[:], Shards.read, []

    def counted(shards, positions):
        contents = read(shards, positions)
        sizes.append(sum(map(len, contents)))
        return contents

    monkeypatch.setattr(Shards, "read", counted)
    monkeypatch.setattr(records, "_ENCODED_BYTES", most)
    np.testing.assert_array_equal(images[:], whole)
    assert len(sizes) > 1 and max(sizes) <= 2 * most


def test_a_set_is_read_once_for_its_labels(photographs, by_index, monkeypatch, tmp_path):
    config, reports = photographs(), []
    first = fingerprint(load(config, lambda *report: reports.append(report)))
    assert reports[-1] == ("read own_set/1.0.0", 18, 18)
    shutil.copytree(config.data_dir, tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_survey", lambda *_: pytest.fail("read again"))
        assert fingerprint(load(config)) == first
        assert fingerprint(load(dataclasses.replace(config, data_dir=str(tmp_path / "elsewhere")))) == first
    (kept,) = (tmp_path / "elsewhere" / "cnnjax_cache").glob("records-*")
    for content in (b"", kept.read_bytes()[:-1], b"\1" + kept.read_bytes()[1:]):
        kept.write_bytes(content)
        assert fingerprint(load(dataclasses.replace(config, data_dir=str(tmp_path / "elsewhere")))) == first
        assert kept.read_bytes() != content


def test_where_nothing_can_be_kept_a_warning_says_so(photographs, by_index, caplog):
    config = photographs()
    expected = fingerprint(load(config))
    cache = shard(config).parents[2] / "cnnjax_cache"
    shutil.rmtree(cache)
    cache.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        dataset = load(config)
        assert fingerprint(dataset) == expected
        mean_image(dataset.train)
    said = [record.getMessage() for record in caplog.records]
    assert [("cannot keep the labels" in line, "cannot keep the mean image" in line) for line in said] == [
        (True, False), (False, True)
    ]  # fmt: skip


def test_the_fingerprint_is_of_the_records_the_split_and_the_geometry(photographs, by_index):
    config = photographs(("train",))
    before = fingerprint(load(config))
    for change in ({"image_size": 20}, {"test_fraction": 0.4}, {"split_seed": 1}, {"channels": 1}):
        assert fingerprint(load(dataclasses.replace(config, **change))) != before
    assert fingerprint(load(dataclasses.replace(config, channels=3))) == before  # as the images are

    def change(examples):
        examples[1].features.feature["image"].bytes_list.value[0] = photograph(77)
        return examples

    rewrite(shard(config), change)
    assert fingerprint(load(config)) != before


def test_a_mean_is_computed_once_and_kept(photographs, by_index, monkeypatch):
    config = photographs()
    expected = mean_image(load(config).train)
    monkeypatch.setattr(records.ImagesInRecords, "read", None)  # none is read for it again
    np.testing.assert_array_equal(mean_image(load(config).train), expected)


def without(kind):
    def change(examples):
        del examples[2].features.feature[kind]
        return examples

    return lambda path: rewrite(path, change)


def with_image(content):
    def change(examples):
        examples[2].features.feature["image"].bytes_list.value[0] = content
        return examples

    return lambda path: rewrite(path, change)


def with_label(label):
    return lambda path: rewrite(path, lambda them: [*them[:2], labelled(them[2], label), *them[3:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "the prepared files cannot be read: FILE: "),
        (lambda path: path.write_bytes(b""), "the prepared files cannot be read: FILE: "),
        (lambda path: path.unlink(), "the prepared files cannot be read: .* No such file .*FILE"),
        (lambda path: rewrite(path, lambda them: them[:3]), "FILE: it has 3 records, and its description says 4"),
        (without("image"), r"record 6 of train \(FILE\) must hold one image and one label"),
        (without("label"), r"record 6 of train \(FILE\) must hold one image and one label"),
        (with_image(b""), r"record 6 of train \(FILE\) is not an image of a known format"),
        (with_image(b"text"), r"record 6 of train \(FILE\) is not an image of a known format"),
        (with_label(-1), r"record 6 of train \(FILE\) must have a label in \[0, 2\), got -1"),
        (with_label(2**40), r"record 6 of train \(FILE\) must have a label in \[0, 2\), got 1099511627776"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_one_line_that_names_the_file(photographs, by_index, damage, message):
    config = photographs()
    damage(shard(config))
    with pytest.raises(InputError, match="data.name own_set/1.0.0.*" + message.replace("FILE", TRAIN)) as error:
        load(config)
    assert "\n" not in str(error.value)
    assert not list((shard(config, "features.json").parents[2] / "cnnjax_cache").glob("records-*"))


def test_what_is_damaged_later_is_found_when_it_is_read(photographs, by_index):
    config = photographs()
    images = load(config).train.images
    path = shard(config)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for opened in (images, load(config).train.images):  # its ends are as they were
        with pytest.raises(InputError, match=f"the prepared files cannot be read: {TRAIN}: ") as error:
            opened[:]
        assert "\n" not in str(error.value)


def test_a_shard_that_others_have_replaced_meanwhile_is_refused(photographs, by_index):
    config = photographs()
    images = load(config).train.images
    rewrite(shard(config), lambda examples: examples[::-1])
    with pytest.raises(InputError, match=rf"record \d of train .{TRAIN}. had the label 0 when the set was first read"):
        images[:]


def test_mixed_sizes_and_modes_are_refused_when_the_set_is_opened(photographs, by_index):
    grey = photographs(mode=lambda index: "L" if index == 5 else "RGB")
    with pytest.raises(InputError, match=r"data.channels must be given .*own_set/1.0.0 record \d+ of train \(own_set"):
        load(grey)
    with pytest.raises(InputError, match=r"data.image_size must be given .*own_set/1.0.0 record 0 of train \(own_set"):
        load(dataclasses.replace(grey, channels=3, image_size=None))


def test_a_description_that_has_changed_makes_it_a_set_to_be_read_again(photographs, by_index, monkeypatch):
    config = photographs()
    load(config)
    path = shard(config, "dataset_info.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"description": "another"}))
    monkeypatch.setattr(prepared, "_survey", lambda *_: pytest.fail("read again"))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        load(config)
