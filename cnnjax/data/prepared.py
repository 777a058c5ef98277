"""Sets that TensorFlow Datasets has prepared as array_record, read without that library's own loader.

That loader imports whatever Python class a set's features.json names, and the set may come from elsewhere. Here the
description of a set is data: nothing in it is imported, run, or used as a path.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from cnnjax.data.decoding import Encoded, Header, header_of, pillow_prepared
from cnnjax.data.files import ends_sha256, file_sha256, files_sha256, read_regular
from cnnjax.data.kept import kept
from cnnjax.data.shards import Shards
from cnnjax.errors import InputError

Progress = Callable[[str, int, int], None]  # (description, done, total)

SEAL = "cnnjax_sha256.json"  # the SHA-256 of each file of a set that was prepared here
_NAME = re.compile(
    r"(?P<set>[A-Za-z]\w{0,99})(/(?P<config>\w[\w.+-]{0,99}))?(:(?P<version>[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}))?",
    re.ASCII,
)
_VERSION = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}", re.ASCII)
_INFO, _FEATURES, _LABELS = "dataset_info.json", "features.json", "label.labels.txt"
_CLASSES = {
    "FeaturesDict": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "Image": "tensorflow_datasets.core.features.image_feature.Image",
    "ClassLabel": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
}
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MOST_DESCRIBED = 1 << 26  # bytes of each file that describes the set
_BLOCK, _BLOCK_BYTES = 256, 1 << 24  # records that are read at a time: three times as fast as single ones
_SURVEY = 1  # part of the name under which a survey is kept: raise it when what is in it changes


class SetName(NamedTuple):
    """A set's name in its parts: "cmaterdb/bangla:1.0.0"."""

    set: str
    config: str | None
    version: str | None


class Prepared(NamedTuple):
    """A set on disk."""

    full_name: str  # set[/config]/version
    folder: Path
    class_names: tuple[str, ...]
    shards: dict[str, list[tuple[Path, int]]]  # by split: file and number of records
    described: dict[str, str]  # SHA-256 of the files that describe it, by name
    ends: dict[str, tuple[int, str]]  # bytes of each shard, and `ends_sha256`, by name

    @property
    def source(self) -> str:
        """The argument that it comes from, for errors."""
        return f"data.name {self.full_name}"

    @property
    def counts(self) -> dict[str, int]:
        """Of the records, by split."""
        return {split: sum(count for _, count in part) for split, part in self.shards.items()}

    def record_bytes(self, split: str) -> int:
        """Of one record, on average."""
        return sum(self.ends[path.name][0] for path, _ in self.shards[split]) // self.counts[split]

    def opened(self, split: str) -> Shards:
        return Shards(self.shards[split], f"{self.source}: the prepared files")


class Record(NamedTuple):
    name: str  # for errors
    image: bytes  # as it was encoded
    label: int


class Survey(NamedTuple):
    """What is known of the records of a set that has been read once."""

    sha256: dict[str, list[str]]  # by split: of each shard
    labels: dict[str, Int32[np.ndarray, " n"]]  # by split
    kinds: list[Header]  # of the first image, the first one of another size, and of another number of channels


def parse_name(text: str) -> SetName | None:
    """The parts of `NAME[/CONFIG][:VERSION]`, each of which can stand in a path and lead nowhere else, or None."""
    match = _NAME.fullmatch(text)
    return SetName(**match.groupdict()) if match else None


def find(name: SetName, data_dir: Path) -> Path | None:
    """The folder of the set: of the version asked for, else the newest; None if there is none.

    Raises:
        InputError: the folder cannot be read; no configuration is named and there are several.
    """
    try:
        above = data_dir / name.set
        if name.config is not None:
            return _version(above / name.config, name.version)
        found = _version(above, name.version)
        if found is not None or not above.is_dir():
            return found
        configs = {path.name: _version(path, name.version) for path in sorted(above.iterdir()) if path.is_dir()}
    except OSError as error:
        raise InputError(f"data.data_dir must be a folder that can be read, got {str(data_dir)!r}: {error}") from error
    configs = {config: folder for config, folder in configs.items() if folder is not None}
    if len(configs) > 1:
        raise InputError(f"data.name must be one of {', '.join(f'{name.set}/{each}' for each in configs)}")
    return next(iter(configs.values()), None)


