"""Sets that `packing.pack` has packed into array_record shards: opened by index, or read into memory where they fit.

A folder of such a set holds `manifest.json`, sealed and written last, the shards of each split, and `mean.npy`. A
record is the index of its image in the list of the split's files and its label, both unsigned 32-bit integers with the
lowest byte first, and the image: its file as it was, or its pixels. The rows of a split are in the order of class and
file name, as those of the folder itself; in the shards they are mixed by a seeded permutation.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from cnnjax.atomic import read_text, unsealed
from cnnjax.config import DataConfig
from cnnjax.data.cache import Contents, load_or_decode
from cnnjax.data.dataset import Dataset, ImagesByIndex, checked_dataset
from cnnjax.data.decoding import Allocate
from cnnjax.data.files import ends_sha256, file_sha256
from cnnjax.data.images import Crop, Fitting, fit
from cnnjax.data.memory import require_memory
from cnnjax.data.records import ImagesInRecords, why_by_index
from cnnjax.data.shards import Shards
from cnnjax.data.splits import random_state
from cnnjax.errors import InputError
from cnnjax.paths import expanded

FORMAT = 1
MANIFEST, MEAN, UNFINISHED = "manifest.json", "mean.npy", "packing"
SPLITS = ("train", "test")
HEADER = struct.Struct("<II")  # index in the list of files, label
_TOLD = 256  # images between two reports of progress
_MOST_DESCRIBED = 1 << 28

Progress = Callable[[str, int, int], None]  # (description, done, total)


class Packed(NamedTuple):
    """What is on disk, as its manifest says."""

    folder: Path
    record: dict[str, Any]
    fitting: Fitting  # of the pixels; of encoded images, that of the mean image
    labels: dict[str, Int32[np.ndarray, " n"]]  # by split
    left_out: dict[str, Int32[np.ndarray, " left_out"]]  # by split, rising: indices in the list of files

    @property
    def is_pixels(self) -> bool:
        return self.record["images"] == "pixels"


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The set in the folder `config.packed`, with the geometry that it was packed with, or that of `config.image_size`.

    Up to `records.IN_MEMORY` bytes it is read into memory, with the bits that its folder has at the same size. A larger
    one, or one whose training images are cut at random, is opened by index: nothing of its images is read here.

    Raises:
        InputError: the folder is none, its packing is not complete, a shard is missing, cut off or of another set, or
            the images have no common size.
    """
    found = read(config.packed or "")
    fitting = _fitting(found, config)
    images = {split: _images(found, split, fitting, config) for split in SPLITS}
    name, class_names = found.record["name"], found.record["class_names"]
    why = why_by_index(config, sum(part.nbytes for part in images.values()))
    if why:
        for part in images.values():
            part.why = why
        return checked_dataset(name, class_names, **{split: (images[split], found.labels[split]) for split in SPLITS})
    if not found.is_pixels:  # decoded once
        recipe = {"packed": [images[split].sha256 for split in SPLITS]}
        return load_or_decode(config.data_dir, name, recipe, partial(_decoded, found, images, progress))

    def allocate(split: str, shape: tuple[int, ...]) -> np.ndarray:
        require_memory(math.prod(shape), f"data.packed: the {split} images")
        arrays[split] = np.empty(shape, np.uint8)
        return arrays[split]

    arrays: dict[str, np.ndarray] = {}
    _decoded(found, images, progress, allocate)
    return checked_dataset(name, class_names, **{split: (arrays[split], found.labels[split]) for split in SPLITS})


def _images(found: Packed, split: str, fitting: Fitting, config: DataConfig) -> "PackedFiles | PackedPixels":
    return (PackedPixels if found.is_pixels else PackedFiles)(found, split, fitting, config)


def _decoded(
    found: Packed, images: Mapping[str, ImagesByIndex], progress: Progress | None, allocate: Allocate
) -> Contents:
    total, done = sum(len(part) for part in images.values()), 0
    for split, part in images.items():
        array = allocate(split, part.shape)
        for start in range(0, len(part), _TOLD):
            rows = slice(start, start + _TOLD)
            array[rows] = part[rows]
            if progress:
                progress(f"read {found.record['name']}", done + min(start + _TOLD, len(part)), total)
        done += len(part)
    return Contents(tuple(found.record["class_names"]), dict(found.labels))


