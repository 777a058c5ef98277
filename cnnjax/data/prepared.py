"""Sets that TensorFlow Datasets has prepared as array_record, read without that library's own loader.

That loader imports whatever Python class a set's features.json names, and the set may come from elsewhere. Here the
description of a set is data: nothing in it is imported, run, or used as a path.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data.files import files_sha256, read_regular
from cnnjax.errors import InputError

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
_BLOCK = 256  # records; blocks are read three times as fast as single ones


class SetName(NamedTuple):
    """A set's name in its parts: "cmaterdb/bangla:1.0.0"."""

    set: str
    config: str | None
    version: str | None


class Prepared(NamedTuple):
    """A set on disk."""

    full_name: str  # set[/config]/version
    class_names: tuple[str, ...]
    shards: dict[str, list[tuple[Path, int]]]  # by split: file and number of records
    sha256: dict[str, str]  # by file


class Record(NamedTuple):
    name: str  # for errors
    image: bytes  # as it was encoded
    label: int


def parse_name(text: str) -> SetName | None:
    """The parts of NAME[/CONFIG][:VERSION], each of which can stand in a path and lead nowhere else, or None."""
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


def read(folder: Path, name: SetName) -> Prepared:
    """The description of the set in `folder`, with the SHA-256 of every file that its images and labels come from.

    Raises:
        InputError: the set is damaged, is not in array_record, or has no split `train` or no features `image` and
            `label`.
    """
    above = folder.parent.name
    full_name = "/".join((name.set, *([above] if above != name.set else []), folder.name))
    try:
        shards = _shards(folder, full_name, name.set)
        num_records = sum(count for part in shards.values() for _, count in part)
        class_names = _class_names(folder, full_name, num_records)
        files = [folder / file for file in (_INFO, _FEATURES, _LABELS) if (folder / file).exists()]
        files += [path for part in shards.values() for path, _ in part]
        sha256 = dict(zip((path.name for path in files), files_sha256(files), strict=True))
        _require_sealed(folder, full_name, sha256)
    except OSError as error:
        raise InputError(f"data.name {full_name}: the prepared files cannot be read: {error}") from error
    return Prepared(full_name, class_names, shards, sha256)


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


def _shards(folder: Path, full_name: str, set_name: str) -> dict[str, list[tuple[Path, int]]]:
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
    chosen = ["train", *[split for split in ("test", "validation") if split in splits][:1]]
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


def records(prepared: Prepared, split: str, indices: Sequence[int] | np.ndarray) -> Iterator[Record]:
    """These records of the split, whose indices ascend.

    Raises:
        InputError: naming the file that is damaged.
    """
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # pyright: ignore[reportAttributeAccessIssue]

    for index, content in _contents(prepared, split, np.asarray(indices)):
        name = f"{prepared.full_name} record {index} of {split}"
        try:
            features = Example.FromString(content).features.feature
            (image,), (label,) = features["image"].bytes_list.value, features["label"].int64_list.value
        except Exception as error:  # the error of a damaged message is no public name of its library
            raise InputError(f"data.name {name} must hold one image and one label: {_one_line(error)}") from error
        yield Record(name, image, label)


def _contents(prepared: Prepared, split: str, indices: np.ndarray) -> Iterator[tuple[int, bytes]]:
    from array_record.python.array_record_module import ArrayRecordReader

    first = 0
    for path, count in prepared.shards[split]:
        chosen = indices[(indices >= first) & (indices < first + count)]
        try:
            # It compares a checksum of every block that it reads.
            reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15)
            if reader.num_records() != count:
                raise ValueError(f"{path.name} has {reader.num_records()} records, and {_INFO} says {count}")
            for start in range(0, len(chosen), _BLOCK):
                block = chosen[start : start + _BLOCK]
                yield from zip(block.tolist(), reader.read((block - first).tolist()), strict=True)
            reader.close()
        except Exception as error:  # the record library has no error of its own
            raise InputError(
                f"data.name {prepared.full_name}: the prepared files cannot be read: {_one_line(error)}"
            ) from error
        first += count


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
