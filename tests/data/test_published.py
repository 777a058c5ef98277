import gzip
import struct
import tarfile

import numpy as np
import pytest

from cnnjax.data.published import FILES, make_builder, read_cifar, read_idx, read_tar
from cnnjax.errors import InputError


def idx(array: np.ndarray) -> bytes:
    """A gzipped idx file of bytes, written from the description of the format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", side) for side in array.shape)
    return gzip.compress(header + array.tobytes())


def test_read_idx_inverts_the_published_layout():
    for shape in ((3, 4, 5), (7,)):
        array = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(read_idx(idx(array), "file"), array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not gzip",
        gzip.compress(b"\0\0"),
        gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1, 0])),
        gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 5, 0])),
        idx(np.zeros(9, np.uint8))[:-9],
    ],
    ids=["nothing", "no gzip", "no header", "floats", "1 byte of 5", "cut off"],
)
def test_read_idx_refuses_by_one_line(data):
    with pytest.raises(InputError, match=r"my\.gz is not a gzipped idx file of bytes"):
        read_idx(data, "my.gz")


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_read_cifar_inverts_the_published_layout(label_bytes):
    images = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3), np.uint8)
    labels = np.random.RandomState(1).randint(0, 10, (5, label_bytes), np.uint8)
    data = b"".join(bytes(row) + image.transpose(2, 0, 1).tobytes() for row, image in zip(labels, images, strict=True))
    found = read_cifar(data, "set", label_bytes)
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 - 1])
def test_read_cifar_refuses_a_broken_record(size):
    with pytest.raises(InputError, match=f"set: CIFAR records must be a multiple of 3073 bytes, got {size}"):
        read_cifar(bytes(size), "set")


def test_read_tar_gives_files_by_the_last_part_of_their_name(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"12")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "data.bin", "folder/data.bin")
    assert read_tar(tmp_path / "a.tar.gz") == {"data.bin": b"12"}


@pytest.mark.parametrize("name", FILES)
def test_the_builders_keep_the_published_identity(name, tmp_path):
    builder = make_builder(name, tmp_path)
    assert builder.name == name
    assert {url.rsplit("/", 1)[1] for url in builder.url_infos} == set(FILES[name])
    assert all(len(info.checksum) == 64 for info in builder.url_infos.values())
