"""Packing a folder of images into array_record shards, once; `packed` says what is in them.

While it goes on, `packing/` in the folder holds the settings and, for each finished shard, a sealed record with its
digest. A shard appears whole or not at all, and is not made twice; `manifest.json` is written last.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.atomic import read_text, replacing, sealed, sync, unsealed, write_text
from cnnjax.config import DataConfig
from cnnjax.data import folder as folders
from cnnjax.data.decoding import Decoded, Encoded, decode, pillow_prepared
from cnnjax.data.files import ends_sha256, file_sha256, printable, read_regular
from cnnjax.data.folder import Found
from cnnjax.data.images import Fitting
from cnnjax.data.packed import (
    FORMAT,
    HEADER,
    MANIFEST,
    MEAN,
    SPLITS,
    UNFINISHED,
    Progress,
    check_shard,
    order_of,
)  # fmt: skip
from cnnjax.errors import InputError

SHARD_BYTES = 1 << 28  # of the images in a shard, about
_CHUNK_BYTES = 1 << 16  # of records that are read together: one where it is as large
_CHUNK = 64  # images decoded between two writes
_SETTINGS = "settings.json"


class Summary(NamedTuple):
    """What has been packed."""

    counts: dict[str, int]  # images by split
    left_out: list[tuple[str, str]]  # file, and why it cannot be read
    shards: int
    made: int  # of them now


class _Work(NamedTuple):
    """What is the same for all shards."""

    to: Path
    found: Found
    fitting: Fitting
    size: int | None  # of the pixels that are packed; None: the files are
    on_bad: str
    alike: bool  # whether images must be as the first: all grey, or all in colour


class _Plan(NamedTuple):
    """One shard."""

    name: str  # of the file
    split: str
    indices: np.ndarray  # into the split's list of files, in the order of the records
    group: int  # records that are read together


def pack(
    config: DataConfig,
    to: Path,
    *,
    size: int | None = None,
    on_bad: str = "stop",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    held: Callable[[Path], AbstractContextManager] = nullcontext,
) -> Summary:
    """Packs the images under `config.folder` into `to`, from wherever an earlier start has come.

    Nothing is written, and no folder made, before the folder of images, what is at `to` and the room there are checked.

    Args:
        config: the folder, how it is split, and how images are fitted. `channels` None: those of the first image.
        size: side of the pixels that are packed; None: the files as they are. Each is decoded all the same, to know
            that it can be, and for the mean image, which is that of `config.image_size`.
        on_bad: "stop" at an image that cannot be read, or "skip" it; all that were left out are in the manifest.
        seed: of the order in the shards.
        shard_bytes: of the images in a shard, about.
        held: keeps `to`, which is there by then, from other processes meanwhile.

    Raises:
        InputError: an unusable folder or image; `to` has other files, or a packing with other settings, which are
            named; no room on the disk.
    """
    if size is not None:
        config = dataclasses.replace(config, image_size=size)
    found = folders.find(config)
    try:
        if to.exists():
            _require_ours(to)
        fitting = _fitting(found, config)
        listing = {split: _listing(found, split) for split in SPLITS}
        settings = {
            "images": "files" if size is None else "pixels",
            "fitting": fitting._asdict(),
            "class_names": list(found.class_names),
            "files": {split: _listing_sha256(listing[split], found.parts[split].labels) for split in SPLITS},
            "seed": seed,
            "shard_bytes": shard_bytes,
        }
        if not to.exists() or not {MANIFEST, UNFINISHED} & {path.name for path in to.iterdir()}:
            _require_room(to, listing, size, fitting)
        to.mkdir(parents=True, exist_ok=True)
        with held(to):
            return _packed(
                _Work(to, found, fitting, size, on_bad, config.channels is None), listing, settings, progress
            )
    except OSError as error:
        raise InputError(f"--to must be a folder that can be written, got {str(to)!r}: {error}") from error


def _packed(
    work: _Work, listing: dict[str, list[tuple[str, int]]], settings: dict[str, Any], progress: Progress | None
) -> Summary:
    """Packs, or finds packed, what has been checked."""
    to = work.to
    _require_ours(to)
    if (to / MANIFEST).exists():
        return _finished(to, settings)
    plans = [plan for split in SPLITS for plan in _plans(work, split, [count for _, count in listing[split]], settings)]
    _begin(to, settings)
    records, made, done = [], 0, 0
    total = sum(len(plan.indices) for plan in plans)

    def report(of_shard: int) -> None:
        if progress:
            progress(f"pack {work.found.name}", done + of_shard, total)

    for plan in plans:
        record = _record(to, plan)
        if record is None:
            record, made = _write(work, plan, report), made + 1
        records.append(record)
        report(len(plan.indices))
        done += len(plan.indices)
    manifest = _manifest(to, settings, work.found, work.fitting, plans, records)
    write_text(to / MANIFEST, sealed(manifest))
    shutil.rmtree(to / UNFINISHED)
    return _summary(manifest, made)


def _require_ours(to: Path) -> None:
    names = {path.name for path in to.iterdir()} - {"lock"}
    if names and not (to / MANIFEST).exists() and not (to / UNFINISHED).is_dir():
        raise InputError(f"--to must be new, empty or a packing's, and {str(to)!r} has {sorted(names)[0]!r}")


def _fitting(found: Found, config: DataConfig) -> Fitting:
    """How images are fitted. Raises InputError for a split of which no image can be read."""
    fitting = Fitting.of(config, upright=True)
    first = {split: _first(found, split, fitting) for split in SPLITS}
    return fitting if fitting.channels is not None else fitting._replace(channels=first["train"].channels)


def _first(found: Found, split: str, fitting: Fitting) -> Decoded:
    """The first image of the split that can be read."""
    with pillow_prepared():
        for path in found.parts[split].files:
            try:
                return decode(_encoded(path, read_regular(path)), fitting, "data.folder")
            except (InputError, OSError):  # of which packing says why
                continue
    raise InputError(f"data.folder: the {split} split must hold at least 1 image that can be read, got 0")


def _encoded(path: Path, content: bytes) -> Encoded:
    return Encoded(printable(str(path)), lambda: content)


def _listing(found: Found, split: str) -> list[tuple[str, int]]:
    return [(path.relative_to(found.root).as_posix(), path.stat().st_size) for path in found.parts[split].files]


def _listing_sha256(listing: Sequence[tuple[str, int]], labels: np.ndarray) -> str:
    text = json.dumps([[name, size, label] for (name, size), label in zip(listing, labels.tolist(), strict=True)])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _plans(work: _Work, split: str, sizes: Sequence[int], settings: dict[str, Any]) -> Iterator[_Plan]:
    count, size, seed = len(sizes), work.size, settings["seed"]
    of_record = sum(sizes) // count if size is None else size * size * (work.fitting.channels or 3)
    shards = min(max(1, -(-of_record * count // settings["shard_bytes"])), count)
    order = order_of(count, split, seed)
    group = max(1, min(64, _CHUNK_BYTES // (of_record + HEADER.size)))
    for shard in range(shards):
        start, stop = shard * count // shards, (shard + 1) * count // shards
        name = f"{split}-{shard:05d}-of-{shards:05d}.array_record"
        yield _Plan(name, split, order[start:stop], group)


def _begin(to: Path, settings: dict[str, Any]) -> None:
    """Writes the settings down, or compares them with those of the packing that is there."""
    path = to / UNFINISHED / _SETTINGS
    if path.exists():
        record = unsealed(read_text(path))
        if record is None:
            raise InputError(f"{str(path)!r} is not as it was written: delete {str(to)!r} and pack again")
        _require_same(to, settings, record)
        return
    path.parent.mkdir(exist_ok=True)
    write_text(path, sealed(settings))


def _require_room(to: Path, listing: dict[str, list[tuple[str, int]]], size: int | None, fitting: Fitting) -> None:
    """Raises InputError where the disk that `to` is or will be on has none for the images."""
    files = [of_file for part in listing.values() for _, of_file in part]
    needed = sum(files) if size is None else len(files) * size**2 * (fitting.channels or 3)
    free = shutil.disk_usage(next(folder for folder in (to, *to.absolute().parents) if folder.exists())).free
    if needed > free:
        raise InputError(f"--to {str(to)!r} must have room for {needed:,} bytes, and its disk has {free:,}")


def _require_same(to: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises InputError naming the first setting by which another packing is there."""
    names = {
        "images": "--size", "fitting": "--data", "class_names": "the classes of data.folder",
        "files": "the files of data.folder (names and sizes)", "seed": "--seed", "shard_bytes": "--shard-megabytes",
    }  # fmt: skip
    for name, called in names.items():
        here, there = ours[name], theirs.get(name)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            field = next(field for field in here if here[field] != there.get(field))
            what = f"{called}, {field}" if name == "files" else f"{called}.{field.replace('_', '-')}"
            here, there = here[field], there.get(field)
        else:
            what = called
        said = [str(value)[:60] for value in (here, there)]
        raise InputError(
            f"--to {str(to)!r} holds a packing with other settings ({what}: {said[0]} here, {said[1]} there)"
        )


