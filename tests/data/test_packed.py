"""Folders packed into shards: the same images by index, in memory and from the folder; stops, damage, strangers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import fingerprint, load, mean_image, packed, packing, records
from cnnjax.data.packing import pack
from cnnjax.errors import InputError
from cnnjax.train.lock import locked
from experiments import pack as pack_script
from tests.experiments.test_filter_evolution import Quiet


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    small = np.random.RandomState(seed).randint(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photographs(image_folder):
    """12 JPEGs of three sizes in train/, 4 in test/, of two classes."""
    images = {
        f"{split}/{name}/{index:02d}.jpg": smooth(10 * index + label, *[(40, 50), (64, 40), (33, 33)][index % 3])
        for split, count in (("train", 6), ("test", 2))
        for label, name in enumerate(("cat", "dog"))
        for index in range(count)
    }
    return image_folder(images)


@pytest.fixture
def config(photographs, tmp_path) -> DataConfig:
    return DataConfig(folder=str(photographs), data_dir=str(tmp_path / "kept"))


@pytest.fixture
def to(tmp_path):
    return tmp_path / "packed"


def opened(config: DataConfig, to, **changes) -> DataConfig:
    return dataclasses.replace(config, folder=None, packed=str(to), **changes)


@pytest.fixture
def by_index(monkeypatch):
    """No set is small enough to be read into memory."""
    monkeypatch.setattr(records, "IN_MEMORY", 0)


@pytest.mark.parametrize("size", [None, 24], ids=["files", "pixels"])
@pytest.mark.parametrize("shorter_side", [None, 28])
def test_a_small_packed_set_is_the_folder_bit_for_bit(config, to, size, shorter_side):
    config = dataclasses.replace(config, image_size=24, shorter_side=shorter_side)
    pack(config, to, size=size, shard_bytes=4000)
    whole = load(opened(config, to))
    assert whole.train.in_memory and whole.name == "images"
    assert fingerprint(whole) == fingerprint(load(config))
    assert fingerprint(load(DataConfig(packed=str(to), data_dir=config.data_dir))) == fingerprint(whole)


@pytest.mark.parametrize("size", [None, 24], ids=["files", "pixels"])
def test_by_index_the_images_labels_and_mean_are_those_in_memory(config, to, size, by_index):
    config = dataclasses.replace(config, image_size=24)
    summary = pack(config, to, size=size, shard_bytes=4000)
    assert summary.counts == {"train": 12, "test": 4} and summary.shards > 3
    theirs, ours = load(config), load(opened(config, to))
    assert not ours.train.in_memory and not ours.test.in_memory
    for split in ("train", "test"):
        rows = np.random.RandomState(0).permutation(len(getattr(theirs, split)))
        for mine, other in zip(*(getattr(each, split).__getitems__(rows) for each in (ours, theirs)), strict=True):
            np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(mean_image(ours.train), mean_image(theirs.train))


def test_the_fingerprint_by_index_is_of_the_shards_and_the_geometry(config, to, tmp_path, by_index):
    config = dataclasses.replace(config, image_size=24)
    pack(config, to)
    before = fingerprint(load(opened(config, to)))
    assert fingerprint(load(opened(config, to, image_size=20))) != before
    pack(config, tmp_path / "again")
    assert fingerprint(load(opened(config, tmp_path / "again"))) == before
    first = next((tmp_path / "images" / "train" / "cat").iterdir())
    Image.fromarray(smooth(99, 40, 50)).save(first)
    pack(config, tmp_path / "other")
    assert fingerprint(load(opened(config, tmp_path / "other"))) != before


def test_shards_are_a_function_of_folder_and_settings_and_mix_the_classes(config, to, tmp_path):
    pack(config, to, size=16, shard_bytes=16 * 16 * 3 * 4)
    pack(config, tmp_path / "again", size=16, shard_bytes=16 * 16 * 3 * 4)
    names = sorted(path.name for path in to.glob("*.array_record"))
    assert names == ["test-00000-of-00001.array_record", *(f"train-0000{k}-of-00003.array_record" for k in range(3))]
    for name in names:
        assert (to / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert packed.order_of(12, "train", 0).tolist() != list(range(12))
    assert sorted(path.name for path in to.iterdir()) == sorted([*names, "manifest.json", "mean.npy"])


def test_a_mean_of_another_geometry_is_computed_once_and_kept(config, to, by_index, monkeypatch):
    pack(dataclasses.replace(config, image_size=24), to)
    other = opened(config, to, image_size=20)
    expected = mean_image(load(dataclasses.replace(config, image_size=20)).train)
    np.testing.assert_array_equal(mean_image(load(other).train), expected)
    monkeypatch.setattr(records.ImagesInRecords, "read", None)  # none is read for it again
    np.testing.assert_array_equal(mean_image(load(other).train), expected)


def test_a_crop_of_packed_pixels_is_a_part_of_them_and_of_their_mean(config, to, by_index):
    pack(config, to, size=24)
    whole, part = load(opened(config, to)), load(opened(config, to, image_size=19, shorter_side=24))
    np.testing.assert_array_equal(part.train.images[[3, 1]], whole.train.images[[3, 1]][:, 2:21, 2:21])
    np.testing.assert_array_equal(mean_image(part.train), mean_image(whole.train)[2:21, 2:21])


@pytest.mark.parametrize("size", [None, 24], ids=["files", "pixels"])
@pytest.mark.parametrize("crop", ["random", "resized"])
def test_training_images_without_draws_are_those_of_the_centre(config, to, size, crop, by_index):
    """As a mean image and a study see them; pixels have been cut to the centre of 28 when they were packed."""
    config = dataclasses.replace(config, image_size=24, shorter_side=28)
    pack(config, to, size=size)
    centre, cut = (load(opened(config, to, train_crop=kind)).train.images for kind in ("centre", crop))
    np.testing.assert_array_equal(cut[:], centre[:])
    np.testing.assert_array_equal(cut.mean(), records.mean_of(centre))


def test_files_of_one_size_are_read_in_the_channels_that_are_asked_for(image_folder, to, tmp_path, by_index):
    images = {f"{split}/{name}/1.png": smooth(3, 9, 7) for split in ("train", "test") for name in ("cat", "dog")}
    config = DataConfig(folder=str(image_folder(images)), data_dir=str(tmp_path), channels=3)
    pack(config, to)
    ours, theirs = load(opened(config, to, channels=1)), load(dataclasses.replace(config, channels=1))
    assert ours.image_shape == (9, 7, 1)
    np.testing.assert_array_equal(ours.train.images[:], theirs.train.images)


def test_the_order_in_the_shards_is_numpys_permutation():
    for listed in (1, 2, 13, 1000):
        expected = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([5, 1]))).permutation(listed)
        np.testing.assert_array_equal(packed.order_of(listed, "test", 5), expected)


@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_packing_goes_on_and_makes_no_finished_shard_twice(config, to, tmp_path, stopped_after):
    class Stop(Exception):
        pass

    def progress(description, done, total):
        if done > 4 * stopped_after:
            raise Stop

    options = {"size": 16, "shard_bytes": 16 * 16 * 3 * 4}
    with pytest.raises(Stop):
        pack(config, to, progress=progress, **options)
    with pytest.raises(InputError, match=r"is not packed to its end: the same experiments.pack .* goes on"):
        load(opened(config, to))
    times = {path.name: path.stat().st_mtime_ns for path in to.glob("*.array_record")}
    assert len(times) == stopped_after
    summary = pack(config, to, **options)
    assert summary.made == summary.shards - stopped_after
    assert all((to / name).stat().st_mtime_ns == time for name, time in times.items())
    pack(config, tmp_path / "whole", **options)
    assert (to / "manifest.json").read_text() == (tmp_path / "whole" / "manifest.json").read_text()
    assert pack(config, to, **options).made == 0


def test_a_shard_that_is_damaged_before_the_end_is_made_again(config, to):
    def progress(description, done, total):
        if done > 8:
            raise KeyboardInterrupt

    options = {"size": 16, "shard_bytes": 16 * 16 * 3 * 4}
    with pytest.raises(KeyboardInterrupt):
        pack(config, to, progress=progress, **options)
    path = to / "train-00000-of-00003.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    assert pack(config, to, **options).made == 3


@pytest.mark.parametrize(
    ("changes", "options", "field"),
    [
        ({}, {"size": 20}, "--data.image-size: 20 here, 16 there"),
        ({}, {"size": None}, "--size: files here, pixels there"),
        ({"interpolation": "bilinear"}, {}, "--data.interpolation: bilinear here, lanczos there"),
        ({"channels": 1}, {}, "--data.channels: 1 here, 3 there"),
        ({}, {"seed": 1}, "--seed: 1 here, 0 there"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_with_the_field(config, to, changes, options, field, finished):
    pack(config, to, size=16)
    if not finished:
        (to / packed.UNFINISHED).mkdir()
        settings = json.loads((to / "manifest.json").read_text())["settings"]
        packing.write_text(to / packed.UNFINISHED / "settings.json", packing.sealed(settings))
        (to / "manifest.json").unlink()
    with pytest.raises(InputError, match=f"holds a packing with other settings .{field}"):
        pack(dataclasses.replace(config, **changes), to, **{"size": 16, **options})


def test_another_folder_is_refused(config, to, photographs):
    pack(config, to, size=16)
    (photographs / "train" / "cat" / "00.jpg").unlink()
    with pytest.raises(InputError, match=r"other settings .the files of data.folder .names and sizes., train: "):
        pack(config, to, size=16)


def test_unreadable_images_stop_the_packing_or_are_left_out_and_listed(config, to, photographs, by_index):
    (photographs / "train" / "cat" / "03.jpg").write_bytes(b"no image")
    (photographs / "train" / "dog" / "05.jpg").write_bytes(
        (photographs / "train" / "dog" / "00.jpg").read_bytes()[:400]
    )
    with pytest.raises(InputError, match=r"0[35].jpg .*--on-bad skip leaves such images out") as error:
        pack(config, to, size=16)
    assert "\n" not in str(error.value)
    summary = pack(config, to, size=16, on_bad="skip")
    assert [name for name, _ in summary.left_out] == ["train/cat/03.jpg", "train/dog/05.jpg"]
    ours = load(opened(config, to))
    assert summary.counts == {"train": 10, "test": 4} and ours.train.labels.tolist() == [0] * 5 + [1] * 5
    for name in ("train/cat/03.jpg", "train/dog/05.jpg"):
        (photographs / name).unlink()
    theirs = load(dataclasses.replace(config, image_size=16))
    np.testing.assert_array_equal(ours.train.images[:], theirs.train.images)


def test_grey_among_colour_needs_the_option(config, to, photographs):
    Image.fromarray(smooth(1, 40, 40)[..., 0]).save(photographs / "train" / "dog" / "02.jpg")
    with pytest.raises(InputError, match="data.channels must be given .* mixed modes: .*02.jpg is grey"):
        pack(config, to, size=16)
    assert pack(dataclasses.replace(config, channels=3), to, size=16).counts["train"] == 12


def test_files_of_mixed_sizes_are_packed_and_need_a_size_when_they_are_read(config, to):
    pack(config, to)
    with pytest.raises(InputError, match="data.image_size must be given for data.packed"):
        load(opened(config, to))
    assert load(opened(config, to, image_size=24)).image_shape == (24, 24, 3)


def test_pixels_have_the_channels_that_they_were_packed_with(config, to):
    pack(config, to, size=16)
    with pytest.raises(InputError, match="data.channels must be 3, as the pixels were packed, got 1"):
        load(opened(config, to, channels=1))


def damage_cut(to, other):
    path = to / "train-00000-of-00001.array_record"
    path.write_bytes(path.read_bytes()[:-100])


def damage_missing(to, other):
    (to / "train-00000-of-00001.array_record").unlink()


def damage_other_set(to, other):
    (to / "test-00000-of-00001.array_record").write_bytes((other / "test-00000-of-00001.array_record").read_bytes())


def damage_manifest(to, other):
    text = (to / "manifest.json").read_text()
    (to / "manifest.json").write_text(text.replace('"cat"', '"cow"', 1))


def damage_mean(to, other):
    np.save(to / "mean.npy", np.zeros((16, 16, 3), np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut, "the shard .*train-00000-of-00001.array_record' must have .* bytes, and has"),
        (damage_missing, "the shard .*train-00000-of-00001.array_record' is missing"),
        (damage_other_set, "the shard .*test-00000-of-00001.array_record' is of another set"),
        (damage_manifest, "manifest.json' is not as experiments.pack has written it"),
        (damage_mean, "mean.npy' is not as experiments.pack has written it"),
    ],
)
def test_what_is_not_as_it_was_packed_is_refused_in_one_line(config, to, tmp_path, photographs, damage, message):
    pack(config, to, size=16)
    for path in (photographs / "test").rglob("*.jpg"):
        Image.fromarray(smooth(50, 40, 40)).save(path)
    pack(config, tmp_path / "other", size=16)
    damage(to, tmp_path / "other")
    with pytest.raises(InputError, match=message) as error:
        load(opened(config, to))
    assert "\n" not in str(error.value)


def test_a_bit_that_flips_in_the_middle_of_a_shard_is_found_when_it_is_read(config, to, by_index):
    pack(config, to, size=24)
    path = to / "train-00000-of-00001.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    dataset = load(opened(config, to))
    with pytest.raises(InputError, match="data.packed: the shards in .* cannot be read: train-00000") as error:
        dataset.train.images[:]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_folder_that_is_no_packed_set_is_refused(config, tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="data.packed must be a folder"):
        load(opened(config, tmp_path / place))


def test_a_folder_with_other_files_is_not_packed_into(config, to):
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--to must be new, empty or a packing's, and .* has 'notes.txt'"):
        pack(config, to, size=16)


def test_packed_excludes_the_other_sources_and_crops_need_records():
    with pytest.raises(InputError, match="data.folder and data.packed exclude each other, got 'a' and 'b'"):
        DataConfig(folder="a", packed="b")
    with pytest.raises(InputError, match="data.train_crop must be centre with data.folder or data.npz, got 'resized'"):
        DataConfig(folder="a", train_crop="resized", image_size=8)
    with pytest.raises(InputError, match="data.train_crop must be centre for data.name digits, got resized"):
        load(DataConfig(name="digits", train_crop="resized", image_size=8))
    with pytest.raises(InputError, match="data.shorter_side must be given for data.train_crop random"):
        DataConfig(packed="a", train_crop="random", image_size=8)


def test_what_is_wrong_with_the_images_is_said_before_a_folder_is_made(config, tmp_path, photographs, monkeypatch):
    to = tmp_path / "deep" / "packed"
    with monkeypatch.context() as patch:
        patch.setattr(packing.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 0, 9))
        with pytest.raises(InputError, match="must have room for 27,648 bytes, and its disk has 9$"):
            pack_script.main(pack_script.Options(to=to, data=config, size=24), Quiet())
    missing = dataclasses.replace(config, folder=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"data\.folder must be a folder"):
        pack_script.main(pack_script.Options(to=to, data=missing), Quiet())
    for path in (photographs / "test").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="the test split must hold at least 1 image that can be read, got 0"):
        pack_script.main(pack_script.Options(to=to, data=config, on_bad="skip"), Quiet())
    assert not to.parent.exists()


def test_a_folder_is_packed_by_one_process_at_a_time(config, to):
    to.mkdir()
    with locked(to), pytest.raises(InputError, match="must not be in use by another process"):
        pack_script.main(pack_script.Options(to=to, data=config), Quiet())
    assert [path.name for path in to.iterdir()] == ["lock"]
    pack_script.main(pack_script.Options(to=to, data=config), Quiet())
    assert (to / "manifest.json").exists()