def read(text: str) -> Packed:
    """The description of the set in a folder, and that its shards are those that it describes.

    Raises:
        InputError: as `load`.
    """
    try:
        folder = expanded(text)
        if not folder.is_dir():
            raise InputError(f"data.packed must be a folder, got {text!r}, which is none")
        if not (folder / MANIFEST).exists():
            if (folder / UNFINISHED).exists():
                raise InputError(
                    f"data.packed {text!r} is not packed to its end: the same experiments.pack --to {text} goes on"
                )
            raise InputError(f"data.packed must be a folder that experiments.pack has filled, and {text!r} is none")
        record = unsealed(read_text(folder / MANIFEST))
        if record is None or record.get("format") != FORMAT:
            raise InputError(f"data.packed: {str(folder / MANIFEST)!r} is not as experiments.pack has written it")
        for split in SPLITS:
            for shard in record["splits"][split]["shards"]:
                check_shard(folder, shard)
        if record["mean_sha256"] is not None and file_sha256(folder / MEAN) != record["mean_sha256"]:
            raise InputError(f"data.packed: {str(folder / MEAN)!r} is not as experiments.pack has written it")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.packed must be a folder that can be read, got {text!r}: {error}") from error
    left_out, labels = {}, {}
    for split in SPLITS:
        part = record["splits"][split]
        labels[split] = np.repeat(np.arange(len(part["counts"]), dtype=np.int32), part["counts"])
        left_out[split] = np.array([index for index, _, _ in part["left_out"]], np.int32)
    return Packed(folder, record, Fitting(**record["fitting"]), labels, left_out)


def check_shard(folder: Path, shard: dict[str, Any]) -> None:
    """Raises InputError if the shard is not as long as it was written, or its first and last bytes are others.

    Every chunk of it has a checksum beside, which is compared when it is read.
    """
    path = folder / shard["file"]
    if not path.exists():
        raise InputError(f"data.packed: the shard {str(path)!r} is missing")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise InputError(f"data.packed: the shard {str(path)!r} must have {shard['bytes']:,} bytes, and has {size:,}")
    if ends_sha256(path) != shard["ends_sha256"]:
        raise InputError(f"data.packed: the shard {str(path)!r} is of another set")


def order_of(listed: int, split: str, seed: int) -> Int32[np.ndarray, " listed"]:
    """The indices of the listed files as they stand in the shards."""
    order = np.arange(listed, dtype=np.int32)
    random_state(seed, SPLITS.index(split)).shuffle(order)
    return order


def _fitting(found: Packed, config: DataConfig) -> Fitting:
    """The geometry that is asked for, else that of the packing."""
    channels = config.channels or found.fitting.channels
    if found.is_pixels and channels != found.fitting.channels:
        raise InputError(f"data.channels must be {found.fitting.channels}, as the pixels were packed, got {channels}")
    if config.image_size is None:
        if found.record["shape"] is None:
            raise InputError(
                f"data.image_size must be given for data.packed {config.packed!r}, of images of mixed sizes"
            )
        return found.fitting._replace(channels=channels)
    return Fitting.of(config, upright=True)._replace(channels=channels)


class PackedRecords:
    """The records of one split. In memory stand four bytes for each: where it is."""

    source = "data.packed"

    def __init__(self, found: Packed, split: str):
        part, folder = found.record["splits"][split], found.folder
        self._labels, self._left_out = found.labels[split], found.left_out[split]
        self._of = f"{split} in {str(folder)!r}"
        self.count = len(self._labels)
        self.record_bytes = sum(shard["bytes"] for shard in part["shards"]) // self.count
        # Where each row stands in the shards: the files that were left out stand nowhere.
        files = order_of(part["listed"], split, found.record["seed"])
        if self._left_out.size:
            files = files[~np.isin(files, self._left_out)]
            files -= np.searchsorted(self._left_out, files).astype(np.int32)
        self._positions = np.empty(self.count, np.int32)
        self._positions[files] = np.arange(self.count, dtype=np.int32)
        places = [(folder / shard["file"], shard["records"]) for shard in part["shards"]]
        self._shards = Shards(places, f"data.packed: the shards in {str(folder)!r}")

    def name(self, row: int) -> str:
        return f"image {row} of {self._of}"

    def read(self, rows: Int[np.ndarray, " k"]) -> list[bytes]:
        contents = self._shards.read(self._positions[rows])
        files = rows + np.searchsorted(self._places_left_out, rows, side="right")
        expected = zip(files.tolist(), self._labels[rows].tolist(), strict=True)
        for row, content, header in zip(rows.tolist(), contents, expected, strict=True):
            if len(content) < HEADER.size or HEADER.unpack_from(content) != header:
                raise InputError(
                    f"data.packed: {self.name(row)} is not where the manifest says: a shard is of another set"
                )
        return [content[HEADER.size :] for content in contents]

    @property
    def _places_left_out(self) -> Int[np.ndarray, " left_out"]:
        """For each file that was left out, how many rows stand before it in the list of files."""
        return self._left_out - np.arange(len(self._left_out))


