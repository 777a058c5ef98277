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
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from cnnjax.atomic import read_text, replacing, unsealed
from cnnjax.config import DataConfig
from cnnjax.data.cache import Contents, load_or_decode
from cnnjax.data.dataset import Dataset, ImagesByIndex, checked_dataset
from cnnjax.data.decoding import Allocate, Encoded, decode
from cnnjax.data.files import file_sha256, open_regular, read_regular
from cnnjax.data.images import Crop, Fitting, fit
from cnnjax.data.memory import require_memory
from cnnjax.data.reading import in_threads
from cnnjax.data.shards import Shards
from cnnjax.data.splits import random_state
from cnnjax.errors import InputError
from cnnjax.paths import expanded

FORMAT = 1
MANIFEST, MEAN, UNFINISHED = "manifest.json", "mean.npy", "packing"
SPLITS = ("train", "test")
HEADER = struct.Struct("<II")  # index in the list of files, label
ENDS = 4096  # bytes at each end of a shard by which it is known again without reading it whole
NUM_DRAWS = 4  # as `images.random_box` takes them
IN_MEMORY = 2 << 30  # bytes of decoded images; a larger set is read by index
_TOLD = 256  # images between two reports of progress
_MOST_DESCRIBED = 1 << 28

Progress = Callable[[str, int, int], None]  # (description, done, total)


