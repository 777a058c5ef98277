"""Files from anywhere: nothing in them is run, none takes more memory than it should, none reaches out of its place."""

import ast
import gzip
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import checked_dataset, load
from cnnjax.data.published import MAX_TAR_BYTES, read_idx, read_tar
from cnnjax.errors import InputError
from tests.faults.runs import ROOT

MEGABYTE = 1 << 20


def sources():
    return [path for room in ("cnnjax", "experiments", "configs") for path in sorted((ROOT / room).rglob("*.py"))]


def test_nothing_that_is_loaded_can_run_code():
    """Only --config FILE.py is run, and says so; arrays are read without pickle."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
    loads = 0
    nodes = [(path, node) for path in sources() for node in ast.walk(ast.parse(path.read_text()))]
    for path, node in nodes:
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & forbidden, path
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in forbidden, path
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "torch.load", "os.system"}, path
            # A network of one's own, in a file that the command line names.
            assert called != "exec" or path == ROOT / "cnnjax" / "models" / "foreign.py", path
            # They import the class that a prepared set's features.json names.
            assert called not in {
                f"tfds.{name}" for name in ("load", "builder", "data_source", "builder_from_directory")
            }
            assert called != "runpy.run_path" or path == ROOT / "cnnjax" / "cli.py"
            assert not any(word.arg == "shell" for word in node.keywords), path
            if called in ("np.load", "numpy.load") or called.endswith("read_array"):
                loads += 1
                allowed = [word.value for word in node.keywords if word.arg == "allow_pickle"]
                assert [ast.unparse(value) for value in allowed] == ["False"], path
    assert loads >= 3


@pytest.fixture
def memory():
    """The most memory that Python and NumPy have asked for since the test began, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def npy(shape, content=b"", kind="|u1"):
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(11 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def npz(path, **change):
    pixels, labels = npy((4, 3, 3), bytes(36)), npy((4,), bytes([0, 1, 0, 1]))
    members = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels} | change
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return DataConfig(npz=str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x_train", npy((10**6, 10**6))),
        ("x_train", npy((10**4, 10**4, 5), bytes(MEGABYTE))),
        ("x_train", npy((2**62, 3, 3))),
        ("y_train", npy((4, 10**10), kind="<i8")),
        ("class_names", npy((2,), kind="<U400000000")),
    ],
)
def test_an_array_that_declares_more_than_its_file_holds_takes_no_memory(tmp_path, memory, name, content):
    config = npz(tmp_path / "a.npz", **{name: content})
    load(npz(tmp_path / "good.npz"))
    with pytest.raises(InputError, match=rf"{name} in '.*a\.npz' cannot be read: shape .* is more than its"):
        load(config)
    assert memory() < 20 * MEGABYTE


def test_an_archive_that_declares_more_than_it_can_hold_takes_no_memory(tmp_path, memory):
    """Header and directory agree on a terabyte; 50 bytes of deflate cannot unpack to it."""
    config = npz(tmp_path / "a.npz", x_train=npy((10**9, 32, 32)))
    content = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        info = archive.getinfo("x_train.npy")
    entry = content.index(b"PK\1\2")  # the first entry of the directory: sizes at 20 and 24
    assert struct.unpack_from("<II", content, entry + 20) == (info.compress_size, info.file_size)
    (tmp_path / "a.npz").write_bytes(content[: entry + 24] + struct.pack("<I", 2**32 - 2) + content[entry + 28 :])
    with pytest.raises(InputError, match=r"x_train in '.*' cannot be read: \d+ bytes of the file cannot hold 4,294,"):
        load(config)
    assert memory() < 20 * MEGABYTE


def test_durations_are_no_labels(tmp_path):
    with pytest.raises(InputError, match=r"y_train in '.*' must be integers"):
        load(npz(tmp_path / "a.npz", y_train=npy((4,), bytes(32), "<m8[s]")))


def test_a_gzipped_idx_file_unpacks_no_further_than_its_header_says(memory):
    bomb = gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes(100 * MEGABYTE), 1)
    tracemalloc.reset_peak()
    before = memory()
    with pytest.raises(InputError, match="is not a gzipped idx file of bytes"):
        read_idx(bomb, "a.gz")
    assert memory() - before < 2 * MEGABYTE


def test_an_idx_file_that_declares_more_than_it_can_hold_takes_no_memory(memory):
    with pytest.raises(InputError, match=r"bytes cannot hold the shape \[65535, 65535, 65535\]"):
        read_idx(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">III", *[65535] * 3)), "a.gz")
    assert memory() < 20 * MEGABYTE


def tar(path, *members):
    """Members with a name, a content and the size that their header declares."""
    content = b""
    for name, data, size in members:
        member = tarfile.TarInfo(name)
        member.size = size
        content += member.tobuf() + data
    path.write_bytes(gzip.compress(content + bytes(1024)))
    return path


def test_a_tar_archive_is_bounded(tmp_path, memory):
    path = tar(tmp_path / "a.tar.gz", ("a.bin", b"", MAX_TAR_BYTES + 1))
    with pytest.raises(InputError, match=r"must hold at most 1,073,741,824 bytes, and holds more"):
        read_tar(path)
    assert memory() < 20 * MEGABYTE


def test_names_in_a_tar_archive_lead_nowhere(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    block = b"12".ljust(512, b"\0")
    path = tar(tmp_path / "a.tar.gz", ("../../up.bin", block, 2), ("/root/down.bin", block, 2))
    before = sorted(tmp_path.rglob("*"))
    assert read_tar(path) == {"up.bin": b"12", "down.bin": b"12"}
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_tar_archive_is_one_line(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.tar\.gz cannot be read as a tar archive") as error:
        read_tar(tmp_path / "a.tar.gz")
    assert "\n" not in str(error.value)


def folder_of(root: Path, extra: dict[str, bytes], first="a"):
    for name in (first, "b"):
        (root / name).mkdir(parents=True)
        for index in (1, 2):
            Image.new("L", (8, 8)).save(root / name / f"{index}.png")
    for place, content in extra.items():
        (root / place).write_bytes(content)
    return DataConfig(folder=str(root), data_dir=str(root.with_name("kept")), image_size=8, channels=1)


def test_postscript_is_not_interpreted(tmp_path):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(InputError, match=r"a/3\.png is not an image of a known format"):
        load(folder_of(tmp_path / "images", {"a/3.png": program}))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\u202e", "a\udcffb", "a\tb"])
def test_names_that_act_on_a_terminal_are_refused_by_one_line(tmp_path, name):
    with pytest.raises(InputError, match="class names must be 1 to 255 printable characters") as error:
        load(folder_of(tmp_path / "images", {}, name))
    assert str(error.value).isprintable()
    with pytest.raises(InputError, match=r"a/.*\.png is not an image") as error:
        load(folder_of(tmp_path / "others", {f"a/{name}.png": b"none"}))
    assert str(error.value).isprintable()


def test_odd_names_that_can_be_printed_are_kept(tmp_path):
    for index, name in enumerate(("$\\frac{x$", "a..", "ü🤖", "<b>|`*_", "x" * 255)):
        assert name in load(folder_of(tmp_path / str(index) / "images", {}, name)).class_names
    pixels = np.zeros((2, 3, 3, 1), np.uint8)
    names = ("../../etc/passwd", "/abs")
    assert checked_dataset("a", names, train=(pixels, np.arange(2)), test=(pixels, np.arange(2))).class_names == names
    with pytest.raises(InputError, match="class names must be"):
        checked_dataset("a", ("x" * 256, "b"), train=(pixels, np.arange(2)), test=(pixels, np.arange(2)))