def _sha256(found: Packed, split: str, fitting: Fitting, shape: tuple[int, ...]) -> str:
    part = found.record["splits"][split]
    shards = [shard["sha256"] for shard in part["shards"]]
    decides = [shards, list(fitting), shape, found.record["seed"], part["listed"], found.record["images"]]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


class PackedFiles(ImagesInRecords):
    """The images of one split whose files are packed as they were."""

    def __init__(self, found: Packed, split: str, fitting: Fitting, config: DataConfig):
        stored: Sequence[int] = found.record["shape"] or (0, 0, 0)
        side = fitting.image_size
        height, width = stored[:2] if side is None else (side, side)
        records, shape = PackedRecords(found, split), (height, width, fitting.channels or 3)
        super().__init__(
            f"the {split} images of {found.record['name']}", records, shape, fitting, config,
            _sha256(found, split, fitting, (records.count, *shape)), training=split == "train",
        )  # fmt: skip
        self._found, self._stored = found, tuple(stored)

    def mean(self) -> Float32[np.ndarray, "height width channels"]:
        if self._found.record["mean_sha256"] is not None and self._fitting == self._found.fitting:
            return self._packed_mean()
        return super().mean()

    def _packed_mean(self) -> Float32[np.ndarray, "height width channels"]:
        return np.load(self._found.folder / MEAN, allow_pickle=False)


class PackedPixels(PackedFiles):
    """The images of one split that are packed as pixels, all of one shape."""

    def _pixels(self, row: int, content: bytes, draws: Float[np.ndarray, "4"] | None) -> np.ndarray:
        from PIL import Image

        stored = np.frombuffer(content, np.uint8)
        if stored.size != math.prod(self._stored):
            raise InputError(f"data.packed: a record of {self.name} must have {math.prod(self._stored)} pixels")
        stored = stored.reshape(self._stored)
        crop: Crop = "centre" if draws is None else self._crop
        if self._only_cuts(crop):
            side = self.shape[1]
            if draws is None:
                top, left = _centre(self._stored[0], side), _centre(self._stored[1], side)
            else:
                left, top = (int(draw * (self._stored[0] - side + 1)) for draw in draws[:2].tolist())
            return stored[top : top + side, left : left + side]
        if self._is_as_stored(crop):
            return stored
        picture = Image.fromarray(stored[..., 0] if self._stored[2] == 1 else stored)
        return fit(picture, self._fitting, crop, draws)

    def _is_as_stored(self, crop: Crop) -> bool:
        """Whether nothing is left to be done to the stored pixels."""
        packed = self._found.fitting
        shorter_sides = (None, packed.image_size, packed.shorter_side)
        return crop == "centre" and self.shape[1:] == self._stored and self._fitting.shorter_side in shorter_sides

    def _only_cuts(self, crop: Crop) -> bool:
        """Whether an image is a part of the stored pixels."""
        return crop != "resized" and self._fitting.shorter_side == self._stored[0] > self.shape[1]

    def mean(self) -> Float32[np.ndarray, "height width channels"]:
        if self._found.record["mean_sha256"] is None:
            return super().mean()
        if self._is_as_stored("centre"):
            return self._packed_mean()
        if self._only_cuts("centre"):
            whole = self._packed_mean()
            top, left = (_centre(edge, self.shape[1]) for edge in whole.shape[:2])
            return whole[top : top + self.shape[1], left : left + self.shape[2]]
        return super().mean()


def _centre(edge: int, side: int) -> int:
    return round((edge - side) / 2)  # half a pixel to the even one, as torchvision does