def _finished(to: Path, settings: dict[str, Any]) -> Summary:
    record = unsealed(read_text(to / MANIFEST))
    if record is None or record.get("format") != FORMAT:
        raise InputError(f"{str(to / MANIFEST)!r} is not as it was written: delete {str(to)!r} and pack again")
    _require_same(to, settings, record["settings"])
    for part in record["splits"].values():
        for shard in part["shards"]:
            check_shard(to, shard)
    if (to / UNFINISHED).exists():  # stopped between the last two steps
        shutil.rmtree(to / UNFINISHED)
    return _summary(record, 0)


def _summary(manifest: dict[str, Any], made: int) -> Summary:
    parts = manifest["splits"].values()
    left_out = [(name, reason) for part in parts for _, name, reason in part["left_out"]]
    counts = {split: sum(part["counts"]) for split, part in manifest["splits"].items()}
    return Summary(counts, left_out, sum(len(part["shards"]) for part in parts), made)


def _record(to: Path, plan: _Plan) -> dict[str, Any] | None:
    """What is kept of a shard that is finished, and is there as it was written; else None."""
    path = to / UNFINISHED / f"{plan.name}.json"
    try:
        record = unsealed(read_text(path))
        if record is None or record["sum_sha256"] != file_sha256(_sum_path(to, plan)):
            return None
        check_shard(to, record)
    except (OSError, UnicodeDecodeError, InputError):
        return None
    return record