class Packed(NamedTuple):
    """What is on disk, as its manifest says."""

    folder: Path
    record: dict[str, Any]
    fitting: Fitting  # of the pixels; of encoded images, that of the mean image
    labels: dict[str, Int32[np.ndarray, " n"]]  # by split
    files: dict[str, Int32[np.ndarray, " n"]]  # by split: each image's index in the list of files

    @property
    def is_pixels(self) -> bool:
        return self.record["images"] == "pixels"


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The set in the folder `config.packed`, with the geometry that it was packed with, or that of `config.image_size`.

    Up to `IN_MEMORY` bytes it is read into memory, with the bits that its folder has at the same size. A larger one, or
    one whose training images are cut at random, is opened by index: nothing of its images is read here.

    Raises:
        InputError: the folder is none, its packing is not complete, a shard is missing, cut off or of another set, or
            the images have no common size.
    """
    found = read(config.packed or "")
    fitting = _fitting(found, config)
    images = {split: PackedImages(found, split, fitting, config) for split in SPLITS}
    if config.train_crop != "centre" or sum(part.nbytes for part in images.values()) > IN_MEMORY:
        parts = {split: (images[split], found.labels[split]) for split in SPLITS}
        return checked_dataset(found.record["name"], found.record["class_names"], **parts)
    if not found.is_pixels:  # decoded once
        recipe = {"packed": [images[split].sha256 for split in SPLITS]}
        decode_all = partial(_decoded, found, images, progress)
        return load_or_decode(config.data_dir, found.record["name"], recipe, decode_all)

    def allocate(split: str, shape: tuple[int, ...]) -> np.ndarray:
        require_memory(math.prod(shape), f"data.packed: the {split} images")
        arrays[split] = np.empty(shape, np.uint8)
        return arrays[split]

    arrays: dict[str, np.ndarray] = {}
    _decoded(found, images, progress, allocate)
    parts = {split: (arrays[split], found.labels[split]) for split in SPLITS}
    return checked_dataset(found.record["name"], found.record["class_names"], **parts)


def _decoded(
    found: Packed, images: dict[str, "PackedImages"], progress: Progress | None, allocate: Allocate
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
    files, labels = {}, {}
    for split in SPLITS:
        part = record["splits"][split]
        labels[split] = np.repeat(np.arange(len(part["counts"]), dtype=np.int32), part["counts"])
        left_out = [index for index, _, _ in part["left_out"]]
        files[split] = np.delete(np.arange(part["listed"], dtype=np.int32), left_out)
    return Packed(folder, record, Fitting(**record["fitting"]), labels, files)


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


def ends_sha256(path: Path) -> str:
    """SHA-256 of the first and the last `ENDS` bytes."""
    with open_regular(path) as file:
        first = file.read(ENDS)
        file.seek(max(path.stat().st_size - ENDS, 0))
        return hashlib.sha256(first + file.read(ENDS)).hexdigest()


def order_of(listed: int, split: str, seed: int) -> Int[np.ndarray, " listed"]:
    """The indices of the listed files as they stand in the shards."""
    return random_state(seed, SPLITS.index(split)).permutation(listed)


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


class PackedImages(ImagesByIndex):
    """The images of one split of a packed set."""

    def __init__(self, found: Packed, split: str, fitting: Fitting, config: DataConfig):
        shards = found.record["splits"][split]["shards"]
        self.name = f"the {split} images of {found.record['name']}"
        self._found, self._split, self._fitting = found, split, fitting
        self._data_dir = config.data_dir
        self._crop: Crop = config.train_crop if split == "train" else "centre"
        self.num_draws = NUM_DRAWS if self._crop != "centre" else 0
        self._stored: Sequence[int] = found.record["shape"] or (0, 0, 0)  # shape of the pixels
        files, labels = found.files[split], found.labels[split]
        self._files, self._labels = files, labels
        side = fitting.image_size
        height, width, channels = self._stored if side is None else (side, side, fitting.channels or 3)
        self.shape = (len(labels), height, width, channels)
        # Where each row stands in the shards: the files that were left out stand nowhere.
        listed = found.record["splits"][split]["listed"]
        row_of = np.full(listed, -1, np.int32)
        row_of[files] = np.arange(len(files), dtype=np.int32)
        rows = row_of[order_of(listed, split, found.record["seed"])]
        self._positions = np.empty(len(files), np.int32)
        self._positions[rows[rows >= 0]] = np.arange(len(files), dtype=np.int32)
        places = [(found.folder / shard["file"], shard["records"]) for shard in shards]
        self._shards = Shards(places, f"data.packed: the shards in {str(found.folder)!r}")
        decides = [[shard["sha256"] for shard in shards], list(fitting), self.shape, found.record["seed"], listed]
        self.sha256 = hashlib.sha256(json.dumps([*decides, found.record["images"]]).encode()).hexdigest()
        if not found.is_pixels:
            from PIL import Image

            Image.init()  # which formats this Pillow knows
            # About odd metadata; for good, because filters are global and images are read in threads at any time.
            warnings.filterwarnings("ignore", module="PIL")

    def read(
        self, rows: Int[np.ndarray, " k"], draws: Float[np.ndarray, "k num_draws"] | None = None
    ) -> UInt8[np.ndarray, "k height width channels"]:
        return in_threads(self._read, rows, draws, self.shape[1:])

    def _read(
        self, rows: Int[np.ndarray, " k"], draws: Float[np.ndarray, "k num_draws"] | None
    ) -> UInt8[np.ndarray, "k height width channels"]:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        records = self._shards.read(self._positions[rows])
        for place, (row, content) in enumerate(zip(rows.tolist(), records, strict=True)):
            name = f"image {row} of {self._split} in {str(self._found.folder)!r}"
            if len(content) < HEADER.size or HEADER.unpack_from(content) != (self._files[row], self._labels[row]):
                raise InputError(f"data.packed: {name} is not where the manifest says: a shard is of another set")
            draw = None if draws is None else draws[place]
            pixels = self._pixels(content, draw) if self._found.is_pixels else self._opened(name, content, draw)
            if pixels.shape != self.shape[1:]:
                raise InputError(f"data.packed: {name} must have shape {self.shape[1:]}, got {pixels.shape}")
            images[place] = pixels
        return images

    def _opened(self, name: str, content: bytes, draws: np.ndarray | None) -> np.ndarray:
        encoded = Encoded(name, lambda: content[HEADER.size :])
        return decode(encoded, self._fitting, "data.packed", self._crop, draws).pixels

    def _pixels(self, content: bytes, draws: np.ndarray | None) -> np.ndarray:
        from PIL import Image

        stored = np.frombuffer(content, np.uint8, offset=HEADER.size)
        if stored.size != math.prod(self._stored):
            raise InputError(f"data.packed: a record of {self.name} must have {math.prod(self._stored)} pixels")
        stored = stored.reshape(self._stored)
        if self._only_cuts:
            side = self.shape[1]
            if draws is None:
                top, left = _centre(self._stored[0], side), _centre(self._stored[1], side)
            else:
                left, top = (int(draw * (self._stored[0] - side + 1)) for draw in draws[:2].tolist())
            return stored[top : top + side, left : left + side]
        if self._is_as_stored:
            return stored
        picture = Image.fromarray(stored[..., 0] if self._stored[2] == 1 else stored)
        return fit(picture, self._fitting, self._crop, draws)

    @property
    def _is_as_stored(self) -> bool:
        """Whether nothing is left to be done to the stored pixels."""
        packed = self._found.fitting
        shorter_sides = (None, packed.image_size, packed.shorter_side)
        return (
            self._crop == "centre"
            and list(self.shape[1:]) == self._stored
            and self._fitting.shorter_side in shorter_sides
        )

    @property
    def _only_cuts(self) -> bool:
        """Whether an image is a part of the stored pixels."""
        side = self._stored[0]
        return self._crop != "resized" and self._fitting.shorter_side == side > self.shape[1]

    def mean(self) -> Float32[np.ndarray, "height width channels"]:
        packed_mean = self._found.folder / MEAN
        if self._found.record["mean_sha256"] is not None:
            whole = np.load(packed_mean, allow_pickle=False)
            if self._fitting == self._found.fitting or (self._found.is_pixels and self._is_as_stored):
                return whole
            if self._found.is_pixels and self._only_cuts:
                top, left = (_centre(edge, self.shape[1]) for edge in whole.shape[:2])
                return whole[top : top + self.shape[1], left : left + self.shape[2]]
        return kept_mean(self, self._data_dir)


def _centre(edge: int, side: int) -> int:
    return round((edge - side) / 2)  # half a pixel to the even one, as torchvision does


def kept_mean(images: ImagesByIndex, data_dir: str) -> Float32[np.ndarray, "height width channels"]:
    """The mean image, from `data_dir` if it is kept there, else computed from all images and kept."""
    path = expanded(data_dir) / "cnnjax_cache" / f"mean-{images.sha256}.bin"
    shape = images.shape[1:]
    try:
        content = read_regular(path)
        if hashlib.sha256(content[32:]).digest() == content[:32] and len(content) == 32 + 4 * math.prod(shape):
            return np.frombuffer(content, "<f4", offset=32).reshape(shape).astype(np.float32)
    except OSError:  # it is not there
        pass
    mean = mean_of(images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            content = mean.astype("<f4").tobytes()
            file.write(hashlib.sha256(content).digest() + content)
    except OSError as error:
        raise InputError(
            f"data.data_dir {data_dir!r} must be a folder that can keep the mean image: {error}"
        ) from error
    return mean


def mean_of(images: ImagesByIndex) -> Float32[np.ndarray, "height width channels"]:
    """The mean image, exact before it is rounded; reads every image."""
    total = np.zeros(images.shape[1:], np.uint64)
    for start in range(0, len(images), _TOLD):
        total += images[start : start + _TOLD].sum(axis=0, dtype=np.uint32)  # 256 * 255 < 2^32
    return (total / len(images)).astype(np.float32)
