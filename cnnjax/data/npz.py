"""Images and labels from one NumPy file: x_train, y_train, x_test, y_test, and class_names if it has them."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data.dataset import Dataset, checked_dataset
from cnnjax.data.files import open_regular
from cnnjax.data.images import Fitting, fit_arrays
from cnnjax.data.memory import require_memory
from cnnjax.errors import InputError
from cnnjax.paths import expanded

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# Bytes that one byte of the archive can unpack to, for what Python's zipfile reads. LZMA: 273 bytes by 14 decisions of
# log2(2048 / 2017) bits each; bzip2: blocks of 900,000 codes, 5 for 255 bytes, each behind a header of 20 bytes.
_MOST_BY_METHOD = {
    zipfile.ZIP_STORED: 1,
    zipfile.ZIP_DEFLATED: 1032,
    zipfile.ZIP_LZMA: 7100,
    zipfile.ZIP_BZIP2: 2_295_000,
}


def load(config: DataConfig) -> Dataset:
    """The arrays of the file `config.npz`; pickled objects are never loaded.

    x: uint8 (or bool: 0 and 255), [n, height, width] or [n, height, width, 1 or 3].
    y: integers [n] or [n, 1]. class_names: text [classes]; without it the classes are called "0", "1", ….

    Raises:
        InputError: for a missing file, an unreadable one, a missing array, a wrong type or shape, a label out of range.
    """
    path = _path(config.npz or "")
    arrays = read(path, _ARRAYS, ("class_names",), called="data.npz")
    (x_train, y_train), (x_test, y_test) = (
        (_images(path, f"x_{part}", arrays[f"x_{part}"]), _labels(path, f"y_{part}", arrays[f"y_{part}"]))
        for part in ("train", "test")
    )
    names = _class_names(path, arrays.get("class_names"), y_train, y_test)
    # Checked first as the file has it, so that `fit_arrays` sees nothing but good images.
    checked_dataset(path.stem, names, train=(x_train, y_train), test=(x_test, y_test))
    train, test = ((fit_arrays(x, Fitting.of(config)), y) for x, y in ((x_train, y_train), (x_test, y_test)))
    return checked_dataset(path.stem, names, train=train, test=test)


def _path(text: str) -> Path:
    try:
        path = expanded(text)
        kind = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        if path.is_file():
            return path
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InputError(f"data.npz must be a file, got {text!r}: {error}") from error
    raise InputError(f"data.npz must be a file, got {text!r}, which {kind}")


def read(
    path: Path, required: Sequence[str] | None, optional: Sequence[str] = (), *, called: str
) -> dict[str, np.ndarray]:
    """The arrays of these names in an npz file; what declares more than the file can hold is never asked memory for.

    Args:
        required: None for all that there are.
        called: the option that named the file.

    Raises:
        InputError: no npz archive, a damaged or crafted one, one that lacks a required array, or Python objects in it.
    """
    try:
        with open_regular(path) as file:
            if not zipfile.is_zipfile(file):
                raise InputError(
                    f"{called} must be a file that numpy.savez wrote, got {str(path)!r}, which is no npz archive"
                )
            with zipfile.ZipFile(file) as archive:
                infos = _members(path, archive, required, optional, called)
                require_memory(sum(info.file_size for info in infos.values()), f"{called}: the arrays in {str(path)!r}")
                return {name: _member(path, archive, name, info, called) for name, info in infos.items()}
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged or crafted archive makes zipfile raise nearly anything
        raise InputError(f"{called}: {str(path)!r} cannot be read: {_one_line(error)}") from error


def _members(
    path: Path, archive: zipfile.ZipFile, required: Sequence[str] | None, optional: Sequence[str], called: str
) -> dict[str, zipfile.ZipInfo]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    required = names if required is None else required
    missing = [name for name in required if name not in names]
    if missing:
        raise InputError(
            f"{called} must hold {', '.join(required)}; {str(path)!r} lacks {', '.join(missing)}"
            f" and has {ascii(', '.join(names))[1:-1] or 'nothing'}"
        )
    infos = {
        name: archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
        for name in (*required, *optional)
        if name in names
    }
    for name, info in infos.items():
        if info.compress_type not in _MOST_BY_METHOD:
            raise InputError(
                f"{called}: {name} in {str(path)!r} must be stored or compressed by deflate, bzip2 or LZMA, got the zip"
                f" method {info.compress_type}"
            )
        if info.file_size > _MOST_BY_METHOD[info.compress_type] * info.compress_size:
            raise InputError(
                f"{called}: {name} in {str(path)!r} cannot be read: {info.compress_size:,} bytes of the file cannot"
                f" hold {info.file_size:,}"
            )
    return infos


def _member(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, called: str) -> np.ndarray:
    try:
        with archive.open(info) as file:
            _require_honest_header(file, info.file_size)
        with archive.open(info) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # only at the end of a member its checksum is compared, and `numpy.load` stops before
                raise ValueError("there is more than the array")
            return array
    except MemoryError:
        raise
    except Exception as error:  # a damaged or crafted header makes NumPy raise nearly anything
        if "allow_pickle" in str(error):
            reason = "holds Python objects, which are never unpickled; save it as numbers or text"
        else:
            reason = f"cannot be read: {_one_line(error)}"
        raise InputError(f"{called}: {name} in {str(path)!r} {reason}") from error


def _require_honest_header(file: IO[bytes] | io.BufferedIOBase, size: int) -> None:
    """Raises ValueError if an array declares more than its bytes, before memory is asked for, or an odd shape."""
    version = np.lib.format.read_magic(file)
    if version == (3, 0):
        raise ValueError("an array with named fields is none of images or labels")
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version](file)
    if not all(type(side) is int and side >= 0 for side in shape):  # NumPy lets True and -1 pass
        raise ValueError(f"a shape must be of whole numbers of at least 0, got {list(shape)}")
    if math.prod(shape) * dtype.itemsize > size and not dtype.hasobject:
        raise ValueError(f"shape {list(shape)} of {dtype} is more than its {size:,} bytes")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _images(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.bool_:
        images = images.astype(np.uint8) * np.uint8(255)
    if images.dtype != np.uint8:
        raise InputError(
            f"data.npz: {name} in {str(path)!r} must be uint8 (grey levels 0..255) or bool, got {images.dtype}"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(
            f"data.npz: {name} in {str(path)!r} must have shape [n, height, width] or [n, height, width, 1 or 3],"
            f" got {list(images.shape)}"
        )
    return images


def _labels(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            f"data.npz: {name} in {str(path)!r} must be integers of shape [n] or [n, 1],"
            f" got {labels.dtype} {list(labels.shape)}"
        )
    return labels


def _class_names(path: Path, names: np.ndarray | None, *labels: np.ndarray) -> list[str]:
    if names is None:
        largest = max((int(part.max()) for part in labels if part.size), default=-1)
        images = sum(part.size for part in labels)
        if largest >= images:  # else a stray label such as 10^9 would ask for as many names and output units
            raise InputError(
                f"data.npz: labels in {str(path)!r} must be less than the number of images ({images}), got {largest}"
            )
        return [str(label) for label in range(largest + 1)]
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise InputError(
            f"data.npz: class_names in {str(path)!r} must be text of shape [classes],"
            f" got {names.dtype} {list(names.shape)}"
        )
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except (ValueError, SystemError) as error:  # no UTF-8, or numbers beyond the last character
        raise InputError(f"data.npz: class_names in {str(path)!r} must be text: {_one_line(error)}") from error
