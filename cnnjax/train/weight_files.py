"""Files of weights, `.safetensors` and `.npz`: arrays by name, with a few words about them; nothing in them is code.

A `.safetensors` file is mapped into memory, and each array read from there when it is asked for. Its header is checked
by the package safetensors first: every array lies inside the file and none in another.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cnnjax.atomic import replacing, sync
from cnnjax.data import npz
from cnnjax.data.files import file_sha256, printable
from cnnjax.errors import InputError
from cnnjax.paths import expanded

ENDINGS = (".safetensors", ".npz")
_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".th")
_METADATA = "__metadata__"  # as safetensors calls it
_KINDS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_CONVERSION = (
    "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], map_location='cpu', weights_only=True);"
    " s.save_file({k: v.contiguous().clone() for k, v in w.get('state_dict', w).items()}, sys.argv[2])"
)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file: `np.asarray` reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    content: np.ndarray  # its bytes, mapped

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.content.view(self.dtype).reshape(self.shape), dtype=dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What is in a file of weights."""

    path: Path
    called: str  # in errors: the option, and the file that it names
    arrays: Mapping[str, Any]  # arrays, or what `np.asarray` reads
    metadata: Mapping[str, str]


def read(path: str | Path, option: str) -> WeightFile:
    """The names, the shapes and types of the arrays in the file; of a `.safetensors` they are not read yet.

    Args:
        option: that named the file, for errors.

    Raises:
        InputError: one line: no such file; a file of PyTorch's own, and how it is made one of these; a damaged one.
    """
    file = _file(path, option)
    called = f"{option} {printable(str(path))}"
    if file.suffix == ".npz":
        return WeightFile(file, called, *_from_npz(file, option))
    return WeightFile(file, called, *_from_safetensors(file, option))


def sha256(path: str | Path, option: str) -> str:
    """Of the bytes of a file of weights. Raises InputError as `read`, for what can be seen without reading."""
    file = _file(path, option)
    try:
        return file_sha256(file)
    except OSError as error:
        raise InputError(f"{option} must be a file that can be read, got {str(path)!r}: {error.strerror}") from None


def check_name(path: Path, option: str) -> None:
    """Raises InputError for a name that does not end as one of our files."""
    if path.suffix not in ENDINGS:
        raise InputError(f"{option} must be a name that ends in {' or '.join(ENDINGS)}, got {str(path)!r}")


def _file(path: str | Path, option: str) -> Path:
    try:
        file = expanded(path)
        kind = "is a folder" if file.is_dir() else "is no regular file" if file.exists() else "does not exist"
        is_file = file.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{option} must be a file, got {str(path)!r}: {error}") from None
    if not is_file:
        raise InputError(f"{option} must be a file, got {str(path)!r}, which {kind}")
    if file.suffix.lower() in _PICKLES:
        raise _pickled(file, option)
    check_name(file, option)
    return file


def _pickled(file: Path, option: str) -> InputError:
    words = ("python", "-c", _CONVERSION, str(file), str(file.with_suffix(".safetensors")))
    return InputError(
        f"{option} must be a .safetensors or .npz file; {str(file)!r} is PyTorch's own kind, which may hold code and is"
        f" not opened here. Where torch and safetensors are installed, this makes it one: {shlex.join(words)}"
    )


def _from_safetensors(file: Path, option: str) -> tuple[dict[str, StoredArray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as checked:
            metadata = checked.metadata() or {}
        content = np.memmap(file, np.uint8, "r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        arrays = {name: _stored(content[start:], one) for name, one in header.items() if name != _METADATA}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        with file.open("rb") as opened:
            first = opened.read(2)
        if first in (b"PK", b"\x80\x02"):  # a zip archive, a pickle
            raise _pickled(file, option) from None
        reason = printable(" ".join(str(error).split()))[:200]
        raise InputError(f"{option}: {str(file)!r} is not a whole .safetensors file: {reason}") from None
    return arrays, metadata


def _stored(content: np.ndarray, described: dict[str, Any]) -> StoredArray:
    first, last = described["data_offsets"]
    kind = _KINDS.get(described["dtype"])
    # What NumPy has no type for is never read; its type is told in an error.
    return StoredArray(tuple(described["shape"]), np.dtype(kind or np.void), content[first:last])


def _from_npz(file: Path, option: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays = npz.read(file, None, called=option)
    kept = arrays.pop(_METADATA, None)
    if kept is None:
        return arrays, {}
    try:
        metadata = json.loads(str(kept))
        whole = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{option}: {_METADATA} in {str(file)!r} must be a JSON object of texts")
    return arrays, metadata


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file, in the kind that its name ends in; it is whole or not there.

    Raises:
        InputError: its name ends otherwise.
        OSError: it cannot be written.
    """
    check_name(path, "the file")
    with replacing(path) as file:
        if path.suffix == ".npz":
            np.savez(file, **{**arrays, _METADATA: np.array(json.dumps(dict(metadata)))})  # pyright: ignore[reportArgumentType]
            return
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        try:
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, file.name, dict(metadata))
        except SafetensorError as error:
            raise OSError(None, str(error), str(path)) from None
        sync(Path(file.name))  # it may be another file by that name
