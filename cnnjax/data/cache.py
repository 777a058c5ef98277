"""Decoded sets on disk, one uint8 array a split, so that no image is decoded twice.

`DATA_DIR/cnnjax_cache/KEY/` holds the arrays as .npy files and a manifest with their checksums. The key is a hash of
everything that decides the pixels. A folder is written under another name and then renamed, so it is whole or absent;
what was damaged later fails its checksum and is built again.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data.dataset import Dataset, array_sha256, checked_dataset
from cnnjax.data.decoding import Allocate
from cnnjax.data.files import open_regular, read_regular, remove_abandoned, unfinished_folder
from cnnjax.data.memory import require_memory
from cnnjax.paths import expanded

_FORMAT = 2  # part of every key: raise it when decoding changes
_SPLITS = ("train", "test")
_MANIFEST = "manifest.json"
_IN_MEMORY = 2 << 30  # bytes; a larger array stays on disk, memory-mapped
_logger = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What a decoder returns; the images are the arrays that `allocate` gave it."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]  # by split


def load_or_decode(data_dir: str, name: str, recipe: dict[str, Any], decode: Callable[[Allocate], Contents]) -> Dataset:
    """The set of this recipe from the cache, or decoded by `decode` and kept there.

    Two processes may do this at once: each writes its own folder and the first to finish wins. Where `data_dir` cannot
    be written or has no room, a warning is logged and the images are decoded into memory.

    Args:
        data_dir: `~` is expanded; made if it does not exist.
        name: of the data set.
        recipe: everything that decides the pixels, as what JSON can hold: the SHA-256 of each file above all.
        decode: fills the arrays that its argument allocates, one for each of "train" and "test".

    Raises:
        InputError: if memory is short, and whatever `decode` raises; nothing is left behind then.
    """
    try:
        folder = expanded(data_dir) / "cnnjax_cache" / _key(recipe)
        remove_abandoned(folder.parent)
        dataset = _read(folder, name)
        return _decode_and_keep(folder, name, recipe, decode) if dataset is None else dataset
    except OSError as error:
        _logger.warning("data.data_dir %r cannot keep the decoded images, which are made anew: %s", data_dir, error)
    return _decode_into_memory(name, decode)


def _decode_and_keep(
    folder: Path, name: str, recipe: dict[str, Any], decode: Callable[[Allocate], Contents]
) -> Dataset:
    with unfinished_folder(folder) as unfinished:
        _write(unfinished, name, recipe, decode)
        # Read before the folder is public: what is returned then depends on no other process. A memory-mapped file
        # stays readable under its new name.
        dataset = _read(unfinished, name)
        if dataset is None:
            raise OSError("it does not keep what is written: the decoded images fail their checksum")
        _publish(unfinished, folder)
        return dataset


def _decode_into_memory(name: str, decode: Callable[[Allocate], Contents]) -> Dataset:
    arrays: dict[str, np.ndarray] = {}

    def allocate(split: str, shape: tuple[int, ...]) -> np.ndarray:
        require_memory(math.prod(shape), f"{name}: the decoded {split} images")
        arrays[split] = np.zeros(shape, np.uint8)
        return arrays[split]

    contents = decode(allocate)
    return checked_dataset(
        name, contents.class_names, **{split: (arrays[split], contents.labels[split]) for split in _SPLITS}
    )


def _key(recipe: dict[str, Any]) -> str:
    import PIL

    whole = {"format": _FORMAT, "pillow": PIL.__version__, **recipe}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]


def _write(folder: Path, name: str, recipe: dict[str, Any], decode: Callable[[Allocate], Contents]) -> None:
    arrays: dict[str, np.memmap] = {}

    def allocate(split: str, shape: tuple[int, ...]) -> np.ndarray:
        # Asked first: a mapped file on a full disk ends the process, not the call.
        if math.prod(shape) > shutil.disk_usage(folder).free:
            raise OSError(f"the decoded images take {math.prod(shape):,} bytes, more than the disk has left")
        arrays[split] = np.lib.format.open_memmap(_images_file(folder, split), "w+", np.uint8, shape)
        with _images_file(folder, split).open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # by which a quota is noticed as well
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return arrays[split]

    contents = decode(allocate)
    checked_dataset(name, contents.class_names, **{split: (arrays[split], contents.labels[split]) for split in _SPLITS})
    checksums: dict[str, Any] = {"class_names": _names_sha256(contents.class_names)}
    for split in _SPLITS:
        arrays[split].flush()
        labels = np.asarray(contents.labels[split], np.int32)
        np.save(_labels_file(folder, split), labels)
        checksums[split] = [array_sha256(arrays[split]), array_sha256(labels)]
    manifest = {"class_names": contents.class_names, "checksums": checksums, "recipe": recipe}
    (folder / _MANIFEST).write_text(json.dumps(manifest))


def _publish(unfinished: Path, folder: Path) -> None:
    """Renames the finished folder; one that is there already is another process's (kept) or damaged (replaced)."""
    if folder.exists() and _read(folder, "") is None:
        damaged = folder.with_name(f"{folder.name}.tmp.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it first
            os.replace(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        os.replace(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise


def _read(folder: Path, name: str) -> Dataset | None:
    """The cached set, or None if it is absent or anything about it is not as it was written."""
    try:
        manifest = json.loads(read_regular(folder / _MANIFEST))
        splits = {}
        for split in _SPLITS:
            images, labels = (_array(file(folder, split)) for file in (_images_file, _labels_file))
            if [array_sha256(images), array_sha256(labels)] != manifest["checksums"][split]:
                return None
            splits[split] = (images if images.nbytes > _IN_MEMORY else np.array(images), np.array(labels))
        if _names_sha256(manifest["class_names"]) != manifest["checksums"]["class_names"]:
            return None
        return checked_dataset(name, manifest["class_names"], **splits)
    except MemoryError:
        raise
    except Exception:  # a damaged header makes NumPy raise nearly anything
        return None


def _array(path: Path) -> np.ndarray:
    """The array in the file, memory-mapped: a damaged header cannot ask for more memory than the file has bytes."""
    with open_regular(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _names_sha256(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def _images_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def _labels_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"
