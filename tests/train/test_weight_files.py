"""Files of weights: what is written comes back, and what is none is refused in one line."""

import json
import os
import re
import shlex
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from cnnjax.errors import InputError
from cnnjax.train import weight_files

GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "conv1.weight": GENERATOR.normal(size=(3, 2, 5, 5)).astype(np.float32),
    "fc.bias": GENERATOR.normal(size=4).astype(np.float32),
    "nothing": np.zeros((0, 3), np.float32),
    "number": np.array(2.5, np.float32),
}


def read(path):
    file = weight_files.read(path, "--weights")
    return {name: np.asarray(array) for name, array in file.arrays.items()}, file.metadata


@pytest.mark.parametrize("ending", weight_files.ENDINGS)
def test_arrays_and_words_come_back_with_every_bit(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    weight_files.write(path, ARRAYS | {"half": np.ones(3, np.float16)}, {"classes": "é"})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    arrays, metadata = read(path)
    assert metadata == {"classes": "é"} and arrays.keys() == ARRAYS.keys() | {"half"}
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], array)
    stored = weight_files.read(path, "--weights").arrays["half"]
    assert (stored.shape, stored.dtype) == ((3,), np.float16)
    assert len(weight_files.sha256(path, "--weights")) == 64


def test_transposed_arrays_are_written_in_their_own_order(tmp_path):
    array = ARRAYS["conv1.weight"]
    for ending in weight_files.ENDINGS:
        weight_files.write(tmp_path / f"a{ending}", {"a": array.T}, {})
        np.testing.assert_array_equal(read(tmp_path / f"a{ending}")[0]["a"], array.T)


def test_bfloat16_is_read(tmp_path):
    array = jnp.asarray([1.5, -2.0, 3e38], jnp.bfloat16)
    save_file({"a": np.asarray(array)}, tmp_path / "a.safetensors")
    found, _ = read(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found["a"].astype(np.float32), np.asarray(array).astype(np.float32))


def test_an_array_is_not_in_memory_before_it_is_asked_for(tmp_path):
    weight_files.write(tmp_path / "a.safetensors", ARRAYS, {})
    stored = weight_files.read(tmp_path / "a.safetensors", "--weights").arrays["conv1.weight"]
    assert isinstance(stored.content.base, np.memmap)
    assert not np.asarray(stored).flags.owndata


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    weight_files.write(path, ARRAYS, {})
    before = path.read_bytes()
    with pytest.raises((OSError, TypeError, ValueError)):
        weight_files.write(path, {"a": np.array([object()])}, {})
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InputError, match="must be a name that ends in .safetensors or .npz, got 'x.h5'"):
        weight_files.check_name(type(path)("x.h5"), "--to")


WHOLE = save(ARRAYS)
LENGTH = struct.unpack("<Q", WHOLE[:8])[0]


def with_header(change) -> bytes:
    header = json.loads(WHOLE[8 : 8 + LENGTH])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + WHOLE[8 + LENGTH :]


def beyond(header):
    header["fc.bias"]["data_offsets"] = [10**6, 10**6 + 16]


def larger(header):
    header["fc.bias"]["shape"] = [10**12]


def twice(header):
    header["fc.bias"]["data_offsets"] = header["number"]["data_offsets"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        WHOLE[:6],
        WHOLE[:40],
        WHOLE[:-1],
        WHOLE + b"\0",
        struct.pack("<Q", 2**63) + WHOLE[8:],
        struct.pack("<Q", 10**9) + WHOLE[8:],
        struct.pack("<Q", 3) + b"[[[",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        with_header(beyond),
        with_header(larger),
        with_header(twice),
        with_header(lambda header: header.pop("number")),
        with_header(lambda header: header["number"].pop("dtype")),
        with_header(lambda header: header["number"].update(shape=[-1])),
        b"<!DOCTYPE html><html>",
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        weight_files.read(path, "--weights")
    assert str(error.value).startswith(f"--weights: '{path}' is not a whole .safetensors file: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_an_array_of_a_type_that_is_no_float_is_told_only_where_it_is_read(tmp_path):
    save_file({"a": np.arange(3), "b": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    arrays = weight_files.read(tmp_path / "a.safetensors", "--weights").arrays
    assert arrays["a"].shape == (3,) and arrays["a"].dtype.kind != "f"
    np.testing.assert_array_equal(arrays["b"], [1, 1])


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\3\4"])
def test_an_npz_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(
        InputError, match="^--weights must be a file that numpy.savez wrote, got .*a.npz', which is no npz"
    ):
        weight_files.read(tmp_path / "a.npz", "--weights")


def test_an_npz_with_objects_or_odd_words_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(InputError, match="a in .* holds Python objects, which are never unpickled"):
        weight_files.read(tmp_path / "a.npz", "--weights")
    for words in ("{", "[]", '{"a": 1}', "[" * 10**5):
        np.savez(tmp_path / "a.npz", **{"a": np.ones(2), "__metadata__": np.array(words)})
        with pytest.raises(InputError, match="__metadata__ in .* must be a JSON object of texts"):
            weight_files.read(tmp_path / "a.npz", "--weights")


def test_what_is_no_file_of_ours_is_refused(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "a.h5").write_bytes(b"x")
    for name, message in {
        "folder.safetensors": "which is a folder",
        "pipe.npz": "which is no regular file",
        "none.npz": "which does not exist",
        "a\0b.npz": "null character",
        "a.h5": "a name that ends in .safetensors or .npz",
    }.items():
        for look in (weight_files.read, weight_files.sha256):
            with pytest.raises(InputError, match=f"^--weights must be .*{message}"):
                look(tmp_path / name, "--weights")


@pytest.mark.parametrize(
    "name", ["a.pth", "a.pt", "a.PTH", "a.pkl", "a.ckpt", "a.bin", "zip.safetensors", "pickle.safetensors"]
)
def test_a_file_of_pytorchs_own_is_refused_with_the_command_that_converts_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x80\x02}q" if "zip" not in name else b"PK\3\4")
    with pytest.raises(InputError) as error:
        weight_files.read(path, "--weights")
    message = str(error.value)
    assert "which may hold code and is not opened here" in message and "\n" not in message
    words = shlex.split(message.split("makes it one: ")[1])
    assert words[:2] == ["python", "-c"] and words[3:] == [str(path), str(path.with_suffix(".safetensors"))]
    compile(words[2], "the command", "exec")


@pytest.mark.extra
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_command_converts(tmp_path, wrapped):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network.tied = network[0]  # one tensor under two names, which safetensors alone refuses
    state = network.state_dict()
    path = tmp_path / "it's mine.pth"
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    with pytest.raises(InputError) as error:
        weight_files.read(path, "--weights")
    words = shlex.split(str(error.value).split("makes it one: ")[1])
    subprocess.run([sys.executable, *words[1:]], check=True)
    arrays = weight_files.read(path.with_suffix(".safetensors"), "--weights").arrays
    assert arrays.keys() == state.keys()
    for name in ("0.weight", "1.running_var", "tied.bias"):
        np.testing.assert_array_equal(arrays[name], state[name])


def test_the_name_of_a_file_cannot_act_on_a_terminal(tmp_path):
    path = tmp_path / "a\x1b[31m\n.npz"
    path.write_bytes(b"x")
    with pytest.raises(InputError) as error:
        weight_files.read(path, "--weights")
    assert not re.search("[\x00-\x1f]", str(error.value))