def _version(folder: Path, version: str | None) -> Path | None:
    if not folder.is_dir():
        return None
    versions = [
        path
        for path in folder.iterdir()
        if _VERSION.fullmatch(path.name) and version in (None, path.name) and (path / _INFO).exists()
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read(folder: Path, name: SetName, tests: Sequence[str] = ("test", "validation")) -> Prepared:
    """The description of the set in `folder`.

    Args:
        tests: of these splits the first one that the set has is its test; there may be none.

    Raises:
        InputError: the set is damaged, is not in array_record, or has no split `train` or no features `image` and
            `label`.
    """
    above = folder.parent.name
    full_name = "/".join((name.set, *([above] if above != name.set else []), folder.name))
    with _readable(full_name):
        shards = _shards(folder, full_name, name.set, tests)
        num_records = sum(count for part in shards.values() for _, count in part)
        class_names = _class_names(folder, full_name, num_records)
        files = [folder / file for file in (_INFO, _FEATURES, _LABELS) if (folder / file).exists()]
        described = dict(zip((path.name for path in files), files_sha256(files), strict=True))
        paths = [path for part in shards.values() for path, _ in part]
        ends = {path.name: (path.stat().st_size, ends_sha256(path)) for path in paths}
        for path, count in (shard for part in shards.values() for shard in part):
            if count > ends[path.name][0]:  # before memory is asked for
                told = f"it has {ends[path.name][0]:,} bytes, and {_INFO} says {count:,} records"
                raise InputError(f"data.name {full_name}: the prepared files cannot be read: {path.name}: {told}")
        found = Prepared(full_name, folder, class_names, shards, described, ends)
        if (folder / SEAL).exists():  # before anything is made of its records
            files_of(found)
        return found


def files_of(found: Prepared) -> dict[str, str]:
    """The SHA-256 of every file that images and labels come from, by name; all of them are read.

    Raises:
        InputError: a file cannot be read, or the set was prepared here and a file is not as it was then.
    """
    paths = [path for part in found.shards.values() for path, _ in part]
    with _readable(found.full_name):
        sha256 = found.described | dict(zip((path.name for path in paths), files_sha256(paths), strict=True))
        _require_sealed(found.folder, found.full_name, sha256)
    return sha256


@contextlib.contextmanager
def _readable(full_name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"data.name {full_name}: the prepared files cannot be read: {error}") from error


def seal(folder: Path) -> None:
    """Writes down the SHA-256 of every file of a set that has just been prepared."""
    files = sorted(folder.iterdir())
    table = dict(zip((path.name for path in files), files_sha256(files), strict=True))
    (folder / SEAL).write_text(json.dumps(table, indent=1))


def _require_sealed(folder: Path, full_name: str, sha256: dict[str, str]) -> None:
    """Raises InputError if the set was prepared here and a file is not as it was then."""
    if not (folder / SEAL).exists():
        return
    table = _json(folder / SEAL, full_name)
    gone = (name for name in table if name not in sha256 and not (folder / name).exists())
    damaged = next((name for name in sha256 if sha256[name] != table.get(name)), next(gone, None))
    if damaged is not None:
        raise InputError(
            f"data.name {full_name}: {damaged!a} is not as it was prepared: delete {str(folder)!r}, and it is prepared"
            " again"
        )


def _shards(folder: Path, full_name: str, set_name: str, tests: Sequence[str]) -> dict[str, list[tuple[Path, int]]]:
    """The files of the training split and of the test's, each with its number of records."""
    info = _json(folder / _INFO, full_name)
    alternatives = info.get("alternativeFileFormats")
    formats = [info.get("fileFormat"), *(alternatives if isinstance(alternatives, list) else [])]
    if "array_record" not in formats:
        raise InputError(
            f"data.name {full_name} is prepared in another format than array_record:"
            f" delete {str(folder)!r} or choose another --data.data-dir"
        )
    listed = info.get("splits")
    splits = {
        split["name"]: split
        for split in (listed if isinstance(listed, list) else [])
        if isinstance(split, dict) and isinstance(split.get("name"), str)
    }
    if "train" not in splits:
        names = ascii(", ".join(splits))[1:-1] or "none"
        raise InputError(f"data.name {full_name} must have a split train, got {names}")
    chosen = ["train", *[split for split in tests if split in splits][:1]]
    shards = {split: _split_shards(folder, full_name, set_name, splits[split]) for split in chosen}
    empty = next((split for split, part in shards.items() if not part), None)
    if empty is not None:
        raise InputError(f"data.name {full_name}: the {empty} split must hold at least 1 image, got 0")
    return shards


def _split_shards(folder: Path, full_name: str, set_name: str, split: dict[str, Any]) -> list[tuple[Path, int]]:
    name, template, counts = split["name"], split.get("filepathTemplate"), split.get("shardLengths")
    if template not in (None, "", _TEMPLATE):
        raise InputError(f"data.name {full_name}: files must be named {_TEMPLATE}, got {template!a}")
    if not isinstance(counts, list) or not all(re.fullmatch(r"[0-9]{1,12}", str(count), re.ASCII) for count in counts):
        raise InputError(f"data.name {full_name}: {_INFO} must give the number of records of each file of {name}")
    files = [f"{set_name}-{name}.array_record-{index:05d}-of-{len(counts):05d}" for index in range(len(counts))]
    return [(folder / file, int(count)) for file, count in zip(files, counts, strict=True) if int(count)]


def _class_names(folder: Path, full_name: str, num_records: int) -> tuple[str, ...]:
    """The names of the classes, after a check that the set has what training needs."""
    whole = _json(folder / _FEATURES, full_name)
    features = _field(whole, "featuresDict", "features")
    if whole.get("pythonClassName") != _CLASSES["FeaturesDict"] or not isinstance(features, dict):
        raise InputError(f"data.name {full_name}: {_FEATURES} must hold a FeaturesDict, as of TensorFlow Datasets 4.5")
    image, label = features.get("image"), features.get("label")
    if (
        _field(image, "pythonClassName") != _CLASSES["Image"]
        or _field(image, "image", "dtype") not in (None, "", "uint8", "uint16")  # a default is not written
        or _field(label, "pythonClassName") != _CLASSES["ClassLabel"]
    ):
        found = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
        raise InputError(
            f"data.name {full_name} must have the features image (Image) and label (ClassLabel),"
            f" got {ascii(found)[1:-1]}"
        )
    try:
        num_classes = int(str(_field(label, "classLabel", "numClasses")))
        text = read_regular(folder / _LABELS, most=_MOST_DESCRIBED).decode() if (folder / _LABELS).exists() else None
    except ValueError as error:
        raise InputError(f"data.name {full_name}: the classes cannot be read: {_one_line(error)}") from error
    # Without names each class is called by its number, and a number such as 10^9 would ask for as many output units.
    if text is None and num_classes <= num_records:
        return tuple(map(str, range(num_classes)))
    names = tuple(line.strip() for line in (text or "").split("\n") if line.strip())
    if len(names) != num_classes:
        raise InputError(f"data.name {full_name}: {_LABELS} must name {num_classes} classes, got {len(names)}")
    return names


def _json(path: Path, full_name: str) -> dict[str, Any]:
    try:
        tree = json.loads(read_regular(path, most=_MOST_DESCRIBED))
    except (ValueError, RecursionError) as error:
        raise InputError(f"data.name {full_name}: {path.name} is not JSON: {_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise InputError(f"data.name {full_name}: {path.name} must hold a JSON object, got {type(tree).__name__}")
    return tree


def _field(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _kind(feature: Any) -> str:
    """The last part of the class's name, and as much of the rest as sets it apart from the library's own."""
    name = str(_field(feature, "pythonClassName"))
    return name.rsplit(".", 1)[-1] if name.startswith("tensorflow_datasets.core.features.") else name[:100]


def records(found: Prepared, split: str, indices: Sequence[int] | np.ndarray) -> Iterator[Record]:
    """These records of the split, in blocks.

    Raises:
        InputError: naming the file that is damaged.
    """
    indices, shards = np.asarray(indices), found.opened(split)
    length = max(1, min(_BLOCK, _BLOCK_BYTES // max(1, found.record_bytes(split))))
    for start in range(0, len(indices), length):
        block = indices[start : start + length]
        for index, content in zip(block.tolist(), shards.read(block), strict=True):
            yield _record(found, shards, split, index, content)


def _record(found: Prepared, shards: Shards, split: str, index: int, content: bytes) -> Record:
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # pyright: ignore[reportAttributeAccessIssue]

    try:
        features = Example.FromString(content).features.feature
        (image,), (label,) = features["image"].bytes_list.value, features["label"].int64_list.value
    except Exception as error:  # the error of a damaged message is no public name of its library
        name = _name(found, shards, split, index)
        raise InputError(f"data.name {name} must hold one image and one label: {_one_line(error)}") from error
    return Record(_name(found, shards, split, index), image, label)


def _name(found: Prepared, shards: Shards, split: str, index: int) -> str:
    return f"{found.full_name} record {index} of {split} ({shards.file_of(index).name})"


class PreparedRecords:
    """The records of a split, or of a part of it."""

    def __init__(
        self, found: Prepared, split: str, shards: Shards, labels: Int32[np.ndarray, " n"],
        indices: Int32[np.ndarray, " n"] | None = None,
    ):  # fmt: skip
        """`labels` of the rows; `indices`: the records that they are, None where they are all."""
        self.source, self.count, self.record_bytes = found.source, len(labels), found.record_bytes(split)
        self._found, self._split, self._shards, self._labels, self._indices = found, split, shards, labels, indices

    def name(self, row: int) -> str:
        return _name(self._found, self._shards, self._split, row if self._indices is None else int(self._indices[row]))

    def read(self, rows: Int[np.ndarray, " k"]) -> list[bytes]:
        indices = rows if self._indices is None else self._indices[rows]
        contents = self._shards.read(indices)
        images = []
        for index, label, content in zip(indices.tolist(), self._labels[rows].tolist(), contents, strict=True):
            record = _record(self._found, self._shards, self._split, index, content)
            if record.label != label:
                raise InputError(f"data.name {record.name} had the label {label} when the set was first read")
            images.append(record.image)
        return images


def surveyed(found: Prepared, data_dir: str, progress: Progress | None = None) -> Survey:
    """The digest of every shard, all labels and the sizes of the images: read once, and then kept in `data_dir`.

    The files are known again by their names, sizes and ends, and their descriptions by all that is in them.

    Raises:
        InputError: naming the record and the file that is damaged, has another number of records, a record without an
            image of a known format, or a label that is none of the classes.
    """
    decides = json.dumps([_SURVEY, found.full_name, found.described, found.ends, found.counts])
    file = f"records-{hashlib.sha256(decides.encode()).hexdigest()[:32]}.bin"
    content = kept(data_dir, file, "the labels", lambda: _to_bytes(_survey(found, progress)))
    return _from_bytes(content, found.counts)


def _survey(found: Prepared, progress: Progress | None) -> Survey:
    ends = {split: np.cumsum([count for _, count in part]).tolist() for split, part in found.shards.items()}
    places = [
        (split, path, end - count, end)
        for split, part in found.shards.items()
        for (path, count), end in zip(part, ends[split], strict=True)
    ]
    sha256: dict[str, list[str]] = {split: [] for split in found.shards}
    labels = {split: np.zeros(count, np.int32) for split, count in found.counts.items()}
    kinds: list[Header] = []
    total, done = sum(found.counts.values()), 0
    with pillow_prepared(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda place: _read_shard(found, *place), places)
        for (split, _, start, end), (digest, of_shard, headers) in zip(places, read, strict=True):
            sha256[split].append(digest)
            labels[split][start:end] = of_shard
            kinds = _kinds([*kinds, *headers])
            done += end - start
            if progress:
                progress(f"read {found.full_name}", done, total)
    return Survey(sha256, labels, kinds)


def _read_shard(found: Prepared, split: str, path: Path, start: int, end: int) -> tuple[str, np.ndarray, list[Header]]:
    """The digest of a shard, and the labels and headers of its records, which are in the system's cache by then."""
    with _readable(found.full_name):
        digest = file_sha256(path)
    labels = np.zeros(end - start, np.int32)
    headers: list[Header] = []
    for place, record in enumerate(records(found, split, np.arange(start, end))):
        if not 0 <= record.label < len(found.class_names):
            rule = f"must have a label in [0, {len(found.class_names)})"
            raise InputError(f"data.name {record.name} {rule}, got {record.label}")
        labels[place] = record.label
        headers = _kinds([*headers, header_of(Encoded(record.name, partial(bytes, record.image)), found.source)])
    return digest, labels, headers


def _kinds(headers: Sequence[Header]) -> list[Header]:
    """Of these the first one, the first of another size, and the first of another number of channels."""
    first, kinds = headers[0], {}
    for header in headers:
        kinds.setdefault("first", header)
        if header.size != first.size:
            kinds.setdefault("size", header)
        if header.channels != first.channels:
            kinds.setdefault("channels", header)
    return list(kinds.values())


def _to_bytes(survey: Survey) -> bytes:
    head = json.dumps([survey.sha256, survey.kinds]).encode()
    return b"".join([head, b"\n", *(part.astype("<i4").tobytes() for part in survey.labels.values())])


def _from_bytes(content: bytes, counts: dict[str, int]) -> Survey:
    end = content.index(b"\n") + 1
    sha256, kinds = json.loads(content[:end])
    labels = {}
    for split, count in counts.items():
        labels[split] = np.frombuffer(content, "<i4", count, end).astype(np.int32)
        end += 4 * count
    return Survey(sha256, labels, [Header(name, tuple(size), channels) for name, size, channels in kinds])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