def _sum_path(to: Path, plan: _Plan) -> Path:
    return to / UNFINISHED / f"{plan.name}.sum.npy"


def _write(work: _Work, plan: _Plan, report: Callable[[int], None]) -> dict[str, Any]:
    """Makes one shard, and writes down what it is; `report` is told how many of its images are done."""
    from array_record.python.array_record_module import ArrayRecordWriter

    to, part = work.to, work.found.parts[plan.split]
    path, unfinished = to / plan.name, to / f"{plan.name}.tmp"
    left_out: list[tuple[int, str, str]] = []
    sums: dict[tuple[int, ...], np.ndarray] = {}  # by shape of the images
    records = 0
    try:
        writer = ArrayRecordWriter(str(unfinished), f"group_size:{plan.group},uncompressed")
        with pillow_prepared(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(plan.indices), _CHUNK):
                indices = plan.indices[start : start + _CHUNK].tolist()
                images = pool.map(lambda path: _decoded(path, work.fitting), [part.files[index] for index in indices])
                for index, (content, image) in zip(indices, images, strict=True):
                    if isinstance(image, InputError):
                        if work.on_bad == "stop":
                            raise InputError(f"{image} (--on-bad skip leaves such images out)")
                        name = part.files[index].relative_to(work.found.root).as_posix()
                        left_out.append((index, printable(name), str(image)[:300]))
                        continue
                    if work.alike and image.channels != work.fitting.channels:
                        kind = {1: "grey", 3: "colour"}[image.channels]
                        raise InputError(
                            "data.channels must be given (1: grey, 3: RGB) for images of mixed modes:"
                            f" {image.name} is {kind}, the first one is not"
                        )
                    payload = content if work.size is None else image.pixels.tobytes()
                    writer.write(HEADER.pack(index, int(part.labels[index])) + payload)
                    sums[image.pixels.shape] = sums.get(image.pixels.shape, np.uint64(0)) + image.pixels.astype(
                        np.uint64
                    )
                    records += 1
                report(start + len(indices))
        writer.close()
        sync(unfinished)
        unfinished.replace(path)
    except RuntimeError as error:  # the record library has no error of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--to {str(to)!r}: {plan.name} cannot be written: {reason}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    shapes = list(sums)
    with replacing(_sum_path(to, plan)) as file:
        np.save(file, sums[shapes[0]] if len(shapes) == 1 else np.zeros(0, np.uint64))
    record = {
        "file": plan.name,
        "records": records,
        "bytes": path.stat().st_size,
        "sha256_of_file": file_sha256(path),
        "ends_sha256": ends_sha256(path),
        "shapes": [list(shape) for shape in shapes[:2]],
        "left_out": left_out,
        "sum_sha256": file_sha256(_sum_path(to, plan)),
    }
    write_text(to / UNFINISHED / f"{plan.name}.json", sealed(record))
    return record


