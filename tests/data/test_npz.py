import dataclasses
import io
import os
import resource
import struct
import zipfile

import numpy as np
import pytest

from cnnjax.config import DataConfig
from cnnjax.data import fingerprint, load
from cnnjax.errors import InputError

IMAGES = np.random.RandomState(0).randint(0, 256, (6, 4, 5), np.uint8)
ARRAYS = {"x_train": IMAGES, "y_train": np.arange(6) % 3, "x_test": IMAGES[:3], "y_test": np.arange(3)}


@pytest.fixture
def config_of(tmp_path):
    def write(**change) -> DataConfig:
        arrays = {name: array for name, array in {**ARRAYS, **change}.items() if array is not None}
        np.savez(tmp_path / "mine.npz", **arrays)
        return DataConfig(npz=str(tmp_path / "mine.npz"))

    return write


def test_npz_gives_the_arrays_of_the_file(config_of):
    dataset = load(config_of())
    np.testing.assert_array_equal(dataset.train.images, IMAGES[..., None])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 2])
    assert (dataset.name, dataset.class_names) == ("mine", ("0", "1", "2"))


def test_npz_takes_bool_images_labels_in_a_column_and_class_names(config_of):
    names = np.array(["Ä", "b", "c"])
    dataset = load(config_of(x_train=IMAGES > 100, y_train=ARRAYS["y_train"][:, None], class_names=names))
    np.testing.assert_array_equal(dataset.train.images[..., 0], np.where(IMAGES > 100, 255, 0))
    np.testing.assert_array_equal(dataset.train.labels, ARRAYS["y_train"])
    assert dataset.class_names == ("Ä", "b", "c")


def test_npz_images_are_fitted(config_of):
    config = dataclasses.replace(config_of(), image_size=8, channels=3)
    assert load(config).image_shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "lacks y_test and has x_train, y_train, x_test"),
        ({"x_train": IMAGES / 255}, r"x_train in '.*' must be uint8 \(grey levels 0..255\) or bool, got float64"),
        ({"x_train": IMAGES[0]}, r"\[n, height, width, 1 or 3\], got \[4, 5\]"),
        ({"x_test": IMAGES[:3, None]}, r"got \[3, 1, 4, 5\]"),
        ({"y_train": np.arange(5)}, r"train labels must be one for each of the 6 images, got shape \[5\]"),
        ({"y_train": np.arange(6) / 2}, r"y_train in '.*' must be integers of shape \[n\] or \[n, 1\], got float64"),
        ({"y_test": np.array([0, 1, -1])}, r"test labels must be in \[0, 3\), got -1 at index 2"),
        ({"y_test": np.array([0, 1, 10**9])}, r"must be less than the number of images \(9\), got 1000000000"),
        ({"class_names": np.array(["a", "b"])}, r"train labels must be in \[0, 2\), got 2 at index 2"),
        ({"class_names": np.arange(3)}, "class_names in '.*' must be text of shape"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "number of classes must be at least 2, got 1"),
        ({"x_test": IMAGES[:3, :3]}, r"one shape, got \(4, 5, 1\) and \(3, 5, 1\)"),
        ({"x_train": IMAGES[:0], "y_train": np.arange(0)}, "the train split must hold at least 1 image"),
        ({"y_train": np.array([{}] * 6)}, "y_train in '.*' holds Python objects, which are never unpickled"),
    ],
)
def test_npz_refuses(config_of, change, message):
    with pytest.raises(InputError, match=message) as error:
        load(config_of(**change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "which does not exist"), (b"no archive", "which is no npz archive"), (b"", "which is no npz archive")],
)
def test_npz_refuses_what_is_no_npz_file(tmp_path, content, message):
    path = tmp_path / "mine.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"data.npz .*{message}"):
        load(DataConfig(npz=str(path)))


def test_npz_refuses_a_folder_and_a_damaged_archive(tmp_path, config_of):
    with pytest.raises(InputError, match="which is a folder"):
        load(DataConfig(npz=str(tmp_path)))
    config = config_of()
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    content[150:200] = bytes(50)
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"data\.npz: .*cannot be read"):
        load(config)


def test_npz_refuses_a_single_array(tmp_path):
    np.save(tmp_path / "mine.npy", IMAGES)
    with pytest.raises(InputError, match="which is no npz archive"):
        load(DataConfig(npz=str(tmp_path / "mine.npy")))


