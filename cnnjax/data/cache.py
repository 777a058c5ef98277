"""Decoded sets on disk, one uint8 array a split, so that no image is decoded twice.

`DATA_DIR/cnnjax_cache/KEY/` holds the arrays as .npy files and a manifest with their checksums. The key is a hash of
everything that decides the pixels. A folder is written under another name and then renamed, so it is whole or absent;
what was damaged later fails its checksum and is built again.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data.dataset import Dataset, array_sha256, checked_dataset
from cnnjax.data.decoding import Allocate
from cnnjax.errors import InputError

_FORMAT = 1  # part of every key: raise it when decoding changes
_SPLITS = ("train", "test")
_MANIFEST = "manifest.json"
_IN_MEMORY = 2 << 30  # bytes; a larger array stays on disk, memory-mapped
_STALE = 24 * 3600  # seconds after which an unfinished folder belongs to a process that was killed


class Contents(NamedTuple):
    """What a decoder returns; the images are the arrays that `allocate` gave it."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]  # by split


def load_or_decode(data_dir: str, name: str, recipe: dict[str, Any], decode: Callable[[Allocate], Contents]) -> Dataset:
    """The set of this recipe from the cache, or decoded by `decode` and kept there.

    Two processes may do this at once: each writes its own folder and the first to finish wins.

    Args:
        data_dir: `~` is expanded; made if it does not exist.
        name: of the data set.
        recipe: everything that decides the pixels, as what JSON can hold.
        decode: fills the arrays that its argument allocates, one for each of "train" and "test".

    Raises:
        InputError: if `data_dir` cannot be written, and whatever `decode` raises; nothing is left behind then.
    """
    folder = Path(data_dir).expanduser() / "cnnjax_cache" / _key(recipe)
    dataset = _read(folder, name)
    if dataset is not None:
        return dataset
    unfinished = folder.with_name(f"{folder.name}.tmp.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        _remove_stale(folder)
        _write(unfinished, name, recipe, decode)
        # Read before the folder is public: what is returned then depends on no other process. A memory-mapped file
        # stays readable under its new name.
        dataset = _read(unfinished, name)
        if dataset is None:
            raise InputError(
                f"data.data_dir {data_dir!r} does not keep what is written: {unfinished} fails its checksum"
            )
        _publish(unfinished, folder)
        return dataset
    except OSError as error:
        raise InputError(f"data.data_dir must be a folder that can be written, got {data_dir!r}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def file_table(folder: Path, files: list[Path]) -> list[list[Any]]:
    """[relative path, bytes, modification time in ns] of each file: changes when a file does, without reading it."""
    table = []
    for path in files:
        status = path.stat()
        table.append([path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns])
    return table


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
        manifest = json.loads((folder / _MANIFEST).read_text())
        splits = {}
        for split in _SPLITS:
            large = _images_file(folder, split).stat().st_size > _IN_MEMORY
            images = np.load(_images_file(folder, split), mmap_mode="r" if large else None, allow_pickle=False)
            labels = np.load(_labels_file(folder, split), allow_pickle=False)
            if [array_sha256(images), array_sha256(labels)] != manifest["checksums"][split]:
                return None
            splits[split] = (images, labels)
        if _names_sha256(manifest["class_names"]) != manifest["checksums"]["class_names"]:
            return None
        return checked_dataset(name, manifest["class_names"], **splits)
    except Exception:  # a damaged header makes NumPy raise nearly anything
        return None


def _names_sha256(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def _remove_stale(folder: Path) -> None:
    for path in folder.parent.glob(f"{folder.name}.tmp.*"):
        if time.time() - path.stat().st_mtime > _STALE:
            shutil.rmtree(path, ignore_errors=True)


def _images_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def _labels_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"