def _decoded(path: Path, fitting: Fitting) -> tuple[bytes, Decoded | InputError]:
    """The file's content and its image, or what is wrong with it."""
    try:
        content = read_regular(path)
        return content, decode(_encoded(path, content), fitting, "data.folder")
    except OSError as error:
        return b"", InputError(f"data.folder: {printable(str(path))} cannot be read: {error.strerror}")
    except InputError as error:
        return b"", error


def _manifest(
    to: Path,
    settings: dict[str, Any],
    found: Found,
    fitting: Fitting,
    plans: list[_Plan],
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for split in SPLITS:
        of_split = [record for plan, record in zip(plans, records, strict=True) if plan.split == split]
        left_out = sorted((entry for record in of_split for entry in record["left_out"]), key=lambda entry: entry[0])
        part = found.parts[split]
        labels = np.delete(part.labels, [index for index, _, _ in left_out])
        if not len(labels):
            raise InputError(f"data.folder: the {split} split must hold at least 1 image that can be read, got 0")
        splits[split] = {
            "listed": len(part.files),
            "counts": np.bincount(labels, minlength=len(found.class_names)).tolist(),
            "left_out": left_out,
            "shards": [
                {
                    "file": record["file"], "records": record["records"], "bytes": record["bytes"],
                    "sha256": record["sha256_of_file"], "ends_sha256": record["ends_sha256"],
                }
                for record in of_split
                if record["records"]
            ],
        }  # fmt: skip
    shapes = {tuple(shape) for record in records for shape in record["shapes"]}
    mean_sha256 = None
    if len(shapes) == 1:
        sums = [np.load(_sum_path(to, plan), allow_pickle=False) for plan in plans if plan.split == "train"]
        total = sum((part for part in sums if part.size), np.zeros(shapes.copy().pop(), np.uint64))
        mean = (total / sum(splits["train"]["counts"])).astype(np.float32)
        with replacing(to / MEAN) as file:
            np.save(file, mean)
        mean_sha256 = file_sha256(to / MEAN)
    return {
        "format": FORMAT,
        "name": found.name,
        "images": settings["images"],
        "fitting": fitting._asdict(),
        "shape": list(shapes.pop()) if len(shapes) == 1 else None,
        "class_names": list(found.class_names),
        "seed": settings["seed"],
        "splits": splits,
        "mean_sha256": mean_sha256,
        "settings": settings,
    }