def npy(header: str, content: bytes, version: int = 1) -> bytes:
    """An .npy file with any header, written from the description of the format."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


def header(descr: object = "|u1", order: object = False, shape: object = (6, 4, 5)) -> str:
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("x_train", npy(header(shape=(True, 4, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(6, True, 20)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(-6, -4, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(-1, 4, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(10**15, 4, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(2**63, 4, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(10**400, 0, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=(6.0, 4, 5)), IMAGES.tobytes())),
        ("x_train", npy(header(shape=None), IMAGES.tobytes())),
        ("x_train", npy(header(order=7), IMAGES.tobytes())),
        ("x_train", npy(header(descr="|V1000000000"), IMAGES.tobytes())),
        ("x_train", npy(header(descr="|O"), IMAGES.tobytes())),
        ("x_train", npy(header(descr=[("a", "|O")]), IMAGES.tobytes())),
        ("x_train", npy(header(descr=[("a", "|u1")]), IMAGES.tobytes())),
        ("x_train", npy(header(descr=("|u1", (2,))), IMAGES.tobytes())),
        ("x_train", npy(header(descr=7), IMAGES.tobytes())),
        ("x_train", npy(header(descr="os.system"), IMAGES.tobytes())),
        ("x_train", npy("{[]: 1}", IMAGES.tobytes())),
        ("x_train", npy("(" * 5000, IMAGES.tobytes())),
        ("x_train", npy("__import__('os')", IMAGES.tobytes())),
        ("x_train", npy(header(), IMAGES.tobytes(), version=3)),
        ("x_train", npy(header(), IMAGES.tobytes(), version=9)),
        ("x_train", npy(header(), IMAGES.tobytes() + b"x")),
        ("x_train", npy(header(), IMAGES.tobytes()[:-1])),
        ("class_names", npy(header("<U1", shape=(3,)), struct.pack("<3I", 97, 98, 0x110000))),
        ("class_names", npy(header("<U1", shape=(3,)), struct.pack("<3I", 97, 98, 2**32 - 1))),
        ("class_names", npy(header("<U1", shape=(3,)), struct.pack("<3I", 97, 98, 0xD800))),
        ("class_names", npy(header("|S1", shape=(3,)), b"ab\xff")),
        ("y_train", npy(header("<m8[s]", shape=(6,)), bytes(48))),
        ("y_train", npy(header("<u8", shape=(6,)), b"\xff" * 48)),
    ],
)  # fmt: skip
def test_npz_refuses_a_crafted_member(tmp_path, name, member):
    path = tmp_path / "mine.npz"
    write_archive(path, {name: member})
    with pytest.raises(InputError, match="mine") as error:
        load(DataConfig(npz=str(path)))
    assert "\n" not in str(error.value)


def write_archive(path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in ARRAYS.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", members.pop(name, buffer.getvalue()))
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def test_npz_does_not_mind_the_order_of_the_axes_in_memory(tmp_path, config_of):
    expected = fingerprint(load(config_of()))
    write_archive(tmp_path / "other.npz", {"x_train": npy(header(order=True), IMAGES.tobytes("F"))})
    assert fingerprint(load(DataConfig(npz=str(tmp_path / "other.npz")))) == expected


def test_npz_names_the_memory_that_its_arrays_need(config_of, monkeypatch):
    config = config_of()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, 0))
    with pytest.raises(InputError, match=r"the arrays in '.*' need [\d,]+ bytes of memory, and there are at most 0"):
        load(config)


def test_npz_of_labels_from_1_says_which_class_has_no_image(config_of, caplog):
    dataset = load(config_of(y_train=1 + np.arange(6) % 3, y_test=1 + np.arange(3)))
    assert dataset.num_classes == 4
    assert caplog.messages == ["mine: no training image for 1 of 4 classes (0), labels count from 0"]


def test_a_name_in_a_warning_is_one_line(tmp_path, config_of, caplog):
    config_of(y_train=1 + np.arange(6) % 2)
    path = (tmp_path / "mine.npz").rename(tmp_path / "a\nb\x1b.npz")
    load(DataConfig(npz=str(path)))
    assert caplog.messages[0].startswith("a\\nb\\x1b: no training image") and caplog.messages[0].isprintable()


def test_npz_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "mine.npz")
    with pytest.raises(InputError, match="which is no regular file"):
        load(DataConfig(npz=str(tmp_path / "mine.npz")))


def test_npz_in_a_home_that_nobody_knows_is_one_line():
    with pytest.raises(InputError, match=r"data\.npz must be a file, got '~nosuchuser/x\.npz'"):
        load(DataConfig(npz="~nosuchuser/x.npz"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_is_read_however_it_is_compressed_black_images_too(tmp_path, method):
    """Of which a byte of the file holds the most: 1,029, 1.2 million and 7,089 bytes where there are many."""
    black = np.zeros((40_000, 25, 20), np.uint8)
    members = {"x_train": npy(header(shape=black.shape), black.tobytes()), "y_train": npy(header(shape=(40_000,)),
               (np.arange(40_000) % 3).astype(np.uint8).tobytes())}  # fmt: skip
    members["x_test"] = npy(header(shape=(1, 25, 20)), bytes(500))
    members["y_test"] = npy(header(shape=(1,)), bytes(1))
    write_archive(tmp_path / "mine.npz", members, method)
    dataset = load(DataConfig(npz=str(tmp_path / "mine.npz")))
    assert dataset.train.images.shape == (40_000, 25, 20, 1) and not dataset.train.images.any()


def test_npz_that_is_compressed_by_another_method_says_which(tmp_path, config_of):
    config = config_of()
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # of a member, and of the archive's list
        at = content.index(mark)
        content[at + place : at + place + 2] = struct.pack("<H", 93)
    (tmp_path / "mine.npz").write_bytes(content)
    message = "data.npz: x_train in .* must be stored or compressed by deflate, bzip2 or LZMA, got the zip method 93"
    with pytest.raises(InputError, match=message):
        load(config)
