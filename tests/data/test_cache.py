import collections
import os
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cnnjax.data import cache
from cnnjax.data.cache import Contents, load_or_decode
from cnnjax.data.files import unfinished_folder
from cnnjax.errors import InputError


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, np.uint8)


IMAGES = {"train": random_images(0, 20, 4, 4, 3), "test": random_images(1, 8, 4, 4, 3)}
LABELS = {split: np.arange(len(images)) % 2 for split, images in IMAGES.items()}


class Decoder:
    """Counts how often it is asked."""

    def __init__(self, labels=LABELS, meeting: threading.Barrier | None = None):
        self.calls, self.labels, self.meeting = 0, labels, meeting

    def __call__(self, allocate) -> Contents:
        self.calls += 1
        if self.meeting:
            self.meeting.wait(timeout=10)
        for split, images in IMAGES.items():
            allocate(split, images.shape)[:] = images
        return Contents(("a", "b"), self.labels)


def folders(tmp_path):
    return sorted((tmp_path / "cnnjax_cache").iterdir())


def test_the_second_load_reads_what_the_first_has_written(tmp_path):
    decoder = Decoder()
    for _ in range(2):
        dataset = load_or_decode(str(tmp_path), "set", {"x": 1}, decoder)
        for split, part in (("train", dataset.train), ("test", dataset.test)):
            np.testing.assert_array_equal(part.images, IMAGES[split])
            np.testing.assert_array_equal(part.labels, LABELS[split])
        assert (dataset.name, dataset.class_names) == ("set", ("a", "b"))
    assert decoder.calls == 1


def test_another_recipe_is_another_entry(tmp_path):
    decoder = Decoder()
    for recipe in ({"x": 1}, {"x": 2}, {"x": 1, "y": None}):
        load_or_decode(str(tmp_path), "set", recipe, decoder)
    assert decoder.calls == 3 and len(folders(tmp_path)) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["train_images.npy", "test_images.npy", "train_labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_entry_is_decoded_again(tmp_path, file, damage):
    decoder = Decoder()
    load_or_decode(str(tmp_path), "set", {}, decoder)
    damage(folders(tmp_path)[0] / file)
    dataset = load_or_decode(str(tmp_path), "set", {}, decoder)
    np.testing.assert_array_equal(dataset.train.images, IMAGES["train"])
    load_or_decode(str(tmp_path), "set", {}, decoder)
    assert decoder.calls == 2 and len(folders(tmp_path)) == 1


def test_a_failed_decoding_leaves_nothing(tmp_path):
    def fail(allocate):
        allocate("train", (2, 4, 4, 3))
        raise InputError("data.folder: bad image")

    with pytest.raises(InputError, match="bad image"):
        load_or_decode(str(tmp_path), "set", {}, fail)
    with pytest.raises(InputError, match=r"set: train labels must be in \[0, 2\), got 2 at index 0"):
        load_or_decode(str(tmp_path), "set", {}, Decoder({**LABELS, "train": LABELS["train"] + 2}))
    assert folders(tmp_path) == []


def test_two_at_once_do_no_harm(tmp_path):
    decoder = Decoder(meeting=threading.Barrier(2))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(load_or_decode, str(tmp_path), "set", {}, decoder) for _ in range(2)]
    for future in both:
        np.testing.assert_array_equal(future.result().train.images, IMAGES["train"])
    assert decoder.calls == 2 and len(folders(tmp_path)) == 1


def test_a_large_entry_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_IN_MEMORY", 100)
    dataset = load_or_decode(str(tmp_path), "set", {}, Decoder())
    assert isinstance(dataset.train.images, np.memmap)
    np.testing.assert_array_equal(dataset.train.images, IMAGES["train"])


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_fills_is_not(tmp_path):
    names = (f"key.tmp.{'d' * 32}", f"key.new.{'e' * 32}", "key.tmp.x", f"key.tmp.{'f' * 32}")
    dead, new, foreign, link = (tmp_path / "cnnjax_cache" / name for name in names)
    for folder in (dead, new, foreign, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    link.symlink_to(tmp_path / "elsewhere")
    load_or_decode(str(tmp_path), "set", {}, Decoder())
    assert not dead.exists()
    dead.mkdir()
    with unfinished_folder(tmp_path / "cnnjax_cache" / "key") as living:
        for folder in (foreign, living, tmp_path / "elsewhere"):
            os.utime(folder, (0, 0))
        load_or_decode(str(tmp_path), "set", {}, Decoder())
        assert not dead.exists()  # though nothing was decoded
        assert living.exists()  # it is locked
        assert new.exists()  # its process may be about to lock it
        assert foreign.exists() and (tmp_path / "elsewhere" / "file").exists()  # not made here
    assert not living.exists()


@pytest.mark.parametrize("unusable", ["{}/file", "{}/file/below", "~nosuchuser/x", "{}/read_only"])
def test_a_folder_that_cannot_be_written_is_gone_without(tmp_path, caplog, unusable):
    (tmp_path / "file").touch()
    (tmp_path / "read_only").mkdir(mode=0o555)
    if unusable.endswith("read_only") and os.access(tmp_path / "read_only", os.W_OK):
        pytest.skip("this user may write everywhere")
    data_dir, decoder = unusable.format(tmp_path), Decoder()
    for _ in range(2):
        dataset = load_or_decode(data_dir, "set", {}, decoder)
        np.testing.assert_array_equal(dataset.train.images, IMAGES["train"])
    assert decoder.calls == 2
    assert all("\n" not in line and repr(data_dir) in line for line in caplog.messages) and len(caplog.messages) == 2


def test_a_disk_without_room_is_gone_without_before_anything_is_decoded(tmp_path, monkeypatch, caplog):
    usage = collections.namedtuple("usage", "total used free")(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    dataset = load_or_decode(str(tmp_path), "set", {}, Decoder())
    np.testing.assert_array_equal(dataset.train.images, IMAGES["train"])
    assert "more than the disk has left" in caplog.text and folders(tmp_path) == []


def test_memory_that_is_not_there_is_named_before_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, 1000))
    with pytest.raises(InputError, match="the decoded train images need 960 bytes of memory, and there are at most 0"):
        load_or_decode(str(tmp_path / "file"), "set", {}, Decoder())


@pytest.mark.parametrize("file", ["manifest.json", "train_images.npy", "test_labels.npy"])
def test_a_pipe_in_an_entry_is_damage_and_not_waited_for(tmp_path, file):
    decoder = Decoder()
    load_or_decode(str(tmp_path), "set", {}, decoder)
    path = folders(tmp_path)[0] / file
    path.unlink()
    os.mkfifo(path)
    load_or_decode(str(tmp_path), "set", {}, decoder)
    assert decoder.calls == 2
